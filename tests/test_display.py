"""What a person sees of results is short, in a terminal and in a notebook."""

import pytest
import torch

from prunekit import Recipe, Session, prune
from prunekit.display import MOST_ROWS, some_rows
from prunekit.graph import groups, traced
from prunekit.measure import count
from prunekit.methods import filter_norm
from prunekit.models import create

IMAGES = torch.randn(2, 3, 32, 32)
HALF = {"name": "one_shot", "sparsity": 0.5}


def resnet():
    return create("resnet20", (3, 32, 32), 10, seed=0)


MADE = {
    "recipe": lambda: filter_norm(sparsity=0.5, epochs=1),
    "plan of units": lambda: filter_norm(sparsity=0.5, epochs=1).plan(resnet(), IMAGES),
    "plan of weights": lambda: Recipe(schedule=HALF).plan(resnet()),
    "groups": lambda: groups(resnet(), IMAGES),
    "a group": lambda: groups(resnet(), IMAGES).groups[0],
    "groups with graphs": lambda: traced(resnet(), IMAGES),
    "counts": lambda: count(resnet(), IMAGES),
    "session": lambda: Session(resnet(), Recipe(schedule=HALF)),
    "result": lambda: prune(resnet(), Recipe(schedule=HALF)),
}


@pytest.mark.parametrize("what", MADE)
def test_results_are_shown_in_short(what):
    made = MADE[what]()
    assert len(repr(made)) < 330
    assert len(str(made)) < 1600
    if what != "session":
        assert made._repr_html_().startswith("<pre>")


def test_html_is_escaped():
    class Shown(type(MADE["groups"]())):
        def __str__(self):
            return "a < b"

    assert Shown(())._repr_html_() == "<pre>a &lt; b</pre>"


def test_a_recipe_shows_what_is_not_the_default():
    quarter = Recipe(schedule={"name": "one_shot", "sparsity": 0.25})
    assert repr(quarter) == "Recipe(schedule=OneShot(sparsity=0.25))"


def test_a_recipe_is_printed_a_setting_a_line():
    chosen = Recipe(score="random", schedule={"name": "one_shot", "sparsity": 0.25}, ignore=("<head>",))
    lines = ["Recipe", "score:     Random()", "schedule:  OneShot(sparsity=0.25)", "ignore:    ('<head>',)"]
    assert str(chosen).splitlines() == lines
    assert chosen._repr_html_().splitlines()[-1] == "ignore:    (&#x27;&lt;head&gt;&#x27;,)</pre>"


def test_a_result_says_in_a_notebook_what_to_do_next():
    pruned = MADE["result"]()
    assert pruned._repr_html_() == f"<pre>{pruned}</pre>"
    assert "next, save_pretrained(pruned, folder)" in pruned._repr_html_()


def test_long_tables_are_cut():
    lines = some_rows([(f"layer{number}", f"{number:,}") for number in range(MOST_ROWS + 3)])
    assert lines[:2] == ["layer0    0", "layer1    1"]
    assert lines[-1] == "... and 3 more"
    assert some_rows([]) == []
