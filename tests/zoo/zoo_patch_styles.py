"""Vision transformers and mixers on patches in the styles of torchvision and timm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from zoo_attention import Mlp


class EncoderBlock(nn.Module):
    """As torchvision's: `nn.MultiheadAttention` and an MLP of a Sequential."""

    def __init__(self, width, heads, hidden):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0.0), nn.Linear(hidden, width)
        )

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.self_attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class TorchvisionVit(nn.Module):
    def __init__(self, width=16, heads=4, patch=4):
        super().__init__()
        self.conv_proj, self.hidden_dim, self.patch_size = nn.Conv2d(3, width, patch, patch), width, patch
        self.class_token = nn.Parameter(torch.randn(1, 1, width) * 0.1)
        self.pos_embedding = nn.Parameter(torch.randn(1, 17, width) * 0.1)
        self.encoder = nn.Sequential(EncoderBlock(width, heads, 24), EncoderBlock(width, heads, 24))
        self.heads = nn.Linear(width, 5)

    def forward(self, x):
        n, _, h, w = x.shape
        x = self.conv_proj(x).reshape(n, self.hidden_dim, (h // self.patch_size) * (w // self.patch_size))
        x = torch.cat([self.class_token.expand(n, -1, -1), x.permute(0, 2, 1)], 1) + self.pos_embedding
        return self.heads(self.encoder(x)[:, 0])


class TimmAttention(nn.Module):
    """As timm's: `num_heads`, `head_dim` and `scale` kept as attributes, norms of queries and keys."""

    def __init__(self, dim, num_heads=4, qk_norm=False, fused=True):
        super().__init__()
        self.num_heads, self.head_dim, self.fused = num_heads, dim // num_heads, fused
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(dim, dim * 3), nn.Linear(dim, dim)
        self.q_norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()

    def forward(self, x):
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).reshape(B, N, C))


class LayerScale(nn.Module):
    def __init__(self, dim, value=0.5):
        super().__init__()
        self.gamma = nn.Parameter(value * torch.ones(dim))

    def forward(self, x):
        return x * self.gamma


class DropPath(nn.Module):
    def __init__(self, rate=0.0):
        super().__init__()
        self.rate = rate

    def forward(self, x):
        if not self.training or self.rate == 0.0:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)


class TimmBlock(nn.Module):
    def __init__(self, dim, attention):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = attention, Mlp(dim, 24)
        self.ls1, self.ls2, self.drop_path = LayerScale(dim), LayerScale(dim), DropPath(0.1)

    def forward(self, x):
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class Patched(nn.Module):
    """Patches of an image as tokens through blocks to a head."""

    def __init__(self, *blocks, width=16, patch=4):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, patch, patch)
        self.blocks, self.norm, self.head = nn.Sequential(*blocks), nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(1))


class TalkingHeads(nn.Module):
    """CaiT: linear layers across heads before and after the softmax."""

    def __init__(self, dim, num_heads=4):
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, dim * 3), nn.Linear(dim, dim)
        self.proj_l, self.proj_w = nn.Linear(num_heads, num_heads), nn.Linear(num_heads, num_heads)

    def forward(self, x):
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * self.scale, qkv[1], qkv[2]
        attn = self.proj_l((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(dim=-1)
        attn = self.proj_w(attn.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.proj((attn @ v).transpose(1, 2).reshape(B, N, C))


class CrossCovariance(nn.Module):
    """XCiT: attention among channels, with a temperature for each head."""

    def __init__(self, dim, num_heads=4):
        super().__init__()
        self.num_heads, self.temperature = num_heads, nn.Parameter(torch.ones(num_heads, 1, 1))
        self.qkv, self.proj = nn.Linear(dim, dim * 3), nn.Linear(dim, dim)

    def forward(self, x):
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 4, 1)
        q, k, v = qkv.unbind(0)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        attn = ((q @ k.transpose(-2, -1)) * self.temperature).softmax(dim=-1)
        return self.proj((attn @ v).permute(0, 3, 1, 2).reshape(B, N, C))


class ReducedAttention(nn.Module):
    """Twins and PVT: keys and values of a coarser map, made together."""

    def __init__(self, dim, num_heads=4, sr=2):
        super().__init__()
        self.num_heads, self.dim = num_heads, dim
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, dim * 2), nn.Linear(dim, dim)
        self.sr, self.norm = nn.Conv2d(dim, dim, sr, sr), nn.LayerNorm(dim)

    def forward(self, x):
        B, N, C = x.shape
        side = int(N**0.5)
        q = self.q(x).reshape(B, N, self.num_heads, C // self.num_heads).permute(0, 2, 1, 3)
        y = self.sr(x.permute(0, 2, 1).reshape(B, C, side, side)).reshape(B, C, -1).permute(0, 2, 1)
        kv = (
            self.kv(self.norm(y))
            .reshape(B, -1, 2, self.num_heads, C // self.num_heads)
            .permute(2, 0, 3, 1, 4)
        )
        x = F.scaled_dot_product_attention(q, kv[0], kv[1])
        return self.proj(x.transpose(1, 2).reshape(B, N, C))


class SpatialGate(nn.Module):
    """gMLP: half of the channels gates the other along the tokens."""

    def __init__(self, dim, hidden, tokens):
        super().__init__()
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden // 2, dim)
        self.norm, self.mix = nn.LayerNorm(hidden // 2), nn.Linear(tokens, tokens)

    def forward(self, x):
        u, v = F.gelu(self.up(x)).chunk(2, dim=-1)
        v = self.mix(self.norm(v).transpose(-1, -2)).transpose(-1, -2)
        return self.down(u * v)


class Affine(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.ones(1, 1, dim)), nn.Parameter(torch.zeros(1, 1, dim))

    def forward(self, x):
        return torch.addcmul(self.beta, self.alpha, x)


class ResMlpBlock(nn.Module):
    def __init__(self, dim, tokens):
        super().__init__()
        self.norm1, self.norm2, self.linear = Affine(dim), Affine(dim), nn.Linear(tokens, tokens)
        self.mlp, self.ls1, self.ls2 = Mlp(dim, 24), LayerScale(dim), LayerScale(dim)

    def forward(self, x):
        x = x + self.ls1(self.linear(self.norm1(x).transpose(1, 2)).transpose(1, 2))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) + x


def patched(block):
    return lambda: Patched(block(), block())


IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
PATCH_STYLES = {
    "torchvision-vit": (TorchvisionVit, IMAGE),
    "timm-vit": (patched(lambda: TimmBlock(16, TimmAttention(16, qk_norm=True))), IMAGE),
    "timm-vit-plain": (patched(lambda: TimmBlock(16, TimmAttention(16, fused=False))), IMAGE),
    "cait": (patched(lambda: TimmBlock(16, TalkingHeads(16))), IMAGE),
    "xcit": (patched(lambda: TimmBlock(16, CrossCovariance(16))), IMAGE),
    "twins": (patched(lambda: TimmBlock(16, ReducedAttention(16))), IMAGE),
    "gmlp": (patched(lambda: Residual(SpatialGate(16, 24, 16))), IMAGE),
    "resmlp": (patched(lambda: ResMlpBlock(16, 16)), IMAGE),
}
