"""A network of which only one block is in memory: its other parameters have shapes and no values."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunekit.blockwise.allocator import freed_at_once
from prunekit.blockwise.block_call import WIDE, BlockCall, stream_of, with_stream
from prunekit.blockwise.shards import Shards
from prunekit.errors import DataError, InputError, ModelError, escaped
from prunekit.losses import NO_GRADIENT, one_tensor
from prunekit.modes import keeping_modes
from prunekit.targets import check_module


@contextmanager
def without_values() -> Iterator[None]:
    """Networks that are made in this block have parameters on the meta device, but buffers with values.

    A buffer that no file holds, such as the frequencies of a rotary embedding, is computed where it is made.
    """
    register = nn.Module.register_parameter

    def register_empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None:
            module._parameters[name] = _empty(parameter)

    nn.Module.register_parameter = register_empty  # type: ignore[method-assign, assignment]
    try:
        with freed_at_once():  # what each parameter is made with
            yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _empty(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)


def causal_model(folder: Path) -> nn.Module:
    """The language model of a folder of transformers, without values; nothing that the folder names is run.

    Raises:
        InputError: if transformers is not installed, or can make no causal model of the folder's config.
    """
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError:
        raise InputError(
            "language models are read by the package transformers, which is not installed"
        ) from None
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: there is no config.json: give the network as `model`")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        with without_values():
            model: nn.Module = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever the constructors of a network's class raise
        raise InputError(f"{folder / 'config.json'}: {escaped(str(error))[:300]}") from None
    model.tie_weights()  # type: ignore[operator]  # what is tied was made apart
    return model


class _ReachedError(Exception):
    """All blocks have been called: nothing behind them is needed."""


class BlockNetwork:
    """A network that is a list of blocks with something before and behind it, and the files of its values.

    Args:
        model: without values, see `without_values`.
        shards: its values.
        blocks: the name of its list of blocks; by default as `list_of_blocks`.

    Raises:
        InputError: if there is no such list, or no list at all; if the model has values of its own.
        DataError: if the files lack values that the network has, or those are of another shape or kind.
    """

    def __init__(self, model: nn.Module, shards: Shards, blocks: str | None = None) -> None:
        check_module(model)
        _check_empty(model)
        self.model, self.shards = model.eval(), shards
        self.name = list_of_blocks(model) if blocks is None else blocks
        found = dict(model.named_modules()).get(self.name)
        if not isinstance(found, nn.ModuleList | nn.Sequential) or not len(found):
            lists = [name for name, each in model.named_modules() if isinstance(each, nn.ModuleList)]
            raise InputError(f"blocks = {self.name!r}: not a list of modules; there are {lists[:20]}")
        self.blocks: Sequence[nn.Module] = list(found)
        self._form: Any = None
        self._prefix = f"{getattr(model, 'base_model_prefix', '')}."
        tied: dict[int, list[str]] = {}
        for name, value in model.named_parameters(remove_duplicate=False):
            tied.setdefault(id(value), []).append(name)
        same = {name: names for names in tied.values() for name in names}
        self.keys = {name: self._key([name, *same.get(name, [])]) for name in self._stored()}
        self._check_apart()
        self._check_values()

    def block_name(self, block: int) -> str:
        """The name of a block in the network."""
        return f"{self.name}.{block}"

    def keys_of(self, block: int) -> dict[str, str]:
        """The names in the files of a block's values, by their names in the block."""
        prefix = f"{self.block_name(block)}."
        return {n.removeprefix(prefix): key for n, key in self.keys.items() if n.startswith(prefix)}

    def keys_of_rest(self) -> set[str]:
        """The names in the files of all that is in no block."""
        inside = {key for block in range(len(self.blocks)) for key in self.keys_of(block).values()}
        return set(self.shards.file_of) - inside

    def load(self, block: int) -> dict[str, torch.dtype]:
        """Give a block its values; half precision becomes single.

        Returns:
            The types in the files.
        """
        return self._fill(self.blocks[block], self.keys_of(block))

    def copied(self, block: int) -> nn.Module:
        """A copy of a block with its values, which is another's to change; the block itself stays empty."""
        copied = copy.deepcopy(self.blocks[block])
        self._fill(copied, self.keys_of(block))
        return copied

    def empty(self, block: int) -> None:
        """Take the values of a block from memory."""
        _unload(self.blocks[block])

    def calls(self, tokens: Tensor) -> tuple[Tensor, list[BlockCall]]:
        """The activations (1, length, width) that the first block is given for one sequence (1, length), and
        how each block is called; its other arguments are the same for all sequences.

        Raises:
            InputError: if the network does not take so many tokens, or these.
            ModelError: if its blocks are no chain, each called once with what the one before it gives, or are
                given something else that depends on the text.
        """
        calls: list[BlockCall] = []
        stream = next(self._streams(tokens, calls))
        other: list[BlockCall] = []
        next(self._streams(tokens // 2, other))  # a text of smaller numbers, which the network has, too
        for number, (call, again) in enumerate(zip(calls, other, strict=True)):
            if not call.is_like(again):
                raise ModelError(
                    f"{type(self.model).__name__} gives {self.name}.{number} more of the text than the "
                    "activations that the block before it gives: it cannot be pruned block by block"
                )
        return stream, calls

    def streams(self, tokens: Tensor) -> Iterator[Tensor]:
        """The activations (1, length, width) that the first block is given, sequence by sequence.

        Args:
            tokens: (sequences, length) token numbers, all used: without padding.
        """
        return self._streams(tokens, None)

    @torch.no_grad()
    def _streams(self, tokens: Tensor, calls: list[BlockCall] | None) -> Iterator[Tensor]:
        """Likewise; how each block is called for one sequence goes into `calls`; without it none is."""
        found: list[Tensor] = []
        last: list[Tensor] = []

        def watch(number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
            def called(*args: Any, **kwargs: Any) -> Any:
                name = None if args else next(iter(kwargs))
                stream = args[0] if name is None else kwargs[name]
                if calls is None:
                    found.append(stream)
                    raise _ReachedError
                self._check_chain(number, len(calls), stream, last)
                rest = {key: value for key, value in kwargs.items() if key != name}
                calls.append(BlockCall(name, args[1:], rest))
                if number == 0:  # the first block says in what form a block gives its stream
                    found.append(stream)
                    self._form = forward(*args, **kwargs)
                    stream_of(self._form)
                last[:] = [stream + 1]  # unlike what any other block is given
                # behind the last block little is looked at, and values may be missing
                given = stream[:, :1] if number == len(self.blocks) - 1 else last[0]
                return with_stream(self._form, given)

            return called

        def stop(module: nn.Module, args: Any) -> None:
            if calls is not None and len(calls) == len(self.blocks):
                raise _ReachedError

        with ExitStack() as undo:
            if calls is not None:
                self.load(0)
                undo.callback(self.empty, 0)
            undo.enter_context(keeping_modes(self.model))
            for module in self._outside():
                if any(value.dim() > 1 for value in module.parameters(recurse=False)):
                    undo.callback(module.register_forward_pre_hook(stop).remove)
            self._load_when_called(undo)
            for number, block in enumerate(self.blocks):
                undo.callback(vars(block).pop, "forward", None)
                block.forward = watch(number, block.forward)
            for row in tokens:
                try:
                    self.model(row[None], **self._plain())
                except _ReachedError:
                    pass
                except Exception as error:
                    if calls is not None and len(calls) == len(self.blocks):
                        if isinstance(error, ModelError):
                            raise
                    elif isinstance(error, IndexError):
                        why = escaped(str(error))[:200]
                        raise InputError(
                            f"tokens: {type(self.model).__name__} has not as many token numbers or places: "
                            f"{int(row.max())} is the largest, {len(row)} the length ({why})"
                        ) from None
                    else:
                        raise
                if calls is not None and len(calls) < len(self.blocks):
                    raise ModelError(
                        f"{type(self.model).__name__} does not call the last of its blocks {self.name!r}"
                    )
                yield found.pop()

    def _check_chain(self, number: int, expected: int, stream: Tensor, last: Sequence[Tensor]) -> None:
        """ModelError if a block is called out of turn, or with other activations than it will be given."""
        if number != expected:
            raise ModelError(
                f"{type(self.model).__name__} calls {self.name}.{number} where each of its blocks should be "
                f"called once, one after the other ({expected} have been)"
            )
        if last and stream is not last[0] and not torch.equal(stream, last[0]):
            raise ModelError(
                f"{type(self.model).__name__} gives {self.name}.{number} something else than what "
                f"{self.name}.{number - 1} gives: it cannot be pruned block by block"
            )

    @torch.no_grad()
    def outputs(self, stream: Tensor, tokens: Tensor) -> Any:
        """What the network gives for a sequence (1, length), from the activations behind its last block."""
        return self._outputs(stream, tokens)

    def loss_gradient(self, stream: Tensor, tokens: Tensor) -> Tensor:
        """The gradient (1, length, width) of the loss in the activations behind the last block.

        The loss is the mean cross-entropy of each token of a sequence (length,) but the first, after those
        before it.

        Raises:
            InputError: if the network gives no logits of tokens, or none that can be differentiated.
            DataError: if the loss is not finite.
        """
        if len(tokens) < 2:
            raise InputError("tokens: a sequence of one token has no next one, whose loss has gradients")
        stream = stream.detach().requires_grad_()
        with torch.enable_grad():
            logits = one_tensor(self._outputs(stream, tokens[None]), "the loss of the next tokens")
            if logits.shape[:-1] != (1, len(tokens)) or int(tokens.max()) >= logits.shape[-1]:
                raise InputError(
                    f"{type(self.model).__name__} gives {list(logits.shape)} for a sequence of {len(tokens)} "
                    "tokens: scores by gradients need the logits (1, length, tokens) of the next ones"
                )
            if not logits.requires_grad:
                raise InputError(f"{type(self.model).__name__}: {NO_GRADIENT}")
            loss = F.cross_entropy(logits[0, :-1], tokens[1:].long())
        if not bool(loss.isfinite()):
            raise DataError(f"the loss of the next tokens is {loss.item()}: scores would be NaN")
        return torch.autograd.grad(loss, stream)[0]

    def _outputs(self, stream: Tensor, tokens: Tensor) -> Any:
        with ExitStack() as undo:
            self._load_when_called(undo)
            for block in self.blocks:
                undo.callback(vars(block).pop, "forward", None)
                block.forward = lambda *args, **kwargs: with_stream(self._form, stream)
            return self.model(tokens, **self._plain())

    def _plain(self) -> dict[str, Any]:
        """Arguments that keep a network of transformers from building a cache."""
        taken = inspect.signature(self.model.forward).parameters
        return {"use_cache": False} if "use_cache" in taken else {}

    def _outside(self) -> list[nn.Module]:
        """The modules that are in no block."""
        inside = {id(each) for block in self.blocks for each in block.modules()}
        return [each for each in self.model.modules() if id(each) not in inside]

    def _load_when_called(self, undo: ExitStack) -> None:
        """Give modules outside of the blocks their own values when they are first called, until the end."""
        outside = {id(each) for each in self._outside()}
        for name, module in self.model.named_modules():
            own = [*module._parameters, *module._buffers]
            keys = {
                n: self.keys[whole] for n in own if (whole := f"{name}.{n}".removeprefix(".")) in self.keys
            }
            if id(module) not in outside or not keys:
                continue

            def fill(module: nn.Module, args: Any, keys: dict[str, str] = keys) -> None:
                first = keys.copy()
                keys.clear()
                self._fill(module, first)

            empty = {n: module._parameters[n] for n in keys if n in module._parameters}
            undo.callback(module._parameters.update, empty)  # the same again: they may be tied
            undo.callback(module.register_forward_pre_hook(fill).remove)

    def _fill(self, module: nn.Module, keys: Mapping[str, str]) -> dict[str, torch.dtype]:
        values = self.shards.read(keys.values())
        types = {}
        for name, key in keys.items():
            value = values[key]
            types[name] = value.dtype
            *path, last = name.split(".")
            owner = module.get_submodule(".".join(path))
            wide = value.to(WIDE) if value.dtype in (torch.float16, torch.bfloat16) else value
            if last in owner._parameters:
                flag = getattr(owner, last).requires_grad
                owner._parameters[last] = nn.Parameter(wide, requires_grad=flag)
            else:
                owner._buffers[last] = wide
        return types

    def _stored(self) -> Iterator[str]:
        """The names of all values that a file must hold; those of tied ones as often as they are used."""
        yield from (name for name, _ in self.model.named_parameters(remove_duplicate=False))
        saved = self.model.state_dict().keys()
        yield from (name for name, _ in self.model.named_buffers() if name in saved)

    def _key(self, names: Sequence[str]) -> str:
        """What a value of these names is called in the files, also where they are of the network without its
        head."""
        for each in (*names, *(each.removeprefix(self._prefix) for each in names)):
            if each in self.shards.file_of:
                return each
        raise DataError(f"{self.shards.folder}: {names[0]} is in none of its files")

    def _check_apart(self) -> None:
        """InputError if a value of a block is used twice, which are pruned one by one."""
        inside = {f"{self.block_name(n)}.{name}" for n in range(len(self.blocks)) for name in self.keys_of(n)}
        seen = {key: name for name, key in self.keys.items() if name not in inside}
        for number in range(len(self.blocks)):
            for name, key in self.keys_of(number).items():
                whole = f"{self.name}.{number}.{name}"
                if seen.setdefault(key, whole) != whole:
                    raise InputError(f"blocks: {whole} is shared with {seen[key]}")

    def _check_values(self) -> None:
        """DataError if a value is of another shape or kind than in the network, not hours later."""
        sizes = self.shards.sizes(self.shards.file_of)  # also of what is only copied in the end
        network = {
            **dict(self.model.named_parameters(remove_duplicate=False)),
            **dict(self.model.named_buffers()),
        }
        for name, key in self.keys.items():
            shape, kind = sizes[key]
            wanted = network[name]
            if shape != tuple(wanted.shape) or kind.is_floating_point != wanted.dtype.is_floating_point:
                raise DataError(
                    f"{self.shards.folder / self.shards.file_of[key]}: {key} is {_in_words(shape, kind)}, "
                    f"the network has {_in_words(wanted.shape, wanted.dtype)}"
                )
        # narrower types are computed in single precision, which layers do not take beside double precision
        kinds = {sizes[self.keys[name]][1]: name for name, _ in self.model.named_parameters()}
        narrower = [name for kind, name in kinds.items() if kind.is_floating_point and kind != torch.float64]
        if torch.float64 in kinds and narrower:
            raise DataError(
                f"{self.shards.folder}: {kinds[torch.float64]} is in double precision, and {narrower[0]} is "
                "not: convert all or none"
            )


def _check_empty(model: nn.Module) -> None:
    """InputError if a parameter has values, which those of the files would replace."""
    for name, value in model.named_parameters():
        if not value.is_meta:
            raise InputError(
                f"model: {escaped(name)} has values, which are to come from the files: make the network "
                "within prunekit.blockwise.without_values()"
            )


def _in_words(shape: Sequence[int], kind: torch.dtype) -> str:
    return f"{list(shape)} of {str(kind).removeprefix('torch.')}"


def _unload(module: nn.Module) -> None:
    for owner in module.modules():
        for name, value in owner._parameters.items():
            if value is not None:
                owner._parameters[name] = _empty(value)


def list_of_blocks(model: nn.Module) -> str:
    """The name of the longest list of modules that are of one class, and that is in no other list.

    A block may hold a list that is longer, of experts.
    """
    every = {name: each for name, each in model.named_modules() if isinstance(each, nn.ModuleList)}
    lists = {
        name: each
        for name, each in every.items()
        if len({type(part) for part in each}) == 1
        and not any(name.startswith(f"{other}.") for other in every if other)
    }
    if not lists:
        raise InputError(f"{type(model).__name__} has no list of blocks: name one as `blocks`")
    return max(lists, key=lambda name: len(lists[name]))
