"""A checkpoint that is opened for evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from metalearn import config
from metalearn.config.build import build
from metalearn.errors import UsageError
from metalearn.metagrad import MetaGradient
from metalearn.problem import BilevelProblem
from metalearn.training import checkpoint
from metalearn.training.data_source import move
from metalearn.training.evaluation import Member
from metalearn.training.experiment import Experiment
from metalearn.training.fingerprint import DataRecord

MODES = {"transductive": True, "inductive": False}
"""The modes: True where batch norm takes the queries' own statistics, not the support set's."""


@dataclass(frozen=True)
class OpenedCheckpoint:
    """A checkpoint with its experiment, and a problem for each mode.

    Args:
        inner_steps: those of the training; None: the inner loop has no number of steps.
        data: the record of the data of its training; empty in a checkpoint of an earlier release.
    """

    path: Path
    step: int
    run: DictConfig
    experiment: Experiment
    problems: Mapping[str, BilevelProblem]
    inner_steps: int | None
    data: DataRecord

    @property
    def origin(self) -> dict[str, Any]:
        return {"name": self.run.get("name"), "seed": self.run.seed, "chosen_step": self.step}

    def member(self, steps: int | None) -> Member:
        """Return the member that takes `steps` inner steps; None: as many as it trained with.

        Raises:
            UsageError: its inner loop has no number of steps.
        """
        metagrad = build_metagrad(self.run, steps, self.path)
        return Member(self.problems, metagrad, self.experiment.meta)

    def check_same_tasks(self, other: OpenedCheckpoint) -> None:
        """Raise UsageError where an option of the test tasks differs."""
        own, others = self._task_options(), other._task_options()
        for name in own | others:
            if own.get(name) != others.get(name):
                raise UsageError(
                    f"{other.path} has tasks.{name}={others.get(name)} and {self.path} "
                    f"{own.get(name)}: expected members with the same tasks. Choose others, or "
                    "give ways=, shots= and queries= for all"
                )

    def _task_options(self) -> dict[str, Any]:
        """Return the task options, but for the dataset's folder: another may hold the same."""
        tasks = self.run.tasks
        names = ("_target_", "ways", "shots", "test_queries", "channels", "image_size")
        data = tasks.get("dataset", {})
        return {name: tasks.get(name) for name in names} | {
            f"dataset.{name}": value for name, value in data.items() if name != "source"
        }


def trained_steps(run: DictConfig) -> int | None:
    """Return the inner steps of a run; None: its inner loop has no number of steps."""
    steps: int | None = OmegaConf.select(run, "metagrad.inner.steps")
    return steps


def build_metagrad(run: DictConfig, inner_steps: int | None, path: Path) -> MetaGradient:
    """Build the meta-gradient of a run with another number of inner steps; None: with its own.

    Args:
        path: the run's checkpoint, for the error.

    Raises:
        UsageError: `inner_steps` is below 0, or the inner loop has no number of steps.
    """
    options = run.metagrad.copy()
    if inner_steps is not None:
        if inner_steps < 0:
            raise UsageError(
                f"inner_steps={inner_steps}: expected a whole number of at least 0. Give one."
            )
        if trained_steps(run) is None:
            raise UsageError(
                f"inner_steps={inner_steps}: expected a run whose inner loop has a number of "
                f"steps, which that of {path} has not. Leave inner_steps= out"
            )
        options.inner.steps = inner_steps
    return build(options, MetaGradient)


def open_checkpoint(
    path: Path,
    modes: Sequence[str],
    device: str = "cpu",
    threads: int | None = None,
    queries: int | None = None,
    ways: int | None = None,
    shots: int | None = None,
    source: str | None = None,
) -> OpenedCheckpoint:
    """Open a checkpoint for the tasks that are asked for.

    Args:
        modes: some of the problem's modes; a problem with none of them is judged in all its own.
        queries, ways, shots: of a task; None: the run's own.
        source: the place where the run's dataset lies now; None: where it lay in training.

    Raises:
        UsageError: the checkpoint cannot be used, or its tasks or its head have no such ways.
    """
    state = checkpoint.load(path)
    run = config.checked(state["config"], str(path), "train")
    run.device, run.threads = device, threads
    if source is not None:
        move(run, source, str(path))
    if queries is not None:
        run.tasks.test_queries = queries
    trained_ways = run.tasks.get("ways")
    for name, value in (("ways", ways), ("shots", shots)):
        if value is not None and name not in run.tasks:
            raise UsageError(
                f"{name}={value}: expected a checkpoint whose tasks have {name}, which those "
                f"of {path} have not. Leave {name}= out"
            )
        if value is not None:
            run.tasks[name] = value
    experiment = Experiment.of(run)
    if ways is not None and ways != trained_ways and not experiment.problem.any_ways:
        raise UsageError(
            f"ways={ways}: expected {trained_ways}, for the head of {path} has a vector "
            "for each class it was trained on. Leave ways= out."
        )
    experiment.load(checkpoint.select_meta(state))
    experiment.load_constants(state.get("constants", {}))
    own = experiment.problem.modes()
    problems = {
        mode: experiment.settled(own[mode], experiment.meta)
        for mode in [mode for mode in modes if mode in own] or own
    }
    return OpenedCheckpoint(
        path,
        state["step"],
        run,
        experiment,
        problems,
        trained_steps(run),
        state.get("data", {}),
    )
