"""Training flags of modules: evaluation mode for a while, and each put back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def keeping_modes(*roots: nn.Module) -> Iterator[None]:
    """Afterwards every module below has the training flag that it had, mixed ones too.

    `train()` and `eval()` are not called for it: users override them.
    """
    flags = [(module, module.training) for root in roots for module in root.modules()]
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def evaluating(*roots: nn.Module) -> Iterator[None]:
    """Evaluation mode for every module below; afterwards each has the training flag that it had."""
    with keeping_modes(*roots):
        for root in roots:
            for module in root.modules():
                module.training = False
        yield
