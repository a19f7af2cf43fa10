"""The way of a language model of the library transformers in `generate()`: step by step, with a cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prunekit.graph.other_inputs import Arguments


def with_cache(model: nn.Module, call: Arguments) -> Tensor | None:
    """What the last of the words gives, where the cache holds those before.

    None where the model has no such way: it generates nothing, keeps no cache, or reads more than words.

    Args:
        model: the network, in evaluation mode.
        call: its arguments.
    """
    words = _words(model, call)
    if words is None:
        return None
    before = model(input_ids=words[:, :-1], use_cache=True)
    cache = getattr(before, "past_key_values", None)
    if cache is None:
        return None
    found = getattr(model(input_ids=words[:, -1:], past_key_values=cache, use_cache=True), "logits", None)
    return found if isinstance(found, Tensor) else None


def _words(model: Any, call: Arguments) -> Tensor | None:
    """(examples, words) what a decoder reads, at least two each."""
    args, kwargs = call
    config, can = getattr(model, "config", None), getattr(model, "can_generate", None)
    if not callable(can) or not can() or getattr(config, "is_encoder_decoder", False):
        return None
    words = kwargs.get("input_ids", args[0] if args else None)
    if not isinstance(words, Tensor) or words.dtype not in (torch.int64, torch.int32) or words.dim() != 2:
        return None
    return words if words.shape[1] > 1 else None
