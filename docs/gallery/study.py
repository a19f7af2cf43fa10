"""
A study: methods compared over seeds
====================================

Recipes x seeds on one dataset, with the dense network and random removal beside them, in tables and a
report.
"""

# %%
import csv
import statistics

import matplotlib.pyplot as plt

from prunekit.study import Study, run_study

study = Study.parse(
    {
        "name": "small-study",
        "title": "Magnitude beside random removal",
        "dataset": "digits",
        "model": {"name": "mlp", "hidden": [32]},
        "training": {"epochs": 8, "batch_size": 64, "lr": 0.003},
        "seeds": 3,
        "controls": {"random": "random"},
        "methods": {
            "random": {"method": "random", "sweep": {"sparsity": [0.5, 0.8, 0.9]}},
            "magnitude": {"method": "magnitude", "sweep": {"sparsity": [0.5, 0.8, 0.9]}},
        },
    }
)
report = run_study(study, "small-study", workers=1)

# %%
# ``report`` is the path of one HTML page with figures and findings. The tables beside it hold a row for
# each recipe, seed and step.
with open(report.parent / "results.csv", newline="") as file:
    rows = list(csv.DictReader(file))

# %%
# A figure of one's own from the table, with the spread over the seeds:
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for method in ("random", "magnitude"):
    found = {}
    for row in rows:
        if row["method"] == method:
            found.setdefault(float(row["sparsity"]), []).append(float(row["test_accuracy"]))
    means, spreads = ([of(each) for each in found.values()] for of in (statistics.mean, statistics.stdev))
    axes.errorbar(list(found), means, spreads, label=method, marker="o", capsize=3)
axes.set_xlabel("share of the weights removed")
axes.set_ylabel("test accuracy")
axes.legend()
