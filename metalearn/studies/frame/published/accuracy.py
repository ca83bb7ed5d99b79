"""Published few-shot accuracies."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pandas as pd

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
    """A row for each published accuracy: dataset, ways, shots, method, accuracy and interval as
    they were printed, mark (`MARKS`), budget of training, source, remark; and percent, a number."""
    path = Path(__file__).with_name("accuracy.csv")
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    numbers = {"ways": frame.ways.astype(int), "shots": frame.shots.astype(int)}
    return frame.assign(**numbers, percent=frame.accuracy.astype(float))
