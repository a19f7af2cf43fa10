"""Zhu and Gupta 2017: pruning while training goes on reaches what one shot does not."""

from torch.nn.functional import cross_entropy
from torch.optim import Adam

from prunekit.methods import recipe
from prunekit.pruning import prune


def test_gradual_pruning_in_a_loop_of_ones_own(digits):
    model = digits.model()
    optimizer = Adam(model.parameters(), 1e-3)
    session = recipe("gradual_magnitude", sparsity=0.9, steps=8).attach(model, optimizer, every=10)
    inputs, targets = digits.train
    while len(session.history) < 8:
        for start in range(0, 1200, 100):
            optimizer.zero_grad()
            cross_entropy(model(inputs[start : start + 100]), targets[start : start + 100]).backward()
            optimizer.step()
    sparsities = [record.sparsity for record in session.history]
    steps = [b - a for a, b in zip([0.0, *sparsities], sparsities, strict=False)]
    assert steps == sorted(steps, reverse=True)  # fast at first, slow at the end
    one_shot = prune(digits.model(), recipe("layer_magnitude", sparsity=0.9))
    assert session.masks.kept == one_shot.masks.kept
    assert digits.error(model) < digits.error(one_shot.model) - 0.1


def test_erk_keeps_the_narrow_layer(digits):
    pruned = prune(digits.model(), recipe("erk_magnitude", sparsity=0.8))
    density = {name: float(mask.float().mean()) for name, mask in pruned.masks.items()}
    assert density["4.weight"] > density["2.weight"] > density["0.weight"]


def test_sensitivity_shares_out_better_than_one_rate(digits):
    by_loss = prune(digits.model(), recipe("sensitivity_magnitude", sparsity=0.8), digits.train)
    by_rate = prune(digits.model(), recipe("layer_magnitude", sparsity=0.8))
    assert by_loss.masks.kept == by_rate.masks.kept
    assert digits.error(by_loss.model) < digits.error(by_rate.model)
