"""Allocation: how the amount to remove is shared out over the layers."""

import lazy_loader

from prunekit.parts.context import Allocation

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["Allocation"]
