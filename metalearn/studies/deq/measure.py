"""What is measured of a model around a DEQ, or around its unrolled twin."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.fixed_point import Anderson
from metalearn.linear_solve import Dense, Solution
from metalearn.nn import DEQ
from metalearn.studies.deq.models import Classifier, Data
from metalearn.system.machine import now
from metalearn.system.memory import peak_bytes


def step(model: Classifier, data: Data, batch: int) -> dict[str, Any]:
    """Peak memory, time and iterations of one training step on the first `batch` images."""
    x, y = data.train_x[:batch], data.train_y[:batch]

    def once() -> None:
        F.cross_entropy(model(x), y).backward()

    times = []
    for _ in range(6):
        clear(model)
        began = now(x.device)
        once()
        times.append(now(x.device) - began)
    clear(model)
    row: dict[str, Any] = {"step_s": sorted(times)[2], "peak_bytes": peak_bytes(once, x.device)[1]}
    return row | iterations(model, x, y)


def clear(model: Classifier) -> None:
    """Frees what an earlier step left, so that no later one does."""
    model.zero_grad()
    if isinstance(model.core, DEQ):
        model.core.forward_solution = model.core.backward_solution = None


def iterations(model: Classifier, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Of the two solves of a training step; nothing for a core that has none."""
    core = model.core
    if not isinstance(core, DEQ):
        return {}
    F.cross_entropy(model(x), y).backward()
    model.zero_grad()
    row: dict[str, Any] = {}
    for name, solution in (
        ("forward", core.forward_solution),
        ("backward", core.backward_solution),
    ):
        assert isinstance(solution, Solution)
        row |= {
            f"{name}_iterations": float(solution.iterations.double().mean()),
            f"{name}_residual": float(solution.relative_residual.max()),
            f"{name}_converged": float(solution.converged.double().mean()),
        }
    return row


def gradient_error(model: Classifier, x: Tensor, y: Tensor) -> float:
    """Relative error of the loss's gradient against float64, at fixed points found to 1e-12."""

    def gradient(model: Classifier, x: Tensor) -> Tensor:
        grads = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
        return torch.cat([g.flatten() for g in grads]).double()

    exact: Any = copy.deepcopy(model).double()
    exact.core = DEQ(exact.core.cell, Anderson(5000, rtol=1e-12), Dense())
    reference = gradient(exact, x.double())
    if not exact.core.forward_solution.converged.all():
        return math.nan  # nothing to compare with
    return float((gradient(model, x) - reference).norm() / reference.norm())


def spectrum(model: Classifier, x: Tensor, iters: int = 60) -> dict[str, Any]:
    """Of J at the fixed points of these inputs: medians and the worst; `iters` of the power
    iteration."""
    core: Any = model.core
    with torch.no_grad():
        z = model.state(x)
    condition = core.condition_number(z, x)
    return {
        "spectral_radius": float(core.spectral_radius(z, x, iters).median()),
        "condition_number": float(condition.median()),
        "condition_number_worst": float(condition.max()),
    }
