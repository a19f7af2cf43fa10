"""The size of a model and the amount that it computes, layer by layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import inf
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from prunekit.errors import ModelError
from prunekit.measure._running import ExampleInputs, arguments, device_of
from prunekit.measure.macs import Macs, count_macs, nonzeros


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
class Counts:
    """Every layer in the order of the model's modules, and their totals."""

    layers: tuple[LayerCount, ...]

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


def count(model: nn.Module, example_inputs: ExampleInputs) -> Counts:
    """Parameters, MACs and bytes of `model`, layer by layer, from one forward pass.

    The values of `example_inputs` do not matter, only their shapes. MACs are per example: those of the pass
    over the batch, which is the first dimension of the first tensor.

    Counted from the weights and shapes are `nn.Linear`, `nn.Bilinear`, all convolutions, recurrent layers and
    cells, and `nn.MultiheadAttention`, with their subclasses; products with padding count like any other. In
    any other module, matrix products, convolutions and scaled dot-product attention are counted as torch's
    `FlopCounterMode` sees them, and nothing is known of their zeros. **Not** counted are additions, biases,
    activations, norms, poolings, embeddings and custom kernels.

    A weight that is computed (a parametrization, a mask applied on the fly) counts for the MACs as it is
    used, and for the parameters as it is stored. The model runs in evaluation mode without gradients; its
    training flags and hooks are left as they were.

    Raises:
        InputError: if `example_inputs` are not tensors with a batch.
        ModelError: if the model has lazy parameters that no batch has given a shape yet.
    """
    lazy = next((name for name, p in model.named_parameters() if isinstance(p, UninitializedParameter)), None)
    if lazy is not None:
        raise ModelError(f"{lazy} has no shape yet: run the model on one batch before counting")
    inputs = arguments(example_inputs, device_of(model))
    macs = count_macs(model, inputs)
    owners: dict[Tensor, str] = {}
    layers = []
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if own or module in macs:
            layers.append(_layer(name, module, owners, macs.get(module), len(inputs[0])))
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
