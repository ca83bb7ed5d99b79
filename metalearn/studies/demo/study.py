"""MAML and iMAML on the same tasks: memory against inner steps, accuracy of a short training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pandas as pd
import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig
from pydantic.dataclasses import dataclass

from metalearn import config
from metalearn.config.options import STRICT, Count, Distinct, Seed, one_of, one_sentence
from metalearn.studies.demo import report as demo_report
from metalearn.studies.frame import Cell, Row
from metalearn.studies.frame.study_run import StudyRun
from metalearn.studies.frame.table import Table
from metalearn.system.memory import peak_bytes
from metalearn.system.random_state import seed_all
from metalearn.training import checkpoint
from metalearn.training.experiment import Experiment
from metalearn.training.loop import train

DATASETS = {"omniglot": "Omniglot", "glyphs": "glyphs"}
WORDS = {
    "MAML": [
        *("metagrad=maml_batched", "metagrad.inner.steps=1", "metagrad.inner.lr=0.4"),
        *("meta_batch=4", "optimiser.lr=6e-3"),
    ],
    "iMAML": [
        *("metagrad=imaml_stable", "metagrad.curvature=gauss_newton", "problem.prox=0.5"),
        *("metagrad.inner.steps=5", "metagrad.inner.lr=0.25"),
        *("metagrad.linear_solver.max_iters=2", "meta_batch=8", "optimiser.lr=1.2e-2"),
    ],
}
COMMON = [
    *("model.channels=32", "schedule=cosine", "tasks.queries=5", "tasks.test_queries=5"),
    "wandb=disabled",
]
AT_A_ZERO_HEAD = ["problem.adapt=head"]
"""One inner step from a zero head moves the head alone: this gives MAML's own gradient, faster."""
VALIDATIONS = 5
"""The number of validations of a training; all together have as many tasks as the test."""
SHORTER = ("maml_steps", "imaml_steps", "test_tasks")
"""The options that make the demo shorter."""
SECONDS = {"MAML": 0.035, "iMAML": 0.14}
"""The seconds of a meta-step with its share of the validations, on one core."""
OTHER_SECONDS = 15.0
"""The seconds of all the rest: imports, memory, test and figure."""


@one_sentence
@dataclass(frozen=True, config=STRICT)
class Demo:
    """
    Args:
        tasks: a name of `DATASETS`.
        folder: the parent of the two runs' folders.
        maml_steps, imaml_steps: the meta-steps of the trainings.
        inner_steps: the inner steps at which the peak memory of a meta-gradient is measured.
        test_tasks: the number of tasks of the test.
    """

    title: ClassVar[str] = "MAML and iMAML side by side"

    tasks: Annotated[str, one_of(DATASETS)]
    folder: Path
    seed: Seed
    maml_steps: Count
    imaml_steps: Count
    inner_steps: Distinct[Count]
    test_tasks: Count

    @property
    def steps(self) -> dict[str, int]:
        """The meta-steps of each method."""
        return {"MAML": self.maml_steps, "iMAML": self.imaml_steps}

    @property
    def seconds(self) -> float:
        """The time of all of it on one quiet core."""
        return OTHER_SECONDS + sum(SECONDS[name] * n for name, n in self.steps.items())

    def cells(self) -> list[Cell]:
        peaks: list[Cell] = [
            {"part": "memory", "method": m, "steps": k} for m in WORDS for k in self.inner_steps
        ]
        return [*peaks, *({"part": "training", "method": method} for method in WORDS)]

    def measure(self, cell: Cell, device: torch.device) -> Sequence[Row]:
        """Measure a peak, or train a method into its folder, from where its run stands.

        Raises:
            TrainingInterrupted: a signal asked for it; the run is saved.
        """
        method = str(cell["method"])
        if cell["part"] == "memory":
            return [{"peak_bytes": self._peak(method, int(str(cell["steps"])), device)}]
        return self._trained(method)

    def config(self, method: str, *words: str) -> DictConfig:
        """Return the config of a method's training with further words."""
        steps = self.steps[method]
        own = [f"tasks={self.tasks}", f"seed={self.seed}", f"steps={steps}", f"name={method}"]
        own += [f"validation.every={-(-steps // VALIDATIONS)}", f"test.tasks={self.test_tasks}"]
        own += [f"validation.tasks={max(2, self.test_tasks // VALIDATIONS)}"]
        return config.compose("train", [*WORDS[method], *COMMON, *own, *words])

    def _peak(self, method: str, steps: int, device: torch.device) -> int:
        """Return the peak memory of one meta-gradient of a task, all parameters adapted."""
        cfg = self.config(method, f"metagrad.inner.steps={steps}", "metagrad.inner.lr=0.05")
        seed_all(self.seed)
        experiment = Experiment.of(cfg)
        task = experiment.tasks.sampler("train", self.seed, device).sample(1)
        metagrad, problem, meta = experiment.metagrad, experiment.problem, experiment.meta
        return peak_bytes(lambda: metagrad(problem, meta, task), device)[1]

    def _trained(self, method: str) -> list[Row]:
        cfg = self.config(method, *(AT_A_ZERO_HEAD if method == "MAML" else []))
        run = StudyRun(cfg, self.folder / method.lower())
        if not run.summary():
            resume = bool(checkpoint.generations(run.folder))
            train(cfg, run.folder, resume, shorter=SHORTER)
        found: Any = run.summary()
        test = {
            "accuracy": found["test_accuracy"],
            "accuracy_interval": found["test_accuracy_interval"],
            "train_s": found["train_s"],
            "meta_steps": found["steps"],
        }
        columns = ("step", "train_s", "accuracy", "accuracy_interval")
        curve = [{"what": "curve", **{name: row[name] for name in columns}} for row in run.curve()]
        return [*curve, {"what": "test", **test}]

    def tables(self, rows: pd.DataFrame) -> dict[str, Table]:
        return demo_report.tables(rows, DATASETS[self.tasks])

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        return demo_report.figures(rows, DATASETS[self.tasks])

    def facts(self, rows: pd.DataFrame) -> dict[str, Any]:
        return demo_report.facts(rows)
