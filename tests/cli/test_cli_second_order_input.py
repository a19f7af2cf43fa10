"""Bad input to the methods that look at data, on the command line: one clear error, or a sound result."""

import importlib
import json
import math
import re

import pytest

from prunekit import load_pretrained

NETS = """
import torch
from torch import nn


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


class Idle(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.idle = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.used(x)


class Odd(nn.Module):
    def __init__(self, number):
        super().__init__()
        self.first, self.number, self.last = nn.Linear(4, 4), number, nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.first(x).relu() * self.number)


def idle() -> nn.Module:
    return Idle()


def nan() -> nn.Module:
    return Odd(float("nan"))


def infinite() -> nn.Module:
    return Odd(float("inf"))


class Cast(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.body, self.dtype = small().to(dtype), dtype

    def forward(self, x):
        return self.body(x.to(self.dtype)).float()


def float16() -> nn.Module:
    return small().half()


def float16_inside() -> nn.Module:
    return Cast(torch.float16)


def bfloat16_inside() -> nn.Module:
    return Cast(torch.bfloat16)


class Doubled(nn.Module):
    def forward(self, x):
        return torch.cat([x, x], 1)


def singular() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Doubled(), nn.Linear(8, 3))
"""
METHODS = (
    "exact_layer_obs",
    "layer_obs",
    "masked_least_squares",
    "obd",
    "wanda",
    "sparsegpt",
    "alps",
    "correlation",
)
REPAIRED = ("exact_layer_obs", "layer_obs", "masked_least_squares", "sparsegpt", "alps")


@pytest.fixture(autouse=True)
def nets(tmp_path):
    (tmp_path / "nets_of_second_order.py").write_text(NETS)


def prune(net, settings):
    return f"prune nets_of_second_order:{net} --data iris --out pruned {settings}"


def refused(command, net, settings, message, folder):
    complaint = command(prune(net, settings)).complaint()
    assert re.search(message, complaint), complaint
    assert not (folder / "pruned").exists()


@pytest.mark.parametrize("method", METHODS)
class TestEachMethod:
    def test_a_layer_that_never_ran_is_named(self, command, tmp_path, method):
        refused(command, "idle", f"--method {method}", "the layer 'idle' never ran on the calibr", tmp_path)

    @pytest.mark.parametrize("net", ["nan", "infinite"])
    def test_activations_that_are_not_finite(self, command, tmp_path, method, net):
        message = "the inputs of the layer 'last' are not finite|derivati.* not finite|no finite second deriv"
        refused(command, net, f"--method {method}", message, tmp_path)

    def test_a_network_in_half_precision_wants_data_that_fits(self, command, tmp_path, method):
        message = r"float16 cannot take examples of the shape \(4,\): .*dtype"
        refused(command, "float16", f"--method {method}", message, tmp_path)

    @pytest.mark.parametrize("net", ["float16_inside", "bfloat16_inside"])
    def test_half_precision_inside_is_taken_in_float32(self, command, tmp_path, method, net):
        short = "--set epochs=0.1" if method == "correlation" else ""
        ended = command(prune(net, f"--method {method} --set sparsity=0.5 {short} --json"))
        assert ended.code == 0, ended.err
        step = json.loads(ended.out)["steps"][-1]
        assert step["sparsity"] == pytest.approx(0.5, abs=0.02)
        assert math.isfinite(step["test_loss"])


@pytest.mark.parametrize("method", REPAIRED)
class TestEachRepair:
    def test_a_singular_matrix_without_damping_names_its_layer(self, command, tmp_path, method):
        message = "1.weight: the Hessian of 8 inputs is singular: some inputs are combinations of others"
        refused(command, "singular", f"--method {method} --set damp=0", message, tmp_path)

    def test_with_damping_the_result_is_sound(self, command, method):
        ended = command(prune("singular", f"--method {method} --set sparsity=0.3 --json"))
        assert ended.code == 0, ended.err
        found = json.loads(ended.out)
        assert math.isfinite(found["steps"][-1]["test_loss"])


def test_what_an_input_said_twice_is_made_up_for(command):
    ended = command(prune("singular", "--method exact_layer_obs --set sparsity=0.5 --set damp=1e-6 --json"))
    found = json.loads(ended.out)  # half of the inputs repeat the other half
    assert found["steps"][-1]["test_loss"] == pytest.approx(found["before"]["test_loss"], abs=1e-3)


def recipe(folder, score, repair, calibration):
    (folder / "r.yaml").write_text(
        f"score: {score}\nrepair: {repair}\ncalibration: {calibration}\n"
        "schedule: {name: one_shot, sparsity: 0.5}\n"
    )
    return "--recipe r.yaml"


def test_fewer_samples_than_inputs(command, tmp_path):
    undamped = recipe(tmp_path, "magnitude", "{name: masked_least_squares, damp: 0}", 3)
    refused(command, "small", undamped, "there are fewer samples than inputs; give a damp > 0", tmp_path)
    for score in ("layer_obs", "obd", "wanda"):
        chosen = recipe(tmp_path, score, "masked_least_squares", 3)
        assert command(prune("small", chosen)).code == 0
        pruned = load_pretrained("pruned", importlib.import_module("nets_of_second_order").small())
        assert all(bool(value.isfinite().all()) for value in pruned.state_dict().values())


def test_one_sample_has_no_variance_and_no_correlation(command, tmp_path):
    for score, repair, message in (
        ("correlation", "none", "the layer '0' saw one example only on the calibration"),
        ("layer_obs", "none", "the layer '0' was given one row of inputs only"),
        ("magnitude", "masked_least_squares", "the layer '0' was given one row of inputs only"),
        ("input_deviation", "none", "the layer '0' was given one row of inputs only"),
    ):
        refused(command, "small", recipe(tmp_path, score, repair, 1), message, tmp_path)
    assert command(prune("small", recipe(tmp_path, "wanda", "none", 1))).code == 0


@pytest.mark.parametrize("method", ["layer_obs", "layer_obs_retrained"])
def test_no_removals_between_two_renewals(command, tmp_path, method):
    refused(command, "small", f"--method {method} --set every=0", "every = 0: input should be gr", tmp_path)


def test_shares_and_damping_out_of_range(command, tmp_path):
    for settings, message in (
        ("correlation --set strong=1.5", "correlated_halves: strong = 1.5: input should be less than"),
        ("correlation --set strong=-1", "correlated_halves: strong = -1: input should be greater than"),
        ("exact_layer_obs --set damp=-1", "damp = -1"),
    ):
        refused(command, "small", f"--method {settings}", message, tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_without_data(command, method):
    line = f"prune nets_of_second_order:small --method {method} --out pruned"
    assert re.search("(score|selection) .* needs data, but no data is given", command(line).complaint())
