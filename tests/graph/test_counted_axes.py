"""Which axes settings count, on networks that are a few products."""

import torch

from prunekit.graph.counted_axes import counted_axes, may_change, sizes_of

SETTINGS = {("width",): 6, ("heads",): 3, ("inner",): 8, ("unused",): 5, ("kind",): None, ("name",): None}


class Networks:
    """A table, queries as wide as the heads, and an inner layer; how many were built."""

    def __init__(self):
        self.count = 0

    def __call__(self, numbers):
        self.count += 1
        settings = SETTINGS | dict(numbers)
        width, heads, inner = (settings[(name,)] for name in ("width", "heads", "inner"))
        if width % heads or settings[("kind",)] == 4:
            return None
        form = {"table": torch.Size((9, width)), "query": torch.Size((2 * heads, width))}
        return sizes_of({**form, "inner": torch.Size((inner, width)), "layer": torch.nn.Linear})


def test_what_each_counts():
    build = Networks()
    before = build({})
    assert before[("layer", -1)] is torch.nn.Linear
    single = [{("width",): 4}, {("heads",): 2}, {("inner",): 4}, {("unused",): 3}, {("width",): 12}]
    found = counted_axes(build, before, [*single, {("kind",): 4, ("name",): 4}])
    assert found == {
        ("width",): {("table", 1), ("query", 1), ("inner", 1)},
        ("heads",): {("query", 0)},
        ("inner",): {("inner", 0)},
        ("unused",): set(),
        ("kind",): None,
        ("name",): set(),
    }


def test_several_that_count_nothing_take_one_network():
    build = Networks()
    unused = [("unused",), ("name",), ("another",), ("more",)]
    assert counted_axes(build, build({}), [dict.fromkeys(unused, 7)]) == {path: set() for path in unused}
    assert build.count == 2


def test_what_alone_counts_an_axis_that_stays_may_not_change():
    counts = {("a",): {("x", 0), ("y", 0)}, ("b",): {("x", 0)}, ("c",): {("y", 0), ("z", 0)}, ("d",): None}
    assert may_change(counts, [("x", 0)]) == {("a",), ("b",), ("c",), ("d",)}  # a and b may make up for it
    assert may_change(counts, [("z", 0)]) == {("a",), ("b",), ("d",)}
    # without c nothing makes up for a, and without a nothing for b
    assert may_change(counts, [("x", 0), ("y", 0), ("z", 0)]) == {("d",)}
