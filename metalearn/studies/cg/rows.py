"""The selection of rows for the tables, figures and facts of the study of CG iterations."""

from __future__ import annotations

from typing import Any

import pandas as pd

NAMES = {
    "cg": "CG",
    "gauss_newton": "CG, Gauss-Newton",
    "damped": "CG, damped",
    "neumann": "Neumann",
    "nystrom": "Nyström",
    "nystrom_cg": "CG, Nyström",
    "jacobi_cg": "CG, Jacobi",
    "warm_cg": "CG, warm start",
}
SWEPT = ("cg", "gauss_newton")
"""The methods trained with every number of iterations; the study trains others with one number."""


def name_of(way: Any) -> str:
    """Return a method's name in tables and figures; a further meta-gradient's is its own."""
    return "" if pd.isna(way) else NAMES.get(way, str(way))


def part_of(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    return rows[rows.part == name]


def task_rows(rows: pd.DataFrame) -> pd.DataFrame:
    part = part_of(rows, "task")
    return part.assign(definite=part.definite.astype(bool))


def certified_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the solves that have both a certificate and a known true error."""
    part = task_rows(rows)
    part = part[part.certificate.notna() & part.true_error.notna()]
    return part.assign(holds=part.certificate >= part.true_error)


def first_prox(rows: pd.DataFrame) -> float:
    return float(part_of(rows, "accuracy").prox.iloc[0])


def common_number(rows: pd.DataFrame) -> int:
    """Return the number of iterations that most methods were trained with."""
    part = part_of(rows, "accuracy")
    ways = part[part.iterations > 0].groupby("iterations").way.nunique()
    return int(ways[ways == ways.max()].index[-1])


def final_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the last row of every training that did not stop."""
    part = part_of(rows, "accuracy")
    return part[part.test_accuracy.notna()]


def within_time(rows: pd.DataFrame, prox: float) -> tuple[float, pd.DataFrame]:
    """Compare trainings of one prox at the same time.

    Returns:
        The seconds of the shortest training, and the last validation of each training within them.
    """
    part = part_of(rows, "accuracy")
    part = part[(part.prox == prox) & part.train_s.notna()]
    keys = ["way", "iterations", "seed"]
    budget = float(part.groupby(keys).train_s.max().min())
    return budget, part[part.train_s <= budget].groupby(keys, sort=False).tail(1)


def swept_ways(final: pd.DataFrame) -> list[str]:
    return [way for way in SWEPT if way in set(final.way)]


def sweep_of(final: pd.DataFrame, way: str, prox: float) -> pd.DataFrame:
    """Return a method's trainings and the first-order ones, the 0 iterations of every method."""
    part = final[final.prox == prox]
    return part[(part.way == way) | (part.iterations == 0)]
