"""An order of hidden units in which their layers take fewer bytes, and the network computes the same."""

from __future__ import annotations

import numpy as np

from prunekit.errors import InputError


def order_units(made: np.ndarray, read: np.ndarray) -> np.ndarray:
    """The numbers of the units in their new order: most weights first, then those that are read most.

    The coder tells numbers of weights that never rise in about a bit each. With it `made[order]` and
    `regroup(read, order)` are the new layers; what else belongs to a unit, such as its bias, moves along.

    Args:
        made: levels of the layer that makes the units, (units, ...).
        read: levels of the layer that reads them, (outputs, inputs, ...), its inputs unit by unit.

    Raises:
        InputError: if the inputs are not a multiple of the units.
    """
    by_unit = np.count_nonzero(_by_unit(read, len(made)), axis=(0, 2))
    return order_by_counts(np.count_nonzero(made.reshape(len(made), -1), axis=1), by_unit)


def order_by_counts(made: np.ndarray, read: np.ndarray) -> np.ndarray:
    """The numbers of units, those of most weights first, of equal ones those that are read by most."""
    return np.lexsort((-read, -made))


def regroup(read: np.ndarray, order: np.ndarray) -> np.ndarray:
    """A layer whose inputs are units in another order; each may be several inputs, as behind a flattening.

    Args:
        read: (outputs, inputs, ...), its inputs unit by unit.
        order: the numbers of the units, each once.

    Raises:
        InputError: if the inputs are not a multiple of the units, or the order leaves units out.
    """
    if not np.array_equal(np.sort(order), np.arange(len(order))):
        raise InputError(f"an order of {len(order):,} units holds each number below that once")
    return _by_unit(read, len(order))[:, order].reshape(read.shape)


def _by_unit(read: np.ndarray, units: int) -> np.ndarray:
    if units == 0 or read.ndim < 2 or read.shape[1] % units:
        raise InputError(f"a layer of shape {read.shape} does not read {units} units, each as many times")
    return read.reshape(read.shape[0], units, -1 if read.size else 0)
