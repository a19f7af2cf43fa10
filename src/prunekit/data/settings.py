"""Which dataset, and how it is split: the part of a recipe or a study that describes the data."""

from __future__ import annotations

from pydantic import Field

from prunekit.settings import Settings


class DataSettings(Settings):
    """The name of a dataset and the numbers that fix its split; equal settings give equal tensors.

    Attributes:
        name: one of `prunekit.data.names()`.
        validation: the fraction of the training part that becomes the validation part, in (0, 1).
        test: the fraction of all examples that becomes the test part, in (0, 1); ignored by the sets that
            come with an official test part.
        seed: what the split is drawn from (and the examples, for a set that is generated).
        limit: use only the first so many training examples of the shuffled training part, for quick runs.
    """

    name: str
    validation: float = Field(default=0.1, gt=0, lt=1)
    test: float = Field(default=0.2, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)
    limit: int | None = Field(default=None, gt=0)
