"""The papers' networks, and a user's own, made from settings and a seed."""

from prunekit.models.absent import Absent
from prunekit.models.char_transformer import CharTransformer, TransformerBlock
from prunekit.models.column_conv import ColumnConv2d
from prunekit.models.convnets import LeNet5, Maxout, MaxoutLeNet5, ResidualBlock, ResNet, VGGSmall, resnet20
from prunekit.models.create import ModelSettings, create, names
from prunekit.models.googlenet import GoogLeNetSmall, Inception
from prunekit.models.merged_conv import MergedConv2d
from prunekit.models.mlp import MLP, Activation, LeNet300100, make_activation
from prunekit.models.without_data import without_data

__all__ = [
    "MLP",
    "Absent",
    "Activation",
    "CharTransformer",
    "ColumnConv2d",
    "GoogLeNetSmall",
    "Inception",
    "LeNet5",
    "LeNet300100",
    "Maxout",
    "MaxoutLeNet5",
    "MergedConv2d",
    "ModelSettings",
    "ResNet",
    "ResidualBlock",
    "TransformerBlock",
    "VGGSmall",
    "create",
    "make_activation",
    "names",
    "resnet20",
    "without_data",
]
