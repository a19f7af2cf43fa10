"""Saved folders with other content than prunekit wrote, whose digests fit all the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from prunekit.digests import read_json_with_digest, write_json_with_digest, write_tensors


def redescribed(folder: Path, **changes: Any) -> None:
    """Change what `prunekit.json` says."""
    path = folder / "prunekit.json"
    write_json_with_digest(path, {**read_json_with_digest(path), **changes})


def resealed(folder: Path) -> None:
    """Let the digests fit the files that lie there."""
    tensors = load_file(folder / "model.safetensors")
    files = {"model.safetensors": write_tensors(folder / "model.safetensors", tensors)}
    path = folder / "graph.json"
    if path.exists():
        graph = {key: value for key, value in json.loads(path.read_text()).items() if key != "sha256"}
        files["graph.json"] = write_json_with_digest(path, graph)
    redescribed(folder, files=files)


def reweighted(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of `model.safetensors`, of any name and dtype."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    resealed(folder)


def regraphed(folder: Path, change: Callable[[Any], Any]) -> None:
    """Change the content of `graph.json`."""
    path = folder / "graph.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    resealed(folder)
