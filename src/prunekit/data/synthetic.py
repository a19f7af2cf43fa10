"""Datasets that are generated: waveforms, by the published definition.

Source: Breiman, Friedman, Olshen & Stone (1984), Classification and Regression Trees, pages 49 to 55.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prunekit.data.assemble import Raw, assemble
from prunekit.data.dataset import Dataset, DataSettings
from prunekit.data.store import Store
from prunekit.seeds import derive

EXAMPLES = 5000
FEATURES = 21
PEAKS = (7, 11, 15)
# The two waves that each class mixes, in the order of the classes of UCI's sample: the outer two, the
# left two, the right two.
MIXED = ((0, 2), (0, 1), (1, 2))


def load_waveform(settings: DataSettings, store: Store) -> Dataset:
    """5,000 examples of 3 equally likely classes: a random mixture of two waves, at 21 points, with noise.

    The seed of the settings draws the examples as well as their split. Nothing is read or downloaded.
    """
    return assemble("waveform", generate(EXAMPLES, settings.seed), settings, classes=3)


def generate(count: int, seed: int) -> Raw:
    """Draw examples: x(i) = u a(i) + (1 - u) b(i) + e(i) at i = 1 to 21.

    Here a and b are the waves of the example's class, u is uniform on [0, 1], one for each example, and the
    e(i) are standard normal.

    Args:
        count: how many.
        seed: of the classes, the mixtures and the noise.

    Returns:
        Inputs (count, 21) and targets (count,) in 0, 1, 2.
    """
    random = np.random.default_rng(derive(seed, "waveform"))
    classes = random.integers(len(MIXED), size=count)
    share = random.random((count, 1))
    noise = random.standard_normal((count, FEATURES))
    first, second = waves()[np.array(MIXED)[classes].T]
    return Raw(share * first + (1 - share) * second + noise, classes)


def waves() -> NDArray[np.float64]:
    """The three waves, (3, 21): triangles of height 6 with their peaks at 7, 11 and 15."""
    distance = np.abs(np.arange(1, FEATURES + 1) - np.array(PEAKS)[:, None])
    return np.maximum(6.0 - distance, 0)
