"""What units are worth, by the truth and by every estimate of it: of any network, and faster on a chain.

What is read of a unit is multiplied by a gain: 1 = on, 0 = off. Every error is the mean over the examples.
Nothing here changes a network: it is looked at in evaluation mode.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
