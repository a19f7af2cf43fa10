"""Networks of images that were written apart from the analysis."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from zoo_convnets import Head, conv_bn


class InceptionResidual(nn.Module):
    def __init__(self, width, scale=0.17):
        super().__init__()
        self.scale, self.branch0 = scale, conv_bn(width, 6, 1)
        self.branch1 = nn.Sequential(conv_bn(width, 6, 1), conv_bn(6, 8), conv_bn(8, 10))
        self.conv2d = nn.Conv2d(16, width, 1)

    def forward(self, x):
        out = self.conv2d(torch.cat((self.branch0(x), self.branch1(x)), 1))
        return F.relu(out * self.scale + x)


class RepVgg(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.dense, self.point = conv_bn(a, b, act=False), conv_bn(a, b, 1, act=False)
        self.identity = nn.BatchNorm2d(a) if a == b else None

    def forward(self, x):
        extra = 0 if self.identity is None else self.identity(x)
        return F.relu(self.dense(x) + self.point(x) + extra)


class Hourglass(nn.Module):
    def __init__(self, depth, width, more=4):
        super().__init__()
        self.up1, self.low1 = conv_bn(width, width), conv_bn(width, width + more)
        self.low2 = Hourglass(depth - 1, width + more) if depth > 1 else conv_bn(width + more, width + more)
        self.low3 = conv_bn(width + more, width)

    def forward(self, x):
        low = self.low3(self.low2(self.low1(F.max_pool2d(x, 2))))
        return self.up1(x) + F.interpolate(low, scale_factor=2)


class Fcn(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.score = conv_bn(3, 8, 3, 2), conv_bn(8, 16, 3, 2), nn.Conv2d(16, 5, 1)
        self.skip, self.up = nn.Conv2d(8, 5, 1), nn.ConvTranspose2d(5, 5, 4, 2, bias=False)

    def forward(self, x):
        a = self.a(x)
        up = self.up(self.score(self.b(a)))[:, :, 1 : 1 + a.size(2), 1 : 1 + a.size(3)].contiguous()
        return F.interpolate(up + self.skip(a), size=x.shape[2:], mode="bilinear", align_corners=False)


class VectorQuantised(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 6, 4, 2, 1))
        self.codebook = nn.Embedding(10, 6)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(6, 8, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, 2, 1)
        )

    def forward(self, x):
        z = self.encoder(x).permute(0, 2, 3, 1).contiguous()
        flat = z.view(-1, 6)
        apart = flat.pow(2).sum(1, keepdim=True) - 2 * flat @ self.codebook.weight.t()
        codes = self.codebook((apart + self.codebook.weight.pow(2).sum(1)).argmin(1)).view(z.shape)
        z = z + (codes - z).detach()
        return self.decoder(z.permute(0, 3, 1, 2).contiguous())


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        norm = nn.utils.parametrizations.spectral_norm
        self.a, self.b, self.c = (
            nn.Conv2d(3, 8, 4, 2, 1),
            norm(nn.Conv2d(8, 12, 4, 2, 1)),
            nn.Conv2d(12, 16, 4, 2, 1),
        )
        self.last = nn.Conv2d(16, 1, 2)

    def forward(self, x):
        return self.last(
            F.leaky_relu(self.c(F.leaky_relu(self.b(F.leaky_relu(self.a(x), 0.2)), 0.2)), 0.2)
        ).view(-1)


class SuperResolutionGan(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.block = (
            nn.Conv2d(3, 8, 5, padding=2),
            nn.Sequential(conv_bn(8, 12), conv_bn(12, 8, act=False)),
        )
        self.act, self.up = (
            nn.PReLU(8),
            nn.Sequential(nn.Conv2d(8, 32, 3, padding=1), nn.PixelShuffle(2), nn.PReLU(8)),
        )
        self.last = nn.Conv2d(8, 3, 5, padding=2)

    def forward(self, x):
        x = self.act(self.first(x))
        return (torch.tanh(self.last(self.up(x + self.block(x)))) + 1) / 2


class MiniDetr(nn.Module):
    """DETR in fifty lines: places of rows and columns, `nn.TransformerEncoderLayer`, learnt queries."""

    def __init__(self, width=16):
        super().__init__()
        self.body, self.conv = (
            nn.Sequential(conv_bn(3, 8, 3, 2), conv_bn(8, 12, 3, 2)),
            nn.Conv2d(12, width, 1),
        )
        self.layer = nn.TransformerEncoderLayer(width, 4, 24, dropout=0.0, batch_first=True)
        self.query, self.attend = (
            nn.Parameter(torch.rand(5, width)),
            nn.MultiheadAttention(width, 4, batch_first=True),
        )
        self.row, self.col = nn.Parameter(torch.rand(8, width // 2)), nn.Parameter(torch.rand(8, width // 2))
        self.classes, self.boxes = nn.Linear(width, 4), nn.Linear(width, 4)

    def forward(self, x):
        h = self.conv(self.body(x))
        H, W = h.shape[-2:]
        rows, cols = self.col[:W].unsqueeze(0).repeat(H, 1, 1), self.row[:H].unsqueeze(1).repeat(1, W, 1)
        pos = torch.cat([rows, cols], dim=-1).flatten(0, 1).unsqueeze(0)
        memory = self.layer(pos + 0.1 * h.flatten(2).permute(0, 2, 1))
        found, _ = self.attend(self.query.unsqueeze(0).expand(len(x), -1, -1), memory, memory)
        return {"pred_logits": self.classes(found), "pred_boxes": self.boxes(found).sigmoid()}


PICTURE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
HELD_OUT_IMAGES = {
    "inception-resnet": (lambda: Head(nn.Sequential(conv_bn(3, 16), InceptionResidual(16)), 16), PICTURE),
    "repvgg": (lambda: Head(nn.Sequential(RepVgg(3, 8), RepVgg(8, 8), RepVgg(8, 12)), 12), PICTURE),
    "hourglass": (lambda: nn.Sequential(conv_bn(3, 8), Hourglass(2, 8), nn.Conv2d(8, 4, 1)), PICTURE),
    "fcn": (Fcn, PICTURE),
    "vq-vae": (VectorQuantised, PICTURE),
    "critic": (Critic, PICTURE),
    "srgan": (SuperResolutionGan, PICTURE[:, :, ::2, ::2]),
    "mini-detr": (MiniDetr, PICTURE),
}
