"""The workloads whose speed is measured."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from metalearn.nn import Conv4
from metalearn.tasks import TaskBatch
from metalearn.tasks.glyphs import glyphs

Gradient = list[Tensor]
"""The mean gradient over the tasks: a tensor for each of `model.parameters()`."""
Run = Callable[[], Gradient]


@dataclass(frozen=True)
class Workload:
    """One meta-gradient of a batch of tasks: strided Conv4, 28x28 images, batch statistics.

    Args:
        method: "imaml" (implicit, by CG) or "maml" (unrolled).
        steps: the steps of gradient descent in the inner loop.
        cg: the exact number of CG iterations, 0 for MAML.
        prox: lambda of iMAML.
        activation: "relu", or "silu" for a smooth inner objective. A rounding error that moves a
            unit across a kink of "relu" changes the gradient by parts in 1000.
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
        """Return the same workload without kinks."""
        return replace(self, activation="silu")


WORKLOADS: dict[str, Workload] = {
    "imaml-5w1s": Workload("imaml", 16, 5, 1, 1, 16, 5),
    "imaml-5w1s-q15": Workload("imaml", 16, 5, 1, 15, 16, 5),
    "imaml-20w5s": Workload("imaml", 4, 20, 5, 5, 16, 5),
    "maml-5w1s-q15": Workload("maml", 16, 5, 1, 15, 5),
    "maml-20w5s": Workload("maml", 4, 20, 5, 5, 5),
}


@dataclass(frozen=True)
class Setting:
    """A workload with its model and its tasks."""

    workload: Workload
    model: Conv4
    task: TaskBatch

    def apart(self) -> Setting:
        """Return the setting with a copy of the model, which a competitor may write to."""
        return Setting(self.workload, copy.deepcopy(self.model), self.task)

    def first(self, tasks: int) -> Setting:
        """Return the setting of the first tasks, or of all if there are fewer."""
        return self._some(slice(tasks))

    def of(self, task: int) -> Setting:
        """Return the setting of one task."""
        return self._some(slice(task, task + 1))

    def filled(self, task: int, copies: int) -> Setting:
        """Return the setting of a batch of copies of one task.

        Its mean gradient is the gradient of that task.
        """
        one = self.of(task)
        every = [x.repeat_interleave(copies, 0) for x in vars(one.task).values()]
        return Setting(replace(self.workload, tasks=copies), one.model, TaskBatch(*every))

    def _some(self, which: slice) -> Setting:
        some = self.task[which]
        workload = replace(self.workload, tasks=len(some))
        return Setting(workload, copy.deepcopy(self.model), some)

    def double(self) -> Setting:
        return Setting(
            self.workload, copy.deepcopy(self.model).double(), self.task.to(torch.double)
        )


def setting(workload: Workload, device: torch.device) -> Setting:
    """Make the tasks (letters of `metalearn.tasks.glyphs`) and the model, equal for each call.

    The last norm's gain and the head's weights are a tenth of their initial values. Every inner
    system is then definite, and every solver does the same work. The initial values leave some
    systems indefinite at lambda = 2, where our CG stops and other solvers go on.
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
