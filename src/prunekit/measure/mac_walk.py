"""One forward pass during which the MACs of every module are counted."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from prunekit.measure._running import evaluating
from prunekit.measure.mac_rules import Macs, rule_for


def count_macs(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[nn.Module, Macs]:
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
        model(*inputs)
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
        rule = rule_for(module)
        if rule is None:
            own = (now - running.start - running.by_children) // 2
            self._add(Macs(module, own, own))
        else:
            for macs in rule(module, args, kwargs, output):
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
