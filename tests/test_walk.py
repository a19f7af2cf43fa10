"""How far a call travels through the package, as `benchmarks/walks.py` counts it."""

import importlib.util
from collections import Counter
from pathlib import Path

import torch

PATH = Path(__file__).parents[1] / "benchmarks" / "walks.py"
spec = importlib.util.spec_from_file_location("walks", PATH)
walks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(walks)


def test_prune_by_magnitude_passes_through_few_files_and_comes_back_to_few():
    with torch.random.fork_rng(devices=[]):
        entered = walks.magnitude()
    stays = Counter(file for file, _ in walks.stations(entered))
    assert 10 < len(stays) <= walks.BARS["magnitude"]
    assert sum(times > 1 for times in stays.values()) <= 5
    assert sum(function == "unwrap" for _, function in entered) == 1


def test_a_unit_method_passes_through_no_more_files_than_it_did_and_unwraps_twice():
    """At the plan and at the shrinking. The bar is 35 files: what is held here is what has been reached.

    Two more than before batches of any kind were taken and emptied layers were said: `task` and `errors`.
    Four more since residual streams are found behind scales, and sizes by what the code does with them.
    Three more since shapes of results, lines of code and other inputs have files of their own.
    Two more since halves lose equally, and language models are proven with their cache.
    One more since how results lie in memory is worked out here.
    One more since PyTorch's own attention gets new sizes.
    Five more since sums over processes have a file, the proof runs one network after the other, gradients are
    compared as they arrive, and configurations say the new sizes.
    Two more since copies of networks, and depthwise convolutions in a proof, have files of their own.
    One more since a network is refused while masks act on its training, which `masked_optimizer` knows.
    """
    with torch.random.fork_rng(devices=[]):
        entered = walks.units()
    files = {file for file, _ in entered}
    assert 30 < len(files) <= 65
    assert sum(function == "unwrap" for _, function in entered) == 2
