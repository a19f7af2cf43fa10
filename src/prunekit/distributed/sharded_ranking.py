"""The lowest of values that are shared out over processes, found by counts alone: nothing is gathered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from prunekit.distributed.collectives import local_part, rank, sum_over_processes
from prunekit.errors import InputError

_DIGIT = 16
"""Bits of a key that one histogram is of: 65,536 counts are exchanged for each."""


def like_shards(local: Tensor, tensor: Tensor) -> Tensor:
    """Values for this process's part of a tensor as a DTensor of its mesh and placements, where it is one."""
    if not isinstance(tensor, DTensor):
        return local
    return DTensor.from_local(
        local,
        tensor.device_mesh,
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


def check_placements(tensors: Mapping[str, Tensor]) -> None:
    """Refuse DTensors that are neither cut along dimensions nor copied: partial sums, and strided cuts.

    Raises:
        InputError: naming the first.
    """
    for name, tensor in tensors.items():
        for placement in tensor.placements if isinstance(tensor, DTensor) else ():
            if type(placement) not in (Shard, Replicate):
                raise InputError(
                    f"{name} is a DTensor placed as {placement}: only Shard and Replicate are known"
                )


def counted_here(tensor: Tensor) -> bool:
    """Whether this process counts its part: of copies one does, of the rest each its own."""
    if not isinstance(tensor, DTensor):
        return rank() == 0
    coordinate = tensor.device_mesh.get_coordinate()
    if coordinate is None:
        return False
    pairs = zip(tensor.placements, coordinate, strict=True)
    return all(place == 0 for placement, place in pairs if isinstance(placement, Replicate))


def count_true(flags: Mapping[str, Tensor]) -> dict[str, int]:
    """How many elements of each tensor are True, over all processes, which all ask."""
    device = local_part(next(iter(flags.values()))).device
    found = torch.zeros(len(flags), dtype=torch.int64, device=device)
    for number, each in enumerate(flags.values()):
        if counted_here(each):
            found[number] = local_part(each).count_nonzero()
    sum_over_processes([found])
    return dict(zip(flags, found.tolist(), strict=True))


def lowest_of_all(values: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Booleans, shared out as the values are, that mark exactly `count` of the lowest of all of them.

    Among equal values the one in the earlier tensor goes first, then the one with the lower position in the
    whole tensor in row-major order: the choice is that of `prunekit.masks.lowest` in one process. The
    threshold is found digit by digit in histograms of the values' bits, which are added up over processes: a
    process needs about 24 bytes for each element that it holds, and exchanges a few megabytes.

    Args:
        values: by name, float32 or float64 DTensors, or tensors that all processes have; minus infinity is
            allowed, NaN is not.
        count: at most the number of all elements.

    Raises:
        InputError: for other types or placements, or a count that does not fit.
    """
    check_placements(values)
    total = sum(each.numel() for each in values.values())
    if not 0 <= count <= total:
        raise InputError(f"cannot choose {count} of {total} values")
    kinds = {each.dtype for each in values.values()}
    if len(kinds) > 1 or not kinds <= {torch.float32, torch.float64}:
        raise InputError(f"values must all be float32 or all float64, not {', '.join(map(str, kinds))}")
    if not count:
        return {name: torch.zeros_like(each, dtype=torch.bool) for name, each in values.items()}
    pieces = [_Piece.of(each) for each in values.values()]
    bits = 32 if kinds == {torch.float32} else 64
    threshold, ties = _select(
        [piece.keys for piece in pieces], [piece.counts for piece in pieces], count, bits
    )
    tied = [(piece.keys == threshold).nonzero().flatten() for piece in pieces]
    # of equal values the places decide: a second selection, over places in all tensors one behind the other
    places, start = [], 0
    for piece, which, each in zip(pieces, tied, values.values(), strict=True):
        places.append(start + piece.places(which))
        start += each.numel()
    last, _ = _select(places, [piece.counts for piece in pieces], ties, 64)
    found = {}
    for (name, each), piece, which, place in zip(values.items(), pieces, tied, places, strict=True):
        chosen = piece.keys < threshold
        chosen[which[place <= last]] = True
        found[name] = like_shards(chosen.view(local_part(each).shape), each)
    return found


@dataclass(frozen=True)
class _Piece:
    """What one process holds of a tensor.

    Attributes:
        keys: (n,) int64 in the order of the values.
        counts: whether this process counts them.
        shape: of the piece.
        whole: shape of the whole tensor.
        offset: where the piece begins in the whole, along each dimension.
    """

    keys: Tensor
    counts: bool
    shape: torch.Size
    whole: torch.Size
    offset: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> _Piece:
        local = local_part(tensor)
        offset: Sequence[int] = [0] * local.dim()
        if isinstance(tensor, DTensor):
            mesh, placements = tensor.device_mesh, tensor.placements
            _, offset = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
        return cls(_ordered(local.flatten()), counted_here(tensor), local.shape, tensor.shape, tuple(offset))

    def places(self, which: Tensor) -> Tensor:
        """The positions in the whole tensor, in row-major order, of elements of the piece."""
        found, rest, stride = torch.zeros_like(which), which, 1
        for size, whole, offset in list(zip(self.shape, self.whole, self.offset, strict=True))[::-1]:
            found = found + (rest % max(size, 1) + offset) * stride
            rest, stride = rest // max(size, 1), stride * whole
        return found


def _ordered(values: Tensor) -> Tensor:
    """int64 keys >= 0 (of float64, of any sign) in the order of floating-point values; -0 equals 0."""
    values = values + 0.0  # turns -0 into 0
    if values.dtype == torch.float32:
        bits = values.view(torch.int32).long()
        return torch.where(bits >= 0, bits + 2**31, -bits)
    bits = values.view(torch.int64)
    return torch.where(bits >= 0, bits, torch.iinfo(torch.int64).min - bits)


def _select(keys: Sequence[Tensor], counts: Sequence[bool], number: int, bits: int) -> tuple[Tensor, int]:
    """The `number`-th lowest key of all processes, from 1, and how many of its equals are among the lowest.

    Args:
        keys: of each tensor, those that this process holds.
        counts: of each tensor, whether this process counts them.
        number: at least 1.
        bits: of a key; the uppermost of 64 is its sign.
    """
    left = [each for each, counted in zip(keys, counts, strict=True) if counted]
    found = torch.zeros((), dtype=torch.int64, device=keys[0].device)
    for shift in range(bits - _DIGIT, -1, -_DIGIT):
        # the uppermost digit of a key of 64 bits has its sign, and counts from the middle
        lowest = -(2 ** (_DIGIT - 1)) if bits == 64 and shift == bits - _DIGIT else 0
        digits = [each >> shift if lowest else each >> shift & (2**_DIGIT - 1) for each in left]
        histogram = torch.zeros(2**_DIGIT, dtype=torch.int64, device=found.device)
        for each in digits:
            histogram += torch.bincount(each - lowest, minlength=2**_DIGIT)
        sum_over_processes([histogram])
        upto = histogram.cumsum(0)
        place = int(torch.searchsorted(upto, number))
        number -= int(upto[place] - histogram[place])
        left = [each[digit == place + lowest] for each, digit in zip(left, digits, strict=True)]
        found += place + lowest << shift
    return found, number
