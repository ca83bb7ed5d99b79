"""Tables and means of grouped rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from metalearn.studies.frame.table import Format, Table, make_table
from metalearn.system.memory import format_bytes
from metalearn.training.estimate import Estimate

Column = tuple[str, str | Callable[[pd.Series], Any] | None, Format | None]
"""A column of the rows, its aggregate over a group of them, and the format of the aggregate.

The aggregate is a method of a series by its name, or a function. None takes the first value.
"""
METHODS = {
    "first_order": "first-order",
    "unrolled_one": "unrolled one step",
    "unrolled": "unrolled",
    "truncated": "unrolled, truncated",
    "cg": "implicit, CG",
    "gauss_newton": "implicit, CG, Gauss-Newton",
    "neumann": "implicit, Neumann",
}
"""Meta-gradients, as tables and figures name them."""


def name_sources(known: Mapping[str, str], rows: pd.DataFrame) -> dict[str, str]:
    """Return the names in `known`, and further sources of the rows under their own names."""
    return {**known, **{name: name for name in rows.source.unique() if name not in known}}


def estimate(values: pd.Series) -> Estimate | float | None:
    """Estimate the mean of the values that are not nan; a single one is its own estimate."""
    values = values.dropna()
    if len(values) > 1:
        return Estimate.of(values)
    return float(values.iloc[0]) if len(values) else None


def scale(factor: float, spec: str) -> Format:
    """Return the format of a number that is shown `factor` times as large."""
    return lambda value: format(factor * value, spec)


PEAK: Column = ("peak_bytes", "max", lambda peak: format_bytes(int(peak)))
COSTS: dict[str, Column] = {
    "ms a meta-step": ("step_s", "mean", scale(1e3, ".0f")),
    "peak memory": PEAK,
    "inner gradient": ("inner_grad_norm", "mean", ".1e"),
    "residual of the solve": ("relative_residual", "mean", ".1e"),
}
"""The cost and the accuracy of a meta-gradient, for `tabulate`."""


def tabulate(rows: pd.DataFrame, by: str | list[str], columns: Mapping[str, Column]) -> Table:
    """Make a table with a row for each group of rows, in the order of their first rows.

    Args:
        by: the columns of the rows by whose values they are grouped.
        columns: the columns of the table by their titles; one that the rows lack is blank.
    """
    shown = [
        [
            _aggregate(group[name], how) if name in group else None
            for name, how, _ in columns.values()
        ]
        for _, group in rows.groupby(by, dropna=False, sort=False)
    ]
    return make_table({title: form for title, (_, _, form) in columns.items()}, shown)


def _aggregate(values: pd.Series, how: str | Callable[[pd.Series], Any] | None) -> Any:
    if how is None:
        return values.iloc[0]
    found = getattr(values, how)() if isinstance(how, str) else how(values)
    return found.item() if isinstance(found, np.generic) else found


def means(rows: pd.DataFrame, by: list[str], column: str) -> pd.DataFrame:
    """Return the mean of a column for each group of rows, and half its 95 % interval as `half`.

    The groups keep the order of their first rows. A single value has a `half` of 0.
    """
    found = []
    for key, values in rows.groupby(by, sort=False)[column]:
        value = Estimate.of(values.dropna().astype(float))
        half = value.interval if np.isfinite(value.interval) else 0.0
        found.append((*key, value.mean, half))
    return pd.DataFrame(found, columns=[*by, column, "half"])


def by_seed(rows: pd.DataFrame, names: Iterable[str], column: str) -> dict[str, pd.Series]:
    """Return the means of a column by seed, for each source of `names` that the rows have."""
    wide = rows.pivot_table(index="seed", columns="source", values=column, aggfunc="mean")
    wide = wide.reindex(columns=[name for name in names if name in set(rows.source)])
    return {str(name): values for name, values in wide.items()}


def records(table: Table, key: str) -> dict[Any, dict[Any, str]]:
    """Return the cells' texts, by their row's text in the column `key` and by their titles."""
    return table.texts().set_index(key).to_dict("index")
