"""The report of `results/` as one self-contained HTML page: `metalearn report`."""
