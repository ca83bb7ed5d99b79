"""The learners that are timed: experiments of this project, and the clock that all share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from omegaconf import DictConfig

from metalearn.parallel.ranks import ALONE
from metalearn.system.random_state import seed_all
from metalearn.tasks import Sampler
from metalearn.training.estimate import Estimate
from metalearn.training.evaluation import evaluate
from metalearn.training.experiment import Experiment
from metalearn.training.options import check_options
from metalearn.training.state import TrainingState

FIRST_S = 1.0
"""The training time in seconds before the first validation."""


class Learner(Protocol):
    """A training that goes on meta-step by meta-step.

    Args:
        steps: the meta-steps after which the training ends; None: no limit of its own.
        about: the setting, as entries of a row.
    """

    steps: int | None
    about: dict[str, Any]

    def step(self) -> None:
        """Take one meta-step, the drawing of its tasks included."""
        ...

    def accuracy(self, sampler: Sampler, tasks: int) -> Estimate:
        """Estimate the accuracy after adaptation over the sampler's first tasks."""
        ...


class Ours:
    """A training by this project: the meta-steps of `metalearn train`, without logs or checkpoints.

    Args:
        config: a config of `metalearn train`.

    Raises:
        UsageError: the config asks for what cannot be had.
    """

    def __init__(self, config: DictConfig) -> None:
        check_options(config)
        seed_all(config.seed)
        self._experiment = Experiment.of(config)
        self._state = TrainingState(config, self._experiment, ALONE)
        self._meta_batch = int(config.meta_batch)
        self.steps: int | None = int(config.steps)
        self.about = {
            "setting": f"experiment={config.name}",
            "mode": self._experiment.mode,
            "parameters": sum(p.numel() for p in self._experiment.model.parameters()),
            "meta_batch": self._meta_batch,
        }

    def step(self) -> None:
        """Take one meta-step.

        Raises:
            NonFiniteGradient, FailedSolve, Explosion: a guard refuses the meta-gradient.
        """
        state = self._state
        state.take(state.meta_gradient(state.sampler.sample(self._meta_batch), print))
        state.step += 1

    def accuracy(self, sampler: Sampler, tasks: int) -> Estimate:
        one, meta = self._experiment, self._state.judged
        problem = one.settled(one.problem, meta)
        return evaluate(problem, one.metagrad, meta, sampler, tasks)["accuracy"]


def train_until(
    learner: Learner,
    goal: float,
    limit_s: float,
    resolution: float,
    validate: Callable[[], Estimate],
    clocks: tuple[Callable[[], float], Callable[[], float]] = (
        time.perf_counter,
        time.process_time,
    ),
) -> Iterator[dict[str, Any]]:
    """Train until a validation reaches `goal`, or until the limit or the learner's last meta-step.

    A validation follows whenever the training time has grown by the share `resolution`, the first
    one after `FIRST_S` seconds. Validations do not count towards the times.

    Args:
        limit_s: the wall time of training in seconds after which it ends.
        validate: returns the accuracy on the validation tasks, the same at every call.
        clocks: the wall clock and the processor clock, in seconds.

    Yields:
        a row for each validation: `step`, `wall_s`, `cpu_s`, `accuracy`, `accuracy_interval`.
    """
    wall_clock, cpu_clock = clocks
    wall = cpu = 0.0
    step, due = 0, FIRST_S
    while True:
        began, busy = wall_clock(), cpu_clock()
        ended = False
        while not ended:
            learner.step()
            step += 1
            taken = wall + wall_clock() - began
            ended = taken >= min(due, limit_s) or step == learner.steps
        wall, cpu = taken, cpu + cpu_clock() - busy
        found = validate()
        yield {
            **{"step": step, "wall_s": wall, "cpu_s": cpu},
            **{"accuracy": found.mean, "accuracy_interval": found.interval},
        }
        if found.mean >= goal or wall >= limit_s or step == learner.steps:
            return
        due = wall * (1 + resolution)


def mean_accuracy(predict: Callable[..., torch.Tensor], sampler: Sampler, tasks: int) -> Estimate:
    """Estimate the accuracy of `predict(support_x, support_y, query_x)` over tasks, one by one.

    `predict` returns the logits of one task's queries, (n, ways).
    """
    shares = []
    for _ in range(tasks):
        task = sampler.sample(1)
        logits = predict(task.support_x[0], task.support_y[0], task.query_x[0])
        shares.append((logits.argmax(dim=-1) == task.query_y[0]).double().mean())
    return Estimate.of(torch.stack(shares).cpu())
