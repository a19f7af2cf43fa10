"""Whether a network takes the examples of a dataset, tried before anything long begins."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunekit.errors import ModelError, PrunekitError
from prunekit.measure._running import evaluating


def check_takes(model: nn.Module, name: str, inputs: Tensor) -> None:
    """Run the network once, in evaluation mode; it is left as it was.

    Args:
        model: the network.
        name: what the person calls it.
        inputs: a few examples.

    Raises:
        ModelError: if it fails on them, with what it says.
    """
    try:
        with evaluating(model), torch.inference_mode():
            model(inputs)
    except PrunekitError:
        raise
    except Exception as error:  # the model may be the user's: whatever it raises is the user's to see
        shape = tuple(inputs.shape[1:])
        raise ModelError(
            f"the model {name} cannot take examples of the shape {shape}: {type(error).__name__}: {error}"
        ) from error
