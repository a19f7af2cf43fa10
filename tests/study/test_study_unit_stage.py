"""units.json: what is in it against the network run by hand, and when it is written anew."""

import json

import numpy as np
import pytest
import torch

from prunekit.digests import read_json_with_digest, read_tensors
from prunekit.errors import InputError, ModelError
from prunekit.losses import LOSSES
from prunekit.study import run_study
from prunekit.study.layout import TRAINED, Layout
from prunekit.study.stages import build, dataset
from prunekit.study_files import UNITS_JSON
from tiny_study import one_shot, tiny

pytestmark = pytest.mark.usefixtures("no_report")
FIGURES = {"examples": 60, "every": 3}


def asking(**changes):
    return tiny(**{"methods": {"random": one_shot("random", 0.5)}, "unit_figures": FIGURES, **changes})


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("units") / "study"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prunekit.study.run._report", lambda layout: layout.root / "report.html")
        run_study(asking(), folder, workers=1)
    return folder


@torch.no_grad()
def test_sweeps_and_correlations_are_those_of_the_trained_network(swept):
    study, layout = asking(), Layout(swept)
    found = read_json_with_digest(layout.root / UNITS_JSON)
    data = dataset(study, None)
    model = build(study, data, seed=0).eval()
    model.load_state_dict(read_tensors(layout.network(study, 0) / TRAINED)[0])
    inputs, targets = data.train.inputs[:60], data.train.targets[:60]
    hidden = {}
    first, last = (layer for layer in model.modules() if isinstance(layer, torch.nn.Linear))
    handle = last.register_forward_pre_hook(lambda layer, args: hidden.update(values=args[0]))
    model(inputs)
    handle.remove()
    (layer,) = found["correlations"]
    assert first is model.get_submodule(layer)
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = np.nan_to_num(np.corrcoef(hidden["values"].double().numpy().T))
    np.testing.assert_allclose(found["correlations"][layer], expected, atol=1e-5)

    assert [sweep["removed"] for sweep in found["sweeps"]] == [0, 3, 6]  # 8 units, of which one stays
    weight = last.weight.clone()
    unit = found["sweeps"][0]["unit"]
    for gain, error in zip(found["gains"], found["sweeps"][0]["errors"], strict=True):
        last.weight.copy_(weight)
        last.weight[:, unit] *= gain
        assert error == pytest.approx(float(LOSSES["squared_error"](model(inputs), targets)), rel=1e-4)
    costs = []
    for other in range(8):
        last.weight.copy_(weight)
        last.weight[:, other] = 0
        costs.append(float(LOSSES["squared_error"](model(inputs), targets)))
    assert costs[unit] == pytest.approx(min(costs), rel=1e-5)


def test_they_are_written_once_and_anew_where_more_is_asked_or_they_are_damaged(swept, caplog):
    path = Layout(swept).root / UNITS_JSON
    before = path.stat().st_mtime_ns
    run_study(asking(), swept, workers=1)
    assert path.stat().st_mtime_ns == before
    run_study(asking(unit_figures={**FIGURES, "every": 5}), swept, workers=1)
    assert len(json.loads(path.read_text())["sweeps"]) == 2
    run_study(asking(), swept, workers=1)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    run_study(asking(), swept, workers=1)
    assert path.read_bytes() == whole
    assert "units.json" in caplog.text
    path.unlink()
    path.mkdir()
    run_study(asking(), swept, workers=1)
    assert path.read_bytes() == whole
    run_study(asking(unit_figures=None), swept, workers=1)
    assert not path.exists()
    run_study(asking(), swept, workers=1)


def test_what_is_asked_for_changes_no_hash_of_networks_and_recipes():
    one, other = asking(), asking(unit_figures=None)
    assert one.network_key == other.network_key
    assert [cell.key for cell in one.cells] == [cell.key for cell in other.cells]
    assert one.units_key != asking(unit_figures={"every": 2}).units_key


def test_what_cannot_be_swept_is_refused_before_anything_is_trained(tmp_path):
    for model, message in [
        ("own_parts:linear", "unit_figures: the network has no units that could be removed"),
        ("own_parts:around", "unit_figures: "),
    ]:
        with pytest.raises(ModelError, match=message):
            run_study(asking(model=model), tmp_path / "study", workers=1)
        assert not list(tmp_path.rglob("result.json"))
    with pytest.raises(InputError, match="every"):
        asking(unit_figures={"every": 0})
