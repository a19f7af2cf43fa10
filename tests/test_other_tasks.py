"""Whole prunings of networks of another kind: a detector, and two classes by one output."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunekit import Recipe, Task, Training, prune, train
from prunekit.measure import count
from prunekit.methods import iterative_magnitude, magnitude


class Block(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(outputs), nn.SiLU())


class C2f(nn.Module):
    """The block of YOLOv8: halves, a bottleneck with a shortcut, and everything joined."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.first, self.last = Block(inputs, outputs, 1), Block(3 * half, outputs, 1)
        self.bottleneck = nn.Sequential(Block(half, half), Block(half, half))

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.first(x).chunk(2, 1)
        return self.last(torch.cat([left, right, right + self.bottleneck(right)], 1))


class Detector(nn.Module):
    """Maps at two strides, each with two anchors of a box, an objectness and three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Block(3, 16, 3, 2)
        self.fine = nn.Sequential(Block(16, 32, 3, 2), C2f(32, 32))
        self.coarse = nn.Sequential(Block(32, 64, 3, 2), C2f(64, 64))
        self.up = nn.Sequential(Block(64, 32, 1), nn.Upsample(scale_factor=2))
        self.join = C2f(64, 32)
        self.heads = nn.ModuleDict({"8": nn.Conv2d(32, 16, 1), "16": nn.Conv2d(64, 16, 1)})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.fine(self.stem(x))
        coarse = self.coarse(fine)
        maps = {"8": self.join(torch.cat([fine, self.up(coarse)], 1)), "16": coarse}
        return {stride: head(maps[stride]).unflatten(1, (2, 8)) for stride, head in self.heads.items()}


def detection_loss(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, Tensor]:
    box, thing, kind = (torch.zeros(()) for _ in range(3))
    for stride, found in outputs.items():
        wanted = targets[stride]
        there = wanted[:, :, 4:5]
        box = box + ((found[:, :, :4] - wanted[:, :, :4]).square() * there).mean()
        thing = thing + F.binary_cross_entropy_with_logits(found[:, :, 4:5], there)
        kind = kind + F.binary_cross_entropy_with_logits(found[:, :, 5:], wanted[:, :, 5:])
    return {"box": box, "object": thing, "class": kind}


def test_a_detector_is_halved_in_macs_and_retrained() -> None:
    torch.manual_seed(0)
    images = torch.randn(32, 3, 32, 32)
    targets = {
        "8": (torch.rand(32, 2, 8, 8, 8) < 0.2).float(),
        "16": (torch.rand(32, 2, 8, 4, 4) < 0.2).float(),
    }
    batches = [
        (images[k : k + 8], {stride: each[k : k + 8] for stride, each in targets.items()})
        for k in (0, 8, 16, 24)
    ]
    model = Detector()
    task = Task(detection_loss)
    with torch.no_grad():
        before = float(task.loss(model.eval()(images), targets))
    whole = count(model, images[:2]).macs
    recipe = Recipe.parse(
        {
            "score": "magnitude",
            "granularity": "unit",
            "ignore": ["heads*"],
            "allocation": {"name": "budget", "of": "macs"},
            "schedule": {"name": "one_shot", "sparsity": 0.5},
            "retrain": {"name": "fine_tune", "training": {"epochs": 6}},
        }
    )
    pruned = prune(model, recipe, batches, loss=detection_loss)
    with torch.no_grad():
        after = float(task.loss(pruned.model.eval()(images), targets))
    assert after < before
    assert pruned.shrink(images[:2]).form == "modules"
    assert 0.45 * whole < count(pruned.model, images[:2]).macs <= 0.5 * whole
    with torch.no_grad():
        shrunk = float(
            task.loss(pruned.model.eval()(images[:2]), {s: each[:2] for s, each in targets.items()})
        )
    assert shrunk > 0


def test_two_classes_by_one_output_are_not_spoilt_by_retraining() -> None:
    """With the squared error in place of the loss that was given, retraining costs more than it gives."""
    right = torch.zeros(3, 3)
    for seed in range(3):
        torch.manual_seed(seed)
        inputs = torch.randn(1200, 20)
        targets = (inputs[:, :5].sum(1) + inputs[:, 5] * inputs[:, 6] > 0).float().unsqueeze(1)
        x, y, held, wanted = inputs[:800], targets[:800], inputs[800:], targets[800:]
        dense = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 1))
        bce = nn.BCEWithLogitsLoss()
        train(dense, (x, y), Training(epochs=40, batch_size=32, lr=0.003), task=Task(bce), seed=seed)
        cut, tuned = copy.deepcopy(dense), copy.deepcopy(dense)
        prune(cut, magnitude(0.8))
        prune(tuned, iterative_magnitude(0.8, steps=1, epochs=20), (x, y), loss=bce)
        for column, model in enumerate((dense, cut, tuned)):
            right[seed, column] = ((model(held) > 0).float() == wanted).float().mean()
    _, cut_right, tuned_right = right.mean(0).tolist()
    assert tuned_right >= cut_right
    assert tuned_right > 0.9
