"""A first look: MAML and iMAML on the same `glyphs` tasks, side by side.

Trains MAML (unrolled by `higher`) and iMAML (implicit, conjugate gradients) for the same number of
5-way 1-shot tasks, tests both on scripts that neither saw, measures how far each meta-gradient is
from the exact one on a batch of 2 tasks, and prints one table. Results go to runs/demo-*/.

    scripts/demo.py [key=value ...]     the options of `metalearn train`, for both runs
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "6")

import torch
from rich.console import Console
from rich.table import Table

from metalearn.config import compose
from metalearn.errors import UsageError
from metalearn.metagrad.exact import NotConverged, meta_gradient_error
from metalearn.system.memory import format_bytes
from metalearn.training.estimate import Estimate
from metalearn.training.experiment import Experiment
from metalearn.training.loop import train
from metalearn.training.tracking import Tracker

METHODS = {
    "MAML (higher)": ["metagrad=maml", "metagrad.inner.steps=5"],
    "iMAML (CG, Gauss-Newton)": ["metagrad=imaml_gn", "metagrad.inner.steps=10"],
}
COMMON = [
    "tasks=glyphs",
    "model.channels=32",
    "model.head=free",  # the papers' network, which README's table is of
    "model.feature_norm=false",
    "steps=120",
    "meta_batch=8",
    "optimiser.lr=3e-3",
    "schedule=cosine",
    "tasks.test_queries=5",
    "validation.every=60",
    "validation.tasks=64",
    "model.activation=silu",  # smooth, so that the exact meta-gradient exists
]
ERROR_TASKS = 2  # the exact gradient takes half a minute of one core a task
COLUMNS = ["method", "accuracy", "peak memory", "s/meta-step", "meta-gradient error"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "words",
        nargs="*",
        metavar="key=value",
        help="an option of `metalearn train`, for both runs",
    )
    words = parser.parse_args().words
    for choice in METHODS.values():
        compose("train", [*choice, *COMMON, *words])  # a mistake is told before any training
    rows: list[list[str]] = []
    for method, choice in METHODS.items():
        config = compose("train", [*choice, *COMMON, *words])
        folder = Path("runs") / f"demo-{config.name}"
        shutil.rmtree(folder, ignore_errors=True)
        print(f"\n{method}: {config.steps} meta-steps of {config.meta_batch} tasks")
        summary = train(config, folder)
        rows.append([method, *_figures(summary), _error(config, folder)])

    table = Table(title="5-way 1-shot on letters of scripts held out from training")
    for column in COLUMNS:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    print(
        f"Error: of the meta-gradient of {ERROR_TASKS} test tasks against the exact one of the\n"
        "method's own problem, in float64: for MAML the derivative of its inner steps, for iMAML\n"
        "that of the converged inner problem. Chance is 20 %."
    )
    tracker = Tracker(Path("runs") / "demo", {"methods": list(METHODS)}, name="demo", warn=print)
    tracker.table("comparison", COLUMNS, rows)
    tracker.finish({})
    return 0


def _figures(summary: dict[str, Any]) -> list[str]:
    accuracy = Estimate(summary["test_accuracy"], summary["test_accuracy_interval"])
    return [
        accuracy.percent(),
        format_bytes(summary["peak_memory_bytes"]),
        f"{summary['step_s']:.3f}",
    ]


def _error(config: Any, folder: Path) -> str:
    """At the trained meta-parameters, on a batch of test tasks."""
    experiment = Experiment.of(config)
    state = torch.load(folder / "best.pt", weights_only=True)
    task = experiment.tasks.sampler("test", 0, experiment.device).sample(ERROR_TASKS)
    try:
        error = meta_gradient_error(experiment.metagrad, experiment.problem, state["meta"], task)
    except NotConverged:
        return "not converged"
    return f"{100 * error:.2g} %"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UsageError as mistake:
        sys.exit(f"demo: {mistake}")
