"""Optimizers that move weights in ways of their own: closures, two calls, averages, wrappers, codes."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import SGD, Adam, Optimizer


class Sam(Optimizer):
    """Sharpness-aware minimisation in its usual form: `step(closure)`, or two calls."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})
        self.base_optimizer = SGD(self.param_groups, lr=0.05, momentum=0.9)

    @torch.no_grad()
    def first_step(self) -> None:
        for p in self.param_groups[0]["params"]:
            self.state[p]["e"] = 0.05 * (p.grad if p.grad is not None else torch.zeros_like(p))
            p.add_(self.state[p]["e"])

    @torch.no_grad()
    def second_step(self) -> None:
        for p in self.param_groups[0]["params"]:
            p.sub_(self.state[p]["e"])
        self.base_optimizer.step()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        closure = torch.enable_grad()(closure)
        closure()
        self.first_step()
        closure()
        self.second_step()


class TwoCallSam(Sam):
    """Its `step` is never called."""


class ScheduleFree(Optimizer):
    """Schedule-free SGD: weights are interpolated, and swapped for their averages by `eval()`."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})
        self.count = 0

    @torch.no_grad()
    def _move(self, amount: float) -> None:
        for p in self.param_groups[0]["params"]:
            if "z" in self.state[p]:
                p.data.lerp_(self.state[p]["z"], amount)

    def eval(self) -> None:
        self._move(1 - 1 / 0.9)

    def train(self) -> None:
        self._move(0.1)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        with torch.enable_grad():
            closure()
        self.count += 1
        for p in self.param_groups[0]["params"]:
            z = self.state[p].setdefault("z", p.detach().clone())
            p.data.lerp_(z, 1 / self.count)
            p.data.add_(p.grad, alpha=-0.05)
            z.sub_(p.grad, alpha=0.05)


class Wrapped(Optimizer):
    """As accelerate wraps: a subclass without hooks of its own."""

    def __init__(self, params: Any) -> None:
        self.optimizer = Adam(params, lr=0.01, weight_decay=0.1)

    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)

    def step(self, closure: Any = None) -> None:
        self.optimizer.step(closure)


class Sharded(Optimizer):
    """As ZeRO wraps: one step of an optimizer of some weights, then all are copied from where they are."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})
        self.optim = Adam(self.param_groups[0]["params"][:1], lr=0.01, amsgrad=True)
        self.elsewhere = [torch.zeros_like(p) for p in self.param_groups[0]["params"]]

    def step(self, closure: Any = None) -> None:
        closure()
        self.optim.step()
        for p, moment in zip(self.param_groups[0]["params"][1:], self.elsewhere[1:], strict=True):
            moment.mul_(0.9).add_(p.grad)
            p.data.copy_(p.data - 0.05 * moment)


class Coded(Optimizer):
    """Momentum in codes of 8 bits, of which 0 is not the code of zero."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        with torch.enable_grad():
            closure()
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            if not state:
                state["code"], state["absmax"] = torch.full_like(p, 128, dtype=torch.uint8), p.new_zeros(())
            moment = (state["code"].float() - 128) / 127 * state["absmax"] * 0.9 + p.grad
            state["absmax"] = moment.abs().max()
            state["code"] = (moment / state["absmax"].clamp_min(1e-12) * 127 + 128).round().to(torch.uint8)
            p.sub_(moment, alpha=0.05)


def take_step(optimizer: Any, closure: Any) -> None:
    """One step of any of them."""
    if isinstance(optimizer, TwoCallSam):
        closure()
        optimizer.first_step()
        closure()
        optimizer.second_step()
    else:
        optimizer.step(closure)


def torchs_own() -> dict[str, Any]:
    """All of torch that train dense weights here, with settings that move weights without a gradient."""
    rates = {"SGD": {"momentum": 0.9, "nesterov": True}, "LBFGS": {"line_search_fn": "strong_wolfe"}}
    kinds = {
        name: kind
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, Optimizer) and name not in ("Optimizer", "SparseAdam")
    }

    def maker(name: str) -> Any:
        settings: dict[str, Any] = {"lr": 0.02, **rates.get(name, {})}
        if name not in ("LBFGS", "Rprop"):
            settings["weight_decay"] = 0.1
        return lambda params: kinds[name](params, **settings)

    return {name: maker(name) for name in sorted(kinds)}


OPTIMIZERS: dict[str, Any] = {
    **torchs_own(),
    "Sam": Sam,
    "TwoCallSam": TwoCallSam,
    "ScheduleFree": ScheduleFree,
    "Wrapped": Wrapped,
    "Sharded": Sharded,
    "Coded": Coded,
    "fused Adam": lambda params: Adam(params, lr=0.01, weight_decay=0.1, fused=True),
}
