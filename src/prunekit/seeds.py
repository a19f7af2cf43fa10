"""Seeds for every purpose, derived from the one seed that a person gives."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A seed in [0, 2^63) for one purpose; different purposes give unrelated streams."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator that is seeded for one purpose."""
    return torch.Generator().manual_seed(derive(seed, *purpose))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from `seed` inside; torch's global generators are put back afterwards."""
    with keeping_generators():
        torch.default_generator.manual_seed(seed)
        if _gpus():
            torch.cuda.manual_seed_all(seed)
        yield


@contextmanager
def keeping_generators() -> Iterator[None]:
    """Torch's global generators are put back afterwards."""
    with torch.random.fork_rng(_gpus()):
        yield


def _gpus() -> list[int]:
    # asking an unused GPU for its generator would start it, in every worker process
    in_use = bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
    return list(range(torch.cuda.device_count())) if in_use else []
