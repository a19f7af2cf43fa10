"""`python -m prunekit` is the command line."""

from prunekit.cli import main

main()
