"""The speed-up of training on several processes of one machine."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from annotated_types import Ge, Gt
from matplotlib.figure import Figure
from pydantic.dataclasses import dataclass

from metalearn.config.options import (
    STRICT,
    Count,
    Distinct,
    Some,
    one_sentence,
)
from metalearn.errors import TrainingStopped, UsageError
from metalearn.studies.frame import Cell, Row
from metalearn.studies.frame.table import Table
from metalearn.studies.frame.timing import spread
from metalearn.studies.ranks import report as ranks_report

OVERRIDES = ("tasks=glyphs", "validation.tasks=2", "test.tasks=2", "wandb=disabled")
"""The overrides of every run: 5-way 1-shot with Conv4-64, as in the first speed workload."""
WARMING = 3
"""The number of meta-steps at the start of a run that are not timed."""


@one_sentence
@dataclass(frozen=True, config=STRICT)
class RanksStudy:
    """The time of a meta-step of `torchrun --nproc-per-node N -m metalearn train`.

    Every number of processes trains on the same tasks, with one thread a process. One more run
    has one process with as many threads as the largest number of processes.

    Args:
        ranks: the numbers of processes, 1 among them: its time is the baseline.
        methods: the choices of `metagrad=`.
        meta_batch: the tasks of a meta-step, over all ranks.
        steps: the meta-steps of a run. The first `WARMING` are not timed.
        rounds: the rounds. Each run trains once a round, in an order that rotates.

    Raises:
        UsageError: 1 is not among `ranks`, one of `ranks` is larger than `meta_batch`, or there
            are too few methods, steps or rounds.
    """

    title: ClassVar[str] = "Training shared out over processes"
    growing: ClassVar = ("methods",)

    ranks: Distinct[Count]
    methods: Some[str]
    meta_batch: Count
    steps: Annotated[int, Gt(2 * WARMING)]
    rounds: Annotated[int, Ge(2)]

    def __post_init__(self) -> None:
        if not {1} < set(self.ranks) or max(self.ranks) > self.meta_batch:
            raise UsageError(
                f"ranks={list(self.ranks)}: expected 1 and larger numbers, up to "
                f"meta_batch={self.meta_batch}. Give other numbers."
            )

    def cells(self) -> list[Cell]:
        return [{"method": method} for method in self.methods]

    def measure(self, cell: Cell, device: torch.device) -> list[Row]:
        if device.type != "cpu":
            raise UsageError(
                f"device={device}: expected cpu, whose cores the processes share. Leave it out."
            )
        runs = [(ranks, 1) for ranks in sorted(set(self.ranks))]
        runs.append((1, max(self.ranks)))
        taken: dict[tuple[int, int], list[float]] = {run: [] for run in runs}
        losses: dict[tuple[int, int], float] = {}
        for i in range(self.rounds):
            turn = i % len(runs)
            for run in runs[turn:] + runs[:turn]:
                seconds, losses[run] = self._train(str(cell["method"]), *run)
                taken[run].append(seconds)
        alone = np.array(taken[1, 1])
        return [
            {
                "ranks": ranks,
                "threads": threads,
                **spread("seconds", np.array(taken[ranks, threads])),
                **spread("speed_up", alone / np.array(taken[ranks, threads])),
                "loss": losses[ranks, threads],
            }
            for ranks, threads in runs
        ]

    def _train(self, method: str, ranks: int, threads: int) -> tuple[float, float]:
        """Return the median seconds of a meta-step, and the query loss of the last one."""
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        torchrun += [f"--nproc-per-node={ranks}", "-m", "metalearn.__main__", "train"]
        overrides = [*OVERRIDES, f"metagrad={method}", f"meta_batch={self.meta_batch}"]
        overrides += [f"steps={self.steps}", f"validation.every={self.steps}", f"threads={threads}"]
        with TemporaryDirectory() as folder:
            run_dir = Path(folder) / "run"
            overrides.append(f"run_dir={run_dir}")
            done = subprocess.run(
                [*torchrun, *overrides],
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                capture_output=True,
                text=True,
            )
            if done.returncode:
                said = [line for line in done.stderr.splitlines() if line.startswith("metalearn")]
                reason = said[-1] if said else f"status {done.returncode}"
                raise TrainingStopped(f"training on {ranks} ranks failed: {reason}")
            lines = (run_dir / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        return statistics.median(row["step_s"] for row in rows[WARMING:]), rows[-1]["query_loss"]

    def tables(self, rows: pd.DataFrame) -> dict[str, Table]:
        return ranks_report.tables(rows, self.meta_batch)

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        return ranks_report.figures(rows)

    def facts(self, rows: pd.DataFrame) -> dict[str, Any]:
        return {"steps": self.steps, "methods": ranks_report.methods(rows)}
