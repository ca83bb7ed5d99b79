"""The training problem of distillation, architecture search and hyper-parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.errors import UsageError
from metalearn.nn import TaskBatched
from metalearn.problems.prediction_loss import prediction_loss
from metalearn.problems.protocol import Meta, Params
from metalearn.tree import task_half_square


@dataclass(frozen=True)
class TrainingTask:
    """A batch of T tasks: weights at which a training begins, and images that judge its end.

    Args:
        params: dict of (T, ...).
        x, y: (n, ...) images and (n,) labels or (n, outputs) targets, the same for every task.
    """

    params: Params
    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(next(iter(self.params.values())))

    def __getitem__(self, tasks: slice) -> TrainingTask:
        return TrainingTask({name: p[tasks] for name, p in self.params.items()}, self.x, self.y)


class Training(ABC):
    """The problem whose inner loop trains a model.

    inner(w) = mean cross-entropy on training images + decay / 2 |w|^2. outer = the cross-entropy on
    a task's own images (metric: accuracy). With targets instead of labels, the loss is the squared
    error.

    Meta is in the images or in the model, as a subclass defines. The training begins at the task's
    own weights, whatever meta is.

    Args:
        model: a module that `TaskBatched` takes; only its structure is used.
        decay: at least 0; above 0 it makes the curvature of the flat directions positive.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < float("inf"):
            raise UsageError(f"decay={decay}; expected a number of at least 0")
        self.model = TaskBatched(model)
        self.decay = decay

    @abstractmethod
    def examples(self, meta: Meta) -> tuple[Tensor, Tensor]:
        """Return the training images (n, ...) and their labels (n,) or targets (n, outputs)."""

    def predict(self, params: Params, meta: Meta, x: Tensor) -> Tensor:
        """Return the outputs (T, n, classes) for images (n, ...)."""
        tasks = len(next(iter(params.values())))
        return self.model(params, x.expand(tasks, *x.shape))

    def init(self, meta: Meta, task: TrainingTask) -> Params:
        return task.params

    def inner_objective(self, params: Params, meta: Meta, task: TrainingTask) -> Tensor:
        return self.inner_loss(self.inner_outputs(params, meta, task), meta, task)

    def inner_outputs(self, params: Params, meta: Meta, task: TrainingTask) -> dict[str, Any]:
        x, _ = self.examples(meta)
        # The penalty is quadratic in the weights, so the weights are outputs too.
        return {"predictions": self.predict(params, meta, x), "params": params}

    def inner_loss(self, outputs: dict[str, Any], meta: Meta, task: TrainingTask) -> Tensor:
        _, y = self.examples(meta)
        loss = prediction_loss(outputs["predictions"], y.expand(len(task), *y.shape))
        if not self.decay:
            return loss
        return loss + self.decay * sum(task_half_square(p) for p in outputs["params"].values())

    def outer_objective(
        self, params: Params, meta: Meta, task: TrainingTask
    ) -> tuple[Tensor, dict[str, Tensor]]:
        predictions = self.predict(params, meta, task.x)
        loss = prediction_loss(predictions, task.y.expand(len(task), *task.y.shape))
        if task.y.is_floating_point():
            return loss, {}
        correct = predictions.detach().argmax(dim=-1) == task.y
        return loss, {"accuracy": correct.to(loss.dtype).mean(dim=1)}


def fresh(model: Callable[[], nn.Module], tasks: int, device: torch.device) -> Params:
    """Draw random starts for the given number of tasks, (T, ...), from torch's generator."""
    drawn = [dict(model().named_parameters()) for _ in range(tasks)]
    return {
        name: torch.stack([params[name].detach() for params in drawn]).to(device)
        for name in drawn[0]
    }
