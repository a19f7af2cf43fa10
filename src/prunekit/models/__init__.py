"""The papers' networks, and a user's own, made from settings and a seed."""

from prunekit.models.char_transformer import CharTransformer, TransformerBlock, char_transformer
from prunekit.models.common import Activation, make_activation
from prunekit.models.create import ModelSettings, create, names
from prunekit.models.lenet import LeNet5, LeNet300100, MaxoutLeNet5, lenet5, lenet_300_100, maxout_lenet5
from prunekit.models.mlp import MLP, mlp
from prunekit.models.resnet import ResidualBlock, ResNet, resnet, resnet20
from prunekit.models.vgg_small import VGGSmall, vgg_small

__all__ = [
    "MLP",
    "Activation",
    "CharTransformer",
    "LeNet5",
    "LeNet300100",
    "MaxoutLeNet5",
    "ModelSettings",
    "ResNet",
    "ResidualBlock",
    "TransformerBlock",
    "VGGSmall",
    "char_transformer",
    "create",
    "lenet5",
    "lenet_300_100",
    "make_activation",
    "maxout_lenet5",
    "mlp",
    "names",
    "resnet",
    "resnet20",
    "vgg_small",
]
