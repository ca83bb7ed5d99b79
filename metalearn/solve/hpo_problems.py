"""Hyper-parameters as meta-parameters: weight decays, and weights of training examples.

minimise over meta  loss of the query set (validation) at params*(meta)
where               params*(meta) minimises the loss of the support set (training) as meta has it

Both keep their hyper-parameters in their domain by a smooth map, so that any real number is a
legal one: exp for a decay, a sigmoid for an example's weight. `task` is a `TaskBatch`; its task
axis carries folds or splits. Meta has no task axis, or one of length T: then each task has
hyper-parameters of its own, and `result.grads` is each task's gradient over T.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.errors import UsageError
from metalearn.nn import TaskBatched
from metalearn.problem import Meta, Params, prediction_loss
from metalearn.tasks import TaskBatch
from metalearn.tree import task_half_square


class SupervisedFit:
    """What both share: a model that begins at its own parameters, judged by the query set."""

    def __init__(self, model: nn.Module) -> None:
        self.model = TaskBatched(model)
        self.start = {name: p.detach().clone() for name, p in model.named_parameters()}

    def init(self, meta: Meta, task: TaskBatch) -> Params:
        return {name: p.expand(len(task), *p.shape) for name, p in self.start.items()}

    def inner_objective(self, params: Params, meta: Meta, task: TaskBatch) -> Tensor:
        return self.inner_loss(self.inner_outputs(params, meta, task), meta, task)

    def inner_outputs(self, params: Params, meta: Meta, task: TaskBatch) -> dict[str, Any]:
        # Decay is quadratic in the parameters, which are therefore outputs too.
        return {"predictions": self.model(params, task.support_x), "params": params}

    def inner_loss(self, outputs: dict[str, Any], meta: Meta, task: TaskBatch) -> Tensor:
        raise NotImplementedError

    def outer_objective(
        self, params: Params, meta: Meta, task: TaskBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        predictions = self.model(params, task.query_x)
        loss = prediction_loss(predictions, task.query_y)
        metrics = {"loss": loss.detach()}
        if not task.query_y.is_floating_point():
            correct = predictions.detach().argmax(dim=-1) == task.query_y
            metrics["accuracy"] = correct.to(loss.dtype).mean(dim=1)
        return loss, metrics


class WeightDecay(SupervisedFit):
    """inner = loss + sum_i exp(l_i) w_i^2 / 2, the logarithms l learned.

    meta: for each parameter whose decay is learned, by its name, the logarithms themselves, in any
    shape that broadcasts against it: () for one a tensor, (inputs,) for one a feature of
    `nn.Linear.weight`, its own for one a number, (T, 1, 1) for one a task. Or a common one and
    deviations from it, {"common": (), "own": such a tensor}: l = common + spread * own, and
    prior |own|^2 / 2 is added to the outer objective (its metric "loss" goes without). With the
    prior 1 / (number of validation examples) that is a normal prior on the deviations, of standard
    deviation `spread`, which keeps many decays from fitting the validation set's noise.

    With `nn.Linear` and targets of a floating type the problem is ridge regression, with labels
    multinomial logistic regression.

    Args:
        model: a module that `TaskBatched` takes; the inner loop begins at its parameters.
        other: the decay of the parameters that meta does not name, not learned. Above 0 it holds
            what a loss leaves free, such as a constant added to all of softmax's biases.
        spread, prior: of deviations; see above.

    Raises:
        UsageError: `other` or `prior` is negative, or `spread` not above 0.
    """

    def __init__(
        self, model: nn.Module, other: float = 0.0, spread: float = 1.0, prior: float = 0.0
    ) -> None:
        if not (0 <= other < math.inf and 0 <= prior < math.inf and 0 < spread < math.inf):
            raise UsageError(
                f"other={other}, spread={spread}, prior={prior}; expected numbers of at least 0, "
                "spread above 0"
            )
        super().__init__(model)
        self.other, self.spread, self.prior = other, spread, prior

    def log_decay(self, meta: Meta, name: str) -> Tensor:
        """The logarithms of a parameter's decays."""
        found: Any = meta[name]
        if isinstance(found, Mapping):
            found = found["common"] + self.spread * found["own"]
        logarithms: Tensor = found
        return logarithms

    def inner_loss(self, outputs: dict[str, Any], meta: Meta, task: TaskBatch) -> Tensor:
        value = prediction_loss(outputs["predictions"], task.support_y)
        for name, p in outputs["params"].items():
            if name in meta:
                value = value + task_half_square((self.log_decay(meta, name) / 2).exp() * p)
            elif self.other:
                value = value + self.other * task_half_square(p)
        return value

    def outer_objective(
        self, params: Params, meta: Meta, task: TaskBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().outer_objective(params, meta, task)
        own = [found["own"] for found in meta.values() if isinstance(found, Mapping)]
        away = sum((0.5 * x.square().sum() for x in own), start=loss.new_zeros(()))
        return loss + self.prior * away, metrics


class ExampleWeights(SupervisedFit):
    """inner = sum_n sigmoid(meta_n) loss_n / N + decay |w|^2 / 2: which examples are to be trusted.

    meta: {"logits": (N,) or (T, N)}, one for each example of the support set; labels are int64.

    Args:
        model: as for `WeightDecay`.
        decay: of all parameters, above 0: with all weights near 0 it alone holds them.

    Raises:
        UsageError: `decay` is not above 0.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < math.inf:
            raise UsageError(f"decay={decay}; expected a number above 0")
        super().__init__(model)
        self.decay = decay

    def inner_loss(self, outputs: dict[str, Any], meta: Meta, task: TaskBatch) -> Tensor:
        predictions = outputs["predictions"]
        losses = F.cross_entropy(
            predictions.flatten(0, 1), task.support_y.flatten(), reduction="none"
        ).view(len(task), -1)
        value = (torch.sigmoid(meta["logits"]) * losses).mean(dim=1)
        for p in outputs["params"].values():
            value = value + self.decay * task_half_square(p)
        return value
