"""A pruned network as a folder: `model.safetensors` and `prunekit.json`, of a graph `graph.json`, too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunekit import __version__
from prunekit.digests import write_json_with_digest, write_tensors
from prunekit.errors import DataError, InputError, ModelError, escaped, shown
from prunekit.files import replacing_folder
from prunekit.graph import (
    GraphModel,
    ShrinkResult,
    replace_convolutions,
    replace_with_absent,
    restore_sizes,
    size_attributes,
)
from prunekit.graph.rows import LAYERS, TRANSPOSED
from prunekit.graph.surgery import put_modules
from prunekit.masks import Masks
from prunekit.models import MergedConv2d, ModelSettings
from prunekit.parts.granularity import Granularity
from prunekit.pruning import Pruned
from prunekit.runtime import SparseConv2d, SparseLinear
from prunekit.saving.folder import (
    BITS,
    BUFFER,
    CONSTANT,
    DESCRIPTION,
    FORMAT,
    GRAPH,
    VALUES,
    WEIGHTS,
    Architecture,
    Description,
    check_free,
    consistent,
    describe,
    one_line,
    pack,
    read_weights,
    unpack,
    unpack_mask,
    wrong_dtype,
    wrong_name,
)
from prunekit.saving.graph_calls import MAX_BYTES
from prunekit.saving.graph_files import graph_from_files, graph_to_files
from prunekit.targets import unwrap

BUILT_MIN, BUILT_RATIO = 25_000_000, 1000
"""How many numbers a network may be built with before it is made as small as it was saved: the first, and the
second for each number in its file."""


def save_pretrained(
    pruned: Pruned | ShrinkResult | nn.Module,
    folder: str | Path,
    *,
    masks: Masks | None = None,
    architecture: Architecture | None = None,
) -> Path:
    """Write a network to a folder; removed weights cost one bit each. An earlier save there is replaced.

    Args:
        pruned: what `prune()`, `prune_groups()` or `shrink()` returned, or a model.
        folder: where to; must be new, empty, or hold an earlier save.
        masks: which weights are removed, if a plain model is given.
        architecture: for models of `prunekit.models`, so that loading needs no model.

    Raises:
        InputError: if the folder holds something else, or the masks are another model's.
        ModelError: if the model's state holds something other than tensors, or tensors of names or dtypes
            that are not loaded again, or an exported graph holds what a file may not name; or if layers run
            sparse.
        OSError: if it cannot be written; an earlier save is then as it was, and nothing is left behind.
    """
    folder = Path(folder)
    check_free(folder)
    model = unwrap(pruned if isinstance(pruned, nn.Module) else pruned.model)
    _check_dense(model)
    masks = pruned.masks if isinstance(pruned, Pruned) else masks or Masks({})
    masks.parameters(model)
    tensors, tied = _tensors(model.state_dict(), masks)
    graph, constants = graph_to_files(model) if isinstance(model, GraphModel) else (None, {})
    tensors = {**tensors, **_unnamed(model), **constants}
    _check_loadable(tensors, (*tensors, *tied, *(name for name, _ in model.named_modules())))
    description = {
        "format": FORMAT,
        "prunekit": __version__,
        "architecture": architecture.to_dict() if architecture else None,
        "pruned": {
            name: {"shape": list(mask.shape), "kept": int(mask.sum())} for name, mask in masks.items()
        },
        "tied": tied,
        "sizes": size_attributes(model) if graph is None else {},
        "shrunk": pruned.to_dict() if isinstance(pruned, ShrinkResult) else None,
        "recipe": pruned.recipe.to_dict() if isinstance(pruned, Pruned) else None,
        "history": [asdict(record) for record in pruned.history] if isinstance(pruned, Pruned) else [],
    }
    with replacing_folder(folder) as temporary:
        digests = {WEIGHTS: write_tensors(temporary / WEIGHTS, tensors)}
        if graph is not None:
            digests[GRAPH] = write_json_with_digest(temporary / GRAPH, graph)
        write_json_with_digest(temporary / DESCRIPTION, {**description, "files": digests})
    return folder


def load_pretrained(
    folder: str | Path,
    model: nn.Module | None = None,
    *,
    allow_nan: bool = False,
    max_bytes: int = MAX_BYTES,
) -> nn.Module:
    """Load a network that `save_pretrained` wrote; removed weights are zeros.

    Nothing that the files hold is run or imported, and they may come from strangers; see SECURITY.md.

    Args:
        folder: the folder.
        model: a freshly built network of the same class; only needed if the save names no architecture and
            is no exported graph. Parameters that were tied when they were saved are tied in it, too. Layers
            that were shrunk before the save are made as small in it, as new parameters.
        allow_nan: whether weights may be NaN, as those of a network whose training diverged are.
        max_bytes: what the tensors that an exported graph makes may take at any one time, by its own sizes.

    Raises:
        DataError: if a file is missing, damaged, truncated, or not of prunekit; if a weight is NaN; or if an
            exported graph calls what it may not, or takes more than `max_bytes`.
        InputError: if the save names no architecture, or one of the user's, and no model is given; or one is
            given for an exported graph.
        ModelError: if the weights do not fit the model, which is left as it was; or if code of the model's
            own fails while they are copied into it: its layers then have the sizes they had.
    """
    return SavedNetwork(folder).load(model, allow_nan=allow_nan, max_bytes=max_bytes)


def load_masks(folder: str | Path) -> Masks:
    """The masks of a network that `save_pretrained` wrote, to go on pruning or training with.

    Raises:
        DataError: as `load_pretrained`.
    """
    return SavedNetwork(folder).masks()


class SavedNetwork:
    """A folder that `save_pretrained` wrote: its description, read once, and what can be made of its files.

    Raises:
        DataError: if the description is missing, damaged, or of another format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.description = describe(self.folder)

    @property
    def holds_graph(self) -> bool:
        """Whether it is an exported graph, which needs no model."""
        return self.description.files.graph is not None

    def prunes(self, granularity: type[Granularity]) -> bool:
        """Whether its recipe removed what this granularity counts."""
        described = (self.description.recipe or {}).get("granularity")
        return isinstance(described, dict) and described.get("name") == granularity.name

    def architecture(self) -> Architecture | None:
        """How the network is built, if the description says so.

        Raises:
            DataError: if it says so wrongly.
            InputError: if it is built by code of the user's, which a file must not choose.
        """
        saved = self.description.architecture
        if saved is None:
            return None
        if ":" in saved.name:
            raise InputError(
                f"the network in {self.folder} is of {escaped(saved.name[:200])}: "
                "build it and give load_pretrained(folder, model)"
            )
        with consistent(self.folder, DESCRIPTION):
            return Architecture(ModelSettings.parse(saved.model), tuple(saved.input_shape), saved.outputs)

    def masks(self) -> Masks:
        """See `load_masks`."""
        tensors = read_weights(self.folder, self.description)
        with consistent(self.folder):
            return Masks(
                {
                    name: unpack_mask(tensors[name + BITS], tuple(entry.shape))
                    for name, entry in self.description.pruned.items()
                }
            )

    def load(
        self, model: nn.Module | None = None, *, allow_nan: bool = False, max_bytes: int = MAX_BYTES
    ) -> nn.Module:
        """See `load_pretrained`."""
        tensors = read_weights(self.folder, self.description, mapped=model is not None)
        state = self._state(tensors)
        if not allow_nan:
            _check_numbers(self.folder, tensors)
        if self.holds_graph:
            if model is not None:
                raise InputError(
                    f"{self.folder} holds an exported graph, which takes the place of the model: give none"
                )
            buffers = {name.removesuffix(BUFFER): tensors[name] for name in tensors if name.endswith(BUFFER)}
            state = {**state, **buffers}
            return graph_from_files(self.folder, self.description, state, tensors, max_bytes)
        if model is None:
            return self._built(state, tensors)
        self._fill(unwrap(model), state, tensors)
        return model

    def _state(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All parameters and buffers that are saved, with their zeros."""
        beside = (BITS, VALUES, BUFFER, CONSTANT)
        state = {name: value for name, value in tensors.items() if not name.endswith(beside)}
        with consistent(self.folder):
            for name, entry in self.description.pruned.items():
                state[name] = unpack(tensors[name + BITS], tensors[name + VALUES], tuple(entry.shape))
            for name, source in self.description.tied.items():
                state[name] = state[source]
        return state

    def _fill(self, model: nn.Module, state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
        """Copy what was saved into a network of the user's, made as small as it was."""
        with _with_replaced(model, state):
            _check_state(model, state, self.folder)
            with _fitted(model, state, self.description, tensors, self.folder) as buffers:
                try:
                    model.load_state_dict(state)
                    for name, value in buffers.items():
                        model.get_buffer(name).copy_(value)
                except RuntimeError as error:
                    raise ModelError(
                        f"the weights in {self.folder} cannot be copied into the model: {one_line(error)}"
                    ) from None
                _tie(model, self.description.tied)

    def _built(self, state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> nn.Module:
        """The network that the save describes, which takes no more memory than its files.

        It is built and made as small as it was saved without data, and only then gets the tensors of the
        file: a file could name sizes of terabytes.
        """
        architecture = self.architecture()
        if architecture is None:
            raise InputError(
                f"{self.folder} does not say how its network is built: give load_pretrained(folder, model)"
            )
        try:
            with torch.device("meta"):
                model = architecture.build()
        except (InputError, ModelError) as error:
            raise DataError(f"{self.folder / DESCRIPTION} describes no network: {error}") from None
        stored = sum(value.numel() for value in state.values())
        described = sum(value.numel() for value in model.state_dict().values())
        if described > BUILT_MIN + BUILT_RATIO * stored:
            raise DataError(
                f"{self.folder / DESCRIPTION} describes a network of {described:,} numbers, "
                f"but {WEIGHTS} holds {stored:,}"
            )
        with _with_replaced(model, state):
            _check_state(model, state, self.folder)
            with _fitted(model, state, self.description, tensors, self.folder), consistent(self.folder):
                model.load_state_dict(state, assign=True)
        _tie(model, self.description.tied)
        return model


def _tensors(state: Mapping[str, Tensor], masks: Masks) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What goes into the file, and the names that share the tensor of another name."""
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name in sorted(
        state, key=lambda name: name not in masks
    ):  # a tied weight is stored where its mask is
        value = state[name]
        if not isinstance(value, Tensor):
            raise ModelError(
                f"{name} of the model's state is a {type(value).__name__}: only tensors are saved"
            )
        place = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() and place in first:
            tied[name] = first[place]
            continue
        first[place] = name
        if name in masks:
            tensors[name + BITS], tensors[name + VALUES] = pack(value, masks[name])
        else:
            tensors[name] = value.detach().cpu().contiguous().clone()
    return tensors, tied


def _unnamed(model: nn.Module) -> dict[str, Tensor]:
    """Buffers that the state leaves out: of real numbers, which may have lost entries; of a graph all."""
    every = isinstance(model, GraphModel)
    named = set(model.state_dict(keep_vars=True))
    return {
        name + BUFFER: buffer.detach().cpu().contiguous().clone()
        for name, buffer in model.named_buffers(remove_duplicate=not every)
        if name not in named
        and not (every and name.startswith("_constant"))
        and (every or buffer.is_floating_point())
    }


def _check_dense(model: nn.Module) -> None:
    """Refuse, with a `ModelError`, layers that run sparse: which do is for each machine to find out."""
    for name, module in model.named_modules():
        if isinstance(module, SparseLinear | SparseConv2d):
            raise ModelError(
                f"{name or 'the model'} runs sparse on this machine: save the network before "
                "sparsify_for_cpu, and call that again where it is loaded"
            )


def _check_loadable(tensors: Mapping[str, Tensor], names: Iterable[str]) -> None:
    """Refuse, with a `ModelError`, to write what would be refused when it is read."""
    name = wrong_name(names)
    if name is not None:
        raise ModelError(f"the model names {shown(name)}: a name must be of characters that can be printed")
    wrong = wrong_dtype(tensors)
    if wrong is not None:
        raise ModelError(f"the network cannot be saved: {wrong}")


def _check_numbers(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, value in tensors.items():
        # a sum is NaN where a value is, and is one pass through the memory; infinities are looked at again
        if (
            (value.is_floating_point() or value.is_complex())
            and bool(value.sum().isnan())
            and bool(value.isnan().any())
        ):
            raise DataError(
                f"{name.partition('#')[0]} in {folder / WEIGHTS} has values that are NaN: "
                "give allow_nan=True to load it all the same"
            )


# ---- whether what was saved fits a network, and making the network fit -------------------------------------


def _check_state(model: nn.Module, state: Mapping[str, Tensor], folder: Path) -> None:
    """Refuse, with a `ModelError`, a state with other names than the model's, or another kind of numbers."""
    own = model.state_dict()
    missing = sorted(set(own) - set(state))
    extra = sorted(set(state) - set(own))
    if missing or extra:
        raise ModelError(
            f"the network in {folder} is another one: "
            + "; ".join(
                f"{what} {', '.join(map(shown, names[:3]))}"
                for what, names in (("the file lacks", missing), ("the model lacks", extra))
                if names
            )
        )
    _check_kinds(own, state, folder)


def _check_kinds(own: Mapping[str, Tensor], state: Mapping[str, Tensor], folder: Path) -> None:
    """Copying would drop imaginary parts and what is behind the point, without a word."""
    for name, value in state.items():
        if not isinstance(own[name], Tensor):
            raise ModelError(f"{shown(name)} of the model's state is no tensor: only tensors are loaded")
        if not torch.can_cast(value.dtype, own[name].dtype):
            kinds = [str(each.dtype).removeprefix("torch.") for each in (own[name], value)]
            raise ModelError(
                f"{shown(name)} is of {kinds[0]} in the model, of {kinds[1]} in {folder}: it would "
                "lose values"
            )


@contextmanager
def _with_replaced(model: nn.Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    """The model without modules, with convolutions that have some of their columns, and with merged ones.

    Layers without a bias get one where batch norms went into them. The model is whole again if what is done
    inside fails.

    Raises:
        ModelError: if what was saved does not come from this network; it is left as it was.
    """
    modules, own = dict(model.named_modules(remove_duplicate=False)), model.state_dict()
    columns, absent = dict[str, Tensor](), dict[str, Tensor]()
    merged, biases = dict[str, nn.Module](), list[nn.Module]()
    for name, value in state.items():
        place, _, short = name.rpartition(".")
        if short == "columns" and isinstance(modules.get(place), nn.Conv2d):
            columns[place] = value
        if short == "absent" and name not in own:
            absent[place] = value
        layer = modules.get(place)
        if short == "geometry" and name not in own and isinstance(layer, nn.Conv2d):
            weight = state.get(f"{place}.weight", value)
            merged[place] = MergedConv2d(layer, weight.shape, value)
        if short == "bias" and name not in own and isinstance(layer, LAYERS + TRANSPOSED):
            biases.append(layer)
    undo = [replace_with_absent(model, absent)]
    try:
        undo.append(replace_convolutions(model, columns))
        undo.append(put_modules(model, merged))
        undo.append(_with_biases([each for each in biases if absent and each not in merged.values()]))
        yield
    except BaseException:
        for each in reversed(undo):
            each()
        raise


def _with_biases(layers: Iterable[Any]) -> Callable[[], None]:
    """Give layers biases of zeros; what is returned takes them away."""
    given = [layer for layer in layers if layer.bias is None]
    for layer in given:
        outputs = getattr(layer, "out_features", None) or layer.out_channels
        layer.bias = nn.Parameter(layer.weight.new_zeros(outputs), requires_grad=layer.weight.requires_grad)

    def back() -> None:
        for layer in given:
            layer.bias = None

    return back


@contextmanager
def _fitted(
    model: nn.Module,
    state: Mapping[str, Tensor],
    description: Description,
    tensors: Mapping[str, Tensor],
    folder: Path,
) -> Iterator[dict[str, Tensor]]:
    """The model with layers as small as the saved ones, if units were taken out before it was saved.

    Yields the values of buffers that the state leaves out, where sizes changed. The layers get their sizes,
    and the objects that they held, back if what is done inside fails.

    Args:
        model: a freshly built network.
        state: all its parameters and buffers that are saved.
        description: what `prunekit.json` says.
        tensors: everything that the file of the weights holds.
        folder: of the files.

    Raises:
        ModelError: if what was saved does not come from this network; it is left as it was.
    """
    own = model.state_dict()
    name = next((name for name, value in own.items() if value.shape != state[name].shape), None)
    buffers: dict[str, Tensor] = {}
    undo: Callable[[], None] = lambda: None  # noqa: E731
    if name is not None:
        beside = {name: value for name, value in model.named_buffers() if name + BUFFER in tensors}
        buffers = {name: tensors[name + BUFFER] for name in beside}
        _check_kinds(beside, buffers, folder)
        shapes = {name: value.shape for name, value in {**state, **buffers}.items()}
        try:
            with consistent(folder):
                undo = restore_sizes(model, shapes, description.sizes)
        except ModelError as error:
            raise ModelError(
                f"{name} has shape {tuple(own[name].shape)} in the model, {tuple(state[name].shape)} in "
                f"{folder}, and taking units out of the model does not give it: {error}"
            ) from None
    try:
        yield buffers
    except BaseException:
        undo()
        raise


def _tie(model: nn.Module, sources: Mapping[str, str]) -> None:
    """Put parameters in the places of others, given by name, as they were when they were saved."""
    for name, source in sources.items():
        parameters = dict(model.named_parameters(remove_duplicate=False))
        if name in parameters and source in parameters and parameters[name] is not parameters[source]:
            layer, _, short = name.rpartition(".")
            setattr(model.get_submodule(layer), short, parameters[source])
