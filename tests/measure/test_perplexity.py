"""Perplexity in windows, against one token after the other from the words before it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from prunekit.errors import DataError, InputError
from prunekit.measure import perplexity

WORDS = 30


def llama() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        vocab_size=WORDS,
    )
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data *= 3  # far from uniform
    return model


def text(count: int) -> Tensor:
    return torch.randint(0, WORDS, (count,), generator=torch.Generator().manual_seed(1))


class Fixed(nn.Module):
    """The same logits everywhere."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, ids: Tensor) -> Tensor:
        return self.logits.expand(*ids.shape, -1)


def naive(model: Any, tokens: Tensor, length: int) -> float:
    """Each token from a pass over the words before it in its window alone."""
    losses = []
    for start in range(0, len(tokens) - length + 1, length):
        window = tokens[start : start + length]
        for place in range(1, length):
            with torch.no_grad():
                last = model.eval()(window[None, :place]).logits[0, -1].double()
            losses.append(-math.log(float(torch.softmax(last, 0)[window[place]])))
    return math.exp(sum(losses) / len(losses))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("count", "length"), [(24, 8), (31, 8), (5, 2)])
def test_that_of_one_word_after_the_other(count: int, length: int, batch: int) -> None:
    model = llama()
    expected = naive(model, text(count), length)
    model.train()
    assert perplexity(model, text(count), length=length, batch=batch) == pytest.approx(expected, rel=1e-4)
    assert perplexity(model, text(count)[None], length=length) == pytest.approx(expected, rel=1e-4)
    assert model.training


def test_by_hand() -> None:
    assert perplexity(Fixed([0.0] * 7), torch.tensor([1, 2, 3, 4]), length=2) == pytest.approx(7)
    # words 0 and 1 with the chances 0.8 and 0.2; the first of each window of 3 is given
    model = Fixed([math.log(0.8), math.log(0.2)])
    found = perplexity(model, torch.tensor([1, 0, 0, 1, 1, 0, 1]), length=3)
    assert found == pytest.approx((0.8 * 0.8 * 0.2 * 0.8) ** (-1 / 4))


def test_what_cannot_be_measured_is_refused() -> None:
    model = Fixed([0.0, 0.0])
    with pytest.raises(InputError, match="3 tokens, which is not one window of 4"):
        perplexity(model, torch.tensor([0, 1, 1]), length=4)
    for wrong in (torch.rand(8), torch.zeros(2, 4, dtype=torch.long)):
        with pytest.raises(InputError, match="whole numbers"):
            perplexity(model, wrong, length=2)
    with pytest.raises(InputError, match="at least 2"):
        perplexity(model, torch.tensor([0, 1]), length=1)
    with pytest.raises(DataError, match="window 1 "):
        perplexity(Fixed([0.0, -math.inf]), torch.tensor([0, 0, 1, 1]), length=2)
    with pytest.raises(InputError, match="no logits"):
        perplexity(nn.Embedding(2, 2).apply(_numbers), torch.tensor([0, 1]), length=2)


def _numbers(module: nn.Module) -> None:
    module.forward = lambda ids: ids  # type: ignore[method-assign]
