"""`prunekit prune-blocks`: a language model that is larger than memory, from its files to new ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import prunekit.cli.options as options
from prunekit.blockwise import BlockwisePruning, drawn_sequences, text_tokens
from prunekit.cli.options import StoppedError, only_results, own_code, print_json
from prunekit.cli.prune import chosen_recipe
from prunekit.loggers import ProgressBar
from prunekit.measure import human_bytes


def prune_blocks(
    source: Annotated[Path, typer.Argument(help="Folder of a causal model, as transformers saves it.")],
    text: Annotated[Path, typer.Option(help="Calibration text, a file in UTF-8.")],
    out: Annotated[Path, typer.Option(help="Folder for the pruned model; goes on where one stopped.")],
    method: Annotated[str | None, typer.Option(help="A method of `prunekit methods`.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="A recipe in YAML, instead of a method.")] = None,
    assignments: options.SetOption = None,
    allow: options.Allow = None,
    sequences: Annotated[int, typer.Option(min=1, help="Pieces of the text, from random places.")] = 128,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a piece.")] = 2048,
    inputs: Annotated[
        Literal["pruned", "dense"] | None,
        typer.Option(help="Measure behind pruned blocks, or dense ones, as gradients always are."),
    ] = None,
    activations: Annotated[
        Literal["memory", "disk"], typer.Option(help="Where those of the text are kept.")
    ] = "memory",
    memory: Annotated[int | None, typer.Option(min=1, help="Bytes it may take; else what is free.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    as_json: options.Json = False,
) -> None:
    """Prune a language model block by block, from files to files.

    Example: prunekit prune-blocks llama --text train.txt --method sparsegpt --out sparse-llama
    """
    with own_code(allow):
        chosen = chosen_recipe(method, recipe, assignments or [])
    done = passes = 0
    with only_results():
        tokens = drawn_sequences(text_tokens(text, source), sequences, length, seed)
        pruning = BlockwisePruning(source, chosen, tokens, activations=activations)
        need = pruning.memory.total
        bar = ProgressBar(description=f"passes through a block, at most {human_bytes(need)} of memory")

        def report(number: int, count: int) -> None:
            nonlocal done, passes
            done, passes = number, count
            bar.progress(number, count)

        try:
            with bar:
                kept = pruning.run(out, inputs=inputs, memory=memory, seed=seed, report=report)
        except KeyboardInterrupt:
            raise StoppedError(
                f"stopped behind {done} of {passes} passes through a block; the same command goes on from "
                "there"
            ) from None
    sparsities = [block.sparsity for block in kept]
    if as_json:
        print_json({"folder": str(out), "memory": need, "sparsity": sparsities})
        return
    total = sum(sum(block.total.values()) for block in kept)
    left = sum(sum(block.kept.values()) for block in kept)
    counts = chosen.granularity.counts
    typer.echo(f"{total - left:,} of {total:,} {counts} of {len(kept)} blocks are removed; in")
    typer.echo(str(out))
