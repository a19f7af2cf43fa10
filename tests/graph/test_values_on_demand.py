"""Values of a recording that are asked for: as of the place where they are, and nothing else is computed."""

import operator

import pytest
import torch
from torch import fx

from prunekit.graph.values import Values

aten = torch.ops.aten


class Program:
    """Operators that are called at once, and taken down for values that are asked for later.

    Args:
        given: what its placeholders stand for.
    """

    def __init__(self, *given):
        self.graph, self.values = fx.Graph(), Values()
        self.given = given
        self.nodes, self.now = [], {}
        for number, value in enumerate(given):
            node = self.graph.placeholder(f"x{number}")
            self.values.given(node, value)
            self.now[node] = value.clone()
            self.nodes.append(node)

    def call(self, target, *args):
        node = self.graph.call_function(target, args)
        self.now[node] = target(*fx.node.map_arg(args, self.now.__getitem__))
        self.values.called(node)
        self.nodes.append(node)
        return node

    def check(self, node):
        """The value is that which the network has here."""
        found = self.values.of(node)
        assert torch.equal(found, self.now[node]), node


@pytest.fixture
def program():
    return Program(torch.arange(6.0).reshape(2, 3), torch.ones(2, 3))


def test_what_is_written_before_is_read(program):
    x, one = program.nodes
    zeros = program.call(aten.zeros.default, [2, 3])
    program.call(aten.add_.Tensor, zeros, x)
    program.check(program.call(aten.mul.Tensor, zeros, one))


def test_what_was_read_before_it_is_written_stays(program):
    x, one = program.nodes
    read = program.call(aten.add.Tensor, x, one)
    program.call(aten.mul_.Tensor, x, x)
    after = program.call(aten.add.Tensor, x, one)
    program.check(after)
    program.check(read)


def test_a_view_that_was_asked_for_is_written_later(program):
    x, _ = program.nodes
    row = program.call(aten.select.int, x, 0, 1)
    program.check(row)
    program.call(aten.add_.Tensor, row, row)
    program.check(row)
    program.check(x)
    program.call(aten.mul_.Tensor, x, x)
    program.check(row)


def test_a_view_of_what_is_written_is_read(program):
    x, _ = program.nodes
    flat = program.call(aten.view.default, x, [6])
    both = program.call(aten.split.Tensor, flat, 3)
    first = program.call(operator.getitem, both, 0)
    program.call(aten.relu_.default, program.call(aten.neg_.default, first))
    program.check(flat)
    program.check(first)


def test_dropout_that_drops_nothing_passes_on_what_it_reads(program):
    x, one = program.nodes
    same = program.call(aten.dropout.default, x, 0.5, False)
    program.call(aten.add_.Tensor, same, one)
    program.check(x)


def test_a_norm_in_training_writes_to_copies_of_its_statistics():
    given = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(3), torch.ones(3)
    program = Program(*given)
    x, mean, variance = program.nodes
    before = program.call(aten.mul.Tensor, mean, variance)
    y = program.call(aten.batch_norm.default, x, None, None, mean, variance, True, 0.1, 1e-5, False)
    for node in (mean, before, y, variance):
        program.check(node)
    assert not program.given[1].any()
    assert program.given[2].eq(1).all()


def test_only_what_an_asked_value_comes_from_is_computed():
    counts = []

    def counted(x, name):
        counts.append(name)
        return x + 1

    graph, values = fx.Graph(), Values()
    x = graph.placeholder("x")
    parameter = torch.nn.Parameter(torch.ones(2))
    values.given(x, parameter)
    a, b, c = (graph.call_function(counted, (x, name)) for name in "abc")
    d = graph.call_function(counted, (b, "d"))
    for node in (a, b, c, d):
        values.called(node)
    assert not counts
    assert torch.equal(values.of(d), torch.full((2,), 3.0))
    values.of((b, d))
    assert counts == ["b", "d"]
    assert values.of(x) is parameter, "what is not written into is not copied"


def test_what_is_drawn_depends_on_the_place_alone():
    def program():
        graph, values = fx.Graph(), Values()
        made = [graph.call_function(aten.rand.default, ([4],)) for _ in range(3)]
        for node in made:
            values.called(node)
        return values, made

    state = torch.get_rng_state()
    (first, nodes), (second, others) = program(), program()
    whole = [first.of(node) for node in nodes]
    assert torch.equal(second.of(others[2]), whole[2])
    assert torch.equal(second.of(others[0]), whole[0])
    assert not torch.equal(whole[0], whole[2])
    assert torch.equal(torch.get_rng_state(), state)


READ = (aten.neg.default, aten.clone.default, aten.relu.default)
VIEW = (
    *((aten.view.default, (shape,)) for shape in ([2, 3], [6], [3, 2])),
    *((aten.slice.Tensor, (0, start, None)) for start in (0, 1)),
)
WRITE = (aten.neg_.default, aten.relu_.default, aten.zero_.default)


@pytest.mark.parametrize("seed", range(100))
def test_random_programs_give_what_they_give_in_order(seed):
    generator = torch.Generator().manual_seed(seed)

    def pick(choices):
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    given = [torch.randn(2, 3, generator=generator) for _ in range(3)]
    before = [each.clone() for each in given]
    program = Program(*given)
    for _ in range(25):
        node, kind = pick(program.nodes), pick("rrvvwwaaa")
        if kind == "r":
            program.call(pick(READ), node)
        elif kind == "w":
            program.call(pick(WRITE), node)
        elif kind == "v":
            target, args = pick(VIEW)
            if target is aten.slice.Tensor or program.now[node].numel() == 6:
                program.call(target, node, *args)
        else:
            program.check(node)
        if kind == "w":  # a sum of what lies in two memories
            like = [each for each in program.nodes if program.now[each].shape == program.now[node].shape]
            program.call(aten.add_.Tensor, node, pick(like))
    for node in program.nodes:
        program.check(node)
    assert all(map(torch.equal, given, before))
