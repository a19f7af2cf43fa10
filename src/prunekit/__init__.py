"""prunekit: every way to prune a neural network, behind one composition of parts."""

from prunekit.errors import DataError, InputError, ModelError, PrunekitError
from prunekit.masks import Masks
from prunekit.pruning import Pruned, Session, prune
from prunekit.recipe import Recipe
from prunekit.saving import Architecture, load_masks, load_pretrained, save_pretrained
from prunekit.training import Training, train
from prunekit.version import __version__

__all__ = [
    "Architecture",
    "DataError",
    "InputError",
    "Masks",
    "ModelError",
    "Pruned",
    "PrunekitError",
    "Recipe",
    "Session",
    "Training",
    "__version__",
    "load_masks",
    "load_pretrained",
    "prune",
    "save_pretrained",
    "train",
]
