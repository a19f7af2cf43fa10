"""From settings to a network with reproducible initial values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from prunekit.errors import InputError, ModelError, PrunekitError
from prunekit.models._sizes import feature_shape, output_count
from prunekit.models.settings import ModelSettings
from prunekit.models.signature import data_arguments
from prunekit.seeds import seeded


def create(
    settings: ModelSettings | Mapping[str, Any] | str,
    input_shape: Sequence[int],
    outputs: int,
    *,
    seed: int,
    allow: Iterable[str] = (),
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
        allow: modules of the user's own whose code the settings may name, such as `["my_models"]` for
            `my_models:small`.

    Raises:
        InputError: if a setting, a size or the seed cannot be accepted, or the model's module is not allowed.
        ModelError: if the factory fails or returns something other than a `torch.nn.Module`.
    """
    chosen = ModelSettings.parse(settings, allow=allow)
    from_data = data_arguments(chosen.name, chosen.factory, feature_shape(input_shape), output_count(outputs))
    _check_seed(seed)
    with seeded(seed):
        try:
            model = chosen.factory(**from_data, **chosen.own)
        except PrunekitError:
            raise
        except Exception as error:  # the factory may be the user's: whatever it raises is the user's to see
            raise ModelError(
                f"the model {chosen.name} failed with {type(error).__name__}: {error}"
            ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model {chosen.name} gave {model!r}, which is no torch.nn.Module")
    return model


def _check_seed(seed: int) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError(f"seed must be a whole number in [0, 2**63), got {seed!r}")
