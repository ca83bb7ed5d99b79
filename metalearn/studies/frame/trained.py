"""The options and measurements that studies of training runs share."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge
from pydantic.dataclasses import dataclass

from metalearn.config.options import STRICT, Count, Distinct, Seed, one_sentence
from metalearn.studies.frame import Cell, Row
from metalearn.studies.frame.study_run import Budget, StudyRun
from metalearn.training.forecast import time_meta_step
from metalearn.training.protocol import EvaluationProtocol


@one_sentence
@dataclass(frozen=True, config=STRICT)
class TrainedStudy:
    """A study whose cells are runs of `metalearn train`.

    Args:
        seeds: the seeds of weights and training tasks.
        steps: the meta-steps of each run. A larger number resumes the runs.
        overrides: further overrides of `metalearn train`, for every run.
        validation_every, validation_tasks: the validations by which the model is chosen.
        test_tasks: the number of tasks by which the chosen model is judged.
        runs: the folder of the runs.
    """

    seeds: Distinct[Seed]
    steps: Count
    overrides: Sequence[str]
    validation_every: Count
    validation_tasks: Annotated[int, Ge(2)]
    test_tasks: Annotated[int, Ge(2)]
    runs: str

    @property
    def budget(self) -> Budget:
        return Budget(self.steps)

    @property
    def protocol(self) -> EvaluationProtocol:
        return EvaluationProtocol(tasks=self.test_tasks)

    def run_words(self, cell: Any) -> list[str]:
        """Return the overrides of `metalearn train` for a cell's run."""
        raise NotImplementedError

    def base_words(self, experiment: str, seed: int) -> list[str]:
        """Return the overrides that the study's common options decide, without `overrides`."""
        return [
            f"experiment={experiment}",
            f"seed={seed}",
            f"steps={self.steps}",
            f"validation.every={self.validation_every}",
            f"validation.tasks={self.validation_tasks}",
        ]

    def run_of(self, cell: Cell, device: torch.device) -> StudyRun:
        return StudyRun.of(Path(self.runs), self.run_words(cell), device)

    def check(self, cells: Sequence[Cell], device: torch.device) -> None:
        """Read the summaries of the cells' runs; raise UsageError if one is damaged."""
        for cell in cells:
            self.run_of(cell, device).summary()

    def expected_seconds(self, cells: Sequence[Cell], device: torch.device) -> float | None:
        """Return the seconds that the cells' runs will train on this machine, or at most train.

        Without a limit in minutes, two meta-steps are timed of each config that differs in more
        than its seed. None: they cannot be timed.
        """
        if self.budget.minutes:
            return 60 * self.budget.minutes * len(cells)
        total, timed = 0.0, dict[str, float | None]()
        for cell in cells:
            run = self.run_of(cell, device)
            left = run.config.steps - run.summary().get("steps", 0)
            words = str([w for w in self.run_words(cell) if not w.startswith("seed=")])
            if left > 0 and words not in timed:
                timed[words] = time_meta_step(run.config)
            if left > 0:
                if (seconds := timed[words]) is None:
                    return None
                total += left * seconds
        return total

    def measure(self, cell: Cell, device: torch.device) -> list[Row]:
        return measure_run(self.run_of(cell, device), self.budget, self.protocol, device)


def measure_run(
    run: StudyRun, budget: Budget, protocol: EvaluationProtocol, device: torch.device
) -> list[Row]:
    """Train a run and judge its chosen model.

    Args:
        protocol: the run's own number of inner steps is added to those that it names.

    Returns:
        a "curve" row for each validation, and a "test" row for each mode and number of inner
        steps; or one "stopped" row, where a guard stopped the run before its first validation.
    """
    stopped = run.train(budget)
    curve = run.curve()
    if not curve or not (run.folder / "best.pt").is_file():
        return [{"part": "stopped", "why": stopped}]
    own = int(run.config.metagrad.inner.steps)
    protocol = replace(protocol, inner_steps=sorted({*protocol.inner_steps, own}))
    began = time.perf_counter()
    judged = run.judged(protocol, device)
    seconds = time.perf_counter() - began
    tasks, summary = run.config.tasks, run.summary()
    about = {
        "dataset": tasks.dataset._target_.rpartition(".")[2],
        "ways": tasks.ways,
        "shots": tasks.shots,
        "steps": curve[-1]["step"],
        "meta_batch": run.config.meta_batch,
        "train_s": curve[-1]["train_s"],
        "test_s": seconds,
        "threads": summary.get("threads"),
        "machine": summary.get("machine"),
        "commit": summary.get("commit"),
        "run": run.folder.name,
        "why": stopped,
    }
    left_out = ("name", "seed", "benchmark", "split")
    rows: list[Row] = [{"part": "curve", **row} for row in curve]
    for row in judged:
        figures = {key: value for key, value in row.items() if key not in left_out}
        rows.append({"part": "test", **figures, **about})
    return rows
