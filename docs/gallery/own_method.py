"""
A method of your own: one class
===============================

A method is a choice of parts, so a new one is usually one new part. This score prefers weights that have
moved away from where they were before the last training, whatever their size.
"""

# %%
# A score gives a number for each weight, the lowest go first. What it must remember it keeps as its
# state, which travels with the pruning; ``comparable`` says that its values can be ranked over layers.
import torch
from torch import nn

from prunekit import Recipe, Training, prune
from prunekit.data import load
from prunekit.measure import metrics
from prunekit.parts.scores import Score


class DistanceMoved(Score):
    """|w - w0|, where w0 is the weight before the first training of the recipe."""

    name = "distance_moved"
    comparable = ("weights",)
    warm_up = Training(epochs=10, lr=0.003)

    def initial_state(self, model, names):
        """The weights as they are when the recipe begins."""
        return {name: model.get_parameter(name).detach().clone() for name in names}

    def __call__(self, context):
        """The distances, in the weights' dtype."""
        return {name: (weight - context.state[name]).abs() for name, weight in context.weights.items()}


# %%
# It is used like any other part, beside those of the package, and compared with them on equal terms.
digits = load("digits")
data = (digits.train.inputs.flatten(1), digits.train.targets)
test = (digits.test.inputs.flatten(1), digits.test.targets)
schedule = {"name": "one_shot", "sparsity": 0.9}
retrain = {"name": "fine_tune", "training": {"epochs": 5, "lr": 0.003}}
for score in (DistanceMoved(), "random"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    pruned = prune(model, Recipe(score=score, schedule=schedule, retrain=retrain), data)
    print(pruned.recipe.score.name, pruned.masks, f"accuracy {metrics(model, test)['accuracy']:.3f}")
