"""One small network for each construction that is cut wrongly, or not at all, elsewhere (METHODS 4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
WORDS = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))


class Made(nn.Module):
    """Layers by name and a forward that reads them: `forward(self, x)` is given."""

    def __init__(self, run: Callable[[Any, torch.Tensor], torch.Tensor], **layers: Any) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            if isinstance(layer, torch.Tensor) and not isinstance(layer, nn.Parameter):
                self.register_buffer(name, layer)
            else:
                setattr(self, name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(self, x)


def _conv(a: int, b: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(a, b, kernel, padding=kernel // 2, **options)


def _pooled(x: torch.Tensor) -> torch.Tensor:
    return x.mean((2, 3))


def _heads(x: torch.Tensor, heads: int, width: int) -> torch.Tensor:
    return x.view(*x.shape[:2], heads, width).transpose(1, 2)


def attention() -> nn.Module:
    def run(self: Any, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (_heads(layer(x), 4, 4) for layer in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 6, 16))

    return Made(run, q=nn.Linear(8, 16), k=nn.Linear(8, 16), v=nn.Linear(8, 16), o=nn.Linear(16, 3))


def grouped_keys() -> nn.Module:
    def run(self: Any, x: torch.Tensor) -> torch.Tensor:
        q = _heads(self.q(x), 4, 4)
        k, v = (_heads(layer(x), 2, 4).repeat_interleave(2, 1) for layer in (self.k, self.v))
        shares = (q @ k.transpose(-1, -2) / 2).softmax(-1)
        return self.o((shares @ v).transpose(1, 2).flatten(2))

    return Made(run, q=nn.Linear(8, 16), k=nn.Linear(8, 8), v=nn.Linear(8, 8), o=nn.Linear(16, 3))


def _attend(self: Any, y: torch.Tensor) -> torch.Tensor:
    n, t, _ = y.shape
    q, k, v = self.qkv(y).reshape(n, t, 3, 2, 4).permute(2, 0, 3, 1, 4)
    return self.o(((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).reshape(n, t, 8))


def shifted_windows() -> nn.Module:
    def run(self: Any, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).permute(0, 2, 3, 1).roll((-1, -1), (1, 2))
        y = x.view(2, 4, 2, 4, 2, 8).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 8)
        y = _attend(self, y).view(2, 4, 4, 2, 2, 8).permute(0, 1, 3, 2, 4, 5).reshape(2, 8, 8, 8)
        return self.last(y.roll((1, 1), (1, 2)).mean((1, 2)))

    return Made(run, stem=_conv(3, 8), qkv=nn.Linear(8, 24), o=nn.Linear(8, 8), last=nn.Linear(8, 3))


def grid_attention() -> nn.Module:
    def run(self: Any, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        y = x.view(2, 4, 2, 4, 2, 8).permute(0, 2, 4, 1, 3, 5).reshape(-1, 16, 8)
        y = _attend(self, y).view(2, 2, 2, 4, 4, 8).permute(0, 3, 1, 4, 2, 5).reshape(2, 8, 8, 8)
        return self.last(y.mean((1, 2)))

    return Made(run, stem=_conv(3, 8), qkv=nn.Linear(8, 24), o=nn.Linear(8, 8), last=nn.Linear(8, 3))


def channel_shuffle() -> nn.Module:
    def run(self: Any, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        x = x.view(2, 4, 2, 8, 8).transpose(1, 2).reshape(2, 8, 8, 8)
        return _pooled(self.b(x))

    return Made(run, a=_conv(3, 8), b=_conv(8, 6))


def flip() -> nn.Module:
    return Made(lambda self, x: _pooled(self.b(self.a(x).flip(1))), a=_conv(3, 8), b=_conv(8, 6))


def roll() -> nn.Module:
    return Made(lambda self, x: _pooled(self.b(self.a(x).roll(3, 1))), a=_conv(3, 8), b=_conv(8, 6))


def stack_flatten() -> nn.Module:
    def run(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.stack([self.a(x), self.b(x)], -1).flatten(-2))

    return Made(run, a=nn.Linear(8, 6), b=nn.Linear(8, 6), c=nn.Linear(12, 3))


def channels_last_flatten() -> nn.Module:
    def run(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).permute(0, 2, 3, 1).reshape(2, -1))

    return Made(run, a=_conv(3, 6), b=nn.Linear(384, 3))


def padded_shortcut() -> nn.Module:
    def run(self: Any, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        return _pooled(self.d(self.c(F.relu(self.b(x))) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))))

    return Made(run, a=_conv(3, 6), b=nn.Conv2d(6, 8, 3, 2, 1), c=_conv(8, 10), d=_conv(10, 4))


def glu() -> nn.Module:
    return Made(lambda self, x: self.b(F.glu(self.a(x))), a=nn.Linear(8, 12), b=nn.Linear(6, 3))


def pixel_shuffle() -> nn.Module:
    def run(self: Any, x: torch.Tensor) -> torch.Tensor:
        return _pooled(self.b(F.pixel_shuffle(self.a(x), 2)))

    return Made(run, a=_conv(3, 16), b=_conv(4, 3))


def repeated() -> nn.Module:
    def run(self: Any, x: torch.Tensor) -> torch.Tensor:
        return _pooled(self.b(self.a(x).repeat(1, 2, 1, 1)))

    return Made(run, a=_conv(3, 6), b=_conv(12, 3))


def static_split() -> nn.Module:
    def run(self: Any, x: torch.Tensor) -> torch.Tensor:
        a, b = self.up(x).split([4, 8], -1)
        return self.a(a) + self.b(b)

    return Made(run, up=nn.Linear(8, 12), a=nn.Linear(4, 3), b=nn.Linear(8, 3))


def channel_buffer() -> nn.Module:
    def run(self: Any, x: torch.Tensor) -> torch.Tensor:
        return _pooled(self.b((self.a(x) - self.mean) / self.spread))

    return Made(
        run, a=_conv(3, 6), b=_conv(6, 3), mean=torch.zeros(1, 6, 1, 1), spread=torch.ones(1, 6, 1, 1)
    )


def raw_product() -> nn.Module:
    def run(self: Any, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.w + self.c).relu() @ self.v

    weights = {name: nn.Parameter(torch.randn(*shape)) for name, shape in (("w", (8, 6)), ("v", (6, 3)))}
    return Made(run, **weights, c=nn.Parameter(torch.randn(6)))


def weight_norm() -> nn.Module:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(8, 6))
    return Made(
        lambda self, x: self.c(self.b(self.a(x).relu()).relu()), a=layer, b=nn.Linear(6, 6), c=nn.Linear(6, 3)
    )


def spectral_norm() -> nn.Module:
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 6))
    return Made(
        lambda self, x: self.c(self.b(self.a(x).relu()).relu()), a=layer, b=nn.Linear(6, 6), c=nn.Linear(6, 3)
    )


def token_mixing() -> nn.Module:
    def run(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.last(x + self.b(self.a(x.transpose(1, 2)).relu()).transpose(1, 2))

    return Made(run, a=nn.Linear(6, 10), b=nn.Linear(10, 6), last=nn.Linear(8, 3))


def recurrent(cell: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        run = lambda self, x: self.last(self.rnn(self.a(x))[0])  # noqa: E731
        return Made(run, a=nn.Linear(8, 6), rnn=cell(6, 5, batch_first=True), last=nn.Linear(5, 3))

    return make


def norm_over_all() -> nn.Module:
    def run(self: Any, x: torch.Tensor) -> torch.Tensor:
        return _pooled(self.b(self.norm(self.a(x))))

    return Made(run, a=_conv(3, 6), norm=nn.LayerNorm((6, 8, 8)), b=_conv(6, 3))


def depthwise_multiplier() -> nn.Module:
    def run(self: Any, x: torch.Tensor) -> torch.Tensor:
        return _pooled(self.c(self.b(self.a(x))))

    return Made(run, a=_conv(3, 6), b=_conv(6, 12, groups=6), c=_conv(12, 3))


def concat_flatten() -> nn.Module:
    def run(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.cat([self.a(x), self.b(x)], 1).flatten(1))

    return Made(run, a=_conv(3, 4), b=_conv(3, 6), c=nn.Linear(640, 3))


def frozen_producer() -> nn.Module:
    """What is added cannot change: a sum with the network's own input."""
    return Made(lambda self, x: self.b(self.a(x).relu() + x), a=nn.Linear(8, 8), b=nn.Linear(8, 3))


def auxiliary() -> nn.Module:
    def run(self: Any, x: torch.Tensor) -> Any:
        x = self.a(x).relu()
        out = self.b(x)
        return (out, self.aux(x)) if self.training else out

    return Made(run, a=nn.Linear(8, 12), b=nn.Linear(12, 3), aux=nn.Linear(12, 3))


def conv1d_of_transformers() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return Made(lambda self, x: self.b(F.gelu(self.a(x))), a=Conv1D(12, 8), b=Conv1D(3, 12))


def tied_embeddings() -> nn.Module:
    def run(self: Any, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        return self.head(x + self.b(self.a(x).relu()))

    model = Made(
        run,
        embed=nn.Embedding(9, 8),
        a=nn.Linear(8, 12),
        b=nn.Linear(12, 8),
        head=nn.Linear(8, 9, bias=False),
    )
    model.head.weight = model.embed.weight
    return model


def frozen_weights() -> nn.Module:
    model = Made(lambda self, x: self.b(self.a(x).relu()), a=nn.Linear(8, 12), b=nn.Linear(12, 3))
    return model.requires_grad_(False)


Entry = tuple[Callable[[], nn.Module], torch.Tensor]
CONSTRUCTIONS: dict[str, Entry] = {
    "attention without hints": (attention, WORDS),
    "grouped keys and values": (grouped_keys, WORDS),
    "shifted windows": (shifted_windows, IMAGE),
    "grid attention": (grid_attention, IMAGE),
    "channel shuffle": (channel_shuffle, IMAGE),
    "flip": (flip, IMAGE),
    "roll": (roll, IMAGE),
    "stack then flatten": (stack_flatten, WORDS),
    "channels-last flatten": (channels_last_flatten, IMAGE),
    "padded shortcut": (padded_shortcut, IMAGE),
    "GLU": (glu, WORDS),
    "pixel shuffle": (pixel_shuffle, IMAGE),
    "repeat": (repeated, IMAGE),
    "static split sizes": (static_split, WORDS),
    "per-channel buffers": (channel_buffer, IMAGE),
    "raw-parameter products": (raw_product, WORDS),
    "weight norm": (weight_norm, WORDS),
    "spectral norm": (spectral_norm, WORDS),
    "token mixing": (token_mixing, WORDS),
    "LSTM": (recurrent(nn.LSTM), WORDS),
    "GRU": (recurrent(nn.GRU), WORDS),
    "LayerNorm over (C, H, W)": (norm_over_all, IMAGE),
    "depthwise multiplier": (depthwise_multiplier, IMAGE),
    "concat + flatten": (concat_flatten, IMAGE),
    "frozen producer": (frozen_producer, WORDS),
    "auxiliary head in training": (auxiliary, WORDS),
    "Conv1D": (conv1d_of_transformers, WORDS),
    "tied embeddings": (tied_embeddings, torch.arange(12).reshape(2, 6) % 9),
    "frozen weights": (frozen_weights, WORDS),
}
