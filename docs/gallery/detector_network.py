"""A small detector in the style of YOLOv8: halves that are joined again, maps at two strides."""

import torch
from torch import nn
from torch.nn import functional as F


class ConvBlock(nn.Sequential):
    """A convolution with its batch norm and activation."""

    def __init__(self, inputs, outputs, kernel=3, stride=1):
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(outputs), nn.SiLU())


class C2f(nn.Module):
    """Halves of one convolution, a bottleneck with a shortcut, and everything joined."""

    def __init__(self, inputs, outputs):
        super().__init__()
        half = outputs // 2
        self.first, self.last = ConvBlock(inputs, outputs, 1), ConvBlock(3 * half, outputs, 1)
        self.bottleneck = nn.Sequential(ConvBlock(half, half), ConvBlock(half, half))

    def forward(self, x):
        """A map of the same size."""
        left, right = self.first(x).chunk(2, 1)
        return self.last(torch.cat([left, right, right + self.bottleneck(right)], 1))


class Detector(nn.Module):
    """Maps at two strides, each with two anchors of a box, an objectness and three classes."""

    def __init__(self):
        super().__init__()
        self.stem = ConvBlock(3, 16, 3, 2)
        self.fine = nn.Sequential(ConvBlock(16, 32, 3, 2), C2f(32, 32))
        self.coarse = nn.Sequential(ConvBlock(32, 64, 3, 2), C2f(64, 64))
        self.up = nn.Sequential(ConvBlock(64, 32, 1), nn.Upsample(scale_factor=2))
        self.join = C2f(64, 32)
        self.heads = nn.ModuleDict({"stride_4": nn.Conv2d(32, 16, 1), "stride_8": nn.Conv2d(64, 16, 1)})

    def forward(self, images):
        """(N, 2, 8, H, W) for each stride."""
        fine = self.fine(self.stem(images))
        coarse = self.coarse(fine)
        maps = {"stride_4": self.join(torch.cat([fine, self.up(coarse)], 1)), "stride_8": coarse}
        return {stride: head(maps[stride]).unflatten(1, (2, 8)) for stride, head in self.heads.items()}


def detection_loss(outputs, targets):
    """The losses of boxes, objectness and classes, which are added up."""
    losses = {"box": 0.0, "object": 0.0, "class": 0.0}
    for stride, found in outputs.items():
        box, there, classes = targets[stride].split((4, 1, 3), 2)
        losses["box"] += ((found[:, :, :4] - box).square() * there).mean()
        losses["object"] += F.binary_cross_entropy_with_logits(found[:, :, 4:5], there)
        losses["class"] += F.binary_cross_entropy_with_logits(found[:, :, 5:], classes)
    return losses


def examples(count=16):
    """Random images with boxes at random; your data goes here."""
    sizes = {"stride_4": 8, "stride_8": 4}
    targets = {stride: (torch.rand(count, 2, 8, size, size) < 0.2).float() for stride, size in sizes.items()}
    return torch.randn(count, 3, 32, 32), targets
