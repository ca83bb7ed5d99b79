"""A user's own images: a folder for each class, folders of splits, or a CSV of paths and labels.

Images may have any size and mode (`pixels`). They are read once, resized, and kept in the cache.
The files have to stay: the cache is known by their names, sizes and times.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import track

from metalearn.errors import UsageError, counted
from metalearn.system.files import replace_text, with_home
from metalearn.tasks import drawn_splits, image_folders, labelled_files
from metalearn.tasks.cache import Splits, cache_folder, cached
from metalearn.tasks.drawn_splits import MODES
from metalearn.tasks.image_folders import Files
from metalearn.tasks.images import LabelledImages
from metalearn.tasks.labelled_files import LAYOUTS, UNDRAWN
from metalearn.tasks.pixels import SUFFIXES
from metalearn.tasks.unfinished import restore

BUILDABLE = ("images",)
"""The functions that a config may name."""
CACHED = True
"""The splits are kept in the cache as arrays, so that the files are read once."""
NEEDS_FILES = True
"""The files have to stay, since the cache is known by them."""


def images(
    source: str | Path | None = None,
    image_size: int = 84,
    channels: int = 3,
    split_by: Literal["classes", "images"] = "classes",
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2),
    seed: int = 0,
    min_images: int = 1,
    splits: str | Path | None = None,
) -> dict[str, LabelledImages]:
    """Return the splits of a user's images, (N, channels, image_size, image_size).

    Where the source has no splits, they are drawn. A file in the cache then lists them; its path is
    printed when the images are read.

    Args:
        source: the folder or CSV file (`LAYOUTS`). Paths in the file are relative to its folder.
            None: the folder into which `metalearn data prepare images` unpacked an archive.
        image_size: the side in pixels to which every image is resized, without regard to its shape.
        channels: 1 for grey, 3 for RGB.
        split_by: "classes": no two splits share a class. "images": every class is in every split,
            with other images in each; for few classes, such as two.
        fractions: the shares of the splits "train", "validation" and "test", where they are drawn:
            of the classes, or of the images of each class.
        seed: of the draw.
        min_images: classes with fewer images are left out, and are named.
        splits: a CSV file with the columns name and split, such as an earlier draw wrote. A name is
            that of a class, or with split_by="images" the path of an image in the source. None: the
            splits are those of the source, or drawn.

    Raises:
        UsageError: an option is out of its range; the source is absent, has none of the layouts or
            contradicts itself; a file is no image; or a split lacks classes.
    """
    if not 1 <= image_size <= 1024 or channels not in (1, 3):
        raise UsageError(
            f"image_size={image_size}, channels={channels}: expected 1 to 1024 pixels, and 1 "
            "channel for grey or 3 for RGB"
        )
    drawn_splits.check_fractions(fractions)
    root = _root(source)
    base = root if root.is_dir() else root.parent
    try:
        listed = labelled_files.find_splits(root)
        image_folders.check_once(listed)
    except (OSError, ValueError) as fault:
        raise UsageError(f"source={root} cannot be read: {fault}") from fault
    drawn = splits is not None or UNDRAWN in listed
    every = [file for own in listed.values() for file in own]
    small = _leave_out(listed, min_images)
    split_of: dict[str, str] = {}
    if drawn:
        files = [file for own in listed.values() for file in own]
        groups: dict[str, list[str]] = {}  # of which each is drawn apart
        for path, label in files:
            by_classes = split_by == "classes"
            groups.setdefault("" if by_classes else label, []).append(
                label if by_classes else _inside(path, base)
            )
        for names in groups.values():
            own = sorted(set(names))
            if splits is not None:
                split_of |= drawn_splits.read(with_home(splits), own)
            else:
                split_of |= drawn_splits.draw(own, fractions, seed)
        listed = {mode: [] for mode in MODES}
        for path, label in files:
            name = label if split_by == "classes" else _inside(path, base)
            listed[split_of[name]].append((path, label))
    _check(listed, split_by, root, drawn)
    name = f"images-v1-{_digest(listed, base, image_size, channels)}"
    written = cache_folder() / f"{name}.csv"

    def build() -> Splits:
        made = _read(listed, image_size, channels)
        _report(made, small, image_folders.left_out(every) if root.is_dir() else [], root)
        if split_of and splits is None:
            print(f"metalearn: drew the splits, which {written} lists.", file=sys.stderr)
        return made

    made = cached(name, build)
    if split_of and written.parent.is_dir() and not written.exists():
        replace_text(written, drawn_splits.as_text(split_of))
    return made


def _root(source: str | Path | None) -> Path:
    """Return the folder or the CSV file of the images."""
    if source is None:
        root = restore(cache_folder() / "images")
        if not root.is_dir():
            raise UsageError(
                f"source=null: expected {LAYOUTS}. Give data=PATH to "
                "train, or source=PATH to `data prepare images`"
            )
        return root
    root = with_home(source)
    if not str(source) or not root.exists():
        raise UsageError(
            f"source={source} is not there: expected {LAYOUTS}. Give its path by data=, or where "
            "it has moved to by source="
        )
    if root.is_file() and root.suffix.lower() != ".csv":
        raise UsageError(
            f"source={root}: expected {LAYOUTS}. Unpack an archive by `metalearn data prepare "
            f"images source={root}`"
        )
    return root


def _leave_out(splits: dict[str, Files], least: int) -> dict[str, int]:
    """Take the classes with fewer images than `least` out of each split; return their numbers.

    Raises:
        UsageError: no class is left.
    """
    small: dict[str, int] = {}
    for mode, files in splits.items():
        counts = Counter(label for _, label in files)
        small |= {label: n for label, n in counts.items() if n < least}
        splits[mode] = [(path, label) for path, label in files if counts[label] >= least]
    if not any(splits.values()):
        raise UsageError(
            f"min_images={least}: expected at most {max(small.values())}, the images of the "
            "largest class. Give a smaller number"
        )
    return small


def _check(splits: dict[str, Files], split_by: str, root: Path, drawn: bool) -> None:
    """Raise UsageError where the classes of the splits are not as `split_by` has them."""
    classes = {mode: {label for _, label in splits.get(mode, [])} for mode in MODES}
    every = set().union(*classes.values())
    if len(every) < 2:
        raise UsageError(
            f"source={root} has {counted(len(every), 'class')}: expected at least 2 to tell "
            "apart. Add a class"
        )
    if not drawn and (absent := [mode for mode in MODES if not classes[mode]]):
        raise UsageError(
            f"source={root} has images of some splits and none of {absent[0]}: expected images of "
            "train, val and test. Add them, or leave the splits out, and they are drawn"
        )
    if split_by == "images":
        for label in sorted(every):
            if lacking := [mode for mode in MODES if label not in classes[mode]]:
                raise UsageError(
                    f"split_by=images: expected images of class {label!r} in each split of {root}, "
                    f"and {lacking[0]} has none. Add images, or leave the class out by min_images="
                )
    elif empty := [mode for mode in MODES if not classes[mode]]:
        raise UsageError(
            f"split_by=classes: {root} has {len(every)} classes, and none is left for {empty[0]}. "
            "Set tasks.dataset.split_by=images for the same classes in every split"
        )
    else:
        for a, b in ((0, 1), (0, 2), (1, 2)):
            if both := sorted(classes[MODES[a]] & classes[MODES[b]]):
                raise UsageError(
                    f"split_by=classes: class {both[0]!r} is in {MODES[a]} and in {MODES[b]} of "
                    f"{root}. Set tasks.dataset.split_by=images for the same classes in every split"
                )


def _inside(path: Path, base: Path) -> str:
    """Return the path from the source, so that a source that moves keeps its names."""
    return (path.relative_to(base) if path.is_relative_to(base) else path).as_posix()


def _digest(splits: dict[str, Files], base: Path, image_size: int, channels: int) -> str:
    """Return a digest of what the arrays depend on: files, classes, splits and form."""
    entries = []
    for mode in MODES:
        for path, label in splits[mode]:
            now = path.stat()
            entries.append([mode, _inside(path, base), label, now.st_size, now.st_mtime_ns])
    text = json.dumps([sorted(entries), image_size, channels])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(splits: dict[str, Files], size: int, channels: int) -> Splits:
    """Read and resize every image, with a progress bar in a terminal."""
    bar = track(
        [file for mode in MODES for file in splits[mode]],
        "reading images",
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    files, made = iter(bar), {}
    for mode in MODES:
        made[mode] = labelled_files.read(
            itertools.islice(files, len(splits[mode])), len(splits[mode]), channels, size
        )
    for _ in files:  # lets the bar end
        pass
    return made


def _report(splits: Splits, small: dict[str, int], unread: list[Path], root: Path) -> None:
    """Print what was read, and what was left out."""
    parts = [
        f"{mode} {counted(len(data.images), 'image')} of {counted(len(data.classes), 'class')}"
        for mode, data in splits.items()
    ]
    unpacked = root.is_relative_to(cache_folder())  # an archive, perhaps beside its later place
    where = "" if unpacked else f" in {root}"
    print(f"metalearn: read the images{where}: {', '.join(parts)}.", file=sys.stderr)
    if unread:
        print(
            f"metalearn: left out {len(unread)} of the files and folders in those of classes, "
            f"such as {_inside(unread[0], root)}: an image lies in the folder of its class and "
            f"ends in {', '.join(SUFFIXES)}.",
            file=sys.stderr,
        )
    if small:
        named = ", ".join(f"{name} ({counted(n, 'image')})" for name, n in sorted(small.items()))
        print(f"metalearn: left out the classes {named}: too small.", file=sys.stderr)
