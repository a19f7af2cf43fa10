"""Saved folders of strangers: nothing in them runs code, reaches memory, or takes more than a limit."""

import json
import tracemalloc

import pytest
import safetensors.torch
import torch
from torch import nn

from forged import redescribed, regraphed, resealed
from prunekit.digests import read_tensors, write_tensors
from prunekit.errors import DataError, InputError, ModelError
from prunekit.graph import prune_groups
from prunekit.models import ModelSettings
from prunekit.saving import Architecture, check_saved, load_masks, load_pretrained, save_pretrained
from small_nets import copied, mlp, same


class Written(nn.Module):
    """Sizes that are written in its code, so that it becomes a graph when it shrinks."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)).view(-1, 8))


@pytest.fixture
def graph(tmp_path):
    torch.manual_seed(0)
    result = prune_groups(Written(), torch.randn(3, 6), 0.5)
    assert result.form == "graph"
    return save_pretrained(result, tmp_path / "net")


@pytest.fixture
def known(tmp_path):
    architecture = Architecture(ModelSettings.parse({"name": "mlp", "hidden": [5, 4]}), (6,), 3)
    return save_pretrained(architecture.build(), tmp_path / "net", architecture=architecture)


def smuggled(call, *args, **kwargs):
    """A change that puts a call behind all others, and returns what it gives."""

    def change(values):
        graph = values["graphs"][0]
        user = next(place for place, entry in enumerate(graph["inputs"]) if entry[0] == "user")
        filled = json.loads(json.dumps([args, kwargs]).replace('"x"', json.dumps({"node": user})))
        graph["nodes"].append({"call": call, "args": filled[0], "kwargs": filled[1]})
        graph["returns"]["tuple"][0] = {"node": len(graph["nodes"]) - 1}

    return change


class TestCalls:
    @pytest.mark.parametrize(
        "change",
        [
            # strided views without bounds: 8 GB of what lies behind an input of 72 bytes
            smuggled("_reshape_alias.default", "x", [2**31], [1]),
            smuggled("as_strided.default", "x", [2**31], [1]),
            smuggled("set_.source_Tensor", "x", "x"),
            smuggled("resize_.default", "x", [2**20]),
            # writes into arguments, memory as it was found, random numbers of any count, shapes that follow
            # from values
            smuggled("add_.Tensor", "x", 1),
            smuggled("add.out", "x", 1, out="x"),
            smuggled("empty.memory_format", [10]),
            smuggled("rand.default", [10]),
            smuggled("nonzero.default", "x"),
            # sizes that PyTorch does not hold against the tensor
            smuggled("native_group_norm.default", "x", None, None, 10**6, 6, 1, 1, 1e-5),
            # a whole number in the place of a dtype ends in a segmentation fault
            smuggled("to.dtype", "x", -1),
            smuggled("to.dtype", "x", 1000),
            smuggled("_to_copy.default", "x", dtype=2**31 - 1),
            # graphs inside of graphs, under other modes
            smuggled("wrap_with_set_grad_enabled", False, "x"),
            smuggled("wrap_with_autocast", "cpu", None, True, None, "x"),
        ],
    )
    def test_what_no_file_may_call(self, graph, change):
        regraphed(graph, change)
        with pytest.raises(DataError, match=r"graph\.json does not fit prunekit\.json: "):
            load_pretrained(graph)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (smuggled("zeros.default", [2**40]), r"zeros\.default: size = 1099511627776 is not in"),
            (
                smuggled("zeros.default", [2**30, 2**30]),
                r"zeros\.default returns a tensor of .* bytes",
            ),
            (smuggled("repeat.default", "x", [2**20, 2**20]), r"repeat\.default returns a tensor"),
            (smuggled("expand.default", "x", [2**30, 3, 6]), r"expand\.default returns a tensor"),
            (smuggled("arange.default", 10**15), r"arange\.default returns a tensor"),
            (smuggled("pad.default", "x", [2**31 - 1, 0]), r"pad\.default returns a tensor"),
            (smuggled("tensor_split.sections", "x", 10**6), "returns more than 10,000 tensors"),
            (smuggled("matmul.default", "x", "x"), r"node \d+, matmul\.default: "),
            (smuggled("upsample_nearest1d.vec", "x", None, [1e-45]), "scale_factors = 1e-45 is not in"),
        ],
    )
    def test_limits_and_shapes_are_checked_before_the_first_call(self, graph, change, message):
        regraphed(graph, change)
        tracemalloc.start()
        with pytest.raises(DataError, match=message):
            load_pretrained(graph)
        assert tracemalloc.get_traced_memory()[1] < 50e6
        tracemalloc.stop()

    @pytest.mark.parametrize("part", ["parameters", "buffers"])
    @pytest.mark.parametrize("value", [7, True, 0.5, None, ["a"], [3], "text"])
    def test_what_should_be_a_mapping_of_names_and_is_none(self, graph, part, value):
        regraphed(graph, lambda values: values.update({part: value}))
        for load in (load_pretrained, check_saved):
            with pytest.raises(DataError, match=f"graph.json was not written by prunekit: '{part}' is no"):
                load(graph)

    def test_the_limit_is_of_all_that_is_held_at_one_time_and_can_be_raised(self, graph):
        regraphed(graph, smuggled("zeros.default", [1000, 1000]))
        with pytest.raises(DataError, match=r"zeros\.default returns a tensor of 4,000,000 bytes"):
            load_pretrained(graph, max_bytes=10**6)
        assert load_pretrained(graph, max_bytes=5 * 10**6)(torch.randn(3, 6)).shape == (1000, 1000)
        for limit in ("9", float("nan")):
            with pytest.raises(InputError, match=r"max_bytes = .*: a whole number of at least 0"):
                load_pretrained(graph, max_bytes=limit)

        def twice(values):  # each of the three fits, but not all
            smuggled("ones.default", [1000, 1000])(values)
            nodes = values["graphs"][0]["nodes"]
            args = [{"node": len(nodes) - 2}, {"node": len(nodes) - 1}]
            nodes.append({"call": "mul.Tensor", "args": args, "kwargs": {}})
            values["graphs"][0]["returns"]["tuple"][0] = {"node": len(nodes) - 1}

        regraphed(graph, twice)
        with pytest.raises(DataError, match="its tensors take 12,000,"):
            load_pretrained(graph, max_bytes=5 * 10**6)

    def test_a_graph_of_too_many_nodes(self, graph, monkeypatch):
        monkeypatch.setattr("prunekit.saving.graph_files.MAX_NODES", 3)
        with pytest.raises(DataError, match="nodes; at most 3 are allowed"):
            load_pretrained(graph)


def with_constants(constants, *calls):
    """A change that puts calls behind all others, which read constants by name and each other as "@"."""

    def change(values):
        graph = values["graphs"][0]
        places = {}
        for name in constants:
            graph["inputs"].append(["constant", name])
            graph["nodes"].append({"input": True})
            places[name] = {"node": len(graph["nodes"]) - 1}
        for call, args, kwargs in calls:
            text = json.dumps([args, kwargs]).replace('"@"', json.dumps({"node": len(graph["nodes"]) - 1}))
            for name, place in places.items():
                text = text.replace(f'"{name}"', json.dumps(place))
            filled = json.loads(text)
            graph["nodes"].append({"call": call, "args": filled[0], "kwargs": filled[1]})
        graph["returns"]["tuple"][0] = {"node": len(graph["nodes"]) - 1}

    return change


def forged(folder, constants, *calls):
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    more = {f"0.{name}#constant": value for name, value in constants.items()}
    write_tensors(path, {**tensors, **more})
    regraphed(folder, with_constants(constants, *calls))


class TestKernels:
    """Calls that fit without data, but whose kernels read past tensors, end the process or take far more."""

    @pytest.mark.parametrize("shape", [(1,), (4,), (1, 4), (4, 2)])
    def test_norms_of_another_shape(self, graph, shape):
        call = ("_weight_norm.default", ["v", "g", 0], {})
        forged(graph, {"v": torch.ones(4, 3), "g": torch.ones(shape)}, call)
        with pytest.raises(DataError, match="norms of shape"):
            load_pretrained(graph)

    def test_norms_that_fit(self, graph):
        forged(
            graph,
            {"v": torch.ones(4, 3), "g": torch.full((4, 1), 2.0)},
            ("_weight_norm.default", ["v", "g", 0], {}),
        )
        found = load_pretrained(graph)(torch.randn(3, 6))
        assert torch.allclose(found, torch.full((4, 3), 2 / 3**0.5))

    @pytest.mark.parametrize(
        "changed",
        [{"w": (8, 5)}, {"u": (8, 3)}, {"b": (1,)}, {"h": (1, 1, 2)}, {"h": (2, 2, 2)}, {"b": (8, 1)}],
    )
    def test_recurrent_layers_of_other_shapes(self, graph, changed):
        shapes = {"q": (3, 2, 4), "h": (1, 2, 2), "w": (8, 4), "u": (8, 2), "b": (8,), **changed}
        call = ("lstm.input", ["q", ["h", "h"], ["w", "u", "b", "b"], True, 1, 0.0, False, False, False], {})
        forged(
            graph,
            {name: torch.ones(shape) for name, shape in shapes.items()},
            call,
            ("getitem", ["@", 0], {}),
        )
        with pytest.raises(DataError, match=r"lstm\.input: the (states|parameters of layer 0) do not fit"):
            load_pretrained(graph)

    def test_a_recurrent_layer_that_fits(self, graph):
        torch.manual_seed(0)
        layer = nn.LSTM(4, 2, num_layers=2, bidirectional=True)
        x, state = torch.randn(3, 2, 4), torch.zeros(4, 2, 2)
        names = [f"p{number}" for number in range(len(layer._flat_weights))]
        constants = {name: value.detach() for name, value in zip(names, layer._flat_weights, strict=True)}
        call = ("lstm.input", ["q", ["h", "h"], names, True, 2, 0.0, False, True, False], {})
        forged(graph, {**constants, "q": x, "h": state}, call, ("getitem", ["@", 0], {}))
        assert torch.allclose(load_pretrained(graph)(torch.randn(3, 6)), layer(x)[0])

    @pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
    def test_a_division_that_ends_the_process(self, graph, dtype):
        constants = {
            "n": torch.full((16,), torch.iinfo(dtype).min, dtype=dtype),
            "d": torch.full((16,), -1, dtype=dtype),
        }
        forged(graph, constants, ("div.Tensor_mode", ["n", "d"], {"rounding_mode": "trunc"}))
        with pytest.raises(DataError, match="whole numbers may not be divided with rounding_mode = 'trunc'"):
            load_pretrained(graph)

    def test_constants_of_the_same_name(self, graph):
        """What is checked is what is run: "a.b" and "a_b" would become the same buffer."""
        constants = {"a.b": torch.zeros(1), "a_b": torch.zeros(2000)}
        forged(graph, constants, ("outer.default", ["a.b", "a.b"], {}), ("outer.default", ["a_b", "a.b"], {}))
        with pytest.raises(DataError, match="two of its constants have the same name"):
            load_pretrained(graph)

    @pytest.mark.parametrize("name", ["graphs", "_graph0.weight", "_constant0_c", "__deepcopy__", "run.x"])
    def test_names_that_are_taken(self, graph, name):
        path = graph / "model.safetensors"
        write_tensors(path, {**safetensors.torch.load_file(path), name: torch.zeros(2)})
        regraphed(graph, lambda values: values["parameters"].update({name: True}))
        with pytest.raises(DataError, match=r"no parameter or buffer may be called|does not fit"):
            load_pretrained(graph)

    @pytest.mark.parametrize(
        "calls",
        [
            [("einsum.default", ["i,j,k,i,j,k->", ["x1"] * 6], {})],
            [("matmul.default", ["x2", "x3"], {})],
            [
                ("expand.default", ["x4", [2**25]], {}),
                ("sum.default", ["@"], {"dtype": {"dtype": "float64"}}),
            ],
            [("expand.default", ["x4", [2**25]], {}), ("eq.Tensor", ["@", "x5"], {})],
            [("conv2d.default", ["x6", "x7"], {})],
            [("scaled_dot_product_attention.default", ["x8", "x8", "x8", None, 0.1], {})],
        ],
    )
    def test_what_a_call_takes_on_its_way(self, graph, calls):
        constants = {
            "x1": torch.zeros(2000),
            "x2": torch.zeros(100, 1, 1, 2000),
            "x3": torch.zeros(1, 100, 2000, 1),
            "x4": torch.zeros(1, dtype=torch.int8),
            "x5": torch.zeros(1, dtype=torch.float64),
            "x6": torch.zeros(1, 8, 64, 64, dtype=torch.float64),
            "x7": torch.zeros(8, 8, 32, 32, dtype=torch.float64),
            "x8": torch.zeros(1, 1, 6000, 1, dtype=torch.float64),
        }
        forged(graph, constants, *calls)
        with pytest.raises(DataError, match="bytes on its way, allowed are 67,108,864"):
            load_pretrained(graph, max_bytes=1 << 26)

    def test_calls_that_never_end(self, graph):
        regraphed(graph, smuggled("diff.default", "x", 10**8))
        with pytest.raises(DataError, match="n = 100000000 is not in"):
            load_pretrained(graph)

    def test_more_results_than_a_graph_may_have(self, graph):
        forged(
            graph, {"c": torch.zeros(10_000)}, *[("unbind.int", ["c"], {})] * 11, ("relu.default", ["c"], {})
        )
        with pytest.raises(DataError, match="its calls return more than 100,000 tensors"):
            load_pretrained(graph)

    def test_outputs_that_are_not_nested_as_they_are_said_to_be(self, graph):
        regraphed(graph, lambda values: values["graphs"][0].update(gives={"tuple": ["*", "*"]}))
        with pytest.raises(DataError, match="not nested as its signature says"):
            load_pretrained(graph)


class TestSizes:
    """Declared sizes of terabytes are refused without the memory; a save is as large as its file."""

    @pytest.mark.parametrize("hidden", [[10**12], [2**31 - 1, 4], [5, 10**9], [10**6] * 50, [5] * 100_000])
    def test_of_layers(self, known, hidden):
        about = {"model": {"name": "mlp", "hidden": hidden}, "input_shape": [6], "outputs": 3}
        redescribed(known, architecture=about)
        with pytest.raises(DataError, match=r"prunekit\.json"):
            load_pretrained(known)

    @pytest.mark.parametrize(
        "about",
        [
            {"model": {"name": "resnet", "depth": 10**9 * 6 + 2}, "input_shape": [3, 32, 32], "outputs": 3},
            {"model": {"name": "mlp"}, "input_shape": [2**31 - 1] * 8, "outputs": 2**31 - 1},
            {"model": {"name": "char_transformer", "layers": 10**9}, "input_shape": [64], "outputs": 3},
            {
                "model": {"name": "vgg_small", "widths": [[10**9] * 99] * 99},
                "input_shape": [3, 8, 8],
                "outputs": 3,
            },
        ],
    )
    def test_of_other_models(self, known, about):
        redescribed(known, architecture=about)
        with pytest.raises(DataError, match=r"prunekit\.json"):
            load_pretrained(known)

    def test_of_masks(self, known):
        redescribed(known, pruned={"layers.0.weight": {"shape": [2**47, 2**47], "kept": 1}})
        for load in (load_pretrained, load_masks):
            with pytest.raises(DataError, match="does not fit"):
                load(known)

    @pytest.mark.parametrize(("key", "value"), [("shape", [2**40, 2**40]), ("dtype", "a\nb"), ("dtype", 1)])
    def test_of_the_header(self, known, key, value):
        path = known / "model.safetensors"
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        entry = next(value for key, value in header.items() if key != "__metadata__")
        entry[key] = value
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
        with pytest.raises(DataError, match=r"^[^\n]*model\.safetensors is damaged[^\n]*$"):
            load_pretrained(known)


class TestDigests:
    def test_every_number_of_the_description_counts(self, known):
        path = known / "prunekit.json"
        path.write_text(path.read_text().replace('"outputs": 3', '"outputs": 4'))
        for load in (load_pretrained, load_masks, check_saved):
            with pytest.raises(DataError, match=r"prunekit\.json is damaged or was changed"):
                load(known)

    def test_weights_of_another_save(self, known, tmp_path):
        other = save_pretrained(mlp(6, 5, 4, 3), tmp_path / "other")
        (known / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
        with pytest.raises(DataError, match="is another file than the one that belongs here"):
            load_pretrained(known)

    def test_what_is_loaded_does_not_lie_in_the_file(self, known):
        """Tensors of safetensors do: what wrote to the file later would change the network, or end it."""
        model = load_pretrained(known)
        before = copied(model)
        path = known / "model.safetensors"
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            file.write(bytes(100))
            file.truncate()
        assert same(copied(model), before)

    @pytest.mark.parametrize("mapped", [False, True])
    def test_tensors_of_every_kind_keep_their_digest(self, tmp_path, mapped):
        tensors = {
            "half": torch.randn(3, dtype=torch.bfloat16),
            "none": torch.zeros(0, 4),
            "one": torch.tensor(3),
            "flags": torch.tensor([[True, False]]),
            "other order": torch.randn(4, 3).t(),
            "complex": torch.randn(2, dtype=torch.complex64),
        }
        path = tmp_path / "tensors"
        digest = write_tensors(path, tensors, {"about": "é"})
        found, metadata = read_tensors(path, digest, mapped=mapped)
        assert metadata == {"about": "é"}
        assert all(torch.equal(found[name], value) for name, value in tensors.items())
        with pytest.raises(DataError, match="is another file"):
            read_tensors(path, "0" * 64)


class TestNumbers:
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_nan_is_refused_unless_asked_for(self, tmp_path, value):
        model = mlp(6, 5, 3)
        with torch.no_grad():
            model[0].weight[2, 3] = value
        folder = save_pretrained(model, tmp_path / "net")
        if value == value:
            assert same(copied(load_pretrained(folder, mlp(6, 5, 3))), copied(model))
            return
        fresh = mlp(6, 5, 3)
        before = copied(fresh)
        with pytest.raises(DataError, match=r"0\.weight in .* NaN: give allow_nan=True"):
            load_pretrained(folder, fresh)
        assert same(copied(fresh), before)
        assert load_pretrained(folder, fresh, allow_nan=True)[0].weight.isnan().sum() == 1


class TestBombs:
    @pytest.mark.parametrize("content", ["[" * 10**5 + "]" * 10**5, '{"a":' * 10**5 + "1" + "}" * 10**5])
    @pytest.mark.parametrize("file", ["prunekit.json", "graph.json"])
    def test_deep_files(self, graph, file, content):
        (graph / file).write_text(content)
        with pytest.raises(DataError, match=rf"{file} is nested more than 64 deep"):
            load_pretrained(graph)

    def test_large_files(self, graph, monkeypatch):
        monkeypatch.setattr("prunekit.files.MAX_BYTES", 100)
        with pytest.raises(DataError, match=r"prunekit\.json is larger than"):
            load_pretrained(graph)

    def test_numbers_of_any_length(self, graph):
        path = graph / "prunekit.json"
        path.write_text(path.read_text().replace('"format": 2', '"format": ' + "9" * 10**5))
        with pytest.raises(DataError, match=r"prunekit\.json"):
            load_pretrained(graph)

    def test_a_file_of_weights_that_is_no_mapping_of_tensors(self, known):
        safetensors.torch.save_file({}, known / "model.safetensors")
        resealed(known)
        with pytest.raises(ModelError, match="is another one: the file lacks"):
            load_pretrained(known)
