"""Removing weights with the rest of their row making up for it: the mathematics of OBS.

Everything here works on one matrix: the Hessian (1/2 of its quadratic form is the error) that all rows of a
layer share, or that of a whole small network with its weights as the only row.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
