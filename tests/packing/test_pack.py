"""Packed files: the same network to the bit, small, and refused in one line where they are anything else."""

import hashlib
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunekit.errors import DataError, InputError, ModelError
from prunekit.graph import prune_groups
from prunekit.masks import Masks
from prunekit.models import ModelSettings, names
from prunekit.packing import PackedFile, pack, unpack, write_packed
from prunekit.packing.bytes import unpacked
from prunekit.packing.costs import costs_of
from prunekit.packing.tensor_codes import Form, Reader, decoded
from prunekit.pruning import prune
from prunekit.runtime import SparseLinear
from prunekit.saving import Architecture, SavedNetwork, load_masks, load_pretrained, save_pretrained
from small_nets import Tied, mlp, recipe

MNIST = (1, 28, 28)
LENET_300_100 = Architecture(ModelSettings.parse("lenet_300_100"), MNIST, 10)
LENET_5 = Architecture(ModelSettings.parse("lenet5"), MNIST, 10)
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.uint8]


def bits(value):
    """The bits of a tensor as bytes, by NumPy alone."""
    value = torch.empty(value.shape, dtype=value.dtype).copy_(value.detach())
    return (
        value.view(torch.uint8).numpy().tobytes() if value.dim() and value.numel() else repr(value.tolist())
    )


def same(one, other):
    """Whether two networks hold the same tensors to the bit."""
    one, other = one.state_dict(), other.state_dict()
    return list(one) == list(other) and all(
        (value.dtype, value.shape) == (other[name].dtype, other[name].shape)
        and bits(value) == bits(other[name])
        for name, value in one.items()
    )


class Holder(nn.Module):
    """A network that is nothing but tensors."""

    def __init__(self, *tensors):
        super().__init__()
        for number, tensor in enumerate(tensors):
            self.register_buffer(f"tensor{number}", tensor)


def shared_values(model, keep=0.1, levels=8):
    """Weights pruned, of few values of half precision each; biases of half precision."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                values = torch.randn(levels, generator=generator).half().float()
                chosen = values[torch.randint(levels, parameter.shape, generator=generator)]
                kept = torch.rand(parameter.shape, generator=generator) < keep
                parameter.copy_(torch.where(kept, chosen, torch.zeros(())))
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator).half().float())
    return model


# ---- to the bit --------------------------------------------------------------------------------------------


@st.composite
def tensors(draw):
    """Any shape and dtype, and values of every kind that is coded in its own way."""
    shape = draw(st.lists(st.integers(0, 7), max_size=4).map(tuple))
    dtype = draw(st.sampled_from(DTYPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = int(np.prod(shape))
    raw = torch.from_numpy(rng.integers(0, 256, size * 8 + 8, np.uint8))
    anything = (raw > 127)[:size] if dtype == torch.bool else raw.view(dtype)[:size]  # NaN of any payload
    kind = draw(st.sampled_from(["anything", "few", "grid", "half", "constant", "zeros"]))
    if kind == "few":
        pool = torch.cat([anything[:3], torch.tensor([0.0, -0.0, 1.0], dtype=torch.float64).to(dtype)])
        anything = pool[torch.from_numpy(rng.integers(0, len(pool), size))]
    elif kind == "grid":
        anything = (torch.from_numpy(rng.integers(-40, 40, size)) * rng.uniform(1e-3, 3)).to(dtype)
    elif kind == "half":
        anything = torch.from_numpy(rng.normal(size=size)).half().to(dtype)
    elif kind == "constant":
        anything = anything[:1].expand(size).clone() if size else anything
    elif kind == "zeros":
        anything = torch.zeros(size, dtype=dtype)
    density = draw(st.sampled_from([0.05, 0.5, 1.0]))
    kept = torch.from_numpy(rng.random(size) < density)
    return torch.where(kept, anything, torch.zeros((), dtype=dtype)).view(shape)


@given(st.lists(tensors(), max_size=4), st.sampled_from(["adaptive", "published"]))
@settings(deadline=None, max_examples=60)
def test_any_tensors_come_back_to_the_bit(tmp_path_factory, found, coding):
    path = tmp_path_factory.mktemp("packed") / "net.pk"
    model = Holder(*found)
    pack(model, path, coding=coding)
    empty = Holder(*(torch.ones_like(each) for each in found))
    assert same(unpack(path, empty, allow_nan=True), model)


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("coding", ["adaptive", "published"])
def test_every_model_comes_back_without_being_given(name, coding, tmp_path):
    shape = (12,) if name == "char_transformer" else (1, 20, 20)
    settings = {"name": "mlp", "hidden": [30, 20]} if name == "mlp" else {"name": name}
    architecture = Architecture(ModelSettings.parse(settings), shape, 7)
    model = shared_values(architecture.build(), keep=0.02)
    path = pack(model, tmp_path / "net.pk", architecture=architecture, coding=coding)
    loaded = unpack(path)
    assert type(loaded) is type(model)
    assert same(loaded, model)
    assert [each.requires_grad for each in loaded.parameters()] == [
        each.requires_grad for each in model.parameters()
    ]


def test_a_shrunk_model_of_known_architecture(tmp_path):
    architecture = Architecture(ModelSettings.parse("resnet20"), (3, 8, 8), 5)
    done = prune_groups(architecture.build(), torch.randn(2, 3, 8, 8), 0.4)
    path = pack(done, tmp_path / "net.pk", architecture=architecture)
    loaded = unpack(path)
    assert same(loaded, done.model)
    assert loaded.stage1[0].conv1.out_channels == done.model.stage1[0].conv1.out_channels < 16
    inputs = torch.randn(3, 3, 8, 8)
    assert torch.equal(loaded.eval()(inputs), done.model.eval()(inputs))


class Written(nn.Module):
    """Sizes that are written in its code, so that it becomes a graph when it shrinks."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 2)

    def forward(self, x):
        return self.second(torch.relu(self.norm(self.first(x))).view(-1, 8, 36).mean(2))


def test_a_graph_needs_no_model(tmp_path):
    inputs = torch.randn(2, 3, 6, 6)
    done = prune_groups(Written().eval(), inputs, 0.5)
    assert done.form == "graph"
    loaded = unpack(pack(done, tmp_path / "net.pk")).eval()
    assert torch.equal(loaded(inputs), done.model.eval()(inputs))
    assert same(loaded, done.model)


def test_tied_weights_are_stored_once_and_tied_again(tmp_path):
    model = Tied(words=50, width=40)
    loaded = unpack(pack(model, tmp_path / "net.pk"), Tied(words=50, width=40))
    assert loaded.out.weight is loaded.embed.weight
    assert same(loaded, model)
    assert (tmp_path / "net.pk").stat().st_size < 4 * (50 * 40 + 40 * 41) * 0.97


def test_masks_come_back_also_where_kept_weights_are_zero(tmp_path):
    result = prune(mlp(20, 30, 5), recipe())
    path = pack(result, tmp_path / "plain.pk")
    assert SavedNetwork(PackedFile(path)).masks() == result.masks
    with torch.no_grad():
        result.model[0].weight[:, :5] = 0  # some of these are kept
    path = pack(result, tmp_path / "zeros.pk")
    assert SavedNetwork(PackedFile(path)).masks() == result.masks
    assert same(unpack(path, mlp(20, 30, 5)), result.model)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("value", [0.0, 1.5])
def test_a_mask_of_a_single_number(kept, value, tmp_path):
    model = nn.Module()
    model.scale = nn.Parameter(torch.tensor(value))
    masks = Masks({"scale": torch.tensor(kept)})
    path = pack(model, tmp_path / "net.pk", masks=masks)
    assert SavedNetwork(PackedFile(path)).masks() == masks
    other = nn.Module()
    other.scale = nn.Parameter(torch.tensor(7.0))
    assert unpack(path, other).scale.item() == value * kept


@pytest.mark.parametrize("form", [Form.TABLE, Form.GRID])
def test_a_single_number_as_a_level(form):
    payload = b"\0\2" + np.array([0.5, 2.5], "<f4").tobytes() if form is Form.TABLE else b"\2\x3f\xf4"
    made = decoded(form, 0, (), torch.float32, Reader(payload))
    assert made(np.array(2, np.int32)).tolist() == 2.5  # the second of the table, or twice 1.25


def test_a_folder_and_a_file_hold_the_same(tmp_path):
    small = Architecture(ModelSettings.parse("lenet5"), (1, 16, 16), 4)
    model = shared_values(small.build())
    masks = Masks({"conv1.weight": model.conv1.weight != 0, "fc1.weight": model.fc1.weight != 0})
    folder = save_pretrained(model, tmp_path / "net", masks=masks, architecture=small)
    write_packed(SavedNetwork(folder).files.contents(), tmp_path / "one.pk")
    pack(model, tmp_path / "two.pk", masks=masks, architecture=small)
    assert (tmp_path / "one.pk").read_bytes() == (tmp_path / "two.pk").read_bytes()
    assert same(load_pretrained(tmp_path / "one.pk"), load_pretrained(folder))
    assert load_masks(tmp_path / "one.pk") == masks


def test_history_is_kept_on_request(tmp_path):
    result = prune(mlp(10, 3), recipe(), evaluate=lambda model: {"bad": float("nan")})
    short, long = pack(result, tmp_path / "a.pk"), pack(result, tmp_path / "b.pk", keep_history=True)
    assert PackedFile(short).description.history == []
    kept = PackedFile(long).description
    assert kept.recipe == result.recipe.to_dict()
    assert kept.history[0]["kept"] == 15


WRITTEN = {
    "adaptive": "b650012318642654093033646b8d6a195881901300023fd0053fb99999a000be2096cda1b2452a16"
    "4d78acdb7fa0ef025c70fd55",
    "published": "b650012318642654093033646b8d8049bd342927b3380354de941495a6d6327033337002000e6360"
    "c0052c1818b6c0495b181b000c3bcbc0c070068a6d19181c0000be8eaabae536244cb9",
}
"""Files of version 1 as they were written once: they must be read for ever."""


@pytest.mark.parametrize("coding", WRITTEN)
def test_files_that_were_written_once_are_read_for_ever(coding, tmp_path):
    path = tmp_path / "old.pk"
    path.write_bytes(bytes.fromhex(WRITTEN[coding]))
    model = unpack(path)
    assert [layer.weight.shape for layer in (model.fc1, model.fc2)] == [(4, 6), (2, 4)]
    first = torch.tensor([[0, 0, 0.5, 0, 0, -0.25]] * 4)
    first[2, 3] = 1.25
    assert torch.equal(model.fc1.weight, first)
    assert torch.equal(model.fc1.bias, torch.tensor([0.1, 0, 0, 2.0]))
    assert not model.fc2.weight.any()
    assert torch.equal(model.fc2.bias, torch.full((2,), -1.5))


# ---- small -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [LENET_300_100, LENET_5])
def test_what_is_neither_levels_nor_values_takes_few_bytes(architecture, tmp_path):
    model = shared_values(architecture.build())
    data = pack(model, tmp_path / "net.pk", architecture=architecture).read_bytes()
    found = unpacked(data, tmp_path / "net.pk")
    values = sum(each.payload for each in found.tensors)
    assert len(data) == found.size
    assert len(data) - values - found.levels <= 30
    biases = sum(each.numel() for each in model.parameters() if each.dim() == 1)
    assert values <= 2 * biases + len(list(model.parameters())) * (2 + 2 * 8)


def test_planes_are_those_of_pixels_and_of_channels(tmp_path):
    for architecture, layer, height in ((LENET_300_100, "fc1.weight", 28), (LENET_5, "fc1.weight", 50)):
        model = shared_values(architecture.build(), keep=0.02)
        weight = dict(model.named_parameters())[layer]
        with torch.no_grad():  # weights lie together in the plane
            weight.view(len(weight), height, -1)[:, height // 4 :] = 0
        path = pack(model, tmp_path / "net.pk", architecture=architecture)
        records = {each.record.name: each.record for each in unpacked(path.read_bytes(), path).tensors}
        assert records[layer].plane == height


# ---- refused -----------------------------------------------------------------------------------------------


@cache
def good_bytes():
    with tempfile.TemporaryDirectory() as folder:
        model = shared_values(LENET_300_100.build(), 0.01)
        return pack(model, Path(folder) / "net.pk", architecture=LENET_300_100).read_bytes()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "net.pk"
    path.write_bytes(good_bytes())
    return path


def resealed(data):
    return data + hashlib.sha256(data).digest()[:8]


def test_damage_is_noticed(file):
    data = file.read_bytes()
    for place in range(3, len(data), 97):
        file.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(DataError, match="is damaged or truncated: its content is not what its checksum"):
            unpack(file)
    for end in (2, 3, 10, 11, 30, len(data) - 1):
        file.write_bytes(data[:end])
        with pytest.raises(DataError, match="is damaged or truncated"):
            unpack(file)


def test_other_files_and_versions(file, tmp_path):
    data = file.read_bytes()
    file.write_bytes(b"PK\3\4" + data)
    with pytest.raises(DataError, match="was not written by prunekit pack"):
        unpack(file)
    file.write_bytes(resealed(data[:2] + b"\7" + data[3:-8]))
    with pytest.raises(DataError, match="is of version 7, this prunekit reads version 1"):
        unpack(file)
    with pytest.raises(DataError, match="cannot read"):
        unpack(tmp_path / "absent.pk")
    with pytest.raises(DataError, match="cannot read"):
        unpack(tmp_path)


def test_more_than_is_allowed(file):
    need = 4 * 266_610
    assert same(unpack(file, max_bytes=need), unpack(file))
    with pytest.raises(DataError, match=f"take 1,066,440, and 1,066,439 are allowed: give max_bytes={need}"):
        unpack(file, max_bytes=need - 1)


@pytest.mark.parametrize("limit", ["9", float("nan"), 1.5, True, -1, 1 << 64])
def test_a_limit_is_a_whole_number(file, limit):
    for read in (unpack, PackedFile, costs_of):
        with pytest.raises(InputError, match=r"max_bytes = .*: a whole number of at least 0"):
            read(file, max_bytes=limit)


@pytest.mark.parametrize("coding", ["adaptive", "published"])
@pytest.mark.parametrize("behind", [b"\0", b"\1", bytes(4), b"another file", bytes(99)])
def test_bytes_behind_the_end_are_refused_also_with_a_checksum(tmp_path, coding, behind):
    path = tmp_path / "net.pk"
    for model in (shared_values(mlp(30, 20, 5)), Holder(torch.zeros(3))):  # with levels, and without
        data = pack(model, path, coding=coding).read_bytes()
        path.write_bytes(resealed(data[:-8] + behind))
        with pytest.raises(DataError, match="damaged: "):
            unpack(path, model)


def test_what_cannot_be_packed(tmp_path):
    path = tmp_path / "net.pk"
    gated = mlp(4, 3)
    nn.utils.parametrizations.weight_norm(gated[0])
    with pytest.raises(ModelError, match="'0' is parametrized: let the training with gates end"):
        pack(gated, path)
    with pytest.raises(InputError, match=r"must be a torch\.nn\.Module, or what prune\(\).* not 'net'"):
        pack("net", path)
    with pytest.raises(ModelError, match="runs sparse on this machine: save the network before"):
        pack(nn.Sequential(SparseLinear(torch.eye(4))), path)
    with pytest.raises(ModelError, match="tensor0 is of float8_e4m3fn: the dtypes of a saved network are"):
        pack(Holder(torch.zeros(3).to(torch.float8_e4m3fn)), path)
    with pytest.raises(ModelError, match="another one"):
        pack(mlp(4, 3), path, architecture=LENET_5)
    with pytest.raises(ModelError, match="shape"):
        pack(LENET_5.build(), path, architecture=Architecture(LENET_5.model, (1, 32, 32), 10))
    with pytest.raises(InputError, match="coding = 'zip': there is no such coding"):
        pack(mlp(4, 3), path, coding="zip")
    with pytest.raises(InputError, match="gap_bits = 13: write 1 to 12"):
        pack(mlp(4, 3), path, coding="published", gap_bits=13)
    with pytest.raises(InputError, match="is a folder: name a file"):
        pack(mlp(4, 3), tmp_path)
    with pytest.raises(InputError, match="path = None: a path is needed"):
        pack(mlp(4, 3), None)
    with pytest.raises(InputError, match="a path is needed"):
        pack(mlp(4, 3), "a\0b")
    with pytest.raises(InputError, match="masks must be Masks, of names and boolean tensors, not"):
        pack(mlp(4, 3), path, masks={"0.weight": torch.ones(3, 4, dtype=torch.bool)})
    with pytest.raises(InputError, match="architecture must be an Architecture, not 'lenet5'"):
        pack(mlp(4, 3), path, architecture="lenet5")
    assert list(tmp_path.iterdir()) == []


def quantized():
    return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: torch.eye(3).to_sparse(), "sparse_coo"),
        (lambda: torch.eye(3).to_sparse_csr(), "sparse_csr"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
        (lambda: torch.ones(3).to_mkldnn(), "_mkldnn"),
        (quantized, "quantized"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of what is new or old in torch
def test_tensors_that_are_not_dense_are_named(tmp_path, make, kind, persistent):
    model = mlp(4, 3)
    model.register_buffer("table", make(), persistent=persistent)
    if not persistent and not model.table.is_floating_point():
        pytest.skip("such buffers are the class's own")
    for save in (pack, save_pretrained):
        with pytest.raises(ModelError, match=f"^table is a {kind} tensor: only dense ones are saved"):
            save(model, tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ["#mask", "#values", "#buffer", "#constant"])
def test_names_that_only_a_file_gives_are_refused(tmp_path, ending):
    model = nn.Linear(3, 2)
    model.register_parameter(f"weight{ending}", nn.Parameter(torch.ones(3)))
    for save in (pack, save_pretrained):
        with pytest.raises(
            ModelError, match=f"^the model names 'weight{ending}': in a file '{ending}' means"
        ):
            save(model, tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


class Odd(nn.Module):
    """Shared tensors, views of one storage, a layer used twice, names of any script, no numbers."""

    def __init__(self):
        super().__init__()
        both = torch.arange(12.0).view(4, 3)
        self.upper, self.lower = nn.Parameter(both[:3]), nn.Parameter(both[1:])
        self.table, self.head = nn.Embedding(4, 3), nn.Linear(3, 4, bias=False)
        self.head.weight = self.table.weight
        self.turned = nn.Linear(4, 3, bias=False)
        self.turned.weight = nn.Parameter(self.table.weight.t())
        self.same = nn.ModuleList([self.head, self.head])
        self.none, self.of_none = nn.Linear(3, 0), nn.Conv2d(0, 2, 1)
        self.filters = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
        self.add_module("größe 层 🦊", nn.Linear(2, 1))
        self.register_buffer("shared", self.table.weight.data)
        self.register_buffer("flipped", torch.tensor([1 + 2j, -0.0 - 0j]).conj())
        self.register_buffer("part", torch.tensor([1 + 2j]).conj().imag)
        self.register_buffer("least", torch.tensor(-(2**63)))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("coding", ["adaptive", "published"])
def test_odd_tensors_come_back_to_the_bit_and_shared_ones_are_shared_again(tmp_path, coding):
    model, fresh = Odd(), Odd()
    for parameter in fresh.parameters():
        parameter.data.zero_()
    again = unpack(pack(model, tmp_path / "net.pk", coding=coding), fresh)
    one, other = (
        {name: value.resolve_conj().resolve_neg() for name, value in each.state_dict().items()}
        for each in (model, again)
    )
    assert list(one) == list(other)
    assert all(bits(value) == bits(other[name]) for name, value in one.items())
    assert again.head.weight is again.table.weight
    assert again.same[1] is again.head


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.LazyLinear(3)), "^0.weight has no shape yet: run the model once"),
        (nn.Linear(2, 3, device="meta"), "^weight is on the meta device and has no values"),
        (nn.BatchNorm1d(3, affine=False, device="meta"), "^running_mean is on the meta device"),
    ],
)
def test_weights_without_values_are_neither_packed_nor_saved(tmp_path, model, message):
    for write in (pack, save_pretrained):
        with pytest.raises(ModelError, match=message):
            write(model, tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_file_that_was_there(file, monkeypatch):
    before = file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        pack(mlp(4, 3), file)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["net.pk"]


def test_another_network_is_named(file, tmp_path):
    with pytest.raises(ModelError, match="is another one: the file lacks"):
        unpack(file, mlp(784, 300, 100, 10))
    own = pack(mlp(4, 3), tmp_path / "own.pk")
    with pytest.raises(InputError, match=r"does not say how its network is built: .* unpack\(file, model\)"):
        unpack(own)
    with pytest.raises(InputError, match=r"the model must be a torch[.]nn[.]Module, not 'mlp'"):
        unpack(own, "mlp")
    broken = mlp(4, 3)
    with torch.no_grad():
        broken[0].bias[1] = torch.nan
    pack(broken, own)
    with pytest.raises(DataError, match=r"0.bias in .*own.pk has values that are NaN"):
        unpack(own, mlp(4, 3))
    assert same(unpack(own, mlp(4, 3), allow_nan=True), broken)
