"""The heads with a strongly convex inner problem: ridge and logistic regression on features.

They meet the assumptions of the implicit function theorem: one solution, which is found, and a
Hessian that is at least `penalty` times the identity.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.problems.prediction_loss import prediction_loss
from metalearn.problems.protocol import Params, TrainableProblem
from metalearn.tasks.batch import TaskBatch
from metalearn.tree import task_half_square


class ConvexHead(TrainableProblem):
    """A regularised linear classifier of features; the tasks' inputs are (T, n, features).

    inner(W) = mean over the support set of loss(W f, y) + penalty / 2 |W|^2. The outer objective is
    the cross-entropy of scale W f on the queries. With the squared loss, |W f - onehot(y)|^2 / 2,
    this is R2-D2 (Bertinetto et al. 2019). Penalty and scale are learned; meta is {"log_penalty":
    0-d, "log_scale": 0-d}. The task defines the ways.

    With the squared loss, `init` is the minimiser itself, in closed form and differentiable. An
    inner solver of 0 steps is then right, for unrolled and implicit gradients alike. With the
    cross-entropy, `init` is W = 0. The inner solver must then go on to a small gradient, as
    `NewtonCG` does.

    Args:
        loss: "squared" or "cross_entropy".
        penalty: the start of the learned penalty, above 0.
        scale: the start of the learned scale, above 0.

    Raises:
        UsageError: an option has another value.
    """

    def __init__(
        self,
        loss: Literal["squared", "cross_entropy"] = "squared",
        penalty: float = 1.0,
        scale: float = 10.0,
    ) -> None:
        if loss not in ("squared", "cross_entropy"):
            raise UsageError(f"loss={loss!r}: expected 'squared' or 'cross_entropy'. Choose one.")
        for name, value in (("penalty", penalty), ("scale", scale)):
            if not 0 < value < math.inf:
                raise UsageError(f"{name}={value}: expected a number above 0. Give one.")
        self.loss, self.penalty, self.scale = loss, penalty, scale

    def begin(self) -> dict[str, Tensor]:
        starts = {"log_penalty": self.penalty, "log_scale": self.scale}
        return {n: torch.tensor(math.log(v), requires_grad=True) for n, v in starts.items()}

    def check(self, meta: Params, task: TaskBatch) -> None:
        if task.support_y.is_floating_point():
            raise UsageError(
                "problem=: expected tasks of classes, and these are a regression's. Choose other "
                "tasks=, or problem=few_shot."
            )

    def init(self, meta: Params, task: TaskBatch) -> Params:
        f, ways = task.support_x, task.ways
        if self.loss == "cross_entropy":
            return {"weight": f.new_zeros(len(task), ways, f.shape[-1])}
        return {
            "weight": ridge(f, F.one_hot(task.support_y, ways).to(f), meta["log_penalty"].exp())
        }

    def inner_objective(self, params: Params, meta: Params, task: TaskBatch) -> Tensor:
        return self.inner_loss(self.inner_outputs(params, meta, task), meta, task)

    def inner_outputs(self, params: Params, meta: Params, task: TaskBatch) -> dict[str, Tensor]:
        return {"predictions": task.support_x @ params["weight"].mT, **params}

    def inner_loss(self, outputs: dict[str, Tensor], meta: Params, task: TaskBatch) -> Tensor:
        scores, weight = outputs["predictions"], outputs["weight"]
        held = meta["log_penalty"].exp() * task_half_square(weight)
        if self.loss == "cross_entropy":
            return prediction_loss(scores, task.support_y) + held
        wanted = F.one_hot(task.support_y, scores.shape[-1]).to(scores)
        return (scores - wanted).square().sum(-1).mean(1) / 2 + held

    def outer_objective(
        self, params: Params, meta: Params, task: TaskBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        scores = self.query_predictions(params, meta, task)
        correct = scores.detach().argmax(-1) == task.query_y
        figures = {"accuracy": correct.to(scores.dtype).mean(1)}
        for name in ("penalty", "scale"):
            figures[name] = meta[f"log_{name}"].detach().exp().expand(len(task))
        return prediction_loss(scores, task.query_y), figures

    def query_predictions(self, params: Params, meta: Params, task: TaskBatch) -> Tensor:
        """Return the logits of the queries, (T, m, ways)."""
        return meta["log_scale"].exp() * (task.query_x @ params["weight"].mT)


def ridge(x: Tensor, y: Tensor, penalty: Tensor) -> Tensor:
    """Return the minimiser W of mean |W x - y|^2 / 2 + penalty / 2 |W|^2: (T, outputs, features).

    x is (T, n, features), y is (T, n, outputs), penalty is above 0. The smaller system is solved,
    by Woodbury's identity if examples are fewer than features. W is differentiable.
    """
    n, features = x.shape[1:]
    strength = n * penalty
    small = x @ x.mT if n < features else x.mT @ x
    system = small + strength * torch.eye(len(small[0]), dtype=x.dtype, device=x.device)
    if n < features:
        return torch.linalg.solve(system, y).mT @ x
    return torch.linalg.solve(system, x.mT @ y).mT
