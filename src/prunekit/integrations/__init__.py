"""Pruning inside the training loops of other libraries: each a thin file that needs its library only."""
