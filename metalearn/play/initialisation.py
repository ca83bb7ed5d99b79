"""A trained initialisation that adapts to drawings, and the trace of its inner loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.inner import InnerPoint, Objective
from metalearn.play.curvature import largest_curvature
from metalearn.problem import BilevelProblem
from metalearn.tasks import TaskBatch
from metalearn.tasks.images import LabelledImages
from metalearn.training.adaptation import Adaptable
from metalearn.training.adapted import class_probabilities, make_task, turn_dropout_off
from metalearn.training.protocol import label


@dataclass(frozen=True)
class Trace:
    """The path of one inner loop from its start, up to a point that is not finite.

    Args:
        own: the initialisation that adapts.
        support: the images that it adapts to.
        points: the start and the point after each step.
        losses: the inner objective at each point. It is the support loss, and for iMAML the
            proximal term too.
        objective: maps params to (1,).
        diverges: the path ends before the steps do, since its next point is not finite.
    """

    own: Initialisation
    support: LabelledImages
    points: Sequence[InnerPoint]
    losses: Sequence[float]
    objective: Objective
    diverges: bool

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Return the probability of each class, (points, n, classes) float64.

        Args:
            images: (n, channels, size, size) uint8.

        Raises:
            UsageError: the predictions are not finite, or none of the classes.
        """
        classes = len(self.support.classes)
        if not self.points:
            return torch.empty(0, len(images), classes)
        names = self.points[0].params
        params = {name: torch.cat([point.params[name] for point in self.points]) for name in names}
        task = self.own.task(self.support, images)
        each = TaskBatch(*(expanded(x, len(self.points)) for x in vars(task).values()))
        meta = self.own.opened.experiment.meta
        return class_probabilities(self.own.predictor, params, meta, each, classes)

    def stability(self, step: int, enough: Callable[[], bool] = lambda: False) -> float | None:
        """Return the rate of the step from point `step` times the largest curvature over 2.

        A step of gradient descent diverges along a direction where it is above 1, as in
        `Certificate.inner_stability`. None: the solver's steps have no rate.

        Args:
            enough: as in `largest_curvature`.
        """
        point = self.points[step]
        if point.rate is None:
            return None
        curvature = largest_curvature(self.objective, point.params, enough=enough)
        return None if curvature is None else point.rate.item() * curvature / 2


def expanded(x: Tensor, tasks: int) -> Tensor:
    """Return the tensor of one task, (1, ...), for each of several equal tasks."""
    return x.expand(tasks, *x.shape[1:])


@dataclass(frozen=True)
class Initialisation:
    """A checkpoint that is opened to adapt to drawings with light ink on dark.

    Args:
        opened: runs the inner loop.
        problem: the problem of the inner loop.
        predictor: the same problem without dropout, which predicts.
    """

    opened: Adaptable
    problem: BilevelProblem
    predictor: BilevelProblem

    @classmethod
    def open(
        cls,
        path: Path,
        source: str | None = None,
        device: str = "cpu",
        threads: int | None = None,
    ) -> Initialisation:
        """Open a checkpoint.

        Args:
            source: the place of the run's data, which only "population" statistics read.

        Raises:
            UsageError: the checkpoint cannot be used, its problem predicts no classes of images, or
                its inner loop has no number of steps.
        """
        opened, twin = (
            Adaptable.open(path, source=source, device=device, threads=threads) for _ in range(2)
        )
        opened.inner_loop(0)
        turn_dropout_off(twin.experiment.model)
        return cls(opened, opened.settled()[0], twin.settled()[0])

    @property
    def name(self) -> str:
        """The name of the file, with its folder where the file is a run's best or last."""
        path = self.opened.path
        return path.stem if path.parent.parent.name == "results" else label(path)

    @property
    def method(self) -> str:
        """The gradient that trained it: "unrolled", "implicit", or the name of its class."""
        _, metagrad = self.opened.inner_loop()
        return metagrad.estimates or type(metagrad).__name__

    @property
    def trained_steps(self) -> int:
        """The number of inner steps in training."""
        return self.opened.inner_loop()[0] or 0

    def trace(self, support: LabelledImages, steps: int) -> Trace:
        """Adapt to the support images by the run's own inner loop, point by point.

        Args:
            support: images of the run's channels and size, with high values for ink.
            steps: the number of inner steps. An initialisation that was trained without any makes
                none: its start solves the inner problem.

        Raises:
            UsageError: the model cannot take the images or their number of classes.
        """
        only, classes = self.opened.only_ways, len(support.classes)
        if only not in (None, classes):
            raise UsageError(
                f"{classes} classes: expected the {only} that {self.name} takes. Draw as many."
            )
        experiment, task = self.opened.experiment, self.task(support, support.images)
        experiment.check(task)
        steps = steps if self.trained_steps else 0
        _, metagrad = self.opened.inner_loop(steps)
        solver, objective, start = metagrad.inner_loop(self.problem, experiment.meta, task)
        points, losses = [], []
        for point in solver.path(objective, start):
            with torch.no_grad():
                loss = objective(point.params).item()
            finite = all(p.isfinite().all() for p in point.params.values())
            if not (finite and math.isfinite(loss)):
                break
            points.append(point)
            losses.append(loss)
        return Trace(self, support, points, losses, objective, len(points) <= steps)

    def task(self, support: LabelledImages, queries: Tensor) -> TaskBatch:
        """Return one task of drawings, whose ink is made dark where the run's images have it so."""
        inverted = not self.opened.light_ink
        return make_task(support, queries, inverted, self.opened.experiment.device)
