"""Methods for small files: what is left after pruning has few values, chosen for the coder."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

from prunekit.errors import InputError, shown
from prunekit.parts.allocation import Manual
from prunekit.parts.quantize import EntropyTraining, KMeans
from prunekit.parts.retrain import Continued, FineTune
from prunekit.parts.schedule import AllocationDecides, Cubic, Geometric
from prunekit.parts.scores import Magnitude, MagnitudePerBit
from prunekit.parts.teacher import Logits
from prunekit.recipe import Recipe, method
from prunekit.training import TrainingLike, training_of

__all__ = ["deep_compression", "smallest"]


@method
def deep_compression(
    sparsity: float = 0.92,
    steps: int = 5,
    kept: Mapping[str, float] | None = None,
    bits: int | Mapping[str, int] | None = None,
    epochs: float = 5,
    sharing_epochs: float = 2,
    training: TrainingLike = None,
) -> Recipe:
    """The smallest |w| in steps, retrained after each; then few shared values for each layer, trained.

    `kept` gives layers, by names or patterns, the share of their weights that stays, in place of `sparsity`:
    as published, 8, 9 and 26 % of LeNet-300-100 with `bits` 6, and 66, 12, 8 and 19 % of LeNet-5; layers that
    it does not name stay whole. By default linear layers have 5 bits, and others 8. Shared values are trained
    at a tenth of the learning rate.

    Paper: Han, Mao, Dally 2016, arXiv 1510.00149
    """
    sharing = training_of(sharing_epochs, training)
    chosen: dict[str, Any] = {"schedule": Geometric(sparsity=sparsity, steps=steps)}
    if kept is not None:
        if not isinstance(kept, Mapping) or not kept:
            raise InputError(f"a mapping from layers to shares is needed, not {shown(kept)}")
        for layer, share in kept.items():
            number = isinstance(share, Real) and not isinstance(share, bool)
            if not isinstance(layer, str) or not number or not 0 < share <= 1:
                raise InputError(
                    f"{shown(layer)}: a name or pattern of layers needs a share above 0 and up to 1, "
                    f"not {shown(share)}"
                )
        chosen["schedule"] = AllocationDecides(steps=steps)
        chosen["allocation"] = Manual(sparsities={name: 1 - share for name, share in kept.items()})
    return Recipe(
        score=Magnitude(),
        retrain=FineTune(training=training_of(epochs, training)),
        quantize=KMeans(
            bits={"Linear": 5, "*": 8} if bits is None else bits,
            training=sharing.model_copy(update={"lr": sharing.lr / 10}),
        ),
        **chosen,
    )


@method
def smallest(
    sparsity: float = 0.98,
    steps: int = 60,
    epochs: float = 30,
    rounded_epochs: float = 15,
    step: float = 0.8,
    rate: float = 0.1,
    taught: bool = False,
    training: TrainingLike = None,
) -> Recipe:
    """A small file: weights go that are worth least for their bits; the others are trained while rounded.

    One training of `epochs` that a cubic schedule interrupts; then `rounded_epochs` at half of its learning
    rate with weights that are rounded to multiples of `step` and with their bits in the loss, at `rate`. Dead
    units become zero, and biases take few values. Pack the network with `prunekit.packing.pack`, after
    `shrink()` where units died. If it is `taught`, a teacher is given to `prune()`, and nine tenths of the
    loss are from its outputs.

    Paper: none; after Zhu, Gupta 2017, arXiv 1710.01878, and Oktay et al. 2020, arXiv 1906.06624
    """
    if not isinstance(taught, bool):
        raise InputError(f"True or False is needed, not {shown(taught)}")
    rounded = training_of(rounded_epochs, training)
    teacher: dict[str, Any] = {"teacher": Logits(of="given", temperature=2, share=0.9)} if taught else {}
    return Recipe(
        score=MagnitudePerBit(),
        schedule=Cubic(sparsity=sparsity, steps=steps),
        retrain=Continued(training=training_of(0.75 * epochs, training, shares=steps), rest=0.25),
        quantize=EntropyTraining(
            training=rounded.model_copy(update={"lr": rounded.lr / 2}),
            step=step,
            rate=rate,
            bias_bits=5,
            zero_dead=True,
        ),
        **teacher,
    )
