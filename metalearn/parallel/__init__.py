"""Several processes for one run, and the micro-batches of a meta-batch."""
