"""create: seeds, the global generator, and models of the user's own."""

import random
import sys

import numpy as np
import pytest
import torch

from prunekit.errors import InputError, ModelError, PrunekitError
from prunekit.models import ModelSettings, create, names
from prunekit.permission import allowing

USER_MODULE = """
import torch
from torch import nn
from prunekit.errors import ModelError

class Net(nn.Module):
    def __init__(self, width: int = 2):
        super().__init__()
        self.layer = nn.Linear(width, 1)

def both(outputs, input_shape, *, bias: bool = True) -> nn.Linear:
    return nn.Linear(input_shape[0], outputs, bias=bias)

def neither(width: int) -> nn.Module:
    return nn.Linear(width, width)

def greedy(**settings) -> nn.Module:
    assert not settings, settings
    return nn.Linear(1, 1)

def none() -> nn.Module:
    return None

def fails() -> nn.Module:
    raise RuntimeError("no room")

def refuses() -> nn.Module:
    raise ModelError("not on Sundays")
"""


@pytest.fixture
def user(tmp_path, monkeypatch):
    (tmp_path / "create_user_models.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    with allowing(["create_user_models"]):
        yield "create_user_models"
    sys.modules.pop("create_user_models", None)


def same(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", sorted(set(names()) - {"char_transformer"}))
def test_the_seed_alone_decides(name):
    first = create(name, (3, 16, 16), 4, seed=5)
    torch.rand(3)
    assert same(first, create(name, (3, 16, 16), 4, seed=5))
    assert not same(first, create(name, (3, 16, 16), 4, seed=6))


def test_the_global_generators_are_left_alone():
    torch.manual_seed(11)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    create("lenet5", (1, 28, 28), 10, seed=0)
    with pytest.raises(InputError):
        create("lenet5", (1, 2, 2), 10, seed=0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert np.array_equal(before[2], np.random.get_state()[1])


def test_the_seed_gives_what_torch_gives_after_manual_seed():
    model = create("mlp", (4,), 2, seed=9)
    torch.manual_seed(9)
    again = create("mlp", (4,), 2, seed=0)
    again.reset_parameters()
    assert same(model, again)


def test_settings_reach_the_factory():
    for settings in (
        {"name": "mlp", "hidden": [7, 6], "activation": "tanh"},
        ModelSettings(name="mlp", hidden=(7, 6), activation="tanh"),
    ):
        model = create(settings, (5,), 2, seed=0)
        assert model.fc2.weight.shape == (6, 7)
        assert isinstance(model.act1, torch.nn.Tanh)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, "1", True, None])
def test_refused_seeds(seed):
    with pytest.raises(InputError, match="seed"):
        create("mlp", (4,), 2, seed=seed)


@pytest.mark.parametrize(("shape", "outputs"), [((), 2), ((0,), 2), ((4,), 0), ((4,), 1.5)])
def test_refused_sizes(user, shape, outputs):
    for name in ("mlp", f"{user}:both"):
        with pytest.raises(InputError):
            create(name, shape, outputs, seed=0)


def test_a_users_factory_gets_what_its_signature_names(user):
    assert create(f"{user}:both", (5,), 3, seed=0).weight.shape == (3, 5)
    assert create({"name": f"{user}:both", "bias": False}, (5,), 3, seed=0).bias is None
    assert create({"name": f"{user}:neither", "width": 4}, (5,), 3, seed=0).weight.shape == (4, 4)
    assert create({"name": f"{user}:Net", "width": 6}, (5,), 3, seed=0).layer.in_features == 6
    assert create(f"{user}:greedy", (5,), 3, seed=0).weight.shape == (1, 1)
    assert same(create(f"{user}:both", (5,), 3, seed=1), create(f"{user}:both", (5,), 3, seed=1))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("none", "None, which is no torch.nn.Module"),
        ("fails", "RuntimeError: no room"),
        ("refuses", "Sundays"),
    ],
)
def test_a_users_factory_that_goes_wrong(user, function, words):
    with pytest.raises(ModelError, match=words) as caught:
        create(f"{user}:{function}", (5,), 3, seed=0)
    assert isinstance(caught.value, PrunekitError)
    assert "\n" not in str(caught.value)
