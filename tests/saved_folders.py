"""Saved folders with other content than prunekit wrote, whose digests fit all the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prunekit.digests import digest_of_file, read_json_with_digest, write_json_with_digest


def redescribed(folder: Path, **changes: Any) -> None:
    """Change what `prunekit.json` says."""
    path = folder / "prunekit.json"
    write_json_with_digest(path, {**read_json_with_digest(path), **changes})


def resealed(folder: Path) -> None:
    """Let the digests fit the files that lie there."""
    names = [name for name in ("model.safetensors", "graph.json") if (folder / name).exists()]
    redescribed(folder, files={name: digest_of_file(folder / name) for name in names})


def regraphed(folder: Path, change: Callable[[Any], Any]) -> None:
    """Change the content of `graph.json`."""
    path = folder / "graph.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    resealed(folder)
