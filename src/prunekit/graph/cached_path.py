"""The way of a language model of the library transformers in `generate()`: step by step, with a cache."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.graph.other_inputs import Arguments


def keeps_cache(model: nn.Module) -> bool:
    """Whether a network can be asked to keep what it read in a cache, which is given to its next call."""
    taken = inspect.signature(model.forward).parameters
    any_name = any(each.kind is each.VAR_KEYWORD for each in taken.values())
    return {"use_cache", "past_key_values"} <= taken.keys() or (any_name and _generates(model))


def _generates(model: Any) -> bool:
    can = getattr(model, "can_generate", None)
    return callable(can) and bool(can())


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """Let a network that keeps a cache unless it is told otherwise keep none: it is no result of its own."""
    configs: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    asked = [config for config in configs if getattr(config, "use_cache", None) is True]
    for config in asked:
        config.use_cache = False
    try:
        yield
    finally:
        for config in asked:
            config.use_cache = True


def with_cache(model: nn.Module, call: Arguments) -> Tensor | None:
    """What the last of the words gives, where the cache holds those before.

    None where the model has no such way: it keeps no cache, or reads more than words.

    Args:
        model: the network, in evaluation mode.
        call: its arguments.
    """
    found = _words(model, call)
    if found is None:
        return None
    name, words, others = found
    before = model(**{name: words[:, :-1]}, **others, use_cache=True)
    cache = getattr(before, "past_key_values", None)
    if cache is None:
        return None
    after = model(**{name: words[:, -1:]}, **others, past_key_values=cache, use_cache=True)
    given = next(
        (getattr(after, each, None) for each in ("logits", "last_hidden_state") if each in after), None
    )
    return given if isinstance(given, Tensor) else None


def _words(model: Any, call: Arguments) -> tuple[str, Tensor, dict[str, Any]] | None:
    """The name of what a decoder reads, (examples, words), at least two each, and what an encoder reads."""
    args, kwargs = call
    config = getattr(model, "config", None)
    if config is None or not keeps_cache(model):
        return None
    named = {**dict(zip(inspect.signature(model.forward).parameters, args, strict=False)), **kwargs}
    name, others = "input_ids", dict[str, Any]()
    if getattr(config, "is_encoder_decoder", False):
        name = "decoder_input_ids"
        others = {each: value for each, value in named.items() if each not in (name, *_OF_THE_DECODER)}
    words = named.get(name)
    if not isinstance(words, Tensor) or words.dtype not in (torch.int64, torch.int32) or words.dim() != 2:
        return None
    return (name, words, others) if words.shape[1] > 1 else None


_OF_THE_DECODER = ("decoder_attention_mask", "decoder_position_ids", "labels", "past_key_values", "use_cache")
"""Arguments that are for all words at once, or that are given here."""
