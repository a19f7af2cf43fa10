import numpy as np
import pytest
import torch
from torch import nn

from prunekit.errors import ModelError
from prunekit.pruning import prune
from small_nets import blobs, images, mlp, recipe, zeros
from unfolding import design


@pytest.mark.parametrize("bias", [True, False])
def test_weights_times_the_deviation_of_their_inputs(bias):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, bias=bias), nn.Flatten(), nn.Linear(96, 3, bias=bias))
    data = images()[0] + 1.5, images()[1]
    rows = {"0.weight": design(model[0], data[0])}
    with torch.no_grad():
        rows["2.weight"] = design(model[2], model[:2](data[0]))
    scores = {}
    for name, inputs in rows.items():
        weight = model.get_parameter(name).detach()
        size = inputs.std(1) if bias else np.sqrt((inputs**2).mean(1))
        by_group = weight.abs().double().numpy().reshape(len(inputs), -1, inputs.shape[2])
        scores[name] = (by_group * size[:, None]).reshape(weight.shape)
    lowest = np.sort(np.concatenate([each.ravel() for each in scores.values()]))[99]
    total = sum(each.size for each in scores.values())
    one_shot = {"name": "one_shot", "sparsity": 100 / total}
    masks = prune(model, recipe(score="input_deviation", schedule=one_shot), data).masks
    for name, score in scores.items():
        assert np.array_equal(masks[name].numpy(), score > lowest)


def test_constant_inputs_go_first():
    model = mlp(6, 4)
    x = torch.randn(50, 6)
    x[:, [1, 4]] = 3.0
    prune(
        model,
        recipe(score="input_deviation", schedule={"name": "one_shot", "sparsity": 1 / 3}),
        (x, x[:, :4]),
    )
    assert bool((model[0].weight[:, [1, 4]] == 0).all())
    assert zeros(model, "0.weight") == 8


def test_units_and_layers_without_rows():
    model = mlp(6, 8, 3)
    prune(model, recipe(score="input_deviation", shape="unit"), blobs(40, 6))
    assert zeros(model, "0.weight") == 4 * 6
    with pytest.raises(ModelError, match="ConvTranspose1d"):
        recipe(score="input_deviation").plan(nn.Sequential(nn.ConvTranspose1d(2, 2, 3)))
