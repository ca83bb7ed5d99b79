"""The reference meta-gradient in float64, and the error of each competitor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from metalearn.studies.speed.workloads import Gradient, Setting, Workload, setting

SAME = 1e-4
"""The largest relative error against float64 at which a gradient counts as the same."""

Computed = Sequence[Tensor | np.ndarray]


def same(row: Mapping[str, Any]) -> bool:
    """Return whether a competitor computes the same gradient, by its row of `Reference.errors`.

    It does if its error is small on the smooth network, and on the timed network for half of the
    tasks. The same rule applies to ours and to the peers.
    """
    return not row["differs"] and row["error_smooth"] <= SAME and row["error_task"] <= SAME


@dataclass(frozen=True)
class Reference:
    """The meta-gradient of a workload in float64.

    Args:
        by_task: the gradient of each task.
        batch: the gradient of the batch.
        smooth: the gradient of the batch on the smooth network.
        rounding: the relative change of `batch` by float32 rounding, as `rounding` measures it.
    """

    by_task: list[Gradient]
    batch: Gradient
    smooth: Gradient
    rounding: float

    @classmethod
    def of(cls, w: Workload, device: torch.device) -> Reference:
        start = setting(w, device)
        by_task = exact_by_task(start)
        batch = mean(by_task)
        smooth = exact(setting(w.smooth(), device))
        return cls(by_task, batch, smooth, rounding(start, batch))

    def errors(
        self, batch: Computed, smooth: Computed, by_task: Sequence[Computed]
    ) -> dict[str, Any]:
        """Return the relative errors of a competitor's gradients.

        error: the error of the batch. One task that rounding moves across a kink makes it large.
        error_smooth: the error of the batch on the network without kinks.
        error_task: the lower median of the tasks' errors on the timed network.
        error_mean: the difference of the batch from the mean of the tasks' computed gradients.
        tasks_same: the number of tasks within `SAME`, of `tasks_checked`.

        Args:
            by_task: the gradient of each task, or none.
        """
        tasks = [relative_error(*pair) for pair in zip(by_task, self.by_task, strict=bool(by_task))]
        return {
            "error": relative_error(batch, self.batch),
            "error_smooth": relative_error(smooth, self.smooth),
            "error_task": float(np.quantile(tasks, 0.5, method="lower")) if tasks else math.nan,
            "error_mean": relative_error(batch, _double_mean(by_task)) if tasks else math.nan,
            "tasks_same": sum(error <= SAME for error in tasks),
            "tasks_checked": len(tasks),
            "rounding": self.rounding,
        }


def _double_mean(gradients: Sequence[Computed]) -> Gradient:
    return mean([[torch.as_tensor(g).double() for g in each] for each in gradients])


def exact(setting: Setting) -> Gradient:
    """Return the meta-gradient in float64."""
    return mean(exact_by_task(setting))


def exact_by_task(setting: Setting) -> list[Gradient]:
    """Return the meta-gradient of each task in float64, by plain autograd."""
    s, w = setting.double(), setting.workload
    names = [name for name, _ in s.model.named_parameters()]
    theta = [p.detach().requires_grad_() for p in s.model.parameters()]

    def loss(params: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(
            functional_call(s.model, dict(zip(names, params, strict=True)), x), y
        )

    found = []
    for t in range(w.tasks):
        support = s.task.support_x[t], s.task.support_y[t]
        query = s.task.query_x[t], s.task.query_y[t]

        def inner(params: list[Tensor], support: Any = support) -> Tensor:
            value = loss(params, *support)
            if w.method == "imaml":
                value = value + w.prox / 2 * sum(
                    ((p - q) ** 2).sum() for p, q in zip(params, theta, strict=True)
                )
            return value

        unrolled = w.method == "maml"
        params = theta
        for _ in range(w.steps):
            grads = torch.autograd.grad(inner(params), params, create_graph=unrolled)
            params = [p - w.lr * g for p, g in zip(params, grads, strict=True)]
            if not unrolled:
                params = [p.detach().requires_grad_() for p in params]
        by_params = torch.autograd.grad(loss(params, *query), theta if unrolled else params)
        if not unrolled:
            gradient = torch.autograd.grad(inner(params), params, create_graph=True)
            solution = _plain_cg(params, list(gradient), list(by_params), w.cg)
            by_params = tuple(w.prox * x for x in solution)
        found.append([g.detach() for g in by_params])
    return found


def mean(gradients: Sequence[Gradient]) -> Gradient:
    return [torch.stack(each).mean(0) for each in zip(*gradients, strict=True)]


def rounding(setting: Setting, reference: Gradient) -> float:
    """Return the relative change of `reference` when the initial weights move by float32 rounding.

    Each weight moves by half a unit in the last place of float32. An implementation whose rounding
    moves units across their kinks may have as large an error.
    """
    moved = setting.double()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in moved.model.parameters():
            sign = torch.randint(0, 2, p.shape, generator=draw).to(p) * 2 - 1
            p.mul_(1 + torch.finfo(torch.float32).eps / 2 * sign)
    return relative_error(exact(moved), reference)


def _plain_cg(
    params: list[Tensor], gradient: list[Tensor], b: list[Tensor], iterations: int
) -> list[Tensor]:
    """Solve H x = b by CG (Hestenes & Stiefel 1952), from 0, in a fixed number of iterations."""
    x = [torch.zeros_like(v) for v in b]
    r, p = list(b), list(b)
    rr = _dot(r, r)
    for _ in range(iterations):
        hp = list(torch.autograd.grad(gradient, params, p, retain_graph=True))
        alpha = rr / _dot(p, hp)
        x = [a + alpha * v for a, v in zip(x, p, strict=True)]
        r = [a - alpha * v for a, v in zip(r, hp, strict=True)]
        rr, before = _dot(r, r), rr
        p = [a + rr / before * v for a, v in zip(r, p, strict=True)]
    return x


def _dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


def relative_error(found: Computed, exact: Gradient) -> float:
    """Return |found - exact| / |exact| over all parameters, in float64."""
    difference = [
        torch.as_tensor(a, device=b.device).detach().double() - b
        for a, b in zip(found, exact, strict=True)
    ]
    return float((_dot(difference, difference) / _dot(exact, exact)).sqrt())
