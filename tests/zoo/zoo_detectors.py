"""Detectors and segmentation in the styles of their own repositories."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from zoo_convnets import conv_bn
from zoo_patch_styles import IMAGE


class YoloConv(nn.Module):
    def __init__(self, a, b, k=1, s=1, g=1):
        super().__init__()
        self.conv, self.bn, self.act = (
            nn.Conv2d(a, b, k, s, k // 2, groups=g, bias=False),
            nn.BatchNorm2d(b),
            nn.SiLU(),
        )

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class YoloBottleneck(nn.Module):
    def __init__(self, c1, c2, shortcut=True):
        super().__init__()
        self.cv1, self.cv2, self.add = (
            YoloConv(c1, c2 // 2, 3),
            YoloConv(c2 // 2, c2, 3),
            shortcut and c1 == c2,
        )

    def forward(self, x):
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class C2f(nn.Module):
    """Halves of one convolution by chunk; each block's output is kept."""

    def __init__(self, c1, c2, n=2, shortcut=True, attribute=False):
        super().__init__()
        self.c, self.attribute = c2 // 2, attribute
        self.cv1, self.cv2 = YoloConv(c1, 2 * self.c), YoloConv((2 + n) * self.c, c2)
        self.m = nn.ModuleList(YoloBottleneck(self.c, self.c, shortcut) for _ in range(n))

    def forward(self, x):
        y = list(self.cv1(x).split((self.c, self.c), 1) if self.attribute else self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class C3(nn.Module):
    def __init__(self, c1, c2):
        super().__init__()
        self.cv1, self.cv2, self.cv3 = YoloConv(c1, c2 // 2), YoloConv(c1, c2 // 2), YoloConv(c2, c2)
        self.m = nn.Sequential(YoloBottleneck(c2 // 2, c2 // 2))

    def forward(self, x):
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class Sppf(nn.Module):
    def __init__(self, c1, c2):
        super().__init__()
        self.cv1, self.cv2, self.m = YoloConv(c1, c1 // 2), YoloConv(c1 * 2, c2), nn.MaxPool2d(5, 1, 2)

    def forward(self, x):
        y = [self.cv1(x)]
        y.extend(self.m(y[-1]) for _ in range(3))
        return self.cv2(torch.cat(y, 1))


class Yolo(nn.Module):
    """Backbone, path aggregation and a decoupled head on two scales."""

    def __init__(self, block, focus=False):
        super().__init__()
        self.stem = YoloConv(12, 8, 3) if focus else YoloConv(3, 8, 3, 2)
        self.focus, self.b1, self.down = focus, block(8, 16), YoloConv(16, 24, 3, 2)
        self.b2, self.sppf, self.up = block(24, 24), Sppf(24, 24), nn.Upsample(scale_factor=2)
        self.n1, self.n2 = block(40, 16), YoloConv(16, 16, 3, 2)
        self.n3 = block(40, 24)
        self.box = nn.ModuleList(nn.Sequential(YoloConv(c, 8, 3), nn.Conv2d(8, 16, 1)) for c in (16, 24))
        self.cls = nn.ModuleList(nn.Sequential(YoloConv(c, 8, 3), nn.Conv2d(8, 5, 1)) for c in (16, 24))

    def forward(self, x):
        if self.focus:
            x = torch.cat((x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]), 1)
        p3 = self.b1(self.stem(x))
        p4 = self.sppf(self.b2(self.down(p3)))
        p3 = self.n1(torch.cat((self.up(p4), p3), 1))
        p4 = self.n3(torch.cat((self.n2(p3), p4), 1))
        found = [
            torch.cat((box(p), cls(p)), 1) for box, cls, p in zip(self.box, self.cls, (p3, p4), strict=True)
        ]
        return torch.cat([each.view(each.shape[0], 21, -1) for each in found], 2)


class Pyramid(nn.Module):
    """RetinaNet: a feature pyramid and heads that all levels share."""

    def __init__(self):
        super().__init__()
        self.c1, self.c2, self.c3 = conv_bn(3, 8), conv_bn(8, 12, stride=2), conv_bn(12, 16, stride=2)
        self.inner = nn.ModuleList(nn.Conv2d(c, 12, 1) for c in (8, 12, 16))
        self.layer = nn.ModuleList(nn.Conv2d(12, 12, 3, padding=1) for _ in range(3))
        self.tower, self.score = (
            nn.Sequential(nn.Conv2d(12, 10, 3, padding=1), nn.ReLU()),
            nn.Conv2d(10, 6, 1),
        )

    def forward(self, x):
        c1 = self.c1(x)
        c2 = self.c2(c1)
        last = self.inner[2](self.c3(c2))
        maps = [self.layer[2](last)]
        for number, each in ((1, c2), (0, c1)):
            last = self.inner[number](each) + F.interpolate(last, size=each.shape[-2:], mode="nearest")
            maps.insert(0, self.layer[number](last))
        found = []
        for each in maps:
            scores = self.score(self.tower(each))
            N, _, H, W = scores.shape
            found.append(scores.view(N, -1, 3, H, W).permute(0, 3, 4, 1, 2).reshape(N, -1, 3))
        return torch.cat(found, 1)


class Ssd(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = conv_bn(3, 8), conv_bn(8, 16, stride=2), conv_bn(16, 16, stride=2)
        self.scale = nn.Parameter(torch.full((16,), 2.0))
        self.loc = nn.ModuleList(nn.Conv2d(16, 8, 3, padding=1) for _ in range(2))
        self.conf = nn.ModuleList(nn.Conv2d(16, 6, 3, padding=1) for _ in range(2))

    def forward(self, x):
        b = self.b(self.a(x))
        maps = [self.scale.view(1, -1, 1, 1) * F.normalize(b), self.c(b)]
        loc = torch.cat([f(m).permute(0, 2, 3, 1).flatten(1) for f, m in zip(self.loc, maps, strict=True)], 1)
        conf = torch.cat(
            [f(m).permute(0, 2, 3, 1).flatten(1) for f, m in zip(self.conf, maps, strict=True)], 1
        )
        return loc.view(loc.size(0), -1, 4), conf.view(conf.size(0), -1, 3)


class WeightedFusion(nn.Module):
    """BiFPN of EfficientDet: maps are added with learnt weights."""

    def __init__(self):
        super().__init__()
        self.a, self.b = conv_bn(3, 8), conv_bn(8, 16, stride=2)
        self.p1, self.p2 = nn.Conv2d(8, 12, 1), nn.Conv2d(16, 12, 1)
        self.w1, self.w2 = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        self.conv1, self.conv2, self.out = conv_bn(12, 12), conv_bn(12, 12), nn.Conv2d(12, 5, 1)

    def forward(self, x):
        a = self.a(x)
        b = self.b(a)
        p1, p2 = self.p1(a), self.p2(b)
        w = F.relu(self.w1)
        w = w / (w.sum() + 1e-4)
        p1 = self.conv1(w[0] * p1 + w[1] * F.interpolate(p2, scale_factor=2.0))
        w = F.relu(self.w2)
        w = w / (w.sum() + 1e-4)
        p2 = self.conv2(w[0] * p2 + w[1] * F.max_pool2d(p1, 2))
        return self.out(p1), self.out(p2)


class CenterNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv_bn(3, 8, stride=2), conv_bn(8, 16, stride=2))
        self.deconv = nn.Sequential(
            nn.ConvTranspose2d(16, 12, 4, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU()
        )
        heads = {"hm": 3, "wh": 2, "reg": 2}
        self.heads = nn.ModuleDict(
            {
                k: nn.Sequential(nn.Conv2d(12, 10, 3, padding=1), nn.ReLU(), nn.Conv2d(10, c, 1))
                for k, c in heads.items()
            }
        )

    def forward(self, x):
        x = self.deconv(self.body(x))
        return {name: head(x) for name, head in self.heads.items()}


class PyramidPooling(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv_bn(3, 8, stride=2), conv_bn(8, 16))
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(s), nn.Conv2d(16, 4, 1), nn.ReLU()) for s in (1, 2, 4)
        )
        self.last = nn.Sequential(conv_bn(28, 12), nn.Dropout2d(0.1), nn.Conv2d(12, 5, 1))

    def forward(self, x):
        size = x.shape[-2:]
        x = self.body(x)
        found = [F.interpolate(pool(x), size=x.shape[-2:], mode="bilinear") for pool in self.pools]
        return F.interpolate(self.last(torch.cat([x, *found], 1)), size=size, mode="bilinear")


class SegNet(nn.Module):
    """Unpooling by the places of the maxima."""

    def __init__(self):
        super().__init__()
        self.a, self.b = conv_bn(3, 8), conv_bn(8, 16)
        self.c, self.d = conv_bn(16, 8), nn.Conv2d(8, 5, 3, padding=1)

    def forward(self, x):
        x, first = F.max_pool2d(self.a(x), 2, return_indices=True)
        x, second = F.max_pool2d(self.b(x), 2, return_indices=True)
        x = self.c(F.max_unpool2d(x, second, 2))
        return self.d(F.max_unpool2d(x, first, 2))


DETECTORS = {
    "yolo-v8": (lambda: Yolo(C2f), IMAGE),
    "yolo-v8-split": (lambda: Yolo(lambda a, b: C2f(a, b, attribute=True)), IMAGE),
    "yolo-v5": (lambda: Yolo(C3), IMAGE),
    "yolo-focus": (lambda: Yolo(C3, focus=True), IMAGE),
    "retinanet": (Pyramid, IMAGE),
    "ssd": (Ssd, IMAGE),
    "efficientdet": (WeightedFusion, IMAGE),
    "centernet": (CenterNet, IMAGE),
    "pspnet": (PyramidPooling, IMAGE),
    "segnet": (SegNet, IMAGE),
}
