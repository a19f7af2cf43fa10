"""Data in pieces that fit a budget of memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

from prunekit.errors import InputError
from prunekit.structure.chain import Chain
from prunekit.units.flow import Flow


def pieces(
    chain: Chain, inputs: Tensor | Iterable[Tensor], budget_bytes: int
) -> Iterator[tuple[Flow, Tensor]]:
    """The inputs in pieces (n, ...) whose activations fit the budget, each with the chain's flow.

    Args:
        chain: the network.
        inputs: (N, ...), or batches of them.
        budget_bytes: memory for activations.

    Raises:
        InputError: if there are no examples.
    """
    flow: Flow | None = None
    for batch in [inputs] if isinstance(inputs, Tensor) else inputs:
        if not isinstance(batch, Tensor) or batch.dim() < 2:
            raise InputError("inputs must be a tensor (N, ...) or batches of such tensors")
        if len(batch) == 0:
            continue
        flow = flow or Flow(chain, batch[:1])
        for chunk in flow.chunks(len(batch), budget_bytes):
            yield flow, batch[chunk]
    if flow is None:
        raise InputError("there are no examples to watch the units on")
