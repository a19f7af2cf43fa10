"""Seeds for every purpose, derived from the one seed that a person gives."""

import hashlib

import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A seed in [0, 2^63) for one purpose; different purposes give unrelated streams."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator that is seeded for one purpose."""
    return torch.Generator().manual_seed(derive(seed, *purpose))
