import copy
import importlib
import json
import pickle
import subprocess
import sys
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from prunekit.errors import InputError, PrunekitError
from prunekit.parts.base import Part
from prunekit.parts.schedule import OneShot, Schedule
from prunekit.parts.scores import Magnitude, Random, Score
from prunekit.settings import Settings, digest


class Sample(Settings):
    size: int = Field(default=3, ge=1)
    name: str = "a"


class Mine(Score):
    """My score.

    More of it.
    """

    name: ClassVar[str] = "mine"
    power: float = 2.0

    def __call__(self, context):
        return {name: weight.abs() ** self.power for name, weight in context.weights.items()}


class TestSettings:
    def test_values_are_frozen(self):
        with pytest.raises(Exception, match="frozen"):
            Sample().size = 4

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"sise": 3}, r"sample: unknown key 'sise'; did you mean 'size'. allowed keys are: name, size"),
            ({"size": 0}, r"sample: size = 0: .*greater than or equal to 1"),
            ({"size": "x"}, r"sample: size = 'x': .*valid integer"),
            ({"size": None}, r"sample: size = None"),
            ({"size": True}, r"sample: size: a number is needed here, not True"),
            ({"size": np.bool_(True)}, r"sample: size: a number is needed here"),
            ({"size": 10**5000 * -1}, r"sample: size = a value of the type int: "),
            ({"size": "x" * 10_000}, r"sample: size = 'x{199}\.\.\.: .*valid integer"),
            ({3: 1}, r"sample: the key 3 is not a text"),
            ([1], r"sample: expected a mapping of settings, got \[1\]"),
            (None, r"sample: expected a mapping of settings, got None"),
        ],
    )
    def test_what_is_wrong_is_named(self, values, message):
        with pytest.raises(InputError, match=message):
            Sample.parse(values)

    def test_errors_are_value_errors_and_prunekits(self):
        with pytest.raises(ValueError, match="unknown key"):
            Sample(a=1)
        with pytest.raises(PrunekitError):
            Sample(a=1)

    def test_parse_takes_what_is_ready(self):
        ready = Sample(size=5)
        assert Sample.parse(ready) is ready
        assert Sample.parse(ready.to_dict()) == ready

    def test_copies(self):
        settings = OneShot(sparsity=0.25)
        assert copy.deepcopy(settings) == settings
        assert pickle.loads(pickle.dumps(settings)) == settings

    def test_missing_keys_are_named(self):
        with pytest.raises(InputError, match="one_shot: the key 'sparsity' is missing"):
            Schedule.build("one_shot")


JSON = st.dictionaries(st.text(max_size=5), st.integers() | st.booleans() | st.text(max_size=5), max_size=6)


class TestDigest:
    @given(JSON, st.randoms())
    def test_key_order_does_not_matter(self, values, random):
        keys = list(values)
        random.shuffle(keys)
        assert digest({"a": values}) == digest({"a": {key: values[key] for key in keys}})

    def test_it_is_known(self):
        # pinned: run folders are named by it
        assert digest({"b": 1, "a": [0.5, None]}) == "a0e9efb45133"
        assert OneShot(sparsity=0.5).digest() == OneShot(sparsity=0.5).digest()
        assert OneShot(sparsity=0.5).digest() != OneShot(sparsity=0.6).digest()

    def test_defaults_written_out_or_not(self):
        assert Sample().digest() == Sample(size=3, name="a").digest()

    def test_whole_numbers_for_fractions_change_nothing(self):
        assert OneShot(sparsity=0).digest() == OneShot(sparsity=0.0).digest()


class TestPart:
    def test_every_way_to_say_it(self):
        assert Score.build("magnitude") == Score.build({"name": "magnitude"}) == Magnitude()
        ready = Random()
        assert Score.build(ready) is ready

    def test_round_trip(self):
        part = Magnitude(relative_to="layer_norm")
        assert part.to_dict() == {"name": "magnitude", "relative_to": "layer_norm"}
        assert Score.build(part.to_dict()) == part

    @pytest.mark.parametrize("value", [None, 3, {"power": 2}, {"name": 3}, []])
    def test_what_is_no_part(self, value):
        with pytest.raises(
            InputError, match=r"expected the name of a score or a mapping.*names are: .*random"
        ):
            Score.build(value)

    def test_unknown_names(self):
        with pytest.raises(
            InputError, match=r"no score .magnitud.; did you mean .magnitude.. names are: .*wanda"
        ):
            Score.build("magnitud")

    def test_unknown_keys_name_the_part(self):
        with pytest.raises(InputError, match="magnitude: unknown key 'p'; allowed keys are: relative_to"):
            Score.build({"name": "magnitude", "p": 1})

    def test_a_family_has_its_own_names(self):
        assert set(Score.members()).isdisjoint(Schedule.members())
        assert all(issubclass(member, Score) for member in Score.members().values())

    @pytest.mark.parametrize("family", Part.__subclasses__(), ids=lambda family: family.__name__)
    def test_every_part_has_a_summary(self, family):
        for name, member in family.members().items():
            if not member.__module__.startswith("prunekit."):
                continue
            assert member.summary(), name
            assert "\n" not in member.summary()

    def test_a_part_of_the_users_is_written_with_its_module(self):
        written = Mine(power=3).to_dict()
        assert written == {"name": f"{__name__}:Mine", "power": 3.0}
        assert Score.build(written) == Mine(power=3)

    def test_and_is_found_in_a_fresh_process(self, tmp_path, monkeypatch):
        (tmp_path / "my_scores.py").write_text(
            "from prunekit.parts.scores import Magnitude\nclass Louder(Magnitude):\n    name = 'louder'\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        written = json.dumps(importlib.import_module("my_scores").Louder().to_dict())
        sys.modules.pop("my_scores")
        assert json.loads(written)["name"] == "my_scores:Louder"
        second = (
            "from prunekit.permission import allowing\nfrom prunekit.parts.scores import Score\n"
            f"with allowing(['my_scores']):\n    print(type(Score.build({json.loads(written)!r})).__name__)"
        )
        assert self.python(second, tmp_path).strip() == "Louder"

    def test_a_class_of_a_script_keeps_its_short_name(self, tmp_path):
        script = (
            "from prunekit.parts.scores import Magnitude, Score\n"
            "class Louder(Magnitude):\n    name = 'louder'\n"
            "class Nameless(Magnitude):\n    pass\n"
            "print(type(Score.build(Louder().to_dict())).__name__, Nameless().to_dict()['name'])"
        )
        assert self.python(script, tmp_path).split() == ["Louder", "__main__:Nameless"]

    @staticmethod
    def python(code: str, folder) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
        )
        return done.stdout
