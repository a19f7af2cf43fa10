"""The size of a model and the amount that it computes, layer by layer.

In a layer each weight is multiplied equally often in a forward pass. So a rule only says how often; the MACs
are that number times the weights, and the MACs that remain when zeros are skipped are that number times the
weights that are not zero. As in the literature, the addition of a bias is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from math import inf
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from prunekit.batches import Inputs
from prunekit.display import Displayed, some_rows
from prunekit.measure.forward_pass import PassInputs, call_of
from prunekit.modes import evaluating
from prunekit.targets import check_shaped, device_of


@dataclass(frozen=True)
class LayerCount:
    """One layer: a module that owns parameters, or multiplies without owning any.

    Attributes:
        name: the module's full name; empty for the model itself.
        kind: the name of its class.
        shape: shape of its `weight`, or of its largest parameter if it has none of that name; () without any.
        parameters: entries of its own parameters (biases too), without those that an earlier layer owns.
        nonzeros: those of them that are not zero.
        macs: multiply-accumulates per example.
        macs_nonzero: those whose weight is not zero; equal to `macs` where the weights are not known.
        bytes: what its `parameters` take when stored densely.
        tied_to: the earlier layer that owns the parameter of `shape`; empty unless it is tied.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    nonzeros: int
    macs: int
    macs_nonzero: int
    bytes: int
    tied_to: str = ""


@dataclass(frozen=True)
class Counts(Displayed):
    """Every layer in the order of the model's modules, and their totals."""

    layers: tuple[LayerCount, ...]

    def __repr__(self) -> str:
        nonzeros = f"{self.nonzeros:,} of them not zero"
        return f"<Counts: {self.parameters:,} parameters, {nonzeros}, {self.macs:,} MACs>"

    def __str__(self) -> str:
        rows = [
            (each.name, "x".join(map(str, each.shape)), f"{each.parameters:,}", f"{each.macs:,}")
            for each in self.layers
        ]
        heading = ("layer", "weight", "parameters", "MACs")
        return "\n".join([*some_rows([heading, *rows]), repr(self)[1:-1]])

    @property
    def parameters(self) -> int:
        """Entries of all parameters, tied ones once."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def nonzeros(self) -> int:
        """Entries of all parameters that are not zero."""
        return sum(layer.nonzeros for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """The fraction of **all** parameters, biases and norms included, that is zero; 0 without any."""
        return 1 - self.nonzeros / self.parameters if self.parameters else 0.0

    @property
    def compression_ratio(self) -> float:
        """Parameters for each one that is not zero: 4 where three of four are; inf where all are."""
        if self.nonzeros:
            return self.parameters / self.nonzeros
        return inf if self.parameters else 1.0

    @property
    def macs(self) -> int:
        """Multiply-accumulates per example."""
        return sum(layer.macs for layer in self.layers)

    @property
    def macs_nonzero(self) -> int:
        """Multiply-accumulates per example whose weight is not zero."""
        return sum(layer.macs_nonzero for layer in self.layers)

    @property
    def bytes(self) -> int:
        """What all parameters take when stored densely; buffers are not in it (see `state_bytes`)."""
        return sum(layer.bytes for layer in self.layers)

    def to_rows(self) -> list[dict[str, Any]]:
        """One plain mapping for each layer, for JSON or a data frame."""
        return [asdict(layer) | {"shape": list(layer.shape)} for layer in self.layers]

    def to_dict(self) -> dict[str, Any]:
        """Totals and layers as plain JSON values; a `compression_ratio` of infinity is None."""
        return {
            "parameters": self.parameters,
            "nonzeros": self.nonzeros,
            "sparsity": self.sparsity,
            "compression_ratio": None if self.compression_ratio == inf else self.compression_ratio,
            "macs": self.macs,
            "macs_nonzero": self.macs_nonzero,
            "bytes": self.bytes,
            "layers": self.to_rows(),
        }


def count(model: nn.Module, example_inputs: Inputs) -> Counts:
    """Parameters, MACs and bytes of `model`, layer by layer, from one forward pass.

    The values of `example_inputs` do not matter, only their shapes. MACs are per example: those of the pass
    over the batch, which is the first dimension of the first tensor.

    Counted from the weights and shapes are `nn.Linear`, `nn.Bilinear`, all convolutions, recurrent layers and
    cells, and `nn.MultiheadAttention`, with their subclasses; products with padding count like any other. In
    any other module, and beyond that in a subclass, matrix products, convolutions and scaled dot-product
    attention are counted as torch's `FlopCounterMode` sees them, and nothing is known of their zeros. **Not**
    counted are additions, biases, activations, norms, poolings, embeddings and custom kernels.

    A weight that is computed (a parametrization, a mask applied on the fly) counts for the MACs as it is
    used, and for the parameters as it is stored. The model runs in evaluation mode without gradients; its
    training flags and hooks are left as they were.

    Raises:
        InputError: if `example_inputs` have no tensor with a batch.
        ModelError: if the model has lazy parameters that no batch has given a shape yet.
    """
    check_shaped(model)
    call = call_of(example_inputs, device_of(model))
    macs = count_macs(model, call)
    owners: dict[Tensor, str] = {}
    layers = []
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if own or module in macs:
            layers.append(_layer(name, module, owners, macs.get(module), call.batch))
        for parameter in own:
            owners.setdefault(parameter, name)
    return Counts(tuple(layers))


def _layer(
    name: str, module: nn.Module, owners: dict[Tensor, str], macs: Macs | None, batch: int
) -> LayerCount:
    own = dict(module.named_parameters(recurse=False))
    new = [parameter for parameter in own.values() if parameter not in owners]
    main = own.get("weight", max(own.values(), key=Tensor.numel, default=None))
    return LayerCount(
        name=name,
        kind=type(module).__name__,
        shape=() if main is None else tuple(main.shape),
        parameters=sum(parameter.numel() for parameter in new),
        nonzeros=sum(nonzeros(parameter) for parameter in new),
        macs=macs.dense // batch if macs else 0,
        macs_nonzero=macs.nonzero // batch if macs else 0,
        bytes=sum(parameter.numel() * parameter.element_size() for parameter in new),
        tied_to="" if main is None else owners.get(main, ""),
    )


# ---- multiply-accumulates ----------------------------------------------------------------------------------


class Macs(NamedTuple):
    """MACs of one layer over the whole batch: all, and those whose weight is not zero."""

    owner: nn.Module
    dense: int
    nonzero: int


def nonzeros(tensor: Tensor) -> int:
    """Entries that are not zero, of a dense or a sparse tensor."""
    if tensor.layout == torch.sparse_coo:
        tensor = tensor.coalesce()
    stored = tensor if tensor.layout == torch.strided else tensor.values()
    return int(torch.count_nonzero(stored))


# How often a layer multiplies each of its weights, from its input and its output. A convolution does so once
# at each output position, at the border too: a product with the padding counts like any other. A transposed
# one does so at each input position; what falls outside and is cropped by the padding counts too. It is a
# convolution by class, too, so it comes first.
_TIMES: tuple[tuple[type[nn.Module], Callable[[Any, Any, Any], int]], ...] = (
    (_ConvTransposeNd, lambda layer, x, y: x.numel() // layer.in_channels),
    (_ConvNd, lambda layer, x, y: y.numel() // layer.out_channels),
    (nn.Linear, lambda layer, x, y: y.numel() // layer.out_features),
    (nn.Bilinear, lambda layer, x, y: y.numel() // layer.out_features),
    (nn.RNNBase, lambda layer, x, y: x.data.numel() // layer.input_size),
    (nn.RNNCellBase, lambda layer, x, y: x.numel() // layer.input_size),
)


def _counted(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
) -> list[Macs] | None:
    """The MACs of one call of a layer, or None where its kind is not known."""
    if isinstance(module, nn.MultiheadAttention):
        return list(_attention(module, args, kwargs))
    times = next((times for kind, times in _TIMES if isinstance(module, kind)), None)
    if times is None:
        return None
    often = times(module, args[0] if args else kwargs.get("input"), output)
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        weights = [each for each in module.parameters(recurse=False) if each.dim() == 2]  # others are biases
    else:
        weights = [cast(nn.Parameter, module.weight)]
    return [_used(module, weight, often) for weight in weights]


def _used(owner: nn.Module, weight: Tensor, times: int) -> Macs:
    """Each entry of `weight` is multiplied `times` times."""
    return Macs(owner, times * weight.numel(), times * nonzeros(weight))


def _attention(
    layer: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[Macs]:
    query, key, value = (
        args[place] if place < len(args) else kwargs[name]
        for place, name in enumerate(("query", "key", "value"))
    )
    positions = (
        query.numel() // layer.embed_dim,
        key.numel() // layer.kdim,
        value.numel() // layer.vdim,
    )
    if layer.in_proj_weight is None:
        projections = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
    else:
        projections = layer.in_proj_weight.chunk(3)
    for weight, times in zip(projections, positions, strict=True):
        yield _used(layer, weight, times)
    # Attention itself multiplies activations by activations: no pruned weight makes it smaller.
    keys = key.shape[1 if layer.batch_first and key.dim() == 3 else 0]
    keys += (layer.bias_k is not None) + layer.add_zero_attn
    between = 2 * positions[0] * keys * layer.embed_dim
    yield Macs(layer, between, between)
    # The layer reads this child's weight without calling it.
    yield _used(layer.out_proj, layer.out_proj.weight, positions[0])


def count_macs(model: nn.Module, call: PassInputs) -> dict[nn.Module, Macs]:
    """The MACs of each module that does any, over the whole batch, its children's excluded.

    A kind of layer without a rule gets half of the floating-point operations that torch's `FlopCounterMode`
    sees in it: matrix products, convolutions and scaled dot-product attention. How many of those meet a zero
    is not known, so there `nonzero` equals `dense`.
    """
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        # Not inference mode: that would hide from the counter what composite operations are made of.
        stack.enter_context(torch.no_grad())
        walk = _Walk(stack.enter_context(FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)))
        for module in model.modules():
            # A hook also keeps `nn.TransformerEncoderLayer` from a fused path that calls no child.
            stack.callback(module.register_forward_pre_hook(walk.enter).remove)
            stack.callback(module.register_forward_hook(walk.leave, with_kwargs=True).remove)
        call(model)
    return walk.found


class _Walk:
    """Keeps the chain of modules that are running, to tell a module's own work from its children's."""

    def __init__(self, counter: FlopCounterMode) -> None:
        self.found: dict[nn.Module, Macs] = {}
        self._counter = counter
        self._running: list[_Running] = []

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._running.append(_Running(self._counter.get_total_flops()))

    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        now = self._counter.get_total_flops()
        running = self._running.pop()
        if self._running:
            self._running[-1].by_children += now - running.start
        known = _counted(module, args, kwargs, output)
        found = known or []
        if known is None or not type(module).__module__.startswith("torch."):
            # a subclass of a known layer may multiply more than that, as those of low-rank adapters do
            beside = (now - running.start - running.by_children) // 2 - sum(macs.dense for macs in found)
            found.append(Macs(module, max(beside, 0), max(beside, 0)))
        for macs in found:
            self._add(macs)

    def _add(self, macs: Macs) -> None:
        before = self.found.get(macs.owner, Macs(macs.owner, 0, 0))
        total = Macs(macs.owner, before.dense + macs.dense, before.nonzero + macs.nonzero)
        if total.dense:
            self.found[macs.owner] = total


class _Running:
    """The counter when a module began, and what its children have added since."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.by_children = 0


def _attention_flops(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *args: Any, **kwargs: Any
) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


# The counter knows every fused attention but that of the CPU.
_CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
