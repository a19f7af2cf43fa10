"""Loading a saved network and resuming a study, beside the state before their files carried digests."""

from __future__ import annotations

import torch

from loading import loading
from resuming import resuming
from side_by_side import arguments, finish

BEFORE = "afc3510"
"""The commit before files carried digests."""


def main() -> None:
    options = arguments(__doc__ or "", rounds=9)
    torch.set_num_threads(1)
    rounds = options.rounds
    finish(options, {"loading": loading(rounds, BEFORE), "resuming": resuming(rounds, BEFORE)})


if __name__ == "__main__":
    main()
