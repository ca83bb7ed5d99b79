"""The cache of built datasets, one file each."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metalearn.errors import UsageError
from metalearn.system.files import sync, with_home
from metalearn.tasks.images import LabelledImages
from metalearn.tasks.unfinished import temporary_folder

Splits = dict[str, LabelledImages]

_FIELDS = ("images", "labels", "classes")


def cache_folder() -> Path:
    """Return the folder of the cache.

    It is `$METALEARN_CACHE`, else `$XDG_CACHE_HOME/metalearn`, else `~/.cache/metalearn`.

    Raises:
        UsageError: the user has no home folder, and neither variable is set.
    """
    if chosen := os.environ.get("METALEARN_CACHE"):
        return with_home(chosen)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return with_home(base) / "metalearn"
    try:
        return with_home("~/.cache/metalearn")
    except UsageError as error:
        raise UsageError(
            "METALEARN_CACHE is not set, and this user has no home folder: expected a folder for "
            "datasets. Set METALEARN_CACHE to one"
        ) from error


def cached(name: str, build: Callable[[], Splits]) -> Splits:
    """Return the dataset `name` from the cache; build it and store it if it is missing.

    A damaged file is built again. A folder that cannot be written is not used. Both cases print one
    sentence on stderr.

    Args:
        name: the stem of the file. It names everything that the content depends on: dataset,
            version, seed, size.
        build: builds the dataset; called only if the cache has no valid file.

    Raises:
        UsageError: `name` is not a plain file name. Errors of `build` pass through.
    """
    if not name or Path(name).name != name:
        raise UsageError(f"{name!r} cannot name a cached dataset; expected a plain file name")
    path = cache_folder() / f"{name}.npz"
    try:
        return _read(path)
    except (FileNotFoundError, NotADirectoryError):
        pass  # NotADirectoryError: the folder's path is a file; `_write` below reports it
    except Exception as fault:  # the errors of numpy and zipfile for a damaged file share no class
        _warn(f"{path} is damaged or unreadable ({_brief(fault)}) and is built again")
    splits = build()
    try:
        _write(path, splits)
    except OSError as fault:
        _warn(
            f"{path.parent} cannot be written ({_brief(fault)}), so {name} is not kept; "
            "set METALEARN_CACHE to a folder that can"
        )
    return splits


def is_cached(name: str) -> bool:
    """Return True if the cache has a file of the dataset `name`."""
    return (cache_folder() / f"{name}.npz").is_file()


def _read(path: Path) -> Splits:
    # The file is opened here, since np.load leaves its own file open for a damaged archive.
    with path.open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("not an archive of arrays")
        with archive:
            arrays = {key: archive[key] for key in archive.files}
    splits: Splits = {}
    for split in dict.fromkeys(key.rpartition("/")[0] for key in arrays):
        images, labels, classes = (arrays[f"{split}/{field}"] for field in _FIELDS)
        names = tuple(str(name) for name in classes)
        if labels.dtype != np.int64 or not np.array_equal(np.unique(labels), np.arange(len(names))):
            raise ValueError(f"the labels of {split} do not match its {len(names)} classes")
        splits[split] = LabelledImages(torch.from_numpy(images), torch.from_numpy(labels), names)
    if not splits:
        raise ValueError("no arrays")
    return splits


def _write(path: Path, splits: Splits) -> None:
    """Write a temporary file and rename it, so that `path` is complete whenever it exists.

    A killed process leaves no file beside it for longer than until the next one is written.
    """
    arrays: dict[str, Any] = {}
    for split, data in splits.items():
        values = (data.images.numpy(), data.labels.numpy(), np.array(data.classes, dtype=np.str_))
        arrays |= {f"{split}/{field}": v for field, v in zip(_FIELDS, values, strict=True)}
    with temporary_folder(path.parent, path.stem) as folder:
        with (folder / path.name).open("xb") as file:
            np.savez(file, **arrays)
            file.flush()
            sync(file.fileno())
        (folder / path.name).replace(path)


def _brief(fault: BaseException) -> str:
    text = (fault.strerror if isinstance(fault, OSError) else None) or str(fault)
    return " ".join(text.split()).rstrip(".") or type(fault).__name__


def _warn(sentence: str) -> None:
    print(f"metalearn: {sentence}.", file=sys.stderr)
