"""What a unit whose output is a constant sends to the layer that reads it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunekit.modes import evaluating
from prunekit.structure.calls import Call, is_flatten
from prunekit.structure.operations import LAYERS, NORMS, POOL_FUNCTIONS, POOL_MODULES
from prunekit.structure.parts import Chain, Stage, UnitGroup

_AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


def constant_inputs(model: nn.Module, chain: Chain, group: UnitGroup, constants: Tensor) -> Tensor | None:
    """Follow constants from the layer that makes them to the one that reads them, in evaluation mode.

    Args:
        model: the network.
        chain: its chain.
        group: the units.
        constants: (units,) what each unit would put out, the same for all inputs and at all positions.

    Returns:
        (units * repeat,) what arrives, in float64 on the CPU; None if something on the way does not turn a
        constant into a constant, such as an average that counts padding, or learns from it, such as a slope
        that all units share.
    """
    before, _, _ = chain.split(group)
    names = [stage.name if stage.module is not None else "" for stage in before]
    assert group.producer is not None
    start = names.index(group.producer)
    producer = model.get_submodule(group.producer)
    assert isinstance(producer, LAYERS)
    positions = 0 if isinstance(producer, nn.Linear) else len(producer.kernel_size)
    values = constants.to(producer.weight).view(1, group.units, *[1] * positions)
    with evaluating(model), torch.no_grad():
        for stage in before[start + 1 :]:
            if is_flatten(stage):
                if values.dim() > 2:
                    values = values.flatten(1).repeat_interleave(group.repeat, 1)
            elif _is_pool(stage):
                if not _keeps_constants(stage):
                    return None
            elif _has_no_statistics(stage) or _learns_from_all(stage):
                return None
            else:
                values = stage.run(values)
    return values.flatten().double().cpu()


def _is_pool(stage: Stage) -> bool:
    called = isinstance(stage.run, Call) and stage.run.target in POOL_FUNCTIONS
    return called or isinstance(stage.module, POOL_MODULES)


def _has_no_statistics(stage: Stage) -> bool:
    """Whether a batch norm normalises by the batch in evaluation mode as well."""
    return isinstance(stage.module, NORMS) and stage.module.running_mean is None


def _learns_from_all(stage: Stage) -> bool:
    """Whether the units share a parameter, such as a PReLU's slope, which learns from the constant ones."""
    return (
        stage.module is not None
        and not isinstance(stage.module, NORMS)
        and any(True for _ in stage.module.parameters())
    )


def _keeps_constants(stage: Stage) -> bool:
    """Whether a pooling gives the constant that it is given; averages over counted padding do not."""
    if isinstance(stage.module, _AVERAGES):
        padding = stage.module.padding
        padded = any(padding) if isinstance(padding, tuple) else bool(padding)
        odd = getattr(stage.module, "divisor_override", None) is not None
        return not odd and not (padded and stage.module.count_include_pad)
    if isinstance(stage.run, Call) and getattr(stage.run.target, "__name__", "").startswith("avg_pool"):
        known = {"kernel_size", "stride", "ceil_mode"}
        return len(stage.run.args) <= 3 and set(stage.run.kwargs) <= known  # no padding, no own divisor
    return True
