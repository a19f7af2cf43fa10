"""A group of commands whose code is imported when one of them is called: PyTorch takes seconds to load."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from prunekit.cli.options import HELP_MARKUP, interruptible

COMMANDS: Mapping[str, tuple[str, str]] = {
    "methods": ("compare", "List the methods with their papers, or show one as a recipe."),
    "compare": ("compare", "Compare pruning methods: several recipes, several seeds, one report."),
    "prune": ("prune", "Prune one network and save it."),
    "prune-blocks": ("prune_blocks", "Prune a language model block by block, from files to files."),
    "shrink": ("shrink", "Make a network physically smaller, prove it, and save it."),
    "export": ("export", "Write a network as a file for other programs, compared with PyTorch."),
    "pack": ("pack", "Write a network to one small file, to the bit."),
    "unpack": ("pack", "Write the network of a packed file to a folder that loads."),
    "inspect": (
        "inspect",
        "Show a network layer by layer: parameters, zeros, MACs, and its latency and memory.",
    ),
    "sensitivity": (
        "sensitivity",
        "Show the loss where one layer alone is pruned, at several sparsities.",
    ),
    "report": ("compare", "Make the figures and the page of a study anew from its tables."),
}
"""For each command the module of `prunekit.cli` that holds it, and the first line of its help."""
_WITHOUT_ARGUMENTS = {"methods"}


class LazyCommands(TyperGroup):
    """All commands by name and first line of help; the one that is called is imported."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name, (_, line) in COMMANDS.items():
            self.commands[name] = TyperCommand(name=name, help=line, short_help=line)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the arguments begin with, as it is defined."""
        if args and args[0] in COMMANDS:
            self.commands[args[0]] = loaded(args[0])
        return super().resolve_command(ctx, args)


def loaded(name: str) -> Any:
    """A command as it is defined."""
    module = importlib.import_module(f"prunekit.cli.{COMMANDS[name][0]}")
    function = getattr(module, name.replace("-", "_"))
    app = typer.Typer(rich_markup_mode=HELP_MARKUP, add_completion=False)
    app.command(name, no_args_is_help=name not in _WITHOUT_ARGUMENTS)(interruptible(function))
    return typer.main.get_command(app)
