"""Files that other programs read give PyTorch's outputs at any batch size; what cannot be is told."""

import importlib.util

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrizations

from prunekit.cli import run
from prunekit.errors import InputError, ModelError
from prunekit.export import export_onnx, export_program, export_safetensors
from prunekit.graph import GraphModel
from prunekit.graph.capture import captured_in
from prunekit.runtime import SparseLinear

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(each) is None for each in ("onnx", "onnxruntime", "onnxscript")),
    reason="ONNX is an extra: prunekit[export]",
)
FORMS = [export_program, pytest.param(export_onnx, marks=needs_onnx)]
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
    assert done.batches == (2, 3)
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
        (
            parametrizations.weight_norm(nn.Linear(3, 2)),
            torch.ones(2, 3),
            ModelError,
            "the model is parametrized",
        ),
    ],
)
def test_what_is_refused_leaves_no_file(tmp_path, export, model, inputs, error, message):
    with pytest.raises(error, match=message):
        export(model, tmp_path / "net", inputs)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="is a folder"):
        export(nn.Linear(3, 2), tmp_path, torch.ones(2, 3))


def test_the_command(tmp_path, capsys):
    out = tmp_path / "net.h"
    words = ["export", "{name: mlp, hidden: [4]}", "--input-shape", "3", "--out", str(out), "--to"]
    assert run([*words, "c"]) == 0
    assert "net_net_forward" in out.read_text()
    assert run([*words, "d"]) == 2
    assert "there is no such form" in capsys.readouterr().err


@pytest.mark.parametrize("export", FORMS)
def test_an_exported_graph_has_no_batch_axis_of_any_size(tmp_path, export):
    model = small()
    graph = GraphModel(model, [captured_in(model, X, "eval")])
    with pytest.raises(ModelError, match="one size only"):
        export(graph, tmp_path / "net", X)
    assert not list(tmp_path.iterdir())
