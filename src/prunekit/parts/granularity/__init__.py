"""Granularity: what goes together when weights are removed, and what of it there is in a model."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
