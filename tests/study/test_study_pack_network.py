"""The packed files of a cell, whatever can be done to the network before."""

import pytest
import torch

from prunekit import Recipe, prune, unpack
from prunekit.models import ModelSettings
from prunekit.saving import Architecture
from prunekit.study.stages import pack_network

MLP = Architecture(ModelSettings.parse({"name": "mlp", "hidden": [16]}), (1, 4, 4), 4)


@pytest.mark.parametrize("granularity", ["weight", "n:m"])
def test_a_network_whose_units_stay_where_they_are_is_packed_all_the_same(granularity, tmp_path) -> None:
    chosen = {"granularity": granularity, "schedule": {"name": "one_shot", "sparsity": 0.5}}
    pruned = prune(MLP.build(), Recipe.parse({**chosen, "quantize": {"name": "kmeans", "bits": 2}}))
    inputs = torch.randn(2, 1, 4, 4)
    outputs = pruned.model(inputs)
    sizes = pack_network(pruned, tmp_path / "network.pk", MLP, inputs)
    assert sizes["packed_bytes"] == (tmp_path / "network.pk").stat().st_size < sizes["published_bytes"]
    torch.testing.assert_close(unpack(tmp_path / "network.pk")(inputs), outputs)
