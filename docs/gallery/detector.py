"""
A detector, shrunk, saved, loaded and exported
==============================================

A network in the style of YOLOv8 loses half of its multiply-accumulates. It branches, joins maps of two
strides, cuts channels into halves and gives its outputs in a dict; nothing of that needs a hint. The
network and its loss are in :download:`detector_network.py <../gallery/detector_network.py>`.
"""

# %%
import torch

from detector_network import Detector, detection_loss, examples
from prunekit import Recipe, load_pretrained, prune, save_pretrained
from prunekit.export import export_onnx
from prunekit.measure import count

torch.manual_seed(0)
model = Detector()  # your trained detector
batches = [examples() for _ in range(4)]  # your data
images = batches[0][0]
before = count(model, images[:1]).macs

# %%
# A recipe of units with a budget: the filters of the smallest norms go, the same fraction of every layer,
# until half of the operations are left.
recipe = Recipe(
    granularity="unit",
    allocation={"name": "budget", "of": "macs", "share": "per_layer"},
    schedule={"name": "one_shot", "sparsity": 0.5},
    retrain={"name": "fine_tune", "training": {"epochs": 2}},
)
pruned = prune(model, recipe, batches, loss=detection_loss)
print(pruned.shrink(images[:2]))
print(f"{before:,} MACs before, {count(pruned.model, images[:1]).macs:,} after")

# %%
# It is saved, loaded into a new network of the same class, and exported; the file is run and compared
# before it is kept.
save_pretrained(pruned, "small-detector")
again = load_pretrained("small-detector", Detector()).eval()
print(export_onnx(again, "small-detector.onnx", images[:2]))
