"""Batches of any kind and any loss: how they are read, what a loss counts, and how examples may be cut up."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from prunekit import Batch, Loop, Recipe, Task, Training, prune, train
from prunekit.batches import DatasetBatches, LoaderBatches, TensorBatches, as_batches, without_padding
from prunekit.errors import DataError, InputError, ModelError
from prunekit.measure import metrics
from prunekit.methods import filter_norm, iterative_magnitude, magnitude, recipe, snip, wanda
from prunekit.parts.teacher import Distillation
from prunekit.pruning import Session
from small_nets import blobs, copied, mlp, same

transformers = pytest.importorskip("transformers")


def bert(labels: int = 3, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BertConfig(**sizes, intermediate_size=24, num_labels=labels, **settings)
    model: nn.Module = transformers.BertForSequenceClassification(config)
    return model.eval()


def sentences(count: int = 24, seed: int = 0) -> list[dict[str, Tensor]]:
    """Examples of 3 to 8 tokens, each with its label."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        length = int(torch.randint(3, 9, (1,), generator=generator))
        ids = torch.randint(1, 30, (length,), generator=generator)
        found.append({"input_ids": ids, "labels": torch.randint(3, (), generator=generator)})
    return found


def padded(examples: list[dict[str, Tensor]], length: int = 9, fill: int = 0) -> dict[str, Tensor]:
    """One batch, as a tokenizer pads it."""
    ids = torch.full((len(examples), length), fill)
    mask = torch.zeros(len(examples), length, dtype=torch.int64)
    for row, example in enumerate(examples):
        size = len(example["input_ids"])
        ids[row, :size], mask[row, :size] = example["input_ids"], 1
    labels = torch.stack([example["labels"] for example in examples])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def retrained(**training: Any) -> Recipe:
    retrain = {"name": "fine_tune", "training": training}
    return Recipe.parse({"schedule": {"name": "one_shot", "sparsity": 0.5}, "retrain": retrain})


# ---- how a batch is read ---------------------------------------------------------------------------------


class Two(nn.Module):
    """A network of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.out = nn.Linear(4, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.out(torch.relu(self.left(left) + self.right(right)))


@dataclass
class Pair:
    left: Tensor
    right: Tensor
    target: Tensor


def two_inputs(count: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(count, 4), torch.randn(count, 6), torch.randint(3, (count,))


def ways(left: Tensor, right: Tensor, targets: Tensor) -> dict[str, Any]:
    named = {"left": left, "right": right, "labels": targets}
    rows = [{name: each[k] for name, each in named.items()} for k in range(len(left))]
    return {
        "tuple in memory": ((left, right), targets),
        "triple in memory": (left, right, targets),
        "triple of arrays": (left.numpy(), right.numpy(), targets.numpy()),
        "mapping in memory": ({"left": left, "right": right}, targets),
        "mapping with labels in memory": named,
        "loader of triples": DataLoader(TensorDataset(left, right, targets), batch_size=40),
        "loader of nested pairs": [((left, right), targets)],
        "loader of mappings": [named],
        "loader of dataclasses": [Pair(left, right, targets)],
        "dataset of mappings": Rows(rows),
    }


class Rows(Dataset):  # type: ignore[type-arg]
    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


@pytest.mark.parametrize("way", list(ways(*two_inputs())))
def test_two_inputs_however_they_come(way: str) -> None:
    data = two_inputs()
    net = Two()
    F.cross_entropy(net(*data[:2]), data[2]).backward()
    expected = {name: (p * p.grad).abs() for name, p in net.named_parameters() if p.dim() > 1}
    flat = torch.cat([each.flatten() for each in expected.values()])
    keep = torch.ones_like(flat, dtype=torch.bool)
    keep[flat.argsort(stable=True)[: flat.numel() // 2]] = False
    found = prune(net, snip(0.5), ways(*data)[way])
    assert torch.equal(torch.cat([each.flatten() for each in found.masks.values()]), keep)
    trained = train(net, ways(*data)[way], Training(epochs=1, batch_size=40))
    assert trained.iterations == 1


def test_a_longer_batch_than_the_network_takes_is_refused() -> None:
    inputs, targets = blobs(32)
    data = DataLoader(TensorDataset(inputs, targets, torch.ones(32)), batch_size=8)
    net = mlp(10, 8, 3)
    before = copied(net)
    with pytest.raises(DataError, match=r"and is a list of 3, where the network takes 1 input\(s\)"):
        prune(net, iterative_magnitude(0.5, steps=1, epochs=1), data)
    assert same(before, copied(net))


def test_a_task_reads_what_no_rule_knows() -> None:
    class Weighted(Task):
        def read(self, batch: Any, model: nn.Module) -> Batch:
            inputs, targets, weights = batch
            return Batch(inputs, (targets, weights))

        def loss(self, outputs: Any, targets: Any) -> Tensor:
            classes, weights = targets
            return (F.cross_entropy(outputs, classes, reduction="none") * weights).sum() / weights.sum()

        def terms(self, outputs: Any, targets: Any) -> float:
            return float(targets[1].sum())

    inputs, targets = blobs(64)
    weights = torch.rand(64, generator=torch.Generator().manual_seed(2))
    parts = [(inputs[k : k + 9], targets[k : k + 9], weights[k : k + 9]) for k in range(0, 64, 9)]
    net = mlp(10, 8, 3)
    one = prune(copy.deepcopy(net), snip(0.5), [(inputs, targets, weights)], task=Weighted())
    many = prune(copy.deepcopy(net), snip(0.5), parts, task=Weighted())
    plain = prune(copy.deepcopy(net), snip(0.5), (inputs, targets))
    assert one.masks == many.masks
    assert one.masks != plain.masks


class Columns:
    """Columns of pandas, as far as they are asked for."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def to_numpy(self) -> Any:
        return self._array


class HubDataset(Rows):
    """A dataset of Hugging Face's is no torch Dataset, is iterated over, and has columns."""

    column_names = ("left", "right", "labels")

    def __iter__(self) -> Any:
        return iter(self.rows)


def test_arrays_columns_and_datasets() -> None:
    inputs, targets = blobs(24)
    expected = prune(mlp(10, 8, 3), snip(0.5), (inputs, targets)).masks
    arrays = inputs.numpy().astype(np.float64), targets.numpy().astype(np.int32)
    rows = Rows(list(zip(inputs, targets, strict=True)))
    for data in (arrays, (Columns(arrays[0]), Columns(arrays[1])), rows):
        assert prune(mlp(10, 8, 3), snip(0.5), data).masks == expected
    assert isinstance(as_batches(HubDataset([{"x": inputs[0], "label": 1}] * 3)), DatasetBatches)
    (batch,) = as_batches(HubDataset([{"x": inputs[0], "label": 1}] * 3)).epoch(0, 8, 0)
    assert batch.inputs["x"].shape == (3, 10)
    assert batch.targets.tolist() == [1, 1, 1]
    with pytest.raises(DataError, match="an array of the type <U1 holds no numbers"):
        as_batches((np.array([["a"], ["b"]]), targets[:2]))
    with pytest.raises(DataError, match="make no batch"):
        list(as_batches(Rows([(torch.zeros(2), 0), (torch.zeros(3), 1)])).epoch(0, 2, 0))


def test_a_dataset_is_shuffled_as_tensors_are() -> None:
    inputs, targets = blobs(20)
    rows = as_batches(Rows(list(zip(inputs, targets, strict=True))))
    for one, other in zip(rows.epoch(3, 6, 1), TensorBatches(inputs, targets).epoch(3, 6, 1), strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.targets, other.targets)


def test_a_stream_trains_for_so_many_iterations() -> None:
    inputs, targets = blobs(30)

    class Stream(IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            return iter(zip(inputs, targets, strict=True))

    done = []
    batches = list(zip(inputs.split(8), targets.split(8), strict=True))
    for data in (Stream(), DataLoader(Stream(), batch_size=8), batches):
        net = mlp(10, 8, 3)
        assert train(net, data, Training(iterations=10, batch_size=8)).iterations == 10
        done.append(copied(net))
    assert same(done[0], done[1])
    assert same(done[0], done[2])
    chosen = retrained(iterations=5)
    assert prune(mlp(10, 8, 3), chosen, Stream()).masks.sparsity == 0.5
    with pytest.raises(InputError, match="a stream without a length"):
        train(mlp(10, 8, 3), Stream(), Training(epochs=1))


def test_a_stream_that_is_empty_ends() -> None:
    class Empty(IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            return iter(())

    with pytest.raises(DataError, match="no batch"):
        train(mlp(10, 8, 3), Empty(), Training(iterations=2))


# ---- what a loss counts ------------------------------------------------------------------------------------


def some_ignored(targets: Tensor, seed: int) -> Tensor:
    gone = torch.rand(targets.shape, generator=torch.Generator().manual_seed(seed)) < 0.4
    return targets.masked_fill(gone, -100)


def losses() -> dict[str, tuple[Any, Any, Any]]:
    """By name: a loss, outputs of 24 examples in float64, and targets."""
    torch.manual_seed(5)
    logits, classes = torch.randn(24, 4).double(), torch.randint(4, (24,))
    positions, many = torch.randn(24, 4, 5).double(), torch.randint(4, (24, 5))
    weight = torch.rand(4).double() + 0.1
    return {
        "default": (None, logits, classes),
        "default, ignored": (None, logits, some_ignored(classes, 0)),
        "default, positions": (None, positions, some_ignored(many, 1)),
        "default, classes last": (None, positions.mT, some_ignored(many, 2)),
        "probabilities": ("cross_entropy", logits, torch.rand(24, 4).double()),
        "squared error": (None, logits, torch.randn(24, 4).double()),
        "squared error, flat": (None, logits[:, 0], torch.randn(24).double()),
        "class weights": (nn.CrossEntropyLoss(weight=weight), logits, some_ignored(classes, 3)),
        "another ignored": (nn.CrossEntropyLoss(ignore_index=2), logits, classes),
        "NLL": (nn.NLLLoss(weight=weight), logits.log_softmax(1), classes),
        "BCE": (nn.BCEWithLogitsLoss(), logits, (torch.rand(24, 4) < 0.5).double()),
        "MSE": (nn.MSELoss(), logits, torch.randn(24, 4).double()),
        "Huber": (nn.HuberLoss(), logits, torch.randn(24, 4).double()),
        "sum": (nn.MSELoss(reduction="sum"), logits, torch.randn(24, 4).double()),
        "function": (lambda y, t: (y - t).abs().mean(), logits, torch.randn(24, 4).double()),
    }


@pytest.mark.parametrize("name", list(losses()))
@given(cuts=st.sets(st.integers(1, 23), max_size=5))
def test_batches_weighted_by_their_terms_are_one_batch(name: str, cuts: set[int]) -> None:
    """The oracle is the loss of all examples at once."""
    loss, outputs, targets = losses()[name]
    task = Task(loss)
    bounds = [0, *sorted(cuts), 24]
    total = count = 0.0
    for start, stop in pairwise(bounds):
        terms = task.terms(outputs[start:stop], targets[start:stop])
        if terms:
            total += float(task.loss(outputs[start:stop], targets[start:stop])) * terms
            count += terms
    whole = float(task.loss(outputs, targets))
    if name == "sum":
        whole, count = whole, 1.0
    assert total / count == pytest.approx(whole, rel=1e-10)


def test_classes_along_any_axis() -> None:
    torch.manual_seed(0)
    logits, classes = torch.randn(3, 5, 6, 7), torch.randint(5, (3, 6, 7))
    expected = F.cross_entropy(logits, classes)
    for axis in (1, 2, 3):
        assert torch.equal(Task().loss(logits.movedim(1, axis), classes), expected) or torch.allclose(
            Task().loss(logits.movedim(1, axis), classes), expected
        )


def test_a_mapping_of_losses_is_their_sum() -> None:
    task = Task(lambda outputs, targets: {"box": outputs.mean(), "class": targets.mean()})
    assert float(task.loss(torch.tensor([1.0, 3.0]), torch.tensor([5.0]))) == 7.0


def test_what_is_no_loss() -> None:
    with pytest.raises(InputError, match=r"loss must be one of cross_entropy, .* or a function"):
        Task("cross-entropy")
    with pytest.raises(InputError, match=r"loss must be a function \(outputs, targets\)"):
        Task(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no loss is known for targets that are missing: give loss="):
        Task().loss(torch.zeros(2), None)
    with pytest.raises(InputError, match="either 'loss' or 'task'"):
        prune(mlp(4, 3), magnitude(0.5), loss="squared_error", task=Task())


# ---- the loss that is given is minimised -------------------------------------------------------------------


def multi_label() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    x = torch.randn(400, 20)
    return mlp(20, 50, 4), (x, (x[:, :4] > 0).float())


def test_retraining_minimises_the_loss_that_is_given() -> None:
    net, (x, y) = multi_label()
    calls = []

    def bce(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        return F.binary_cross_entropy_with_logits(outputs, targets)

    done = prune(net, iterative_magnitude(0.5, steps=1, epochs=30), (x, y), loss=bce)
    found = float(F.binary_cross_entropy_with_logits(net(x), y))
    assert len(calls) > 30
    assert done.history[-1].train_loss == pytest.approx(found, abs=0.02)
    by_hand, _ = multi_label()
    prune(by_hand, magnitude(0.5))
    assert found < float(F.binary_cross_entropy_with_logits(by_hand(x), y))


def test_the_loss_of_the_settings_is_the_trainings_own() -> None:
    net, (x, y) = multi_label()
    chosen = iterative_magnitude(0.5, steps=1, epochs=1, training={"loss": "squared_error"})

    def fails(outputs: Tensor, targets: Tensor) -> Tensor:
        raise AssertionError("the settings name another one")

    assert prune(net, chosen, (x, y), loss=fails).history[-1].train_loss is not None

    class Own(Task):
        def loss(self, outputs: Any, targets: Any) -> Tensor:
            return F.binary_cross_entropy_with_logits(outputs, targets)

    with pytest.raises(InputError, match="Own has a loss of its own: leave 'loss' at 'auto'"):
        prune(net, chosen, (x, y), task=Own())


# ---- what is refused is refused before a weight changes ----------------------------------------------------

CLASSES = torch.arange(9) % 4
REFUSED = {
    "a last batch of one behind a norm": (torch.randn(129, 20), torch.arange(129) % 4),
    "targets of another shape": (torch.randn(9, 20), CLASSES[:, None]),
    "inputs of another type": (torch.randn(9, 20).double(), CLASSES),
    "classes that there are not": (torch.randn(9, 20), CLASSES + 2),
    "no targets": DataLoader(TensorDataset(torch.randn(12, 20)), 4),
    "other arguments": [{"inputs": torch.randn(4, 20)}] * 3,
}
MESSAGES = {
    "a last batch of one behind a norm": "in training with batch_size = 128, 1 inputs",
    "targets of another shape": r"outputs \(9, 4\) and targets \(9, 1\)",
    "inputs of another type": "the network's parameters are torch.float32",
    "classes that there are not": "is none of the network's 4 outputs",
    "no targets": "no loss is known for targets that are missing",
    "other arguments": "unexpected keyword argument 'inputs'",
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_refused_with_the_network_untouched(what: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30), nn.ReLU(), nn.Linear(30, 4))
    before = copied(net)
    with pytest.raises((InputError, DataError, ModelError), match=MESSAGES[what]):
        prune(net, retrained(epochs=1), REFUSED[what])
    assert same(before, copied(net))


# ---- transformers' batches ---------------------------------------------------------------------------------


def test_a_batch_of_transformers_needs_nothing_said() -> None:
    net = bert()
    batches = [padded(sentences(8, seed)) for seed in range(3)]
    done = prune(net, iterative_magnitude(0.5, steps=1, epochs=2), batches)
    assert done.history[-1].train_loss is not None
    assert sum(int((p != 0).sum()) for n, p in net.named_parameters() if n in done.masks) == done.masks.kept
    pair = batches[0]["input_ids"], batches[0]["labels"]
    done = prune(bert(), iterative_magnitude(0.5, steps=1, epochs=1), pair)
    assert done.masks.sparsity == pytest.approx(0.5, abs=1e-3)


def test_its_own_loss_is_the_mean_over_the_tokens_that_count() -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2
    )
    net = transformers.LlamaForCausalLM(config).eval()
    ids = torch.randint(20, (6, 7))
    labels = some_ignored(ids, 4)
    task = Task()
    whole = task.read({"input_ids": ids, "labels": labels}, net)
    expected = float(task.loss(task.run(net, whole), whole.targets))
    total = count = 0.0
    for part in whole.parts(1):
        outputs = task.run(net, part)
        terms = task.terms(outputs, part.targets)
        if terms:
            total += float(task.loss(outputs, part.targets)) * terms
            count += terms
    assert count == int((labels[:, 1:] != -100).sum())
    logits = task.logits(net, whole, "here")
    assert float(task.loss(logits, whole.targets)) == pytest.approx(expected, rel=1e-5)
    assert total / count == pytest.approx(expected, rel=1e-5)


# ---- however the examples are cut into batches -------------------------------------------------------------

BY_DATA = {
    "snip": {}, "gradient": {}, "grasp": {}, "wanda": {}, "ria": {}, "owl_wanda": {},
    "block_fisher": {"block": 7}, "obd": {}, "layer_obs": {"every": 40}, "exact_layer_obs": {},
    "masked_least_squares": {}, "sparsegpt": {}, "alps": {}, "layer_l0": {},
    "oracle_units": {"steps": 2}, "taylor_units": {"steps": 2}, "flap": {}, "minitron": {},
    "llm_pruner": {},
}  # fmt: skip


def ragged(inputs: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Ten batches of different sizes."""
    sizes = [1, 14, 3, 9, 12, 2, 8, 11, 5, len(inputs) - 65]
    return list(zip(inputs.split(sizes), targets.split(sizes), strict=True))


@pytest.mark.parametrize("ignored", [False, True], ids=["all", "ignored"])
@pytest.mark.parametrize("method", list(BY_DATA))
def test_one_batch_or_ten_ragged_ones(method: str, ignored: bool) -> None:
    inputs, targets = blobs(96, dtype=torch.float64)
    targets = some_ignored(targets, 6) if ignored else targets
    chosen = recipe(method, sparsity=0.5, **BY_DATA[method])
    net = mlp(10, 12, 3, dtype=torch.float64)
    one = prune(copy.deepcopy(net), chosen, [(inputs, targets)])
    ten = prune(copy.deepcopy(net), chosen, ragged(inputs, targets))
    assert one.kept == ten.kept
    for name, value in copied(one.model).items():
        torch.testing.assert_close(value, copied(ten.model)[name], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("method", ["snip", "block_fisher", "obd"])
def test_what_is_ignored_is_as_if_it_were_not_there(method: str) -> None:
    inputs, targets = blobs(96, dtype=torch.float64)
    targets = some_ignored(targets, 7)
    there = targets != -100
    net = mlp(10, 12, 3, dtype=torch.float64)
    chosen = recipe(method, sparsity=0.5)
    scores = []
    for data in ((inputs, targets), (inputs[there], targets[there])):
        scores.append(prune(copy.deepcopy(net), chosen, data).masks)
    assert scores[0] == scores[1]


@pytest.mark.parametrize("method", ["wanda", "exact_layer_obs", "masked_least_squares", "sparsegpt", "snip"])
def test_padding_is_no_calibration_input(method: str) -> None:
    """Sequences padded to one length, with other lengths, and each alone, without any padding."""
    examples = sentences(24)
    alone = [{"input_ids": e["input_ids"][None], "labels": e["labels"][None]} for e in examples]
    chosen = Recipe.parse(
        {**recipe(method, sparsity=0.5).to_dict(), "ignore": ["*embeddings*", "classifier", "*pooler*"]}
    )
    net = bert().double()
    masks = [
        prune(copy.deepcopy(net), chosen, data)
        for data in (alone, [padded(examples)], [padded(examples[:9], 12, 5), padded(examples[9:], 9, 7)])
    ]
    for other in masks[1:]:
        different = sum(int((other.masks[n] != masks[0].masks[n]).sum()) for n in other.masks)
        assert different == 0
        for name, value in copied(masks[0].model).items():
            torch.testing.assert_close(value, copied(other.model)[name], rtol=1e-6, atol=1e-8)


def test_rows_without_padding() -> None:
    real = torch.tensor([[True, True, False], [True, True, True]])
    values = torch.arange(48.0).view(2, 3, 8)
    assert without_padding(values, real).shape == (1, 5, 8)
    assert torch.equal(without_padding(values.flatten(0, 1), real), without_padding(values, real)[0])
    assert without_padding(values[:, 0], real) is not None
    assert torch.equal(without_padding(values[:, 0], real), values[:, 0])  # one row for an example: pooled
    assert without_padding(values, None) is values


def test_unlabelled_batches_calibrate() -> None:
    inputs, targets = blobs(32)
    labelled = prune(mlp(10, 8, 3), wanda(0.5), (inputs, targets)).masks
    assert prune(mlp(10, 8, 3), wanda(0.5), DataLoader(TensorDataset(inputs), 8)).masks == labelled
    assert isinstance(as_batches(DataLoader(TensorDataset(inputs), 8)), LoaderBatches)
    assert as_batches(SimpleNamespace(inputs=inputs, targets=targets)).length(8) == 4


@pytest.mark.parametrize("method", ["wanda", "obd", "correlation"])
def test_the_projection_of_attention_is_called_as_a_function(method: str) -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
            self.head = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.encoder(x).mean(1))

    torch.manual_seed(0)
    data = torch.randn(12, 5, 16), torch.arange(12) % 3
    with pytest.raises(DataError, match=r"calls the layer 'encoder\.self_attn\.out_proj' as a function"):
        prune(Attending(), recipe(method, sparsity=0.5), data)


def test_yes_and_no_may_be_whole_numbers_or_booleans() -> None:
    inputs, _ = blobs(40)
    wanted = (inputs[:, :3] > 0).float()
    masks = [
        prune(mlp(10, 8, 3), snip(0.5), (inputs, targets), loss=nn.BCEWithLogitsLoss()).masks
        for targets in (wanted, wanted.long(), wanted.bool())
    ]
    assert masks[0] == masks[1] == masks[2]


class Nine(Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> Any:
        return torch.full((10,), float(index)), index % 3


@pytest.mark.parametrize("data", [DataLoader(Nine(), 4), Nine()], ids=["loader", "dataset"])
def test_a_last_batch_of_one_is_seen_before_it_comes(data: Any) -> None:
    net = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    before = copied(net)
    with pytest.raises(ModelError, match=r"in training with batch_size = 4, 1 inputs of the shape \(10,\)"):
        prune(net, retrained(epochs=1, batch_size=4), data)
    assert same(before, copied(net))
    fits = DataLoader(Nine(), 4, drop_last=True)
    assert prune(net, retrained(epochs=1, batch_size=4), fits).masks.sparsity == 0.5


def test_a_column_that_the_network_does_not_take_is_named() -> None:
    rows = Rows([{"input": torch.zeros(10), "label": 1, "text": "a"}] * 4)
    with pytest.raises(ModelError, match=r"it has no argument 'text': leave that out of the batches"):
        prune(mlp(10, 8, 3), snip(0.5), rows)


def test_what_the_network_takes_is_said_beside_what_it_does_not() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = mlp(10, 8, 3)

        def forward(self, image: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
            return self.layers(image * scale)

    rows = Rows([{"image": torch.zeros(10), "mask": torch.ones(3)}] * 4)
    for method in (snip(0.5), filter_norm(0.5, epochs=1)):  # the second traces the network first
        with pytest.raises(
            ModelError,
            match=r"no argument 'mask'.* arguments are image, scale, targets are called labels, label",
        ):
            prune(Named(), method, rows)


def test_what_a_network_does_to_its_inputs_does_not_reach_the_data() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(10, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.mul_(2))

    inputs, targets = blobs(40)
    before = inputs.clone()
    prune(InPlace(), snip(0.5), (inputs, targets))
    assert torch.equal(inputs, before)


def test_scores_by_the_outputs_of_a_language_model_are_those_of_its_own_loss() -> None:
    """GraSP and OBD take the loss of the logits, block Fisher and SNIP that of the network."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=12, n_embd=8, n_layer=1, n_head=2, n_positions=8)
    net = transformers.GPT2LMHeadModel(config).double().eval()
    ids = torch.randint(12, (6, 5))
    batches = [{"input_ids": ids, "labels": ids}]

    def shifted(outputs: Any, targets: Any) -> Tensor:
        logits = outputs if isinstance(outputs, Tensor) else outputs.logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())

    for method in ("grasp", "obd", "snip", "block_fisher"):
        chosen = Recipe.parse(
            {**recipe(method, sparsity=0.5).to_dict(), "ignore": ["*wte*", "*wpe*", "lm_head"]}
        )
        own = prune(copy.deepcopy(net), chosen, batches).masks
        said = prune(copy.deepcopy(net), chosen, batches, loss=shifted).masks
        assert own == said


def test_an_own_loss_that_is_none_of_the_outputs_is_refused_where_these_are_differentiated() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(10, 3)

        def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
            logits = self.layer(x)
            return {"logits": logits, "loss": None if labels is None else 2 * F.cross_entropy(logits, labels)}

    inputs, targets = blobs(40)
    for method in ("grasp", "obd"):
        with pytest.raises(InputError, match=r"the network's own loss .* is not that of its outputs"):
            prune(Doubled(), recipe(method, sparsity=0.5), [{"x": inputs, "labels": targets}])
    assert prune(Doubled(), snip(0.5), [{"x": inputs, "labels": targets}]).masks.sparsity == 0.5


def test_filters_scored_on_ragged_batches_with_ignored_positions() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 1)).double()
    images = torch.randn(12, 3, 6, 6, dtype=torch.float64)
    classes = some_ignored(torch.randint(5, (12, 6, 6)), 8)
    classes[3] = -100
    parts = [(images[a:b], classes[a:b]) for a, b in ((0, 3), (3, 4), (4, 9), (9, 12))]
    chosen = recipe("taylor_filters", sparsity=0.5, epochs=0)
    one = prune(copy.deepcopy(net), chosen, [(images, classes)])
    assert one.kept == prune(copy.deepcopy(net), chosen, parts).kept


def test_feature_maps_of_taggers_with_ignored_and_padded_positions() -> None:
    """Sentences of one length each, without padding, and all of them padded together: the same scores."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
        num_labels=4, attn_implementation="eager",
    )  # fmt: skip
    net = transformers.BertForTokenClassification(config).double().eval()
    words, tags = torch.randint(1, 50, (9, 7)), torch.randint(4, (9, 7))
    lengths = torch.tensor([7, 5, 5, 3, 7, 6, 2, 2, 6])
    real = torch.arange(7) < lengths[:, None]
    tags[:, 1] = -100
    tags[~real], words[~real] = -100, 0
    padded_together = [{"input_ids": words, "attention_mask": real.long(), "labels": tags}]
    alone = [
        {"input_ids": words[i : i + 1, :length], "labels": tags[i : i + 1, :length]}
        for i, length in enumerate(lengths.tolist())
    ]
    chosen = Recipe.parse(
        {
            "score": "feature_taylor",
            "granularity": "unit",
            "schedule": {"name": "one_shot", "sparsity": 0.4},
        }
    )
    example = {"input_ids": words[:2]}
    found = []
    for data in (alone, padded_together):
        session = Session(copy.deepcopy(net), chosen, data=data, example_inputs=example)
        context = session._work.context(session.plan.steps[0])
        found.append(session._work.scorer.measure(context)[chosen.score.needs[0]])
    for name, score in found[0].items():
        torch.testing.assert_close(found[1][name], score, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("score", ["feature_taylor", {"name": "oracle", "error": "cross_entropy"}])
def test_classes_that_the_loss_ignores_by_a_number_of_its_own_say_nothing_of_units(score: Any) -> None:
    inputs, targets = blobs(60, dtype=torch.float64)
    marked = targets.masked_fill(targets == 0, -100)
    schedule = {"name": "one_shot", "sparsity": 0.5}
    chosen = Recipe.parse({"score": score, "granularity": "unit", "schedule": schedule})
    found = []
    for data, loss in (((inputs, marked), None), ((inputs, targets), nn.CrossEntropyLoss(ignore_index=0))):
        session = Session(mlp(10, 8, 3).double(), chosen, data=data, loss=loss)
        found.append(
            session._work.scorer.measure(session._work.context(session.plan.steps[0]))[chosen.score.needs[0]]
        )
    for name, values in found[0].items():
        torch.testing.assert_close(found[1][name], values, rtol=1e-12, atol=0)


# ---- what a second look found ------------------------------------------------------------------------------


class Pixels(Task):
    """Reads pairs, and calls the network in a way of its own: at ten times the inputs."""

    def read(self, batch: Any, model: nn.Module) -> Batch:
        return Batch({"pixels": batch[0]}, as_batches([batch]).first(1).targets)  # type: ignore[union-attr]

    def run(self, model: nn.Module, batch: Batch) -> Any:
        return model(batch.inputs["pixels"] * self.factor)  # type: ignore[call-overload]

    factor = torch.tensor([10.0, *[1.0] * 9])


@pytest.mark.parametrize(
    "chosen",
    [
        *(recipe(method, sparsity=0.5) for method in ("wanda", "sparsegpt", "layer_obs", "snip", "obd")),
        *(
            Recipe.parse(
                {
                    "score": score,
                    "granularity": "unit",
                    "schedule": {"name": "one_shot", "sparsity": 0.5},
                    "repair": repair,
                }
            )
            for score, repair in (("feature_taylor", "none"), ("magnitude", "least_squares"))
        ),
    ],
    ids=["wanda", "sparsegpt", "layer_obs", "snip", "obd", "feature_taylor", "least_squares"],
)
def test_whatever_looks_at_the_network_runs_it_as_the_task_says(chosen: Recipe) -> None:
    inputs, targets = blobs(48)
    batches = list(zip(inputs.split(16), targets.split(16), strict=True))
    task = Pixels()
    scaled = [(x * task.factor, y) for x, y in batches]
    wanted = prune(mlp(10, 8, 3), chosen, scaled, example_inputs=inputs[:2])
    found = prune(mlp(10, 8, 3), chosen, batches, task=task, example_inputs=inputs[:2])
    assert found.kept == wanted.kept
    assert same(copied(found.model), copied(wanted.model))


def test_norms_are_measured_as_the_task_runs_the_network() -> None:
    inputs, targets = blobs(48)
    task = Pixels()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    chosen = Recipe.parse({"schedule": {"name": "one_shot", "sparsity": 0.5}, "recalibrate": True})
    wanted = prune(copy.deepcopy(net), chosen, [(inputs * task.factor, targets)]).model
    assert same(copied(prune(net, chosen, [(inputs, targets)], task=task).model), copied(wanted))


def test_a_decoder_is_calibrated_on_what_its_labels_say() -> None:
    """A network from sequences to sequences makes its decoder's inputs of the labels."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    net = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0))
    words, labels = torch.randint(1, 50, (8, 7)), torch.randint(1, 50, (8, 5))
    chosen = Recipe.parse({**wanda(0.5).to_dict(), "ignore": ["*shared*", "lm_head", "*embed*"]})
    found = prune(copy.deepcopy(net), chosen, [{"input_ids": words, "labels": labels}])
    shifted = torch.cat([torch.zeros(8, 1, dtype=torch.int64), labels[:, :-1]], 1)
    told = prune(net, chosen, [{"input_ids": words, "decoder_input_ids": shifted}])
    assert found.masks == told.masks


@pytest.mark.parametrize("size", [1.0, 0.001])
def test_class_weights_of_any_size_accumulate_to_the_loss_of_all(size: float) -> None:
    inputs, targets = blobs(64, dtype=torch.float64)
    loss = nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]).double() * size, label_smoothing=0.1)
    net = mlp(10, 8, 3, dtype=torch.float64)
    by_hand = copy.deepcopy(net)
    loop = Loop(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5), accumulate=2)
    batches = list(zip(inputs.split(8), targets.split(8), strict=True))
    train(net, batches, Training(epochs=1), task=Task(loss), loop=loop)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.5)
    for x, y in zip(inputs.split(16), targets.split(16), strict=True):
        optimizer.zero_grad()
        loss(by_hand(x), y).backward()
        optimizer.step()
    for found, wanted in zip(net.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.HuberLoss(), nn.L1Loss(), nn.SmoothL1Loss()])
def test_a_loss_of_numbers_broadcasts_nothing(loss: Any) -> None:
    inputs, _ = blobs(24)
    net = mlp(10, 8, 1)
    before = copied(net)
    with pytest.raises(InputError, match=r"outputs \(24, 1\) and targets \(24,\) differ in shape"):
        prune(net, retrained(epochs=1), (inputs, torch.rand(24)), loss=loss)
    assert same(copied(net), before)


def test_a_loss_without_a_gradient_trains_nothing() -> None:
    net = mlp(10, 8, 3)
    before = copied(net)

    def mistakes(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(1) != targets).float().mean()

    with pytest.raises(InputError, match="the loss has no gradient"):
        prune(net, retrained(epochs=1), blobs(24), loss=mistakes)
    assert same(copied(net), before)


def test_a_class_that_torchs_own_loss_does_not_know_is_named() -> None:
    inputs, targets = blobs(64)
    targets[60], targets[3] = 7, 255
    with pytest.raises(InputError, match="the class number 7 of example 60"):
        prune(
            mlp(10, 8, 3), retrained(epochs=1), (inputs, targets), loss=nn.CrossEntropyLoss(ignore_index=255)
        )


def test_a_subclass_of_a_causal_language_model_counts_the_next_tokens() -> None:
    class Own(transformers.GPT2LMHeadModel):  # type: ignore[misc]
        pass

    net = Own(transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=8))
    batch = Task().read({"input_ids": torch.arange(6)[None], "labels": torch.arange(6)[None]}, net)
    assert Task().terms(Task().run(net, batch), batch.targets) == 5


def test_padding_is_no_position_of_a_feature_map() -> None:
    examples = sentences(24)
    alone = [{"input_ids": e["input_ids"][None], "labels": e["labels"][None]} for e in examples]
    plan = {
        "score": "feature_taylor",
        "granularity": "unit",
        "schedule": {"name": "one_shot", "sparsity": 0.5},
    }
    net = bert().double()
    example = {"input_ids": padded(examples)["input_ids"][:2]}
    found = [
        prune(copy.deepcopy(net), Recipe.parse(plan), data, example_inputs=example).kept
        for data in (alone, [padded(examples)], [padded(examples[:9], 12, 5), padded(examples[9:], 9, 7)])
    ]
    assert found[0] == found[1] == found[2]


def test_a_teacher_softens_classes_that_come_last() -> None:
    """Of logits (examples, positions, classes), as a loop by hand has it."""
    teacher = nn.Linear(4, 5)
    x, student = torch.randn(6, 3, 4), torch.randn(6, 3, 5)
    found = Distillation(teacher, 2.0, 1.0)(
        Batch(x, None), student, torch.randint(5, (6, 3)), torch.zeros(())
    )
    with torch.no_grad():
        soft = (teacher(x) / 2).softmax(-1)
        wanted = (soft * (soft.log() - (student / 2).log_softmax(-1))).sum(-1).mean() * 4
    torch.testing.assert_close(found, wanted)


class InOrder(nn.Module):
    """A network of transformers that is given its inputs in order, as many own loops do."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.network(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


@pytest.mark.parametrize("way", ["pair", "three", "real values"])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_padding_is_none_by_its_place_or_as_real_values(method: str, way: str) -> None:
    """Against each sequence alone, which has no padding and whose network is given no mask."""
    examples = sentences(24)
    together = padded(examples, 12)
    ids, mask, labels = together["input_ids"], together["attention_mask"], together["labels"]
    net = InOrder(bert().double())
    chosen = Recipe.parse(
        {**recipe(method, sparsity=0.5).to_dict(), "ignore": ["*embeddings*", "*classifier", "*pooler*"]}
    )
    alone = [((e["input_ids"][None], None), e["labels"][None]) for e in examples]
    data: Any = {
        "pair": [((ids, mask), labels)],
        "three": DataLoader(TensorDataset(ids, mask, labels), batch_size=7),
        "real values": [({"input_ids": ids, "attention_mask": mask.double()}, labels)],
    }[way]
    assert prune(copy.deepcopy(net), chosen, data).masks == prune(copy.deepcopy(net), chosen, alone).masks


@pytest.mark.parametrize("depth", [1, 2])
def test_a_wrapper_that_hands_on_all_it_is_given_leaves_a_language_model_its_own_loss(depth: int) -> None:
    """The loss was that of each position with its own token."""

    class Wrapper(nn.Module):
        def __init__(self, base_model: nn.Module) -> None:
            super().__init__()
            self.base_model = base_model

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.base_model(*args, **kwargs)

    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=12, n_embd=8, n_layer=1, n_head=2, n_positions=8)
    net = transformers.GPT2LMHeadModel(config).double().eval()
    ids = torch.randint(12, (6, 5))
    wrapped: nn.Module = net
    for _ in range(depth):
        wrapped = Wrapper(wrapped)
    logits = net(input_ids=ids).logits[:, :-1]
    expected = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    task = Task()
    batch = task.read({"input_ids": ids, "labels": ids}, wrapped)
    outputs = task.run(wrapped, batch)
    found = task.loss(outputs, batch.targets)  # transformers works it out in float32
    torch.testing.assert_close(found, expected.float())
    assert task.terms(outputs, batch.targets) == 24


# ---- what a network's own loss compares --------------------------------------------------------------------

_SMALL: dict[str, Any] = {
    "vocab_size": 30,
    "d_model": 8,
    "n_head": 2,
    "n_layer": 1,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "d_inner": 16,
    "emb_dim": 8,
    "n_layers": 1,
    "n_heads": 2,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}


@pytest.mark.parametrize(
    ("kind", "network"),
    [
        ("Bart", "BartForCausalLM"),
        ("MBart", "MBartForCausalLM"),
        ("Pegasus", "PegasusForCausalLM"),
        ("XLNet", "XLNetLMHeadModel"),
        ("XLM", "XLMWithLMHeadModel"),
        ("GPT2", "GPT2LMHeadModel"),
        ("OPT", "OPTForCausalLM"),
    ],
)
def test_terms_are_those_of_the_own_loss_of_language_models(kind: str, network: str) -> None:
    """The own loss is the mean over as many terms as the task says: two batches together weigh as they do."""
    torch.manual_seed(0)
    sizes = _SMALL if kind not in ("GPT2", "OPT") else {"vocab_size": 30}
    sizes = sizes | {"GPT2": {"n_embd": 8, "n_head": 2, "n_layer": 1}}.get(kind, {})
    sizes = sizes | {"OPT": {"hidden_size": 8, "ffn_dim": 8, "num_hidden_layers": 1}}.get(kind, {})
    sizes = sizes | ({"num_attention_heads": 2, "word_embed_proj_dim": 8} if kind == "OPT" else {})
    config = getattr(transformers, f"{kind}Config")(**sizes)
    net = getattr(transformers, network)(config).eval()
    task, ids = Task(), torch.randint(4, 30, (4, 6))
    labels = ids.clone()
    labels[0, 2:], labels[1, 4] = -100, -100
    losses, terms = [], []
    for part in (slice(0, 1), slice(1, 4), slice(0, 4)):
        batch = task.read({"input_ids": ids[part], "labels": labels[part]}, net)
        outputs = task.run(net, batch)
        losses.append(float(task.loss(outputs, batch.targets).detach()))
        terms.append(task.terms(outputs, batch.targets))
    assert terms[0] + terms[1] == terms[2]
    assert (losses[0] * terms[0] + losses[1] * terms[1]) / terms[2] == pytest.approx(losses[2], rel=1e-4)


def test_a_language_model_inside_a_network_with_labels_of_its_own_is_judged_by_the_next_tokens() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=8)
            self.inner = transformers.GPT2LMHeadModel(config)

        def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
            return self.inner(input_ids=input_ids, labels=labels)

    net, ids = Own().eval(), torch.randint(20, (3, 5))
    task = Task()
    batch = task.read({"input_ids": ids, "labels": ids}, net)
    outputs = task.run(net, batch)
    assert task.terms(outputs, batch.targets) == 12
    plain = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(task.loss(outputs, batch.targets), plain)


def test_a_translator_with_a_language_model_as_its_decoder_does_not_shift_its_labels() -> None:
    torch.manual_seed(0)
    small = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = transformers.BertConfig(**small, intermediate_size=8)
    decoder = transformers.BertConfig(**small, intermediate_size=8, is_decoder=True, add_cross_attention=True)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    net = transformers.EncoderDecoderModel(config).eval()
    batch = Task().read({"input_ids": torch.ones(2, 7).long(), "labels": torch.ones(2, 5).long()}, net)
    assert bool((batch.targets == 1).all())


# ---- what is ambiguous, or learns nothing ------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss",
    [F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.binary_cross_entropy_with_logits],
    ids=lambda function: function.__name__,
)
def test_a_function_of_numbers_broadcasts_nothing(loss: Any) -> None:
    net = mlp(10, 8, 1)
    before = copied(net)
    with pytest.raises(InputError, match=r"outputs \(24, 1\) and targets \(24,\) differ in shape"):
        prune(net, retrained(epochs=1), (blobs(24)[0], torch.rand(24)), loss=loss)
    assert same(copied(net), before)


def test_as_many_positions_as_classes_are_not_guessed_at() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(20, 8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.words(x))
            return logits

    words, tags = torch.randint(20, (6, 5)), torch.randint(5, (6, 5))
    net = Tagger()
    with pytest.raises(InputError, match=r"outputs \(6, 5, 5\) may lie along dimension 1 or 2"):
        prune(net, snip(0.5), (words, tags))

    def last(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.transpose(1, 2), targets)

    found = prune(copy.deepcopy(net), snip(0.5), (words, tags), loss=last).masks
    inputs, shorter = words[:, :4], tags[:, :4]  # where nothing is ambiguous, the same is taken by itself
    alike = prune(copy.deepcopy(net), snip(0.5), (inputs, shorter)).masks
    assert prune(copy.deepcopy(net), snip(0.5), (inputs, shorter), loss=last).masks == alike
    assert found.kept == alike.kept


def test_one_output_for_class_numbers_is_refused_with_a_hint() -> None:
    net = mlp(10, 8, 1)
    before = copied(net)
    with pytest.raises(InputError, match="a single class, so that nothing can be learned: for yes and no"):
        prune(net, retrained(epochs=1), (blobs(24)[0], torch.zeros(24).long()))
    assert same(copied(net), before)


# ---- what goes wrong later on ------------------------------------------------------------------------------


def test_a_translator_whose_source_is_padded_to_the_length_of_its_target_is_not_guessed_at() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    net = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0))
    words, labels = torch.randint(1, 50, (8, 6)), torch.randint(1, 50, (8, 6))
    mask = torch.ones_like(words)
    mask[0, 4:] = 0
    chosen = Recipe.parse({**wanda(0.5).to_dict(), "ignore": ["*shared*", "lm_head", "*embed*"]})
    before = copied(net)
    batch = {"input_ids": words, "attention_mask": mask, "labels": labels}
    with pytest.raises(DataError, match="both padded to 6 positions"):
        prune(net, chosen, [batch])
    assert same(copied(net), before)
    longer = {**batch, "labels": F.pad(labels, (0, 1), value=-100)}
    prune(net, chosen, [longer])


@pytest.mark.parametrize("where", ["training", "scores"])
def test_a_later_batch_that_the_network_cannot_take_is_named(where: str) -> None:
    inputs, targets = blobs(48)
    batches = [(inputs[:16], targets[:16]), (inputs[16:32].double(), targets[16:32])]
    net = mlp(10, 8, 3)
    before = copied(net)
    chosen = retrained(epochs=1) if where == "training" else wanda(0.5)
    with pytest.raises(ModelError, match=r"16 inputs of the shape \(10,\) and type torch.float64: Runtime"):
        prune(net, chosen, batches)
    assert same(copied(net), before)


def test_a_batch_of_one_in_the_middle_is_named_where_a_norm_needs_two() -> None:
    net = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    inputs, targets = blobs(48)
    batches = [(inputs[a:b], targets[a:b]) for a, b in ((0, 16), (16, 17), (17, 48))]
    before = copied(net)
    with pytest.raises(ModelError, match=r"trained on a batch of 1 inputs .* more than 1 value per channel"):
        prune(net, retrained(epochs=1), batches)
    assert same(copied(net), before)
    with pytest.raises(ModelError, match="trained on a batch of 1 inputs"):
        train(net, batches, Training(epochs=1))


def test_a_batch_whose_targets_are_all_ignored_is_no_step() -> None:
    inputs, targets = blobs(48)
    nothing = torch.full((16,), -100)
    net, by_hand = mlp(10, 8, 3), mlp(10, 8, 3)
    optimizer = torch.optim.SGD(by_hand.parameters(), 0.1, momentum=0.9)
    for part in (slice(0, 16), slice(16, 32)):
        optimizer.zero_grad()
        F.cross_entropy(by_hand(inputs[part]), targets[part]).backward()
        optimizer.step()
    own = Loop(optimizer=lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9))
    batches = [(inputs[:16], targets[:16]), (inputs[:16], nothing), (inputs[16:32], targets[16:32])]
    train(net, batches, Training(epochs=1), loop=own)
    assert same(copied(net), copied(by_hand))


@pytest.mark.parametrize("method", ["snip", "grasp", "obd", "iterative_magnitude"])
def test_a_loss_without_a_gradient_scores_and_trains_nothing(method: str) -> None:
    def mistakes(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(1) != targets).float().mean()

    net = mlp(10, 8, 3)
    before = copied(net)
    with pytest.raises(InputError, match="the loss has no gradient, so that"):
        prune(net, recipe(method, sparsity=0.5), blobs(24), loss=mistakes)
    assert same(copied(net), before)


def test_a_class_of_losses_is_told_from_one_of_them() -> None:
    with pytest.raises(InputError, match=r"loss is the class MSELoss: give one of it, MSELoss\(\)"):
        Task(nn.MSELoss)


def test_an_empty_mapping_is_no_batch() -> None:
    with pytest.raises(DataError, match="a batch is an empty mapping"):
        prune(mlp(10, 8, 3), snip(0.5), [{}])


@pytest.mark.parametrize("precision", [None, torch.float16])
def test_targets_that_are_all_ignored_train_nothing_and_are_named(precision: torch.dtype | None) -> None:
    net = mlp(10, 8, 3)
    before = copied(net)
    data = blobs(24)[0], torch.full((24,), -100)
    for accumulate in (1, 2):
        loop = Loop(accumulate=accumulate, precision=precision, clip=1.0)
        with pytest.raises(DataError, match=r"all targets of the epoch up to step \d are ignored"):
            train(net, data, Training(epochs=1, batch_size=6), loop=loop)
    assert same(copied(net), before)


def test_metrics_may_be_an_attribute_of_the_class() -> None:
    class Own(Task):
        metrics = MappingProxyType({"ones": lambda outputs, targets: (targets == 1).float().mean()})

    inputs, targets = blobs(24)
    found = metrics(mlp(10, 8, 3), (inputs, targets), task=Own())
    assert found["ones"] == pytest.approx(float((targets == 1).float().mean()))
    assert Task().metrics == {}


def test_metrics_without_names_are_refused() -> None:
    with pytest.raises(InputError, match=r"metrics must be functions by their names, .* not \[1\]"):
        Task(metrics=[1])  # type: ignore[arg-type]


def test_a_subclass_need_not_call_the_init_of_its_base() -> None:
    class Own(Task):
        def __init__(self) -> None:
            self.weight = 2.0

        def loss(self, outputs: Any, targets: Any) -> Tensor:
            return self.weight * F.cross_entropy(outputs, targets)

    inputs, targets = blobs(24)
    net = mlp(10, 8, 3)
    twice = 2 * F.cross_entropy(net.eval()(inputs), targets)
    assert metrics(net, (inputs, targets), task=Own())["loss"] == pytest.approx(float(twice), rel=1e-5)


def test_data_that_are_no_pair_are_told_by_their_types() -> None:
    with pytest.raises(InputError, match=r"a pair of tensors \(inputs, targets\), not \(Tensor, list\)"):
        prune(mlp(10, 8, 3), snip(0.5), (blobs(24)[0], ["a"] * 24))
