"""Units of layers under a weight norm, held against plain layers of the weights that it computes."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

from prunekit import Recipe, load_pretrained, prune, save_pretrained
from prunekit.errors import ModelError
from prunekit.graph import INPUT, groups, prune_groups, shrink

INPUTS = torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(0)).double()
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")


def network(norm, **options):
    torch.manual_seed(0)
    return nn.Sequential(
        norm(nn.Conv1d(4, 8, 3), **options), nn.ReLU(), norm(nn.Conv1d(8, 8, 3), **options), nn.ReLU(),
        norm(nn.ConvTranspose1d(8, 8, 3), **options), nn.ReLU(),
        norm(nn.Conv1d(8, 8, 3, groups=8), **options), norm(nn.Conv1d(8, 3, 1), **options),
    ).double()  # fmt: skip


def plain(model):
    """The same network with plain weights, as its layers compute them."""
    made = network(lambda layer: layer)
    for own, other in zip(made, model, strict=True):
        if hasattr(own, "weight"):
            own.weight, own.bias = (nn.Parameter(each.detach()) for each in (other.weight, other.bias))
            own.groups = other.groups
    return made


@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("norm", [parametrizations.weight_norm, nn.utils.weight_norm])
def test_units_go_with_their_norms(norm, dim):
    model = network(norm, dim=dim)
    with torch.no_grad():
        model(INPUTS)
    result = prune_groups(model, INPUTS, 0.5)
    assert result.form == "modules", result.reason
    assert [(group.name, group.after) for group in result.lost] == [("0", 4), ("2", 4), ("4", 4)]
    outputs = model(INPUTS)
    assert [model[place].weight.shape for place in (0, 2, 4, 6, 7)] == [
        (4, 4, 3), (4, 4, 3), (4, 4, 3), (4, 1, 3), (3, 4, 1),
    ]  # fmt: skip
    torch.testing.assert_close(outputs, plain(model)(INPUTS))
    assert (model[2].in_channels, model[6].groups) == (4, 4)


def test_a_recipe_takes_units_and_the_smaller_network_is_saved(tmp_path):
    recipe = Recipe(granularity="unit", schedule={"name": "one_shot", "sparsity": 0.5})
    model = network(parametrizations.weight_norm)
    kept = torch.linalg.vector_norm(model[0].weight.detach(), dim=(1, 2)).argsort(descending=True)[:4]
    pruned = prune(model, recipe, example_inputs=INPUTS)
    masked = copy.deepcopy(pruned.model)
    assert bool(masked[0].weight.isfinite().all())
    nonzero = masked[0].weight.detach().abs().sum((1, 2)).nonzero().flatten()
    assert set(nonzero.tolist()) == set(kept.tolist())  # the norms are the layer's norms of its filters
    pruned.shrink(INPUTS)
    torch.testing.assert_close(pruned.model(INPUTS), masked(INPUTS))
    save_pretrained(pruned, tmp_path / "net")
    loaded = load_pretrained(tmp_path / "net", model=network(parametrizations.weight_norm))
    torch.testing.assert_close(loaded(INPUTS), masked(INPUTS))


def test_features_that_it_reads_go():
    """The norm of what is left of each row stays what it was, as where the direction is zero there."""
    torch.manual_seed(0)
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 5)), nn.ReLU()).double()
    inputs, kept = torch.randn(3, 6).double(), torch.arange(6) % 2 == 0
    weight = model[0].weight.detach().clone()
    norms = weight.norm(dim=1, keepdim=True)
    result = shrink(model, inputs, {INPUT: kept})
    wanted = weight[:, kept] / weight[:, kept].norm(dim=1, keepdim=True) * norms
    torch.testing.assert_close(result.model[0].weight, wanted)


def test_single_weights_of_a_norm_are_refused():
    with pytest.raises(ModelError, match="original0 is part of a parametrization"):
        prune(network(parametrizations.weight_norm), Recipe(schedule={"name": "one_shot", "sparsity": 0.5}))


def test_other_parametrizations_stay():
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 2))
    found = groups(model.eval(), torch.randn(3, 4)).frozen
    assert any("a parametrization, such as a spectral norm" in why for why in found.values())


def test_layers_with_a_mask_of_torchs_own_say_how_it_ends():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    torch_prune.l1_unstructured(model[0], "weight", 0.5)
    found = groups(model, torch.randn(2, 4)).frozen
    assert any("torch.nn.utils.prune.remove" in why for why in found.values()), found
    torch_prune.remove(model[0], "weight")
    assert groups(model, torch.randn(2, 4)).prunable
