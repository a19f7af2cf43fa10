"""Han et al. 2015: small weights matter least, and retraining brings back what their loss cost."""

import torch

from prunekit.methods import recipe
from prunekit.pruning import prune
from prunekit.recipe import Recipe


def test_the_dense_network_reads(digits):
    assert digits.error(digits.model()) < 0.05


def test_magnitude_beats_chance_by_far(digits):
    errors = {}
    for name in ("magnitude", "layer_magnitude", "random"):
        errors[name] = digits.error(prune(digits.model(), recipe(name, sparsity=0.6)).model)
    assert errors["magnitude"] < 0.12
    assert errors["layer_magnitude"] < 0.12
    assert errors["random"] > errors["magnitude"] + 0.2


def test_the_first_order_term_beats_chance(digits):
    error = digits.error(prune(digits.model(), recipe("snip", sparsity=0.6), digits.train).model)
    chance = digits.error(prune(digits.model(), recipe("random", sparsity=0.6)).model)
    assert error < chance


def test_retraining_recovers(digits):
    dense = digits.error(digits.model())
    one_shot = prune(digits.model(), recipe("magnitude", sparsity=0.9))
    chosen = recipe("iterative_magnitude", sparsity=0.9, steps=4, epochs=15)
    retrained = prune(digits.model(), chosen, digits.train)
    assert retrained.masks.kept == one_shot.masks.kept
    assert digits.error(one_shot.model) > dense + 0.1
    assert digits.error(retrained.model) < dense + 0.06


def test_the_threshold_is_a_deviation_of_the_layer(digits):
    model = digits.model()
    weight = model[2].weight.detach().clone()
    pruned = prune(model, recipe("threshold_magnitude", q=1.0, epochs=0), digits.train)
    expected = weight.abs() >= weight.double().std(correction=0)
    assert torch.equal(pruned.masks["2.weight"], expected)


def test_an_n_m_pattern_costs_more_than_free_weights_and_less_than_chance(digits):
    errors = {
        name: digits.error(prune(digits.model(), chosen).model)
        for name, chosen in (
            ("n_m", Recipe.parse({**recipe("n_m", n=1, m=4).to_dict(), "ignore": ["4"]})),
            ("free", Recipe.parse({**recipe("layer_magnitude", sparsity=0.75).to_dict(), "ignore": ["4"]})),
            ("random", Recipe.parse({**recipe("random", sparsity=0.75).to_dict(), "ignore": ["4"]})),
        )
    }
    assert errors["free"] < errors["n_m"] < errors["random"]
