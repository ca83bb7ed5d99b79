"""Means over seeds and splits as the tables of the studies write them."""

from __future__ import annotations

import pandas as pd

from metalearn.training.estimate import Estimate


def estimate(values: pd.Series) -> Estimate:
    """Of the values that are there."""
    return Estimate.of(values.dropna())


def said(values: pd.Series, digits: int = 2, times: float = 1.0, sign: str = "") -> str:
    """The mean and, of several values, its interval; empty where there is none."""
    if values.dropna().empty:
        return ""
    found = estimate(times * values)
    within = f" ± {found.interval:.{digits}f}" if values.count() > 1 else ""
    return f"{found.mean:{sign}.{digits}f}{within}"


def mean_or_blank(group: pd.DataFrame, column: str, how: str, times: float = 1.0) -> str:
    """A column's mean; empty where the group has no such values."""
    if column not in group or group[column].isna().all():
        return ""
    return format(times * group[column].mean(), how)
