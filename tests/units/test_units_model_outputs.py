"""Units of networks that return several things, judged by their logits, against naive loops."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunekit import Recipe, prune
from prunekit.errors import InputError
from prunekit.graph import unit_masks
from prunekit.pruning import Session

transformers = pytest.importorskip("transformers")


def bert() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=6,
        num_labels=3, attn_implementation="eager",
    )  # fmt: skip
    net: nn.Module = transformers.BertForSequenceClassification(config).double().eval()
    return net


def batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(30, (16, 5), generator=generator)
    mask = torch.ones_like(words)
    mask[3, 3:] = 0
    labels = torch.randint(3, (16,), generator=generator)
    every = {"input_ids": words, "attention_mask": mask, "labels": labels}
    return [{name: each[part] for name, each in every.items()} for part in (slice(0, 6), slice(6, 16))]


def loss_of(net: nn.Module) -> Tensor:
    """The mean over all examples, by the network's own loss."""
    total = torch.zeros((), dtype=torch.float64)
    for batch in batches():
        outputs = net(**{name: each for name, each in batch.items() if name != "labels"})
        total = total + F.cross_entropy(outputs.logits, batch["labels"], reduction="sum")
    return total / 16


def scored(score: dict[str, Any]) -> tuple[Session, dict[str, Tensor]]:
    """A session that has pruned the classifier, and what its score was made of before that."""
    chosen = Recipe.parse(
        {"score": score, "granularity": "unit", "schedule": {"name": "one_shot", "sparsity": 0.3}}
    )
    session = Session(bert(), chosen, data=batches())
    for _ in session.run():
        pass
    context = Session(bert(), chosen, data=batches())
    step = context._work.context(context.plan.steps[0])
    found = context._work.scorer.measure(step)
    return session, dict(found[chosen.score.needs[0]])


@pytest.mark.parametrize("error", ["cross_entropy"])
def test_the_oracle_of_a_classifier_is_the_naive_loop(error: str) -> None:
    session, found = scored({"name": "oracle", "error": error})
    coupled = session.plan.elements.coupled
    assert coupled is not None
    with torch.no_grad():
        before = loss_of(bert())
        for group in coupled.groups:
            for unit in range(group.units):
                net = bert()
                flags = torch.ones(group.units, dtype=torch.bool)
                flags[unit] = False
                masks = unit_masks(net, coupled.traced.plan, {group.name: flags})
                state = net.state_dict()
                net.load_state_dict({**state, **{name: state[name] * mask for name, mask in masks.items()}})
                assert float(found[group.name][unit]) == pytest.approx(float(loss_of(net) - before), abs=1e-9)


def test_taylor_of_a_classifiers_units_prunes_it() -> None:
    session, found = scored({"name": "unit_taylor", "order": 1, "error": "cross_entropy"})
    assert all(bool(torch.isfinite(each).all()) for each in found.values())
    assert session.kept.sparsity == pytest.approx(0.3, abs=0.03)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.one, self.other = nn.Linear(6, 8), nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.body(x).relu()
        return self.one(x), self.other(x)


def test_several_outputs_without_logits_are_refused() -> None:
    net = Pair()
    before = copy.deepcopy(net.state_dict())
    chosen = Recipe.parse(
        {"score": "oracle", "granularity": "unit", "schedule": {"name": "one_shot", "sparsity": 0.5}}
    )

    def loss(outputs: Any, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs[0], targets)

    with pytest.raises(InputError, match="one tensor is needed"):
        prune(net, chosen, (torch.randn(8, 6), torch.arange(8) % 2), loss=loss)
    assert all(torch.equal(each, before[name]) for name, each in net.state_dict().items())
