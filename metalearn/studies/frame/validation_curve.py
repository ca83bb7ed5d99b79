"""Measures of training curves, given as a row for each validation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd


def step_seconds(curve: pd.DataFrame) -> float:
    """Return the seconds of a meta-step, the mean over seeds.

    A seed's value is the median over the stretches between validations. Other load on the machine
    during a few stretches leaves it as it is.
    """
    medians = []
    for _, one in curve.groupby("seed"):
        seconds, steps = one.train_s.to_numpy(), one.step.to_numpy()
        medians.append(np.median(np.diff(seconds, prepend=0) / np.diff(steps, prepend=0)))
    return float(np.mean(medians))


def best_and_last(curve: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return each seed's best validation, whose model is the chosen one, and its last one."""
    by_seed = curve.groupby("seed")
    return curve.loc[by_seed.accuracy.idxmax()], curve.loc[by_seed.step.idxmax()]


def span(validations: pd.DataFrame) -> str:
    """Return their meta-step, or the least and the greatest: "200 to 300"."""
    low, high = int(validations.step.min()), int(validations.step.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def falls(curves: Mapping[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """Return the falls (`fall`) of the named curves that fall, each with its `name`."""
    return [{"name": name, **fell} for name, curve in curves.items() if (fell := fall(curve))]


def fall(curve: pd.DataFrame) -> dict[str, Any] | None:
    """Return how far a curve falls from its best validation to its last one.

    Returns:
        the means over seeds `best` and `last`, in percent, and the meta-step `at` of the best. None
        where the fall is within both intervals (over tasks) together.
    """
    best, last = best_and_last(curve)
    both = math.hypot(best.accuracy_interval.mean(), last.accuracy_interval.mean())
    high, low = float(best.accuracy.mean()), float(last.accuracy.mean())
    return {"best": 100 * high, "at": span(best), "last": 100 * low} if high - low > both else None


def late_gain(curve: pd.DataFrame) -> float:
    """Return how far the best validation accuracy rose in the last quarter of the meta-steps.

    The gain is in points, the mean over seeds; nan where a seed has no validation before.
    """
    gains = [
        one.accuracy.max() - one[one.step <= 0.75 * one.step.max()].accuracy.max()
        for _, one in curve.groupby("seed")
    ]
    return float(100 * np.mean(gains))
