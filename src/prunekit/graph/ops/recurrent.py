"""Recurrent layers: their hidden units, with the rows and columns of all gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from prunekit.graph.labels import Dim, Propagator, Value, along, result_shape
from prunekit.graph.ops.moves import laid
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


def recurrent(
    propagator: Propagator, x: Value, hx: Any, params: Sequence[Value], has_biases: bool, layers: int, *_: Any
) -> Any:
    """x (steps, N, in) or (N, steps, in): a hidden unit goes with its rows in all gates.

    One size stands for the hidden units of all layers and directions of PyTorch's modules.
    """
    return _run(propagator, x, x[:2], hx, params, has_biases, layers)


def recurrent_packed(
    propagator: Propagator, x: Value, sizes: Value, hx: Any, params: Sequence[Value], *rest: Any
) -> Any:
    """The same for sequences one after the other, x (entries, in), with the size of each batch."""
    propagator.freeze(sizes, "says what belongs together")
    has_biases, layers, *_ = rest
    return _run(propagator, x, x[:1], hx, params, has_biases, layers)


def packed(propagator: Propagator, x: Value, lengths: Value, *_: Any) -> list[Value]:
    """x (steps, N, in) without what is behind the end of each sequence, and the size of each batch."""
    propagator.freeze([*x[:2], *lengths], "is packed by lengths")
    first, sizes = result_shape(propagator.val)
    return [(first[0], *(dim._replace(origin=None) for dim in x[2:])), sizes]


def padded(propagator: Propagator, x: Value, sizes: Value, *_: Any) -> list[Value]:
    """The same the other way round, with the length of each sequence."""
    propagator.freeze([x[0], *sizes], "is packed by lengths")
    first, lengths = result_shape(propagator.val)
    return [(*first[:2], *(dim._replace(zero=False, origin=None) for dim in x[1:])), lengths]


def _either(propagator: Propagator, *args: Any, **kwargs: Any) -> Any:
    assert propagator.node is not None
    packed = propagator.node.target._overloadname == "data"  # type: ignore[union-attr]
    return (recurrent_packed if packed else recurrent)(propagator, *args, **kwargs)


def _run(
    propagator: Propagator,
    x: Value,
    places: Value,
    hx: Any,
    params: Sequence[Value],
    has_biases: bool,
    layers: int,
) -> Any:
    gates = {"lstm": 4, "gru": 3}.get(propagator.operator, 1)
    directions = 2 if propagator.argument("bidirectional") else 1
    states = list(hx) if gates == 4 else [hx]
    each = 4 if has_biases else 2
    if len(params) != each * layers * directions:
        return propagator.unknown("is projected in a recurrent layer")
    propagator.freeze(places, "is run over")
    hidden = [state[-1] for state in states]
    for number, weight in enumerate(params):
        size = params[1][1].size
        hidden.append(along(propagator, weight[0], [gates, size], 1))
        if number % each < 2:
            propagator.role(weight[0], "producer")
            propagator.role(weight[1], "consumer")
        if number % each == 1:
            hidden.append(weight[1])
    labels = propagator.join_all(hidden)
    propagator.hint("neurons", labels)
    unit = Dim(hidden[0].size, labels, all(state[-1].zero for state in states))
    both = laid([unit] * directions)
    for number in range(0, len(params), each):
        propagator.join(x[-1] if number < each * directions else both, params[number][1])
    every = Dim(layers * directions)
    out = (*(Dim(dim.size) for dim in places), both)
    return [out, *((every, Dim(state[1].size), unit) for state in states)]


_recurrent = partial(operators, labels=_either, saved="input")
_recurrent("gru", check=partial(check_recurrent, gates=3))
_recurrent("lstm", check=partial(check_recurrent, gates=4))
_recurrent("rnn_relu rnn_tanh", check=partial(check_recurrent, gates=1))


def cell(
    propagator: Propagator,
    x: Value,
    hx: Any,
    w_in: Value,
    w_hidden: Value,
    b_in: Value | None = None,
    b_hidden: Value | None = None,
) -> Any:
    """One step of a recurrent layer, x (N, in)."""
    gates = {"lstm_cell": 4, "gru_cell": 3}.get(propagator.operator, 1)
    states = list(hx) if gates == 4 else [hx]
    hidden = [state[-1] for state in states] + [w_hidden[1]]
    for weight in (w_in, w_hidden, b_in, b_hidden):
        if weight is not None:
            hidden.append(along(propagator, weight[0], [gates, w_hidden[1].size], 1))
    for weight in (w_in, w_hidden):
        propagator.role(weight[0], "producer")
        propagator.role(weight[1], "consumer")
    propagator.join(x[-1], w_in[1])
    labels = propagator.join_all(hidden)
    propagator.hint("neurons", labels)
    unit = Dim(hidden[0].size, labels, all(state[-1].zero for state in states))
    out = (*(dim._replace(origin=None, zero=False) for dim in x[:-1]), unit)
    return [out, out] if gates == 4 else out


operators("lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell", labels=cell)
operators("_pack_padded_sequence", labels=packed)
operators("_pad_packed_sequence", labels=padded)
