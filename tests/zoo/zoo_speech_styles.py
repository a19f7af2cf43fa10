"""Speech and series in the styles of their own repositories."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class ConvolutionModule(nn.Module):
    """Conformer: pointwise with a GLU, depthwise, pointwise, over the second axis of time."""

    def __init__(self, dim, kernel=3):
        super().__init__()
        self.norm, self.pointwise1 = nn.LayerNorm(dim), nn.Conv1d(dim, 2 * dim, 1)
        self.depthwise, self.bn = (
            nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim),
            nn.BatchNorm1d(dim),
        )
        self.pointwise2 = nn.Conv1d(dim, dim, 1)

    def forward(self, x):
        x = F.glu(self.pointwise1(self.norm(x).transpose(1, 2)), dim=1)
        return self.pointwise2(F.silu(self.bn(self.depthwise(x)))).transpose(1, 2)


class FeedForward(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.net = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.SiLU(), nn.Dropout(0.0), nn.Linear(hidden, dim)
        )

    def forward(self, x):
        return self.net(x)


class ConformerBlock(nn.Module):
    def __init__(self, dim=16, heads=4):
        super().__init__()
        self.ff1, self.ff2, self.conv = FeedForward(dim, 24), FeedForward(dim, 24), ConvolutionModule(dim)
        self.norm_att, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)

    def forward(self, x):
        x = x + 0.5 * self.ff1(x)
        y = self.norm_att(x)
        x = x + self.attn(y, y, y)[0]
        x = x + self.conv(x)
        return self.norm(x + 0.5 * self.ff2(x))


class Conformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.subsample = nn.Sequential(
            nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, 2, 1), nn.ReLU()
        )
        self.proj, self.blocks, self.head = (
            nn.Linear(12, 16),
            nn.Sequential(ConformerBlock(), ConformerBlock()),
            nn.Linear(16, 9),
        )

    def forward(self, x):
        x = self.subsample(x.unsqueeze(1))
        b, c, t, f = x.size()
        return F.log_softmax(
            self.head(self.blocks(self.proj(x.transpose(1, 2).contiguous().view(b, t, c * f)))), -1
        )


class Chomp(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        return x[:, :, : -self.size].contiguous()


class TemporalBlock(nn.Module):
    def __init__(self, a, b, dilation, norm=False):
        super().__init__()
        wrap = nn.utils.parametrizations.weight_norm if norm else (lambda each: each)
        pad = 2 * dilation
        conv1 = wrap(nn.Conv1d(a, b, 3, padding=pad, dilation=dilation))
        conv2 = wrap(nn.Conv1d(b, b, 3, padding=pad, dilation=dilation))
        self.net = nn.Sequential(conv1, Chomp(pad), nn.ReLU(), nn.Dropout(0.1), conv2, Chomp(pad), nn.ReLU())
        self.downsample = nn.Conv1d(a, b, 1) if a != b else None

    def forward(self, x):
        return F.relu(self.net(x) + (x if self.downsample is None else self.downsample(x)))


class Tcn(nn.Module):
    def __init__(self, norm=False):
        super().__init__()
        self.net = nn.Sequential(TemporalBlock(4, 8, 1, norm), TemporalBlock(8, 12, 2, norm))
        self.linear = nn.Linear(12, 3)

    def forward(self, x):
        return self.linear(self.net(x)[:, :, -1])


class WaveNet(nn.Module):
    """Gated dilated convolutions; a half of the output goes on, a half is summed for the end."""

    def __init__(self, width=8, layers=3):
        super().__init__()
        self.width, self.start = width, nn.Conv1d(4, width, 1)
        self.dilated = nn.ModuleList(
            nn.Conv1d(width, 2 * width, 3, padding=2**i, dilation=2**i) for i in range(layers)
        )
        self.res_skip = nn.ModuleList(nn.Conv1d(width, 2 * width, 1) for _ in range(layers))
        self.end = nn.Sequential(nn.ReLU(), nn.Conv1d(width, 12, 1), nn.ReLU(), nn.Conv1d(12, 4, 1))

    def forward(self, x):
        x, skip = self.start(x), 0
        for dilated, res_skip in zip(self.dilated, self.res_skip, strict=True):
            y = dilated(x)
            y = res_skip(torch.tanh(y[:, : self.width]) * torch.sigmoid(y[:, self.width :]))
            x, skip = x + y[:, : self.width], skip + y[:, self.width :]
        return self.end(skip)


class GlobalNorm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.gamma, self.beta = (
            nn.Parameter(torch.ones(1, channels, 1)),
            nn.Parameter(torch.zeros(1, channels, 1)),
        )

    def forward(self, y):
        mean = y.mean(dim=1, keepdim=True).mean(dim=2, keepdim=True)
        var = ((y - mean) ** 2).mean(dim=1, keepdim=True).mean(dim=2, keepdim=True)
        return self.gamma * (y - mean) / torch.pow(var + 1e-8, 0.5) + self.beta


class ConvTasNet(nn.Module):
    """Masks of two speakers on a learnt basis."""

    def __init__(self, n=12, b=8, h=16):
        super().__init__()
        self.n, self.encoder, self.norm = n, nn.Conv1d(1, n, 4, 2, bias=False), GlobalNorm(n)
        self.bottleneck, self.up, self.act = nn.Conv1d(n, b, 1), nn.Conv1d(b, h, 1), nn.PReLU()
        self.norm1, self.depth = GlobalNorm(h), nn.Conv1d(h, h, 3, padding=1, groups=h)
        self.down, self.masks = nn.Conv1d(h, b, 1), nn.Conv1d(b, 2 * n, 1)
        self.decoder = nn.ConvTranspose1d(n, 1, 4, 2, bias=False)

    def forward(self, x):
        w = F.relu(self.encoder(x))
        y = self.bottleneck(self.norm(w))
        y = y + self.down(self.depth(self.norm1(self.act(self.up(y)))))
        M, _, K = w.size()
        masks = self.masks(y).view(M, 2, self.n, K).softmax(1)
        each = (w.unsqueeze(1) * masks).view(M * 2, self.n, K)
        return self.decoder(each).view(M, 2, -1)


class QuartzBlock(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(a, a, 5, padding=2, groups=a, bias=False),
            nn.Conv1d(a, b, 1, bias=False),
            nn.BatchNorm1d(b),
            nn.ReLU(),
            nn.Conv1d(b, b, 5, padding=2, groups=b, bias=False),
            nn.Conv1d(b, b, 1, bias=False),
            nn.BatchNorm1d(b),
        )
        self.residual = nn.Sequential(nn.Conv1d(a, b, 1), nn.BatchNorm1d(b))

    def forward(self, x):
        return F.relu(self.net(x) + self.residual(x))


class EcapaTdnn(nn.Module):
    """Speakers: Res2 convolutions, squeeze and excitation, attentive statistics."""

    def __init__(self, width=16, parts=4):
        super().__init__()
        self.width, self.first, self.conv1 = (
            width // parts,
            nn.Conv1d(4, width, 5, padding=2),
            nn.Conv1d(width, width, 1),
        )
        self.convs = nn.ModuleList(nn.Conv1d(self.width, self.width, 3, padding=1) for _ in range(parts - 1))
        self.conv3, self.se = (
            nn.Conv1d(width, width, 1),
            nn.Sequential(nn.Conv1d(width, 6, 1), nn.ReLU(), nn.Conv1d(6, width, 1), nn.Sigmoid()),
        )
        self.attention = nn.Sequential(
            nn.Conv1d(3 * width, 8, 1), nn.Tanh(), nn.Conv1d(8, width, 1), nn.Softmax(dim=2)
        )
        self.fc = nn.Linear(2 * width, 6)

    def forward(self, x):
        x = F.relu(self.first(x))
        spx = torch.split(self.conv1(x), self.width, 1)
        out, sp = [spx[0]], None
        for i, conv in enumerate(self.convs):
            sp = F.relu(conv(spx[i + 1] if sp is None else sp + spx[i + 1]))
            out.append(sp)
        y = self.conv3(torch.cat(out, 1))
        x = x + y * self.se(y.mean(2, keepdim=True))
        t = x.size(-1)
        stats = [
            x.mean(2, keepdim=True).repeat(1, 1, t),
            (x.var(2, keepdim=True) + 1e-4).sqrt().repeat(1, 1, t),
        ]
        w = self.attention(torch.cat([x, *stats], 1))
        mu = (x * w).sum(2)
        sigma = ((x**2 * w).sum(2) - mu**2).clamp(min=1e-4).sqrt()
        return self.fc(torch.cat((mu, sigma), 1))


def _draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


SPEECH_STYLES = {
    "conformer": (Conformer, _draw(2, 16, 8)),
    "tcn": (Tcn, _draw(2, 4, 12)),
    "tcn-weight-norm": (lambda: Tcn(norm=True), _draw(2, 4, 12)),
    "wavenet": (WaveNet, _draw(2, 4, 16)),
    "conv-tasnet": (ConvTasNet, _draw(2, 1, 32)),
    "quartznet": (
        lambda: nn.Sequential(QuartzBlock(4, 12), QuartzBlock(12, 16), nn.Conv1d(16, 5, 1)),
        _draw(2, 4, 12),
    ),
    "ecapa-tdnn": (EcapaTdnn, _draw(2, 4, 12)),
}
