import gzip

import numpy as np
import pytest
import torch

from prunekit.data import DataSettings, load
from prunekit.data.synthetic import generate, waves


def class_means():
    """E x = (a + b) / 2 of each class, and a - b.

    By the book h1(i) = max(6 - |i - 11|, 0), h2(i) = h1(i - 4) and h3(i) = h1(i + 4).
    """
    h1, h2, h3 = (np.array([max(6 - abs(i - peak), 0) for i in range(1, 22)]) for peak in (11, 15, 7))
    return np.stack([(h2 + h3) / 2, (h1 + h3) / 2, (h1 + h2) / 2]), np.stack([h3 - h2, h3 - h1, h1 - h2])


def test_the_waves_are_triangles():
    assert waves().shape == (3, 21)
    assert waves().max(1).tolist() == [6, 6, 6]
    assert (waves().argmax(1) + 1).tolist() == [7, 11, 15]
    assert waves()[0, :3].tolist() == [0, 1, 2]


def test_frequencies_means_and_variances_follow_the_definition():
    count = 60_000
    inputs, targets = generate(count, seed=0)
    means, differences = class_means()
    # All bounds are five standard errors; the draws are fixed by the seed, so that this holds or never does.
    np.testing.assert_allclose(np.bincount(targets) / count, 1 / 3, atol=5 * np.sqrt(2 / 9 / count))
    for number in range(3):
        chosen = inputs[targets == number]
        variance = 1 + differences[number] ** 2 / 12  # of the noise, and of a uniform mixture
        error = np.sqrt(variance / len(chosen))
        assert (np.abs(chosen.mean(0) - means[number]) < 5 * error).all()
        np.testing.assert_allclose(chosen.var(0), variance, rtol=0.06)
        # One mixture for the whole example: features covary as the difference of its waves says.
        left, right = 8, 12
        covariance = np.cov(chosen[:, left], chosen[:, right])[0, 1]
        assert covariance == pytest.approx(
            differences[number][left] * differences[number][right] / 12, abs=0.06
        )


def test_the_set_has_the_usual_size_and_parts():
    dataset = load("waveform", download=False)
    assert (dataset.outputs, dataset.input_shape) == (3, (21,))
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (3600, 400, 1000)
    rows = [
        row.numpy().tobytes()
        for part in (dataset.train, dataset.validation, dataset.test)
        for row in part.inputs
    ]
    assert len(set(rows)) == 5000


def test_the_seed_draws_the_examples():
    first, same, other = (load(DataSettings(name="waveform", seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first.train.inputs, same.train.inputs)
    assert not torch.equal(first.train.inputs[:100], other.train.inputs[:100])


def test_generated_statistics_are_those_of_ucis_sample(real_data):
    path = real_data / "uci" / "waveform.data.gz"
    if not path.exists():
        pytest.skip("the data folder has no waveform.data.gz")
    rows = []
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        try:
            rows.append([float(cell) for cell in line.split(",")])
        except ValueError:  # one of the 5,000 lines of the copy at hand has a stray tab in a number
            continue
    sample = np.array(rows)
    assert len(sample) >= 4990
    inputs, targets = generate(5000, seed=0)
    for number in range(3):
        real, drawn = sample[sample[:, -1] == number, :-1], inputs[targets == number]
        error = np.sqrt(real.var(0) / len(real) + drawn.var(0) / len(drawn))
        assert (np.abs(real.mean(0) - drawn.mean(0)) < 5 * error).all()
        np.testing.assert_allclose(real.std(0), drawn.std(0), rtol=0.1)
