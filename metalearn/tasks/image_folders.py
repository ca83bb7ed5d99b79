"""Datasets in folders of image files: one folder for each class, or one list for each split."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

LAYOUTS = (
    "{train,val,test}/CLASS/IMAGE, or images/ with {train,val,test}.csv (filename,label), or "
    "data/CLASS/IMAGE with splits/bertinetto/{train,val,test}.txt"
)
_SHORT = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}
_SUFFIXES = (".png", ".jpg", ".jpeg")

Files = list[tuple[Path, str]]
"""The image files, each with the name of its class."""


def find(root: Path) -> dict[str, Files] | None:
    """Return the files of each split by one of `LAYOUTS`; None if no layout fits.

    The layout lies in `root`, or in the only folder within `root`.

    Raises:
        OSError, ValueError: the list of a split cannot be read, or names a path elsewhere.
    """
    for layout in (_by_folders, _by_tables, _by_class_lists):
        found = {mode: layout(root, names) for mode, names in _SHORT.items()}
        if all(found.values()):
            return {mode: files or [] for mode, files in found.items()}
    below = [p for p in root.iterdir() if not p.name.startswith((".", "__"))]
    return find(below[0]) if len(below) == 1 and below[0].is_dir() else None


def read(files: Files, side: int) -> Iterator[np.ndarray]:
    """Yield each image as (side, side, 3) uint8.

    Raises:
        OSError, SyntaxError, ValueError: a file is not an image, or has another size.
    """
    for path, _ in files:
        with Image.open(path) as image:
            if image.size != (side, side):  # checked before any pixel is read
                size = (image.size[1], image.size[0], 3)
                raise ValueError(f"{path} is of shape {size}, not {(side, side, 3)}")
            yield np.asarray(image.convert("RGB"))


def _first(root: Path, names: Sequence[str], suffix: str = "") -> Path | None:
    return next((root / f"{n}{suffix}" for n in names if (root / f"{n}{suffix}").exists()), None)


def _images(folder: Path) -> Files:
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES)
    return [(path, folder.name) for path in found]


def _by_folders(root: Path, names: Sequence[str]) -> Files | None:
    folder = _first(root, names)
    if folder is None or not folder.is_dir():
        return None
    classes = sorted(p for p in folder.iterdir() if p.is_dir())
    return [file for one in classes for file in _images(one)]


def _by_tables(root: Path, names: Sequence[str]) -> Files | None:
    table = _first(root, names, ".csv")
    if table is None or not (root / "images").is_dir():
        return None
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"filename", "label"} <= rows[0].keys():
        raise ValueError(f"{table} lacks the columns filename and label")
    return [(root / "images" / _plain(row["filename"], table), str(row["label"])) for row in rows]


def _by_class_lists(root: Path, names: Sequence[str]) -> Files | None:
    listed = _first(root / "splits" / "bertinetto", names, ".txt")
    if listed is None:
        return None
    classes = [_plain(line, listed) for line in listed.read_text().split()]
    return [file for name in classes for file in _images(root / "data" / name)]


def _plain(name: str | None, where: Path) -> str:
    if not name or Path(name).name != name:
        raise ValueError(f"{where} has {name!r}, which is no plain name")
    return name
