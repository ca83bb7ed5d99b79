"""The image files of a user: those of splits, of a few labelled classes, or without labels."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from metalearn.errors import UsageError
from metalearn.system.files import with_home
from metalearn.tasks import image_folders
from metalearn.tasks.drawn_splits import MODE_OF
from metalearn.tasks.image_folders import Files
from metalearn.tasks.images import LabelledImages
from metalearn.tasks.pixels import SUFFIXES, read_image
from metalearn.tasks.table import read_table

LAYOUTS = (
    "a folder for each class, {train,val,test}/ with a folder for each class, or a CSV file with "
    "the columns path, label and perhaps split"
)
"""The layouts of `find_splits`."""
UNDRAWN = "all"
"""The name of the only split of a source without splits."""
_SUPPORT = "a folder with a folder of images for each class, or a CSV file with path and label"
_IMAGES = "a folder of images, a CSV file with the column path, or an image"


def find_splits(root: Path) -> dict[str, Files]:
    """Return the files of each split; all of them as `UNDRAWN` where the source has no splits.

    Raises:
        OSError, ValueError: the source cannot be read, or has none of the layouts.
    """
    if root.is_file():
        return _by_csv(root)
    if found := image_folders.find(root):
        return found
    place: Path | None = root
    while place is not None:
        folders = {path.name for path in image_folders.folders_in(place)}
        if split := sorted(folders.intersection(MODE_OF)):
            raise ValueError(
                f"it has the folder {split[0]} of a split, but not each of train, val and test "
                "with a folder of images for each class; add them, or give a class of this name "
                "another"
            )
        place = image_folders.only_folder(place)
    return {UNDRAWN: _by_class(_folder_of_classes(root, LAYOUTS))}


def read_support(source: str, channels: int, size: int) -> LabelledImages:
    """Read the labelled images of a few classes, whose names are sorted.

    Args:
        source: a folder that has a folder for each class, or a CSV file of paths and labels.
        channels, size: those of the images that are returned.

    Raises:
        UsageError: the source is absent, has another layout or fewer than 2 classes, or a file is
            no image.
    """
    root = _existing("support", source, _SUPPORT)
    try:
        if root.is_file():
            found = _by_csv(root)
        else:
            found = image_folders.find(root) or {
                UNDRAWN: _by_class(_folder_of_classes(root, _SUPPORT))
            }
        if set(found) != {UNDRAWN}:
            raise ValueError(f"it has the splits {', '.join(sorted(found))}; expected {_SUPPORT}")
        image_folders.check_once(found)
    except (OSError, ValueError) as fault:
        raise UsageError(f"support={source} cannot be read: {fault}") from fault
    files = found[UNDRAWN]
    names = sorted({label for _, label in files})
    if len(names) < 2:
        raise UsageError(
            f"support={source} has the class {names[0]!r} alone: expected at least 2 classes. "
            f"Give {_SUPPORT}"
        )
    if odd := [name for name in names if not name.isprintable() or name in ("path", "label")]:
        raise UsageError(
            f"support={source} has the class {odd[0]!r}: expected a printable name in UTF-8, other "
            "than path and label, since the classes are columns of the predictions. Rename it"
        )
    return read(files, len(files), channels, size)


def find_images(source: str) -> list[Path]:
    """Return the images of a user: those of a folder and of the folders in it, sorted.

    Args:
        source: a folder, a CSV file whose column `path` is relative to its folder, or an image.

    Raises:
        UsageError: the source is absent or cannot be read, or has no image.
    """
    root = _existing("images", source, _IMAGES)
    try:
        if root.is_dir():
            found = _images_below(root)
            if not found:
                raise ValueError(f"it has no image, whose name ends in {', '.join(SUFFIXES)}")
            return found
        if root.suffix.lower() != ".csv":
            return [root]
        paths = [root.parent / row["path"] for row in read_table(root, ("path",))]
        if absent := [path for path in paths if not path.is_file()]:
            raise ValueError(f"it lists {str(absent[0])!r}, which is no file")
        return paths
    except (OSError, ValueError) as fault:
        raise UsageError(f"images={source} cannot be read: {fault}") from fault


def read(files: Iterable[tuple[Path, str]], count: int, channels: int, size: int) -> LabelledImages:
    """Read `count` images, resize each to (channels, size, size), and number the classes by name.

    Raises:
        UsageError: a file is no image.
    """
    pixels = torch.empty(count, channels, size, size, dtype=torch.uint8)
    labels: list[str] = []
    for place, (path, label) in enumerate(files):
        try:
            pixels[place] = read_one(path, channels, size)
        except ValueError as fault:
            raise UsageError(f"{fault}. Replace the file or take it away") from fault
        labels.append(label)
    names, numbers = np.unique(labels, return_inverse=True)
    return LabelledImages(
        pixels, torch.from_numpy(numbers.astype(np.int64)), tuple(map(str, names))
    )


def read_one(path: Path, channels: int, size: int) -> torch.Tensor:
    """Read one image, resized, as (channels, size, size) uint8; raise ValueError as `pixels`."""
    return torch.tensor(read_image(path, channels, size, resize=True)).permute(2, 0, 1)


def _existing(option: str, source: str, expected: str) -> Path:
    """Return the path of an option's value; raise UsageError if nothing is there."""
    root = with_home(source)
    if not source or not root.exists():
        raise UsageError(f"{option}={source} is not there: expected {expected}. Give its path")
    if option == "support" and root.is_file() and root.suffix.lower() != ".csv":
        raise UsageError(f"{option}={source} is a file: expected {expected}. Give its path")
    return root


def _folder_of_classes(root: Path, layouts: str) -> Path:
    """Return the folder whose folders have images: `root`, or the only folder within."""
    here = root
    while not image_folders.by_class(here):
        below = image_folders.only_folder(here)
        if below is None:
            raise ValueError(
                f"it has none of the layouts: {layouts}; images end in {', '.join(SUFFIXES)}"
            )
        here = below
    return here


def _by_class(here: Path) -> Files:
    files = image_folders.by_class(here)
    folders = {path.name for path in image_folders.folders_in(here)}
    if empty := sorted(folders.difference(label for _, label in files)):
        raise ValueError(f"the folder {empty[0]} of a class has no images; fill or delete it")
    return files


def _by_csv(table: Path) -> dict[str, Files]:
    found: dict[str, Files] = {}
    for row in read_table(table, ("path", "label")):
        path = table.parent / row["path"]
        if not path.is_file():
            raise ValueError(f"it lists {row['path']!r}, which is no file in {table.parent}")
        mode = MODE_OF.get(row["split"]) if "split" in row else UNDRAWN
        if mode is None:
            raise ValueError(f"it has the split {row['split']!r}; expected train, val or test")
        found.setdefault(mode, []).append((path, row["label"]))
    return found


def _images_below(folder: Path, within: frozenset[Path] = frozenset()) -> list[Path]:
    """Return the images in a folder and its folders; no link to a folder above is followed."""
    within |= {folder.resolve()}
    found = image_folders.images_in(folder)
    for inner in image_folders.folders_in(folder):
        if inner.resolve() not in within:
            found += _images_below(inner, within)
    return sorted(found)
