"""Shapes, types and strides without data are those of PyTorch's operators on real numbers."""

from __future__ import annotations

import subprocess
import sys
from itertools import permutations

import pytest
import torch
from torch.utils import _pytree as pytree

from prunekit.graph.record import meta_of
from prunekit.graph.result_shapes import shapes

A = torch.ops.aten


def compared(func, *args, **kwargs):
    """With the operator itself; gives what it gives."""
    expected = func(*args, **kwargs)
    without = pytree.tree_map_only(torch.Tensor, meta_of, (args, kwargs))
    found = shapes(func, *without)
    assert (found.shape, found.dtype, found.device.type) == (expected.shape, expected.dtype, "meta")
    assert _strides(found) == _strides(expected)
    return expected


def _strides(tensor):
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


def laid_out(*shape, dtype=None):
    """A tensor in every order of its axes in memory."""
    for order in permutations(range(len(shape))):
        back = sorted(range(len(shape)), key=order.__getitem__)
        yield torch.ones([shape[axis] for axis in order]).to(dtype or torch.get_default_dtype()).permute(back)


PAIRS = [
    ((2, 3, 4), (2, 3, 4)),
    ((2, 3, 4), (3, 1)),
    ((2, 1, 4), (3, 1)),
    ((1, 3, 1), (2, 3, 4)),
    ((4,), (2, 3, 4)),
    ((2, 2, 3, 3), (2, 2, 3, 3)),
    ((2, 3, 1, 1), (2, 3, 4, 2)),
]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_entry_by_entry_in_any_order_in_memory(first, second):
    for x in laid_out(*first):
        for y in laid_out(*second):
            compared(A.add.Tensor, x, y)
            compared(A.where.self, x > 0, y, x)
            compared(A.masked_fill.Scalar, x, y > 0, 0.0)


@pytest.mark.parametrize(
    "dtypes", [(torch.float32, torch.float64), (torch.int64, torch.float32), (torch.bool, torch.int64)]
)
def test_types_are_those_of_the_operator(dtypes):
    x, y = (torch.ones(2, 3, dtype=dtype) for dtype in dtypes)
    for func in (A.add.Tensor, A.mul.Tensor, A.div.Tensor, A.eq.Tensor, A.pow.Tensor_Tensor):
        compared(func, x, y)
        compared(func, x, y[0, 0])
        compared(func, x[0, 0], y)
    compared(A.mul.Tensor, x, 2.0)
    compared(A.pow.Tensor_Scalar, x, 2)
    compared(A.rsub.Scalar, y, 1.0)
    compared(A.clamp.default, y, 0, None)
    compared(A.cumsum.default, x, 1)
    compared(A.softmax.int, y, -1, torch.float32)
    compared(A.zeros_like.default, x, dtype=torch.int32)


def dropped(x):
    compared(A.dropout.default, x, 0.5, True)
    compared(A.dropout.default, x, 0.5, False)


NORM = None, None, None, None, True, 0.1, 1e-5, True
ON_IMAGES = {
    "batch_norm": lambda x: compared(A.batch_norm.default, x, *NORM),
    "group_norm": lambda x: compared(A.group_norm.default, x, 1),
    "layer_norm": lambda x: compared(A.layer_norm.default, x, [x.shape[-1]]),
    "instance_norm": lambda x: compared(A.instance_norm.default, x, *NORM),
    "dropout": dropped,
    "linear": lambda x: compared(A.linear.default, x, torch.ones(6, x.shape[-1]), torch.ones(6)),
    "softmax": lambda x: compared(A.softmax.int, x, 1),
    "cumsum": lambda x: compared(A.cumsum.default, x, 1),
    "tril": lambda x: compared(A.tril.default, x),
    "gelu": lambda x: compared(A.gelu.default, x),
    "randn_like": lambda x: compared(A.randn_like.default, x),
    "matmul": lambda x: compared(A.matmul.default, x, torch.ones(x.shape[-1], 6)),
    "matmul of many": lambda x: compared(A.matmul.default, x, x.transpose(-1, -2)),
    "sum": lambda x: compared(A.sum.dim_IntList, x, [1]),
    "maximum": lambda x: compared(A.amax.default, x, [0, 2]),
    "variance": lambda x: compared(A.var.correction, x, [1]),
    "mean": lambda x: compared(A.mean.dim, x, [-1, 1], True),
}  # fmt: skip


@pytest.mark.parametrize("name", ON_IMAGES)
@pytest.mark.parametrize("shape", [(2, 4, 5, 3), (2, 4, 5), (2, 1, 5, 3), (2, 4, 1, 1)])
def test_layers_on_images_in_any_order_in_memory(name, shape):
    for x in laid_out(*shape):
        ON_IMAGES[name](x)


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 4, 5, 3), (2, 1, 5, 3), (2, 4, 1, 1)])
def test_convolutions_in_any_order_in_memory(shape):
    sides = len(shape) - 2
    func = (A.conv1d, A.conv2d)[sides - 1].default
    kernel = [min(side, 2) for side in shape[2:]]
    for x in laid_out(*shape):
        compared(func, x, torch.ones(3, shape[1], *kernel), torch.ones(3))


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("width", [5, 4])
def test_attention_in_any_order_in_memory(mask, width):
    for query in laid_out(2, 3, 4, 5):
        if query.stride(-1) == 1:  # as it comes from a linear layer
            key, value = torch.ones(2, 3, 6, 5), torch.ones(2, 3, 6, width)
            compared(
                A.scaled_dot_product_attention.default, query, key, value, torch.ones(4, 6) if mask else None
            )


x = torch.ones(3, 4, 5)
LONG = {"dtype": torch.int64}
PAIR = torch.zeros(2, **LONG)
PLAIN = {
    "conv3d": (A.conv3d.default, torch.ones(2, 4, 3, 5, 2), torch.ones(3, 4, 2, 2, 2)),
    "mm": (A.mm.default, x[0], x[0].t()),
    "bmm": (A.bmm.default, x, x.transpose(1, 2)),
    "matrix times many": (A.matmul.default, x[0], torch.ones(2, 3, 5, 6)),
    "many times many": (A.matmul.default, x, torch.ones(2, 1, 5, 6)),
    "matrix times vector": (A.matmul.default, x, torch.ones(5)),
    "addmm": (A.addmm.default, x[0, 0, :4], x[0], x[1].t()),
    "baddbmm": (A.baddbmm.default, x[:, :, :4], x, x.transpose(1, 2)),
    "einsum": (A.einsum.default, "bij,bkj->bik", [x, x]),
    "embedding": (A.embedding.default, x[0], torch.ones(2, 3, **LONG)),
    "one index": (A.index.Tensor, x, [None, torch.ones(2, 6, **LONG)]),
    "two indices": (A.index.Tensor, x, [torch.ones(2, 1, **LONG), torch.ones(4, **LONG)]),
    "indices apart": (A.index.Tensor, x, [PAIR, None, PAIR]),
    "gather": (A.gather.default, x, 1, torch.zeros(3, 2, 5, **LONG)),
    "stack": (A.stack.default, [x, x], -1),
    "stack in front": (A.stack.default, [x, x]),
    "cat of integers": (A.cat.default, [x.long(), x.long()], -2),
    "sum of all": (A.sum.default, x > 0),
    "sum": (A.sum.dim_IntList, x > 0, [1]),
    "sum without dims": (A.sum.dim_IntList, x, []),
    "any": (A.any.dim, x > 0, -1, True),
    "all": (A.all.default, x > 0),
    "amax": (A.amax.default, x, [0, 2]),
    "argmax": (A.argmax.default, x, 1),
    "argmax of all": (A.argmax.default, x),
    "norm": (A.linalg_vector_norm.default, x, 2, [1]),
    "variance": (A.var.correction, x, [1]),
    "arange": (A.arange.default, 5),
    "arange by steps": (A.arange.start_step, 1, 8.0, 3),
    "nearest": (A.upsample_nearest2d.vec, x[None], None, [2.0, 1.5]),
    "bilinear": (A.upsample_bilinear2d.vec, x[None], [7, 8], False, None),
    "pool": (A.adaptive_avg_pool2d.default, x, [1, 1]),
    "one number": (A.mean.dim, x[0, 0, 0], [0]),
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_single_operators(name):
    compared(*PLAIN[name])


@pytest.mark.parametrize(
    "call",
    [
        (A.add.Tensor, (2, 3), (4, 3)),
        (A.linear.default, (2, 3), (4, 5)),
        (A.matmul.default, (2, 3), (4, 5)),
        (A.bmm.default, (2, 3, 4), (3, 4, 5)),
        (A.cat.default, [(2, 3), (2, 4)]),
    ],
)
def test_shapes_that_do_not_go_together_are_refused(call):
    func, *given = call
    empty = pytree.tree_map_only(
        tuple,
        lambda shape: torch.empty(shape, device="meta"),
        given,
        is_leaf=lambda each: type(each) is tuple,
    )
    with pytest.raises((RuntimeError, ValueError)):
        shapes(func, empty, {})


def test_neither_compiler_nor_symbols_are_loaded():
    code = """if True:
        import sys, torch
        from torch import nn
        from prunekit.graph import prune_groups

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.norm, self.attend = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 24)
                self.hidden, self.head = nn.Linear(8, 8), nn.Linear(8, 4)
                self.places = nn.Parameter(torch.zeros(1, 1, 8))

            def forward(self, x):
                x = self.norm(self.conv(x)).relu().flatten(2).transpose(1, 2) + self.places
                q, k, v = self.attend(x).chunk(3, -1)
                x = x + nn.functional.scaled_dot_product_attention(q, k, v)
                return self.head(nn.functional.gelu(self.hidden(x.mean(1))))

        before = set(sys.modules)
        prune_groups(Net().eval(), torch.randn(2, 3, 8, 8), 0.5)
        print({name.split(".")[0] for name in set(sys.modules) - before} & {"sympy"})
        print("torch._dynamo" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["set()", "False"]
