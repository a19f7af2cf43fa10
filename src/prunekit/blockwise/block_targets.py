"""What a recipe chooses of each block, by patterns of the names that layers have in the whole network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prunekit.blockwise.block_network import BlockNetwork
from prunekit.errors import InputError
from prunekit.recipe import Recipe
from prunekit.targets import DEFAULT_TYPES, Known, check_patterns, layers_to_choose


@dataclass(frozen=True)
class BlockPatterns:
    """Those of a recipe's patterns that fit something in one block.

    Attributes:
        targets: of what is pruned; None for what is by default.
        ignore: of what is left out.
    """

    targets: tuple[str, ...] | None
    ignore: tuple[str, ...]


def patterns_of_blocks(network: BlockNetwork, recipe: Recipe) -> list[BlockPatterns | None]:
    """The patterns of each block; None for one of which they choose nothing, which stays whole.

    Raises:
        InputError: if a pattern fits nothing in the network; if nothing in any block is chosen, or, of units,
            nothing of some block, which would be wider than the others.
    """
    layers = layers_to_choose(network.model)
    patterns = [*(recipe.targets or ()), *recipe.ignore]
    check_patterns(patterns, layers, "layer of the model; layers")
    found = []
    for number in range(len(network.blocks)):
        prefix = f"{network.block_name(number)}."
        inside = [known for name, known in layers if name.startswith(prefix)]
        found.append(_of_block(inside, recipe))
    whole = [network.block_name(number) for number, each in enumerate(found) if each is None]
    if len(whole) == len(found):
        raise InputError(f"targets, ignore: they choose nothing in the blocks {network.name}")
    if whole and recipe.granularity.level == "units":
        raise InputError(
            f"targets, ignore: they choose nothing in {whole[0]}, and blocks of one configuration have one "
            "width"
        )
    return found


def _of_block(layers: Sequence[Known], recipe: Recipe) -> BlockPatterns | None:
    def fitting(patterns: Sequence[str]) -> tuple[str, ...]:
        return tuple(each for each in patterns if any(known.fits([each]) for known in layers))

    given = None if recipe.targets is None else fitting(recipe.targets)
    ignore = fitting(recipe.ignore)
    chosen = any(
        (known.fits(given) if given is not None else not known.types.isdisjoint(DEFAULT_TYPES))
        and not known.fits(ignore)
        for known in layers
    )
    return BlockPatterns(given, ignore) if chosen else None
