"""A small transformer that continues texts character by character."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.settings import MAX_LAYERS, size_of, whole


class TransformerBlock(nn.Module):
    """Causal self-attention and an MLP of four times the width, each behind a layer norm and added on."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5  # kept when heads become narrower
        self.norm1 = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) to the same."""
        y = self.norm1(x)
        q, k, v = (self._by_head(part(y)) for part in (self.query, self.key, self.value))
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        x = x + self.project(seen.transpose(1, 2).flatten(2))
        return x + self.contract(F.gelu(self.expand(self.norm2(x))))

    def _by_head(self, x: Tensor) -> Tensor:
        """(N, heads, T, width / heads)."""
        return torch.unflatten(x, 2, (self.heads, -1)).transpose(1, 2)


class CharTransformer(nn.Module):
    """A decoder of the GPT kind (Radford et al. 2019), 110,000 parameters by default.

    `embed`, `position`, blocks, `norm`, `output`: (N, T) numbers of characters to (N, characters, T).
    Position t of the output tells of the character that follows position t of the input, as
    `cross_entropy` takes it.

    Args:
        input_shape: (T,), the longest text.
        outputs: how many characters there are.
        width: of the residual stream.
        heads: of the attention; they share the width.
        layers: how many blocks.

    Raises:
        InputError: if the heads do not divide the width, or the input is no text.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        *,
        width: PositiveInt = 64,
        heads: PositiveInt = 4,
        layers: PositiveInt = 2,
    ) -> None:
        super().__init__()
        if len(input_shape) != 1:
            raise InputError(f"char_transformer reads texts of the shape (T,), not {tuple(input_shape)}")
        width, heads = size_of("width", width), size_of("heads", heads)
        layers = whole("layers", layers, 1, MAX_LAYERS)
        if width % heads:
            raise InputError(f"char_transformer: heads = {heads} does not divide width = {width}")
        self.embed = nn.Embedding(size_of("outputs", outputs), width)
        self.position = nn.Parameter(torch.zeros(input_shape[0], width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, outputs)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all initial values again, as in GPT-2: normal with deviation 0.02; biases zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        nn.init.normal_(self.position, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, characters, T) raw outputs for (N, T) numbers, T at most that of the input shape."""
        x = self.embed(tokens) + self.position[: tokens.shape[1]]
        return self.output(self.norm(self.blocks(x))).transpose(1, 2)
