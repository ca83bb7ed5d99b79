"""The training time until a validation accuracy is reached, beside other libraries' examples."""

from __future__ import annotations

import importlib.util
import math
import time
import warnings
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Annotated, Any, ClassVar

import pandas as pd
import torch
from annotated_types import Ge, Lt
from matplotlib.figure import Figure
from omegaconf import DictConfig
from pydantic.dataclasses import dataclass

from metalearn import config
from metalearn.config.build import build
from metalearn.config.options import STRICT, Count, Distinct, Positive, Seed, one_of, one_sentence
from metalearn.errors import TrainingStopped, UsageError
from metalearn.studies.frame import Cell, Row
from metalearn.studies.frame.own_process import keeps_memory, own_process
from metalearn.studies.frame.table import Table
from metalearn.studies.time_to_accuracy import report as time_report
from metalearn.studies.time_to_accuracy.examples import EXAMPLES
from metalearn.studies.time_to_accuracy.learners import Learner, Ours, train_until
from metalearn.system.machine import now
from metalearn.system.memory import keep_freed_memory
from metalearn.system.random_state import seed_all
from metalearn.tasks import ImageTasks
from metalearn.training.estimate import Estimate
from metalearn.training.guards import REFUSALS

WAYS, SHOTS = 5, 1
KEEPERS = ("all", "ours", "none")
HELD_OUT = {"validation": 1000, "test": 2000}
"""The seeds of the held-out tasks, as in `metalearn train`."""


@one_sentence
@dataclass(frozen=True, config=STRICT)
class TimeToAccuracyStudy:
    """Time the trainings of experiments and of other libraries' examples to one accuracy.

    All draw from the same classes of a dataset, and are validated and tested on the same 5-way
    1-shot tasks of held-out classes. Each trains in a process of its own. Validations do not count,
    and neither do imports, the building of the model and the reading of the images.

    Args:
        experiments: experiments of `metalearn train`.
        examples: names of `EXAMPLES`.
        dataset: the choice of `tasks=`, for all.
        overrides: further overrides of every experiment. Those of `tasks.dataset` hold for all.
        seeds: the seeds of weights and training tasks.
        accuracy: the validation accuracy at which a training ends.
        limit_s: the wall time of training in seconds after which it ends without.
        resolution: the share by which the training time grows between two validations. A time is
            too large by at most this share.
        queries: the query images of each class in validation and test.
        validation_tasks: the tasks of a validation.
        test_tasks: the tasks of the test at the end of each training.
        keep_memory: the processes that keep the memory they free, "all", "ours" or "none".
        threads: the threads of PyTorch.
    """

    title: ClassVar[str] = "Training time to an accuracy"
    growing: ClassVar = ("experiments", "examples", "seeds")

    experiments: Sequence[str]
    examples: Sequence[Annotated[str, one_of(EXAMPLES)]]
    dataset: str
    overrides: Sequence[str]
    seeds: Distinct[Seed]
    accuracy: Annotated[float, Ge(0), Lt(1)]
    limit_s: Positive
    resolution: Positive
    queries: Count
    validation_tasks: Annotated[int, Ge(2)]
    test_tasks: Annotated[int, Ge(2)]
    keep_memory: Annotated[str, one_of(KEEPERS)]
    threads: Count

    def __post_init__(self) -> None:
        if not self.experiments and not self.examples:
            raise UsageError("experiments=[], examples=[]: expected at least one. Name one.")
        for name in self.experiments:
            self._config(name, self.seeds[0], torch.device("cpu"))

    def cells(self) -> list[Cell]:
        """Return the cells seed by seed, so that the first seed of all comes first."""
        names = [*self.experiments, *self.examples]
        return [{"competitor": name, "seed": seed} for seed in self.seeds for name in names]

    def measure(self, cell: Cell, device: torch.device) -> list[Row]:
        """Return a "curve" row for each validation, and an "end" row.

        Raises:
            TrainingStopped: the process ended, as happens where memory runs out.
        """
        library = self._library(cell)
        if library and importlib.util.find_spec(library) is None:
            return [_left_out(library, f"{library} is not installed")]
        try:
            with own_process(__name__) as pool:
                return pool.submit(self.train, cell, device).result()
        except BrokenProcessPool as error:
            raise TrainingStopped(
                f"stopped: the process of {cell['competitor']} ended, as happens where memory runs "
                "out; the same command resumes with the other trainings"
            ) from error

    def train(self, cell: Cell, device: torch.device) -> list[Row]:
        """Return the rows of `measure`, from a training in this process."""
        warnings.simplefilter("ignore")  # deprecations of torch that other libraries use
        torch.set_num_threads(self.threads)
        library = self._library(cell)
        keep_freed_memory(keeps_memory(self.keep_memory, library))
        tasks = self._tasks()
        learner = self._learner(cell, tasks, device)

        def judge(split: str, number: int) -> Estimate:
            return learner.accuracy(tasks.sampler(split, HELD_OUT[split], device), number)

        curve: list[dict[str, Any]] = []
        why, refused = "", False
        try:
            curve += train_until(
                *(learner, self.accuracy, self.limit_s, self.resolution),
                lambda: judge("validation", self.validation_tasks),
                (partial(now, device), time.process_time),
            )
        except REFUSALS as error:
            why, refused = str(error), True
        if not curve:
            return [_left_out(library, why)]
        last = curve[-1]
        reached = last["accuracy"] >= self.accuracy
        if not reached and not why:
            its_own = last["step"] == learner.steps
            limit = f"its {learner.steps} meta-steps" if its_own else f"{self.limit_s:g} s"
            why = f"not reached in {limit}"
        # After a refusal the learner is no longer the one of the last validation.
        test = judge("test", self.test_tasks) if not refused else Estimate(math.nan, math.nan)
        end: dict[str, Any] = {
            **{"part": "end", "library": library, "reached": reached, "why": why, **last},
            **{"test_accuracy": test.mean, "test_accuracy_interval": test.interval},
            **{"goal": self.accuracy, "limit_s": self.limit_s, "dataset": self.dataset},
            **{"threads": self.threads, "keep_memory": self.keep_memory, **learner.about},
        }
        return [*({"part": "curve", **row} for row in curve), end]

    def _library(self, cell: Any) -> str:
        """Return the library of an example; empty for an experiment."""
        name = cell["competitor"]
        return "" if name in self.experiments else EXAMPLES[name][0]

    def _tasks(self) -> ImageTasks:
        words = [f"tasks={self.dataset}", f"tasks.ways={WAYS}", f"tasks.shots={SHOTS}"]
        words += [word for word in self.overrides if word.startswith("tasks.dataset.")]
        composed = config.compose("train", [*words, f"tasks.test_queries={self.queries}"])
        return build(composed.tasks, ImageTasks)

    def _config(self, name: str, seed: int, device: torch.device) -> DictConfig:
        words = [f"experiment={name}", f"tasks={self.dataset}", *self.overrides]
        return config.compose("train", [*words, f"seed={seed}", f"device={device}"])

    def _learner(self, cell: Any, tasks: ImageTasks, device: torch.device) -> Learner:
        name, seed = cell["competitor"], cell["seed"]
        if name in self.experiments:
            return Ours(self._config(name, seed, device))
        seed_all(seed)
        return EXAMPLES[name][1](tasks, seed, device)

    def tables(self, rows: pd.DataFrame) -> dict[str, Table]:
        return time_report.tables(rows)

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        return time_report.figures(rows)

    def facts(self, rows: pd.DataFrame) -> dict[str, Any]:
        return time_report.facts(rows)


def _left_out(library: str, why: str) -> Row:
    """Return the "end" row of a training without a validation."""
    none = dict.fromkeys(("wall_s", "cpu_s", "accuracy"))
    return {"part": "end", "library": library, "reached": False, "why": why, **none}
