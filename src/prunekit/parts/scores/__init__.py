"""Scores: one number per weight or unit; the lowest go first. One family per file."""

import lazy_loader

from prunekit.parts.context import Score, Scores

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["Score", "Scores"]
