"""Networks at the widths that they have in use, made of the zoo's blocks or of the library transformers.

Images are small and texts short, so that the forward passes count little; Llama is narrow.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "zoo"))

import zoo_attention
import zoo_convnets as nets
import zoo_detectors as detectors

IMAGE = 64


def image() -> Tensor:
    return torch.randn(2, 3, IMAGE, IMAGE)


def resnet50() -> tuple[nn.Module, Any]:
    blocks, width = [], 64
    for stage, count in enumerate((3, 4, 6, 3)):
        for number in range(count):
            inner = 64 * 2**stage
            stride = 2 if stage and not number else 1
            blocks.append(nets.Bottleneck(width, inner, 4 * inner, stride))
            width = 4 * inner
    body = nn.Sequential(nets.conv_bn(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1), *blocks)
    return nets.Head(body, width, 1000), torch.randn(2, 3, IMAGE, IMAGE)


def densenet121() -> tuple[nn.Module, Any]:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1)]
    width = 64
    for stage, count in enumerate((6, 12, 24, 16)):
        for _ in range(count):
            layers.append(_Dense(width, 32, 128))
            width += 32
        if stage < 3:
            layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width // 2, 1), nn.AvgPool2d(2)]
            width //= 2
    return nets.Head(nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU()), width, 1000), torch.randn(
        2, 3, IMAGE, IMAGE
    )


class _Dense(nets.Dense):
    def __init__(self, a: int, growth: int, inner: int) -> None:
        super().__init__(a, growth)
        self.conv1, self.norm2 = nn.Conv2d(a, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, growth, 3, padding=1, bias=False)


def vit(depth: int = 12) -> tuple[nn.Module, Any]:
    model = zoo_attention.Vit(width=768, depth=depth, heads=12, image=IMAGE, patch=16)
    for block in model.blocks:
        block.mlp = zoo_attention.Mlp(768, 3072)
    return model, torch.randn(2, 3, IMAGE, IMAGE)


def llama(depth: int = 12) -> tuple[nn.Module, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=2000, hidden_size=256, intermediate_size=688, num_hidden_layers=depth,
        num_attention_heads=8, num_key_value_heads=4, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config), {"input_ids": torch.arange(16).reshape(2, 8)}


def inverted(stages: Sequence[tuple[int, int, int, int]], *activations: Any) -> tuple[nn.Module, Any]:
    """Inverted residual blocks: of each stage the expansion, the width, how many, and the first's stride."""
    blocks, width = [], 32
    for times, out, count, stride in stages:
        for number in range(count):
            step = 1 if number else stride
            blocks.append(nets.Inverted(width, times * width, out, step, *activations))
            width = out
    body = nn.Sequential(nets.conv_bn(3, 32, 3, 2), *blocks, nets.conv_bn(320, 1280, 1))
    return nets.Head(body, 1280, 1000), image()


def mobilenet_v2() -> tuple[nn.Module, Any]:
    """Sandler et al. 2018, arXiv 1801.04381, table 2."""
    stages = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    return inverted(stages)


def efficientnet_b0() -> tuple[nn.Module, Any]:
    """Tan and Le 2019, arXiv 1905.11946, table 1; all kernels 3 x 3, squeezed to a quarter of the wide."""
    stages = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 40, 2, 2),
        (6, 80, 3, 2),
        (6, 112, 3, 1),
        (6, 192, 4, 2),
        (6, 320, 1, 1),
    )
    return inverted(stages, nn.SiLU, nn.Sigmoid())


def convnext_tiny() -> tuple[nn.Module, Any]:
    """Liu et al. 2022, arXiv 2201.03545."""
    layers: list[nn.Module] = [nn.Conv2d(3, 96, 4, 4), nets.LayerNorm2d(96)]
    width = 96
    for stage, count in enumerate((3, 3, 9, 3)):
        if stage:
            layers += [nets.LayerNorm2d(width), nn.Conv2d(width, 2 * width, 2, 2)]
            width *= 2
        layers += [nets.ConvNeXtBlock(width) for _ in range(count)]
    return nets.Head(nn.Sequential(*layers), width, 1000), image()


def yolo() -> tuple[nn.Module, Any]:
    """Backbone and spatial pyramid of YOLOv8-s, with one head."""
    layers: list[nn.Module] = [detectors.YoloConv(3, 32, 3, 2)]
    width = 32
    for count in (1, 2, 2, 1):
        layers += [detectors.YoloConv(width, 2 * width, 3, 2), detectors.C2f(2 * width, 2 * width, count)]
        width *= 2
    head = nn.Sequential(detectors.YoloConv(width, 128, 3), nn.Conv2d(128, 144, 1))
    return nn.Sequential(*layers, detectors.Sppf(width, width), head), image()


def words() -> dict[str, Tensor]:
    return {"input_ids": torch.arange(64).reshape(2, 32)}


def bert_base() -> tuple[nn.Module, Any]:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig()), words()


def gpt2() -> tuple[nn.Module, Any]:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(use_cache=False)), words()


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "resnet-50": resnet50,
    "densenet-121": densenet121,
    "mobilenet-v2": mobilenet_v2,
    "efficientnet-b0": efficientnet_b0,
    "convnext-tiny": convnext_tiny,
    "yolo": yolo,
    "vit-b-16": vit,
    "bert-base": bert_base,
    "gpt-2": gpt2,
    "llama-12": llama,
    "llama-24": lambda: llama(24),
    "llama-48": lambda: llama(48),
}
