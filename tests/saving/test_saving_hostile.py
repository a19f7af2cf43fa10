"""Names, dtypes and sizes that strangers put into saved folders: refused before a model is changed."""

import io
import re

import pytest
import torch
from rich.console import Console
from torch import nn

from forged import redescribed, reweighted
from prunekit.cli.inspect import groups_table
from prunekit.errors import DataError, ModelError
from prunekit.graph import groups, parameters_per_unit, prune_groups, size_attributes
from prunekit.measure import count, layer_table
from prunekit.packing import pack, unpack
from prunekit.saving import load_masks, load_pretrained, save_pretrained
from small_nets import copied, mlp, same

EVIL = "l\x1b[31mEVIL\x1b]0;t\x07.weight"


class Headed(nn.Module):
    """Attributes that hold sizes, beside layers that can lose units."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 2)
        self.norm = nn.LayerNorm(8)
        self.heads, self.dim = 4, 0

    def forward(self, x):
        return self.second(self.norm(torch.relu(self.first(x))))


@pytest.fixture
def plain(tmp_path):
    return save_pretrained(mlp(6, 5, 3), tmp_path / "net")


@pytest.fixture
def small(tmp_path):
    torch.manual_seed(0)
    result = prune_groups(Headed(), torch.randn(3, 6), 0.5)
    assert result.form == "modules", result.reason
    return save_pretrained(result, tmp_path / "net")


def as_it_was(model, call, error, message):
    """That a call fails with one line, and that it leaves a model and the objects in it alone."""
    before, sizes, objects = copied(model), size_attributes(model), list(map(id, model.parameters()))
    with pytest.raises(error, match=message) as found:
        call()
    assert str(found.value).isprintable()
    assert same(copied(model), before)
    assert size_attributes(model) == sizes
    assert list(map(id, model.parameters())) == objects


def printed(table):
    console = Console(file=io.StringIO(), width=80, highlight=False)
    console.print(table)
    return console.file.getvalue()


class TestNames:
    @pytest.mark.parametrize("name", [EVIL, "a\nb", "a\x9b2Jb", "a\u202eb"])
    def test_of_tensors(self, plain, name):
        reweighted(plain, lambda tensors: tensors.update({name: torch.ones(2)}))
        model = mlp(6, 5, 3)
        message = r"model\.safetensors names '.*\\.*': a name must be of characters that can be printed"
        as_it_was(model, lambda: load_pretrained(plain, model), DataError, message)

    @pytest.mark.parametrize(
        "change",
        [
            {"pruned": {EVIL: {"shape": [1], "kept": 1}}},
            {"tied": {EVIL: "0.weight"}},
            {"tied": {"0.weight": EVIL}},
            {"sizes": {EVIL: {"dim": 1}}},
            {"sizes": {"0": {EVIL: 1}}},
            {"pruned": {EVIL: {"shape": [1]}}},
        ],
    )
    def test_of_the_description(self, plain, change):
        redescribed(plain, **change)
        for load in (load_pretrained, load_masks):
            with pytest.raises(DataError, match=r"prunekit\.json") as found:
                load(plain)
            assert str(found.value).isprintable()

    def test_a_model_with_such_a_name_is_not_saved(self, tmp_path):
        model = nn.ModuleDict({"a\x1b": nn.Linear(2, 2)})
        with pytest.raises(ModelError, match=r"the model names 'a\\x1b\."):
            save_pretrained(model, tmp_path / "net")
        assert not (tmp_path / "net").exists()

    def test_tables_show_them_escaped_and_read_no_markup(self):
        names = ("a\x1b[31m\x07", "[red]b[/red]", "[/c]")
        model = nn.Sequential()
        for number, name in enumerate(names):
            model.add_module(name, nn.Linear(6, 6))
            model.add_module(f"r{number}", nn.ReLU())
        plan = groups(model, torch.randn(2, 6))
        for table in (
            layer_table(count(model, torch.randn(2, 6))),
            groups_table(plan, parameters_per_unit(model, plan)),
        ):
            text = printed(table)
            assert text.replace("\n", "").isprintable()
            whole = re.sub(r"\s", "", text)
            assert r"a\x1b[31m\x07" in whole
            assert "[red]b[/red]" in whole


def test_the_name_that_safetensors_keeps_for_itself_is_refused(tmp_path):
    model = mlp(6, 5, 3)
    model.register_buffer("__metadata__", torch.zeros(2))
    with pytest.raises(ModelError, match="the model names '__metadata__'"):
        save_pretrained(model, tmp_path / "net")
    assert not (tmp_path / "net").exists()


class TestDtypes:
    @pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16])
    def test_that_no_save_holds(self, plain, dtype, tmp_path):
        reweighted(plain, lambda tensors: tensors.update({"0.weight": tensors["0.weight"].to(dtype)}))
        model = mlp(6, 5, 3)
        message = r"0\.weight is of \w+: the dtypes of a saved network are bool, uint8, .*complex128"
        as_it_was(model, lambda: load_pretrained(plain, model), DataError, message)
        other = mlp(6, 5, 3)
        other.register_buffer("seen", torch.zeros(2, dtype=torch.float32).to(dtype))
        with pytest.raises(ModelError, match="cannot be saved: seen is of"):
            save_pretrained(other, tmp_path / "other")

    def test_of_a_few_bits_which_cannot_be_copied(self, tmp_path):
        other = mlp(6, 5, 3)
        other.register_buffer("codes", torch.empty(2, dtype=torch.int4))
        with pytest.raises(ModelError, match="cannot be saved: codes is of int4: the dtypes"):
            save_pretrained(other, tmp_path / "other")

    def test_that_only_a_packed_file_holds(self, tmp_path):
        model = nn.Linear(2, 2, dtype=torch.complex128)
        with pytest.raises(ModelError, match=r"of complex128, which safetensors has not: .* or .* pack"):
            save_pretrained(model, tmp_path / "net")
        assert not (tmp_path / "net").exists()
        again = unpack(pack(model, tmp_path / "net.pk"), nn.Linear(2, 2, dtype=torch.complex128))
        assert torch.equal(again.weight, model.weight)

    def test_nan_in_imaginary_parts(self, tmp_path):
        model = nn.Linear(2, 2, dtype=torch.complex64)
        with torch.no_grad():
            model.weight[0, 1] = complex(1, float("nan"))
        folder = save_pretrained(model, tmp_path / "net")
        with pytest.raises(DataError, match=r"weight in .* NaN"):
            load_pretrained(folder, nn.Linear(2, 2, dtype=torch.complex64))

    def test_numbers_that_would_lose_parts(self, small, tmp_path):
        reweighted(
            small, lambda tensors: tensors.update({"first.weight": tensors["first.weight"] * (1 + 2j)})
        )
        model = Headed()
        message = r"'first\.weight' is of float32 in the model, of complex64 in .*: it would lose values"
        as_it_was(model, lambda: load_pretrained(small, model), ModelError, message)
        counter = nn.BatchNorm1d(3)
        folder = save_pretrained(counter, tmp_path / "norm")
        reweighted(folder, lambda tensors: tensors.update({"num_batches_tracked": torch.tensor(0.5)}))
        as_it_was(counter, lambda: load_pretrained(folder, counter), ModelError, "of int64 in the model")

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int32])
    def test_numbers_that_fit(self, plain, dtype):
        reweighted(plain, lambda tensors: tensors.update({"0.weight": torch.arange(30).view(5, 6).to(dtype)}))
        model = load_pretrained(plain, mlp(6, 5, 3))
        assert torch.equal(model[0].weight, torch.arange(30.0).view(5, 6))


class TestSurgery:
    def test_is_undone_where_copying_fails(self, small):
        model = Headed()

        def broken(*_):
            raise RuntimeError("a hook\nof the user's")

        handle = model.register_load_state_dict_pre_hook(broken)
        message = "cannot be copied into the model: a hook of the user's"
        as_it_was(model, lambda: load_pretrained(small, model), ModelError, message)
        handle.remove()
        assert load_pretrained(small, model).first.out_features < 8

    def test_of_a_chain(self, tmp_path):
        folder = save_pretrained(mlp(6, 3, 3), tmp_path / "net")
        model = mlp(6, 5, 3)
        model.register_load_state_dict_pre_hook(lambda *_: torch.zeros(2) @ torch.zeros(3))
        as_it_was(model, lambda: load_pretrained(folder, model), ModelError, "cannot be copied into")


class TestSizes:
    @pytest.mark.parametrize(
        "change",
        [
            {"": {"heads": 2**47, "dim": 0}},
            {"": {"heads": 5}},
            {"": {"heads": 0}},
            {"": {"heads": -1}},
            {"": {"dim": 1}},
            {"norm": {"normalized_shape": [0]}},
            {"norm": {"normalized_shape": [9]}},
            {"norm": {"normalized_shape": [4, 1]}},
            {"norm": {"normalized_shape": []}},
        ],
    )
    def test_neither_grow_nor_vanish(self, small, change):
        redescribed(small, sizes=change)
        model = Headed()
        message = "it cannot be made .*: sizes get smaller, and stay at least 1"
        as_it_was(model, lambda: load_pretrained(small, model), ModelError, message)

    def test_of_tensors_do_not_vanish(self, small):
        reweighted(small, lambda tensors: tensors.update({"first.bias": torch.zeros(0)}))
        model = Headed()
        message = r"it cannot be made \(0,\)"
        as_it_was(model, lambda: load_pretrained(small, model), ModelError, message)

    def test_an_axis_that_counts_from_the_end_is_no_size(self, tmp_path):
        model = nn.Sequential(nn.Linear(3, 3), nn.Softmax(dim=-1))
        folder = save_pretrained(model, tmp_path / "net")
        assert load_pretrained(folder, model)[1].dim == -1
