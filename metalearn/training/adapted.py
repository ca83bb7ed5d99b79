"""A trained initialisation that was adapted to new classes, as a file that predicts by itself.

The file is a sealed checkpoint (`checkpoint`). It holds the adapted parameters and the support
images, since batch norm takes its statistics from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from metalearn import config
from metalearn.errors import UsageError
from metalearn.parallel.batches import in_micro_batches
from metalearn.problem import (
    BilevelProblem,
    Params,
    TrainableProblem,
    query_predictions,
)
from metalearn.tasks import TaskBatch
from metalearn.tasks.images import LabelledImages
from metalearn.training import checkpoint
from metalearn.training.experiment import Experiment
from metalearn.training.saved_fields import (
    check_fields,
    check_fit,
    each,
    is_count,
    is_tensor,
    is_text,
    is_tree,
    misfit,
    optional,
    record,
)
from metalearn.tree import detached

BATCH = 64
"""The number of images to predict at once, or that of the support images if these are more."""
_EXPECTED = (
    "expected a file of `metalearn adapt`. Make it by `metalearn adapt checkpoint=PATH "
    "support=FOLDER out=FILE`"
)
_ADAPTED = record(
    params=lambda value: isinstance(value, dict) and is_tree(value),
    classes=each(is_text),
    support_x=is_tensor,
    support_y=is_tensor,
    statistics_images=optional(is_tensor),
    mode=is_text,
    inner_steps=optional(is_count),
    inverted=lambda value: isinstance(value, bool),
)


@dataclass(frozen=True)
class AdaptedModel:
    """A classifier of images: a problem at the params that the inner loop reached.

    Args:
        problem: predicts the queries of a task.
        params: dict of (1, ...), and `meta`, both on the device.
        support: the labelled images that the model was adapted to.
        inverted: dark and light are swapped in all images.
    """

    problem: BilevelProblem
    params: Params
    meta: Any
    support: LabelledImages
    inverted: bool
    device: torch.device

    @property
    def classes(self) -> tuple[str, ...]:
        return self.support.classes

    @property
    def batch(self) -> int:
        """The number of images to predict at once."""
        return max(BATCH, len(self.support.images))

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Return the probability of each class, (n, classes) float64 on the CPU.

        Where memory runs out the images are taken in parts.

        Args:
            images: (n, channels, size, size) uint8.

        Raises:
            UsageError: the problem predicts something else, or numbers that are not finite.
            OutOfMemory: memory does not hold one image beside the support set.
        """
        found, _ = in_micro_batches(self._probabilities, torch.cat, images, 1, lambda _: None)
        return found

    def _probabilities(self, images: Tensor) -> Tensor:
        task = make_task(self.support, images, self.inverted, self.device)
        found = class_probabilities(self.problem, self.params, self.meta, task, len(self.classes))
        return found[0]

    @classmethod
    def of(
        cls, state: dict[str, Any], where: Path, device: str = "cpu", threads: int | None = None
    ) -> AdaptedModel:
        """Build the model of a state that `adaptation.adapt` returned.

        Args:
            where: the file that holds the state, for errors.

        Raises:
            UsageError: a field is another than `metalearn adapt` saves.
        """
        if "adapted" not in state:
            raise UsageError(f"{where} is no adapted model: {_EXPECTED}")
        if not _ADAPTED(state["adapted"]) or not {"config", "meta", "step"} <= state.keys():
            raise misfit(where, "adapted model", "that of `metalearn adapt`")
        check_fields(state, ("config", "meta", "step", "constants"), where)
        own = state["adapted"]
        run = config.checked(state["config"], str(where), "train")
        run.device, run.threads = device, threads
        support = LabelledImages(own["support_x"], own["support_y"], tuple(own["classes"]))
        experiment = Experiment.of(run)
        experiment.load(state["meta"])
        experiment.load_constants(state.get("constants", {}))
        problem = experiment.problem.modes().get(own["mode"])
        images = own["statistics_images"]
        if problem is None:
            raise misfit(where, "mode", f"one of {', '.join(experiment.problem.modes())}")
        if isinstance(problem, TrainableProblem):
            if images is not None:
                images = images.to(experiment.device).float() / 255
            problem = problem.settled(experiment.meta, lambda: images)
        turn_dropout_off(experiment.model)
        task = make_task(support, support.images, own["inverted"], experiment.device)
        meta = detached(experiment.meta)
        with torch.no_grad():
            check_fit(own["params"], problem.init(meta, task), "params", where)
        params = {name: p.to(experiment.device) for name, p in own["params"].items()}
        return cls(problem, params, meta, support, own["inverted"], experiment.device)


def load(path: Path, device: str = "cpu", threads: int | None = None) -> AdaptedModel:
    """Open the file of an adapted model.

    Raises:
        UsageError: the file is absent, damaged, or of another kind.
    """
    if not path.exists():
        raise UsageError(f"checkpoint={path} is not there: {_EXPECTED}")
    return AdaptedModel.of(checkpoint.read(path), path, device, threads)


def class_probabilities(
    problem: BilevelProblem, params: Params, meta: Any, task: TaskBatch, classes: int
) -> Tensor:
    """Return the probability of each class, (T, queries, classes) float64 on the CPU.

    Raises:
        UsageError: the problem predicts something else, or numbers that are not finite.
    """
    logits = query_predictions(problem, params, meta, task)
    shape, expected = tuple(logits.shape), tuple(task.query_y.shape)
    if len(shape) != 3 or shape[:2] != expected or shape[2] < classes:
        raise UsageError(
            f"the model's predictions have the shape {shape}: expected {(*expected, classes)}, "
            "a number for each image and class. Mend query_predictions"
        )
    found = logits[:, :, :classes].double().softmax(dim=-1).cpu()
    if not found.isfinite().all():
        raise UsageError(
            "the model's predictions are not finite: expected numbers. Adapt again with fewer "
            "inner_steps="
        )
    return found


def turn_dropout_off(model: nn.Module) -> None:
    """Turn a model's dropout off, since a prediction is not random."""
    for layer in model.modules():
        if isinstance(layer, _DropoutNd):
            layer.eval()


def make_task(
    support: LabelledImages, queries: Tensor, inverted: bool, device: torch.device
) -> TaskBatch:
    """Return one task of the support set and of queries without known labels, (n, ...) uint8."""
    x, y = (_scaled(images, inverted, device) for images in (support.images, queries))
    labels = support.labels.to(device)[None]
    return TaskBatch(x, labels, y, labels.new_zeros(1, len(queries)))


def _scaled(images: Tensor, inverted: bool, device: torch.device) -> Tensor:
    images = images.to(device)
    return (255 - images if inverted else images).float()[None] / 255
