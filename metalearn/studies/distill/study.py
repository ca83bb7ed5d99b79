"""Data distillation: ten images that stand for a whole training set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pandas as pd
import torch
from matplotlib.figure import Figure
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from metalearn.config.options import (
    STRICT,
    Count,
    Positive,
    Seed,
    Some,
    one_sentence,
)
from metalearn.errors import check_known
from metalearn.inner import GradientDescent
from metalearn.linear_solve import CG, Neumann
from metalearn.metagrad import Implicit, MetaGradient, Unrolled
from metalearn.nn import MLP
from metalearn.studies.distill import report as distill_report
from metalearn.studies.distill.measure import Judge, class_means, distil, judged, one_a_class
from metalearn.studies.frame import Cell, Row
from metalearn.studies.frame.metagrads import check_metagrads, named_metagrad
from metalearn.studies.frame.table import Table
from metalearn.tasks.image_splits import CLASSES, Labelled, Splits, image_splits

MOMENTUM = 0.9
TRUNCATED = 5
"""The number of last unrolled steps that the truncated meta-gradient differentiates."""
TRANSFERRED = 5
"""The number of first random draws that train other models too."""


@one_sentence
@dataclass(frozen=True, config=STRICT)
class DistillStudy:
    """The distillation of a training set into ten images.

    Args:
        seeds: the seeds of the splits, the first images, weights and batches.
        dataset, source, test, validation, train: arguments of `image_splits`.
        width: units of the model's hidden layer.
        decay: weight decay in distillation.
        methods: meta-gradients, by their names in `_own`.
        metagrads: further meta-gradients (`named_metagrad`), with the study's inner descent.
        unrolled_steps, implicit_steps: steps of the inner descent.
        inner_lr: the rate of the inner descent.
        solver_iters: iterations of an implicit gradient's linear solve.
        steps, lr: options of Adam on the images.
        starts, batch: initial weights and real images of a meta-step.
        every: meta-steps from one validation to the next.
        draws: random sets of ten real images.
        judge_decays: the weight decays among which the evaluation of images chooses.
        judge_starts: models trained on each set of images to evaluate it.
    """

    title: ClassVar[str] = "Data distillation: ten images for a training set"
    growing: ClassVar = ("seeds", "methods", "metagrads")

    seeds: Some[Seed]
    dataset: str
    source: str | None
    test: float
    validation: float
    train: int
    width: Count
    decay: Positive
    methods: Some[str]
    unrolled_steps: Count
    implicit_steps: Count
    inner_lr: Positive
    solver_iters: Count
    steps: Count
    lr: Positive
    starts: Count
    batch: Count
    every: Count
    draws: Count
    judge_decays: Some[Positive]
    judge_starts: Count
    metagrads: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_known("methods", self.methods, self._own())
        check_metagrads(self.metagrads, self._own())
        self._data(self.seeds[0])  # raises for an unfit dataset, before anything is measured

    def cells(self) -> list[Cell]:
        sources = (*distill_report.BASELINES, *self.methods, *self.metagrads)
        return [{"source": name, "seed": seed} for seed in self.seeds for name in sources]

    def measure(self, cell: Cell, device: torch.device) -> list[Row]:
        seed: Any = cell["seed"]
        data = self._data(seed).to(device)
        torch.manual_seed(seed)
        source = str(cell["source"])
        if source == "random":
            return self._random(data)
        if source == "whole":
            return [{"what": "judged", **self._judged(data.train, data)}]
        if source == "means":
            return self._rows(class_means(data.train), data)
        found = distil(
            self._model(data),
            self._meta_gradient(source),
            data,
            self.decay,
            self.starts,
            self.batch,
            self.steps,
            self.lr,
            self.every,
        )
        first, *rest = self._rows(found.images, data)
        return [{**first, **found.figures}, *rest, *found.curve]

    def _data(self, seed: int) -> Splits:
        return image_splits(self.dataset, self.source, seed, self.test, self.validation, self.train)

    def _model(self, data: Splits, hidden: int = 1) -> Callable[[], nn.Module]:
        """Return the constructor of a model; SiLU is smooth, as the theorem asks."""
        sizes = [data.train.x[0].numel(), *[self.width] * hidden, CLASSES]
        return lambda: MLP(sizes, nn.SiLU)

    def _meta_gradient(self, name: str) -> MetaGradient:
        own, (unrolled, solved) = self._own(), self._descents()
        if name in own:
            return own[name]
        found = named_metagrad(name, unrolled)
        return named_metagrad(name, solved) if found.estimates == "implicit" else found

    def _descents(self) -> tuple[GradientDescent, GradientDescent]:
        """Return the inner descent of unrolled gradients, and the longer one of implicit ones."""
        unrolled, solved = (
            GradientDescent(steps, self.inner_lr, MOMENTUM)
            for steps in (self.unrolled_steps, self.implicit_steps)
        )
        return unrolled, solved

    def _own(self) -> dict[str, MetaGradient]:
        unrolled, solved = self._descents()
        cg, neumann = CG(self.solver_iters), Neumann(self.solver_iters)
        return {
            "unrolled": Unrolled(unrolled, "batched"),
            "truncated": Unrolled(unrolled, "batched", truncate=TRUNCATED),
            "cg": Implicit(solved, cg),
            "gauss_newton": Implicit(solved, cg, curvature="gauss_newton"),
            "neumann": Implicit(solved, neumann),
        }

    def _judged(self, examples: Labelled, data: Splits, hidden: int = 1) -> dict[str, Any]:
        judges = [
            Judge(decay, GradientDescent(steps, self.inner_lr, MOMENTUM))
            for decay in self.judge_decays
            for steps in (self.unrolled_steps, self.implicit_steps)
        ]
        return judged(self._model(data, hidden), examples, data, judges, self.judge_starts)

    def _random(self, data: Splits) -> list[Row]:
        """Judge `draws` random sets of real images; the first one's images have rows too."""
        rows: list[Row] = []
        for draw in range(self.draws):
            images = one_a_class(data.train)
            judgement, *shown = self._rows(images, data, transfer=draw < TRANSFERRED)
            rows.append({**judgement, "draw": draw})
            rows += shown if draw == 0 else []
        return rows

    def _rows(self, images: Tensor, data: Splits, transfer: bool = True) -> list[Row]:
        """Return the row of ten images' accuracy in all models, and a row for each image."""
        examples = Labelled(images, torch.arange(CLASSES, device=images.device))
        row: dict[str, Any] = {"what": "judged", **self._judged(examples, data)}
        if transfer:
            for name, hidden in (("linear", 0), ("deeper", 2)):
                row[f"{name}_accuracy"] = self._judged(examples, data, hidden)["accuracy"]
        side = images.shape[-1]
        rows: list[Row] = [row]
        for label, image in enumerate(images):
            pixels = " ".join(f"{value:.3g}" for value in image.flatten().tolist())
            rows.append({"what": "image", "label": label, "side": side, "pixels": pixels})
        return rows

    def tables(self, rows: pd.DataFrame) -> dict[str, Table]:
        return distill_report.tables(rows)

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        return distill_report.figures(rows)

    def facts(self, rows: pd.DataFrame) -> dict[str, Any]:
        return distill_report.facts(rows)
