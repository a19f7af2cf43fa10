import numpy as np
import pytest
import torch

from prunekit.errors import InputError
from prunekit.parts.context import StepContext
from prunekit.parts.scores import Gradient, Magnitude, Random, WeightGradient
from prunekit.seeds import generator
from prunekit.statistics import MeanGradient
from small_nets import mlp


def weights():
    return {name: p.detach() for name, p in mlp(5, 7, 3).named_parameters() if p.dim() == 2}


def test_magnitude():
    for name, scores in Magnitude()(StepContext(weights())).items():
        assert np.array_equal(scores.numpy(), np.abs(weights()[name].numpy()))


def test_magnitude_relative_to_its_layer():
    given = {**weights(), "zero": torch.zeros(2, 2)}
    found = Magnitude(relative_to="layer_norm")(StepContext(given))
    for name, weight in weights().items():
        w = weight.double().numpy()
        assert np.allclose(found[name].numpy(), np.abs(w) / np.sqrt(np.mean(w**2)), rtol=1e-5)
    assert bool((found["zero"] == 0).all())


def test_relative_scores_do_not_change_with_the_scale_of_a_layer():
    given = weights()
    louder = {**given, "0.weight": given["0.weight"] * 1000}
    one, other = (Magnitude(relative_to="layer_norm")(StepContext(w)) for w in (given, louder))
    assert torch.allclose(one["0.weight"], other["0.weight"], rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    given = {name: weight.to(dtype) for name, weight in weights().items()}
    for relative_to in ("nothing", "layer_norm"):
        found = Magnitude(relative_to=relative_to)(StepContext(given))
        assert all(bool(torch.isfinite(scores).all()) for scores in found.values())


def test_random_comes_from_the_generator_alone():
    def draw(seed):
        return Random()(StepContext(weights(), generator=generator(seed)))

    one = draw(3)
    torch.manual_seed(99)
    again, other = draw(3), draw(4)
    for name in one:
        assert torch.equal(one[name], again[name])
        assert not torch.equal(one[name], other[name])
        assert one[name].min() >= 0
        assert one[name].max() < 1


def test_random_is_uniform():
    drawn = Random()(StepContext({"a": torch.zeros(100, 1000)}, generator=generator(0)))["a"]
    counts = np.histogram(drawn.numpy(), bins=10, range=(0, 1))[0]
    assert np.abs(counts - 10_000).max() < 400  # four standard deviations


def test_gradient_scores():
    given = weights()
    gradients = {name: torch.randn_like(weight) for name, weight in given.items()}
    context = StepContext(given, {MeanGradient(): gradients})
    for name in given:
        g, w = gradients[name].numpy(), given[name].numpy()
        assert np.array_equal(Gradient()(context)[name].numpy(), np.abs(g))
        assert np.allclose(WeightGradient()(context)[name].numpy(), np.abs(g * w))


def test_scores_do_not_change_their_context():
    given = weights()
    gradients = {name: -torch.ones_like(weight) for name, weight in given.items()}
    kept = {name: weight.clone() for name, weight in given.items()}
    for score in (Magnitude(), Random(), Gradient(), WeightGradient(), Magnitude(relative_to="layer_norm")):
        score(StepContext(given, {MeanGradient(): gradients}))
    assert all(torch.equal(given[name], kept[name]) for name in given)
    assert all(bool((gradient == -1).all()) for gradient in gradients.values())


def test_needs():
    assert Magnitude().needs == Random().needs == ()
    assert Gradient().needs == WeightGradient().needs == (MeanGradient(),)
    with pytest.raises(InputError, match=r"relative_to = 'x': .*'nothing' or 'layer_norm'"):
        Magnitude(relative_to="x")
