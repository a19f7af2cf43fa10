import pytest
import torch

from prunekit.seeds import derive, generator, seeded


def test_purposes_have_streams_of_their_own():
    seeds = [
        derive(seed, *purpose) for seed in (0, 1) for purpose in ((), ("a",), ("b",), ("a", 1), ("a", 2))
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_pinned():
    # results of long runs hang on it
    assert derive(0, "epoch", 3) == 251044065527859115
    assert generator(0, "score").initial_seed() == derive(0, "score")


def test_seeded_puts_the_global_generator_back():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with seeded(3):
        one = torch.rand(3)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    with seeded(3):
        assert torch.equal(one, torch.rand(3))


def test_seeded_puts_it_back_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError), seeded(3):  # noqa: PT012
        torch.rand(3)
        raise RuntimeError
    assert torch.equal(before, torch.get_rng_state())
