"""Recurrent layers: what they carry from step to step is coupled to itself, so that nothing is taken out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from prunekit.graph.ops.registry import MAX_PARTS, operators, tensors_among

MAX_STEPS = 4096
"""The most steps of a recurrent layer in a saved graph, times its layers and directions."""


def check_recurrent(arguments: Mapping[str, Any], *, gates: int) -> None:
    """Refuse weights and states of other shapes than the layers': not every kernel looks at them.

    Args:
        arguments: by name.
        gates: whose weights lie in one matrix.
    """
    _check_recurrent(gates, **arguments)


def _check_recurrent(
    gates: int, input: Tensor, hx: Any, params: Sequence[Tensor], num_layers: int, **named: Any
) -> None:
    directions = 2 if named["bidirectional"] else 1
    states = tensors_among(hx)
    each = 4 if named["has_biases"] else 2
    if input.dim() != 3 or not 1 <= num_layers <= MAX_PARTS or len(params) != each * num_layers * directions:
        raise ValueError(f"{num_layers} layers of {len(params)} parameters")
    batch, steps = (0, 1) if named["batch_first"] else (1, 0)
    if input.shape[steps] * num_layers * directions > MAX_STEPS:
        raise ValueError(f"more than {MAX_STEPS:,} steps")
    hidden = states[0].shape[-1] if states and states[0].dim() == 3 else 0
    wanted = [(num_layers * directions, input.shape[batch], hidden)] * (2 if gates == 4 else 1)
    if [tuple(state.shape) for state in states] != wanted:
        raise ValueError("the states do not fit the layers")
    for number in range(num_layers * directions):
        width = input.shape[2] if number < directions else hidden * directions
        shapes = [(gates * hidden, width), (gates * hidden, hidden), (gates * hidden,), (gates * hidden,)]
        own = params[number * each : (number + 1) * each]
        if [tuple(one.shape) for one in own] != shapes[:each]:
            raise ValueError(f"the parameters of layer {number // directions} do not fit it")
    if len({one.dtype for one in (input, *states, *params)}) > 1:
        raise ValueError("its tensors are of several types")


operators("gru", saved="input", check=partial(check_recurrent, gates=3))
operators("lstm", saved="input", check=partial(check_recurrent, gates=4))
operators("rnn_relu rnn_tanh", saved="input", check=partial(check_recurrent, gates=1))
