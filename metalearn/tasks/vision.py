"""The datasets mini-ImageNet, tiered-ImageNet, CIFAR-FS and FC100, from their published files.

Each dataset is read from folders of image files (`image_folders.LAYOUTS`). A dataset that was
published as pickles is read from the pickles too, as arrays only: no code in a pickle is executed
(`pickled`).

Nothing is downloaded. The known addresses fail often, and a source that changes silently is no
basis for a benchmark.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metalearn.errors import UsageError
from metalearn.system.files import with_home
from metalearn.tasks import image_folders, pickled
from metalearn.tasks.archive import is_archive
from metalearn.tasks.cache import cache_folder
from metalearn.tasks.images import LabelledImages
from metalearn.tasks.pixels import check_bytes, read_image
from metalearn.tasks.unfinished import restore

_MODES = ("train", "validation", "test")
_SHORT = ("train", "val", "test")
_Pickle = tuple[Sequence[str], Callable[[str, Any], tuple[Iterable[np.ndarray], Any, Any]]]

BUILDABLE = ("mini_imagenet", "tiered_imagenet", "cifar_fs", "fc100")
"""The functions that a config may name."""


def mini_imagenet(
    source: str | Path | None = None, classes: tuple[int, int, int] = (64, 16, 20)
) -> dict[str, LabelledImages]:
    """Return mini-ImageNet, (N, 3, 84, 84), with the splits of Ravi & Larochelle.

    Args:
        source: the folder of images, or of mini-imagenet-cache-{train,validation,test}.pkl. None:
            `$METALEARN_DATA/mini_imagenet`, else the folder of `metalearn data prepare`.
        classes: the required numbers of training, validation and test classes.

    Raises:
        UsageError: a file is missing, truncated or not of this dataset.
    """

    def split(mode: str, contents: Any) -> tuple[Any, Any, Any]:
        (data,) = contents
        images, rows = data["image_data"], data["class_dict"]
        labels = np.full(len(images), -1)
        for number, (name, listed) in enumerate(rows.items()):
            found = _whole_numbers(listed, f"the images of class {name!r}")
            if found.min(initial=0) < 0 or (labels[found] >= 0).any():
                raise ValueError(f"an image of class {name!r} is negative or of two classes")
            labels[found] = number
        return images, labels, [str(name) for name in rows]

    names = [f"mini-imagenet-cache-{mode}.pkl" for mode in _MODES]
    return _load("mini_imagenet", source, 84, classes, (names, split))


def tiered_imagenet(
    source: str | Path | None = None, classes: tuple[int, int, int] = (351, 97, 160)
) -> dict[str, LabelledImages]:
    """Return tiered-ImageNet, (N, 3, 84, 84); it needs 17 GB of memory.

    Args:
        source: the folder of images, or of
            tiered-imagenet/{train,val,test}_{images_png,labels}.pkl. None:
            `$METALEARN_DATA/tiered_imagenet`, else the folder of `metalearn data prepare`.
        classes: the required numbers of training, validation and test classes.

    Raises:
        UsageError: a file is missing, truncated or not of this dataset.
    """

    def split(mode: str, contents: Any) -> tuple[Any, Any, Any]:
        encoded, labels = contents
        images = (read_image(io.BytesIO(bytes(image)), 3, 84) for image in encoded)
        return images, *_numbered(mode, labels["label_specific"], len(encoded))

    kinds = ("images_png", "labels")
    names = [f"tiered-imagenet/{mode}_{kind}.pkl" for mode in _SHORT for kind in kinds]
    return _load("tiered_imagenet", source, 84, classes, (names, split))


def cifar_fs(
    source: str | Path | None = None, classes: tuple[int, int, int] = (64, 16, 20)
) -> dict[str, LabelledImages]:
    """Return CIFAR-FS, (N, 3, 32, 32), with the splits of Bertinetto et al.

    Args:
        source: the folder of images, such as that of cifar100.zip. The images may also lie in
            cifarfs/processed or cifarfs/cifar100, where learn2learn stores them. None:
            `$METALEARN_DATA/cifar_fs`, else the folder of `metalearn data prepare`.
        classes: the required numbers of training, validation and test classes.

    Raises:
        UsageError: the folder is missing or incomplete, or an image is not 32x32.
    """
    return _load("cifar_fs", source, 32, classes)


def fc100(
    source: str | Path | None = None, classes: tuple[int, int, int] = (60, 20, 20)
) -> dict[str, LabelledImages]:
    """Return FC100, (N, 3, 32, 32), whose splits share no superclass.

    Args:
        source: the folder of images, or of FC100_{train,val,test}.pickle. None:
            `$METALEARN_DATA/fc100`, else the folder of `metalearn data prepare`.
        classes: the required numbers of training, validation and test classes.

    Raises:
        UsageError: a file is missing, truncated or not of this dataset.
    """

    def split(mode: str, contents: Any) -> tuple[Any, Any, Any]:
        (data,) = contents
        return data["data"], *_numbered(mode, data["labels"], len(data["data"]))

    names = [f"FC100_{mode}.pickle" for mode in _SHORT]
    return _load("fc100", source, 32, classes, (names, split))


def _folder(name: str, source: str | Path | None, wanted: str) -> Path:
    data, prepared = os.environ.get("METALEARN_DATA"), restore(cache_folder() / name)
    if source is not None:
        root = with_home(source)
    elif (data and (with_home(data) / name).is_dir()) or not prepared.is_dir():
        if data is None:
            raise UsageError(
                f"{name} has no source; give source=FOLDER, or set METALEARN_DATA to a folder "
                f"whose subfolder {name} holds {wanted}"
            )
        root = with_home(data) / name
    else:
        root = prepared
    if is_archive(root):
        raise UsageError(f"{root} is not unpacked; `metalearn data prepare {name} source={root}`")
    if not root.is_dir():
        raise UsageError(
            f"{root} is not a folder; make it and place there {wanted}; or give source= the place "
            "where they lie now"
        )
    return root


def _load(
    name: str,
    source: str | Path | None,
    side: int,
    classes: tuple[int, int, int],
    pickles: _Pickle | None = None,
) -> dict[str, LabelledImages]:
    """Load and check every split."""
    files, from_pickles = pickles or ([], None)
    wanted = f"{', '.join(files)}, or the images as " if files else "the images as "
    wanted += image_folders.LAYOUTS
    root = _folder(name, source, wanted)
    lying = [root / file for file in files]
    if files and all(path.is_file() for path in lying):
        each = len(files) // len(_MODES)

        def read(s: int) -> LabelledImages:
            contents = [pickled.load(path) for path in lying[s * each : (s + 1) * each]]
            assert from_pickles is not None
            return _gather(*from_pickles(_MODES[s], contents), side)
    else:
        try:
            found = image_folders.find(root)
            for below in ("cifarfs/processed", "cifarfs/cifar100"):
                if found is None and name == "cifar_fs" and (root / below).is_dir():
                    found = image_folders.find(root / below)
        except Exception as fault:  # as for a split, below
            raise _unreadable(f"{name} in {root}", fault) from fault
        if found is None:
            raise UsageError(f"{root} lacks {wanted}; place {name} there whole")
        splits_found = found

        def read(s: int) -> LabelledImages:
            listed = splits_found[_MODES[s]]
            names, labels = np.unique([label for _, label in listed], return_inverse=True)
            return _gather(image_folders.read(listed, side), labels, names.tolist(), side)

    splits: dict[str, LabelledImages] = {}
    for s, (mode, count) in enumerate(zip(_MODES, classes, strict=True)):
        where = f"the {mode} split of {name} in {root}"
        try:
            splits[mode] = read(s)
        except Exception as fault:  # what foreign and damaged files lead to shares no class
            raise _unreadable(where, fault) from fault
        if (has := len(splits[mode].classes)) != count:
            raise UsageError(
                f"{where} has {has} classes instead of {count}; place a whole copy there"
            )
    names = [c for split in splits.values() for c in split.classes]
    if len(set(names)) != len(names):
        raise UsageError(
            f"two splits of {name} in {root} share a class; place an original copy there"
        )
    return splits


def _unreadable(where: str, fault: BaseException) -> UsageError:
    reason = " ".join(str(fault).split()) or type(fault).__name__
    return UsageError(f"{where} cannot be read ({reason}); place a whole copy there")


def _whole_numbers(values: Any, what: str) -> np.ndarray:
    """Return a flat list or array of whole numbers as an int64 array; else raise ValueError."""
    if isinstance(values, list | tuple) and all(type(value) is int for value in values):
        return np.array(values, np.int64)
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "iu":
        return values.astype(np.int64)
    raise ValueError(f"{what} are no flat list of whole numbers")


def _numbered(mode: str, labels: Any, images: int) -> tuple[np.ndarray, list[str]]:
    """Return consecutive labels and the names of the classes.

    Args:
        mode: the name of the split, which begins the names.
        labels: numbers, with or without gaps.
        images: the expected number of labels.

    Raises:
        ValueError: the numbers of images and labels differ.
    """
    if images != len(labels):
        raise ValueError(f"{images} images came with {len(labels)} labels")
    values, numbers = np.unique(_whole_numbers(labels, "the labels"), return_inverse=True)
    return numbers, [f"{mode}/{value}" for value in values]


def _gather(
    arrays: Iterable[np.ndarray], labels: Any, classes: Sequence[str], side: int
) -> LabelledImages:
    """Gather images into one tensor, (N, 3, side, side) uint8.

    The images arrive one by one, since all of them together may be large.

    Args:
        arrays: images (side, side, 3) uint8.
        labels: the index of each image's class in `classes`.

    Raises:
        ValueError: an image has another shape or type, or the numbers of images, labels and classes
            do not match.
    """
    count = len(labels)
    images = torch.empty(count, 3, side, side, dtype=torch.uint8)
    filled = 0
    for filled, array in enumerate(arrays, start=1):
        if array.shape != (side, side, 3):
            raise ValueError(f"an image is of shape {array.shape}, not {(side, side, 3)}")
        if filled > count:
            break
        images[filled - 1] = torch.tensor(check_bytes(array)).permute(2, 0, 1)
    if filled != count:
        raise ValueError(f"{filled} images came with {count} labels")
    numbers = torch.from_numpy(np.asarray(labels).astype(np.int64))
    if not np.array_equal(np.unique(numbers), np.arange(len(classes))):
        raise ValueError(f"the labels do not match the {len(classes)} classes")
    return LabelledImages(images, numbers, tuple(classes))
