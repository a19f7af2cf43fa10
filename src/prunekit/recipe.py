"""The recipe: a pruning method as a frozen composition of parts, the same in Python and in YAML.

Named methods are functions that give one; `method` makes their errors name their own settings.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, ParamSpec

import torch
from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator
from torch import nn
from torch.optim import Optimizer

from prunekit.batches import Inputs
from prunekit.display import Displayed, some_rows
from prunekit.errors import InputError, shown
from prunekit.masks import Masks
from prunekit.parts.allocation import Allocation, Global, PerLayer
from prunekit.parts.base import Part, Requirement, level_refusal
from prunekit.parts.context import CostModel, StepContext, comparison_refusal
from prunekit.parts.granularity import Elements, Granularity, Weight
from prunekit.parts.grow import Grow
from prunekit.parts.quantize import NoQuantization, Quantizer
from prunekit.parts.repair import NoRepair, Repair
from prunekit.parts.retrain import NoRetraining, Retrain
from prunekit.parts.schedule import Order, Schedule, Step, check_increasing
from prunekit.parts.scores import Magnitude, Score
from prunekit.parts.selection import Lowest, Selection
from prunekit.parts.stopping import NoStop, Stop
from prunekit.parts.teacher import Teacher
from prunekit.settings import STEPS, WHOLE, Settings
from prunekit.statistics import Statistic
from prunekit.task import LossFunction, Task
from prunekit.training import Training

if TYPE_CHECKING:
    from prunekit.pruning import Logger, Session

__all__ = ["Plan", "Recipe", "Taken", "method"]


@dataclass(frozen=True)
class Plan(Displayed):
    """What a recipe will do to a model: its targets resolved, and every step.

    Attributes:
        elements: what is removed from it.
        steps: in order.
        layer_by_layer: whether only the layers of a step are measured and scored at it, not those that come
            later.
    """

    elements: Elements
    steps: tuple[Step, ...]
    layer_by_layer: bool

    @property
    def names(self) -> list[str]:
        """The full names of the pruned parameters, or of the groups of units."""
        return self.elements.names

    def __repr__(self) -> str:
        targets, steps = self.elements.targets, len(self.steps)
        total = sum(target.shape.numel() for target in targets)
        return (
            f"<Plan: {total:,} elements of {len(targets):,} target{'s' if len(targets) != 1 else ''} "
            f"in {steps} step{'s' if steps != 1 else ''}>"
        )

    def __str__(self) -> str:
        rows = [(target.name, f"{target.shape.numel():,}") for target in self.elements.targets]
        levels = [f"{100 * step.sparsity:.3g}%" for step in self.steps if step.sparsity is not None]
        removed = [f"removed: {', '.join(levels)}"] if levels else []
        return "\n".join([repr(self)[1:-1], *some_rows(rows), *removed])


TAKEN_ONCE = (
    Requirement(
        "rank", lambda rank: rank == "once", "{part} serve one ranking only: set 'rank' to 'once' too"
    ),
    Requirement(
        "order",
        lambda order: order == "all",
        "the order {value} is there to measure each layer behind those before it: "
        "take 'statistics' at 'every_step'",
    ),
    Requirement(
        "retrain",
        lambda retrain: not retrain.changes,
        "the retrain {value} changes what layers are given: take 'statistics' at 'every_step'",
    ),
)
"""What statistics require of a recipe that takes them once."""


def _training_or_none(value: Any) -> Training | None:
    return None if value is None else Training.parse(value)


def _teacher_or_none(value: Any) -> Teacher | None:
    return None if value is None else Teacher.build(value)


def _grow_or_none(value: Any) -> Grow | None:
    return None if value is None else Grow.build(value)


class Recipe(Displayed, Settings):
    """A score, taken at some granularity, shared out over the layers, in some number of steps, with a repair
    and a retraining after each.

    Attributes:
        score: one number per weight; the lowest go first.
        granularity: what goes together.
        allocation: how the amount is shared over layers; by default all compete, or, where scores of
            different layers cannot be compared or the granularity is even, each loses the same fraction.
        schedule: the sparsity at each step, as a fraction of the original count.
        selection: which elements of a layer go, once their number is known.
        order: whether a level of the schedule takes all layers at once, or one after the other. One after the
            other, each is measured behind the layers that were pruned before it, and only that one if the
            allocation looks at each layer by itself.
        repair: what is done to the survivors at once.
        warm_up: a training before the first removal, in place of none: that of a penalty or of gates, under
            which what is to go becomes zero. In a loop of the user's the loop is the training.
        retrain: what follows each step.
        teacher: what the survivors learn from beside the task, in every retraining; by default nothing.
        quantize: few values for the weights that are left, chosen behind the last step and its retraining,
            and trained; by default weights are as they are.
        stop: what ends the pruning before its last step.
        targets: patterns of what is pruned; None for all linear and convolution layers.
        ignore: patterns of what is left out.
        rank: when scores are taken: anew before every step, or once before the first.
        statistics: when what a repair needs is measured: anew before every step, or once before the first.
        retrain_every: retraining follows each so many steps, and the last.
        calibration: how many training examples scores, allocations and repairs may see: the same at every
            step, but others at each with a `grow`.
        recalibrate: whether the running statistics of batch norms are measured anew on these examples, before
            the first scores and after every removal; by default after the removal of units that no training
            follows, where there are data.
        regrow: whether removed weights compete again at the next step; otherwise they never come back.
        grow: which removed weights come back at each step after the first, in place of as many that the score
            ranks lowest (dynamic sparse training); by default none does so.
    """

    score: Annotated[SerializeAsAny[Score], BeforeValidator(Score.build)] = Magnitude()
    granularity: Annotated[SerializeAsAny[Granularity], BeforeValidator(Granularity.build)] = Weight()
    allocation: Annotated[SerializeAsAny[Allocation], BeforeValidator(Allocation.build)] = Global()
    schedule: Annotated[SerializeAsAny[Schedule], BeforeValidator(Schedule.build)]
    selection: Annotated[SerializeAsAny[Selection], BeforeValidator(Selection.build)] = Lowest()
    order: Order = "all"
    repair: Annotated[SerializeAsAny[Repair], BeforeValidator(Repair.build)] = NoRepair()
    warm_up: Annotated[Training | None, BeforeValidator(_training_or_none)] = None
    retrain: Annotated[SerializeAsAny[Retrain], BeforeValidator(Retrain.build)] = NoRetraining()
    teacher: Annotated[SerializeAsAny[Teacher] | None, BeforeValidator(_teacher_or_none)] = None
    quantize: Annotated[SerializeAsAny[Quantizer], BeforeValidator(Quantizer.build)] = NoQuantization()
    stop: Annotated[SerializeAsAny[Stop], BeforeValidator(Stop.build)] = NoStop()
    targets: tuple[str, ...] | None = None
    ignore: tuple[str, ...] = ()
    rank: Literal["every_step", "once"] = "every_step"
    statistics: Literal["every_step", "once"] = "every_step"
    retrain_every: int = Field(default=1, ge=1, le=STEPS)
    calibration: int = Field(default=1024, ge=1, le=WHOLE)
    recalibrate: bool | None = None
    regrow: bool = False
    grow: Annotated[SerializeAsAny[Grow] | None, BeforeValidator(_grow_or_none)] = None

    @model_validator(mode="after")
    def _parts_fit(self) -> Recipe:
        comparable = self.granularity.one_target or self.granularity.level in self.score.comparable
        if "allocation" not in self.model_fields_set and (self.granularity.even or not comparable):
            vars(self)["allocation"] = PerLayer()
        if not self.schedule.stands_still:
            check_increasing(self.schedule.sparsities())
        for key, part in self.parts.items():
            if not hasattr(part, "name"):
                raise ValueError(f"the {key} {type(part).__name__} has no `name`: give its class one")
            if self.granularity.level not in part.works_on:
                raise ValueError(level_refusal(key, part, Granularity.own_members(), self.granularity))
            _check_required(self, f"the {key} {part.name!r}", part.requires)
        taken = comparable or self.granularity.level in self.score.compared_if_named
        if self.allocation.compares and not taken:
            raise ValueError(comparison_refusal(self.score, self.allocation, self.granularity.level))
        acting = () if self.retrain.plan is None else self.retrain.plan.regularize
        before = [each for each in acting if not each.interruptible]
        if before and self.allocation.name != "none":
            raise ValueError(
                f"the retrain {self.retrain.name!r}: the regularizer {before[0].name!r} acts in a training "
                "before the first removal, not behind it: set it in 'warm_up'"
            )
        for each in (each for training in self.quantize.plans for each in training.regularize):
            if not each.interruptible:
                raise ValueError(
                    f"the quantize {self.quantize.name!r}: the regularizer {each.name!r} acts in a training "
                    "before the first removal: set it in 'warm_up'"
                )
        if self.statistics == "once":
            _check_required(self, "statistics that are taken once", TAKEN_ONCE)
        return self

    def __str__(self) -> str:
        chosen = [(f"{key}:", repr(value)) for key, value in self.__repr_args__() if key is not None]
        return "\n".join(["Recipe", *some_rows(chosen)])

    @property
    def parts(self) -> dict[str, Part]:
        """The parts by their keys."""
        return {key: value for key, value in vars(self).items() if isinstance(value, Part)}

    def parts_with(self, method: str) -> list[tuple[str, Part]]:
        """The parts, with their keys, that have a method of their own of this name, where `Part` has one."""
        default = getattr(Part, method)
        return [(key, part) for key, part in self.parts.items() if getattr(type(part), method) is not default]

    @property
    def warm_ups(self) -> dict[str, Training]:
        """The trainings before the first removal by who asks for them: the recipe itself, or a part by its
        key."""
        own = {} if self.warm_up is None else {"warm_up": self.warm_up}
        return own | {key: part.warm_up for key, part in self.parts.items() if part.warm_up is not None}

    @property
    def learns_from_given(self) -> bool:
        """Whether its teacher is another network, which whoever runs the recipe gives."""
        return self.teacher is not None and self.teacher.of == "given"

    def called(self, key: str) -> str:
        """What a key of the recipe is called in a message, such as "retrain 'fine_tune'"."""
        return f"{key} {self.parts[key].name!r}" if key in self.parts else key

    @property
    def trains(self) -> bool:
        """Whether the network is trained, after the steps or before the first."""
        return self.trains_survivors or bool(self.warm_ups)

    @property
    def trains_survivors(self) -> bool:
        """Whether the network is trained after a step."""
        return self.retrain.plan is not None or bool(self.quantize.plans)

    @property
    def by_example(self) -> bool:
        """Whether `plan` must run the network on an example."""
        return self.granularity.by_example or self.allocation.by_example

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """Every statistic that the parts are computed from."""
        return tuple(need for part in self.parts.values() for need in part.needs)

    @property
    def by_gradient(self) -> bool:
        """Whether it needs gradients of the loss."""
        return any(need.needs_loss for need in self.needs)

    @property
    def needs_data(self) -> bool:
        """Whether choosing the weights, or repairing the rest, cannot be done without data."""
        chosen = bool(self.needs) or self.allocation.needs_data or self.quantize.needs_data
        return chosen or bool(self.recalibrate)

    def plan(self, model: nn.Module, example_inputs: Inputs | None = None) -> Plan:
        """Resolve the targets and the steps; everything that can be refused for a model is refused here.

        Args:
            model: the network.
            example_inputs: what it can be run on, to find out which units are coupled; two examples suffice.

        Raises:
            InputError: if a pattern matches nothing, or an amount, granularity or floor does not fit a layer.
            ModelError: if the model has nothing to prune, or a weight that cannot be (NaN, parametrized, on
                the meta device, shared out over processes), or a layer that the repair cannot mend.
        """
        elements = self.granularity.elements(model, self.targets, self.ignore, example_inputs)
        targets = elements.targets
        names = elements.names
        sparsities = self.schedule.levels(sum(target.shape.numel() for target in targets))
        steps = self.schedule.plan_steps(sparsities, names, self.order)
        self.allocation.check(targets, sparsities[-1])
        for target in targets:
            self.granularity.check(target, sparsities)
        self.allocation.check_even(self.granularity, targets)
        if self.quantize.changes:
            self.quantize.check(elements.model)
        context = StepContext.of(elements, self.granularity, elements.all_kept())
        for part in (self.score, self.repair) if self.repair.changes else (self.score,):
            part.check(context)
        if self.allocation.of_cost:

            def choose(amounts: Mapping[str, int]) -> Masks:
                """All units are as good as any others."""
                chosen = {}
                for name, lost in amounts.items():
                    alike = torch.zeros_like(context.kept[name], dtype=torch.float64)
                    count = self.granularity.rounded(alike.numel(), lost)
                    chosen[name] = self.granularity.select(elements.shielded(name, alike), count)
                return Masks(chosen)

            self.allocation.check_network(
                targets, sparsities[-1], CostModel(elements, choose, example_inputs)
            )
        local = self.allocation.local and self.granularity.counts == "weights"
        return Plan(elements, steps, self.order != "all" and self.rank == "every_step" and local)

    def attach(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        data: Any = None,
        loss: str | LossFunction | None = None,
        task: Task | None = None,
        seed: int = 0,
        every: int | None = None,
        loggers: Iterable[Logger] = (),
        example_inputs: Inputs | None = None,
        teacher: nn.Module | None = None,
    ) -> Session:
        """Prune inside a training loop of your own.

        The masks act on gradients and after each `optimizer.step()`; the session's `advance()` takes the
        schedule's next step, or, with `every`, each n-th optimizer step does. `training` settings of the
        recipe's retrain part do not act: your loop is the training.

        Args:
            model: the network, also one that is wrapped by DDP or `torch.compile`.
            optimizer: of your loop, or all of them if there are several.
            data: calibration examples, if the recipe needs data: tensors, a dataset or a loader.
            loss: what is scored by, as in `prunekit.prune`.
            task: in place of `loss`, how the network is fed a batch and what its loss is.
            seed: of everything random in the recipe.
            every: advance by itself after this many optimizer steps.
            loggers: told what each step achieved; see `prunekit.loggers`.
            example_inputs: see `plan`; by default the first of the data.
            teacher: as in `prunekit.prune`.
        """
        from prunekit.pruning import Session  # the loop is built on recipes, this is its door from here

        session = Session(
            model,
            self,
            data=data,
            loss=loss,
            task=task,
            seed=seed,
            loggers=loggers,
            example_inputs=example_inputs,
            teacher=teacher,
        )
        session.attach(optimizer, every=every)
        return session

    def to_yaml(self) -> str:
        """The recipe as YAML, every default written out; `from_yaml` is its inverse."""
        import yaml  # here, for it takes 10 ms, and pruning does without

        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    @classmethod
    def from_yaml(cls, text: str | Path, *, allow: Iterable[str] = ()) -> Recipe:
        """The recipe that a YAML text or file describes.

        Args:
            text: the text, or the path of a file.
            allow: modules of the user's own whose parts it may name.

        Raises:
            InputError: naming the key, its place and what is allowed.
        """
        from prunekit.plain_yaml import read_yaml  # as in `to_yaml`

        return cls.parse(read_yaml(text), allow=allow)


def _check_required(recipe: Recipe, part: str, requirements: Iterable[Requirement]) -> None:
    for requirement in requirements:
        value = getattr(recipe, requirement.of)
        if not requirement.holds(value):
            raise ValueError(requirement.refusal(part, value))


def recipe_refusal(given: object) -> InputError:
    """The error where something else, such as the name of a method, was given as a recipe."""
    return InputError(
        f"the recipe must be a Recipe, not {shown(given)}: "
        "for a named method write prunekit.methods.recipe('magnitude', sparsity=0.9)"
    )


# ---- functions that give a recipe --------------------------------------------------------------------------

Taken = ParamSpec("Taken")


def method(function: Callable[Taken, Recipe]) -> Callable[Taken, Recipe]:
    """A method whose errors name its own setting, and not only that of the part that refused the value."""

    @wraps(function)
    def explained(*args: Taken.args, **kwargs: Taken.kwargs) -> Recipe:
        try:
            return function(*args, **kwargs)
        except (InputError, TypeError, ArithmeticError) as error:
            settings = inspect.signature(function)
            try:
                given = settings.bind(*args, **kwargs).arguments
            except TypeError:  # a call that Python itself refuses
                raise TypeError(f"{error}; its settings are {', '.join(settings.parameters)}") from None
            blamed = "".join(f"{name} = {shown(given[name])}: " for name in _blamed(function, given))
            raise InputError(f"method {function.__name__}: {blamed}{error}") from None

    return explained


def _blamed(function: Callable[..., Recipe], given: Mapping[str, Any]) -> list[str]:
    """The setting without which there is no error, as far as it is one alone."""
    for name in given:
        try:
            function(**{key: value for key, value in given.items() if key != name})
        except (InputError, TypeError, ArithmeticError):
            continue
        return [name]
    return []
