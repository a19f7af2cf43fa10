import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunekit.data import Dataset, Split, from_tensors
from prunekit.data.dataset import DataSettings, Raw, assemble, hold_out
from prunekit.errors import DataError, InputError


def split(n=6, features=3, classes=2):
    return Split(torch.arange(n * features, dtype=torch.float32).view(n, features), torch.arange(n) % classes)


def test_a_split_has_a_length_and_a_head():
    head = split(6).head(2)
    assert len(split(6)) == 6
    assert len(head) == 2
    torch.testing.assert_close(head.inputs, split(6).inputs[:2])
    assert len(split(6).head(100)) == 6


@pytest.mark.parametrize("n", [0, -1])
def test_a_head_needs_an_example(n):
    with pytest.raises(DataError, match="at least one"):
        split().head(n)


def test_to_moves_every_tensor(monkeypatch):
    dataset = Dataset("x", "classification", split(), split(), split(), 2)
    moved = []
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: moved.append(device) or tensor.clone())
    there = dataset.to("elsewhere")
    assert moved == ["elsewhere"] * 6
    assert there.name == "x"
    assert torch.equal(there.test.inputs, dataset.test.inputs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_to_moves_to_a_gpu():
    dataset = Dataset("x", "classification", split(), split(), split(), 2).to("cuda")
    for part in (dataset.train, dataset.validation, dataset.test):
        assert part.inputs.is_cuda
        assert part.targets.is_cuda


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), "empty"),
        (torch.zeros(4, 0), torch.zeros(4, dtype=torch.int64), "empty"),
        (torch.zeros(3, 3), torch.zeros(2, dtype=torch.int64), "3 inputs but 2 targets"),
        (torch.tensor([[1.0], [float("nan")]]), torch.zeros(2, dtype=torch.int64), "inputs .* NaN"),
        (torch.tensor([[1.0], [float("inf")]]), torch.zeros(2, dtype=torch.int64), "inputs .* infinite"),
        (torch.tensor([[1.0], [-float("inf")]]), torch.zeros(2, dtype=torch.int64), "inputs .* infinite"),
        (torch.zeros(2, 1), torch.tensor([[1.0], [float("nan")]]), "targets .* NaN"),
        (torch.tensor(1.0), torch.tensor(1), "first dimension"),
    ],
)
def test_a_split_refuses(inputs, targets, message):
    with pytest.raises(DataError, match=message):
        Split(inputs, targets)


def test_the_input_shape_is_without_the_batch():
    assert Dataset("x", "classification", split(), split(), split(), 2).input_shape == (3,)


def test_datasets_and_splits_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        split().inputs = torch.zeros(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "ranking"}, "none of classification, regression"),
        ({"test": split(features=4)}, r"test inputs have the shape \(4,\), train \(3,\)"),
        ({"validation": split(classes=3)}, "validation targets run from 0 to 2, .* 0 to 1"),
        ({"train": Split(torch.zeros(2, 3), torch.tensor([-1, 0]))}, "run from -1 to 0"),
        ({"test": Split(torch.zeros(2, 3), torch.zeros(2))}, "must be int64"),
        ({"task": "regression"}, "must be floating point"),
        ({"task": "regression", "train": Split(torch.zeros(2, 3), torch.zeros(2, 1))}, r"shape \(N, 2\)"),
    ],
)
def test_a_dataset_refuses_parts_that_do_not_fit(changes, message):
    parts = {"task": "classification", "train": split(), "validation": split(), "test": split(), **changes}
    with pytest.raises(DataError, match=message):
        Dataset(name="x", outputs=2, **parts)


def raw(n=200, features=3, classes=4, seed=0):
    """Rows that are all different, of classes of different sizes."""
    random = np.random.default_rng(seed)
    inputs = random.normal(5.0, 3.0, (n, features))
    inputs[:, 0] = np.arange(n)
    return Raw(inputs, np.minimum(random.integers(0, classes + 2, n), classes - 1))


def settings(**values):
    return DataSettings(name="some", **values)


def rows(split):
    return [row.numpy().tobytes() for row in split.inputs]


def test_the_same_settings_give_the_same_tensors():
    first, second = (assemble(raw(), settings(seed=3), classes=4) for _ in range(2))
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(first, part).inputs, getattr(second, part).inputs)
        assert torch.equal(getattr(first, part).targets, getattr(second, part).targets)


def test_different_seeds_give_different_splits():
    first, second = (assemble(raw(), settings(seed=seed), classes=4) for seed in (0, 1))
    assert not torch.equal(first.train.targets, second.train.targets)
    assert not torch.equal(first.test.targets, second.test.targets)


def test_the_parts_do_not_overlap_and_lose_nothing():
    dataset = assemble(raw(), settings(), classes=4)
    every = rows(dataset.train) + rows(dataset.validation) + rows(dataset.test)
    assert len(every) == len(set(every)) == 200
    assert (len(dataset.test), len(dataset.validation)) == (40, 16)


def test_the_test_part_does_not_depend_on_the_validation_fraction():
    first, second = (assemble(raw(), settings(validation=fraction), classes=4) for fraction in (0.1, 0.5))
    assert torch.equal(first.test.targets, second.test.targets)


def test_an_official_test_part_is_kept_whole_and_in_order():
    official = raw(50, seed=1)
    dataset = assemble(raw(), settings(test=0.9), classes=4, test=official)
    assert torch.equal(dataset.test.targets, torch.from_numpy(official.targets))
    assert len(dataset.train) + len(dataset.validation) == 200


def test_tables_are_scaled_feature_by_feature_with_the_training_part_alone():
    source = raw()
    source.inputs[:, 2] = 0.1  # a constant, whose mean in floating point is not quite 0.1
    dataset = assemble(source, settings(seed=5), classes=4)
    # The first feature numbers the rows, and scaling keeps order, so that it tells which row is which.
    whole = torch.cat([dataset.train.inputs, dataset.validation.inputs, dataset.test.inputs])[:, 0]
    numbers = whole.argsort().argsort().numpy()
    chosen = source.inputs[numbers[: len(dataset.train)]]
    mean, std = chosen.mean(0), chosen.std(0)
    std[2] = 1
    expected = ((source.inputs - mean) / std)[numbers]
    np.testing.assert_allclose(dataset.train.inputs, expected[: len(dataset.train)], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dataset.test.inputs, expected[-len(dataset.test) :], rtol=1e-5, atol=1e-6)
    assert float(dataset.train.inputs[:, 2].abs().max()) < 1e-12


def test_images_are_scaled_channel_by_channel_with_the_training_part_alone():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (40, 3, 5, 5), dtype=np.uint8)
    images[:, 1] //= 4
    targets = np.arange(40) % 2
    official = Raw(random.integers(0, 256, (9, 3, 5, 5), dtype=np.uint8), np.arange(9) % 2)
    before = official.inputs.copy()
    dataset = assemble(Raw(images, targets), settings(), classes=2, test=official)
    rest, _ = hold_out(targets, 0.1, seed=0)
    assert len(rest) == len(dataset.train)
    # Which images are in the training part is told by undoing the scaling that the test part went through.
    flat = before[:, :, 0, 0].astype(np.float64)
    scaled = dataset.test.inputs[:, :, 0, 0].double().numpy()
    std = (flat.max(0) - flat.min(0)) / (scaled.max(0) - scaled.min(0))
    mean = flat.min(0) - scaled.min(0) * std
    pixels = dataset.train.inputs.double().numpy() * std[:, None, None] + mean[:, None, None]
    restored = np.rint(pixels).astype(np.uint8)
    known = {image.tobytes() for image in images}
    assert {image.tobytes() for image in restored} < known
    np.testing.assert_allclose(restored.mean((0, 2, 3)), mean, rtol=1e-4)
    np.testing.assert_allclose(restored.std((0, 2, 3)), std, rtol=1e-4)
    assert np.array_equal(official.inputs, before)


def test_inputs_are_single_precision_and_targets_are_of_the_task():
    dataset = assemble(raw(), settings(), classes=4)
    assert (dataset.train.inputs.dtype, dataset.train.targets.dtype) == (torch.float32, torch.int64)
    values = Raw(raw().inputs, np.linspace(0, 1, 400).reshape(200, 2))
    regression = assemble(values, settings(), classes=None)
    assert (regression.task, regression.outputs) == ("regression", 2)
    assert regression.test.targets.dtype == torch.float32
    assert regression.test.targets.shape == (40, 2)


def test_more_test_examples_come_from_the_training_part_behind_the_official_ones():
    official = raw(50, seed=1)
    whole = raw()
    dataset = assemble(whole, settings(more_test=20), classes=4, test=official)
    plain = assemble(whole, settings(), classes=4, test=official)
    assert torch.equal(dataset.test.targets[:50], plain.test.targets)
    assert len(dataset.test) == 70
    parts = [dataset.train, dataset.validation]
    assert sum(map(len, parts)) == len(whole.targets) - 20
    counts = torch.bincount(torch.cat([part.targets for part in [*parts, dataset.test]]), minlength=4)
    given = np.concatenate([whole.targets, official.targets])
    assert counts.tolist() == np.bincount(given, minlength=4).tolist()
    assert settings(more_test=0).digest() == settings().digest()
    with pytest.raises(InputError, match="more_test = "):
        assemble(whole, settings(more_test=len(whole.targets)), classes=4, test=official)


def test_a_limit_keeps_the_first_training_examples_of_the_shuffled_order():
    whole = assemble(raw(), settings(), classes=4)
    limited = assemble(raw(), settings(limit=10), classes=4)
    assert torch.equal(limited.train.targets, whole.train.targets[:10])
    assert torch.equal(limited.validation.targets, whole.validation.targets)
    torch.testing.assert_close(limited.train.inputs.mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    assert len(assemble(raw(), settings(limit=10_000), classes=4).train) == len(whole.train)
    assert len(assemble(raw(), settings(limit=1), classes=4).train) == 1


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**63 - 1),
)
def test_holding_out_divides_each_group_in_proportion(sizes, fraction, seed):
    groups = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)) * 3, sizes))
    try:
        rest, held = hold_out(groups, fraction, seed)
    except InputError:
        # Nothing to hold out: the fraction is less than half an example, or no group can spare one.
        assert fraction * len(groups) < 0.5 + 1e-9 or max(sizes) == 1 or fraction * len(groups) < len(sizes)
        return
    assert sorted([*rest, *held]) == list(range(len(groups)))
    for number, size in enumerate(sizes):
        out = int((groups[held] == number * 3).sum())
        assert abs(out - fraction * size) < 1
        assert out < size
    again = hold_out(groups, fraction, seed)
    assert np.array_equal(rest, again[0])
    assert np.array_equal(held, again[1])


@pytest.mark.parametrize("seed", range(5))
def test_both_parts_are_well_shuffled(seed):
    groups = np.repeat(np.arange(10), 1000)
    for part in hold_out(groups, 0.3, seed):
        for piece in (part[:500], part[-500:]):
            counts = np.bincount(groups[piece], minlength=10)
            assert np.abs(counts - 50).max() < 5 * np.sqrt(500 * 0.1 * 0.9)
        assert abs(np.corrcoef(np.arange(len(part)), part)[0, 1]) < 5 / np.sqrt(len(part))


def test_holding_out_takes_the_rounded_share_of_all():
    groups = np.repeat(np.arange(10), 15)  # 10 percent is one and a half of each
    _, held = hold_out(groups, 0.1, seed=0)
    assert len(held) == 15
    assert set(np.bincount(groups[held])) == {1, 2}


@pytest.mark.parametrize(("count", "fraction"), [(1, 0.5), (10, 0.01)])
def test_holding_out_nothing_is_refused(count, fraction):
    with pytest.raises(InputError, match=f"{fraction} of {count} examples"):
        hold_out(np.zeros(count, dtype=np.int64), fraction, seed=0)


def pair(n=50, classes=5):
    return torch.arange(n * 2, dtype=torch.float64).view(n, 2), torch.arange(n) % classes


def test_integer_targets_make_a_stratified_classification():
    dataset = from_tensors(pair())
    assert (dataset.name, dataset.task, dataset.outputs) == ("custom", "classification", 5)
    assert dataset.test.targets.bincount().tolist() == [2] * 5
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (36, 4, 10)


def test_the_parts_do_not_overlap_and_inputs_stay_as_they_are():
    dataset = from_tensors(pair())
    every = torch.cat([dataset.train.inputs, dataset.validation.inputs, dataset.test.inputs])
    assert every.dtype == torch.float32
    assert torch.equal(every[every[:, 0].argsort()].double(), pair()[0])


def test_floating_point_targets_make_a_regression():
    inputs, _ = pair()
    dataset = from_tensors((inputs, inputs.sum(1)))
    assert (dataset.task, dataset.outputs) == ("regression", 1)
    assert dataset.test.targets.shape == (10, 1)
    assert torch.equal(dataset.train.targets[:, 0], dataset.train.inputs.sum(1))
    assert from_tensors((inputs, inputs)).outputs == 2


def test_given_parts_are_used_as_they_are():
    dataset = from_tensors(pair(), validation=pair(7), test=pair(9, classes=7), name="mine")
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (50, 7, 9)
    assert (dataset.name, dataset.outputs) == ("mine", 7)
    assert torch.equal(dataset.train.targets, pair()[1])


def test_the_seed_decides_the_split():
    first, same, other = (from_tensors(pair(), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.test.inputs, same.test.inputs)
    assert not torch.equal(first.test.inputs, other.test.inputs)


def test_boolean_targets_are_two_classes():
    inputs, targets = pair()
    assert from_tensors((inputs, targets > 1)).outputs == 2


def test_fractions_decide_the_sizes():
    dataset = from_tensors(pair(), validation_fraction=0.25, test_fraction=0.4)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (22, 8, 20)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 40])
@pytest.mark.parametrize("argument", ["validation_fraction", "test_fraction"])
def test_fractions_lie_between_0_and_1(argument, fraction):
    with pytest.raises(InputError, match=f"{argument} = {fraction}"):
        from_tensors(pair(), **{argument: fraction})


@pytest.mark.parametrize(
    ("train", "test", "error", "message"),
    [
        (pair(), (torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)), DataError, "shape"),
        (pair(), (torch.zeros(4, 2), torch.zeros(4)), DataError, "one kind"),
        ((torch.zeros(4, 2), torch.zeros(4, 1, dtype=torch.int64)), None, DataError, r"shape \(N,\)"),
        ((torch.zeros(16, 2), torch.arange(16) % 2 - 1), None, DataError, "run from -1 to 0"),
        ((torch.zeros(4, 2), torch.zeros(3, dtype=torch.int64)), None, DataError, "4 inputs but 3"),
        ((torch.zeros(4, 2, dtype=torch.complex64), torch.zeros(4)), None, InputError, "complex"),
        ((torch.full((4, 2), torch.nan), torch.zeros(4)), None, DataError, "NaN"),
    ],
)
def test_from_tensors_refuses(train, test, error, message):
    with pytest.raises(error, match=message):
        from_tensors(train, test=test, test_fraction=0.5, validation_fraction=0.5)


def test_examples_are_counted_and_not_printed():
    data = from_tensors((torch.randn(10, 3, 4), torch.arange(10) % 2))
    assert repr(data.train) == f"Split({len(data.train)} examples of shape (3, 4))"
    assert len(repr(data)) < 300


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (
            (np.array([["a", "b"]] * 10), torch.arange(10)),
            "the inputs: an array of the type <U1 holds no numbers",
        ),
        (
            (torch.randn(10, 2), ["food", "books"] * 5),
            "the targets: they are no tensor, array or list of numbers",
        ),
        ((torch.randn(10, 2), np.array(["food", "books"] * 5)), "the targets: an array of the type <U5"),
    ],
)
def test_texts_are_no_numbers(pair, message):
    with pytest.raises(DataError, match=message):
        from_tensors(pair)


def test_columns_of_a_table_that_hold_texts_are_named():
    class Table:  # as pandas' DataFrame has them
        def __init__(self):
            self.dtypes = {"area": np.dtype(float), "city": np.dtype(object)}

        def to_numpy(self):
            return np.array([[1.0, "Bonn"]] * 10, dtype=object)

    class Column:
        name = "kind"

        def to_numpy(self):
            return np.array(["food", "books"] * 5, dtype=object)

    with pytest.raises(DataError, match="the inputs: the column 'city' holds no numbers: encode it first"):
        from_tensors((Table(), torch.arange(10)))
    with pytest.raises(DataError, match="the targets: the column 'kind' holds no numbers: encode it first"):
        from_tensors((torch.randn(10, 2), Column()))
