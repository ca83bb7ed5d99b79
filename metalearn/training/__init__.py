"""One training run: the loop, its state, guards, checkpoints and evaluation."""
