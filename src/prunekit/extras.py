"""Packages that only some uses of prunekit need: imported there, and named with their extra where missing."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from prunekit.errors import InputError

EXTRAS = {
    "bitarray": "pack",
    "ckwrap": "pack",
    "constriction": "pack",
    "executorch": "executorch",
    "fsspec": "study",
    "jinja2": "study",
    "matplotlib": "study",
    "mlflow": "mlflow",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "pooch": "study",
    "ray": "ray",
    "scipy": "study",
    "sklearn": "study",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
}
"""The extra of prunekit that each package comes with."""


def check_installed(purpose: str, *packages: str) -> None:
    """Refuse a purpose whose packages are missing.

    Args:
        purpose: what needs them, as the beginning of a sentence: "A report".
        packages: keys of `EXTRAS`.

    Raises:
        InputError: naming them and the extra that brings them.
    """
    missing = [each for each in packages if importlib.util.find_spec(each) is None]
    if missing:
        raise InputError(
            f"{purpose} needs {', '.join(missing)}: pip install 'prunekit[{EXTRAS[missing[0]]}]'"
        )


def imported(module: str, purpose: str) -> Any:
    """A module of a package among `EXTRAS`.

    Raises:
        InputError: as `check_installed`.
    """
    check_installed(purpose, module.partition(".")[0])
    return importlib.import_module(module)
