"""Datasets in folders of image files: one folder for each class, or one list for each split."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from metalearn.tasks.drawn_splits import NAMES
from metalearn.tasks.pixels import SUFFIXES, read_image
from metalearn.tasks.table import read_table

LAYOUTS = (
    "{train,val,test}/CLASS/IMAGE, or images/ with {train,val,test}.csv (filename,label), or "
    "data/CLASS/IMAGE with splits/bertinetto/{train,val,test}.txt"
)

_HIDDEN = (".", "__")
_OF_SYSTEMS = ("Thumbs.db", "desktop.ini")

Files = list[tuple[Path, str]]
"""The image files, each with the name of its class."""


def find(root: Path) -> dict[str, Files] | None:
    """Return the files of each split by one of `LAYOUTS`; None if no layout fits.

    The layout lies in `root`, or in the only folder within `root`.

    Raises:
        OSError, ValueError: the list of a split cannot be read or names a path elsewhere, or a file
            is there twice.
    """
    here: Path | None = root
    while here is not None:
        for layout in (_by_folders, _by_tables, _by_class_lists):
            found = {mode: layout(here, names) for mode, names in NAMES.items()}
            if all(found.values()):
                splits = {mode: files or [] for mode, files in found.items()}
                check_once(splits)
                return splits
        here = only_folder(here)
    return None


def only_folder(root: Path) -> Path | None:
    """Return the folder in `root` if there is nothing else; archives often wrap their content."""
    below = [p for p in root.iterdir() if not p.name.startswith(_HIDDEN)]
    return below[0] if len(below) == 1 and below[0].is_dir() else None


def check_once(splits: Mapping[str, Files]) -> None:
    """Raise ValueError if a file is there twice: in a list, in two classes or in two splits.

    A link counts as the file to which it leads.
    """
    folder = functools.cache(Path.resolve)
    places: dict[Path, str] = {}
    for mode, files in splits.items():
        for path, label in files:
            own = path.resolve() if path.is_symlink() else folder(path.parent) / path.name
            place = f"class {label!r}" + (f" of the {mode} split" if len(splits) > 1 else "")
            if own in places:
                raise ValueError(
                    f"{path} is there twice, in {places[own]} and in {place}; list each file once"
                )
            places[own] = place


def read(files: Files, side: int) -> Iterator[np.ndarray]:
    """Yield each image as (side, side, 3) uint8.

    Raises:
        ValueError: a file is not an image, or has another size.
    """
    for path, _ in files:
        yield read_image(path, 3, side)


def images_in(folder: Path) -> list[Path]:
    """Return the image files of a folder, sorted, without hidden files."""
    return sorted(
        p
        for p in folder.iterdir()
        if p.suffix.lower() in SUFFIXES and not p.name.startswith(_HIDDEN) and not p.is_dir()
    )


def folders_in(root: Path) -> list[Path]:
    """Return the folders in a folder, sorted, without hidden ones."""
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(_HIDDEN))


def by_class(folder: Path) -> Files:
    """Return the images of a folder that has a folder for each class."""
    return [(path, one.name) for one in folders_in(folder) for path in images_in(one)]


def left_out(files: Files) -> list[Path]:
    """Return what is not read in the folders of classes: files of other kinds, and folders.

    Hidden ones do not count.
    """
    read_ones = {path for path, _ in files}
    return sorted(
        p
        for folder in {path.parent for path, label in files if path.parent.name == label}
        for p in folder.iterdir()
        if p not in read_ones and not p.name.startswith(_HIDDEN) and p.name not in _OF_SYSTEMS
    )


def _first(root: Path, names: Sequence[str], suffix: str = "") -> Path | None:
    found = [root / f"{n}{suffix}" for n in names if (root / f"{n}{suffix}").exists()]
    if len(found) > 1:
        raise ValueError(f"{found[0]} and {found[1]} are the same split; keep one of them")
    return found[0] if found else None


def _by_folders(root: Path, names: Sequence[str]) -> Files | None:
    folder = _first(root, names)
    return by_class(folder) if folder is not None and folder.is_dir() else None


def _by_tables(root: Path, names: Sequence[str]) -> Files | None:
    table = _first(root, names, ".csv")
    if table is None or not (root / "images").is_dir():
        return None
    rows = read_table(table, ("filename", "label"))
    return [(root / "images" / _plain(row["filename"], table), row["label"]) for row in rows]


def _by_class_lists(root: Path, names: Sequence[str]) -> Files | None:
    listed = _first(root / "splits" / "bertinetto", names, ".txt")
    if listed is None:
        return None
    classes = [_plain(line, listed) for line in listed.read_text("utf-8-sig").split()]
    return [(path, name) for name in classes for path in images_in(root / "data" / name)]


def _plain(name: str, where: Path) -> str:
    if Path(name).name != name:
        raise ValueError(f"{where} has {name!r}, which is no plain name")
    return name
