"""Inputs of layers as rows, by plain loops over padded arrays: what tests compare with."""

from itertools import product

import numpy as np
from torch import Tensor, nn

NUMPY_MODE = {"zeros": "constant", "reflect": "reflect", "circular": "wrap", "replicate": "edge"}


def design(layer: nn.Module, x: Tensor) -> np.ndarray:
    """(groups, rows, columns) of what each output of a layer is computed from, one number at a time."""
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return x.double().numpy().reshape(1, -1, x.shape[-1])
    x, kernel = x.double().numpy(), layer.kernel_size
    sides = layer._reversed_padding_repeated_twice
    pads = [(sides[2 * d], sides[2 * d + 1]) for d in range(len(kernel))][::-1]
    x = np.pad(x, [(0, 0), (0, 0), *pads], mode=NUMPY_MODE[layer.padding_mode])
    spans = [apart * (size - 1) + 1 for size, apart in zip(kernel, layer.dilation, strict=True)]
    outputs = [(x.shape[2 + d] - spans[d]) // layer.stride[d] + 1 for d in range(len(kernel))]
    width, groups = x.shape[1] // layer.groups, []
    for group in range(layer.groups):
        rows = []
        for example, *place in product(range(len(x)), *map(range, outputs)):
            row = []
            for channel, *offset in product(range(width), *map(range, kernel)):
                at = [
                    p * s + o * a
                    for p, s, o, a in zip(place, layer.stride, offset, layer.dilation, strict=True)
                ]
                row.append(x[(example, group * width + channel, *at)])
            rows.append(row)
        groups.append(rows)
    return np.array(groups)
