"""Convolutional networks in the styles of torchvision and timm: blocks with their usual idioms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from zoo_attention import Mlp
from zoo_convnets import Head, SqueezeExcite, conv_bn
from zoo_patch_styles import IMAGE, Residual


class Fire(nn.Module):
    def __init__(self, a, squeeze, expand):
        super().__init__()
        self.squeeze = nn.Conv2d(a, squeeze, 1)
        self.expand1x1, self.expand3x3 = (
            nn.Conv2d(squeeze, expand, 1),
            nn.Conv2d(squeeze, expand, 3, padding=1),
        )

    def forward(self, x):
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], 1)


def squeezenet():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), Fire(8, 4, 8), nn.MaxPool2d(2), Fire(16, 4, 8),
        nn.Dropout(0.5), nn.Conv2d(16, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


class Alexnet(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 5, 2, 2),
            nn.ReLU(True),
            nn.LocalResponseNorm(2),
            nn.Conv2d(8, 12, 3, padding=1),
            nn.ReLU(True),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Linear(12 * 4 * 4, 24), nn.ReLU(True), nn.Linear(24, 5)
        )

    def forward(self, x):
        x = F.adaptive_avg_pool2d(self.features(x), (4, 4))
        return self.classifier(x.view(x.size(0), 12 * 4 * 4))


class Separable(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.depthwise, self.pointwise = nn.Conv2d(a, a, 3, padding=1, groups=a), nn.Conv2d(a, b, 1)
        self.bn, self.skip = nn.BatchNorm2d(b), nn.Conv2d(a, b, 1)

    def forward(self, x):
        return self.bn(self.pointwise(self.depthwise(F.relu(x)))) + self.skip(x)


def xception():
    return Head(
        nn.Sequential(conv_bn(3, 8), Separable(8, 12), nn.MaxPool2d(2), Separable(12, 16), conv_bn(16, 24)),
        24,
    )


def convmixer():
    def block(dim):
        depth = nn.Sequential(
            nn.Conv2d(dim, dim, 5, groups=dim, padding="same"), nn.GELU(), nn.BatchNorm2d(dim)
        )
        return [Residual(depth), nn.Conv2d(dim, dim, 1), nn.GELU(), nn.BatchNorm2d(dim)]

    return Head(
        nn.Sequential(nn.Conv2d(3, 12, 4, 4), nn.GELU(), nn.BatchNorm2d(12), *block(12), *block(12)), 12
    )


class LinearAttention(nn.Module):
    """EfficientViT: a ReLU kernel in place of the softmax, with its divisor."""

    def __init__(self, width, dim=4, heads=4):
        super().__init__()
        self.dim, self.qkv, self.proj = (
            dim,
            nn.Conv2d(width, 3 * dim * heads, 1),
            conv_bn(dim * heads, width, 1, act=False),
        )

    def forward(self, x):
        n, _, h, w = x.shape
        qkv = self.qkv(x).reshape(n, -1, 3 * self.dim, h * w).transpose(-1, -2)
        q, k, v = (
            F.relu(qkv[..., : self.dim]),
            F.relu(qkv[..., self.dim : 2 * self.dim]),
            qkv[..., 2 * self.dim :],
        )
        v = F.pad(v, (0, 1), value=1.0)
        out = q @ (k.transpose(-1, -2) @ v)
        out = out[..., :-1] / (out[..., -1:] + 1e-6)
        return x + self.proj(out.transpose(-1, -2).reshape(n, -1, h, w))


class SelectiveKernel(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.paths = nn.ModuleList([conv_bn(a, b), conv_bn(a, b, 5)])
        self.reduce, self.select = conv_bn(b, b // 2, 1), nn.Conv2d(b // 2, 2 * b, 1)

    def forward(self, x):
        x = torch.stack([path(x) for path in self.paths], dim=1)
        weights = self.select(self.reduce(x.sum(1).mean((2, 3), keepdim=True)))
        n, c, h, w = weights.shape
        weights = weights.view(n, 2, c // 2, h, w).softmax(dim=1)
        return (x * weights).sum(dim=1)


class SplitAttention(nn.Module):
    """ResNeSt: a grouped convolution with radix 2, whose halves are weighed."""

    def __init__(self, width):
        super().__init__()
        self.conv, self.bn = (
            nn.Conv2d(width, 2 * width, 3, padding=1, groups=2, bias=False),
            nn.BatchNorm2d(2 * width),
        )
        self.fc1, self.fc2 = nn.Conv2d(width, width // 2, 1), nn.Conv2d(width // 2, 2 * width, 1)

    def forward(self, x):
        x = F.relu(self.bn(self.conv(x)))
        B, RC, H, W = x.shape
        x = x.reshape((B, 2, RC // 2, H, W))
        gap = x.sum(dim=1).mean((2, 3), keepdim=True)
        attn = (
            self.fc2(F.relu(self.fc1(gap)))
            .view(B, 1, 2, -1)
            .transpose(1, 2)
            .softmax(dim=1)
            .reshape(B, -1, 1, 1)
        )
        return (x * attn.reshape((B, 2, RC // 2, 1, 1))).sum(dim=1)


class CrossStage(nn.Module):
    """CSPNet of timm: one convolution, then halves of it by chunk, one through the blocks."""

    def __init__(self, a, b, split=True):
        super().__init__()
        self.conv_exp, self.blocks = conv_bn(a, b, 1), nn.Sequential(Residual(conv_bn(b // 2, b // 2)))
        self.conv_transition_b, self.conv_transition = conv_bn(b // 2, b // 2, 1), conv_bn(b, b, 1)

    def forward(self, x):
        x = self.conv_exp(x)
        xs, xb = x.split(self.expand_chs // 2, dim=1) if hasattr(self, "expand_chs") else x.chunk(2, dim=1)
        xb = self.conv_transition_b(self.blocks(xb)).contiguous()
        return self.conv_transition(torch.cat([xs, xb], dim=1))


def darknet_by_attribute():
    stage = CrossStage(8, 16)
    stage.expand_chs = 16
    return Head(nn.Sequential(conv_bn(3, 8), stage), 16)


class OneShot(nn.Module):
    """VoVNet: all layers' outputs concatenated once, with effective squeeze and excitation."""

    def __init__(self, a, mid, b, layers=3):
        super().__init__()
        self.convs = nn.ModuleList(conv_bn(a if not i else mid, mid) for i in range(layers))
        self.concat, self.fc = conv_bn(a + layers * mid, b, 1), nn.Conv2d(b, b, 1)

    def forward(self, x):
        found = [x]
        for conv in self.convs:
            found.append(conv(found[-1]))
        x = self.concat(torch.cat(found, dim=1))
        return x * F.hardsigmoid(self.fc(x.mean((2, 3), keepdim=True)))


class DualPath(nn.Module):
    """DPN: a part of the output is added, the rest is concatenated."""

    def __init__(self, res, dense, inc, first=None):
        super().__init__()
        self.num_1x1_c, self.inc = res, inc
        self.conv_a, self.conv_b = conv_bn(first or res + dense, 8, 1), conv_bn(8, 8, groups=2)
        self.conv_c = nn.Conv2d(8, res + inc, 1)
        self.project = nn.Conv2d(first, res + dense, 1) if first else None

    def forward(self, x):
        whole = torch.cat(x, 1) if isinstance(x, tuple) else x
        s = self.project(whole) if self.project is not None else whole
        s1, s2 = s[:, : self.num_1x1_c], s[:, self.num_1x1_c :]
        y = self.conv_c(self.conv_b(self.conv_a(whole)))
        out1, out2 = y[:, : self.num_1x1_c], y[:, self.num_1x1_c :]
        return s1 + out1, torch.cat([s2, out2], 1)


class Dpn(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.blocks = conv_bn(3, 8), nn.Sequential(DualPath(8, 4, 4, first=8), DualPath(8, 8, 4))
        self.fc = nn.Linear(20, 5)

    def forward(self, x):
        return self.fc(torch.cat(self.blocks(self.stem(x)), 1).mean((2, 3)))


class StandardConv(nn.Conv2d):
    """NFNet: weights standardised over their inputs, with a gain."""

    def __init__(self, a, b, kernel=3, stride=1):
        super().__init__(a, b, kernel, stride, kernel // 2)
        self.gain, self.scale, self.eps = (
            nn.Parameter(torch.ones(b, 1, 1, 1)),
            self.weight[0].numel() ** -0.5,
            1e-6,
        )

    def forward(self, x):
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None,
            weight=(self.gain * self.scale).view(-1), training=True, momentum=0.0, eps=self.eps,
        ).reshape_as(self.weight)  # fmt: skip
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class NormFree(nn.Module):
    def __init__(self, width, alpha=0.2, beta=0.9):
        super().__init__()
        self.alpha, self.beta = alpha, beta
        self.conv1, self.conv2 = StandardConv(width, width // 2, 1), StandardConv(width // 2, width, 3)
        self.skipinit_gain = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        out = F.silu(x) * 1.7868 * self.beta
        return self.conv2(F.silu(self.conv1(out))) * self.skipinit_gain * self.alpha + x


class Eca(nn.Module):
    """Channel attention by a convolution along the channels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x):
        y = self.conv(x.mean((2, 3)).view(x.shape[0], 1, -1)).view(x.shape[0], -1, 1, 1).sigmoid()
        return x * y.expand_as(x)


class Cbam(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)
        self.conv = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x):
        average = self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        x = x * (average + self.fc2(F.relu(self.fc1(x.amax((2, 3), keepdim=True))))).sigmoid()
        return (
            x
            * self.conv(
                torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)
            ).sigmoid()
        )


class Coordinate(nn.Module):
    """Coordinate attention: pooled along each direction, one convolution for both."""

    def __init__(self, width, mid):
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(width, mid, 1), nn.BatchNorm2d(mid)
        self.conv_h, self.conv_w = nn.Conv2d(mid, width, 1), nn.Conv2d(mid, width, 1)

    def forward(self, x):
        _, _, h, w = x.size()
        x_h, x_w = x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(-1, -2)
        y = F.hardswish(self.bn(self.conv1(torch.cat([x_h, x_w], dim=2))))
        x_h, x_w = torch.split(y, [h, w], dim=2)
        return x * self.conv_w(x_w.transpose(-1, -2)).sigmoid() * self.conv_h(x_h).sigmoid()


class GlobalContext(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attn, self.fc1, self.fc2 = (
            nn.Conv2d(width, 1, 1),
            nn.Conv2d(width, width // 2, 1),
            nn.Conv2d(width // 2, width, 1),
        )
        self.norm = nn.LayerNorm((width // 2, 1, 1))

    def forward(self, x):
        B, C, H, W = x.shape
        attn = F.softmax(self.attn(x).reshape(B, 1, H * W), dim=-1).unsqueeze(3)
        context = torch.matmul(x.reshape(B, C, H * W).unsqueeze(1), attn).view(B, C, 1, 1)
        return x + self.fc2(F.relu(self.norm(self.fc1(context))))


class BlurPool(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.channels = channels
        taps = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("filt", (taps[:, None] * taps[None]).repeat(channels, 1, 1, 1))

    def forward(self, x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), self.filt, stride=2, groups=self.channels)


class SplitDepth(nn.Module):
    """EdgeNeXt: chunks of the channels through depthwise convolutions in turn."""

    def __init__(self, dim, parts=2):
        super().__init__()
        self.width, self.parts = -(-dim // parts), parts
        self.convs = nn.ModuleList(
            nn.Conv2d(self.width, self.width, 3, padding=1, groups=self.width) for _ in range(parts - 1)
        )
        self.norm, self.mlp = nn.LayerNorm(dim), Mlp(dim, 24)

    def forward(self, x):
        spx, spo, sp = x.chunk(self.parts, dim=1), [], 0.0
        for i, conv in enumerate(self.convs):
            sp = spx[i] if i == 0 else sp + spx[i]
            sp = conv(sp)
            spo.append(sp)
        spo.append(spx[-1])
        y = self.mlp(self.norm(torch.cat(spo, 1).permute(0, 2, 3, 1)))
        return x + y.permute(0, 3, 1, 2)


def stage(block, width=16):
    return lambda: Head(nn.Sequential(conv_bn(3, width), block(), conv_bn(width, 24)), 24)


CONV_STYLES = {
    "squeezenet": (squeezenet, IMAGE),
    "alexnet": (Alexnet, IMAGE),
    "xception": (xception, IMAGE),
    "convmixer": (convmixer, IMAGE),
    "efficientvit": (stage(lambda: LinearAttention(16)), IMAGE),
    "sknet": (stage(lambda: SelectiveKernel(16, 16)), IMAGE),
    "resnest": (stage(lambda: SplitAttention(16)), IMAGE),
    "cspnet": (stage(lambda: CrossStage(16, 16)), IMAGE),
    "darknet-attribute": (darknet_by_attribute, IMAGE),
    "vovnet": (stage(lambda: OneShot(16, 8, 16)), IMAGE),
    "dpn": (Dpn, IMAGE),
    "nfnet": (stage(lambda: nn.Sequential(StandardConv(16, 16), NormFree(16))), IMAGE),
    "senet": (
        stage(lambda: Residual(nn.Sequential(conv_bn(16, 16), SqueezeExcite(16, nn.Sigmoid())))),
        IMAGE,
    ),
    "ecanet": (stage(lambda: nn.Sequential(conv_bn(16, 12), Eca(), conv_bn(12, 16))), IMAGE),
    "cbam": (stage(lambda: nn.Sequential(conv_bn(16, 12), Cbam(12), conv_bn(12, 16))), IMAGE),
    "coordinate-attention": (
        stage(lambda: nn.Sequential(conv_bn(16, 12), Coordinate(12, 6), conv_bn(12, 16))),
        IMAGE,
    ),
    "gcnet": (stage(lambda: nn.Sequential(conv_bn(16, 12), GlobalContext(12), conv_bn(12, 16))), IMAGE),
    "blurpool": (stage(lambda: nn.Sequential(conv_bn(16, 12), BlurPool(12), conv_bn(12, 16))), IMAGE),
    "edgenext": (stage(lambda: SplitDepth(16)), IMAGE),
}
