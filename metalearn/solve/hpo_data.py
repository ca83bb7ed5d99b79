"""Data for hyper-parameters: training, validation and test parts of scikit-learn's small sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from torch import Tensor

from metalearn.tasks import TaskBatch

DATASETS = {"diabetes": load_diabetes, "breast_cancer": load_breast_cancer, "digits": load_digits}


@dataclass(frozen=True)
class Split:
    """
    Args:
        folds: T tasks, each fold once the query set and the others its support set.
        whole: one task that learns from all folds and is judged by the test set.
        outputs: numbers that a model has to give.
    """

    folds: TaskBatch
    whole: TaskBatch
    outputs: int

    def to(self, *args: Any) -> Split:
        return Split(self.folds.to(*args), self.whole.to(*args), self.outputs)


def standardised(name: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Features, and labels or targets, and how many outputs they ask of a model.

    Features that vary, and the targets of a regression, have mean 0 and deviation 1 over the whole
    set; those that never do are 0.
    """
    x, y = DATASETS[name](return_X_y=True)
    spread = x.std(axis=0)
    x = (x - x.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    if name == "diabetes":
        return x, ((y - y.mean()) / y.std())[:, None], 1
    return x, y.astype(np.int64), int(y.max()) + 1


def cross_validation(name: str, folds: int, test: float, seed: int) -> Split:
    """A shuffled split: a share of `test`, and `folds` equal parts of the rest (its remainder is
    the test set's too)."""
    x, y, outputs = standardised(name)
    order = np.random.default_rng(seed).permutation(len(x))
    size = int(len(x) * (1 - test)) // folds
    if not size:
        raise ValueError(f"{len(x)} examples cannot be cut into {folds} folds")
    parts, rest = order[: folds * size].reshape(folds, size), order[folds * size :]
    others = [np.delete(parts, k, axis=0).ravel() for k in range(folds)]
    pick = _picker(x, y)
    learn, judge = pick(np.stack(others)), pick(parts)
    return Split(
        TaskBatch(*learn, *judge),
        TaskBatch(*pick(parts.reshape(1, -1)), *pick(rest[None])),
        outputs,
    )


def holdout(name: str, train: int, validation: int, seed: int) -> Split:
    """One fold, and the same training examples judged by the test set: all that is left over."""
    x, y, outputs = standardised(name)
    order = np.random.default_rng(seed).permutation(len(x))
    pick = _picker(x, y)
    learn = pick(order[None, :train])
    judge, test = (
        pick(order[None, train : train + validation]),
        pick(order[None, train + validation :]),
    )
    return Split(TaskBatch(*learn, *judge), TaskBatch(*learn, *test), outputs)


def corrupted(labels: Tensor, share: float, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Labels (T, n) of which a share was replaced by another, each other one as likely; and which,
    (T, n) bool."""
    g = torch.Generator().manual_seed(seed)
    count = round(share * labels.shape[1])
    wrong = torch.rand(labels.shape, generator=g).argsort(dim=1) < count
    shift = torch.randint(1, classes, labels.shape, generator=g)
    wrong, shift = wrong.to(labels.device), shift.to(labels.device)
    return torch.where(wrong, (labels + shift) % classes, labels), wrong


def _picker(x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], tuple[Tensor, Tensor]]:
    return lambda rows: (torch.from_numpy(x[rows]), torch.from_numpy(y[rows]))
