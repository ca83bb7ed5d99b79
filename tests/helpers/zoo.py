"""A small zoo of bilevel problems on which every meta-gradient is held to exact derivatives.

Each entry is (problem, meta, task, tol): float64, an inner problem that converges quickly.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.autograd import gradients
from metalearn.inner import InnerSolver
from metalearn.inner.solver import Objective, value_and_grad
from metalearn.metagrad.base import at_learned_rates
from metalearn.nn import MLP, SymmetricHead
from metalearn.problem import FewShot, Meta, Params
from metalearn.problems import ConvexHead, WithBody
from metalearn.problems.learned import LearnedProx, LearnedRates
from metalearn.tasks import TaskBatch
from metalearn.tree import leaves_of, like_tree, relative_error, task_norm

relative_difference = relative_error


@dataclass(frozen=True)
class Indices:
    """The numbers of the tasks; what else they are made of, the problem holds."""

    numbers: Tensor

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, tasks: slice) -> Indices:
        return Indices(self.numbers[tasks])

    def to(self, dtype: torch.dtype) -> Indices:
        return self


class Quadratic:
    """inner = phi' A phi / 2 - b' phi + lambda / 2 |phi - theta|^2, outer = |phi - c|^2 / 2."""

    def __init__(self, tasks: int, size: int, prox: float, seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)
        root = torch.randn(tasks, size, size, generator=g, dtype=torch.float64)
        self.A = root @ root.mT / size + 0.1 * torch.eye(size, dtype=torch.float64)
        self.b = torch.randn(tasks, size, generator=g, dtype=torch.float64)
        self.c = torch.randn(tasks, size, generator=g, dtype=torch.float64)
        self.prox = prox

    def init(self, meta: Meta, task: Indices) -> Params:
        return {"phi": meta["theta"].expand(len(task), -1)}

    def inner_objective(self, params: Params, meta: Meta, task: Indices) -> Tensor:
        return self.inner_loss(self.inner_outputs(params, meta, task), meta, task)

    def inner_outputs(self, params: Params, meta: Meta, task: Indices) -> dict[str, Tensor]:
        return dict(params)

    def inner_loss(self, outputs: dict[str, Tensor], meta: Meta, task: Indices) -> Tensor:
        phi, i = outputs["phi"], task.numbers
        quadratic = 0.5 * torch.einsum("ti,tij,tj->t", phi, self.A[i], phi)
        away = phi - meta["theta"]
        return quadratic - (self.b[i] * phi).sum(1) + 0.5 * self.prox * (away * away).sum(1)

    def outer_objective(
        self, params: Params, meta: Meta, task: Indices
    ) -> tuple[Tensor, dict[str, Tensor]]:
        away = params["phi"] - self.c[task.numbers]
        return 0.5 * (away * away).sum(1), {}


class Curvatures:
    """inner = sum of task x^2 / 2 + |x - theta|^2 / 2, outer = |x - 1|^2 / 2.

    The task (T, n) is its curvatures.
    """

    def init(self, meta: Tensor, task: Tensor) -> dict[str, Tensor]:
        return {"x": meta.expand(len(task), -1)}

    def inner_objective(self, params: dict[str, Tensor], meta: Tensor, task: Tensor) -> Tensor:
        x = params["x"]
        return 0.5 * (task * x.square()).sum(1) + 0.5 * (x - meta).square().sum(1)

    def outer_objective(
        self, params: dict[str, Tensor], meta: Tensor, task: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return 0.5 * (params["x"] - 1).square().sum(1), {}


class LearnedRidge:
    """Ridge regression with a learned penalty exp(meta["log_penalty"]) for each feature.

    Meta is a nested pytree, init does not depend on it, and the outer objective does directly.
    """

    def __init__(self, tasks: int, n: int, size: int, seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, dtype=torch.float64)

        self.x, self.y = draw(tasks, n, size), draw(tasks, n)
        self.x_out, self.y_out = draw(tasks, n, size), draw(tasks, n)

    def init(self, meta: Meta, task: Indices) -> Params:
        return {"w": self.x.new_zeros(len(task), self.x.shape[2])}

    def inner_objective(self, params: Params, meta: Meta, task: Indices) -> Tensor:
        return self.inner_loss(self.inner_outputs(params, meta, task), meta, task)

    def inner_outputs(self, params: Params, meta: Meta, task: Indices) -> Any:
        fit = torch.einsum("tni,ti->tn", self.x[task.numbers], params["w"])
        return fit, params["w"]

    def inner_loss(self, outputs: Any, meta: Meta, task: Indices) -> Tensor:
        fit, w = outputs
        error = fit - self.y[task.numbers]
        return 0.5 * (error**2).mean(1) + 0.5 * (meta["penalty"]["log"].exp() * w * w).sum(1)

    def outer_objective(
        self, params: Params, meta: Meta, task: Indices
    ) -> tuple[Tensor, dict[str, Tensor]]:
        fit = torch.einsum("tni,ti->tn", self.x_out[task.numbers], params["w"])
        loss = 0.5 * ((fit - self.y_out[task.numbers]) ** 2).mean(1)
        return loss + 0.01 * (meta["penalty"]["log"] ** 2).sum(), {}


def few_shot(regression: bool, prox: float, adapt: str = "all") -> tuple[FewShot, Meta, TaskBatch]:
    torch.manual_seed(0)
    model = MLP([3, 5, 2], nn.Tanh).double()
    g = torch.Generator().manual_seed(1)

    def x() -> Tensor:
        return torch.randn(3, 8, 3, generator=g, dtype=torch.float64)

    def y() -> Tensor:
        if regression:
            return torch.randn(3, 8, 2, generator=g, dtype=torch.float64)
        return torch.randint(0, 2, (3, 8), generator=g)

    problem = FewShot(model, prox, adapt=adapt)
    return problem, dict(model.named_parameters()), TaskBatch(x(), y(), x(), y())


def images() -> TaskBatch:
    """Three tasks of three classes whose inputs have four values."""
    g = torch.Generator().manual_seed(2)
    y = torch.arange(3).repeat_interleave(2).repeat(3, 1)
    x = [torch.randn(3, 6, 4, generator=g, dtype=torch.float64) for _ in range(2)]
    return TaskBatch(x[0], y, x[1], y)


def symmetric_head(prox: float, prox_head: float) -> tuple[FewShot, Meta, TaskBatch]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 5), nn.Tanh(), SymmetricHead(5, "prototypes", learn_scale=True)
    )
    model = model.double()
    problem = FewShot(model, prox, prox_head=prox_head)
    return problem, dict(model.named_parameters()), images()


def shared_body(head: Any) -> tuple[WithBody, Meta, TaskBatch]:
    """A head on a body that all tasks share; the head's meta-parameters beside the body's."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 5), nn.Tanh()).double()
    own = head.begin() if isinstance(head, ConvexHead) else {}
    own = {name: p.detach().double() for name, p in own.items()}
    return WithBody(body, head), {**dict(body.named_parameters()), **own}, images()


def adapted_head() -> FewShot:
    return FewShot(nn.Sequential(OrderedDict([("2", SymmetricHead(5))])), prox=0.5)


def learned_rates(prox: float) -> tuple[LearnedRates, Meta, TaskBatch]:
    """Few-shot classification whose inner rates are multiplied by 0.6 to 1.6."""
    problem, theta, task = few_shot(regression=False, prox=prox)
    log_rates = {
        name: torch.linspace(-0.5, 0.5, p.numel(), dtype=p.dtype).view_as(p)
        for name, p in theta.items()
    }
    return LearnedRates(problem), {"theta": theta, "log_rates": log_rates}, task


def learned_step_rates(prox: float) -> tuple[LearnedRates, Meta, TaskBatch]:
    """Few-shot classification with a rate for each tensor and each of 3 steps, 0.6 to 2 lr."""
    problem, theta, task = few_shot(regression=False, prox=prox)
    log_rates = {
        name: torch.linspace(-0.5, 0.4, 3, dtype=p.dtype) + 0.1 * i
        for i, (name, p) in enumerate(theta.items())
    }
    return LearnedRates(problem, by_step=True), {"theta": theta, "log_rates": log_rates}, task


def learned_prox(prox: float) -> tuple[LearnedProx, Meta, TaskBatch]:
    problem, theta, task = few_shot(regression=False, prox=0.0)
    log_prox = torch.tensor(prox, dtype=torch.float64).log()
    return LearnedProx(problem), {"theta": theta, "log_prox": log_prox}, task


def problems() -> dict[str, tuple[Any, Meta, Any]]:
    """Problems whose inner objective depends on meta, so that every meta-gradient applies."""
    three = Indices(torch.arange(3))
    return {
        "quadratic": (
            Quadratic(3, 4, prox=0.5),
            {"theta": torch.linspace(-1, 1, 4, dtype=torch.float64)},
            three,
        ),
        "ridge": (
            LearnedRidge(3, 12, 4),
            {"penalty": {"log": torch.linspace(-2, 0, 4, dtype=torch.float64)}},
            three,
        ),
        "classification": few_shot(regression=False, prox=0.5),
        "regression": few_shot(regression=True, prox=0.5),
        "head": few_shot(regression=False, prox=0.5, adapt="head"),
        "learned_prox": learned_prox(prox=0.5),
        "symmetric_head": symmetric_head(prox=0.7, prox_head=0.4),
        "shared_body": shared_body(adapted_head()),
        "logistic": shared_body(ConvexHead("cross_entropy", penalty=0.4, scale=2.0)),
    }


def unrolled_problems() -> dict[str, tuple[Any, Meta, Any]]:
    """All of them, and those whose rates only an unrolled gradient reaches."""
    return problems() | {
        "learned_rates": learned_rates(prox=0.5),
        "learned_step_rates": learned_step_rates(prox=0.5),
    }


NAMES = list(problems())
UNROLLED = list(unrolled_problems())
# The proximal strength and the penalty are in neither init nor the outer objective, which is what
# these go through.
FIRST_ORDER = [name for name in NAMES if name not in ("learned_prox", "logistic")]


def finite_differences(
    problem: Any,
    meta: Meta,
    task: Any,
    inner: InnerSolver,
    step: float = 1e-3,
    start: Params | None = None,
) -> Any:
    """Fourth-order differences of the bilevel value: mean outer objective after the inner loop.

    A loop may begin at `start` in place of the problem's init.

    The error is O(step^4) = 1e-12 of truncation and O(tol / step) = 1e-8 of the inner solve.
    (Second order would want a step of 1e-5, which makes the inner solve's share 1e-6.)
    """
    leaves = [x.detach().clone() for x in leaves_of(meta)]

    def value() -> Tensor:
        at = like_tree(meta, leaves)
        solution = at_learned_rates(inner, problem, at)(
            lambda params: problem.inner_objective(params, at, task),
            start or problem.init(at, task),
        )
        return problem.outer_objective(solution.params, at, task)[0].mean()

    grads = []
    for leaf in leaves:
        grad = torch.zeros_like(leaf)
        for i in range(leaf.numel()):
            entry = leaf.view(-1)
            kept, values = entry[i].item(), []
            for k in (1, -1, 2, -2):
                entry[i] = kept + k * step
                values.append(value())
            entry[i] = kept
            near, far = values[0] - values[1], values[2] - values[3]
            grad.view(-1)[i] = (8 * near - far) / (12 * step)
        grads.append(grad)
    return like_tree(meta, grads)


@dataclass(frozen=True)
class KeptNewton(InnerSolver):
    """Newton's steps by one inverse Hessian, (T, N, N), that of a point near the solution.

    Each step multiplies the error by what the Hessian changes on the way, and costs a gradient.
    """

    inverse: Tensor
    tol: float = 1e-11

    @classmethod
    def at(cls, problem: Any, meta: Meta, task: Any, near: Params) -> KeptNewton:
        params = {name: p.detach().requires_grad_() for name, p in near.items()}
        _, grads = value_and_grad(
            lambda p: problem.inner_objective(p, meta, task), params, create_graph=True
        )
        gradient = torch.cat([g.flatten(1) for g in grads], dim=1)
        rows = [
            torch.cat(
                [x.flatten(1) for x in gradients(column, list(params.values()), retain_graph=True)],
                dim=1,
            )
            for column in gradient.sum(0)
        ]
        return cls(torch.linalg.inv(torch.stack(rows, dim=1)))

    def minimise(self, objective: Objective, params: Params) -> tuple[Params, Tensor]:
        for taken in range(40):
            _, grads = value_and_grad(objective, params)
            if (task_norm(grads) <= self.tol).all():
                return params, torch.full((len(grads[0]),), taken)
            step = self.inverse @ torch.cat([g.flatten(1) for g in grads], dim=1)[:, :, None]
            parts = step.squeeze(2).split([p[0].numel() for p in params.values()], dim=1)
            params = {
                name: (p - part.view_as(p)).detach()
                for (name, p), part in zip(params.items(), parts, strict=True)
            }
        raise AssertionError(f"{task_norm(grads).max():.1e} is left of the gradient")


def solution_differences(problem: Any, meta: Meta, task: Any, near: Params) -> Any:
    """`finite_differences` of the problem's minimum, of which `near` is the one at `meta`."""
    return finite_differences(
        problem, meta, task, KeptNewton.at(problem, meta, task, near), start=near
    )
