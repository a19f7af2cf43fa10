"""What is coupled in any network that PyTorch can export, and taking it out with the proof."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
