"""All networks of the zoo by name: how to make one, and inputs for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import zoo_attention as attention
import zoo_convnets as convnets
from torch import nn
from zoo_transformers import TRANSFORMERS

Entry = tuple[Callable[[], nn.Module], Any]


def _image(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


OWN: dict[str, Entry] = {
    "vgg": (convnets.Vgg, _image(16)),
    "resnet-basic": (convnets.resnet_basic, _image(16)),
    "resnet-bottleneck": (convnets.resnet_bottleneck, _image(16)),
    "resnext": (convnets.resnext, _image(16)),
    "densenet": (convnets.densenet, _image(16)),
    "googlenet": (convnets.GoogLeNet, _image(16)),
    "inception": (convnets.Inception, _image(16)),
    "mobilenet-v2": (convnets.mobilenet_v2, _image(16)),
    "mobilenet-v3": (convnets.mobilenet_v3, _image(16)),
    "shufflenet": (convnets.shufflenet, _image(16)),
    "efficientnet": (convnets.efficientnet, _image(16)),
    "regnet": (convnets.regnet, _image(16)),
    "convnext": (convnets.convnext, _image(16)),
    "res2net": (convnets.res2net, _image(16)),
    "ghostnet": (convnets.ghostnet, _image(16)),
    "hrnet": (convnets.HighResolution, _image(16)),
    "unet": (convnets.UNet, _image(16)),
    "deeplab": (convnets.DeepLab, _image(16)),
    "super-resolution": (convnets.SuperResolution, _image(8)),
    "mlp-mixer": (attention.MlpMixer, _image(16)),
    "vit": (attention.Vit, _image(16)),
    "swin": (attention.Swin, _image(16)),
    "lstm": (lambda: attention.Recurrent(nn.LSTM), torch.arange(10).reshape(2, 5)),
    "gru": (lambda: attention.Recurrent(nn.GRU), torch.arange(10).reshape(2, 5)),
}
ZOO: dict[str, Entry] = {**OWN, **TRANSFORMERS}


def made(name: str) -> tuple[nn.Module, Any]:
    """A network with weights and statistics of its own, and inputs."""
    make, inputs = ZOO[name]
    torch.manual_seed(0)
    return stirred(make()).eval(), inputs


def stirred(model: nn.Module) -> nn.Module:
    """Norms and biases that are not all ones or zeros, so that nothing is right by chance."""
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            if "running_var" in name:
                tensor.copy_(torch.rand_like(tensor) + 0.5)
            elif "running_mean" in name or (tensor.dim() == 1 and isinstance(tensor, nn.Parameter)):
                tensor.add_(0.3 * torch.randn_like(tensor))
    return model
