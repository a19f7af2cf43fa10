"""`prunekit prune`: one network, one recipe, a folder with the smaller one."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

import prunekit.cli.options as options
from prunekit.batches import as_batches
from prunekit.cli.networks import Network, folder_bytes, is_saved, open_network
from prunekit.cli.options import only_results, own_code, print_json, table_console
from prunekit.errors import InputError, StarvedLayerWarning
from prunekit.loggers import ProgressBar, logger_named
from prunekit.measure import count, human_bytes, layer_table
from prunekit.methods import recipe as named_recipe
from prunekit.parts.granularity import FilterShape
from prunekit.plain_yaml import read_yaml, with_assignments
from prunekit.pruning import Pruned
from prunekit.pruning import prune as prune_model
from prunekit.recipe import Recipe
from prunekit.saving import check_free, save_pretrained
from prunekit.training import Report, State, Training, copy_state, train

log = logging.getLogger(__name__)


def prune(
    model: options.Model,
    out: Annotated[Path, typer.Option(help="Folder for the pruned network.")],
    method: Annotated[str | None, typer.Option(help="A method of `prunekit methods`.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="A recipe in YAML, instead of a method.")] = None,
    assignments: options.SetOption = None,
    allow: options.Allow = None,
    data: Annotated[
        str | None, typer.Option(help="Dataset to retrain, score and test on, or module:function.")
    ] = None,
    data_dir: options.DataDir = None,
    weights: Annotated[
        Path | None, typer.Option(help="The trained weights: safetensors, or a folder.")
    ] = None,
    train_epochs: Annotated[
        float | None, typer.Option("--train", help="Train the network first, for so many epochs.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    logger: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=WHERE]", help="tensorboard=FOLDER, wandb or mlflow; may be repeated."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Prune one network and save it.

    Example: prunekit prune mlp --data digits --train 20 --method snip --out small
    """
    with own_code(allow):
        chosen = chosen_recipe(method, recipe, assignments or [])
    check_free(out)
    loggers = [logger_named(each) for each in logger or ()]
    with only_results(), ProgressBar() as bar:
        network = open_network(model, data=data, data_dir=data_dir, weights=weights, seed=seed)
        found = network.data
        chosen.plan(network.model, None if found is None else found.train.inputs[:2])
        checkpoints = _train(network, chosen, train_epochs, seed, bar.progress)
        if not is_saved(model) and weights is None and train_epochs is None and ":" not in model:
            log.warning("the network is not trained: its initial values are pruned; see --train, --weights")
        before = network.quality()
        with warnings.catch_warnings():  # the log has its own form
            warnings.simplefilter("ignore", StarvedLayerWarning)
            pruned = prune_model(
                network.model,
                chosen,
                None if found is None else found.train,
                validation=None if found is None else found.validation,
                seed=seed,
                checkpoints=checkpoints,
                evaluate=network.quality,
                loggers=[bar, *loggers],
            )
        for each in pruned.starved:
            log.warning("%s", each)
        save_pretrained(pruned, out, architecture=network.architecture)
    if as_json:
        print_json(_described(pruned, before, out))
    else:
        _show(pruned, before, out, network)


def chosen_recipe(method: str | None, path: Path | None, assignments: list[str]) -> Recipe:
    """The recipe of a named method, or of a file, with settings changed."""
    if (method is None) == (path is None):
        raise InputError("give either --method NAME (see `prunekit methods`) or --recipe FILE")
    if path is not None:
        return Recipe.parse(with_assignments(read_yaml(path), assignments))
    assert method is not None
    return named_recipe(method, **with_assignments({}, assignments))


def _train(
    network: Network, chosen: Recipe, epochs: float | None, seed: int, report: Report
) -> dict[int, State]:
    """Train if asked to, and keep the values that the recipe goes back to."""
    wanted = chosen.retrain.checkpoint
    kept: dict[int, State] = {}
    if epochs is None:
        if wanted == 0:
            raise InputError(
                f"the recipe's retrain {chosen.retrain.name!r} goes back to the values before training: "
                "add --train EPOCHS, so that prunekit trains the network and knows them"
            )
        return kept
    if network.data is None:
        raise InputError("--train needs data: add --data")
    train(
        network.model,
        as_batches(network.data),
        Training(epochs=epochs),
        seed=seed,
        checkpoints=() if wanted is None else (wanted,),
        on_checkpoint=kept.__setitem__,
        report=report,
    )
    if wanted is not None and wanted not in kept:
        kept[wanted] = copy_state(network.model)
    return kept


def _described(pruned: Pruned, before: Mapping[str, float], out: Path) -> dict[str, Any]:
    steps = [
        {
            "step": record.step,
            "sparsity": record.sparsity,
            "compression_ratio": record.compression_ratio,
            **({} if record.asked is None else {"asked": record.asked, "reached": record.reached}),
            **record.measured,
        }
        for record in pruned.history
    ]
    stopped = {} if pruned.stopped is None else {"stopped": asdict(pruned.stopped)}
    starved = {"starved": list(pruned.starved)} if pruned.starved else {}
    found = {"folder": str(out), "bytes": folder_bytes(out), "before": dict(before), "steps": steps}
    return {**found, **stopped, **starved}


def _show(pruned: Pruned, before: Mapping[str, float], out: Path, network: Network) -> None:
    console = Console(highlight=False)
    counts = None if network.data is None else count(pruned.model, network.data.test.inputs[:1])
    if counts is not None:
        table_console().print(layer_table(counts))
    whole = pruned.recipe.granularity.counts == "units"
    console.print(pruned.achieved + (f", and with them {_gone(pruned)}" if whole else ""))
    if pruned.stopped is not None:
        console.print(f"{pruned.stopped}")
    after = pruned.history[-1].measured if pruned.history else before
    for key, value in after.items():
        console.print(f"{key.replace('_', ' ')}: {before[key]:.4f} before, {value:.4f} after")
    dense = f", {human_bytes(counts.bytes)} dense" if counts is not None else ""
    console.print(f"saved: {human_bytes(folder_bytes(out))} on disk{dense}, in")
    typer.echo(str(out))
    if pruned.kept.sparsity == 0:
        now = "The network is as it was. Load"
    elif whole or isinstance(pruned.recipe.granularity, FilterShape):
        now = f"They are off, but still there. Take them out with\n{network.shrinking(out)}\nor load"
    else:
        now = "Zeros make the file smaller, not the network faster. Load"
    console.print(f"[dim]{escape(now)} it with\n{escape(network.loading(out))}.[/dim]", soft_wrap=True)


def _gone(pruned: Pruned) -> str:
    """The parameters that go with the removed units."""
    everything = sum(parameter.numel() for parameter in pruned.model.parameters())
    ratio = pruned.history[-1].compression_ratio if pruned.history else 1.0
    return f"{everything - round(everything / ratio):,} of {everything:,} parameters"
