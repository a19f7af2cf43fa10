"""What acts during training: penalties, group lasso, gates and dropout, on any model and any optimizer."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
