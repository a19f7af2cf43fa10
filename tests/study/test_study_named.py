import pytest
import torch
import yaml

from prunekit.errors import InputError
from prunekit.models import create
from prunekit.study import Study, StudySuite, _folder, load_study, names

SHAPES = {
    "digits": (1, 8, 8),
    "mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "california_housing": (8,),
    "iris": (4,),
    "breast_cancer": (9,),
    "diabetes": (8,),
    "ionosphere": (34,),
    "waveform": (21,),
    "tiny_shakespeare": (64,),
}
LEFT_OUT = {"tiny_shakespeare": 3}
"""Matrices that stay: the positions, the embedding, and the output, which the study ignores."""


def studies_of(name):
    """The study, or those of all variants of a suite."""
    found = load_study(name)
    return list(found.studies.values()) if isinstance(found, StudySuite) else [found]


def test_they_are_listed_and_asked_for():
    assert {"digits-quick", "mnist-magnitude", "lottery-fc", "lottery-conv"} <= set(names())
    with pytest.raises(
        InputError, match=r"no study 'nothing'; `prunekit compare --list` lists all .*ends in .yaml"
    ):
        load_study("nothing")


@pytest.mark.parametrize("name", names())
class TestEach:
    def test_it_is_named_as_its_file(self, name):
        study = load_study(name)
        assert study.name == name
        assert study.title
        assert study.question
        assert study.expected

    def test_it_survives_the_round_trip(self, name):
        for study in studies_of(name):
            again = Study.parse(yaml.safe_load(yaml.safe_dump(study.to_dict(), sort_keys=False)))
            assert again == study
            assert [cell.key for cell in again.cells] == [cell.key for cell in study.cells]
            assert again.network_key == study.network_key

    def test_every_cell_can_be_planned(self, name):
        for study in studies_of(name):
            model, seen = create(study.model, SHAPES[study.dataset.name], 10, seed=0), []
            for cell in study.cells:
                granularity = cell.recipe.granularity
                if granularity.counts == "units":
                    # what is coupled takes a second to find, and is the same for all that remove as much
                    chosen = (granularity, cell.recipe.allocation, cell.recipe.schedule)
                    if chosen in seen:
                        continue
                    seen.append(chosen)
                plan = cell.recipe.plan(model, torch.rand(2, *SHAPES[study.dataset.name]))
                assert plan.steps
                if granularity.counts == "units" and plan.elements.coupled.chain is None:
                    assert all(target.kind == "units" for target in plan.elements.targets)
                    continue
                if granularity.name == "filter_shape" or getattr(granularity, "kinds", None) == ("filters",):
                    convolutions = [p for p in model.parameters() if p.dim() == 4]
                    assert len(plan.elements.targets) == len(convolutions)
                    continue
                layers = len([p for p in model.parameters() if p.dim() > 1])
                # the last layer's units are the network's outputs, and no maxout makes them
                outputs = granularity.counts != "weights"
                inputs = getattr(granularity, "inputs", False)
                targets = layers - outputs + inputs - LEFT_OUT.get(study.dataset.name, 0)
                assert len(plan.elements.targets) == targets

    def test_it_has_its_controls_and_a_word_on_every_method(self, name):
        for study in studies_of(name):
            assert study.controls.random is not None
            assert all(method.note()["summary"] for method in study.methods.values())
            assert study.seeds >= 3

    def test_cells_have_names_and_folders_of_their_own(self, name):
        for study in studies_of(name):
            cells = study.cells
            assert len({cell.name for cell in cells}) == len(cells)
            assert len({(cell.label, cell.key) for cell in cells}) == len(cells)

    def test_its_text_is_plain_yaml_without_machine_paths(self, name):
        text = (_folder() / f"{name}.yaml").read_text(encoding="utf-8")
        assert ": /" not in text


def test_a_study_of_ones_own_is_read_from_its_path(tmp_path):
    path = tmp_path / "mine.yml"
    path.write_text((_folder() / "digits-quick.yaml").read_text(encoding="utf-8"))
    study = load_study(str(path), ["seeds=1", "name=mine"])
    assert (study.name, study.seeds) == ("mine", 1)


def test_what_is_no_study_file(tmp_path):
    path = tmp_path / "a.yaml"
    for content, message in [
        ("- a", "expected a mapping of settings, got list"),
        ("a: [", "not valid YAML: line 1"),
    ]:
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            load_study(str(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not valid YAML"):
        load_study(str(path))
    (tmp_path / "b.yaml").mkdir()
    with pytest.raises(InputError, match=r"cannot read .*: Is a directory"):
        load_study(str(tmp_path / "b.yaml"))
