"""The measurements of a classifier around a DEQ, or around its unrolled twin."""

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
    """Measure peak memory, time and iterations of a training step on the first `batch` images."""
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
    """Free the gradients and solutions of an earlier step, so that no timed step does."""
    model.zero_grad()
    if isinstance(model.core, DEQ):
        model.core.forward_solution = model.core.backward_solution = None


def iterations(model: Classifier, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Measure the two solves of a training step; return nothing for a core without solves."""
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
    """Return the relative error of the loss's gradient against float64 and fixed points to 1e-12.

    It is nan if the float64 solve does not converge.
    """

    def gradient(model: Classifier, x: Tensor) -> Tensor:
        grads = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
        return torch.cat([g.flatten() for g in grads]).double()

    exact: Any = copy.deepcopy(model).double()
    exact.core = DEQ(exact.core.cell, Anderson(5000, rtol=1e-12), Dense())
    reference = gradient(exact, x.double())
    if not exact.core.forward_solution.converged.all():
        return math.nan
    return float((gradient(model, x) - reference).norm() / reference.norm())


def spectrum(model: Classifier, x: Tensor, iters: int = 60) -> dict[str, Any]:
    """Measure J and I - J at the fixed points of x: medians over x, and the worst condition number.

    `iters` power iterations give the spectral radius.
    """
    core: Any = model.core
    with torch.no_grad():
        z = model.state(x)
    condition = core.condition_number(z, x)
    return {
        "spectral_radius": float(core.spectral_radius(z, x, iters).median()),
        "condition_number": float(condition.median()),
        "condition_number_worst": float(condition.max()),
    }
