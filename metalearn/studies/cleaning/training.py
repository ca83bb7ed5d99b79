"""The trainings of the cleaning study: with learned weights, and without."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.optim import SGD, Adagrad

from metalearn.bilevel import SOBA, Descent, Method
from metalearn.metagrad import NonFiniteGradient
from metalearn.problem import Meta
from metalearn.problems.cleaning import Cleaning
from metalearn.studies.cleaning.data import Noisy
from metalearn.studies.cleaning.methods import METHODS, Setting
from metalearn.studies.frame.batch_loader import batches
from metalearn.tasks.image_splits import Labelled

CLEAN, ALL = "clean examples alone", "all examples, unweighted"
REFERENCES = (CLEAN, ALL)
FULL_WEIGHT = 30.0
"""The logit of a weight of 1."""


def descent_of(
    setting: Setting,
    data: Noisy,
    method: Method,
    batch: int,
    seed: int,
    meta: Meta | None = None,
    fixed: bool = False,
    learn: bool = True,
) -> Descent:
    """Return a descent at its start.

    Args:
        meta: where it begins; None: every weight is 1/2.
        fixed: batches of a division of the examples, as SABA needs.
        learn: False: meta stays where it is.
    """
    torch.manual_seed(seed)
    problem = Cleaning(setting.model(data.classes).to(data.test.x.device), setting.decay)
    count = len(data.train)
    places = torch.arange(count, device=data.train.y.device)
    inner = data.train.x, data.train.y, places
    outer = data.validation.x, data.validation.y
    return Descent(
        problem,
        method,
        problem.begin(count) if meta is None else meta,
        batches(inner, min(batch, len(inner[0])), 2 * seed, fixed, replacement=False),
        batches(outer, min(batch, len(outer[0])), 2 * seed + 1, fixed, replacement=False),
        partial(SGD, lr=setting.lr, momentum=setting.momentum),
        partial(Adagrad, lr=setting.outer_lr) if learn else None,
    )


def learn_weights(
    setting: Setting, data: Noisy, name: str, steps: int, batch: int, points: int, seed: int
) -> list[dict[str, Any]]:
    """Learn the weights in one training.

    Returns:
        rows as in `measured_training`.
    """
    kind = METHODS[name]
    method = kind.make(setting, kind.steps)
    descent = descent_of(setting, data, method, batch, seed, fixed=name == "SABA")

    def figures(loss: float) -> dict[str, Any]:
        logits = descent.meta["logits"].detach().cpu()
        weights = torch.sigmoid(logits)
        return {
            "validation_loss": loss,
            "auc": float(roc_auc_score(data.clean.numpy(), logits.numpy())),
            "clean_weight": float(weights[data.clean].mean()),
            "wrong_weight": float(weights[~data.clean].mean()),
            "accuracy": accuracy(descent, data.test),
        }

    return measured_training(descent, steps, points, figures, kind.moves)


def train_reference(
    setting: Setting, data: Noisy, name: str, steps: int, batch: int, points: int, seed: int
) -> list[dict[str, Any]]:
    """Train with weights of 1, on the clean training examples alone or on all.

    Returns:
        rows as in `measured_training`.
    """
    chosen = data.clean if name == CLEAN else torch.ones_like(data.clean)
    chosen = chosen.to(data.train.y.device)
    own = Noisy(
        Labelled(data.train.x[chosen], data.train.y[chosen]),
        *(data.clean, data.validation, data.test, data.classes),
    )
    meta = {"logits": torch.full((len(own.train),), FULL_WEIGHT, device=data.test.x.device)}
    descent = descent_of(setting, own, SOBA(), batch, seed, meta, learn=False)
    return measured_training(
        descent, steps, points, lambda _: {"accuracy": accuracy(descent, data.test)}
    )


def measured_training(
    descent: Descent,
    steps: int,
    points: int,
    figures: Callable[[float], dict[str, Any]],
    moves: int = 1,
) -> list[dict[str, Any]]:
    """Train for at least `steps` inner steps, in outer steps if meta is learned.

    Args:
        figures: returns the columns of a point from the outer loss of the last step; NaN without.
        moves: the inner steps of an outer step.

    Returns:
        a row for each of `points` points at equal distances. A training that diverges ends in a
        row without figures.
    """
    rows: list[dict[str, Any]] = []
    seconds, taken, loss = 0.0, 0, math.nan
    for until in ends(steps, points):
        began = time.perf_counter()
        try:
            if descent.outer is None:
                descent.descend_inner(until - taken)
                taken = until
            while taken < until:
                loss = descent.step().outer_loss
                taken += moves
        except NonFiniteGradient:
            return [*rows, {"inner_steps": taken, "diverged": True}]
        seconds += time.perf_counter() - began
        if not descent.inner.finite():
            return [*rows, {"inner_steps": taken, "diverged": True}]
        at = {"inner_steps": taken, "diverged": False, "seconds": seconds}
        rows.append({**at, **figures(loss)})
    return rows


def ends(steps: int, points: int) -> list[int]:
    """Return the whole numbers at equal distances up to `steps`."""
    return sorted({max(1, round(steps * (i + 1) / points)) for i in range(points)})


@torch.no_grad()
def accuracy(descent: Descent, part: Labelled) -> float:
    """Return the share of examples that the present params classify rightly."""
    problem: Any = descent.problem
    found: list[Tensor] = [
        problem.predict(descent.params, x).argmax(1) == y
        for x, y in zip(part.x.split(512), part.y.split(512), strict=True)
    ]
    return torch.cat(found).double().mean().item()
