"""Loading a saved network and resuming a study, beside the state before their files carried digests."""

from __future__ import annotations

import torch

from resuming import resuming
from side_by_side import arguments, finish


def main() -> None:
    options = arguments(__doc__ or "", rounds=9)
    torch.set_num_threads(1)
    finish(options, {"resuming": resuming(options.rounds)})


if __name__ == "__main__":
    main()
