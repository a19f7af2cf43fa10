"""Repair: what is done to the survivors at once, with no gradient step."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
