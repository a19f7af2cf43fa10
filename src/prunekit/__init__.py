"""prunekit: every way to prune a neural network, behind one composition of parts."""
