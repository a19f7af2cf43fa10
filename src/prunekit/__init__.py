"""prunekit: every way to prune a neural network, behind one composition of parts.

Names are imported when they are first asked for, from where `__init__.pyi` says, here and in most of the
packages within. So `from prunekit import prune` loads what every pruning needs, and parts, surgery and what
they take load when a recipe names them; a worker process watches for the end of its parent before it imports
torch, which takes seconds.
"""

import importlib
import importlib.util
import pkgutil
from typing import Any

import lazy_loader

from prunekit.garbage import old_objects_left_alone

_public, _, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # a tenth of the time that `prunekit --help` takes

        return version("prunekit")
    if name in __all__:
        with old_objects_left_alone():  # else all of PyTorch is looked through, a third of the time
            return _public(name)
    if not name.startswith("_") and importlib.util.find_spec(f"prunekit.{name}") is not None:
        return importlib.import_module(f"prunekit.{name}")  # `import prunekit`, then `prunekit.report`
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    # what completion offers: packages before they are imported, and not what this file itself imports
    own = {module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")}
    return sorted({*__all__, *own, *(name for name in globals() if name.startswith("__"))})
