"""One self-contained HTML page of what is in `results/`: `metalearn report`."""
