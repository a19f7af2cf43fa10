"""From settings to a network with reproducible initial values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from prunekit.errors import InputError, ModelError, PrunekitError
from prunekit.models._sizes import feature_shape, output_count
from prunekit.models.factories import find_factory
from prunekit.models.settings import ModelSettings
from prunekit.models.signature import data_arguments


def create(
    settings: ModelSettings | Mapping[str, Any] | str,
    input_shape: Sequence[int],
    outputs: int,
    *,
    seed: int,
) -> nn.Module:
    """The model that `settings` describe, its initial values drawn from `seed` alone.

    The same arguments give the same values, whatever was drawn before, and torch's global generators are left
    where they were. A user's own factory is called with its settings by keyword, and with `input_shape` and
    `outputs` if its signature names them; random numbers that it takes from elsewhere than torch are its own.

    Args:
        settings: the model's settings, their YAML form, or its name alone.
        input_shape: shape of one example, without the batch.
        outputs: number of outputs: classes, or regression targets.
        seed: a whole number in [0, 2**63).

    Raises:
        InputError: if a setting, a size or the seed cannot be accepted.
        ModelError: if the factory fails or returns something other than a `torch.nn.Module`.
    """
    chosen = ModelSettings.parse(settings)
    factory = find_factory(chosen.name)
    from_data = data_arguments(chosen.name, factory, feature_shape(input_shape), output_count(outputs))
    with _seeded(seed):
        try:
            model = factory(**from_data, **chosen.own)
        except PrunekitError:
            raise
        except Exception as error:  # the factory may be the user's: whatever it raises is the user's to see
            raise ModelError(
                f"the model {chosen.name} failed with {type(error).__name__}: {error}"
            ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model {chosen.name} gave {model!r}, which is no torch.nn.Module")
    return model


def _gpu_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from `seed` inside, and put torch's generators back afterwards."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError(f"seed must be a whole number in [0, 2**63), got {seed!r}")
    # Asking an unused GPU for its generator would start it, in every worker process.
    devices = list(range(torch.cuda.device_count())) if _gpu_in_use() else []
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed_all(seed)
        yield
