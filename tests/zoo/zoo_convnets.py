"""Convolutional networks of the literature in their style, small and plainly written."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def conv_bn(a, b, kernel=3, stride=1, groups=1, act=True):
    layers = [nn.Conv2d(a, b, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(b)]
    return nn.Sequential(*layers, *([nn.ReLU()] if act else []))


class Vgg(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(True), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(True), nn.MaxPool2d(2),
            nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(2),
        )  # fmt: skip
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(nn.Linear(64, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 10))

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class Basic(nn.Module):
    def __init__(self, a, b, stride=1):
        super().__init__()
        self.conv1, self.conv2 = conv_bn(a, b, 3, stride), conv_bn(b, b, act=False)
        self.shortcut = nn.Identity() if a == b and stride == 1 else conv_bn(a, b, 1, stride, act=False)

    def forward(self, x):
        return F.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


class Bottleneck(nn.Module):
    def __init__(self, a, width, b, stride=1, groups=1):
        super().__init__()
        self.conv1, self.conv2 = conv_bn(a, width, 1), conv_bn(width, width, 3, stride, groups)
        self.conv3 = conv_bn(width, b, 1, act=False)
        self.shortcut = nn.Identity() if a == b and stride == 1 else conv_bn(a, b, 1, stride, act=False)

    def forward(self, x):
        return F.relu(self.conv3(self.conv2(self.conv1(x))) + self.shortcut(x))


class Head(nn.Module):
    def __init__(self, body, width, classes=10):
        super().__init__()
        self.body, self.fc = body, nn.Linear(width, classes)

    def forward(self, x):
        return self.fc(F.adaptive_avg_pool2d(self.body(x), 1).flatten(1))


def resnet_basic():
    return Head(nn.Sequential(conv_bn(3, 8), Basic(8, 8), Basic(8, 16, 2), Basic(16, 16)), 16)


def resnet_bottleneck():
    blocks = [Bottleneck(8, 8, 16), Bottleneck(16, 8, 16), Bottleneck(16, 8, 32, 2)]
    return Head(nn.Sequential(conv_bn(3, 8), nn.MaxPool2d(3, 2, 1), *blocks), 32)


def resnext():
    blocks = [Bottleneck(8, 16, 16, groups=4), Bottleneck(16, 16, 16, groups=4)]
    return Head(nn.Sequential(conv_bn(3, 8), *blocks), 16)


class Dense(nn.Module):
    def __init__(self, a, growth):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(a), nn.Conv2d(a, 2 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * growth)
        self.conv2 = nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x):
        new = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        return torch.cat([x, new], 1)


def densenet():
    layers = [nn.Conv2d(3, 8, 3, padding=1, bias=False), Dense(8, 6), Dense(14, 6)]
    transition = [nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 10, 1), nn.AvgPool2d(2)]
    return Head(nn.Sequential(*layers, *transition, Dense(10, 6), nn.BatchNorm2d(16), nn.ReLU()), 16)


class InceptionBlock(nn.Module):
    def __init__(self, a, one, three, five, pool):
        super().__init__()
        self.one = conv_bn(a, one, 1)
        self.three = nn.Sequential(conv_bn(a, three // 2, 1), conv_bn(three // 2, three))
        self.five = nn.Sequential(conv_bn(a, five // 2, 1), conv_bn(five // 2, five, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_bn(a, pool, 1))

    def forward(self, x):
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


class GoogLeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a = conv_bn(3, 8), InceptionBlock(8, 4, 8, 4, 4)
        self.b = InceptionBlock(20, 8, 8, 4, 4)
        self.aux = nn.Sequential(nn.AdaptiveAvgPool2d(2), conv_bn(20, 8, 1), nn.Flatten(), nn.Linear(32, 10))
        self.fc = nn.Linear(24, 10)

    def forward(self, x):
        middle = self.a(F.max_pool2d(self.stem(x), 2))
        out = self.fc(self.b(middle).mean((2, 3)))
        return (out, self.aux(middle)) if self.training else out


class Factorised(nn.Module):
    """Inception v3: 1x7 and 7x1, a grid reduction and branches that fork again."""

    def __init__(self, a):
        super().__init__()
        self.one = conv_bn(a, 6, 1)
        self.line = nn.Sequential(
            nn.Conv2d(a, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, (1, 7), padding=(0, 3)), nn.ReLU(),
            nn.Conv2d(6, 8, (7, 1), padding=(3, 0)), nn.BatchNorm2d(8), nn.ReLU(),
        )  # fmt: skip
        self.fork = conv_bn(a, 8, 1)
        self.left = nn.Conv2d(8, 4, (1, 3), padding=(0, 1))
        self.right = nn.Conv2d(8, 4, (3, 1), padding=(1, 0))

    def forward(self, x):
        fork = self.fork(x)
        return torch.cat([self.one(x), self.line(x), self.left(fork), self.right(fork)], 1)


class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = conv_bn(3, 8, 3, 2), Factorised(8), Factorised(22)
        self.aux = nn.Sequential(conv_bn(22, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
        self.fc = nn.Linear(22, 10)

    def forward(self, x):
        middle = self.a(self.stem(x))
        out = self.fc(self.b(middle).mean((2, 3)))
        return {"out": out, "aux": self.aux(middle)} if self.training else {"out": out}


class SqueezeExcite(nn.Module):
    def __init__(self, width, gate):
        super().__init__()
        self.down, self.up, self.gate = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1), gate

    def forward(self, x):
        return x * self.gate(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class Inverted(nn.Module):
    def __init__(self, a, wide, b, stride=1, act=nn.ReLU6, gate=None):
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(a, wide, 1, bias=False), nn.BatchNorm2d(wide), act())
        self.depth = nn.Sequential(
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), act()
        )
        self.se = nn.Identity() if gate is None else SqueezeExcite(wide, gate)
        self.project = nn.Sequential(nn.Conv2d(wide, b, 1, bias=False), nn.BatchNorm2d(b))
        self.add = a == b and stride == 1

    def forward(self, x):
        out = self.project(self.se(self.depth(self.expand(x))))
        return x + out if self.add else out


def mobilenet_v2():
    blocks = [Inverted(8, 16, 8), Inverted(8, 24, 16, 2), Inverted(16, 32, 16)]
    return Head(nn.Sequential(conv_bn(3, 8), *blocks, conv_bn(16, 32, 1)), 32)


def mobilenet_v3():
    gate = nn.Hardsigmoid()
    blocks = [
        Inverted(8, 16, 8, act=nn.ReLU, gate=gate),
        Inverted(8, 24, 12, 2, act=nn.Hardswish, gate=gate),
        Inverted(12, 24, 12, act=nn.Hardswish),
    ]
    return Head(nn.Sequential(conv_bn(3, 8), *blocks), 12)


def efficientnet():
    gate = nn.Sigmoid()
    blocks = [Inverted(8, 16, 8, act=nn.SiLU, gate=gate), Inverted(8, 24, 16, 2, act=nn.SiLU, gate=gate)]
    return Head(nn.Sequential(conv_bn(3, 8), *blocks, conv_bn(16, 24, 1)), 24)


class ShuffleUnit(nn.Module):
    def __init__(self, width):
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            conv_bn(half, half, 1), conv_bn(half, half, 3, groups=half, act=False), conv_bn(half, half, 1)
        )

    def forward(self, x):
        a, b = x.chunk(2, 1)
        x = torch.cat([a, self.branch(b)], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def shufflenet():
    return Head(nn.Sequential(conv_bn(3, 16), ShuffleUnit(16), ShuffleUnit(16), conv_bn(16, 24, 1)), 24)


class RegNetBlock(nn.Module):
    def __init__(self, a, b, stride):
        super().__init__()
        self.a, self.b = conv_bn(a, b, 1), conv_bn(b, b, 3, stride, groups=b // 8)
        self.se, self.c = SqueezeExcite(b, nn.Sigmoid()), conv_bn(b, b, 1, act=False)
        self.shortcut = nn.Identity() if a == b and stride == 1 else conv_bn(a, b, 1, stride, act=False)

    def forward(self, x):
        return F.relu(self.c(self.se(self.b(self.a(x)))) + self.shortcut(x))


def regnet():
    return Head(nn.Sequential(conv_bn(3, 8), RegNetBlock(8, 16, 2), RegNetBlock(16, 32, 2)), 32)


class ConvNeXtBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.depth = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x):
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def convnext():
    down = [LayerNorm2d(8), nn.Conv2d(8, 16, 2, 2)]
    blocks = [nn.Conv2d(3, 8, 4, 4), LayerNorm2d(8), ConvNeXtBlock(8), *down, ConvNeXtBlock(16)]
    return Head(nn.Sequential(*blocks), 16)


class Res2NetBlock(nn.Module):
    def __init__(self, width, parts=4):
        super().__init__()
        each = width // parts
        self.each = each
        self.first, self.last = conv_bn(width, width, 1), conv_bn(width, width, 1, act=False)
        self.convs = nn.ModuleList(conv_bn(each, each) for _ in range(parts - 1))

    def forward(self, x):
        first, *rest = torch.split(self.first(x), self.each, 1)
        found, last = [first], None
        for part, conv in zip(rest, self.convs, strict=True):
            last = conv(part if last is None else part + last)
            found.append(last)
        return F.relu(self.last(torch.cat(found, 1)) + x)


def res2net():
    return Head(nn.Sequential(conv_bn(3, 16), Res2NetBlock(16), Res2NetBlock(16)), 16)


class Ghost(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.primary, self.cheap = conv_bn(a, b // 2, 1), conv_bn(b // 2, b // 2, 3, groups=b // 2)

    def forward(self, x):
        first = self.primary(x)
        return torch.cat([first, self.cheap(first)], 1)


class GhostBottleneck(nn.Module):
    def __init__(self, width, wide):
        super().__init__()
        self.a, self.b = Ghost(width, wide), Ghost(wide, width)

    def forward(self, x):
        return x + self.b(self.a(x))


def ghostnet():
    return Head(nn.Sequential(conv_bn(3, 8), GhostBottleneck(8, 16), GhostBottleneck(8, 16)), 8)


class HighResolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.split = conv_bn(3, 8), conv_bn(8, 16, 3, 2)
        self.high, self.low = Basic(8, 8), Basic(16, 16)
        self.up, self.down = conv_bn(16, 8, 1, act=False), conv_bn(8, 16, 3, 2, act=False)
        self.last = nn.Conv2d(24, 5, 1)

    def forward(self, x):
        x = self.stem(x)
        high, low = self.high(x), self.low(self.split(x))
        fused = F.relu(high + F.interpolate(self.up(low), size=high.shape[2:], mode="nearest"))
        low = F.relu(low + self.down(high))
        wide = F.interpolate(low, size=high.shape[2:], mode="bilinear", align_corners=False)
        return self.last(torch.cat([fused, wide], 1))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(conv_bn(3, 8), conv_bn(8, 8))
        self.b = nn.Sequential(conv_bn(8, 16), conv_bn(16, 16))
        self.bottom = conv_bn(16, 32)
        self.up1, self.c = nn.ConvTranspose2d(32, 16, 2, 2), conv_bn(32, 16)
        self.up2, self.d = nn.ConvTranspose2d(16, 8, 2, 2), conv_bn(16, 8)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        x = self.c(torch.cat([b, self.up1(self.bottom(F.max_pool2d(b, 2)))], 1))
        return self.out(self.d(torch.cat([a, self.up2(x)], 1)))


class DeepLab(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv_bn(3, 8, 3, 2), Basic(8, 16, 2))
        self.rates = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, 8, 3, padding=rate, dilation=rate), nn.BatchNorm2d(8), nn.ReLU())
            for rate in (1, 2, 3)
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Conv2d(16, 8, 1), nn.ReLU())
        self.project, self.last = conv_bn(32, 8, 1), nn.Conv2d(8, 4, 1)
        self.aux = nn.Sequential(conv_bn(16, 8), nn.Conv2d(8, 4, 1))

    def forward(self, x):
        size = x.shape[-2:]
        x = self.body(x)
        found = [rate(x) for rate in self.rates]
        pooled = F.interpolate(self.pool(x), size=x.shape[-2:], mode="bilinear", align_corners=False)
        out = self.last(self.project(torch.cat([*found, pooled], 1)))
        out = F.interpolate(out, size=size, mode="bilinear", align_corners=False)
        return (out, self.aux(x)) if self.training else out


class SuperResolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 5, padding=2), nn.Conv2d(16, 32, 3, padding=1)
        self.up, self.shuffle = nn.Conv2d(32, 32, 3, padding=1), nn.PixelShuffle(2)
        self.c = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        return self.c(F.relu(self.shuffle(self.up(F.relu(self.b(F.relu(self.a(x))))))))
