"""One training, with hyper-parameters that are learned on the way or that stay fixed."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from metalearn.bilevel import Descent
from metalearn.problems.scheduled_training import (
    GROUPS,
    MOVES,
    PenalisedTraining,
    ScheduledTraining,
)
from metalearn.studies.cleaning.data import Noisy
from metalearn.studies.cleaning.training import accuracy, measured_training
from metalearn.studies.frame.batch_loader import batches
from metalearn.studies.training.variants import Setting, Variant

MOMENTUM = 0.9
Values = dict[str, Tensor]


def start_of(setting: Setting) -> dict[str, float]:
    """Return the logarithms at which the hyper-parameters begin."""
    return {
        "rates": 0.0,
        "decays": math.log(setting.decay),
        "strengths": math.log(setting.strength),
    }


def descent_of(
    setting: Setting,
    data: Noisy,
    variant: Variant,
    steps: int,
    window: int,
    batch: int,
    outer_lr: float,
    seed: int,
    values: Values | None = None,
) -> Descent:
    """Return the descent of a training at its start.

    Args:
        steps: the inner steps of the whole training, the length of the schedule.
        values: hyper-parameters that stay fixed; None: the variant learns its own.
    """
    torch.manual_seed(seed)
    learned = variant.learned if values is None else ()
    method = variant.make(window)
    kind = ScheduledTraining if method.sees_optimiser else PenalisedTraining
    model = setting.model(data.classes).to(data.test.x.device)
    problem = kind(model, {**start_of(setting), **(values or {})})
    meta = problem.begin(learned or GROUPS)
    inner, outer = [
        batches((part.x, part.y), min(batch, len(part.x)), 2 * seed + level, replacement=False)
        for level, part in enumerate((data.train, data.validation))
    ]
    return Descent(
        problem,
        method,
        meta,
        inner,
        outer,
        partial(SGD, lr=setting.lr, momentum=MOMENTUM),
        partial(Adam, lr=outer_lr) if learned else None,
        inner_scheduler=partial(CosineAnnealingLR, T_max=steps),
    )


def train(descent: Descent, data: Noisy, steps: int, points: int) -> list[dict[str, Any]]:
    """Train for `steps` inner steps.

    Returns:
        rows as in `measured_training`.
    """

    def figures(loss: float) -> dict[str, Any]:
        parts = {
            "train_accuracy": data.train,
            "validation_accuracy": data.validation,
            "accuracy": data.test,
        }
        found = {name: accuracy(descent, part) for name, part in parts.items()}
        return {"loss": loss, **found, **values_of(descent)}

    return measured_training(
        descent, steps, points, figures, moves=getattr(descent.method, "steps", 1)
    )


def values_of(descent: Descent) -> dict[str, float]:
    """Return the hyper-parameters by the names of columns, such as "decay 0" or "strength turn"."""
    problem: Any = descent.problem
    found: dict[str, float] = {}
    for group, names in (
        ("rates", problem.layers),
        ("decays", problem.layers),
        ("strengths", MOVES),
    ):
        logs = problem.value(group, descent.meta).detach().exp().tolist()
        found |= {f"{group[:-1]} {n}": value for n, value in zip(names, logs, strict=True)}
    return found


def learned_values(descent: Descent) -> Values:
    """Return the logarithms of the hyper-parameters as they are now."""
    problem: Any = descent.problem
    return {name: problem.value(name, descent.meta).detach().clone() for name in GROUPS}
