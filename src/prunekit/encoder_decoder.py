"""What the decoder of a translator reads where a batch holds labels alone: the labels, one position later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from prunekit.batches import Batch
from prunekit.losses import NOTHING
from prunekit.targets import unwrap

_READ = ("decoder_input_ids", "decoder_inputs_embeds")


def with_decoder_inputs(model: nn.Module, batch: Batch) -> Batch:
    """A batch with the words that the decoder reads, as transformers' encoder-decoders make them of labels.

    Such a network runs on its labels or on `decoder_input_ids`; where a batch has only labels, its outputs
    could not be had without its loss. Labels [5, 3, 8] become [start, 5, 3], and positions that no loss
    counts become padding. Any other batch, and that of any other network, is given back as it is.
    """
    labels, inputs, inner = batch.fed.get("labels"), batch.inputs, unwrap(model)
    config = getattr(inner, "config", None)
    if getattr(config, "is_encoder_decoder", None) is not True or not isinstance(inputs, Mapping):
        return batch
    if not isinstance(labels, Tensor) or labels.dim() != 2 or any(name in inputs for name in _READ):
        return batch
    start, padding = (getattr(config, name, None) for name in ("decoder_start_token_id", "pad_token_id"))
    own = getattr(inner, "prepare_decoder_input_ids_from_labels", None)
    if own is not None and start is not None:
        words = own(labels=labels)
    elif own is None and isinstance(start, int):  # Whisper has none, and does this inside of its forward
        first = labels.new_full((len(labels), 1), start)
        words = torch.cat([first, labels[:, :-1]], 1)
        words = words.masked_fill(words == NOTHING, start if padding is None else padding)
    else:
        return batch
    return replace(batch, inputs={**inputs, _READ[0]: words})
