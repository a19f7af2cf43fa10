"""Quantisation: few values for the weights that are left, chosen once at the end and trained."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
