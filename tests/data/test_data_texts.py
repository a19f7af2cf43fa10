import gzip
import itertools

import numpy as np
import pytest
import torch

from prunekit.data import DataSettings, load
from prunekit.errors import DataError, InputError

_random = np.random.default_rng(0)
TEXT = "".join(chr(97 + number) for number in _random.integers(0, 23, 5000))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "tinyshakespeare.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    return tmp_path


def decode(numbers):
    alphabet = sorted(set(TEXT))
    return "".join(alphabet[number] for number in numbers.tolist())


def test_each_target_is_the_next_character(folder):
    data = load("tiny_shakespeare", folder, download=False)
    assert (data.input_shape, data.outputs) == ((64,), len(set(TEXT)))
    assert data.train.inputs.dtype == data.train.targets.dtype == torch.int64
    for split in (data.train, data.validation, data.test):
        for inputs, targets in zip(split.inputs, split.targets, strict=True):
            place = TEXT.index(decode(inputs))
            assert TEXT[place + 1 : place + 65] == decode(targets)


def test_the_parts_are_stretches_of_the_text(folder):
    data = load("tiny_shakespeare", folder, download=False)
    ends = []
    for split in (data.train, data.validation, data.test):
        places = sorted(TEXT.index(decode(inputs)) for inputs in split.inputs)
        assert all(b - a == 64 for a, b in itertools.pairwise(places))
        ends.append((places[0], places[-1] + 65))
    assert ends[0][1] <= ends[1][0] + 1
    assert ends[1][1] <= ends[2][0] + 1
    assert ends[2][0] == 4000


def test_order_and_limit_follow_the_settings(folder):
    def first(**settings):
        return load(DataSettings(name="tiny_shakespeare", **settings), folder, download=False).train.inputs

    assert torch.equal(first(), first())
    assert not torch.equal(first(), first(seed=1))
    assert torch.equal(first(limit=5), first()[:5])


def test_bad_files(tmp_path):
    (tmp_path / "input.txt").write_bytes(b"\xff\xfe\xfd plays")
    with pytest.raises(DataError, match="no text in UTF-8"):
        load("tiny_shakespeare", tmp_path, download=False)
    (tmp_path / "input.txt").write_bytes(b"too short for anything")
    with pytest.raises(InputError, match="the train part has fewer than 65 characters"):
        load("tiny_shakespeare", tmp_path, download=False)
