"""The oracle and the second order of units of any network against the naive loop.

    python benchmarks/any_network_scores.py --json FILE

One thread; ResNet-20, a U-Net, MobileNet v2, BERT and Llama in small forms with random weights, with squared
error to random targets, in float32. In every round, side by side: the naive loop (all that goes with a unit
to zero, the whole network run under no_grad, all put back), `oracle_changes`, and the first and exact second
derivatives. How far oracle and naive loop are apart is said for float64, too: in float32 the difference of
two errors, which the naive loop takes, has lost digits. BERT and Llama need the package transformers.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.graph import Coupled, traced, unit_masks
from prunekit.losses import squared_error
from prunekit.models import ResNet
from prunekit.units import gain_derivatives, oracle_changes
from side_by_side import arguments, finish, measure, ratio

sys.path.append(str(Path(__file__).parent.parent / "tests" / "zoo"))
from zoo_convnets import UNet, mobilenet_v2


class Logits(nn.Module):
    """A network of transformers that gives one tensor."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.inner(input_ids=tokens).logits
        return logits


def images(count: int, size: int) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def tokens(count: int) -> Tensor:
    return torch.randint(0, 100, (count, 16), generator=torch.Generator().manual_seed(1))


def resnet20() -> nn.Module:
    return ResNet((3, 16, 16), 10, depth=20, width=8)


def bert() -> nn.Module:
    import transformers

    config = transformers.BertConfig(
        vocab_size=100,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
    )
    return Logits(transformers.BertForSequenceClassification(config))


def llama() -> nn.Module:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=100,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=128,
        max_position_embeddings=32,
        use_cache=False,
    )
    return Logits(transformers.LlamaForCausalLM(config))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "ResNet-20, 8 to 32 filters, 3 x 16 x 16": (
        lambda: ResNet((3, 16, 16), 10, depth=20, width=8),
        images(16, 16),
    ),
    "U-Net, 8 to 32 filters, 3 x 32 x 32": (UNet, images(8, 32)),
    "MobileNet v2, 4 blocks, 3 x 32 x 32": (mobilenet_v2, images(16, 32)),
    "BERT, 2 blocks of width 64, 16 tokens": (bert, tokens(16)),
    "Llama, 2 blocks of width 64, 16 tokens": (llama, tokens(16)),
}


def coupled_of(model: nn.Module, inputs: Tensor) -> Coupled:
    found = traced(model, inputs)
    return Coupled(model, found, tuple(group.name for group in found.plan.prunable), inputs)


def naive(coupled: Coupled, inputs: Tensor, targets: Tensor) -> Tensor:
    """(units of all groups,): set all that goes with a unit to zero, run the network, put it back."""
    model, found = coupled.model, []
    with torch.no_grad():
        now = squared_error(model(inputs), targets)
        for group in coupled.groups:
            for unit in range(group.units):
                flags = torch.arange(group.units) != unit
                masks = unit_masks(model, coupled.traced.plan, {group.name: flags})
                before = {name: model.get_parameter(name).clone() for name in masks}
                masks.apply(model)
                found.append(squared_error(model(inputs), targets) - now)
                for name, value in before.items():
                    model.get_parameter(name).copy_(value)
    return torch.stack(found).double()


def ranking(name: str, rounds: int) -> dict[str, Any]:
    make, inputs = NETWORKS[name]
    torch.manual_seed(0)
    model = make().eval()
    coupled = coupled_of(model, inputs)
    with torch.no_grad():
        outputs = model(inputs)
    targets = outputs + torch.randn(outputs.shape, generator=torch.Generator().manual_seed(2))
    kept: dict[str, Any] = {}

    def run(way: str, function: Callable[[], Any]) -> Callable[[], None]:
        def call() -> None:
            kept[way] = function()

        return call

    seconds = measure(
        {
            "naive": run("naive", lambda: naive(coupled, inputs, targets)),
            "oracle": run("oracle", lambda: oracle_changes(coupled, inputs, targets, squared_error)),
            "second order": run("second", lambda: gain_derivatives(coupled, inputs, targets, squared_error)),
        },
        rounds,
    )
    ours = torch.cat(list(kept["oracle"].values()))
    return {
        "network": name,
        "examples": len(inputs),
        "units": len(ours),
        "median_cpu_seconds": {way: statistics.median(all_) for way, all_ in seconds.items()},
        "naive_to_oracle": ratio(seconds, "naive", "oracle"),
        "naive_to_second_order": ratio(seconds, "naive", "second order"),
        "greatest_difference": float((ours - kept["naive"]).abs().max() / kept["naive"].abs().max()),
        "greatest_difference_in_float64": in_doubles(model.double(), inputs, targets),
    }


def in_doubles(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """The greatest difference of oracle and naive loop in float64, as a fraction of the greatest change."""
    inputs, targets = inputs.double() if inputs.is_floating_point() else inputs, targets.double()
    coupled = coupled_of(model, inputs)
    truth = naive(coupled, inputs, targets)
    ours = torch.cat(list(oracle_changes(coupled, inputs, targets, squared_error).values()))
    return float((ours - truth).abs().max() / truth.abs().max())


def main() -> None:
    options = arguments(__doc__ or "", rounds=3)
    torch.set_num_threads(1)
    finish(options, {"ranking": [ranking(name, options.rounds) for name in NETWORKS]})


if __name__ == "__main__":
    main()
