"""Networks as ONNX files, as torch.export programs and as plain safetensors."""

from __future__ import annotations

import inspect
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunekit.batches import Inputs, arguments, examples_in, feed
from prunekit.errors import ModelError, explaining, first_line, said
from prunekit.export.common import (
    Exported,
    compared,
    example_of,
    exportable,
    has_examples,
    outputs_of,
    with_examples,
    written,
)
from prunekit.extras import check_installed
from prunekit.graph import GraphModel
from prunekit.graph.proof_run import tensors_in
from prunekit.graph.reference_run import VerificationError


def export_onnx(model: nn.Module, path: str | Path, example_inputs: Inputs | None) -> Exported:
    """A network as one ONNX file with a dynamic batch axis, kept if ONNX Runtime gives PyTorch's outputs.

    Compared at a batch size of 1 and at two others. Needs the extra `prunekit[export]`. A single input is
    called `input`, others as in the network's forward; outputs are called as in the mapping that the network
    gives, a single tensor `output`, several `output_0`, `output_1` and so on.

    Args:
        model: gives tensors, however nested; computes in float32.
        path: of the file.
        example_inputs: (N, ...) of its inputs: a tensor, a tuple of arguments, or a dict of named ones. The
            first axis of every tensor that is as long as the first one's is that of the examples.

    Raises:
        InputError: for no examples, a path that is a folder, or where a package is missing.
        ModelError: if the network runs sparse, is parametrized, or cannot be exported.
        VerificationError: if ONNX Runtime gives other outputs.
    """
    check_installed("ONNX", "onnx", "onnxruntime", "onnxscript")
    model, inputs, batches = prepared(model, example_inputs)
    names = _names_of_outputs(model, inputs)
    with written(path) as (path, temporary):
        program = program_of(model, inputs, flat=names != ["output"])
        with quiet():
            try:
                made = torch.onnx.export(
                    program,
                    input_names=["input"] if isinstance(inputs, Tensor) else None,
                    output_names=names,
                    verbose=False,
                )
            except Exception as error:  # of many kinds
                raise ModelError(f"PyTorch cannot export the model to ONNX: {said(error)}") from error
            assert made is not None
            made.save(temporary, external_data=False)
        deviation = max(
            compared(found, reference, f"ONNX Runtime at a batch size of {size}")
            for found, (size, (_, reference)) in zip(
                _run_onnx(temporary, list(batches.values())), batches.items(), strict=True
            )
        )
    return Exported(path, deviation, tuple(sorted(batches)))


def _run_onnx(path: Path, batches: Sequence[tuple[Inputs, Any]]) -> Iterator[list[Tensor]]:
    """What ONNX Runtime gives for the inputs of each batch.

    Raises:
        VerificationError: where it does not run the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    with explaining(VerificationError, lambda: "ONNX Runtime does not run what PyTorch exported"):
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]
        for batch, _ in batches:
            tensors = [each.numpy() for each in pytree.tree_leaves(batch) if isinstance(each, Tensor)]
            found = session.run(None, dict(zip(names, tensors, strict=True)))
            yield [torch.from_numpy(each) for each in found]


def export_program(model: nn.Module, path: str | Path, example_inputs: Inputs | None) -> Exported:
    """A network as a `torch.export` program with a dynamic batch axis, kept if it loads and is right.

    Arguments and errors are those of `export_onnx`; `torch.export.load` reads the file.
    """
    model, inputs, batches = prepared(model, example_inputs)
    with written(path) as (path, temporary):
        program = program_of(model, inputs)
        with quiet(), temporary.open("wb") as file:
            torch.export.save(program, file)
        with quiet(), temporary.open("rb") as file:
            loaded = torch.export.load(file).module()
        deviation = max(
            compared(outputs_of(loaded, batch), reference, f"the program at a batch size of {size}")
            for size, (batch, reference) in batches.items()
        )
    return Exported(path, deviation, tuple(sorted(batches)))


def export_safetensors(model: nn.Module, path: str | Path) -> Exported:
    """The state dict of a network as plain safetensors, read back to the bit; tied tensors are written each.

    Raises:
        InputError: if the path is a folder.
        ModelError: if the network runs sparse or is parametrized, or its state holds other than dense
            tensors.
        VerificationError: if what is read back is not what was written.
    """
    state = exportable(model, as_float=False).state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ModelError(
                f"{name!r} of the state is a {type(value).__name__}, and safetensors hold tensors only"
            )
        if value.layout != torch.strided:
            raise ModelError(f"{name!r} of the state is sparse, and safetensors hold dense tensors only")
    tensors = {name: value.detach().clone().contiguous() for name, value in state.items()}
    with written(path) as (path, temporary):
        with explaining(ModelError, lambda: "safetensors do not hold this state"):
            save_file(tensors, temporary)
            again = load_file(temporary)
        if tensors.keys() != again.keys() or not all(
            tensors[name].dtype == again[name].dtype
            and torch.equal(
                tensors[name].reshape(-1).view(torch.uint8), again[name].reshape(-1).view(torch.uint8)
            )
            for name in tensors
        ):
            raise VerificationError("what was read back is not what was written")
    return Exported(path, None, ())


def prepared(
    model: nn.Module, example_inputs: Inputs | None
) -> tuple[nn.Module, Inputs, dict[int, tuple[Inputs, list[Tensor]]]]:
    """A copy that may be changed, inputs for it, and by batch size inputs with PyTorch's outputs.

    Raises:
        InputError, ModelError: as `export_onnx`.
    """
    model, inputs = exportable(model), example_of(example_inputs)
    if isinstance(model, GraphModel) and model.only_batch is not None:
        raise ModelError(
            f"the network is an exported graph for batches of {model.only_batch} only: "
            "export it before it is shrunk"
        )
    more = with_examples(inputs, examples_in(inputs) + 1)
    batches = {examples_in(inputs): (inputs, outputs_of(model, inputs))}
    try:
        batches[examples_in(more)] = more, outputs_of(model, more)
    except ModelError as error:
        raise ModelError(
            f"the model takes {examples_in(inputs)} examples, and not {examples_in(more)}: its code is "
            f"written for batches of one size: {first_line(error)}"
        ) from error
    # a network may do something else with one example, where the exporter takes several as given
    one = with_examples(inputs, 1)
    with suppress(ModelError):  # it may also be for several only
        batches[1] = one, outputs_of(model, one)
    return model, inputs, batches


def program_of(
    model: nn.Module, inputs: Inputs, *, flat: bool = False, most: int | None = None
) -> torch.export.ExportedProgram:
    """The program, its batch axis dynamic.

    Args:
        model: a copy, which may be changed.
        inputs: examples.
        flat: whether it is to give its tensors in a row, however the network nests them.
        most: examples of a batch; None for any number.

    Raises:
        ModelError: with PyTorch's reason, as for a network whose path depends on its data.
    """
    batch, count = torch.export.Dim("batch", min=1, max=most), examples_in(inputs)
    args, kwargs = arguments(inputs)
    named = dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)
    shapes = pytree.tree_map(lambda each: {0: batch} if has_examples(each, count) else None, named)
    if flat:
        model.register_forward_hook(lambda *call: tuple(tensors_in(call[-1], real=False)))
    reasons = []
    for strict in (False, True):  # each takes networks that the other does not
        try:
            with quiet():
                return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=strict)
        except Exception as error:  # of many kinds
            reasons.append(error)
    fixed = _FIXED.search(str(reasons[0]))
    why = f"its code holds it to {fixed[1]} examples" if fixed else said(reasons[0])
    raise ModelError(f"PyTorch cannot export the model with a batch axis of any size: {why}") from reasons[0]


_FIXED = re.compile(r"specialized it to be a constant \((\d+)\)")


def _names_of_outputs(model: nn.Module, inputs: Inputs) -> list[str]:
    """What the outputs are called, in their order."""
    with torch.no_grad():
        outputs = feed(model, inputs)
    count = len(tensors_in(outputs, real=False))
    if isinstance(outputs, Mapping) and count == sum(isinstance(each, Tensor) for each in outputs.values()):
        return [str(name) for name, each in outputs.items() if isinstance(each, Tensor)]
    return ["output"] if count == 1 else [f"output_{place}" for place in range(count)]


@contextmanager
def quiet() -> Iterator[None]:
    """PyTorch's exporters tell their steps, and errors that they raise as well, to everybody."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
