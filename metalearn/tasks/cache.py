"""Datasets that took time to build, kept as one file each."""

from __future__ import annotations

import contextlib
import os
import sys
import uuid
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metalearn.errors import UsageError
from metalearn.system.files import with_home
from metalearn.tasks.images import LabelledImages

Splits = dict[str, LabelledImages]

_FIELDS = ("images", "labels", "classes")
# What numpy and zipfile raise for a file that is cut short, altered, or not an archive at all.
_DAMAGE = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, IndexError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError),
)


def cache_folder() -> Path:
    """`$METALEARN_CACHE`, else `$XDG_CACHE_HOME/metalearn`, else `~/.cache/metalearn`."""
    if chosen := os.environ.get("METALEARN_CACHE"):
        return with_home(chosen)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return with_home(base) / "metalearn"
    return with_home("~/.cache/metalearn")


def cached(name: str, build: Callable[[], Splits]) -> Splits:
    """The dataset `name` from the cache; built, and kept there, where the cache has none.

    Args:
        name: the file's stem. It holds all that the content depends on: dataset, version,
            seed, size.
        build: makes the dataset; called only when the cache has no sound file.

    A damaged file is built again, and a folder that cannot be written is done without; either is
    said in one sentence on stderr.

    Raises:
        UsageError: `name` is not a plain file name. What `build` raises passes through.
    """
    if not name or Path(name).name != name:
        raise UsageError(f"{name!r} cannot name a cached dataset; expected a plain file name")
    path = cache_folder() / f"{name}.npz"
    try:
        return _read(path)
    except (FileNotFoundError, NotADirectoryError):
        pass  # the second: the folder's own path is a file, which writing reports
    except _DAMAGE as fault:
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


def _read(path: Path) -> Splits:
    # Opened here: np.load leaves its own file open when the archive turns out to be damaged.
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
    """Writes beside `path` and renames, so that `path` is whole whenever it exists."""
    arrays: dict[str, Any] = {}
    for split, data in splits.items():
        values = (data.images.numpy(), data.labels.numpy(), np.array(data.classes, dtype=np.str_))
        arrays |= {f"{split}/{field}": v for field, v in zip(_FIELDS, values, strict=True)}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}-{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def _brief(fault: BaseException) -> str:
    text = (fault.strerror if isinstance(fault, OSError) else None) or str(fault)
    return " ".join(text.split()).rstrip(".") or type(fault).__name__


def _warn(sentence: str) -> None:
    print(f"metalearn: {sentence}.", file=sys.stderr)
