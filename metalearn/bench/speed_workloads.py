"""The workloads that speed is measured by, and the exact value of each one's meta-gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metalearn.nn import Conv4
from metalearn.tasks import TaskBatch
from metalearn.tasks.glyphs import glyphs

Gradient = list[Tensor]
"""The mean over the tasks, a tensor for each of `model.parameters()`."""
Run = Callable[[], Gradient]


@dataclass(frozen=True)
class Workload:
    """One meta-gradient of so many tasks: strided Conv4, 28x28 images, batch statistics.

    Args:
        method: "imaml" (implicit, by CG) or "maml" (unrolled).
        steps: of gradient descent in the inner loop.
        cg: iterations, all of which are made; 0 for MAML.
        prox: lambda of iMAML.
        activation: "relu", or "silu", with which the inner objective is smooth: where it has kinks,
            a rounding error that moves a unit across one changes the gradient by parts in 1000.
    """

    method: Literal["imaml", "maml"]
    tasks: int
    ways: int
    shots: int
    queries: int
    steps: int
    cg: int = 0
    channels: int = 64
    lr: float = 0.1
    prox: float = 2.0
    activation: str = "relu"

    def smooth(self) -> Workload:
        """Two of its tasks, without kinks."""
        return replace(self, activation="silu", tasks=min(self.tasks, 2))


WORKLOADS: dict[str, Workload] = {
    "imaml-5w1s": Workload("imaml", 16, 5, 1, 1, 16, 5),
    "imaml-5w1s-q15": Workload("imaml", 16, 5, 1, 15, 16, 5),
    "imaml-20w5s": Workload("imaml", 4, 20, 5, 5, 16, 5),
    "maml-5w1s-q15": Workload("maml", 16, 5, 1, 15, 5),
    "maml-20w5s": Workload("maml", 4, 20, 5, 5, 5),
}


@dataclass(frozen=True)
class Setting:
    """A workload with all that it starts from."""

    workload: Workload
    model: Conv4
    task: TaskBatch

    def apart(self) -> Setting:
        """The same with a model of its own, which a competitor may write to."""
        return Setting(self.workload, copy.deepcopy(self.model), self.task)

    def first(self, tasks: int) -> Setting:
        """Its first tasks alone, or all where there are no more."""
        return self._some(slice(tasks))

    def of(self, task: int) -> Setting:
        """One of its tasks alone."""
        return self._some(slice(task, task + 1))

    def _some(self, which: slice) -> Setting:
        some = self.task[which]
        workload = replace(self.workload, tasks=len(some))
        return Setting(workload, copy.deepcopy(self.model), some)

    def double(self) -> Setting:
        return Setting(
            self.workload, copy.deepcopy(self.model).double(), self.task.to(torch.double)
        )


def setting(workload: Workload, device: torch.device) -> Setting:
    """Letters (`metalearn.tasks.glyphs`) and weights, the same for each call.

    The last norm's gain and the head's weights are a tenth of what they are at the start of a
    training: every inner system is then definite, and all that solve it do the same work. As
    initialised, lambda = 2 leaves some indefinite, where our CG stops and others go on.
    """
    w = workload
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = Conv4(w.ways, w.channels, activation=w.activation)
        norm, head = [m for m in model if isinstance(m, nn.BatchNorm2d | nn.Linear)][-2:]
        norm.weight.mul_(0.1)
        head.weight.mul_(0.1)
    data = glyphs()["train"]
    drawings = data.images.view(len(data.classes), -1, *data.images.shape[1:])
    draw = torch.Generator().manual_seed(0)
    each = w.shots + w.queries

    def shuffled(n: int) -> Tensor:
        return torch.randperm(n, generator=draw)

    def one_task() -> Tensor:
        classes = shuffled(len(drawings))[: w.ways]
        return torch.stack([drawings[c, shuffled(drawings.shape[1])[:each]] for c in classes])

    chosen = torch.stack([one_task() for _ in range(w.tasks)]).float() / 255

    def part(images: Tensor) -> tuple[Tensor, Tensor]:
        labels = torch.arange(w.ways).repeat_interleave(images.shape[2])
        return images.flatten(1, 2).contiguous(), labels.repeat(w.tasks, 1)

    support, query = part(chosen[:, :, : w.shots]), part(chosen[:, :, w.shots :])
    return Setting(workload, model.to(device), TaskBatch(*support, *query).to(device))


def exact(setting: Setting) -> Gradient:
    """The meta-gradient in float64, written plainly: task by task, autograd and nothing else."""
    s, w = setting.double(), setting.workload
    names = [name for name, _ in s.model.named_parameters()]
    theta = [p.detach().requires_grad_() for p in s.model.parameters()]

    def loss(params: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(
            functional_call(s.model, dict(zip(names, params, strict=True)), x), y
        )

    total = [torch.zeros_like(p) for p in theta]
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
        total = [a + g / w.tasks for a, g in zip(total, by_params, strict=True)]
    return total


def rounding(setting: Setting, reference: Gradient) -> float:
    """The relative change of the exact meta-gradient `reference` where the initial weights move by
    float32's rounding: what no float32 implementation can be held to beat."""
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


def relative_error(found: Sequence[Tensor | np.ndarray], exact: Gradient) -> float:
    """|found - exact| / |exact| over all parameters, in float64."""
    difference = [
        torch.as_tensor(a, device=b.device).detach().double() - b
        for a, b in zip(found, exact, strict=True)
    ]
    return float((_dot(difference, difference) / _dot(exact, exact)).sqrt())
