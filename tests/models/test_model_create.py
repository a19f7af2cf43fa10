"""create: seeds, torch's generator, users' models. ModelSettings: strict, flat, same after a round trip."""

import json
import random
import sys

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from prunekit.errors import InputError, ModelError, PrunekitError
from prunekit.models import ModelSettings, create, names, without_data
from prunekit.permission import allowing
from prunekit.settings import Settings

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


SETTINGS_MODULE = """
from __future__ import annotations
from torch import nn

def typed(input_shape, width: int, *, sizes: list[int] = [1], scale: float = 1, kind: type = nn.Linear
) -> nn.Linear:
    return nn.Linear(input_shape[0], width)

def untyped(width, depth=(2, 3)) -> nn.Module:
    return nn.Linear(width, 1)

def anything(**settings) -> nn.Module:
    return nn.Linear(1, 1)

def unresolved(width: NoSuchName = 3) -> nn.Module:
    return nn.Linear(width, 1)

def by_position(width, /) -> nn.Module:
    return nn.Linear(width, 1)

number = 3
"""


@pytest.fixture
def settings_user(tmp_path, monkeypatch):
    (tmp_path / "settings_user_models.py").write_text(SETTINGS_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    with allowing(["settings_user_models"]):
        yield "settings_user_models"
    sys.modules.pop("settings_user_models", None)


def test_a_name_alone_means_all_defaults():
    settings = ModelSettings.parse("mlp")
    assert settings == ModelSettings(name="mlp") == ModelSettings.parse({"name": "mlp", "hidden": [100]})
    assert settings.to_dict() == {
        "name": "mlp",
        "hidden": [100],
        "activation": "relu",
        "output_activation": "identity",
    }
    assert settings.own == {"hidden": (100,), "activation": "relu", "output_activation": "identity"}
    assert settings.hidden == (100,)


@pytest.mark.parametrize("name", names())
def test_round_trip_of_every_built_in(name):
    settings = ModelSettings.parse(name)
    assert ModelSettings.parse(json.loads(json.dumps(settings.to_dict()))) == settings
    assert ModelSettings.parse(settings) is settings


@given(
    st.lists(st.integers(1, 10_000), max_size=4),
    st.sampled_from(["relu", "sigmoid", "tanh", "gelu", "leaky_relu", "identity"]),
)
def test_round_trip_through_yaml(hidden, activation):
    settings = ModelSettings(name="mlp", hidden=hidden, activation=activation)
    back = ModelSettings.parse(yaml.safe_load(yaml.safe_dump(settings.to_dict())))
    assert back == settings
    assert back.own == settings.own
    assert (settings.hidden, settings.activation) == (tuple(hidden), activation)
    assert hash(back) == hash(settings)
    assert back.digest() == settings.digest()


def test_as_a_field_of_other_settings():
    class Study(Settings):
        model: ModelSettings

    for form in ("mlp", {"name": "mlp"}, ModelSettings(name="mlp")):
        assert Study(model=form).model == ModelSettings(name="mlp")
    assert Study.parse(Study(model="mlp").to_dict()) == Study(model="mlp")
    with pytest.raises(InputError, match=r"model: .*unknown key 'hiden'"):
        Study(model={"name": "mlp", "hiden": [3]})


def test_frozen():
    settings = ModelSettings(name="mlp")
    with pytest.raises(ValueError, match="frozen"):
        settings.hidden = (3,)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ("lenet", r"no model 'lenet'.*lenet5.*package\.module:function"),
        (
            {"name": "mlp", "hiden": [3]},
            "mlp: unknown key 'hiden'; did you mean 'hidden'. allowed keys are: activation, hidden, ",
        ),
        ({"name": "lenet5", "hidden": [3]}, "lenet5: unknown key 'hidden'; allowed keys are: none"),
        ({"name": "mlp", "outputs": 3}, "unknown key 'outputs'"),
        ({"name": "mlp", "hidden": 3}, "mlp: hidden = 3: .*array"),
        ({"name": "mlp", "hidden": "64"}, "mlp: hidden = '64'"),
        ({"name": "mlp", "hidden": [4, "64"]}, r"mlp: hidden\.1 = '64': .*integer"),
        ({"name": "mlp", "hidden": [64.0]}, r"hidden\.0 = 64\.0"),
        ({"name": "mlp", "hidden": [True]}, r"hidden\.0 = True"),
        ({"name": "mlp", "hidden": [0]}, r"hidden\.0 = 0: .*greater than 0"),
        ({"name": "mlp", "hidden": [float("nan")]}, "not a plain"),
        ({"name": "mlp", "hidden": {1}}, "not a plain"),
        ({"name": "mlp", "activation": "swish"}, "activation = 'swish': .*'relu'"),
        ({"name": "resnet", "depth": 21}, "depth = 21: .*6n \\+ 2"),
        ({"name": "vgg_small", "widths": [[64], []]}, r"widths\.1"),
        ({"hidden": [3]}, "key 'name'"),
        ({"name": 3}, "key 'name'"),
        ({1: "mlp"}, "not a text"),
        (3, "expected a mapping"),
        ("no_such_package.models:f", "cannot import 'no_such_package.models'"),
        ("math:no_such", "has no 'no_such'"),
        ("math:pi", "math:pi' is not called"),
    ],
)
def test_refused(values, words):
    with pytest.raises(InputError, match=words) as caught:
        ModelSettings.parse(values, allow=["no_such_package", "math"])
    assert "\n" not in str(caught.value)


def test_a_users_factory_is_checked_by_its_annotations(settings_user):
    settings = ModelSettings(name=f"{settings_user}:typed", width=3)
    assert settings.to_dict() == {"name": f"{settings_user}:typed", "width": 3, "sizes": [1], "scale": 1.0}
    assert ModelSettings.parse(settings.to_dict()) == settings
    with pytest.raises(InputError, match="the key 'width' is missing"):
        ModelSettings(name=f"{settings_user}:typed")
    with pytest.raises(InputError, match="width = 'wide'"):
        ModelSettings(name=f"{settings_user}:typed", width="wide")
    with pytest.raises(InputError, match="unknown key 'depth'; allowed keys are: kind, scale, sizes, width"):
        ModelSettings(name=f"{settings_user}:typed", width=3, depth=2)


def test_a_users_factory_without_annotations_takes_plain_values(settings_user):
    settings = ModelSettings(name=f"{settings_user}:untyped", width={"a": [1, None]})
    # The default (2, 3) stays with the function, which may need a tuple where YAML would give a list.
    assert settings.to_dict() == {"name": f"{settings_user}:untyped", "width": {"a": [1, None]}}
    with pytest.raises(InputError, match="not a plain"):
        ModelSettings(name=f"{settings_user}:untyped", width=object())
    assert ModelSettings(name=f"{settings_user}:anything", a=1, b="x").own == {"a": 1, "b": "x"}
    assert ModelSettings(name=f"{settings_user}:unresolved", width=4).own == {"width": 4}


def test_a_users_factory_that_cannot_be_called_with_settings(settings_user):
    with pytest.raises(InputError, match="'width' by position only"):
        ModelSettings(name=f"{settings_user}:by_position")
    with pytest.raises(InputError, match="is not called"):
        ModelSettings(name=f"{settings_user}:number")


@pytest.mark.parametrize("name", names())
def test_without_data_a_network_has_the_same_tensors_but_for_their_values(name):
    shape = (
        (8,)
        if name == "char_transformer"
        else (1, 28, 28)
        if name.startswith(("lenet", "maxout"))
        else (3, 32, 32)
    )
    whole = create(name, shape, 10, seed=0)
    before = torch.get_rng_state()
    with without_data():
        empty = create(name, shape, 10, seed=0)
    assert torch.equal(before, torch.get_rng_state())
    for tensors in (dict(whole.named_parameters()), dict(whole.named_buffers())):
        for key, value in tensors.items():
            own = dict([*empty.named_parameters(), *empty.named_buffers()])[key]
            assert own.is_meta
            assert (own.shape, own.dtype) == (value.shape, value.dtype)
