"""
A table: a few weights, and the columns that they read
======================================================

A network on a table of clinical measurements is pruned until few weights are left, which tells what it
looks at.
"""

# %%
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

from prunekit import Training, prune, train
from prunekit.methods import iterative_magnitude

table = load_breast_cancer()
inputs = torch.tensor(table.data, dtype=torch.float32)
inputs = (inputs - inputs.mean(0)) / inputs.std(0)
targets = torch.tensor(table.target)
order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
learn, test = order[:400], order[400:]

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 2))
train(model, (inputs[learn], targets[learn]), Training(epochs=20, lr=0.003), seed=0)


def accuracy():
    return (model(inputs[test]).argmax(1) == targets[test]).float().mean()


before = accuracy()

# %%
# 97 % of the weights go in eight steps, with retraining after each; then the hidden units that died of
# it.
pruned = prune(model, iterative_magnitude(0.97, steps=8, epochs=5), (inputs[learn], targets[learn]))
print(pruned)
print(f"accuracy {before:.3f} before, {accuracy():.3f} after")
print(pruned.shrink(inputs[:8]))

# %%
# What is left of the first layer says which measurements the network reads.
strength = model[0].weight.detach().abs().sum(0)
read = [int(column) for column in strength.argsort() if strength[column] > 0]
figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
axes.barh([table.feature_names[column] for column in read], [float(strength[column]) for column in read])
axes.set_xlabel("sum of |w| that read the column")
