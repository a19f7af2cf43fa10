"""Depthwise convolutions in double precision are those of PyTorch, with their gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from prunekit.graph.depthwise import depthwise
from prunekit.graph.reference_run import exact

CASES = {
    "1d": ((2, 3, 9), (4,), {"padding": 2, "dilation": 2}),
    "2d": ((2, 5, 7, 6), (3, 2), {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}),
    "of one example": ((1, 2, 4, 4), (3, 3), {"padding": 1}),
    "of one number": ((3, 4, 5, 5), (1, 1), {"stride": 2}),
    "3d": ((1, 3, 5, 4, 6), (2, 3, 2), {"stride": 2, "padding": (0, 1, 2)}),
    "wider than the image": ((2, 2, 2, 2), (5, 5), {"padding": 2}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("biased", [False, True])
def test_outputs_and_gradients_are_those_of_pytorch(name, biased):
    shape, kernel, options = CASES[name]
    channels = shape[1]
    given = [torch.randn(shape), torch.randn(channels, 1, *kernel), *([torch.randn(channels)] * biased)]
    tensors = [each.double().requires_grad_() for each in given]
    theirs = getattr(F, f"conv{len(kernel)}d")(*tensors, groups=channels, **options)
    ours = depthwise(*tensors, groups=channels, **options)
    assert ours.stride() == theirs.stride()
    torch.testing.assert_close(ours, theirs)
    weighting = torch.randn_like(theirs)
    wanted, found = (
        torch.autograd.grad((each.pow(2) * weighting).sum(), tensors, create_graph=True)
        for each in (theirs, ours)
    )
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(other, one)
    again = [
        torch.autograd.grad(sum(each.pow(3).sum() for each in every), tensors) for every in (wanted, found)
    ]
    for one, other in zip(*again, strict=True):
        torch.testing.assert_close(other, one)


X, W = torch.randn(2, 4, 5, 5, dtype=torch.float64), torch.randn(4, 1, 3, 3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ((X, W), {}),
        ((X, W.repeat(2, 1, 1, 1)), {"groups": 4}),
        ((X, W.repeat(1, 2, 1, 1)), {"groups": 2}),
        ((X[0], W), {"groups": 4}),
        ((X.float(), W.float()), {"groups": 4}),
        ((X, W), {"groups": 4, "padding": "same"}),
        ((X[..., :2], W), {"groups": 4}),
    ],
)
def test_other_convolutions_are_left_to_pytorch(args, options):
    assert depthwise(*args, **options) is None


def test_a_proof_computes_them_so_and_its_errors_are_those_of_pytorch():
    calls = []

    class Counted(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    for convolve in (F.conv2d, torch.conv2d, torch.ops.aten.conv2d.default):
        with exact(), Counted():
            found = convolve(X, W, groups=4)
        torch.testing.assert_close(found, F.conv2d(X, W, groups=4))
    assert not any("convolution" in each for each in calls)
    with exact(), pytest.raises(RuntimeError, match="expected input"):
        F.conv2d(X[:, :3], W, groups=4)


def test_functions_of_functions_work_as_before():
    def loss(weight):
        return F.conv2d(X, weight, groups=4).sum()

    with exact():
        found = torch.func.grad(loss)(W)
        every = torch.vmap(loss)(torch.stack((W, 2 * W)))
    torch.testing.assert_close(found, torch.func.grad(loss)(W))
    torch.testing.assert_close(every, torch.stack((loss(W), loss(2 * W))))
