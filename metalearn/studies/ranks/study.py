"""How much faster several processes train than one, on this machine."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from metalearn.errors import UsageError
from metalearn.studies.frame import Cell, Row
from metalearn.studies.frame.plot import canvas, label_lines
from metalearn.studies.frame.timing import spread

WORDS = ("tasks=glyphs", "validation.tasks=2", "test.tasks=2", "wandb=disabled")
"""5-way 1-shot with Conv4-64, as the first of the speed workloads."""
WARMING = 3
"""Meta-steps at the start of a run that are not timed."""


@dataclass(frozen=True)
class RanksStudy:
    """Seconds of a meta-step of `torchrun --nproc-per-node N -m metalearn train`, one thread each,
    on the same tasks; beside it one process with as many threads as there are ranks at most.

    Args:
        ranks: numbers of processes; 1 is the one that the others are compared with.
        methods: choices of `metagrad=`.
        meta_batch: tasks of a meta-step, over all ranks.
        steps: meta-steps of a run, the first 3 of which are not timed.
        rounds: in which each number of processes trains once, in an order that rotates.

    Raises:
        UsageError: ranks without 1, or more of them than tasks; too few steps or rounds.
    """

    title: ClassVar[str] = "Training shared out over processes"

    ranks: Sequence[int]
    methods: Sequence[str]
    meta_batch: int
    steps: int
    rounds: int

    def __post_init__(self) -> None:
        if not {1} < set(self.ranks) or min(self.ranks) < 1 or max(self.ranks) > self.meta_batch:
            raise UsageError(
                f"ranks={list(self.ranks)}; expected 1 and larger numbers, up to "
                f"meta_batch={self.meta_batch}"
            )
        if not self.methods or self.steps <= 2 * WARMING or self.rounds < 2:
            raise UsageError(
                f"methods={list(self.methods)}, steps={self.steps}, rounds={self.rounds}; expected "
                f"a method, more than {2 * WARMING} steps and at least 2 rounds"
            )

    def cells(self) -> list[Cell]:
        return [{"method": method} for method in self.methods]

    def measure(self, cell: Cell, device: torch.device) -> list[Row]:
        if device.type != "cpu":
            raise UsageError(f"device={device}; this study shares a CPU's cores out, device=cpu")
        ways = [(ranks, 1) for ranks in sorted(set(self.ranks))]
        ways.append((1, max(self.ranks)))
        taken: dict[tuple[int, int], list[float]] = {way: [] for way in ways}
        losses: dict[tuple[int, int], float] = {}
        for i in range(self.rounds):
            turn = i % len(ways)
            for way in ways[turn:] + ways[:turn]:
                seconds, losses[way] = self._train(str(cell["method"]), *way)
                taken[way].append(seconds)
        alone = np.array(taken[1, 1])
        return [
            {
                "ranks": ranks,
                "threads": threads,
                **spread("seconds", np.array(taken[ranks, threads])),
                **spread("speed_up", alone / np.array(taken[ranks, threads])),
                "loss": losses[ranks, threads],
            }
            for ranks, threads in ways
        ]

    def _train(self, method: str, ranks: int, threads: int) -> tuple[float, float]:
        """Seconds of a meta-step, and the last one's query loss."""
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        torchrun += [f"--nproc-per-node={ranks}", "-m", "metalearn.__main__", "train"]
        words = [*WORDS, f"metagrad={method}", f"meta_batch={self.meta_batch}"]
        words += [f"steps={self.steps}", f"validation.every={self.steps}", f"threads={threads}"]
        with TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            words.append(f"run_dir={run}")
            done = subprocess.run(
                [*torchrun, *words],
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise RuntimeError(f"training on {ranks} ranks ended badly: {done.stderr[-2000:]}")
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return statistics.median(row["step_s"] for row in rows[WARMING:]), rows[-1]["query_loss"]

    def tables(self, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
        each: Any = rows.itertuples()
        shown = [
            {
                "metagrad": row.method,
                "processes": row.ranks,
                "threads each": row.threads,
                "s a meta-step": f"{row.seconds:.3f} [{row.seconds_low:.3f}, "
                f"{row.seconds_high:.3f}]",
                "times as fast": f"{row.speed_up:.2f} [{row.speed_up_low:.2f}, "
                f"{row.speed_up_high:.2f}]",
                "last query loss": f"{row.loss:.6f}",
            }
            for row in each
        ]
        caption = f"{self.meta_batch} tasks of 5 ways and 1 shot, Conv4-64; quartiles in brackets"
        return {caption: pd.DataFrame(shown)}

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        figure, (axes,) = canvas()
        for method, part in rows[rows.threads == 1].groupby("method", sort=False):
            own = part.sort_values("ranks")
            axes.plot(own.ranks, own.speed_up, "o-", label=str(method))
        counts = sorted(rows.ranks.unique())
        axes.plot(counts, counts, color="0.6", lw=0.8, label="as many times as processes")
        axes.set(xlabel="processes, one thread each", ylabel="times as fast as one", xticks=counts)
        label_lines(axes)
        return {"speed_up": figure}

    def findings(self, rows: pd.DataFrame) -> list[str]:
        found = []
        for method, part in rows.groupby("method", sort=False):
            shared: Any = part[part.threads == 1].sort_values("ranks").iloc[-1]
            threaded: Any = part[part.threads > 1].iloc[-1]
            alone: Any = part[(part.ranks == 1) & (part.threads == 1)].iloc[0]
            found.append(
                f"{method}: {shared.ranks} processes of one thread train {shared.speed_up:.2f} "
                f"times as fast as one (quartiles {shared.speed_up_low:.2f} to "
                f"{shared.speed_up_high:.2f}), one process of {threaded.threads} threads "
                f"{threaded.speed_up:.2f} times."
            )
            found.append(
                f"{method}: sums in another order are rounded otherwise, which grows with the "
                f"meta-steps: after {self.steps} the loss is off by "
                f"{abs(shared.loss / alone.loss - 1):.0e} of its value with {shared.ranks} "
                f"processes, by {abs(threaded.loss / alone.loss - 1):.0e} with {threaded.threads} "
                "threads of one."
            )
        return found
