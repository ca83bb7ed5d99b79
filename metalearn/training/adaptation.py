"""The adaptation of a trained initialisation to a user's own classes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from metalearn import config
from metalearn.errors import UsageError
from metalearn.metagrad import MetaGradient
from metalearn.parallel.batches import in_micro_batches
from metalearn.problem import BilevelProblem, PredictingProblem, TrainableProblem
from metalearn.system.provenance import provenance
from metalearn.tasks.labelled_files import read_support
from metalearn.training import checkpoint
from metalearn.training.adapted import make_task
from metalearn.training.data_source import move
from metalearn.training.experiment import Experiment
from metalearn.training.opened import build_metagrad, trained_steps


@dataclass(frozen=True)
class Adaptable:
    """A trained initialisation that is opened to be adapted to new classes of images.

    Args:
        path: the file of the checkpoint.
        state: its content.
        mode: the statistics of batch norm for predicted images, "inductive" or "transductive", or
            the only mode of the problem.
        channels, size: the form of the run's images.
    """

    path: Path
    state: dict[str, Any]
    run: DictConfig
    experiment: Experiment
    mode: str
    channels: int
    size: int

    @classmethod
    def open(
        cls,
        path: Path,
        transductive: bool = False,
        source: str | None = None,
        device: str = "cpu",
        threads: int | None = None,
    ) -> Adaptable:
        """Open the checkpoint of a run.

        Args:
            transductive, source: as in `adapt`.

        Raises:
            UsageError: the checkpoint cannot be used, or its problem predicts no classes of images.
        """
        state = checkpoint.load(path)
        run = config.checked(state["config"], str(path), "train")
        run.device, run.threads = device, threads
        if source is not None:
            move(run, source, str(path))
        experiment = Experiment.of(run)
        channels, size = _image_form(run, experiment.problem, path)
        experiment.load(checkpoint.select_meta(state))
        experiment.load_constants(state.get("constants", {}))
        mode = _mode(experiment.problem, transductive)
        return cls(path, state, run, experiment, mode, channels, size)

    @property
    def only_ways(self) -> int | None:
        """The only number of classes that the head takes; None: any."""
        ways: int | None = self.run.tasks.get("ways")
        return None if self.experiment.problem.any_ways else ways

    @property
    def light_ink(self) -> bool:
        """True if the run's images are drawings whose ink is light on dark."""
        read = getattr(getattr(self.experiment.tasks, "dataset", None), "func", None)
        module = sys.modules.get(getattr(read, "__module__", ""))
        return bool(getattr(module, "INK_IS_HIGH", False))

    def settled(self) -> tuple[BilevelProblem, Tensor | None]:
        """Return the problem as it predicts, and the training images that it was settled by."""
        problem = self.experiment.problem.modes()[self.mode]
        used: list[Tensor] = []

        def statistics_images() -> Tensor:
            used.append(self.experiment.statistics_images)
            return used[0]

        if isinstance(problem, TrainableProblem):
            problem = problem.settled(self.experiment.meta, statistics_images)
        return problem, used[0] if used else None

    def inner_loop(self, inner_steps: int | None = None) -> tuple[int | None, MetaGradient]:
        """Return the number of inner steps, None if the inner loop has none, and the method.

        Args:
            inner_steps: None: as many as in training.

        Raises:
            UsageError: `inner_steps` is below 0, or the inner loop has no number of steps.
        """
        metagrad = build_metagrad(self.run, inner_steps, self.path)
        return trained_steps(self.run) if inner_steps is None else inner_steps, metagrad


def adapt(
    path: Path,
    support: str,
    inner_steps: int | None = None,
    transductive: bool = False,
    invert: bool | None = None,
    source: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
) -> dict[str, Any]:
    """Adapt the initialisation of a checkpoint to a user's classes, by the run's own inner loop.

    Args:
        support: the labelled images, as `read_support` takes them.
        inner_steps: None: as many as in training.
        transductive: batch norm normalises the predicted images by their own statistics, else by
            those of the support set.
        invert: swap dark and light; None: where the run's images have light ink, and those of the
            support set are light on average.
        source: the place where the run's data lies now.

    Returns:
        The state that `checkpoint.save` writes and `AdaptedModel.of` takes.

    Raises:
        UsageError: the checkpoint or the support set cannot be used, or not together.
    """
    opened = Adaptable.open(path, transductive, source, device, threads)
    experiment = opened.experiment
    labelled = read_support(support, opened.channels, opened.size)
    classes = len(labelled.classes)
    if opened.only_ways not in (None, classes):
        raise UsageError(
            f"support={support} has {classes} classes: expected {opened.only_ways}, for the head "
            f"of {path} has a vector for each class it was trained on. Give {opened.only_ways} "
            "classes, or train with model.head=zero"
        )
    if invert is None:
        invert = opened.light_ink and labelled.images.float().mean().item() > 127.5
    problem, statistics = opened.settled()
    task = make_task(labelled, labelled.images, invert, experiment.device)
    experiment.check(task)
    steps, metagrad = opened.inner_loop(inner_steps)
    found, _ = in_micro_batches(
        lambda task: metagrad.adapt(problem, experiment.meta, task),
        lambda found: found[0],
        *(task, 1, lambda _: None),
    )
    params = {name: p.detach().cpu() for name, p in found.params.items()}
    if not all(p.isfinite().all() for p in params.values()):
        raise UsageError(
            f"inner_steps={steps}: expected finite parameters, and the inner loop of {path} "
            "diverges on these images. Give fewer inner_steps="
        )
    adapted = {
        "params": params,
        "classes": list(labelled.classes),
        "support_x": labelled.images,
        "support_y": labelled.labels,
        "statistics_images": (
            None if statistics is None else (statistics * 255).round().to(torch.uint8).cpu()
        ),
        "mode": opened.mode,
        "inner_steps": steps,
        "inverted": invert,
    }
    meta, constants = checkpoint.select_meta(opened.state), opened.state.get("constants", {})
    return {
        **{"config": opened.state["config"], "step": opened.state["step"]},
        **{"meta": meta, "adapted": adapted, "provenance": provenance(experiment.device)},
        **({"constants": constants} if constants else {}),
    }


def _image_form(run: DictConfig, problem: TrainableProblem, path: Path) -> tuple[int, int]:
    """Return the channels and the side of a run's images.

    Raises:
        UsageError: its problem predicts no classes, or its tasks are not of images.
    """
    if not isinstance(problem, PredictingProblem):
        raise UsageError(
            f"{path} is of the problem {type(problem).__name__}, which has no query_predictions: "
            "expected a problem that predicts classes. Give the checkpoint of another run"
        )
    form = run.tasks.get("channels"), run.tasks.get("image_size")
    if form[0] not in (1, 3) or type(form[1]) is not int or form[1] < 1:
        raise UsageError(
            f"{path} was trained on tasks with channels={form[0]} and image_size={form[1]}: "
            "expected tasks of grey or RGB images. Give the checkpoint of another run"
        )
    return form[0], form[1]


def _mode(problem: TrainableProblem, transductive: bool) -> str:
    """Return the name of the problem's mode for predictions."""
    modes = problem.modes()
    wanted = "transductive" if transductive else "inductive"
    if wanted not in modes and (transductive or len(modes) > 1):
        raise UsageError(
            f"transductive={str(transductive).lower()}: expected a problem with the mode {wanted}, "
            f"and {type(problem).__name__} has {', '.join(modes)}. Leave transductive= out"
        )
    return wanted if wanted in modes else next(iter(modes))
