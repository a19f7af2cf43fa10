"""Networks that were written apart from the analysis: it is not fitted to them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from zoo_held_out_images import HELD_OUT_IMAGES


class DeepSpeech(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, 6, 3, (2, 1), 1),
            nn.BatchNorm2d(6),
            nn.Hardtanh(0, 20),
            nn.Conv2d(6, 6, 3, (2, 1), 1),
        )
        self.rnn, self.fc = (
            nn.GRU(12, 8, bidirectional=True),
            nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 9)),
        )

    def forward(self, x):
        x = self.conv(x.unsqueeze(1))
        sizes = x.size()
        x = x.view(sizes[0], sizes[1] * sizes[2], sizes[3]).permute(2, 0, 1).contiguous()
        x, _ = self.rnn(x)
        return self.fc(x).transpose(0, 1)


class RelativeAttention(nn.Module):
    """Transformer-XL: content and place terms with biases for each head, by einsum."""

    def __init__(self, d_model=16, n_head=4, d_head=4):
        super().__init__()
        self.n_head, self.d_head, self.scale = n_head, d_head, 1 / d_head**0.5
        self.qkv_net, self.r_net = (
            nn.Linear(d_model, 3 * n_head * d_head),
            nn.Linear(d_model, n_head * d_head),
        )
        self.u, self.v = nn.Parameter(torch.randn(n_head, d_head)), nn.Parameter(torch.randn(n_head, d_head))
        self.o_net, self.norm = nn.Linear(n_head * d_head, d_model), nn.LayerNorm(d_model)

    def forward(self, x, r):
        q, k, v = torch.chunk(self.qkv_net(x), 3, dim=-1)
        b, t = x.shape[:2]
        q, k, v = (each.view(b, t, self.n_head, self.d_head) for each in (q, k, v))
        r = self.r_net(r).view(t, self.n_head, self.d_head)
        score = torch.einsum("bind,bjnd->bijn", q + self.u, k) + torch.einsum("bind,jnd->bijn", q + self.v, r)
        out = torch.einsum("bijn,bjnd->bind", (score * self.scale).softmax(2), v)
        return self.norm(x + self.o_net(out.reshape(b, t, self.n_head * self.d_head)))


class TransformerXl(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.places = nn.Embedding(30, 16), nn.Parameter(torch.randn(8, 16))
        self.layers, self.out = nn.ModuleList([RelativeAttention(), RelativeAttention()]), nn.Linear(16, 30)

    def forward(self, x):
        h = self.embed(x)
        for layer in self.layers:
            h = layer(h, self.places[: x.size(1)])
        return self.out(h)


class LinearBiases(nn.Module):
    """ALiBi with one head of keys and values for all queries."""

    def __init__(self, dim=16, heads=4):
        super().__init__()
        self.heads, self.each = heads, dim // heads
        self.to_q, self.to_kv = nn.Linear(dim, dim, bias=False), nn.Linear(dim, 2 * self.each, bias=False)
        self.embed, self.to_out, self.head = nn.Embedding(30, dim), nn.Linear(dim, dim), nn.Linear(dim, 30)
        self.register_buffer("slopes", 2.0 ** -torch.arange(1, heads + 1))

    def forward(self, ids):
        x = self.embed(ids)
        b, n, _ = x.shape
        q = self.to_q(x).view(b, n, self.heads, self.each).permute(0, 2, 1, 3)
        k, v = self.to_kv(x).split(self.each, dim=-1)
        apart = torch.arange(n)[None] - torch.arange(n)[:, None]
        sim = torch.einsum("bhid,bjd->bhij", q, k) * self.each**-0.5 + self.slopes.view(-1, 1, 1) * apart
        sim = sim.masked_fill(apart > 0, -torch.finfo(sim.dtype).max).softmax(-1)
        out = torch.einsum("bhij,bjd->bhid", sim, v).permute(0, 2, 1, 3).reshape(b, n, -1)
        return self.head(x + self.to_out(out))


class Resampler(nn.Module):
    """Learnt latents that ask the tokens, by a cross attention in the style of lucidrains."""

    def __init__(self, dim=12, latents=3, heads=2, dim_head=6):
        super().__init__()
        inner = heads * dim_head
        self.latents, self.heads, self.scale = nn.Parameter(torch.randn(latents, dim)), heads, dim_head**-0.5
        self.to_q, self.to_kv = nn.Linear(dim, inner, bias=False), nn.Linear(dim, inner * 2, bias=False)
        self.to_out, self.norm = nn.Linear(inner, dim, bias=False), nn.LayerNorm(dim)
        self.ff = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 20, bias=False), nn.GELU(), nn.Linear(20, dim)
        )

    def forward(self, x):
        latents = self.latents.unsqueeze(0).repeat(x.shape[0], 1, 1)
        k, v = self.to_kv(torch.cat((self.norm(x), latents), dim=-2)).chunk(2, dim=-1)
        q, k, v = (
            each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (self.to_q(latents), k, v)
        )
        out = ((q * self.scale) @ k.transpose(-1, -2)).softmax(-1) @ v
        latents = latents + self.to_out(out.transpose(1, 2).flatten(-2))
        return latents + self.ff(latents)


class Tagger(nn.Module):
    """Characters through a convolution and a maximum, beside words, through an LSTM."""

    def __init__(self):
        super().__init__()
        self.chars, self.conv = nn.Embedding(12, 6), nn.Conv1d(6, 8, 3, padding=1)
        self.words, self.lstm = nn.Embedding(30, 8), nn.LSTM(16, 10, batch_first=True, bidirectional=True)
        self.hidden, self.tags = nn.Linear(20, 12), nn.Linear(12, 5)

    def forward(self, words, chars):
        b, t, c = chars.shape
        x = self.conv(self.chars(chars.view(b * t, c)).transpose(1, 2)).max(-1)[0].view(b, t, -1)
        x, _ = self.lstm(torch.cat([self.words(words), x], -1))
        return self.tags(torch.tanh(self.hidden(x)))


class Sage(nn.Module):
    """Means over neighbours, by sums and counts of `index_add`."""

    def __init__(self):
        super().__init__()
        self.own1, self.near1 = nn.Linear(5, 12), nn.Linear(5, 12, bias=False)
        self.own2, self.near2 = nn.Linear(12, 4), nn.Linear(12, 4, bias=False)

    def mean(self, x, edges):
        total = x.new_zeros(x.shape).index_add(0, edges[1], x[edges[0]])
        count = x.new_zeros(len(x)).index_add(0, edges[1], x.new_ones(edges.size(1)))
        return total / count.clamp(min=1).unsqueeze(-1)

    def forward(self, x, edges):
        x = F.normalize(F.relu(self.own1(x) + self.near1(self.mean(x, edges))), dim=-1)
        return self.own2(x) + self.near2(self.mean(x, edges))


class ContinuousFilters(nn.Module):
    """SchNet: filters that are made from distances."""

    def __init__(self, width=12, bases=6):
        super().__init__()
        self.embedding, self.atom = nn.Embedding(8, width), nn.Linear(width, 10, bias=False)
        self.register_buffer("centres", torch.linspace(0, 3, bases))
        self.filters = nn.Sequential(nn.Linear(bases, 10), nn.Softplus(), nn.Linear(10, 10))
        self.out = nn.Sequential(nn.Linear(10, width), nn.Softplus(), nn.Linear(width, width))
        self.energy = nn.Sequential(nn.Linear(width, 6), nn.Softplus(), nn.Linear(6, 1))

    def forward(self, kinds, places):
        x = self.embedding(kinds)
        apart = (places[:, :, None] - places[:, None]).pow(2).sum(-1).add(1e-6).sqrt()
        w = self.filters(torch.exp(-10 * (apart[..., None] - self.centres) ** 2))
        x = x + self.out((self.atom(x)[:, None] * w).sum(2))
        return self.energy(x).sum(1)


class InteractingFields(nn.Module):
    """AutoInt: fields attend to each other, heads laid along the batch."""

    def __init__(self, width=8, heads=2, each=4):
        super().__init__()
        self.embed, self.heads, self.each = nn.Embedding(30, width), heads, each
        self.q, self.k, self.v, self.res = (nn.Linear(width, heads * each, bias=False) for _ in range(4))
        self.fc = nn.Linear(3 * heads * each, 1)

    def forward(self, ids):
        x = self.embed(ids)
        q, k, v = (torch.stack(torch.split(each(x), self.each, dim=2)) for each in (self.q, self.k, self.v))
        out = torch.matmul(torch.einsum("hbik,hbjk->hbij", q, k).softmax(-1), v)
        out = torch.cat(torch.split(out, 1), dim=-1).squeeze(0)
        return self.fc(F.relu(out + self.res(x)).flatten(1))


class CompressedInteraction(nn.Module):
    """xDeepFM: outer products of fields through convolutions of width 1, halves kept and passed on."""

    def __init__(self, fields=3, width=4, layer=8):
        super().__init__()
        self.embed = nn.Embedding(30, width)
        self.conv1, self.conv2 = (
            nn.Conv1d(fields * fields, layer, 1),
            nn.Conv1d(fields * layer // 2, layer, 1),
        )
        self.fc = nn.Linear(layer // 2 + layer, 1)

    def forward(self, ids):
        first = self.embed(ids)
        b, f, d = first.shape
        x = F.relu(self.conv1((first.unsqueeze(2) * first.unsqueeze(1)).view(b, f * f, d)))
        passed, kept = torch.split(x, x.shape[1] // 2, dim=1)
        x = F.relu(self.conv2((first.unsqueeze(2) * passed.unsqueeze(1)).reshape(b, -1, d)))
        return self.fc(torch.cat([kept, x], 1).sum(2))


class FeatureTransformer(nn.Module):
    """TabNet: gated layers added with the root of a half."""

    def __init__(self, features=6, width=8):
        super().__init__()
        self.bn, self.fc1, self.fc2 = (
            nn.BatchNorm1d(features),
            nn.Linear(features, 2 * width),
            nn.Linear(width, 2 * width),
        )
        self.mask, self.out = nn.Linear(width // 2, features), nn.Linear(width // 2, 3)

    def forward(self, x):
        x = self.bn(x)
        h = F.glu(self.fc1(x))
        h = (h + F.glu(self.fc2(h))) * math.sqrt(0.5)
        decision, attention = h.chunk(2, 1)
        return self.out(F.relu(decision)), self.mask(attention).softmax(-1) * x


class Siren(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.ModuleList([nn.Linear(2, 12), nn.Linear(12, 16), nn.Linear(16, 3)])

    def forward(self, x):
        for layer in self.net[:-1]:
            x = torch.sin(3.0 * layer(x))
        return self.net[-1](x)


class ActorCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh())
        self.actor, self.critic, self.log_std = (
            nn.Linear(12, 3),
            nn.Linear(12, 1),
            nn.Parameter(torch.zeros(3)),
        )

    def forward(self, x):
        h = self.trunk(x)
        mean = self.actor(h)
        return mean, self.log_std.expand_as(mean).exp(), self.critic(h).squeeze(-1)


class Nbeats(nn.Module):
    """Blocks that subtract what they explain from the series."""

    def __init__(self, back=8, ahead=4):
        super().__init__()
        self.fc = nn.ModuleList(
            nn.Sequential(nn.Linear(back, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU()) for _ in range(2)
        )
        self.theta, self.back, self.ahead = (
            nn.ModuleList(nn.Linear(12, back + ahead) for _ in range(2)),
            back,
            ahead,
        )

    def forward(self, x):
        forecast = torch.zeros(x.size(0), self.ahead, device=x.device, dtype=x.dtype)
        for fc, theta in zip(self.fc, self.theta, strict=True):
            values = theta(fc(x))
            x, forecast = x - values[:, : self.back], forecast + values[:, self.back :]
        return forecast


class Unrolled(nn.Module):
    """One block used three times, as a solver of steps does."""

    def __init__(self):
        super().__init__()
        self.read, self.field, self.last = (
            nn.Linear(5, 8),
            nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8)),
            nn.Linear(8, 2),
        )

    def forward(self, x):
        x = self.read(x)
        for step in (0.1, 0.2, 0.3):
            x = x + step * self.field(x)
        return self.last(x)


class BiasedAttention(nn.Module):
    """LeViT: batch norms behind projections, biases of heads looked up by places, wider values."""

    def __init__(self, dim=16, key_dim=4, heads=4, ratio=2, tokens=16):
        super().__init__()
        self.num_heads, self.key_dim, self.d, self.scale = heads, key_dim, ratio * key_dim, key_dim**-0.5
        self.qkv, self.bn = (
            nn.Linear(dim, heads * (2 * key_dim + self.d), bias=False),
            nn.BatchNorm1d(heads * (2 * key_dim + self.d)),
        )
        self.proj, self.biases = nn.Linear(heads * self.d, dim), nn.Parameter(torch.randn(heads, tokens))
        self.register_buffer("places", (torch.arange(tokens)[:, None] - torch.arange(tokens)[None]).abs())

    def forward(self, x):
        B, N, _ = x.shape
        qkv = self.bn(self.qkv(x).flatten(0, 1)).view(B, N, self.num_heads, -1)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.d], dim=3)
        q, k, v = q.permute(0, 2, 1, 3), k.permute(0, 2, 3, 1), v.permute(0, 2, 1, 3)
        attn = (q @ k * self.scale + self.biases[:, self.places]).softmax(dim=-1)
        return x + self.proj(F.hardswish((attn @ v).transpose(1, 2).reshape(B, N, self.num_heads * self.d)))


class SetTransformer(nn.Module):
    """Attention written by splits along the last axis and cats along the batch, pooled by a seed."""

    def __init__(self, dim=12, heads=3):
        super().__init__()
        self.dim_V, self.num_heads, self.seed = dim, heads, nn.Parameter(torch.randn(1, 1, dim))
        self.first = nn.Linear(4, dim)
        self.fc_q, self.fc_k, self.fc_v, self.fc_o = (nn.Linear(dim, dim) for _ in range(4))
        self.last = nn.Linear(dim, 2)

    def forward(self, x):
        x = self.first(x)
        q, k, v = self.fc_q(self.seed.repeat(x.size(0), 1, 1)), self.fc_k(x), self.fc_v(x)
        split = self.dim_V // self.num_heads
        q_, k_, v_ = (torch.cat(each.split(split, 2), 0) for each in (q, k, v))
        a = torch.softmax(q_.bmm(k_.transpose(1, 2)) / math.sqrt(self.dim_V), 2)
        o = torch.cat((q_ + a.bmm(v_)).split(q.size(0), 0), 2)
        return self.last(o + F.relu(self.fc_o(o))).squeeze(1)


def _drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


WORDS = torch.arange(12).reshape(2, 6) % 30
EDGES, FIELDS = torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 3]]), torch.arange(12).reshape(4, 3)
HELD_OUT = {
    **HELD_OUT_IMAGES,
    "deep-speech": (DeepSpeech, _drawn(2, 8, 12)),
    "transformer-xl": (TransformerXl, WORDS),
    "alibi": (LinearBiases, WORDS),
    "resampler": (Resampler, _drawn(2, 5, 12)),
    "tagger": (Tagger, (WORDS, torch.arange(48).reshape(2, 6, 4) % 12)),
    "graph-sage": (Sage, (_drawn(5, 5), EDGES)),
    "schnet": (ContinuousFilters, (torch.arange(8).reshape(2, 4), _drawn(2, 4, 3))),
    "autoint": (InteractingFields, FIELDS),
    "xdeepfm": (CompressedInteraction, FIELDS),
    "tabnet": (FeatureTransformer, _drawn(4, 6)),
    "siren": (Siren, _drawn(5, 2)),
    "actor-critic": (ActorCritic, _drawn(4, 6)),
    "nbeats": (Nbeats, _drawn(4, 8)),
    "unrolled": (Unrolled, _drawn(4, 5)),
    "levit-attention": (
        lambda: nn.Sequential(nn.Linear(5, 16), BiasedAttention(), nn.Linear(16, 3)),
        _drawn(2, 16, 5),
    ),
    "set-transformer": (SetTransformer, _drawn(2, 6, 4)),
}
