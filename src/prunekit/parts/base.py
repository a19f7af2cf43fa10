"""A part of a recipe: frozen settings with a name, what it works on, what it requires of other parts."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_serializer
from torch import Tensor, nn

from prunekit.errors import InputError, instead, shown
from prunekit.permission import import_object
from prunekit.settings import Settings

if TYPE_CHECKING:
    from prunekit.obs.rates import Rates
    from prunekit.parts.context import StepContext
    from prunekit.statistics import Statistic
    from prunekit.task import Task
    from prunekit.training import Training

__all__ = ["Part", "Requirement"]

Level = Literal["weights", "patterns", "units", "pieces", "blocks"]
"""What a recipe removes, as its granularity says."""

LEVELS: Mapping[Level, str] = {
    "weights": "single weights",
    "patterns": "weights in a pattern",
    "units": "whole units",
    "pieces": "pieces of maxout units",
    "blocks": "whole blocks",
}
"""The levels in words."""


BatchLoss = Callable[[Any, Any, Any, Tensor], Tensor]
"""(a `prunekit.batches.Batch`, outputs, its targets, the task's loss) -> what is minimised instead.

Outputs are what the network gave for the batch; losses are scalars, means over it.
"""


@dataclass(frozen=True)
class Requirement:
    """What a part requires of another choice of its recipe.

    Attributes:
        of: the recipe's key.
        holds: from what the recipe has chosen there to whether it will do.
        message: what is said otherwise; `{part}` and `{value}` stand for the part, and for what was chosen.
    """

    of: str
    holds: Callable[[Any], bool]
    message: str

    def refusal(self, part: str, value: Any) -> str:
        """The message about a part, such as "the score 'wanda'"."""
        return self.message.format(part=part, value=repr(value.name if isinstance(value, Part) else value))


class Part(Settings):
    """One interchangeable choice of a family (a score, a schedule, ...), written in YAML by its `name`.

    A family is a direct subclass of `Part`; its members are all classes below it that set `name`.
    In YAML a part is its name alone, or a mapping with `name` and its settings. A part of the user's own
    is written as `package.module:Class`; if the program has not imported it, its module must be allowed
    (see `prunekit.permission`).

    Attributes:
        name: the short name, unique in its family.
        home: of a family, the package whose modules its members are in: they are imported when all members
            are asked for, or one by a name that is not known yet. Empty where all are in the family's module.
        paper: the source, with its arXiv number or DOI.
        works_on: what the recipe may remove, by its granularity; anything by default.
        requires: what the recipe must have chosen elsewhere.
        needs: the statistics of the data that the part is computed from, collected before each step.
        warm_up: how the network is trained before the first removal; None for not at all. In a training loop
            of the user's the loop is the training: at least one step must come first.
        by_owner: whether it works on a layer's statistics of pairs of inputs in the process alone that
            `context.owners` names; they are then summed up there alone.
    """

    name: ClassVar[str]
    home: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    works_on: ClassVar[tuple[Level, ...]] = tuple(LEVELS)
    requires: ClassVar[tuple[Requirement, ...]] = ()
    needs: ClassVar[tuple[Statistic, ...]] = ()
    warm_up: ClassVar[Training | None] = None
    by_owner: ClassVar[bool] = False

    @classmethod
    def __pydantic_init_subclass__(cls, **settings: Any) -> None:
        """Refuse a class of the user's own that takes the name of one that comes with the package."""
        family, name = cls._family(), vars(cls).get("name")
        # the package's own are compared with those before them: they are imported here, one after the other
        known = family._loaded if cls.is_own() else family.own_members
        if name is not None and known().get(name, cls) is not cls:
            raise InputError(
                f"{cls._path()}: a {family._label()} named {name!r} comes with prunekit: choose another name"
            )

    # ---- what a part may do beside the work of its family; by default nothing ----

    def initial_state(self, model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        """The tensors, by names of the part's own, that it carries from step to step.

        They are the part's alone to change in place, as `context.state`; a session saves and copies them.

        Args:
            model: the network before anything is done to it, without wrappers.
            names: the parameters that may be pruned, by full name.
        """
        return {}

    def before_step(self, context: StepContext) -> None:
        """Called at the beginning of each step of the pruning, when nothing is measured or removed yet."""
        return

    def before_optimizer_step(self, context: StepContext) -> None:
        """Called just before each step of the optimizer, when the gradients are those of the loss."""
        return

    def training_loss(self, context: StepContext) -> BatchLoss | None:
        """What becomes of the loss of a batch in the training after a step; None for what it is.

        Called once for each such training, with the network as it begins.
        """
        return None

    def check_batch(self, outputs: Any, targets: Any, task: Task) -> None:
        """Refuse what `training_loss` cannot be taken of, before a weight changes, with an `InputError`."""
        return

    def working_bytes(self, rows: int, columns: int) -> int:
        """The memory, at most, for working on a layer of this size, what it gives included.

        What is measured of the layer, its weights and its masks come on top. By default, where products of
        pairs of inputs are looked at, a matrix of them is damped, factorised and inverted, and the weights
        are solved for.
        """
        if not any(need.of_pairs for need in self.needs):
            return 0
        weights = rows * columns
        return 8 * max(5 * columns**2 + 2 * weights, 2 * columns**2 + 5 * weights)

    def solving_seconds(self, rows: int, columns: int, sparsity: float, rates: Rates) -> float:
        """The time for a layer of this size at one step, where it grows faster than the layer."""
        return 0.0

    @classmethod
    def build(cls, value: Any) -> Self:
        """The member of this family that a name, a mapping or a ready part describes."""
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            raise InputError(
                f"expected the name of a {cls._label()} or a mapping with the key 'name', got "
                f"{shown(value)}; names are: {', '.join(sorted(cls.members()))}"
            )
        chosen = cls._find(value["name"])
        return chosen.parse({key: setting for key, setting in value.items() if key != "name"})

    @classmethod
    def members(cls) -> dict[str, type[Self]]:
        """Every named class of this family, of the user's own those that have been imported."""
        own = cls.own_members()
        named = {member.name: member for member in cls._descendants() if "name" in vars(member)}
        return {**named, **own}  # a class that was refused is still a subclass

    @classmethod
    def own_members(cls) -> dict[str, type[Self]]:
        """Those that come with the package."""
        if home := cls._family().home:
            for module in pkgutil.iter_modules(importlib.import_module(home).__path__, f"{home}."):
                importlib.import_module(module.name)
        return cls._loaded()

    @classmethod
    def _loaded(cls) -> dict[str, type[Self]]:
        """Those that come with the package and have been imported."""
        own = (each for each in cls._descendants() if each.is_own())
        return {member.name: member for member in own if "name" in vars(member)}

    @classmethod
    def is_own(cls) -> bool:
        """Whether it comes with prunekit, and is not the user's."""
        return cls.__module__.startswith("prunekit.")

    @classmethod
    def _family(cls) -> type[Part]:
        return next((each for each in cls.__mro__ if Part in each.__bases__), cls)

    @classmethod
    def _descendants(cls) -> Iterator[type[Self]]:
        for child in cls.__subclasses__():
            yield child
            yield from child._descendants()

    @classmethod
    def _find(cls, name: str) -> type[Self]:
        members = cls._loaded()
        if name not in members and ":" not in name:
            members = cls.members()
        if name in members:
            return members[name]
        if ":" in name:
            known = {child._path(): child for child in cls._descendants()}
            if name in known:  # code that runs already needs neither an import nor permission
                return known[name]
            found = import_object(name)
            if isinstance(found, type) and issubclass(found, cls):
                return found
            raise InputError(f"{shown(name)} is not a {cls._label()} (a subclass of {cls.__name__})")
        raise InputError(f"there is no {cls._label()} {shown(name)}{instead(name, sorted(members))}")

    @classmethod
    def _label(cls) -> str:
        return getattr(cls, "name", cls.__name__.lower())

    @classmethod
    def summary(cls) -> str:
        """The first sentence of the class's docstring."""
        return inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].replace("\n", " ")

    @model_serializer(mode="wrap")
    def _with_name(self, handler: Any) -> dict[str, Any]:
        cls = type(self)
        # a class of a script has no module to import it from; the other parts of users are found by theirs
        short = cls.__module__ == "__main__" or cls.is_own()
        name = vars(cls).get("name") if short else None
        return {"name": name or cls._path(), **handler(self)}

    @classmethod
    def _path(cls) -> str:
        return f"{cls.__module__}:{cls.__qualname__}"


def level_refusal(key: str, part: Part, granularities: Mapping[str, Any], chosen: Any) -> str:
    """What is said of a part that does not work on what a recipe removes.

    Args:
        key: the recipe's key of the part.
        part: the part.
        granularities: those that there are, by name.
        chosen: the granularity of the recipe.
    """
    levels = " or ".join(LEVELS[level] for level in LEVELS if level in part.works_on)
    instead = " or ".join(
        repr(name)
        for level in LEVELS
        for name, each in granularities.items()
        if each.level == level and level in part.works_on
    )
    others = _others(part, chosen.level)
    return (
        f"the {key} {part.name!r} works on {levels}, the granularity {chosen.name!r} removes "
        f"{LEVELS[chosen.level]}: use the granularity {instead}"
        + (f", or the {key} {', '.join(map(repr, others))}" if 0 < len(others) <= FEW else "")
    )


FEW = 4
"""How many parts a message names that could be used instead."""


def _others(part: Part, level: Level) -> list[str]:
    """The parts of the same family that were made for a level, and require nothing else."""
    family = part._family()
    return [
        name
        for name, each in sorted(family.own_members().items())
        if level in each.works_on and len(each.works_on) < len(LEVELS) and each.requires == family.requires
    ]


def modules_of(value: Any) -> set[str]:
    """The modules of the user's own parts and functions that are anywhere in settings."""
    found: set[str] = set()
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, Settings):
            left += vars(each).values()
            if isinstance(each, Part) and not each.is_own():
                found.add(type(each).__module__)
        elif isinstance(each, Mapping):
            left += each.values()
        elif isinstance(each, list | tuple):
            left += each
        elif callable(each):
            found.add(each.__module__)
    return found
