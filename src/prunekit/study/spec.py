"""Studies: recipes x seeds on a dataset and a model, expanded to cells; suites of one study in variants."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, model_validator

from prunekit import methods
from prunekit.controls import random_control, scratch_control
from prunekit.data import DataSettings
from prunekit.errors import InputError, instead, naming, shown
from prunekit.files import check_folder_name, check_label
from prunekit.models import ModelSettings
from prunekit.parts.allocation import NoPruning
from prunekit.parts.base import LEVELS, modules_of
from prunekit.parts.granularity import FilterShape
from prunekit.parts.retrain import TrainingSettings
from prunekit.permission import Named, allowing, current
from prunekit.recipe import Recipe
from prunekit.settings import Settings, digest, with_value
from prunekit.study_files import FROM_SCRATCH, Budget, Controls
from prunekit.training import Training

MAX_RECIPES = 10_000
"""How many recipes a study may have."""

MAX_SEEDS = 1_000
"""How many replicates a study may have."""


def _named(value: Any) -> Any:
    return DataSettings.parse({"name": value} if isinstance(value, str) else value)


class Method(Settings):
    """One line of a comparison: a recipe, or a sweep of recipes that differ in some settings.

    Attributes:
        method: the name of a known method, and `settings` its settings; exclusive with `recipe`.
        recipe: the composition of parts, written out.
        random_of: the label of another method, of which this is the control: for each recipe of its, random
            elements, as many of each layer after each round as it has taken with the same seed.
        from_scratch: whether two controls stand beside it: what is left of each of its networks, trained from
            new random values as the dense network is, for as many steps as the retraining has taken, and for
            as many as that and all training before it. For recipes that remove units, blocks or filter
            shapes.
        sweep: dotted keys into `settings` or `recipe`, each with a list of values, of which every combination
            is a cell of its own; or a list of mappings from dotted keys to values, each of which is one.
        summary: one sentence for the report; by default the method's own.
    """

    method: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    recipe: dict[str, Any] | None = None
    random_of: str | None = None
    from_scratch: bool = False
    start: str | None = None
    sweep: dict[str, list[Any]] | list[dict[str, Any]] = Field(default_factory=dict)
    summary: str = ""
    _swept: tuple[tuple[str, Recipe], ...] = PrivateAttr(default=())

    @model_validator(mode="before")
    @classmethod
    def _settings_in_their_place(cls, given: Any) -> Any:
        name = given.get("method") if isinstance(given, Mapping) else None
        if isinstance(name, str) and name in methods.METHODS:
            settings = methods.describe(name).settings
            for key in given:
                if key not in cls.model_fields and key in settings:
                    raise ValueError(
                        f"{key!r} is a setting of {name}: write settings: {{{key}: {shown(given[key])}}}"
                    )
        return given

    @model_validator(mode="after")
    def _one_of_two(self) -> Method:
        given = [each for each in (self.method, self.recipe, self.random_of) if each is not None]
        if len(given) != 1:
            raise ValueError(
                "give either 'method' (a name, with 'settings'), or 'recipe' (written out), or 'random_of' "
                "(the label of another method)"
            )
        if self.random_of is not None:
            if self.settings or self.sweep:
                raise ValueError("'random_of' takes the settings and the sweep of the other method")
            if self.from_scratch:
                raise ValueError("'from_scratch' belongs to the other method: a control has none of its own")
            if self.start is not None:
                raise ValueError("'start' belongs to the other method: a control begins where that begins")
            return self
        if self.recipe is not None and self.settings:
            raise ValueError("'settings' belong to 'method'; write them into 'recipe'")
        # made once, while the user's own code that they name is allowed
        self._swept = tuple((_brief(point), self._recipe(point)) for point in self._points())
        for _, recipe in self._swept if self.start is not None else ():
            if recipe.granularity.counts != "weights":
                raise ValueError(
                    f"start: the granularity {recipe.granularity.name!r} removes "
                    f"{LEVELS[recipe.granularity.level]}: a recipe that begins at the network of another "
                    "method removes single weights"
                )
            if recipe.retrain.checkpoint is not None:
                raise ValueError(
                    f"start: the retrain {recipe.retrain.name!r} goes back to values of the whole network, "
                    "which has other units"
                )
        for _, recipe in self._swept if self.from_scratch else ():
            if recipe.granularity.counts != "units" and not isinstance(recipe.granularity, FilterShape):
                raise ValueError(
                    f"from_scratch: the granularity {recipe.granularity.name!r} removes "
                    f"{LEVELS[recipe.granularity.level]}, and the controls have fewer units, blocks or "
                    "filter shapes: use 'unit', 'block' or 'filter_shape'"
                )
            if recipe.retrain.plan is None:
                raise ValueError(
                    "from_scratch: the recipe has no retraining, whose length the control would have"
                )
        return self

    def swept(self) -> list[tuple[str, Recipe]]:
        """The recipes with the swept settings of each, such as `sparsity=0.9`; empty without a sweep."""
        return list(self._swept)

    def _points(self) -> list[dict[str, Any]]:
        check_recipes(_points_of(self.sweep))
        if isinstance(self.sweep, list):
            points = self.sweep
        else:
            points = [
                dict(zip(self.sweep, values, strict=True))
                for values in itertools.product(*self.sweep.values())
            ]
        if not points:
            raise InputError("sweep: there is nothing in it, or one of its lists of values is empty")
        return points

    def _recipe(self, point: Mapping[str, Any]) -> Recipe:
        values: Any = self.recipe if self.recipe is not None else self.settings
        for key, value in point.items():
            values = with_value(values, key, value)
        return Recipe.parse(values) if self.method is None else methods.recipe(self.method, **values)

    def note(self) -> dict[str, str]:
        """What a report says of it: `summary` and `paper`."""
        if self.random_of is not None:
            default = f"Control: random elements, as many of each layer as '{self.random_of}' takes."
            return {"summary": self.summary or default, "paper": ""}
        if self.method is not None:
            info = methods.describe(self.method)
            return {"summary": self.summary or info.summary, "paper": info.paper}
        _, recipe = self._swept[0]
        parts = (recipe.score, recipe.granularity, recipe.allocation, recipe.schedule, recipe.retrain)
        prunes = not isinstance(recipe.allocation, NoPruning)
        papers = [paper for part in parts if prunes for paper in part.paper.split("; ") if paper]
        return {"summary": self.summary, "paper": "; ".join(dict.fromkeys(papers))}


class UnitFigures(Settings):
    """What the report shows of the units of the trained network of seed 0: gain sweeps and correlations.

    Attributes:
        examples: of the training part, from its beginning; all if there are fewer.
        every: a sweep for one of so many units, in the order in which the oracle removes them.
    """

    examples: int = Field(default=5000, ge=1)
    every: int = Field(default=10, ge=1)


class TeacherNetwork(Settings):
    """The network that methods whose teacher is a given one learn from, trained once for each seed.

    Attributes:
        model, training: the network, and how it is trained, on the training data of the study.
    """

    model: Annotated[ModelSettings, BeforeValidator(ModelSettings.parse)]
    training: TrainingSettings = Field(default_factory=Training)


class Study(Settings):
    """A comparison: methods x seeds on one dataset and one model.

    Attributes:
        name: names the folder of its results.
        title, question, expected: words for the report.
        dataset, model, training: the data, the network and how the dense network is trained.
        methods: what is compared, by label.
        controls: which of them are the controls.
        teacher: the network that recipes with a `teacher` that is `of: given` learn from; None for none.
        seeds: the number of replicates; replicate k has another initialisation and data order than the rest.
        splits: `one` for all replicates, or `per_seed`: replicate k has the split of the dataset's seed + k.
            A set with an official test part keeps that part, and draws another validation part. Results on
            a dataset of one's own are told apart by the examples of the first replicate.
        unit_figures: what the report shows of the units, for networks whose units can be removed; None for
            nothing.
    """

    name: Annotated[str, AfterValidator(check_folder_name)]
    title: str = ""
    question: str = ""
    expected: str = ""
    dataset: Annotated[DataSettings, BeforeValidator(_named)]
    model: Annotated[ModelSettings, BeforeValidator(ModelSettings.parse)]
    training: TrainingSettings = Field(default_factory=Training)
    methods: dict[str, Annotated[Method, BeforeValidator(Method.parse)]] = Field(min_length=1)
    controls: Annotated[Controls, BeforeValidator(Controls.parse)] = Controls()
    teacher: Annotated[TeacherNetwork, BeforeValidator(TeacherNetwork.parse)] | None = None
    seeds: int = Field(default=3, ge=1, le=MAX_SEEDS)
    splits: Literal["one", "per_seed"] = "one"
    unit_figures: UnitFigures | None = None
    _allowed: tuple[str, ...] = PrivateAttr(default=())

    @model_validator(mode="before")
    @classmethod
    def _few_enough(cls, values: Any) -> Any:
        listed = values.get("methods") if isinstance(values, Mapping) else None
        if isinstance(listed, Mapping):  # what else there may be is refused where methods are read
            check_recipes(sum(_points_of(_sweep_of(method)) for method in listed.values()))
        return values

    @model_validator(mode="after")
    def _labels_fit(self) -> Study:
        if "dense" in self.methods:
            raise ValueError("methods: the label 'dense' is taken by the unpruned network")
        for label in self.methods:
            with naming("methods"):
                check_label(label)
        for label, method in self.methods.items():
            other = method.random_of
            if other is not None and (other not in self.methods or self.methods[other].random_of is not None):
                known = [each for each in self.methods if self.methods[each].random_of is None]
                raise ValueError(
                    f"methods: {label}: random_of: there is no method {other!r} to be compared with"
                    f"{instead(other, known, 'labels')}"
                )
            if method.start is not None:
                self._start_fits(label, method.start)
        recipes = (self.methods[method.random_of or label] for label, method in self.methods.items())
        check_recipes(sum(len(method.swept()) for method in recipes))
        for control, label in self.controls:
            if label is not None and label not in self.methods:
                others = instead(label, self.methods, "labels")
                raise ValueError(f"controls: {control}: there is no method {label!r}{others}")
        for label in self.scratch_labels:
            if label in self.methods:
                raise ValueError(f"methods: the label {label!r} is taken by a control 'from_scratch'")
            with naming("methods"):
                check_label(label)
        self._teacher_fits()
        if self.splits == "per_seed" and self.dataset.is_own and not self.dataset.asks_for("seed"):
            raise ValueError(
                f"splits: per_seed: {self.dataset.name} does not ask for 'seed': "
                "give it an argument of this name"
            )
        self._allowed = current().used
        return self

    def _start_fits(self, label: str, start: str) -> None:
        known = [
            each
            for each, method in self.methods.items()
            if method.random_of is None and method.start is None and len(method.swept()) == 1
        ]
        if start not in known:
            raise ValueError(
                f"methods: {label}: start: there is no method {start!r} of one recipe that begins at the "
                f"trained network{instead(start, known, 'labels')}"
            )

    def _teacher_fits(self) -> None:
        learning = [cell.name for cell in self.cells if cell.recipe.learns_from_given]
        if learning and self.teacher is None:
            raise ValueError(
                f"methods: {learning[0]}: the teacher is 'of: given', but the study gives none: set "
                "'teacher: {model: ..., training: ...}' of the study, or the recipe's teacher 'of: before'"
            )
        if self.teacher is not None and not learning:
            raise ValueError(
                "teacher: no method learns from it: set 'teacher: {name: logits, of: given}' in a recipe"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its settings, so that another process imports what they name, and nothing else."""
        return partial(Study.parse, allow=self.allow), (self.to_dict(),)

    @property
    def allow(self) -> tuple[str, ...]:
        """The modules of the user's own whose code it names, so that another process may import them, too."""
        own = modules_of([self.training, *(cell.recipe for cell in self.cells)])
        named = {Named.parse(name).module for name in (self.model.name, self.dataset.name) if ":" in name}
        of_teacher = () if self.teachers is None else self.teachers.allow
        return tuple(sorted({*self._allowed, *own, *named, *of_teacher}))

    def dataset_of(self, seed: int) -> DataSettings:
        """The data of a replicate."""
        if self.splits == "one":
            return self.dataset
        return self.dataset.model_copy(update={"seed": self.dataset.seed + seed, "content": None})

    def pinned(self, content: str) -> Study:
        """The same study of these examples alone, by their digest; results of others are not mixed with its.

        Of a dataset that comes with prunekit the settings say all; what a function of the user's own gives
        may change without them.
        """
        settings = self.to_dict()
        return Study.parse(
            settings | {"dataset": settings["dataset"] | {"content": content}}, allow=self.allow
        )

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Every recipe of every method; an equal recipe under the same label counts once."""
        own = [cell for label in self.methods for cell in self._cells_of(label)]
        return tuple(own + [cell for label in self.scratch_labels for cell in self._from_scratch(label)])

    @property
    def scratch_labels(self) -> dict[str, tuple[str, Budget]]:
        """The labels of the controls that are trained from scratch, with the method's and the budget."""
        return {
            words.format(label): (label, budget)
            for label, method in self.methods.items()
            if method.from_scratch
            for budget, words in FROM_SCRATCH.items()
        }

    def notes(self) -> dict[str, dict[str, str]]:
        """What a report says of each method, and of the controls that come with it."""
        said = {
            "retraining": "for as many steps as its retraining.",
            "whole": "for as many steps as its retraining and all training before.",
        }
        controls = {
            control: {
                "summary": f"Control: the final shape of '{label}' from new values, trained {said[budget]}",
                "paper": "Liu et al. 2019, arXiv 1810.05270",
            }
            for control, (label, budget) in self.scratch_labels.items()
        }
        return {label: method.note() for label, method in self.methods.items()} | controls

    def _from_scratch(self, control: str) -> list[Cell]:
        label, budget = self.scratch_labels[control]
        return [
            Cell(
                control,
                scratch_control(each.recipe, self.training),
                self._cell_key(each.recipe, f"from scratch, {budget}"),
                each.swept,
                each,
                budget,
            )
            for each in self._cells_of(label)
        ]

    def _cells_of(self, label: str) -> Iterable[Cell]:
        method = self.methods[label]
        if method.random_of is not None:
            return [
                Cell(
                    label,
                    random_control(each.recipe),
                    self._cell_key(each.recipe, "random", each.start),
                    each.swept,
                    each,
                    start=each.start,
                )
                for each in self._cells_of(method.random_of)
            ]
        start = None if method.start is None else next(iter(self._cells_of(method.start)))
        found = {
            recipe.digest(): Cell(label, recipe, self._cell_key(recipe, start=start), swept, start=start)
            for swept, recipe in method.swept()
        }
        return found.values()

    @cached_property
    def teachers(self) -> Study | None:
        """A study whose trained networks are the teachers of this one; None without teachers."""
        if self.teacher is None:
            return None
        nothing = {"recipe": {"allocation": "none", "schedule": "allocation_decides"}}
        settings = {"name": f"{self.name}-teacher", "dataset": self.dataset, "methods": {"teacher": nothing}}
        return Study.parse(settings | dict(self.teacher) | {"seeds": self.seeds, "splits": self.splits})

    def teachers_of(self, recipe: Recipe) -> Study | None:
        """The study whose trained networks a recipe learns from; None if it learns from none of them."""
        return self.teachers if recipe.learns_from_given else None

    @cached_property
    def checkpoints(self) -> tuple[int, ...]:
        """The steps of the dense training whose values some recipe goes back to."""
        wanted = {cell.recipe.retrain.checkpoint for cell in self.cells}
        return tuple(sorted(step for step in wanted if step is not None))

    @cached_property
    def network_key(self) -> str:
        """The content hash of everything that the dense networks depend on, the seed apart."""
        return digest({**self._network(), "checkpoints": list(self.checkpoints)})

    @cached_property
    def units_key(self) -> str:
        """The content hash of everything that the figures of units depend on."""
        asked = None if self.unit_figures is None else self.unit_figures.to_dict()
        return digest({**self._network(), "unit_figures": asked})

    def _cell_key(self, recipe: Recipe, control: str | None = None, start: Cell | None = None) -> str:
        of_start = {} if start is None else {"start": start.key}
        of_control = {} if control is None else {"control": control}
        teachers = self.teachers_of(recipe)
        of_teacher = {} if teachers is None else {"teacher": teachers.network_key}
        return digest(
            {**self._network(), "recipe": recipe.identity(), **of_control, **of_teacher, **of_start}
        )

    def _network(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset.identity(),
            "model": self.model.identity(),
            "training": self.training.identity(),
            **({} if self.splits == "one" else {"splits": self.splits}),
        }


@dataclass(frozen=True)
class Cell:
    """One recipe of a study, still to be run for each seed.

    Attributes:
        label: the method's label.
        recipe: what is done.
        key: the content hash of the recipe and all that comes before it; names the cell's folder.
        swept: the settings that set it apart from the others of its method, such as `sparsity=0.9`.
        random_of: the cell whose numbers per layer it takes, if it is a control; they are not in its recipe
            before that cell has been run.
        from_scratch: if it trains the final shape from new values, the steps that it gets.
        start: the cell at whose network it begins, without the dead units; None for the trained network.
    """

    label: str
    recipe: Recipe
    key: str
    swept: str = ""
    random_of: Cell | None = None
    from_scratch: Budget | None = None
    start: Cell | None = None

    @property
    def name(self) -> str:
        """The label and the swept settings, for a person."""
        return f"{self.label} ({self.swept})" if self.swept else self.label


def check_recipes(count: int) -> None:
    """Refuse more recipes than a study may have, before one of them is made."""
    if count > MAX_RECIPES:
        raise InputError(f"there are more recipes than the {MAX_RECIPES:,} that a study may have")


def _sweep_of(method: Any) -> Any:
    return method.get("sweep") if isinstance(method, Mapping) else getattr(method, "sweep", None)


def _points_of(sweep: Any) -> int:
    """How many recipes a sweep makes; 1 for what is none, which is refused where it is read."""
    if isinstance(sweep, Mapping):
        return math.prod(len(values) for values in sweep.values() if isinstance(values, list | tuple))
    return len(sweep) if isinstance(sweep, list | tuple) and sweep else 1


def _brief(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in point.items())


@dataclass(frozen=True)
class StudySuite:
    """The same methods on several datasets or models.

    In YAML it is a study with the key `variants`: labels, each with the keys of a study that are its own,
    such as `dataset`, `model` and `training`; keys may be dotted. Everything else is common to all.

    Attributes:
        name, title, question, expected: as those of a study.
        studies: an ordinary study for each variant, by label, named NAME-LABEL.
    """

    name: str
    title: str
    question: str
    expected: str
    studies: Mapping[str, Study]

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, allow: Iterable[str] = ()) -> StudySuite:
        """The suite that a mapping with the key `variants` describes.

        Args:
            values: the mapping.
            allow: modules of the user's own whose code its studies may name.

        Raises:
            InputError: if there are no variants, a variant is no mapping or has a label that cannot name a
                folder, a key is given both for all and for one, or a study is not valid, naming the variant.
        """
        common = {key: value for key, value in values.items() if key != "variants"}
        variants = values["variants"]
        if not isinstance(variants, Mapping) or not variants:
            raise InputError(
                f"variants: expected labels, each with settings of a study, got {shown(variants)}"
            )
        with allowing(allow):
            studies = _studies(common, variants)
        first = next(iter(studies.values()))
        name = str(common.get("name"))
        return cls(name, str(common.get("title", name)), first.question, first.expected, studies)

    @property
    def seeds(self) -> int:
        """The most replicates that a study of it has."""
        return max(study.seeds for study in self.studies.values())

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells of all its studies."""
        return tuple(cell for study in self.studies.values() for cell in study.cells)


def _studies(common: Mapping[str, Any], variants: Mapping[Any, Any]) -> dict[str, Study]:
    studies: dict[str, Study] = {}
    recipes = 0
    for label, own in variants.items():
        studies[str(label)] = study = _study(common, str(label), own)
        recipes += len(study.cells)
        check_recipes(recipes)
    return studies


def _study(common: Mapping[str, Any], label: str, own: Any) -> Study:
    with naming("variants"):
        check_folder_name(label)
    if not isinstance(own, Mapping):
        raise InputError(f"variants: {label}: expected a mapping of settings, got {shown(own)}")
    twice = [key for key in own if key in common]
    if twice:
        raise InputError(f"variants: {label}: {twice[0]!r} is given for all variants and for this one")
    values = {
        **common,
        "name": f"{common.get('name')}-{label}",
        "title": f"{common.get('title', common.get('name'))}: {label}",
    }
    with naming(f"variants: {label}"):
        for key, value in own.items():
            values = with_value(values, key, value)
        return Study.parse(values)
