"""Sparse layers compute what PyTorch's dense ones do, of any shape, density and number of inputs."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prunekit.errors import InputError
from prunekit.runtime import SparseConv2d, SparseLinear

DENSITIES = st.sampled_from((0.0, 0.05, 0.5, 1.0))
DTYPES = st.sampled_from((torch.float32, torch.float64))


def sparse_values(shape, density, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (values * (torch.rand(shape, generator=generator) < density)).to(dtype)


def close(found, expected, terms):
    """Sums of so many products of about 1, in another order."""
    largest = max(1.0, float(expected.detach().abs().max())) if expected.numel() else 1.0
    room = 8 * max(1, terms) ** 0.5 * torch.finfo(expected.dtype).eps * largest
    torch.testing.assert_close(found, expected, rtol=0, atol=room)
    assert found.is_contiguous()


@given(
    out=st.integers(1, 9),
    inputs=st.integers(1, 70),
    leading=st.sampled_from(((), (1,), (2,), (7,), (64,), (0,), (1, 1), (2, 3), (3, 1, 2), (2, 0))),
    density=DENSITIES,
    dtype=DTYPES,
    bias=st.booleans(),
    transposed=st.booleans(),
)
def test_a_sparse_linear_layer_is_the_dense_one(out, inputs, leading, density, dtype, bias, transposed):
    weight = sparse_values((out, inputs), density, dtype)
    biases = sparse_values((out,), 1.0, dtype, seed=1) if bias else None
    x = sparse_values((*leading, inputs), 1.0, dtype, seed=2)
    if transposed and len(leading) == 1:
        x = x.t().contiguous().t()
    layer = SparseLinear(weight, biases)
    close(layer(x), F.linear(x, weight, biases), inputs)
    assert torch.equal(layer.weight, weight)
    assert len(layer.values) == int(weight.count_nonzero())


@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(5, 8), st.integers(5, 8)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    padding=st.sampled_from((0, 1, (2, 1), "same", "valid")),
    mode=st.sampled_from(("zeros", "reflect", "circular")),
    dilation=st.integers(1, 2),
    density=DENSITIES,
    batch=st.sampled_from((None, 0, 1, 3)),
    bias=st.booleans(),
    channels_last=st.booleans(),
)
def test_a_sparse_convolution_is_the_dense_one(
    sizes, kernel, stride, padding, mode, dilation, density, batch, bias, channels_last
):
    channels, out, *size = sizes
    stride = 1 if padding == "same" else stride
    mode = "zeros" if batch == 0 else mode  # PyTorch itself pads no empty batch otherwise
    conv = nn.Conv2d(
        channels, out, kernel, stride, padding, dilation=dilation, bias=bias, padding_mode=mode
    ).requires_grad_(False)
    conv.weight.copy_(sparse_values(conv.weight.shape, density))
    if channels_last:
        conv = conv.to(memory_format=torch.channels_last)
    x = sparse_values((*(() if batch is None else (batch,)), channels, *size), 1.0, seed=2)
    layer = SparseConv2d(conv)
    expected = conv(x)
    close(layer(x), expected.contiguous(), conv.weight[0].numel())
    assert torch.equal(layer.weight, conv.weight)
    assert (layer.bias is None) == (conv.bias is None)


def test_the_product_is_the_one_worked_out_by_hand():
    layer = SparseLinear(torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]), torch.tensor([1.0, 3.0]))
    assert layer(torch.tensor([5.0, 7.0, 11.0])).tolist() == [15.0, 3.0]
    assert layer(torch.tensor([[5.0, 7.0, 11.0], [0.0, 1.0, 0.0]])).tolist() == [[15.0, 3.0], [3.0, 3.0]]
    assert (layer.crow_indices.tolist(), layer.col_indices.tolist(), layer.values.tolist()) == (
        [0, 1, 1],
        [1],
        [2.0],
    )
    assert layer.crow_indices.dtype == layer.col_indices.dtype == torch.int32
    assert layer.density == 1 / 6


def test_gradients_pass_to_inputs_and_nothing_is_trained():
    weight, bias = sparse_values((4, 6), 0.4), sparse_values((4,), 1.0, seed=1)
    for leading in ((), (3,)):
        x, y = (sparse_values((*leading, 6), 1.0, seed=2).requires_grad_() for _ in range(2))
        layer = SparseLinear(weight, bias)
        layer(x).square().sum().backward()
        F.linear(y, weight, bias).square().sum().backward()
        torch.testing.assert_close(x.grad, y.grad)
        assert not list(layer.parameters())


def both():
    conv = nn.Conv2d(2, 3, 3, padding=1).requires_grad_(False)
    conv.weight.copy_(sparse_values(conv.weight.shape, 0.3))
    return [
        (SparseLinear(sparse_values((5, 8), 0.3), torch.ones(5)), torch.ones(2, 8)),
        (SparseConv2d(conv), sparse_values((2, 2, 4, 4), 1.0)),
    ]


@pytest.mark.parametrize(("layer", "x"), both(), ids=("linear", "conv"))
def test_copies_pickles_and_states_are_the_same_layer(layer, x):
    expected = layer(x)
    copied = copy.deepcopy(layer)
    assert torch.equal(copied(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), expected)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    with torch.no_grad():
        for buffer in copied.buffers():
            buffer.zero_()
    copied.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(copied(x), expected)
    copied.load_state_dict({name: value.clone() for name, value in layer.state_dict().items()}, assign=True)
    assert torch.equal(copied(x), expected)


@pytest.mark.parametrize(("layer", "x"), both(), ids=("linear", "conv"))
def test_precision_changes_with_the_network_but_not_to_one_without_kernels(layer, x):
    layer = copy.deepcopy(layer)
    expected = layer(x)
    assert layer.to(torch.float64)(x.double()).dtype == torch.float64
    torch.testing.assert_close(layer(x.double()).float(), expected)
    for half in (torch.float16, torch.bfloat16):
        with pytest.raises(InputError, match=r"sparse layers run in float32 or float64, not in b?float16"):
            layer.to(half)
    torch.testing.assert_close(layer.float()(x), expected)


def test_layers_without_kernels_are_refused():
    with pytest.raises(InputError, match="not in float16"):
        SparseLinear(torch.zeros(2, 2, dtype=torch.float16))
    with pytest.raises(InputError, match="one group, got groups=2"):
        SparseConv2d(nn.Conv2d(2, 2, 1, groups=2))


def test_rows_that_lead_out_of_the_layer_are_not_loaded():
    layer = SparseLinear(torch.tensor([[1.0, 0, 2], [0, 3, 0]]))
    before = copy.deepcopy(layer.state_dict())
    for name, place, value in (
        ("col_indices", 0, 10**9),
        ("col_indices", 2, -1),
        ("crow_indices", 1, 10**6),
        ("crow_indices", 2, 2),
    ):
        damaged = {key: each.clone() for key, each in before.items()}
        damaged[name][place] = value
        damaged["values"] += 1
        for state, strict in ((damaged, True), ({name: damaged[name]}, False)):
            with pytest.raises(RuntimeError, match="no rows of this layer"):
                layer.load_state_dict(state, strict=strict)
    other = SparseLinear(torch.ones(2, 3)).state_dict()
    for state in (other, {"crow_indices": other["crow_indices"]}, {"values": "text"}):
        with pytest.raises(RuntimeError, match="no rows of this layer"):
            layer.load_state_dict(state, strict=False)
    assert all(torch.equal(each, before[name]) for name, each in layer.state_dict().items())
    assert layer(torch.ones(2, 3)).tolist() == [[3, 3], [3, 3]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_under_autocast_types_are_those_of_a_dense_layer_and_values_are_no_less_exact(dtype):
    dense = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 3)).to(dtype)
    sparse = nn.Sequential(SparseConv2d(dense[0]), nn.Flatten(), SparseLinear(dense[2].weight, dense[2].bias))
    x = sparse_values((5, 2, 4, 4), 1.0, dtype)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected, found = dense(x), sparse(x)
    assert found.dtype is expected.dtype
    exact = dense.double()(x.double()).detach()
    eps = torch.finfo(found.dtype).eps
    torch.testing.assert_close(
        found.double(), exact, rtol=0, atol=4 * eps * max(1.0, float(exact.abs().max()))
    )


def test_weights_and_biases_that_do_not_fit_are_refused():
    for weight in (torch.ones(3), torch.ones(2, 3, 1)):
        with pytest.raises(InputError, match="two dimensions"):
            SparseLinear(weight)
    for bias in (torch.ones(1), torch.ones(3), torch.ones(2, 1), torch.ones(2).double()):
        with pytest.raises(InputError, match=r"a bias for weights \[2, 3\]"):
            SparseLinear(torch.ones(2, 3), bias)


def test_inputs_of_another_width_are_an_error_and_not_other_rows():
    layer = SparseLinear(sparse_values((5, 8), 0.3))
    with pytest.raises(RuntimeError):
        layer(torch.ones(3, 16))
    with pytest.raises(RuntimeError):
        layer(torch.ones(16))
