"""Published few-shot accuracies."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from metalearn.studies.frame.table import Cell, make_cell

TITLES = {
    **{"omniglot": "Omniglot", "mini_imagenet": "Mini-ImageNet", "glyphs": "Glyphs"},
    **{"tiered_imagenet": "tiered-ImageNet", "cifar_fs": "CIFAR-FS", "fc100": "FC100"},
}
MARKS = {
    "P": "in a paper's table",
    "C": "read in public code",
    "T": "reported in a public thread",
    "R": "run by us",
    "U": "unverified: check it before you quote it",
}


@cache
def published() -> pd.DataFrame:
    """Return a row for each published accuracy.

    The columns are dataset, ways, shots, method, accuracy and interval as printed, mark (of
    `MARKS`), budget of training, source, remark, and the number `percent`.
    """
    path = Path(__file__).with_name("accuracy.csv")
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    numbers = {"ways": frame.ways.astype(int), "shots": frame.shots.astype(int)}
    return frame.assign(**numbers, percent=frame.accuracy.astype(float))


def select_published(dataset: str, ways: int, shots: int) -> pd.DataFrame:
    """Select the published accuracies of one setting."""
    every = published()
    return every[(every.dataset == dataset) & (every.ways == ways) & (every.shots == shots)]


def select_papers(others: pd.DataFrame, method: str) -> pd.DataFrame:
    """Select what papers' tables report for a method, with transductive batch statistics."""
    return others[(others.mark == "P") & others.method.isin([method, f"{method}, transductive"])]


def published_rows(dataset: str) -> list[dict[str, Any]]:
    """Return a row of a table for each published method.

    Its keys are "method", the titles of the settings that the method has (`setting_title`),
    "trained for", "mark", "source" and "remark".
    """
    others = published()[published().dataset == dataset]
    return [
        {
            "method": method,
            **{setting_title(r.ways, r.shots): published_cell(r) for _, r in part.iterrows()},
            "trained for": join_distinct(part.budget),
            **{name: join_distinct(part[name]) for name in ("mark", "source", "remark")},
        }
        for method, part in others.groupby("method", sort=False)
    ]


def published_cell(row: Any) -> Cell:
    """Return the accuracy as it was printed, with a note where it is unverified."""
    interval = f" ± {row.interval}" if row.interval else ""
    note = " (unverified)" if row.mark == "U" else ""
    return Cell(f"{row.accuracy}{interval}{note}", row.percent)


def dataset_title(dataset: str) -> str:
    return TITLES.get(dataset, dataset or "Other data")


def setting_title(ways: Any, shots: Any) -> str:
    """Return "5-way 1-shot", or "accuracy" for data without ways and shots."""
    if not (ways and shots):
        return "accuracy"
    return f"{make_cell(ways).text}-way {make_cell(shots).text}-shot"


def join_distinct(texts: Iterable[str]) -> str:
    """Return the different texts that are not empty, joined by semicolons."""
    return "; ".join(dict.fromkeys(filter(None, texts)))
