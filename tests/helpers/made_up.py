"""What a made-up results folder is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from metalearn.studies.frame.draw import label_lines
from metalearn.studies.frame.plot import canvas
from metalearn.studies.frame.publication import Publication
from metalearn.studies.frame.run import run_study
from metalearn.studies.frame.table import Cell, make_table

SIZES = {"900 kB": 9e5, "1.2 MB": 1.2e6, "35.0 MB": 3.5e7, "1.1 GB": 1.1e9}
SUMMARY = {
    "name": "omniglot_5w1s_imaml",
    "test_loss": 1.18,
    "test_accuracy": 0.568,
    "test_accuracy_interval": 0.0173,
    "test_tasks": 600,
    "transductive": True,
    "chosen_step": 100,
    "steps": 500,
    "meta_batch": 32,
    "peak_memory_bytes": 235403032,
    "step_s": 2.85,
    "train_s": 1625.6,
    "threads": 1,
    "seed": 0,
    "command": "metalearn train experiment=omniglot_5w1s_imaml",
    "commit": "3ed23aed9a7990938945b4ec0a127e3048567b24",
    "machine": "x86_64, 2 cores",
    "date": "2026-11-24T04:37:23+00:00",
}


@dataclass(frozen=True)
class Growth:
    """What grows with n: rows for n of 0 to 11, and a table of sizes in no order."""

    title = "Growth"
    finding: str = "It grows 12 times."

    def cells(self):
        return [{"n": n} for n in range(12)]

    def measure(self, cell, device):
        return [{"method": "None" if cell["n"] % 2 else "implicit", "cube": cell["n"] ** 3 + 0.5}]

    def tables(self, rows):
        sizes = [Cell(text, size) for text, size in SIZES.items()]
        some = zip(rows.to_dict("records"), (2, 0, 3, 1), (math.inf, 1e-8, 2.5, None), strict=False)
        shown = [
            {**row, "size": sizes[i], "steps": f"unrolled, {10**i} steps", "bound": bound}
            for row, i, bound in some
        ]
        return {
            "Sizes": make_table(list(shown[0]), shown),
            "Growth by n": make_table(list(rows.columns), rows.to_dict("records")),
        }

    def figures(self, rows):
        figure, (axes,) = canvas(caption="The cube of `n` against n.")
        axes.plot(rows.n, rows["cube"], label="cube")
        label_lines(axes)
        return {"growth": figure, "twice": figure}

    def facts(self, rows):
        return {"finding": self.finding, "rows": len(rows)}


def publish(results: Path, name: str, scratch: Path, study: Growth) -> Path:
    options = {"preset": "quick", "_target_": "a.b", "seeds": [0, 1]}
    publication = Publication(name, options, results, scratch, wandb="disabled")
    return run_study(study, publication, torch.device("cpu"))
