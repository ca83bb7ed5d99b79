"""Several processes and parts of a meta-batch."""
