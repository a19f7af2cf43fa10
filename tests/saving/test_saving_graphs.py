"""Networks that are exported graphs: saved and loaded without the class, without a pickle, without code."""

import copy
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn
from torch.utils import _pytree as pytree

from forged import regraphed
from prunekit.errors import DataError, InputError, ModelError
from prunekit.graph import GraphModel, prune_groups
from prunekit.graph.capture import captured
from prunekit.graph.proof_run import tensors_in
from prunekit.saving import load_masks, load_pretrained, save_pretrained
from prunekit.saving.graph_values import (
    Outputs,
    layout_from_json,
    layout_to_json,
    named_operator,
    operator_name,
    value_from_json,
    value_to_json,
)
from small_nets import copied, same
from zoo import made

FRESH = """
import sys, torch
torch.set_num_threads(1)
from prunekit import load_pretrained
inputs = torch.load("inputs.pt", weights_only=True)
found = {}
for name, given in inputs.items():
    model = load_pretrained(name)
    call = (lambda: model(**given)) if isinstance(given, dict) else (lambda: model(given))
    model.eval()
    out = call()
    out = out if isinstance(out, torch.Tensor) else out.logits
    model.train()
    trained = call()
    (trained if isinstance(trained, torch.Tensor) else trained["logits"]).sum().backward()
    found[name] = [out.detach(), sum(p.grad is not None for p in model.parameters())]
torch.save(found, "outputs.pt")
print([name for name in sys.modules if name.startswith(("zoo", "transformers"))])
"""


def graph(name):
    model, inputs = made(name)
    result = prune_groups(model, inputs, 0.5)
    small = GraphModel(result.model, captured(result.model, inputs))
    return replace(result, model=small, form="graph"), inputs


def called(model, inputs):
    return tensors_in(model(**inputs) if isinstance(inputs, dict) else model(inputs))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Res2Net, Swin and GPT-2 in folders of these names; not to be changed."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("graphs")
    results = {name: graph(name) for name in ("res2net", "swin", "hf-gpt2")}
    for name, (result, _) in results.items():
        save_pretrained(result, folder / name)
    return folder, results


def test_without_the_users_class_in_a_fresh_process(saved):
    folder, results = saved
    torch.save({name: inputs for name, (_, inputs) in results.items()}, folder / "inputs.pt")
    command = [sys.executable, "-c", FRESH]
    done = subprocess.run(command, cwd=folder, check=True, timeout=100, capture_output=True, text=True)
    assert done.stdout == "[]\n"
    found = torch.load(folder / "outputs.pt", weights_only=True)
    for name, (result, inputs) in results.items():
        expected = called(result.model.eval(), inputs)[0]
        assert torch.equal(found[name][0], expected), name
        assert found[name][1] == len(list(result.model.parameters())), name


@pytest.mark.parametrize("name", ["res2net", "swin", "hf-gpt2"])
def test_values_names_ties_and_both_modes(saved, name):
    folder, results = saved
    result, inputs = results[name]
    again = load_pretrained(folder / name)
    assert isinstance(again, GraphModel)
    assert same(copied(again), copied(result.model))
    for kind in ("named_parameters", "named_buffers"):
        first = [key for key, _ in getattr(again, kind)() if not key.startswith("_constant")]
        second = [key for key, _ in getattr(result.model, kind)() if not key.startswith("_constant")]
        assert sorted(first) == sorted(second)
    for training in (False, True):
        outputs = []
        for model in (copy.deepcopy(again), copy.deepcopy(result.model)):
            torch.manual_seed(0)
            model.train(training)
            outputs.append([*called(model, inputs), *model.state_dict().values()])
        assert all(torch.equal(one, other) for one, other in zip(*outputs, strict=True))


def test_saved_again_it_is_the_same(saved, tmp_path):
    folder, _ = saved
    save_pretrained(load_pretrained(folder / "swin"), tmp_path / "again")
    for file in ("graph.json", "model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (folder / "swin" / file).read_bytes()
    assert len(load_masks(tmp_path / "again")) == 0


@pytest.mark.parametrize("name", ["swin", "hf-gpt2"])
def test_a_loaded_graph_is_pruned_again_as_the_saved_one_is(saved, name):
    folder, results = saved
    result, inputs = results[name]
    sizes = []
    for model in (load_pretrained(folder / name), copy.deepcopy(result.model)):
        again = prune_groups(model, inputs, 0.3)
        assert again.deviation.accepted
        sizes.append((again.parameters_after, {key: p.shape for key, p in again.model.named_parameters()}))
    assert sizes[0] == sizes[1]
    assert sizes[0][0] < result.parameters_after


def test_the_files_hold_no_pickle_and_the_weights_once(saved):
    folder, results = saved
    for name, (result, _) in results.items():
        files = {path.name: path.read_bytes() for path in (folder / name).iterdir()}
        assert set(files) == {"model.safetensors", "prunekit.json", "graph.json"}
        assert json.loads(files["graph.json"])
        own = 4 * result.parameters_after + sum(b.numel() * 8 for b in result.model.buffers())
        assert len(files["model.safetensors"]) <= own + 150 * len(result.model.state_dict()) + 4000


def test_a_frozen_parameter_stays_frozen(tmp_path):
    model, inputs = made("res2net")
    name = next(name for name, _ in model.named_parameters())
    model.get_parameter(name).requires_grad_(False)
    result = GraphModel(model, captured(model, inputs))
    save_pretrained(result, tmp_path / "net")
    found = {key: p.requires_grad for key, p in load_pretrained(tmp_path / "net").named_parameters()}
    assert [key for key, trained in found.items() if not trained] == [name]


def test_a_model_beside_a_graph_is_refused(saved):
    with pytest.raises(InputError, match="takes the place of the model: give none"):
        load_pretrained(saved[0] / "swin", made("swin")[0])


def test_other_inputs_are_refused(saved):
    model = load_pretrained(saved[0] / "swin")
    with pytest.raises(InputError, match=r"exported with, \(2, 3, 16, 16\), .* \(1, 3, 16, 16\)"):
        model(torch.zeros(1, 3, 16, 16))
    with pytest.raises(InputError, match=r"each of the arguments \[.x.\] once"):
        model(torch.zeros(2, 3, 16, 16), torch.zeros(1))


class Custom(nn.Module):
    """Holds an operator of its own library, behind sizes that are written in its code."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = self.first(x).view(-1, 8)
        return self.second(x) * torch.ops.prunekit_test.twice(x).mean()


def test_an_operator_of_another_library_is_not_saved(tmp_path):
    library = torch.library.Library("prunekit_test", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: 2 * x, "CompositeExplicitAutograd")
    library.impl("twice", lambda x: torch.empty_like(x), "Meta")
    from prunekit.graph.capture import captured

    model = Custom()
    found = captured(model, torch.randn(3, 6))
    whole = GraphModel(model, found)
    with pytest.raises(ModelError, match=r"it holds 'prunekit_test\.twice.*', which a file"):
        save_pretrained(whole, tmp_path / "net")
    assert not list(tmp_path.iterdir())


# ---- damaged and foreign files -------------------------------------------------------------------


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of Res2Net's folder that may be changed."""
    source = saved[0] / "res2net"
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("file", ["graph.json", "model.safetensors", "prunekit.json"])
def test_a_truncated_file(folder, file):
    content = (folder / file).read_bytes()
    for length in (0, 1, len(content) // 2, len(content) - 2):
        (folder / file).write_bytes(content[:length])
        with pytest.raises(DataError, match=file.replace(".", r"\.")):
            load_pretrained(folder)


def test_a_missing_or_foreign_file(folder):
    (folder / "graph.json").unlink()
    with pytest.raises(DataError, match=r"lacks graph\.json"):
        load_pretrained(folder)
    (folder / "graph.json").write_bytes(b"\x80\x04pickle")
    with pytest.raises(DataError, match=r"graph\.json is damaged"):
        load_pretrained(folder)


def node(values, kind, place=0):
    return [each for each in values["graphs"][0]["nodes"] if kind in each][place]


def injected(values):
    node(values, "call")["kwargs"] = {"a=__import__('os').system('touch pwned'), b": 1}


@pytest.mark.parametrize(
    "change",
    [
        lambda values: node(values, "call").update(call="from_file.default", args=["/etc/passwd"]),
        lambda values: node(values, "call").update(call="__class__.__mro__"),
        lambda values: node(values, "call").update(call="conv2d.nothing"),
        lambda values: node(values, "call").update(call=7),
        lambda values: node(values, "call").update(args=[{"node": 10**6}]),
        lambda values: node(values, "call").update(args=[{"node": -1}]),
        lambda values: node(values, "call").update(args=[{"code": "1"}]),
        lambda values: node(values, "call").update(args=[{"dtype": "save"}]),
        lambda values: node(values, "call").pop("args"),
        injected,
        lambda values: values["graphs"][0].update(nodes=[]),
        lambda values: values["graphs"][0].update(nodes=7),
        lambda values: values["graphs"][0].update(returns=None),
        lambda values: values["graphs"][0].update(takes={"os.system": ["*"]}),
        lambda values: values["graphs"][0].update(takes={"tuple": ["*"]}),
        lambda values: values["graphs"][0]["inputs"].pop(),
        lambda values: values["graphs"][0]["inputs"][0].__setitem__(0, "file"),
        lambda values: values["graphs"][0]["inputs"][0].__setitem__(1, "nothing.weight"),
        lambda values: values.update(graphs=[]),
        lambda values: values.pop("parameters"),
        lambda values: values.update(parameters={"forward": True}),
        lambda values: values["parameters"].update({"training": True}),
        lambda values: values["parameters"].popitem(),
    ],
)
def test_a_tampered_graph_is_refused_with_one_error(folder, monkeypatch, change):
    monkeypatch.chdir(folder)
    regraphed(folder, change)
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(DataError, match=r"graph\.json (does not fit|was not written)"):
        load_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_names_in_the_file_never_become_code(folder):
    """Also those of nodes: they are made anew."""
    load = load_pretrained(folder)
    code = load.graphs[0].module.code
    assert "input_0" in code
    assert "p_" not in code.split("return")[0].split("\n")[1]


# ---- the parts -----------------------------------------------------------------------------------

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.sampled_from([torch.float32, torch.bool, torch.int64, torch.strided, torch.preserve_format])
    | st.builds(slice, st.none() | st.integers(0, 9), st.none() | st.integers(0, 9))
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple)
)


@given(VALUES)
def test_values_go_through_json_and_back(value):
    again = value_from_json(json.loads(json.dumps(value_to_json(value, {}))), [])
    assert again == value
    assert type(again) is type(value)


def test_nodes_devices_and_what_is_no_number():
    nodes = [fx.Graph().placeholder("x")]
    assert value_from_json(value_to_json([nodes[0]], {nodes[0]: 0}), nodes) == [nodes[0]]
    assert value_from_json(value_to_json(torch.device("cuda:1"), {}), []) == torch.device("cpu")
    nan = value_from_json(value_to_json(float("nan"), {}), [])
    assert nan != nan
    with pytest.raises(ModelError, match="it holds a Tensor"):
        value_to_json(torch.zeros(1), {})


NESTED = st.recursive(
    st.just(0),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
)


@given(NESTED)
def test_layouts_go_through_json_and_back(nested):
    spec = pytree.tree_flatten(nested)[1]
    assert layout_from_json(json.loads(json.dumps(layout_to_json(spec)))) == spec


def test_named_outputs():
    outputs = Outputs(logits=1, hidden=(2, 3))
    assert (outputs.logits, outputs["hidden"], outputs[0], outputs[1]) == (1, (2, 3), 1, (2, 3))
    with pytest.raises(AttributeError):
        _ = outputs.loss
    values, spec = pytree.tree_flatten(outputs)
    assert pytree.tree_unflatten(values, spec) == outputs
    with pytest.raises(ModelError, match="takes or returns a set cannot be saved"):
        layout_to_json(pytree.tree_flatten(torch.Size([1]))[1].__class__(set, 1, [spec]))


@pytest.mark.parametrize(
    "name", ["relu.default", "add.Tensor", "conv2d.default", "getitem", "batch_norm_training"]
)
def test_operators_by_name(name):
    assert operator_name(named_operator(name)) == name


@pytest.mark.parametrize(
    "name",
    [
        "from_file.default",
        "set_.source_Storage",
        "as_strided.default",
        "resize_.default",
        "_print.default",
        "record_stream.default",
        "_reshape_alias.default",
        "relu_.default",
        "add.out",
        "empty.memory_format",
        "randn.default",
        "nonzero.default",
        "native_group_norm.default",
        "wrap_with_autocast",
        "__init__.default",
        "add",
        "os.system",
        "",
    ],
)
def test_operators_that_no_file_may_name(name):
    with pytest.raises(ValueError, match="no operator that a saved graph may hold"):
        named_operator(name)
