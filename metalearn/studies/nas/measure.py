"""The measurements of architecture search: a search, and a training from scratch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from metalearn.inner import Adam
from metalearn.linear_solve import Status
from metalearn.metagrad import FirstOrder, MetaGradient, MetaGradientResult
from metalearn.nn.mixed_cell import Alphas, MixedCell
from metalearn.problem import Meta, Params
from metalearn.problems.architecture import Search
from metalearn.problems.training_task import TrainingTask
from metalearn.studies.frame import Row
from metalearn.system.memory import peak_bytes
from metalearn.tasks.image_splits import Labelled, Splits
from metalearn.training.optimiser import descend


@dataclass(frozen=True)
class Found:
    """The mixtures at the end of a search, and its curve and figures."""

    alphas: Alphas
    curve: list[Row]
    figures: dict[str, Any]


def search(
    cell: MixedCell,
    metagrad: MetaGradient,
    data: Splits,
    decay: float,
    warmup: Adam,
    steps: int,
    lr: float,
) -> Found:
    """Optimise the alphas by Adam, along the meta-gradient of the loss on the validation split.

    The weights are first trained at equal mixtures. Each meta-step starts at the last weights of
    the meta-step before.
    """
    device = data.train.x.device
    problem, alphas = Search(cell, data.train, decay), cell.alphas(device)
    first = _from(cell.weights(1, device), data.validation)
    weights = FirstOrder(warmup).adapt(problem, alphas, first).params
    first = _from(weights, data.validation)
    peak = peak_bytes(lambda: metagrad(problem, alphas, first), device)[1]
    curve: list[Row] = []
    seen: list[dict[str, float]] = []
    began = time.perf_counter()

    def after(step: int, meta: Meta, result: MetaGradientResult) -> None:
        nonlocal weights, alphas
        weights, alphas = result.inner.params, meta
        seen.append(_certificate(result))
        curve.append(
            {
                "what": "curve",
                "step": step,
                "train_loss": float(result.inner.objective),
                "validation_loss": float(result.outer_loss),
                **{f"share_{op}": share for op, share in cell.shares(alphas).items()},
            }
        )

    descend(problem, metagrad, alphas, lambda: _from(weights, data.validation), steps, lr, after)
    figures = {"step_s": (time.perf_counter() - began) / steps, "peak_bytes": peak}
    for name in seen[0]:
        figures[name] = sum(s[name] for s in seen) / steps
    return Found(alphas, curve, figures)


def _from(weights: Params, data: Labelled) -> TrainingTask:
    return TrainingTask(weights, data.x, data.y)


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


def trained(
    cell: MixedCell, inner: Adam, data: Splits, decay: float, starts: int
) -> dict[str, Any]:
    """Return the accuracy, in percent, of `starts` networks trained from scratch.

    It is a mean and a deviation. The training split alone trains them, at equal mixtures.
    """
    device = data.train.x.device
    problem, alphas = Search(cell, data.train, decay), cell.alphas(device)
    weights = cell.weights(starts, device)
    end = FirstOrder(inner).adapt(problem, alphas, _from(weights, data.validation)).params
    row: dict[str, Any] = {"weights": sum(w[0].numel() for w in weights.values())}
    for prefix, part in (("validation_", data.validation), ("", data.test)):
        with torch.no_grad():
            _, metrics = problem.outer_objective(end, alphas, _from(end, part))
        accuracies = 100 * metrics["accuracy"].double()
        row[f"{prefix}accuracy"] = float(accuracies.mean())
        row[f"{prefix}deviation"] = float(accuracies.std(correction=0))
    return row
