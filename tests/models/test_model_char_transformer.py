"""The character transformer: shapes, causality, and its attention against a loop."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import fx

from prunekit.errors import InputError
from prunekit.models import CharTransformer, TransformerBlock


def test_shapes_counts_and_tracing():
    model = CharTransformer((64,), 65)
    tokens = torch.randint(65, (3, 64))
    assert model(tokens).shape == (3, 65, 64)
    assert model(tokens[:, :10]).shape == (3, 65, 10)
    block = 4 * (64 * 64 + 64) + 64 * 256 + 256 + 256 * 64 + 64 + 4 * 64
    expected = 65 * 64 + 64 * 64 + 2 * block + 128 + 64 * 65 + 65
    assert sum(p.numel() for p in model.parameters()) == expected
    assert torch.equal(fx.symbolic_trace(model)(tokens), model(tokens))


def test_no_position_sees_what_follows():
    torch.manual_seed(0)
    model = CharTransformer((12,), 7, width=8, heads=2)
    tokens = torch.randint(7, (2, 12))
    changed = tokens.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 7
    before, after = model(tokens), model(changed)
    assert torch.allclose(before[..., :6], after[..., :6])
    assert not torch.allclose(before[..., 6:], after[..., 6:])


@torch.no_grad()
def test_a_block_against_a_loop_over_heads():
    torch.manual_seed(0)
    block = TransformerBlock(6, 2).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    y = block.norm1(x)
    seen = torch.zeros_like(x)
    for n in range(2):
        for head in range(2):
            own = slice(3 * head, 3 * head + 3)
            q, k, v = (part(y[n])[:, own] for part in (block.query, block.key, block.value))
            for t in range(5):
                weights = torch.softmax(k[: t + 1] @ q[t] / math.sqrt(3), 0)
                seen[n, t, own] = weights @ v[: t + 1]
    middle = x + block.project(seen)
    expected = middle + block.contract(F.gelu(block.expand(block.norm2(middle))))
    assert torch.allclose(block(x), expected)


def test_refused():
    with pytest.raises(InputError, match="heads = 3 does not divide width = 8"):
        CharTransformer((4,), 5, width=8, heads=3)
    with pytest.raises(InputError, match="texts of the shape"):
        CharTransformer((1, 28, 28), 5)
