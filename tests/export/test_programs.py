"""Files that other programs read give PyTorch's outputs at any batch size; what cannot be is told."""

import importlib.util
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrizations

from prunekit.cli import run
from prunekit.errors import InputError, ModelError
from prunekit.export import export_executorch, export_onnx, export_program, export_safetensors
from prunekit.export.common import compared
from prunekit.graph import GraphModel, VerificationError, any_size, prune_groups
from prunekit.graph.capture import captured, captured_in
from prunekit.masks import Masks
from prunekit.models import ModelSettings, create
from prunekit.parts.regularize import L0
from prunekit.runtime import SparseLinear
from prunekit.saving import Architecture, save_pretrained
from zoo import made

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(each) is None for each in ("onnx", "onnxruntime", "onnxscript")),
    reason="ONNX is an extra: prunekit[export]",
)
needs_executorch = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="ExecuTorch is an extra: prunekit[executorch]"
)
FORMS = [
    export_program,
    pytest.param(export_onnx, marks=needs_onnx),
]
X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def small():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 4)]
    return nn.Sequential(*layers).eval()


@needs_onnx
def test_onnx_runtime_at_a_batch_size_that_was_not_compared(tmp_path):
    import onnxruntime

    model, more = small(), torch.randn(7, 1, 8, 8)
    done = export_onnx(model, tmp_path / "net.onnx", X)
    assert done.batches == (1, 2, 3)
    session = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": more.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(more).detach(), rtol=0, atol=1e-5)


def test_a_program_is_loaded_at_another_batch_size(tmp_path):
    model, more = small(), torch.randn(7, 1, 8, 8)
    done = export_program(model, tmp_path / "net.pt2", X[:1])
    found = torch.export.load(done.path).module()(more)
    torch.testing.assert_close(found, model(more), rtol=0, atol=1e-6)


def test_safetensors_hold_the_state_as_it_is(tmp_path):
    model = small().half()
    again = load_file(export_safetensors(model, tmp_path / "net.safetensors").path)
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("computed", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_weights_that_are_computed_are_exported_as_they_are_computed(tmp_path, computed):
    model = nn.Sequential(computed(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 2)).eval()
    x, names = torch.randn(4, 3), [*model.state_dict()]
    expected, weight = model(x), model[0].weight
    loaded = torch.export.load(export_program(model, tmp_path / "net.pt2", x).path).module()
    torch.testing.assert_close(loaded(x), expected, rtol=0, atol=1e-6)
    assert torch.equal(
        load_file(export_safetensors(model, tmp_path / "net.safetensors").path)["0.weight"], weight
    )
    assert [*model.state_dict()] == names
    assert torch.equal(model(x), expected)
    assert torch.equal(model[0].weight, weight)


def gated():
    """A network whose hidden units have gates."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    L0(strength=0.1).attach(model, torch.optim.SGD(model.parameters(), lr=0.1), None, torch.ones(2, 3))
    return model


class DependsOnData(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x


@pytest.mark.parametrize("export", FORMS)
@pytest.mark.parametrize(
    ("model", "inputs", "error", "message"),
    [
        (nn.Linear(3, 2), None, InputError, "give a tensor"),
        (DependsOnData(), torch.ones(2, 3), ModelError, "cannot export the model"),
        (nn.Sequential(SparseLinear(torch.eye(3))), torch.ones(2, 3), ModelError, "'0' runs sparse"),
        (gated(), torch.ones(2, 3), ModelError, "the network has gates: .* remove"),
    ],
)
def test_what_is_refused_leaves_no_file(tmp_path, export, model, inputs, error, message):
    with pytest.raises(error, match=message):
        export(model, tmp_path / "net", inputs)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="is a folder"):
        export(nn.Linear(3, 2), tmp_path, torch.ones(2, 3))


@pytest.mark.parametrize(
    ("buffer", "message"),
    [
        ({"kept": torch.eye(3).to_sparse()}, "'kept' of the state is sparse"),
        ({"__metadata__": torch.ones(2)}, "safetensors do not hold this state"),
        ({"kept": torch.ones(2, device="meta")}, "kept is on the meta device"),
        ({"kept": nn.UninitializedBuffer()}, "kept has no shape yet: run the model once"),
    ],
)
def test_states_that_safetensors_do_not_hold(tmp_path, buffer, message):
    model = small()
    for name, value in buffer.items():
        model.register_buffer(name, value)
    path = tmp_path / "net.safetensors"
    path.write_text("as it was")
    with pytest.raises(ModelError, match=message):
        export_safetensors(model, path)
    assert path.read_text() == "as it was"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("export", "examples"), [(export_program, [torch.ones(2, 2)]), (export_safetensors, [])]
)
def test_weights_that_have_no_values_yet_are_refused(tmp_path, export, examples):
    for model, message in (
        (nn.Sequential(nn.LazyLinear(3)), "0.weight has no shape yet"),
        (nn.Linear(2, 3, device="meta"), "weight is on the meta device"),
    ):
        with pytest.raises(ModelError, match=message):
            export(model, tmp_path / "net", *examples)
    assert not any(tmp_path.iterdir())


class OtherwiseForOne(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return 2 * y if len(x) == 1 else y


@pytest.mark.parametrize("export", FORMS)
def test_what_is_otherwise_for_one_example_is_refused(tmp_path, export):
    with pytest.raises(VerificationError, match="at a batch size of 1 differs from PyTorch by"):
        export(OtherwiseForOne(3, 2), tmp_path / "net", torch.ones(2, 3))
    assert not any(tmp_path.iterdir())


class ForSeveral(nn.Linear):
    def forward(self, x):
        if len(x) == 1:
            raise ValueError("there is nothing to compare")
        return super().forward(x)


def test_what_is_for_several_examples_only_is_compared_for_those(tmp_path):
    done = export_program(ForSeveral(3, 2), tmp_path / "net", torch.ones(2, 3))
    assert done.batches == (2, 3)


def test_the_command(tmp_path, capsys):
    out = tmp_path / "net.h"
    words = ["export", "{name: mlp, hidden: [4]}", "--input-shape", "3", "--out", str(out), "--to"]
    assert run([*words, "c"]) == 0
    assert "net_net_forward" in out.read_text()
    assert run([*words, "d"]) == 2
    assert "there is no such form" in capsys.readouterr().err


@needs_onnx
def test_a_graph_that_shrinking_left_has_a_batch_axis_of_any_size(tmp_path):
    import onnxruntime

    model, inputs = made("vit")
    result = prune_groups(model, inputs, 0.5, form="graph")
    assert isinstance(result.model, GraphModel)
    small = result.model.eval()
    done = export_onnx(small, tmp_path / "net.onnx", inputs)
    more = torch.randn(4, *inputs.shape[1:])
    (found,) = onnxruntime.InferenceSession(str(done.path)).run(None, {"input": more.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), small(more).detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("export", FORMS)
def test_a_graph_of_one_batch_size_is_refused(tmp_path, export):
    model = nn.Sequential(nn.Linear(3, 2), nn.Softmax(0))
    graph = GraphModel(model, [captured_in(model, torch.ones(2, 3), "eval")])
    with pytest.raises(ModelError, match="an exported graph for batches of 2 only"):
        export(graph, tmp_path / "net", torch.ones(2, 3))
    assert not list(tmp_path.iterdir())


class Several(nn.Module):
    """Tokens and a mask by name, and weights without examples; gives numbers and whole numbers."""

    def __init__(self):
        super().__init__()
        self.embed, self.last = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, tokens, mask, weights=None, flag=True):
        x = self.embed(tokens) * mask.unsqueeze(-1)
        if weights is not None:
            x = x * weights
        out = self.last(x)
        return {"scores": out.masked_fill(mask.unsqueeze(-1) == 0, -torch.inf), "best": (out.argmax(-1), x)}


TOKENS = {"tokens": torch.arange(12).reshape(2, 6) % 9, "mask": (torch.arange(12) % 4 > 0).reshape(2, 6)}


@needs_onnx
@pytest.mark.parametrize("weights", [{}, {"weights": torch.arange(4.0)}, {"flag": False}])
def test_several_inputs_and_nested_outputs(tmp_path, weights):
    import onnxruntime

    torch.manual_seed(0)
    model = Several()
    inputs = {**TOKENS, **weights}
    done = export_onnx(model, tmp_path / "net.onnx", inputs)
    assert done.batches == (1, 2, 3)
    more = {"tokens": torch.arange(30).reshape(5, 6) % 9, "mask": torch.ones(5, 6, dtype=torch.bool)}
    fed = {
        name: value.numpy() for name, value in {**inputs, **more}.items() if isinstance(value, torch.Tensor)
    }
    found = onnxruntime.InferenceSession(str(done.path)).run(None, fed)
    wanted = model(**{**inputs, **more})
    for each, expected in zip(found, [wanted["scores"], *wanted["best"]], strict=True):
        torch.testing.assert_close(torch.from_numpy(each), expected.detach(), rtol=0, atol=1e-5)


@needs_onnx
@pytest.mark.parametrize("name", ["hf-bert", "hf-t5"])
def test_transformers_of_named_tokens(tmp_path, name):
    pytest.importorskip("transformers")
    import onnxruntime

    model, inputs = made(name)
    done = export_onnx(model, tmp_path / "net.onnx", inputs)
    session = onnxruntime.InferenceSession(str(done.path))
    assert {each.name for each in session.get_inputs()} == inputs.keys()
    more = {key: torch.cat([value, value.flip(0), value])[:5] for key, value in inputs.items()}
    (found, *_) = session.run(["logits"], {key: value.numpy() for key, value in more.items()})
    torch.testing.assert_close(torch.from_numpy(found), model(**more).logits.detach(), rtol=0, atol=1e-5)


class OfTwo(nn.Module):
    def forward(self, x):
        return x.reshape(2, 4)


@pytest.mark.parametrize("export", FORMS)
def test_code_for_batches_of_one_size_is_told_from_wrong_examples(tmp_path, export):
    with pytest.raises(ModelError, match="takes 2 examples, and not 3: its code is written for"):
        export(OfTwo(), tmp_path / "net", torch.ones(2, 4))
    with pytest.raises(ModelError, match="fails on the example inputs: RuntimeError: mat1 and mat2"):
        export(nn.Linear(3, 2), tmp_path / "net", torch.ones(2, 4))
    with pytest.raises(InputError, match="example_inputs: give a tensor"):
        export(nn.Linear(3, 2), tmp_path / "net", {"x": 1.0})
    assert not list(tmp_path.iterdir())


def test_differences_are_found_in_any_output():
    real, whole = torch.tensor([1.0, -torch.inf]), torch.tensor([3, 4])
    assert compared([real, whole], [real.clone(), whole.clone()], "it") == 0
    assert compared([real + 1e-6, whole], [real, whole], "it") == pytest.approx(1e-6, rel=0.2)
    for found, message in [
        ([real + 1e-4, whole], "differs from PyTorch by 1.0e-04"),
        ([torch.tensor([1.0, torch.nan]), whole], "differs"),
        ([torch.tensor([1.0, 5.0]), whole], "differs"),
        ([real, whole + 1], "other whole numbers"),
        ([real], r"it gives \[2\], PyTorch \[\[2\], \[2\]\]"),
    ]:
        with pytest.raises(VerificationError, match=message):
            compared(found, [real, whole], "it")


@needs_executorch
def test_executorch_at_batch_sizes_up_to_the_largest(tmp_path):
    from executorch.runtime import Runtime

    model, more = small(), torch.randn(6, 1, 8, 8)
    done = export_executorch(model, tmp_path / "net.pte", X, max_batch=6)
    assert done.batches == (1, 2, 3)
    method = Runtime.get().load_program(done.path.read_bytes()).load_method("forward")
    torch.testing.assert_close(method.execute([more])[0], model(more).detach(), rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="max_batch must be at least 3"):
        export_executorch(model, tmp_path / "other.pte", X, max_batch=2)
    assert not (tmp_path / "other.pte").exists()


@pytest.mark.skipif(importlib.util.find_spec("executorch") is not None, reason="the package is there")
def test_executorch_that_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match=r"pip install 'prunekit\[executorch\]'"):
        export_executorch(small(), tmp_path / "net.pte", X)


def test_the_command_on_folders_of_masked_and_shrunk_networks(tmp_path):
    settings = {"name": "mlp", "hidden": [4]}
    masked = create(settings, (3,), 2, seed=0)
    mask = torch.rand(4, 3, generator=torch.Generator().manual_seed(0)) > 0.5
    save_pretrained(
        masked,
        tmp_path / "masked",
        masks=Masks({name: mask for name, each in masked.named_parameters() if each.shape == (4, 3)}),
        architecture=Architecture(ModelSettings.parse(settings), (3,), 2),
    )
    network = small()
    graph = any_size(GraphModel(network, captured(network, X)), network, X, partial(captured, network)).eval()
    save_pretrained(graph, tmp_path / "graph")
    with torch.no_grad():
        next(each for each in masked.parameters() if each.shape == (4, 3)).mul_(mask)
    for folder, model, more in (("masked", masked.eval(), torch.randn(5, 3)), ("graph", network, X[:1])):
        out = tmp_path / f"{folder}.pt2"
        assert run(["export", str(tmp_path / folder), "--to", "torch", "--out", str(out)]) == 0
        torch.testing.assert_close(torch.export.load(out).module()(more), model(more), rtol=0, atol=1e-6)
