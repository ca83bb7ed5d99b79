"""The start of a search for hyper-parameters, and the measurements of a search."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from metalearn.inner import InnerSolver
from metalearn.metagrad import FirstOrder
from metalearn.nn import MLP
from metalearn.problem import Meta, Params
from metalearn.problems.hyper_parameters import (
    ExampleWeights,
    FeaturePenalties,
    FixedExamples,
    ParameterDecays,
)
from metalearn.problems.training_task import TrainingTask, fresh
from metalearn.studies.frame.oracle_calls import Counted
from metalearn.studies.hpo.data import corrupted, flat, thirds
from metalearn.studies.hpo.exact import exact_hypergradient, relative_error
from metalearn.studies.hpo.search import WarmStartedSolver
from metalearn.system.memory import peak_bytes
from metalearn.tasks.image_splits import CLASSES, Labelled, Splits, image_splits

TEST = 0.25
"""The share of digits in the test split."""
LOG_DECAY = -5.0
"""The first logarithm of every parameter's decay."""
WEIGHTS_DECAY = 1e-2
CURVATURE = 5.0
"""The curvature of the loss on digits.

Gradient descent with momentum is stable at the rate 1 / CURVATURE.
"""


@dataclass(frozen=True)
class Case:
    """A search to be made.

    Args:
        problem, meta: the problem, and the first hyper-parameters.
        task: the start of the params, and the validation split.
        test: the test split.
        curvature: an estimate of the inner Hessian's largest eigenvalue, at meta.
        convex: the inner problem is convex, so that an exact hyper-gradient exists.
        wrong: (n,) bool, the mislabelled training examples; None: none.
    """

    problem: FixedExamples
    meta: Meta
    task: TrainingTask
    test: Labelled
    curvature: Callable[[Meta], float]
    convex: bool
    wrong: Tensor | None = None


def penalties(
    name: str, per_feature: bool, start: float, spread: float, seed: int, device: torch.device
) -> Case:
    """Make the search for one penalty, or one for each feature, of ridge or logistic regression.

    Each penalty begins at `start`.
    """
    data = thirds(name, seed).to(device)
    labels = not data.train.y.is_floating_point()
    outputs = int(data.train.y.max()) + 1 if labels else 1
    problem = FeaturePenalties(data.train, outputs, spread, 1 / len(data.validation))
    meta = problem.begin(math.log(start), per_feature)
    task = _task(problem.zeros(), data)
    return Case(problem, meta, task, data.test, problem.curvature, convex=True)


def decays(images: int, hidden: int, seed: int, device: torch.device) -> Case:
    """Make the search for a decay of each parameter of a network.

    `images` images train the network, and as many validate it.
    """
    data = _digits(images, images, seed).to(device)
    torch.manual_seed(seed)
    # Tanh is smooth, as the implicit function theorem asks.
    model = MLP([64, hidden, CLASSES], nn.Tanh)
    params = fresh(lambda: model, 1, device)
    meta = {name: torch.full_like(p[0], LOG_DECAY) for name, p in params.items()}
    problem = ParameterDecays(model, data.train)

    def curvature(meta: Meta) -> float:
        return CURVATURE + max(float(p.max().exp()) for p in meta.values())

    return Case(problem, meta, _task(params, data), data.test, curvature, convex=False)


def weights(images: int, validation: int, seed: int, device: torch.device) -> Case:
    """Make the search for a weight of each training image, half of them mislabelled.

    The validation labels are right. The model is linear: its inner problem has one solution, so
    that an exact hyper-gradient exists.
    """
    data = flat(_digits(images, validation, seed))
    labels, wrong = corrupted(data.train.y, 0.5, CLASSES, seed)
    data = replace(data, train=Labelled(data.train.x, labels)).to(device)
    task = _task(FeaturePenalties(data.train, CLASSES).zeros(), data)
    model = nn.Linear(data.train.x.shape[1], CLASSES)
    problem = ExampleWeights(model, data.train, WEIGHTS_DECAY)
    meta = {"logits": data.train.x.new_zeros(len(labels))}
    return Case(problem, meta, task, data.test, lambda _: CURVATURE, convex=True, wrong=wrong)


def _digits(train: int, validation: int, seed: int) -> Splits:
    rest = round(1797 * (1 - TEST))
    return image_splits("digits", None, seed, TEST, validation / rest, train)


def _task(params: Params, data: Splits) -> TrainingTask:
    return TrainingTask(params, data.validation.x, data.validation.y)


def path(case: Case, search: WarmStartedSolver, exact: bool) -> list[dict[str, Any]]:
    """Return a row for each hyper-gradient of a search, with figures on the test split.

    With `exact`, rows of a convex problem have the error against the exact hyper-gradient.
    """
    rows: list[dict[str, Any]] = []
    for step, visit in enumerate(search.visits):
        result, own = visit.result, {"loss": visit.result.outer_loss} | visit.result.metrics
        row = {
            "hypergradient": step + 1,
            "seconds": visit.seconds,
            "gradients": visit.gradients,
            "products": visit.products,
            "inner_grad_norm": float(result.inner.grad_norm.max()),
            "objective": visit.loss,
        }
        row |= {f"validation_{name}": float(value.mean()) for name, value in own.items()}
        row |= figures(case.problem, result.inner.params, visit.meta, case.test)
        if case.wrong is not None:
            trust = visit.meta["logits"].cpu().numpy()
            row["auc"] = float(roc_auc_score((~case.wrong).numpy(), trust))
        if exact and case.convex:
            start = replace(case.task, params=result.inner.params)
            found = exact_hypergradient(case.problem, visit.meta, start)
            row["error"] = relative_error(result.grads, found)
        rows.append(row)
    return rows


def figures(problem: FixedExamples, params: Params, meta: Meta, part: Labelled) -> dict[str, float]:
    """Return the loss and the metrics on the test split."""
    loss, metrics = problem.outer_objective(params, meta, TrainingTask(params, part.x, part.y))
    found = {"loss": loss} | metrics
    return {f"test_{name}": float(value.mean()) for name, value in found.items()}


def peak_of_one(case: Case, search: WarmStartedSolver, device: torch.device) -> int:
    """Return the peak memory of the search's last hyper-gradient, made again."""
    again = WarmStartedSolver(search.method, search.warm, search.visits[:-1])
    meta = search.visits[-1].meta
    return peak_bytes(lambda: again(case.problem, meta, case.task), device)[1]


def grid_search(
    case: Case, points: int, bounds: Sequence[float], inner: InnerSolver
) -> dict[str, Any]:
    """Search for one common penalty, at points spaced evenly in its logarithm.

    Each training begins at the solution for the next heavier penalty. `test_loss` is that of the
    penalty with the least validation loss. `best_test_loss` is the least of the grid.
    """
    grid = np.geomspace(bounds[1], bounds[0], points)
    counted, task, losses = Counted(case.problem), case.task, []
    for penalty in grid:
        meta = {"common": case.task.x.new_full((), math.log(penalty))}
        params = FirstOrder(inner).adapt(counted, meta, task).params
        task = replace(task, params=params)
        validation = case.problem.outer_objective(params, meta, task)[0]
        test = figures(case.problem, params, meta, case.test)["test_loss"]
        losses.append((float(validation.mean()), test))
    (least, test_loss), penalty = min(zip(losses, grid, strict=True))
    return {
        "trainings": points,
        "gradients": counted.gradients,
        "validation_loss": least,
        "test_loss": test_loss,
        "best_test_loss": min(test for _, test in losses),
        "penalty": float(penalty),
    }


def references(case: Case, inner: InnerSolver) -> dict[str, float]:
    """Return test accuracies of the same model without learned weights.

    - "unweighted": equal weights, at the problem's decay.
    - "tuned": equal weights, at the best of ten decays for the test split itself.
    - "sound": trained on the clean validation examples alone, at the best of ten decays for the
      test split itself.
    """
    train = case.problem.train
    sound = Labelled(case.task.x, case.task.y)

    def accuracy(train: Labelled, decay: float) -> float:
        problem = FixedExamples(nn.Linear(train.x.shape[1], CLASSES), train, decay)
        params = FirstOrder(inner).adapt(problem, {}, case.task).params
        return figures(problem, params, {}, case.test)["test_accuracy"]

    decays = np.geomspace(1e-3, 1, 10).tolist()
    return {
        "unweighted_accuracy": accuracy(train, case.problem.decay),
        "tuned_accuracy": max(accuracy(train, decay) for decay in decays),
        "sound_accuracy": max(accuracy(sound, decay) for decay in decays),
    }
