"""Networks as ExecuTorch programs, for phones and boards."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunekit.batches import Inputs
from prunekit.errors import InputError, ModelError, explaining
from prunekit.export.common import Exported, compared, written
from prunekit.export.programs import prepared, program_of, quiet
from prunekit.extras import check_installed
from prunekit.graph.reference_run import VerificationError


def export_executorch(
    model: nn.Module, path: str | Path, example_inputs: Inputs | None, *, max_batch: int = 64
) -> Exported:
    """A network as an ExecuTorch program (.pte), kept if its runtime gives PyTorch's outputs.

    Its kernels are the portable ones. Batches may have any size up to a largest one, for which the program
    reserves memory. Compared at a batch size of 1 and at two others. Needs the extra `prunekit[executorch]`.

    Args:
        model: gives tensors, however nested; computes in float32.
        path: of the file.
        example_inputs: as of `export_onnx`.
        max_batch: the largest number of examples.

    Raises:
        InputError: for no examples, more of them than `max_batch`, a path that is a folder, or where the
            package is missing.
        ModelError: if the network runs sparse, is parametrized, or cannot be exported.
        VerificationError: if the runtime gives other outputs.
    """
    check_installed("ExecuTorch", "executorch")
    model, inputs, batches = prepared(model, example_inputs)
    if max_batch < max(batches):
        raise InputError(
            f"max_batch must be at least {max(batches)}, one more than the examples: {max_batch}"
        )
    with written(path) as (path, temporary):
        program = program_of(model, inputs, flat=True, most=max_batch)
        with quiet(), explaining(ModelError, lambda: "ExecuTorch cannot export the model"):
            from executorch.exir import to_edge_transform_and_lower

            temporary.write_bytes(to_edge_transform_and_lower(program).to_executorch().buffer)
        deviation = max(
            compared(_run(temporary, batch), reference, f"ExecuTorch at a batch size of {size}")
            for size, (batch, reference) in batches.items()
        )
    return Exported(path, deviation, tuple(sorted(batches)))


def _run(path: Path, batch: Inputs) -> list[Tensor]:
    """What the runtime gives.

    Raises:
        VerificationError: where it does not run the file.
    """
    from executorch.runtime import Runtime

    with quiet(), explaining(VerificationError, lambda: "ExecuTorch does not run its own program"):
        method = Runtime.get().load_program(path.read_bytes()).load_method("forward")
        found = method.execute(pytree.tree_leaves(batch))
        return [torch.as_tensor(each).clone() for each in found]  # the next call may write into its memory
