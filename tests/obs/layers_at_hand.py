"""Small layers, and OBS done the slow way: everything inverted anew, in float64, with numpy only."""

import numpy as np
import torch


def layer(inputs=24, rows=5, samples=200, dead=(), seed=0, spread=1.0):
    """X (samples, inputs) of correlated inputs, W (rows, inputs), both float64."""
    drawn = torch.Generator().manual_seed(seed)
    mixing = torch.randn((inputs, inputs), generator=drawn, dtype=torch.float64)
    x = torch.randn((samples, inputs), generator=drawn, dtype=torch.float64) @ mixing
    x = x * torch.logspace(0, spread, inputs, dtype=torch.float64)
    x[:, list(dead)] = 0
    return x, torch.randn((rows, inputs), generator=drawn, dtype=torch.float64)


def moments(x):
    return x.T @ x / len(x)


def naive_obs(hessian, weights, kept=None, allowed=None):
    """The order of the removals from one row, the loss of each, and the weights after each.

    Args:
        hessian: (n, n) positive definite on the kept inputs.
        weights: (n,).
        kept: (n,) booleans; by default all.
        allowed: whether a column may go, from the columns that are left; by default all may.
    """
    hessian, w = hessian.numpy(), weights.numpy().copy()
    left = list(range(len(w))) if kept is None else kept.nonzero().flatten().tolist()
    order, losses, traces = [], [], []
    while True:
        open_ = [q for q in left if allowed is None or allowed(q, left)]
        if not open_:
            return order, losses, traces
        inverse = np.linalg.inv(hessian[np.ix_(left, left)])
        at = {q: place for place, q in enumerate(left)}
        costs = [w[q] ** 2 / inverse[at[q], at[q]] / 2 for q in open_]
        best = open_[int(np.argmin(costs))]
        order.append(best)
        losses.append(min(costs))
        w[left] -= w[best] / inverse[at[best], at[best]] * inverse[:, at[best]]
        w[best] = 0
        left.remove(best)
        traces.append(w.copy())
