"""The study of CG iterations: how many a meta-gradient needs, and other methods in CG's place."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, ClassVar

import pandas as pd
import torch
from annotated_types import Ge
from matplotlib.figure import Figure
from pydantic.dataclasses import dataclass

from metalearn import config
from metalearn.config.build import build
from metalearn.config.options import (
    STRICT,
    Count,
    Distinct,
    Natural,
    Positive,
    Seed,
    one_of,
    one_sentence,
)
from metalearn.errors import TrainingStopped, UsageError
from metalearn.metagrad import MetaGradient
from metalearn.metagrad.by_iterations import WAYS
from metalearn.studies.cg import figures as cg_figures
from metalearn.studies.cg import report as cg_report
from metalearn.studies.cg.points import EvaluationPoint, Points, compared, solved
from metalearn.studies.cg.rows import SWEPT
from metalearn.studies.frame import Cell, Row
from metalearn.studies.frame.metagrads import check_metagrads, named_metagrad
from metalearn.studies.frame.table import Table
from metalearn.studies.frame.timing import seconds
from metalearn.system.memory import peak_bytes
from metalearn.training import checkpoint
from metalearn.training.experiment import Experiment
from metalearn.training.loop import train

CPU = torch.device("cpu")

PLACES: Sequence[tuple[Any, Any]] = (
    ("adapted", "hessian"),
    ("minimum", "hessian"),
    ("minimum", "gauss_newton"),
)
"""The points and curvatures of the systems that are solved task by task."""
PLACES_OF: dict[Any, tuple[EvaluationPoint, ...]] = {
    "implicit": ("adapted", "minimum"),
    "unrolled": ("adapted",),
}
"""The points where a further meta-gradient is compared, by the gradient that it estimates."""


def _further(name: str) -> Cell:
    """Return the part of a cell that names a further meta-gradient, whose solve has no number."""
    return {"way": name, "iterations": None}


@one_sentence
@dataclass(frozen=True, config=STRICT)
class CGStudy:
    """The study; every training is a run of `metalearn train experiment=glyphs_cg`.

    Args:
        seeds: the seeds of weights and tasks. Everything except the cost is measured with each.
        iterations: the numbers of iterations; 0 is the first-order gradient.
        proxes: the values of lambda.
        ways: names of `metalearn.metagrad.by_iterations.WAYS`, "cg" among them.
        train_iterations: the numbers of iterations for the trainings of "cg" and "gauss_newton".
        way_iterations: the number of iterations for the trainings of the other methods, which use
            the first of `proxes`.
        channels: the channels of the network's convolutions.
        inner_steps, inner_lr: the steps and learning rate of the inner loop.
        start_steps: the meta-steps before gradients are compared. This training uses Gauss-Newton,
            5 iterations and the first of `proxes`.
        tasks: the number of tasks whose gradients are compared.
        steps, meta_batch: the meta-steps of a training, and the tasks of each.
        validation_tasks, test_tasks: the tasks that measure accuracy during and after a training.
        metagrads: further meta-gradients (`named_metagrad`), with the study's inner loop. Their
            gradients and costs are measured, without a training.
    """

    title: ClassVar[str] = "CG iterations of the implicit meta-gradient"
    growing: ClassVar = ("seeds", "proxes", "train_iterations", "metagrads")

    seeds: Distinct[Seed]
    iterations: Distinct[Natural]
    proxes: Distinct[Positive]
    ways: Distinct[Annotated[str, one_of(WAYS)]]
    train_iterations: Distinct[Natural]
    way_iterations: Count
    channels: Count
    inner_steps: Count
    inner_lr: Positive
    start_steps: Count
    tasks: Count
    steps: Count
    meta_batch: Count
    validation_tasks: Annotated[int, Ge(2)]
    test_tasks: Annotated[int, Ge(2)]
    metagrads: Sequence[str] = ()
    _made: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_metagrads(self.metagrads, WAYS, exact=True)
        if self.way_iterations not in self.iterations:
            raise UsageError(
                f"way_iterations={self.way_iterations}: expected one of iterations="
                f"{list(self.iterations)}, whose gradients are compared. Name one."
            )
        if "cg" not in self.ways:
            raise UsageError(
                f"ways={list(self.ways)}: expected cg among them, whose 0 iterations are the "
                "first-order gradient. Add cg."
            )

    def cells(self) -> list[Cell]:
        points: list[Cell] = [{"seed": s, "prox": p} for s in self.seeds for p in self.proxes]
        found: list[Cell] = []
        for at in points:
            found += [{"part": "task", **at}, {"part": "gradient", **at}]
            found += [{"part": "gradient", **at, **_further(name)} for name in self.metagrads]
        for way in self.ways:
            found += [{"part": "cost", "way": way, "iterations": n} for n in self._numbers(way)]
        found += [{"part": "cost", **_further(name)} for name in self.metagrads]
        for seed in self.seeds:
            for prox in self.proxes:
                for way in self.ways:
                    for n in self._trained(way, prox):
                        how: Cell = {"way": way, "iterations": n, "prox": prox, "seed": seed}
                        found.append({"part": "accuracy", **how})
        return found

    def _trained(self, way: str, prox: float) -> Sequence[int]:
        if way in SWEPT:
            return [n for n in self.train_iterations if n or way == "cg"]
        return [self.way_iterations] if prox == self.proxes[0] else []

    def measure(self, cell: Cell, device: torch.device) -> list[Row]:
        if device.type != "cpu":
            raise UsageError(f"device={device}: expected float64 arithmetic. Use device=cpu.")
        measures: dict[Any, Callable[[Any], list[Row]]] = {
            "task": self._task,
            "gradient": self._gradient,
            "cost": self._cost,
            "accuracy": self._accuracy,
        }
        return measures[cell["part"]](cell)

    def words(self, way: str, iterations: int, prox: float, seed: int) -> list[str]:
        """Return the overrides that `metalearn train` takes for a training of this study."""
        return [
            "experiment=glyphs_cg",
            f"metagrad.way={way}",
            f"metagrad.iterations={iterations}",
            f"metagrad.inner.steps={self.inner_steps}",
            f"metagrad.inner.lr={self.inner_lr}",
            f"problem.prox={prox}",
            f"seed={seed}",
            f"model.channels={self.channels}",
            f"steps={self.steps}",
            f"meta_batch={self.meta_batch}",
            f"validation.every={max(1, self.steps // 6)}",
            f"validation.tasks={self.validation_tasks}",
            f"test.tasks={self.test_tasks}",
        ]

    def _train(self, words: list[str], folder: str) -> dict[str, Any]:
        own = [f"threads={torch.get_num_threads()}", "wandb=disabled"]
        with contextlib.redirect_stdout(io.StringIO()):  # the study shows its own progress bar
            return train(config.compose("train", [*words, *own]), Path(folder) / "run")

    def _experiment(self, seed: int, prox: float) -> Experiment:
        """Return the experiment after a short meta-training, made once a seed for every prox."""
        if seed not in self._made:
            words = self.words("gauss_newton", 5, self.proxes[0], seed)
            words += [f"steps={self.start_steps}", f"validation.every={self.start_steps}"]
            words += ["validation.tasks=2", "test.tasks=2"]
            with TemporaryDirectory() as folder:
                self._train(words, folder)
                self._made[seed] = checkpoint.load(Path(folder) / "run" / "last.pt")["meta"]
        experiment = Experiment.of(config.compose("train", self.words("cg", 5, prox, seed)))
        experiment.load(self._made[seed])
        return experiment

    def _points(self, seed: int, prox: float) -> Points:
        """Return the points of a seed and prox, made once for all cells."""
        if (seed, prox) not in self._made:
            self._made[seed, prox] = Points.of(self._experiment(seed, prox), self.tasks)
        points: Points = self._made[seed, prox]
        return points

    def _task(self, cell: Any) -> list[Row]:
        points = self._points(cell["seed"], cell["prox"])
        return [row for place in PLACES for row in solved(points, *place, self.iterations)]

    def _gradient(self, cell: Any) -> list[Row]:
        points = self._points(cell["seed"], cell["prox"])
        rows: list[Row] = []
        place: EvaluationPoint
        if "way" in cell:
            metagrad = self._metagrad(cell["way"], 0, cell["prox"])
            # At the minimum no step is taken, of which there is no derivative.
            places = PLACES_OF[metagrad.estimates]
            return [compared(points, place, metagrad) for place in places]
        for way in self.ways:
            for n in self._numbers(way):
                metagrad = self._metagrad(way, n, cell["prox"])
                for place in ("adapted", "minimum"):
                    rows.append({"way": way, "iterations": n, **compared(points, place, metagrad)})
        return rows

    def _numbers(self, way: str) -> list[int]:
        return [n for n in self.iterations if n or way == "cg"]

    def _metagrad(self, way: str, iterations: int, prox: float) -> MetaGradient:
        if way in self.metagrads:
            return named_metagrad(way, self._metagrad("cg", 0, prox).inner)
        words = self.words(way, iterations, prox, self.seeds[0])
        metagrad: MetaGradient = build(config.compose("train", words).metagrad)
        return metagrad

    def _cost(self, cell: Any) -> list[Row]:
        """Measure a whole meta-gradient, its inner loop included."""
        experiment = self._experiment(self.seeds[0], self.proxes[0])
        task = experiment.tasks.sampler("train", 1, CPU).sample(self.meta_batch)
        metagrad = self._metagrad(cell["way"], cell["iterations"], self.proxes[0])

        def once() -> None:
            metagrad(experiment.problem, experiment.meta, task)

        peak = peak_bytes(once, CPU)[1]
        return [{"gradient_s": seconds(once, rounds=5)[0], "peak_bytes": peak}]

    def _accuracy(self, cell: Any) -> list[Row]:
        """Return a row for each validation. The last also has the accuracy on the test classes."""
        words = self.words(cell["way"], cell["iterations"], cell["prox"], cell["seed"])
        with TemporaryDirectory() as folder:
            try:
                summary = self._train(words, folder)
            except TrainingStopped:
                return [{"stopped": True}]
            lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        rows: list[Row] = []
        train_s, negative = 0.0, 0
        for line in map(json.loads, lines):
            train_s += line["step_s"]
            negative += line.get("solve_negative_curvature", 0)
            if "validation_accuracy" in line:
                rows.append(
                    {
                        "step": line["step"],
                        "trained_tasks": line["step"] * self.meta_batch,
                        "train_s": train_s,
                        "negative_curvature": negative / (line["step"] * self.meta_batch),
                        "validation_accuracy": line["validation_accuracy"],
                        "stopped": False,
                    }
                )
        rows[-1] = {**rows[-1], "test_accuracy": summary["test_accuracy"]}
        return rows

    def tables(self, rows: pd.DataFrame) -> dict[str, Table]:
        return cg_report.tables(rows)

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        return cg_figures.figures(rows)

    def facts(self, rows: pd.DataFrame) -> dict[str, Any]:
        return cg_report.facts(rows)
