from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from prunekit.graph.labels import Labels, connected


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=60))
def test_components_are_those_of_scipy(pairs):
    first, second = (np.array([pair[side] for pair in pairs], dtype=np.int64) for side in (0, 1))
    root = connected(np.arange(31), first, second)
    graph = coo_matrix((np.ones(len(pairs)), (first, second)), shape=(31, 31))
    _, expected = connected_components(graph, directed=False)
    for label in range(31):
        assert root[label] == np.flatnonzero(expected == expected[label]).min()


def test_a_long_chain_is_one_component():
    labels = np.random.default_rng(0).permutation(np.arange(1, 20001))
    root = connected(np.arange(20001), labels[:-1], labels[1:])
    assert set(root[1:].tolist()) == {1}


def test_meeting_what_cannot_change_freezes():
    labels = Labels()
    a, b = labels.new(3), labels.new(3)
    joined = labels.join(a, np.array([0, b[1], b[2]]), "meets the input")
    assert joined.tolist() == [0, a[1], a[2]]
    classes = labels.classes()
    assert classes.reason == {int(a[0]): "meets the input"}
    assert classes.root[a[1]] == classes.root[b[1]] != classes.root[a[2]]
