"""A pruned network saved and loaded: what is written of it, and the network that is made of files."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from prunekit.errors import DataError, InputError, ModelError, escaped
from prunekit.files import path_of
from prunekit.masks import Masks
from prunekit.models import ModelSettings, without_data
from prunekit.parts.granularity import Granularity
from prunekit.saving.contents import Network, contents_of
from prunekit.saving.description import (
    BITS,
    BUFFER,
    BUILT_MIN,
    BUILT_RATIO,
    CONSTANT,
    VALUES,
    Architecture,
    consistent,
    mask_of,
    one_line,
    with_zeros,
)
from prunekit.saving.fitting import check_state, fitted, tie, with_replaced
from prunekit.saving.folder import SavedFolder, check_free, write_folder
from prunekit.saving.graph_calls import MAX_BYTES
from prunekit.saving.graph_files import graph_from_files
from prunekit.saving.saved_files import SavedFiles
from prunekit.settings import whole
from prunekit.targets import unwrap

_GIVE_IT = "build it and give it, too, as load_pretrained(folder, model) or unpack(file, model)"


def save_pretrained(
    pruned: Network,
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
    folder = path_of("folder", folder)
    check_free(folder)
    write_folder(contents_of(pruned, masks, architecture), folder)
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
        InputError: if the save names no architecture, or one of the user's, and no model is given; if one is
            given for an exported graph; or if `max_bytes` is no whole number of at least 0.
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
    """A network in files: what is said of it, read once, and what can be made of them.

    Args:
        files: a folder, a file that `pack` wrote, or what stands for them.

    Raises:
        DataError: if the description is missing, damaged, or of another format.
    """

    def __init__(self, files: str | Path | SavedFiles) -> None:
        self.files = files if isinstance(files, SavedFiles) else _files_at(path_of("folder", files))
        self.path, self.description = self.files.path, self.files.description

    @property
    def holds_graph(self) -> bool:
        """Whether it is an exported graph, which needs no model."""
        return self.files.holds_graph

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
            raise InputError(f"the network in {self.path} is of {escaped(saved.name[:200])}: {_GIVE_IT}")
        with consistent(self.files.misfit("description")):
            return Architecture(ModelSettings.parse(saved.model), tuple(saved.input_shape), saved.outputs)

    def masks(self) -> Masks:
        """See `load_masks`."""
        tensors = self.files.tensors()
        with consistent(self.files.misfit("weights")):
            return Masks(
                {
                    name: mask_of(tensors[name + BITS], tuple(entry.shape))
                    for name, entry in self.description.pruned.items()
                }
            )

    def load(
        self, model: nn.Module | None = None, *, allow_nan: bool = False, max_bytes: int = MAX_BYTES
    ) -> nn.Module:
        """See `load_pretrained`."""
        max_bytes = whole("max_bytes", max_bytes, 0, sys.maxsize)
        tensors = self.files.tensors(mapped=model is not None)
        state = self._state(tensors)
        if not allow_nan:
            _check_numbers(self.files.named("weights"), tensors)
        if self.holds_graph:
            if model is not None:
                raise InputError(
                    f"{self.path} holds an exported graph, which takes the place of the model: give none"
                )
            buffers = {name.removesuffix(BUFFER): tensors[name] for name in tensors if name.endswith(BUFFER)}
            state = {**state, **buffers}
            return graph_from_files(self.files, state, tensors, max_bytes)
        if model is None:
            return self._built(state, tensors)
        self._fill(unwrap(model), state, tensors)
        return model

    def _state(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All parameters and buffers that are saved, with their zeros."""
        beside = (BITS, VALUES, BUFFER, CONSTANT)
        state = {name: value for name, value in tensors.items() if not name.endswith(beside)}
        with consistent(self.files.misfit("weights")):
            for name, entry in self.description.pruned.items():
                state[name] = with_zeros(tensors[name + BITS], tensors[name + VALUES], tuple(entry.shape))
            for name, source in self.description.tied.items():
                state[name] = state[source]
        return state

    def _fill(self, model: nn.Module, state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
        """Copy what was saved into a network of the user's, made as small as it was."""
        with with_replaced(model, state, self.description.dropped):
            check_state(model, state, self.files)
            with fitted(model, state, tensors, self.files) as buffers:
                try:
                    model.load_state_dict(state)
                    for name, value in buffers.items():
                        model.get_buffer(name).copy_(value)
                except RuntimeError as error:
                    raise ModelError(
                        f"the weights in {self.path} cannot be copied into the model: {one_line(error)}"
                    ) from None
                tie(model, self.description.tied)

    def _built(self, state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> nn.Module:
        """The network that the save describes, which takes no more memory than its files.

        It is built and made as small as it was saved without data, and only then gets the tensors of the
        file: a file could name sizes of terabytes.
        """
        architecture = self.architecture()
        if architecture is None:
            raise InputError(f"{self.path} does not say how its network is built: {_GIVE_IT}")
        described_in = self.files.named("description")
        try:
            with without_data():
                model = architecture.build()
        except (InputError, ModelError) as error:
            raise DataError(f"{described_in} describes no network: {error}") from None
        stored = sum(value.numel() for value in state.values())
        described = sum(value.numel() for value in model.state_dict().values())
        if described > BUILT_MIN + BUILT_RATIO * stored:
            raise DataError(
                f"{described_in} describes a network of {described:,} numbers, but {stored:,} are saved"
            )
        with with_replaced(model, state, self.description.dropped):
            check_state(model, state, self.files)
            with fitted(model, state, tensors, self.files), consistent(self.files.misfit("weights")):
                model.load_state_dict(state, assign=True)
        tie(model, self.description.tied)
        return model


def _files_at(path: Path) -> SavedFiles:
    """The packed file, or the saved folder, that lies there.

    Raises:
        DataError: if it is neither, or is damaged.
    """
    if path.is_file():
        # A packed file is read by the room above, which imports this one.
        from prunekit.packing import PackedFile, is_packed

        if is_packed(path):
            return PackedFile(path)
    return SavedFolder(path)


def _check_numbers(place: str, tensors: Mapping[str, Tensor]) -> None:
    for name, value in tensors.items():
        # a sum is NaN where a value is, and is one pass through the memory; infinities are looked at again
        if (
            (value.is_floating_point() or value.is_complex())
            and bool(value.sum().isnan())
            and bool(value.isnan().any())
        ):
            raise DataError(
                f"{name.partition('#')[0]} in {place} has values that are NaN: "
                "give allow_nan=True to load it all the same"
            )
