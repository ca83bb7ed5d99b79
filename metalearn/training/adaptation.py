"""The adaptation of a trained initialisation to a user's own classes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from metalearn import config
from metalearn.config.build import build
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
    state = checkpoint.load(path)
    run = config.checked(state["config"], str(path), "train")
    run.device, run.threads = device, threads
    if source is not None:
        move(run, source, str(path))
    experiment = Experiment.of(run)
    channels, size = _image_form(run, experiment.problem, path)
    experiment.load(checkpoint.select_meta(state))
    constants = state.get("constants", {})
    experiment.load_constants(constants)
    labelled = read_support(support, channels, size)
    trained_ways, classes = run.tasks.get("ways"), len(labelled.classes)
    if classes != trained_ways and not experiment.problem.any_ways:
        raise UsageError(
            f"support={support} has {classes} classes: expected {trained_ways}, for the head of "
            f"{path} has a vector for each class it was trained on. Give {trained_ways} classes, "
            "or train with model.head=zero"
        )
    if invert is None:
        invert = _has_light_ink(experiment) and labelled.images.float().mean().item() > 127.5
    mode, problem = _in_mode(experiment.problem, transductive)
    used: list[Tensor] = []

    def statistics_images() -> Tensor:
        used.append(experiment.statistics_images)
        return used[0]

    if isinstance(problem, TrainableProblem):
        problem = problem.settled(experiment.meta, statistics_images)
    task = make_task(labelled, labelled.images, invert, experiment.device)
    experiment.check(task)
    steps, metagrad = _inner_loop(run, inner_steps, path)
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
        "statistics_images": (used[0] * 255).round().to(torch.uint8).cpu() if used else None,
        "mode": mode,
        "inner_steps": steps,
        "inverted": invert,
    }
    return {
        **{"config": state["config"], "step": state["step"]},
        **{"meta": checkpoint.select_meta(state), "adapted": adapted},
        **({"constants": constants} if constants else {}),
        "provenance": provenance(experiment.device),
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


def _has_light_ink(experiment: Experiment) -> bool:
    """Return True if the run's images are drawings whose ink is light on dark."""
    read = getattr(getattr(experiment.tasks, "dataset", None), "func", None)
    module = sys.modules.get(getattr(read, "__module__", ""))
    return bool(getattr(module, "INK_IS_HIGH", False))


def _in_mode(problem: TrainableProblem, transductive: bool) -> tuple[str, BilevelProblem]:
    modes = problem.modes()
    wanted = "transductive" if transductive else "inductive"
    if wanted not in modes and (transductive or len(modes) > 1):
        raise UsageError(
            f"transductive={str(transductive).lower()}: expected a problem with the mode {wanted}, "
            f"and {type(problem).__name__} has {', '.join(modes)}. Leave transductive= out"
        )
    name = wanted if wanted in modes else next(iter(modes))
    return name, modes[name]


def _inner_loop(
    run: DictConfig, inner_steps: int | None, path: Path
) -> tuple[int | None, MetaGradient]:
    """Return the number of inner steps, None if the inner loop has none, and the method."""
    trained = OmegaConf.select(run, "metagrad.inner.steps")
    if inner_steps is None:
        return trained, build(run.metagrad, MetaGradient)
    if inner_steps < 0:
        raise UsageError(f"inner_steps={inner_steps}: expected a whole number of at least 0")
    if trained is None:
        raise UsageError(
            f"inner_steps={inner_steps}: expected a run whose inner loop has a number of steps, "
            f"which that of {path} has not. Leave inner_steps= out"
        )
    run.metagrad.inner.steps = inner_steps
    return inner_steps, build(run.metagrad, MetaGradient)
