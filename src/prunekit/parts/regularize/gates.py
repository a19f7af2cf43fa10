"""Gates that open and close while a network is trained, in groups, and the densities that they come to."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunekit import hard_concrete
from prunekit.errors import InputError
from prunekit.masks import lowest
from prunekit.targets import fits_layer, unwrap


class Gates(nn.Module):
    """The gates of a network in groups, and the Lagrangians that lead to their densities.

    A distribution of gates is a subclass, which keeps what is learned in lists of parameters, a tensor of the
    gates' shape in each for every group.

    What the training does not run stays as it is: groups whose gates have never had a gradient are open, and
    not counted. So is everything before the first step.

    Attributes:
        who: the name of the regularizer.
        names: of the groups: units by the names of their groups, weights by their full names.
        lagrangians: what leads to each density; `leading` gives them by patterns of names.
        steps: () int64, the steps of the optimizer so far.
        ran: (groups,) whether the training has run what a group's gates multiply.
        values: of the run under way, or the last.
        by_example: whether each example has values of its own in training, which multiply what reads the
            units, in place of its weights.
    """

    steps: Tensor
    ran: Tensor
    by_example = False

    def __init__(
        self, who: str, names: Iterable[str], leading: Mapping[str, hard_concrete.Lagrangian]
    ) -> None:
        super().__init__()
        self.who, self.names = who, tuple(names)
        self.lagrangians = nn.ModuleList(leading.values())
        self._led = [
            [place for place, name in enumerate(self.names) if fits_layer(pattern, name)]
            for pattern in leading
        ]
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("ran", torch.zeros(len(self.names), dtype=torch.bool))
        self.values: list[Tensor] = []
        self._inside, self._whole = 0, False

    def __getstate__(self) -> dict[str, Any]:
        """Without the values of a run, which have a graph behind them."""
        return {**vars(self), "values": [], "_inside": 0}

    @abstractmethod
    def sample(self, *learned: Tensor) -> Tensor:
        """Values of a group's gates for a batch, from what is learned of them, with their gradient."""

    @abstractmethod
    def gate(self, *learned: Tensor) -> Tensor:
        """The values after the training, 0 where a gate is closed."""

    @abstractmethod
    def opened(self, *learned: Tensor) -> Tensor:
        """The values after the training of gates that stay though they would be closed."""

    @abstractmethod
    def rank(self, *learned: Tensor) -> Tensor:
        """Any number that is the higher, the further a gate is open."""

    @abstractmethod
    def openness(self, *learned: Tensor) -> Tensor:
        """How far each gate is open, 0 to 1, with its gradient."""

    def penalty(self, share: Callable[[Sequence[Tensor]], Tensor]) -> Tensor:
        """What is minimised beside the loss, times a strength: the share that is expected to be open.

        Args:
            share: of what is counted that gates leave, from how far those of each group are open.
        """
        return share([self.openness(*learned) for learned in self.learned])

    @property
    def learned(self) -> list[tuple[Tensor, ...]]:
        """By group what is learned of its gates."""
        lists = [each for each in self._modules.values() if isinstance(each, nn.ParameterList)]
        return list(zip(*(each._parameters.values() for each in lists), strict=True))

    @property
    def counted(self) -> list[bool]:
        """Which groups have run; all as long as none has."""
        ran: list[bool] = self.ran.tolist()
        return ran if any(ran) else [True] * len(ran)

    @property
    def led(self) -> list[tuple[hard_concrete.Lagrangian, list[int], int]]:
        """By density: its Lagrangian, the places of its groups that are counted, and how many of their gates
        stay.
        """
        counted, learned = self.counted, self.learned
        found = []
        for lagrangian, every in zip(self.lagrangians, self._led, strict=True):
            assert isinstance(lagrangian, hard_concrete.Lagrangian)
            if places := [place for place in every if counted[place]]:
                total = sum(learned[place][0].numel() for place in places)
                found.append((lagrangian, places, max(1, round(lagrangian.wanted * total))))
        return found

    def begin(self, *_: Any) -> None:
        """A run of the whole network begins."""
        self.draw()
        self._inside, self._whole = 1, self.training

    def enter(self, *_: Any) -> None:
        """A run of a part of the network begins, which is a run of its own where none of the whole is.

        After one of the whole, until the step of the optimizer, it is none: parts may run anew in the
        backward pass, as checkpoints of activations do, and need the gates of the forward pass.
        """
        if self._outside:
            self.draw()
        self._inside += 1

    def leave(self, *_: Any) -> None:
        """A run ends, of the network or a part."""
        self._inside = max(self._inside - 1, 0)

    def read(self) -> list[Tensor]:
        """The values for a parameter; outside of any run, new ones."""
        if self._outside:
            self.draw()
        return self.values

    @property
    def _outside(self) -> bool:
        return not self._inside and not (self._whole and self.training)

    def stepping(self) -> None:
        """A step of the optimizer begins, when gradients say what has run.

        Raises:
            InputError: where nothing has.
        """
        self._whole = False
        ran = [learned[0].grad is not None for learned in self.learned]
        if not all(self.ran.tolist()):
            self.ran |= self.ran.new_tensor(ran)
        if not (any(ran) or bool(self.ran.any())):
            raise InputError(
                f"{self.who}: the training runs nothing that has gates, which are those of "
                f"{', '.join(self.names)}"
            )

    def of_examples(self, place: int, examples: int) -> Tensor:
        """(examples, gates) values of a group in training, for gates that are `by_example`."""
        raise NotImplementedError

    def draw(self) -> None:
        """New samples in training, the final gates in evaluation."""
        if not self.training:
            self.values = self.final()
            return
        self.values = [self.sample(*learned) for learned in self.learned]

    def final(self) -> list[Tensor]:
        """The gates after the training: where a number is to stay, the most probably open ones, exactly."""
        found = [torch.ones_like(first) for first, *_ in self.learned]
        if not bool(self.steps):
            return found
        learned = self.learned
        for place, counts in enumerate(self.counted):
            if counts:
                found[place] = self.gate(*learned[place])
        for _, places, staying in self.led:
            flat = torch.cat([self.rank(*learned[place]).detach().flatten() for place in places])
            sizes = [found[place].numel() for place in places]
            closed = lowest(flat, len(flat) - staying).split(sizes)  # type: ignore[no-untyped-call]
            for one, shut in zip(places, closed, strict=True):
                gate = found[one]
                opened = torch.where(gate != 0, gate, self.opened(*learned[one]))
                found[one] = opened * ~shut.view(gate.shape)
        return found


def has_gates(model: nn.Module) -> bool:
    """Whether a network has gates that are not hardened yet."""
    return any(isinstance(module, Gates) for module in unwrap(model).modules())


def check_no_gates(who: str, model: nn.Module) -> None:
    """Refuse a network that has gates.

    Raises:
        InputError: naming who would act on them as on weights.
    """
    if has_gates(model):
        raise InputError(f"{who}: the network has gates already: remove() them first, or attach them last")
