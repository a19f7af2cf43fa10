"""Evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from prunekit.modes import keeping_modes


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and each back into its own afterwards.

    `train()` and `eval()` are not called: users override them.
    """
    with keeping_modes(model):
        for module in model.modules():
            module.training = False
        yield
