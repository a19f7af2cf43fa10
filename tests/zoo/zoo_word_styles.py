"""Language models in the styles of their own repositories."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


class TextCnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(30, 8)
        self.convs = nn.ModuleList(nn.Conv2d(1, 6, (k, 8)) for k in (2, 3, 4))
        self.fc = nn.Linear(18, 4)

    def forward(self, x):
        x = self.embedding(x).unsqueeze(1)
        x = [F.relu(conv(x)).squeeze(3) for conv in self.convs]
        return self.fc(torch.cat([F.max_pool1d(i, i.size(2)).squeeze(2) for i in x], 1))


class NanoAttention(nn.Module):
    """nanoGPT: a split by `n_embd`, heads by `C // n_head`."""

    def __init__(self, n_embd, n_head):
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(n_embd, 3 * n_embd), nn.Linear(n_embd, n_embd)
        self.n_head, self.n_embd = n_head, n_embd

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


class MinAttention(nn.Module):
    """minGPT: separate projections, a mask as a buffer, the temperature from the width of the keys."""

    def __init__(self, n_embd, n_head):
        super().__init__()
        self.key, self.query, self.value = (
            nn.Linear(n_embd, n_embd),
            nn.Linear(n_embd, n_embd),
            nn.Linear(n_embd, n_embd),
        )
        self.proj, self.n_head = nn.Linear(n_embd, n_embd), n_head
        self.register_buffer("mask", torch.tril(torch.ones(16, 16)).view(1, 1, 16, 16))

    def forward(self, x):
        B, T, C = x.size()
        k = self.key(x).view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = self.query(x).view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = self.value(x).view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = F.softmax(att.masked_fill(self.mask[:, :, :T, :T] == 0, float("-inf")), dim=-1)
        return self.proj((att @ v).transpose(1, 2).contiguous().view(B, T, C))


class Decoder(nn.Module):
    def __init__(self, mixer, width=16, layers=2):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(30, width), nn.Embedding(16, width)
        self.norms1 = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.norms2 = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.mixers = nn.ModuleList(mixer(width) for _ in range(layers))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width)) for _ in range(layers)
        )
        self.ln_f, self.lm_head = nn.LayerNorm(width), nn.Linear(width, 30, bias=False)

    def forward(self, idx):
        x = self.wte(idx) + self.wpe(torch.arange(idx.size(1), device=idx.device))
        for norm1, mixer, norm2, mlp in zip(self.norms1, self.mixers, self.norms2, self.mlps, strict=True):
            x = x + mixer(norm1(x))
            x = x + mlp(norm2(x))
        return self.lm_head(self.ln_f(x))


class MetaAttention(nn.Module):
    """Llama as Meta wrote it: rotations of complex numbers, keys repeated by expand and reshape."""

    def __init__(self, dim=16, heads=4, kv=2):
        super().__init__()
        self.n_heads, self.n_kv, self.head_dim, self.n_rep = heads, kv, dim // heads, heads // kv
        self.wq, self.wo = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.wk, self.wv = (
            nn.Linear(dim, kv * self.head_dim, bias=False),
            nn.Linear(dim, kv * self.head_dim, bias=False),
        )
        angles = torch.outer(
            torch.arange(16.0), 1.0 / 100.0 ** (torch.arange(0, self.head_dim, 2) / self.head_dim)
        )
        self.register_buffer("cos", angles.cos()), self.register_buffer("sin", angles.sin())

    def rotate(self, x):
        cos, sin = (
            self.cos[: x.shape[1]].view(1, x.shape[1], 1, -1),
            self.sin[: x.shape[1]].view(1, x.shape[1], 1, -1),
        )
        a, b = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
        return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(3)

    def repeat(self, x):
        bs, slen, n_kv, head_dim = x.shape
        return (
            x[:, :, :, None, :]
            .expand(bs, slen, n_kv, self.n_rep, head_dim)
            .reshape(bs, slen, n_kv * self.n_rep, head_dim)
        )

    def forward(self, x):
        bsz, seqlen, _ = x.shape
        xq = self.rotate(self.wq(x).view(bsz, seqlen, self.n_heads, self.head_dim)).transpose(1, 2)
        xk = self.repeat(self.rotate(self.wk(x).view(bsz, seqlen, self.n_kv, self.head_dim))).transpose(1, 2)
        xv = self.repeat(self.wv(x).view(bsz, seqlen, self.n_kv, self.head_dim)).transpose(1, 2)
        scores = F.softmax(torch.matmul(xq, xk.transpose(2, 3)) / math.sqrt(self.head_dim), dim=-1)
        return self.wo(torch.matmul(scores, xv).transpose(1, 2).contiguous().view(bsz, seqlen, -1))


class RetentionMixer(nn.Module):
    """RetNet: decays in place of a softmax, a group norm of the heads, a gate."""

    def __init__(self, dim=16, heads=2):
        super().__init__()
        self.heads, self.key_dim, self.scale = heads, dim // heads, (dim // heads) ** -0.5
        self.q, self.k, self.v, self.g = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.out, self.norm = nn.Linear(dim, dim), nn.LayerNorm(self.key_dim, elementwise_affine=False)
        self.register_buffer("decay", 1 - 2.0 ** (-2 - torch.arange(heads)))

    def forward(self, x):
        b, t, c = x.shape
        q = self.q(x).view(b, t, self.heads, self.key_dim).transpose(1, 2)
        k = self.k(x).view(b, t, self.heads, self.key_dim).transpose(1, 2) * self.scale
        v = self.v(x).view(b, t, self.heads, self.key_dim).transpose(1, 2)
        apart = torch.arange(t, device=x.device)[:, None] - torch.arange(t, device=x.device)[None]
        mask = torch.where(apart >= 0, self.decay[:, None, None] ** apart.clamp(min=0), 0.0)
        y = self.norm(((q @ k.transpose(-1, -2)) * mask) @ v)
        return self.out(F.silu(self.g(x)) * y.transpose(1, 2).reshape(b, t, c))


class DiagonalSsm(nn.Module):
    """S4D: a convolution by FFT with a kernel that is made from the parameters."""

    def __init__(self, dim=16, state=4):
        super().__init__()
        self.log_a, self.c = nn.Parameter(torch.zeros(dim, state)), nn.Parameter(torch.randn(dim, state))
        self.d, self.out = nn.Parameter(torch.ones(dim)), nn.Linear(dim, 2 * dim)

    def forward(self, x):
        u = x.transpose(1, 2)
        steps = torch.arange(u.size(-1), device=x.device)
        kernel = (self.c.unsqueeze(-1) * torch.exp(-self.log_a.exp().unsqueeze(-1) * steps)).sum(1)
        n = 2 * u.size(-1)
        y = torch.fft.irfft(torch.fft.rfft(u, n=n) * torch.fft.rfft(kernel, n=n), n=n)[..., : u.size(-1)]
        return F.glu(self.out(F.gelu(y + u * self.d.unsqueeze(-1)).transpose(1, 2)), dim=-1)


class GatedRecurrence(nn.Module):
    """minGRU in its parallel form: gates by a cumulative sum of logarithms."""

    def __init__(self, dim=16, inner=12):
        super().__init__()
        self.gate, self.hidden, self.out = nn.Linear(dim, inner), nn.Linear(dim, inner), nn.Linear(inner, dim)

    def forward(self, x):
        z = torch.sigmoid(self.gate(x))
        decay = torch.cumsum(torch.log1p(-z + 1e-6), dim=1)
        h = torch.exp(decay) * torch.cumsum(z * self.hidden(x) * torch.exp(-decay), dim=1)
        return self.out(h)


class SoftExperts(nn.Module):
    """Experts as one tensor, all of them run, weighed by a softmax."""

    def __init__(self, dim=16, hidden=12, experts=3):
        super().__init__()
        self.router = nn.Linear(dim, experts)
        self.w1, self.w2 = (
            nn.Parameter(torch.randn(experts, dim, hidden) * 0.3),
            nn.Parameter(torch.randn(experts, hidden, dim) * 0.3),
        )

    def forward(self, x):
        h = F.gelu(torch.einsum("btd,edh->bteh", x, self.w1))
        return torch.einsum("bteh,ehd,bte->btd", h, self.w2, self.router(x).softmax(-1))


class Translator(nn.Module):
    """`nn.Transformer` with its own positions and a causal mask."""

    def __init__(self, width=16):
        super().__init__()
        self.src, self.tgt = nn.Embedding(30, width), nn.Embedding(30, width)
        self.transformer = nn.Transformer(width, 4, 1, 1, 24, dropout=0.0, batch_first=True)
        self.generator = nn.Linear(width, 30)

    def forward(self, src, tgt):
        mask = torch.triu(torch.full((tgt.size(1), tgt.size(1)), float("-inf"), device=tgt.device), 1)
        return self.generator(self.transformer(self.src(src) * 4.0, self.tgt(tgt) * 4.0, tgt_mask=mask))


class EncoderOfTorch(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            width, 4, 24, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.embed, self.encoder, self.fc = (
            nn.Embedding(30, width),
            nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
            nn.Linear(width, 4),
        )

    def forward(self, x):
        return self.fc(self.encoder(self.embed(x)).mean(1))


class Seq2Seq(nn.Module):
    """A recurrent encoder and decoder with Luong's attention between them."""

    def __init__(self):
        super().__init__()
        self.src, self.tgt = nn.Embedding(30, 8), nn.Embedding(30, 8)
        self.encoder, self.decoder = (
            nn.LSTM(8, 6, batch_first=True, bidirectional=True),
            nn.LSTM(8, 12, batch_first=True),
        )
        self.mix, self.out = nn.Linear(24, 16), nn.Linear(16, 30)

    def forward(self, src, tgt):
        memory, _ = self.encoder(self.src(src))
        states, _ = self.decoder(self.tgt(tgt))
        context = torch.softmax(states @ memory.transpose(1, 2), -1) @ memory
        return self.out(torch.tanh(self.mix(torch.cat([states, context], -1))))


WORDS = torch.arange(12).reshape(2, 6) % 30
WORD_STYLES = {
    "textcnn": (TextCnn, WORDS),
    "nanogpt": (lambda: Decoder(lambda width: NanoAttention(width, 4)), WORDS),
    "mingpt": (lambda: Decoder(lambda width: MinAttention(width, 4)), WORDS),
    "llama-meta": (lambda: Decoder(MetaAttention), WORDS),
    "retnet": (lambda: Decoder(RetentionMixer), WORDS),
    "s4d": (lambda: Decoder(DiagonalSsm), WORDS),
    "mingru": (lambda: Decoder(GatedRecurrence), WORDS),
    "soft-experts": (lambda: Decoder(SoftExperts), WORDS),
    "torch-transformer": (Translator, (WORDS, WORDS[:, :4].contiguous())),
    "torch-encoder": (EncoderOfTorch, WORDS),
    "seq2seq": (Seq2Seq, (WORDS, WORDS[:, :4].contiguous())),
}
