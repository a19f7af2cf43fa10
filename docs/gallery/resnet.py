"""
A ResNet with half of its filters
=================================

Half of the filters inside the blocks of a residual network go, it is trained again, and the smaller
network is saved.
"""

# %%
# A network that is trained on the handwritten digits of scikit-learn stands for yours.
import matplotlib.pyplot as plt

from prunekit import Training, load_pretrained, prune, save_pretrained, train
from prunekit.batches import as_batches
from prunekit.data import load
from prunekit.measure import count, evaluate
from prunekit.methods import filter_norm
from prunekit.models import create

digits = load("digits")
settings = {"name": "resnet", "depth": 8, "width": 8}
model = create(settings, (1, 8, 8), 10, seed=0)
train(model, as_batches(digits), Training(epochs=4, lr=0.01), seed=0)


def accuracy(network):
    return evaluate(network, digits.test.inputs, digits.test.targets, task=digits.task).accuracy


before = accuracy(model)

# %%
# ``filter_norm`` removes the filters of the smallest L1 norm, the same fraction of every layer.
# ``shrink`` takes them out of the network and proves that what is left computes the same.
pruned = prune(model, filter_norm(sparsity=0.5, epochs=4, training={"lr": 0.01}), digits)
result = pruned.shrink(digits.test.inputs[:4])
print(result)
print(f"accuracy {before:.3f} before, {accuracy(pruned.model):.3f} after")

# %%
# The network has kept its class and its names, so that it is saved and loaded as any other.
save_pretrained(pruned, "small-resnet")
again = load_pretrained("small-resnet", create(settings, (1, 8, 8), 10, seed=1))
print(f"{count(again, digits.test.inputs[:1]).parameters:,} parameters, accuracy {accuracy(again):.3f}")

# %%
# What is left of each layer:
names = [group.name for group in result.groups]
figure, axes = plt.subplots(figsize=(6, 2.5), layout="constrained")
axes.barh(names, [group.before for group in result.groups], color="lightgrey", label="before")
axes.barh(names, [group.after for group in result.groups], label="after")
axes.set_xlabel("filters")
axes.invert_yaxis()
axes.legend()
