"""
A vision transformer with fewer heads
=====================================

Of a ViT of the transformers library heads and units of the MLPs go.
"""

# %%
# Random weights, trained for a moment on the handwritten digits, stand for a checkpoint.
import torch
from transformers import ViTConfig, ViTForImageClassification

from prunekit import Recipe, Training, load_pretrained, prune, save_pretrained, train
from prunekit.data import load
from prunekit.measure import metrics

torch.manual_seed(0)
digits = load("digits")
data = {"pixel_values": digits.train.inputs, "labels": digits.train.targets}
test = {"pixel_values": digits.test.inputs, "labels": digits.test.targets}
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
config = ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=10, **sizes)
model = ViTForImageClassification(config)
train(model, data, Training(epochs=12, lr=0.005), seed=0)
before = metrics(model, test)["accuracy"]

# %%
# The score is ``|output x gradient|`` on data. Half of the heads and of the units between go, and retraining
# follows.
recipe = Recipe(
    score="feature_taylor",
    granularity={"name": "unit", "kinds": ["heads", "MLP width"]},
    allocation="per_layer",
    schedule={"name": "one_shot", "sparsity": 0.5},
    retrain={"name": "fine_tune", "training": {"epochs": 5, "lr": 0.002}},
)
pruned = prune(model, recipe, data)
print(pruned.shrink({"pixel_values": digits.test.inputs[:2]}))
print(f"accuracy {before:.3f} before, {metrics(model, test)['accuracy']:.3f} after")

# %%
# The configuration of a ViT takes the width of its heads from the width of the stream, so it cannot say
# that heads are gone: the line above says so. prunekit's own files hold any network, and are read into
# one of the dense sizes.
save_pretrained(pruned, "small-vit")
again = load_pretrained("small-vit", ViTForImageClassification(config))
print(f"accuracy {metrics(again, test)['accuracy']:.3f} as loaded")
