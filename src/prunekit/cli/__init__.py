"""The command line: a thin face, every command is one call into the package."""

from prunekit.cli.app import main

__all__ = ["main"]
