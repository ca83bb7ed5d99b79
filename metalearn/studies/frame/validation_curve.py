"""What the validations of runs, a row each, say of their training."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd


def step_seconds(curve: pd.DataFrame) -> float:
    """Of a meta-step: the median over the stretches between validations, so that what else the
    machine did for a while does not count; the mean over seeds."""
    medians = []
    for _, one in curve.groupby("seed"):
        seconds, steps = one.train_s.to_numpy(), one.step.to_numpy()
        medians.append(np.median(np.diff(seconds, prepend=0) / np.diff(steps, prepend=0)))
    return float(np.mean(medians))


def best_and_last(curve: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Each seed's best validation, whose model is the one chosen, and its last one."""
    by_seed = curve.groupby("seed")
    return curve.loc[by_seed.accuracy.idxmax()], curve.loc[by_seed.step.idxmax()]


def span(validations: pd.DataFrame) -> str:
    """Their meta-step, or the least and the greatest."""
    low, high = int(validations.step.min()), int(validations.step.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def falls(curves: Mapping[str, pd.DataFrame]) -> str:
    """Those of the named curves that fall (`fall`), in words; empty where none does."""
    fell = {name: fall(curve) for name, curve in curves.items()}
    return ", ".join(f"{name} (from {said})" for name, said in fell.items() if said)


def fall(curve: pd.DataFrame) -> str:
    """From the best validation to the last one, "60.4 % at 200 to 28.0 %", means over the seeds;
    empty where it is within both intervals (over tasks) together."""
    best, last = best_and_last(curve)
    both = math.hypot(best.accuracy_interval.mean(), last.accuracy_interval.mean())
    high, low = float(best.accuracy.mean()), float(last.accuracy.mean())
    return f"{100 * high:.1f} % at {span(best)} to {100 * low:.1f} %" if high - low > both else ""
