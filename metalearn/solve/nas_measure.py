"""What is measured of architecture search: a search, and an architecture trained from scratch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from metalearn.inner import Adam
from metalearn.linear_solve import Status
from metalearn.memory import peak_bytes
from metalearn.metagrad import FirstOrder, MetaGradient, MetaGradientResult
from metalearn.problem import Meta
from metalearn.solve.image_splits import Splits
from metalearn.solve.nas_model import OPERATIONS, Architecture
from metalearn.solve.nas_problem import Search, parted
from metalearn.solve.training import Starts, descend, fresh
from metalearn.study import Row


@dataclass(frozen=True)
class Found:
    """The operations of the largest mixture weights, and what was seen on the way."""

    architecture: Architecture
    alphas: dict[str, Tensor]
    curve: list[Row]
    figures: dict[str, Any]


def search(
    model: nn.Module,
    metagrad: MetaGradient,
    data: Splits,
    decay: float,
    warmup: Adam,
    steps: int,
    lr: float,
) -> Found:
    """Adam on the alphas of a mixture network, along the validation loss's meta-gradient.

    The weights are first trained at equal mixtures; then each meta-step goes on from those that
    the last one's inner loop ended at.
    """
    device = data.train.x.device
    problem = Search(model, data.train, decay)
    weights, alphas = parted(fresh(lambda: model, 1, device))

    def judged_from(weights: dict[str, Tensor]) -> Starts:
        return Starts(weights, data.validation.x, data.validation.y)

    weights = FirstOrder(warmup).adapt(problem, alphas, judged_from(weights)).params
    first = judged_from(weights)
    peak = peak_bytes(lambda: metagrad(problem, alphas, first), device)[1]
    curve: list[Row] = []
    seen: list[dict[str, float]] = []
    began = time.perf_counter()

    def after(step: int, meta: Meta, result: MetaGradientResult) -> None:
        nonlocal weights, alphas
        weights, alphas = result.inner.params, meta
        curve.append(
            {
                "what": "curve",
                "step": step,
                "train_loss": float(result.inner.objective),
                "validation_loss": float(result.outer_loss),
            }
        )
        seen.append(_certificate(result))

    descend(problem, metagrad, alphas, lambda: judged_from(weights), steps, lr, after)
    figures = {"step_s": (time.perf_counter() - began) / steps, "peak_bytes": peak}
    for name in seen[0]:
        figures[name] = sum(s[name] for s in seen) / steps
    names = tuple(OPERATIONS)
    return Found(
        tuple(names[int(alpha.argmax())] for alpha in alphas.values()), alphas, curve, figures
    )


def _certificate(result: MetaGradientResult) -> dict[str, float]:
    found = {"inner_grad_norm": float(result.inner.grad_norm)}
    certificate = result.certificate
    if certificate is None or certificate.status is None:
        return found
    assert certificate.relative_residual is not None
    bad = certificate.status.item() in (Status.NEGATIVE_CURVATURE, Status.DIVERGED)
    return found | {
        "relative_residual": float(certificate.relative_residual),
        "unsolved": float(bad),
    }


def retrained(
    model: Callable[[], nn.Module], inner: Adam, data: Splits, decay: float, starts: int
) -> dict[str, Any]:
    """Accuracy, in percent, of so many networks trained from scratch: means, and the deviation.

    Only the training split is trained on. Mixtures keep equal weights.
    """
    problem = Search(model(), data.train, decay)
    weights, alphas = parted(fresh(model, starts, data.train.x.device))
    task = Starts(weights, data.validation.x, data.validation.y)
    end = FirstOrder(inner).adapt(problem, alphas, task).params
    row: dict[str, Any] = {}
    for prefix, part in (("validation_", data.validation), ("", data.test)):
        _, metrics = problem.outer_objective(end, alphas, Starts(end, part.x, part.y))
        accuracies = 100 * metrics["accuracy"].double()
        row[f"{prefix}accuracy"] = float(accuracies.mean())
        row[f"{prefix}deviation"] = float(accuracies.std(correction=0))
    return row
