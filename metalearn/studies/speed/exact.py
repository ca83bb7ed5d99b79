"""Whether a competitor computed the meta-gradient: the exact one, and what each is off by."""

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
"""Relative error against float64 up to which a gradient is the same."""

Computed = Sequence[Tensor | np.ndarray]


def same(row: Mapping[str, Any]) -> bool:
    """Whether a competitor counts, by its row of `Reference.errors`, ours and peers alike: equal on
    the smooth network, and on the timed one for half of the tasks."""
    return not row["differs"] and row["error_smooth"] <= SAME and row["error_task"] <= SAME


@dataclass(frozen=True)
class Reference:
    """A workload's meta-gradient in float64: of each task, of the batch, and of the batch on the
    smooth network."""

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
        """Relative errors of a competitor's gradients. `by_task`: each task's own, or none.

        error: of the batch, where one task that rounding takes across a kink is enough to be off.
        error_smooth: of the batch where there are no kinks.
        error_task: the lower median over the tasks' own on the timed network: half are within it.
        error_mean: between the batch and the mean of the tasks' own, both as computed.
        tasks_same: those of `tasks_checked` that are within `SAME`.
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
    """The meta-gradient in float64."""
    return mean(exact_by_task(setting))


def exact_by_task(setting: Setting) -> list[Gradient]:
    """Each task's own, written plainly: autograd and nothing else."""
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
    """The relative change of the exact meta-gradient `reference` where the initial weights move by
    half a unit in float32's last place: as much as an implementation may be off that rounds where
    units lie at their kinks. One whose rounding happens to move none across is closer."""
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
    """So many iterations of Hestenes & Stiefel 1952 from 0 on H x = b."""
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
    """|found - exact| / |exact| over all parameters, in float64."""
    difference = [
        torch.as_tensor(a, device=b.device).detach().double() - b
        for a, b in zip(found, exact, strict=True)
    ]
    return float((_dot(difference, difference) / _dot(exact, exact)).sqrt())
