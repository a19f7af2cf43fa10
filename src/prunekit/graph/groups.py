"""What is coupled in a network, as data: members, groups of units, and the plan that holds them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from prunekit.errors import InputError

INPUT = "input"
"""The name of the group of the network's own input features."""

Role = Literal["producer", "consumer", "along"]


@dataclass(frozen=True)
class Member:
    """One dimension of one parameter or buffer, and which of its entries go with which unit.

    Attributes:
        tensor: full name of the parameter or buffer, the first one if it is tied.
        dim: the dimension that gets shorter.
        indices: for each unit of the group its entries along `dim`; empty where a unit has none here.
        role: "producer" where the entries compute the unit, "consumer" where they read it, "along" for what
            goes with it entry by entry: biases, norms, buffers, embeddings.
    """

    tensor: str
    dim: int
    indices: tuple[tuple[int, ...], ...]
    role: Role


@dataclass(frozen=True)
class Group:
    """Units that can be taken out one by one, each with everything that has to go with it.

    Attributes:
        name: the first module that produces the units, with the kind where two groups share it.
        kind: "filters", "neurons", "heads", "head width", "MLP width", "residual stream", "embedding", "input
            features".
        units: how many there are.
        members: the slices of parameters and buffers that go with the units.
        frozen: why no unit can be taken out; None where they can.
        normalised: norms and means whose statistics run over the units; without the units these are the
            statistics of the kept entries, so the reference is the masked network with the same.
    """

    name: str
    kind: str
    units: int
    members: tuple[Member, ...]
    frozen: str | None = None
    normalised: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """All groups of a network, those that cannot be pruned with their reason."""

    groups: tuple[Group, ...]

    @property
    def prunable(self) -> tuple[Group, ...]:
        """The groups whose units can be taken out."""
        return tuple(group for group in self.groups if group.frozen is None)

    @property
    def frozen(self) -> dict[str, str]:
        """Why the other groups stay as they are, by name."""
        return {group.name: group.frozen for group in self.groups if group.frozen is not None}

    def group(self, name: str) -> Group:
        """The group of that name.

        Raises:
            InputError: where there is none, with the names there are.
        """
        for group in self.groups:
            if group.name == name:
                return group
        names = ", ".join(repr(group.name) for group in self.groups)
        raise InputError(f"no group is named {name!r}; there are {names or 'none'}")

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Name, kind, units, members and a remark for each group, as text."""
        return [
            (group.name, group.kind, str(group.units), str(len(group.members)), _remark(group))
            for group in self.groups
        ]

    def table(self) -> str:
        """The rows with a heading, in columns."""
        lines = [("group", "kind", "units", "members", "remark"), *self.rows()]
        widths = [max(len(line[column]) for line in lines) for column in range(4)]
        return "\n".join(
            "  ".join(
                [*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[4]]
            ).rstrip()
            for line in lines
        )

    def to_dict(self) -> dict[str, Any]:
        """The plan as what JSON can hold."""
        return {"groups": [asdict(group) for group in self.groups]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Plan:
        """The plan that `to_dict` wrote, also after it went through JSON.

        Raises:
            InputError: where a field is missing or unknown.
        """
        try:
            return cls(tuple(_group(item) for item in data["groups"]))
        except (KeyError, TypeError) as error:
            raise InputError(f"this is no plan of coupled groups: {error}") from error


def _group(item: dict[str, Any]) -> Group:
    members = tuple(Member(**{**member, "indices": _tuples(member["indices"])}) for member in item["members"])
    return Group(**{**item, "members": members, "normalised": tuple(item["normalised"])})


def _tuples(indices: Iterable[Iterable[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(unit) for unit in indices)


def _remark(group: Group) -> str:
    if group.frozen is not None:
        return f"stays: {group.frozen}"
    if group.normalised:
        return "statistics over kept entries: " + ", ".join(group.normalised)
    return ""
