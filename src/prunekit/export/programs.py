"""Networks as ONNX files, as torch.export programs and as plain safetensors."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prunekit.errors import InputError, ModelError, said
from prunekit.export.common import Exported, compared, example_of, exportable, outputs_of, written
from prunekit.graph import GraphModel
from prunekit.graph.reference_run import VerificationError


def export_onnx(model: nn.Module, path: str | Path, example_inputs: Tensor | None) -> Exported:
    """A network as one ONNX file with a dynamic batch axis, kept if ONNX Runtime gives PyTorch's outputs.

    Compared at two batch sizes. Needs the extra `prunekit[export]`.

    Args:
        model: takes one tensor and gives one; computes in float32.
        path: of the file.
        example_inputs: (N, ...) of its inputs.

    Raises:
        InputError: for no examples, a path that is a folder, or where a package is missing.
        ModelError: if the network runs sparse, is parametrized, or cannot be exported.
        VerificationError: if ONNX Runtime gives other outputs.
    """
    missing = [
        each for each in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(each) is None
    ]
    if missing:
        raise InputError(f"ONNX needs {', '.join(missing)}: pip install 'prunekit[export]'")
    model, inputs = exportable(model), example_of(example_inputs)
    batches = _batches(model, inputs)
    with written(path) as (path, temporary):
        program = _program(model, inputs)
        with _quiet():
            try:
                made = torch.onnx.export(
                    program, input_names=["input"], output_names=["output"], verbose=False
                )
            except Exception as error:  # of many kinds
                raise ModelError(f"PyTorch cannot export the model to ONNX: {said(error)}") from error
            assert made is not None
            made.save(temporary, external_data=False)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(
            temporary.read_bytes(), options, providers=["CPUExecutionProvider"]
        )
        (name,) = [each.name for each in session.get_inputs()]
        deviation = max(
            compared(torch.from_numpy(session.run(None, {name: batch.numpy()})[0]), reference, "ONNX Runtime")
            for batch, reference in batches
        )
    return Exported(path, deviation, tuple(len(batch) for batch, _ in batches))


def export_program(model: nn.Module, path: str | Path, example_inputs: Tensor | None) -> Exported:
    """A network as a `torch.export` program with a dynamic batch axis, kept if it loads and is right.

    Arguments and errors are those of `export_onnx`; `torch.export.load` reads the file.
    """
    model, inputs = exportable(model), example_of(example_inputs)
    batches = _batches(model, inputs)
    with written(path) as (path, temporary):
        program = _program(model, inputs)
        with _quiet(), temporary.open("wb") as file:
            torch.export.save(program, file)
        with _quiet(), temporary.open("rb") as file:
            loaded = torch.export.load(file).module()
        deviation = max(
            compared(outputs_of(loaded, batch), reference, "the program") for batch, reference in batches
        )
    return Exported(path, deviation, tuple(len(batch) for batch, _ in batches))


def export_safetensors(model: nn.Module, path: str | Path) -> Exported:
    """The state dict of a network as plain safetensors, read back to the bit; tied tensors are written each.

    Raises:
        InputError: if the path is a folder.
        ModelError: if the network runs sparse or is parametrized, or its state holds other than tensors.
        VerificationError: if what is read back is not what was written.
    """
    state = exportable(model, as_float=False).state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ModelError(
                f"{name!r} of the state is a {type(value).__name__}, and safetensors hold tensors only"
            )
    tensors = {name: value.detach().clone().contiguous() for name, value in state.items()}
    with written(path) as (path, temporary):
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


def _batches(model: nn.Module, inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Inputs and PyTorch's outputs at two batch sizes.

    Raises:
        ModelError: if the network takes batches of one size only.
    """
    if isinstance(model, GraphModel):
        raise ModelError(
            "the network is an exported graph for batches of one size only: there is no dynamic batch axis; "
            "build it from modules of its own classes, or export it before it is shrunk"
        )
    return [(batch, outputs_of(model, batch)) for batch in (inputs, torch.cat([inputs, inputs[:1]]))]


def _program(model: nn.Module, inputs: Tensor) -> torch.export.ExportedProgram:
    """The program, its batch axis dynamic.

    Raises:
        ModelError: with PyTorch's reason, as for a network whose path depends on its data.
    """
    batch = torch.export.Dim("batch", min=1)
    try:
        with _quiet():
            return torch.export.export(model, (inputs,), dynamic_shapes=({0: batch},))
    except Exception as error:  # of many kinds
        raise ModelError(
            f"PyTorch cannot export the model with a batch axis of any size: {said(error)}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch's exporters tell their steps to everybody."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
