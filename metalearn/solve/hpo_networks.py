"""Searches for as many hyper-parameters as there are parameters, or training examples, on digits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from metalearn.inner import LBFGS, GradientDescent
from metalearn.linear_solve import CG, Neumann
from metalearn.metagrad import Implicit, MetaGradient, Unrolled
from metalearn.nn import MLP
from metalearn.problem import Meta
from metalearn.solve.hpo_data import Split, corrupted, holdout
from metalearn.solve.hpo_measure import (
    exact_hypergradient,
    fitted,
    path,
    peak_of_one,
    relative_error,
)
from metalearn.solve.hpo_problems import ExampleWeights, SupervisedFit, WeightDecay
from metalearn.solve.hpo_search import Method, Search, Visit, adam
from metalearn.tasks import TaskBatch

INPUTS, CLASSES = 64, 10
LOG_DECAY = -5.0
"""Where the searches for decays begin, at every parameter."""


@dataclass(frozen=True)
class Case:
    """
    Args:
        problem, split, meta: what is searched, and from where.
        lr: of the outer Adam, in the units of meta.
        wrong: (N,) bool, the training examples whose label was replaced; None: none.
        exact: whether the inner problem is convex, so that its exact hypergradient can be had.
    """

    problem: SupervisedFit
    split: Split
    meta: Meta
    lr: float
    wrong: Tensor | None = None
    exact: bool = False


def decay(hidden: int, seed: int, device: torch.device) -> Case:
    """A decay for each number of a network, 500 training and 500 validation images."""
    return _decays(500, hidden, seed, device)


def overfit(hidden: int, seed: int, device: torch.device) -> Case:
    """The same with 50 and 50: can the decays fit the validation set (Lorraine et al. 2020,
    section 5.1)?"""
    return _decays(50, hidden, seed, device)


def _decays(images: int, hidden: int, seed: int, device: torch.device) -> Case:
    torch.manual_seed(seed)
    # Smooth, as the theorem asks.
    model = MLP([INPUTS, hidden, CLASSES], nn.Tanh).to(device)
    problem = WeightDecay(model)
    split = holdout("digits", images, images, seed).to(device, torch.float32)
    meta = {name: torch.full_like(p, LOG_DECAY) for name, p in problem.start.items()}
    return Case(problem, split, meta, lr=0.3)


def weights(hidden: int, seed: int, device: torch.device) -> Case:
    """A weight for each of 1000 images, half of them with a wrong label; 400 sound ones validate.

    The model is linear: its inner problem has one solution, and hypergradients an exact value.
    """
    split = holdout("digits", 1000, 400, seed)
    labels, wrong = corrupted(split.folds.support_y, 0.5, CLASSES, seed)
    folds, whole = (
        TaskBatch(part.support_x, labels, part.query_x, part.query_y)
        for part in (split.folds, split.whole)
    )
    split = Split(folds, whole, CLASSES).to(device)
    problem = ExampleWeights(_linear(device), decay=1e-2)
    meta = {"logits": torch.zeros(labels.shape[1], dtype=torch.float64, device=device)}
    return Case(problem, split, meta, lr=1.0, wrong=wrong[0], exact=True)


NETWORKS: dict[str, Callable[[int, int, torch.device], Case]] = {
    "decay": decay,
    "weights": weights,
    "overfit": overfit,
}
"""The searches by the part of the study that they are: (hidden units, seed, device) to a case."""


def _linear(device: torch.device) -> nn.Linear:
    model = nn.Linear(INPUTS, CLASSES, dtype=torch.float64, device=device)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


def network_method(
    name: str, hypergradients: int, iterations: int, inner_steps: int, tols: tuple[float, float]
) -> Method:
    """Implicit by L-BFGS and a solver, the inner tolerance falling from step to step; or as many
    unrolled steps of gradient descent with momentum as the solver has iterations."""

    def method(step: int, meta: Meta) -> MetaGradient:
        share = step / max(hypergradients - 1, 1)
        inner = LBFGS(inner_steps, tol=tols[0] * (tols[1] / tols[0]) ** share)
        if name == "cg":
            return Implicit(inner, CG(iterations, rtol=1e-3))
        if name == "neumann":
            return Implicit(inner, Neumann(iterations, rtol=1e-3))
        return Unrolled(GradientDescent(iterations, 0.2, momentum=0.9), backend="batched")

    return method


def search_network(
    case: Case, method: Method, hypergradients: int, device: torch.device, references: bool
) -> list[dict[str, Any]]:
    """A row for each hypergradient, with the test set's figures at the params reached by then.

    `references`: the exact hypergradient where there is one, peak memory, and for `weights` what
    training without weights, and on the validation set alone, would have given.
    """
    search = Search(case.problem, case.split.folds, method)
    adam(search, case.meta, hypergradients, case.lr)
    rows = path(search)
    for row, visit in zip(rows, search.visits, strict=True):
        row |= _tested(case, visit)
        if case.wrong is not None:
            row["auc"] = float(roc_auc_score((~case.wrong).numpy(), _trust(visit)))
        if references and case.exact:
            start = visit.result.inner.params
            exact = exact_hypergradient(case.problem, visit.meta, case.split.folds, start)
            row["error"] = relative_error(visit.result.grads, exact)
    if references:
        rows[0]["peak_bytes"] = peak_of_one(search, case.meta, device)
    if case.wrong is not None:
        folds = case.split.folds
        rows[0]["unweighted_accuracy"] = _unweighted(case, folds)
        sound = TaskBatch(folds.query_x, folds.query_y, folds.query_x, folds.query_y)
        rows[0]["sound_alone_accuracy"] = _unweighted(case, sound)
    return rows


def _trust(visit: Visit) -> np.ndarray:
    found: np.ndarray = visit.meta["logits"].cpu().numpy()
    return found


def _tested(case: Case, visit: Visit) -> dict[str, float]:
    metrics = case.problem.outer_objective(visit.result.inner.params, visit.meta, case.split.whole)[
        1
    ]
    return {f"test_{name}": float(value.mean()) for name, value in metrics.items()}


def _unweighted(case: Case, task: TaskBatch) -> float:
    """Test accuracy of the same model with all examples alike, its one decay the best of ten for
    the test set itself: no choice of a decay would do better."""
    device = task.support_x.device
    problem, whole = WeightDecay(_linear(device)), case.split.whole
    best = 0.0
    for log in np.log(np.geomspace(1e-3, 1, 10)):
        common = task.support_x.new_full((), float(log))
        meta = {name: common for name in problem.start}
        params = fitted(problem, meta, task, problem.init(meta, task), tol=1e-4)
        metrics = problem.outer_objective(params, meta, whole)[1]
        best = max(best, float(metrics["accuracy"].mean()))
    return best
