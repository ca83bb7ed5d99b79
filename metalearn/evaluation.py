"""Accuracy on held-out tasks, with its interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from scipy import stats

from metalearn.metagrad import MetaGradient
from metalearn.problem import BilevelProblem, Meta
from metalearn.tasks import Sampler


@dataclass(frozen=True)
class Estimate:
    """A mean over tasks and the half-width of its 95 % interval (Student's t)."""

    mean: float
    interval: float

    @classmethod
    def of(cls, values: torch.Tensor) -> Estimate:
        n = len(values)
        values = values.double()
        if n < 2:
            return cls(float(values.mean()), math.inf)
        width = float(stats.t.ppf(0.975, n - 1)) * float(values.std()) / math.sqrt(n)
        return cls(float(values.mean()), width)

    def percent(self) -> str:
        return f"{100 * self.mean:.2f} ± {100 * self.interval:.2f} %"


def evaluate(
    problem: BilevelProblem,
    metagrad: MetaGradient,
    meta: Meta,
    sampler: Sampler,
    tasks: int,
    batch: int = 32,
    progress: Callable[[int], Any] = lambda done: None,
) -> dict[str, Estimate]:
    """Adapts to `tasks` tasks, `batch` at a time: the outer loss and each metric of the problem."""
    return evaluate_each({"": problem}, metagrad, meta, sampler, tasks, batch, progress)[""]


def evaluate_each(
    problems: Mapping[str, BilevelProblem],
    metagrad: MetaGradient,
    meta: Meta,
    sampler: Sampler,
    tasks: int,
    batch: int = 32,
    progress: Callable[[int], Any] = lambda done: None,
) -> dict[str, dict[str, Estimate]]:
    """`evaluate` for several problems of one inner objective, which is solved once a task."""
    inner = next(iter(problems.values()))
    found: dict[str, dict[str, list[torch.Tensor]]] = {name: {} for name in problems}
    done = 0
    while done < tasks:
        task = sampler.sample(min(batch, tasks - done))
        params = metagrad.adapt(inner, meta, task).params
        for key, problem in problems.items():
            with torch.no_grad():
                loss, metrics = problem.outer_objective(params, meta, task)
            for name, values in {"loss": loss, **metrics}.items():
                found[key].setdefault(name, []).append(values.detach().cpu())
        done += len(task)
        progress(done)
    return {
        key: {name: Estimate.of(torch.cat(values)) for name, values in figures.items()}
        for key, figures in found.items()
    }
