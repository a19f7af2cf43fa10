"""Perplexity of a language model on a text, by the published protocol."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunekit.errors import DataError, InputError
from prunekit.modes import evaluating
from prunekit.targets import device_of


@torch.no_grad()
def perplexity(model: nn.Module, tokens: Tensor, *, length: int, batch: int = 1) -> float:
    """e to the mean negative log-likelihood of a text's tokens, in windows that do not overlap.

    The text is cut into windows of `length` tokens, what is left over is not looked at. In each window every
    token but the first is predicted from those before it in the window. A perplexity is comparable with
    others of the same text, tokenizer and length alone: shorter windows give higher ones.

    Args:
        model: a causal language model: from (windows, length) token numbers to logits (windows, length,
            words), or to an output that has them as `logits`.
        tokens: (count,) or (1, count) token numbers of the whole text, without padding.
        length: of a window; 2048 for most published figures.
        batch: windows that go through the model at a time.

    Raises:
        InputError: if the tokens are no whole numbers in one row, or fewer than one window.
        DataError: if the likelihood of a window is not finite.

    Source: the evaluation of GPTQ (arXiv 2210.17323), as used by SparseGPT and Wanda.
    """
    if tokens.dim() == 2 and len(tokens) == 1:
        tokens = tokens[0]
    if tokens.dim() != 1 or tokens.is_floating_point() or tokens.is_complex():
        raise InputError(f"tokens: must be whole numbers (count,) or (1, count), not {list(tokens.shape)}")
    if length < 2 or batch < 1:
        raise InputError(f"length must be at least 2 and batch at least 1, not {length} and {batch}")
    windows = len(tokens) // length
    if not windows:
        raise InputError(f"the text has {len(tokens)} tokens, which is not one window of {length}")
    rows = tokens[: windows * length].view(windows, length).to(device_of(model))
    total = 0.0
    with evaluating(model):
        for number, some in enumerate(torch.split(rows, batch)):
            logits = _logits(model(some))[:, :-1].float()
            found = F.cross_entropy(logits.flatten(0, 1), some[:, 1:].flatten(), reduction="sum")
            if not bool(found.isfinite()):
                raise DataError(f"the likelihood of window {number * batch} of the text is not finite")
            total += float(found)
    try:
        return math.exp(total / (windows * (length - 1)))
    except OverflowError:
        return math.inf


def _logits(output: Any) -> Tensor:
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(found, Tensor) or found.dim() != 3:
        raise InputError(f"the model gives no logits (windows, length, words), but {type(output).__name__}")
    return found
