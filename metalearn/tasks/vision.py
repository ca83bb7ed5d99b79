"""mini-ImageNet, tiered-ImageNet, CIFAR-FS and FC100, through learn2learn's loaders.

Nothing is downloaded: the addresses that learn2learn knows fail often, and silently changing
sources is no basis for a benchmark. All but CIFAR-FS are pickles, which can run code when they are
read: use files that you trust.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metalearn.errors import UsageError
from metalearn.tasks.images import LabelledImages
from metalearn.tasks.l2l import import_learn2learn

_MODES = ("train", "validation", "test")
# What a cut, foreign or half-unpacked file leads to inside the loaders.
_FAULTS = (
    *(OSError, EOFError, pickle.UnpicklingError, ValueError, TypeError, SyntaxError),
    *(LookupError, AttributeError, ImportError, RuntimeError, MemoryError),
)


def mini_imagenet(
    source: str | Path | None = None, classes: tuple[int, int, int] = (64, 16, 20)
) -> dict[str, LabelledImages]:
    """mini-ImageNet, (N, 3, 84, 84), with the splits of Ravi & Larochelle.

    Args:
        source: folder of mini-imagenet-cache-{train,validation,test}.pkl;
            None: `$METALEARN_DATA/mini_imagenet`.
        classes: classes that training, validation and test have to have.

    Raises:
        UsageError: a file is absent, cut short or not of this dataset.
    """
    files = [f"mini-imagenet-cache-{mode}.pkl" for mode in _MODES]

    def split(data: Any, mode: str) -> LabelledImages:
        names = [str(name) for name in data.class_idx]
        return _gather((x.permute(1, 2, 0).numpy() for x in data.x), data.y, names, 84)

    return _load("mini_imagenet", "MiniImagenet", source, files, split, classes)


def tiered_imagenet(
    source: str | Path | None = None, classes: tuple[int, int, int] = (351, 97, 160)
) -> dict[str, LabelledImages]:
    """tiered-ImageNet, (N, 3, 84, 84); whole in memory it needs 17 GB.

    Args:
        source: folder of tiered-imagenet/{train,val,test}_{images_png,labels}.pkl;
            None: `$METALEARN_DATA/tiered_imagenet`.
        classes: classes that training, validation and test have to have.

    Raises:
        UsageError: a file is absent, cut short or not of this dataset.
    """
    kinds = ("images_png", "labels")
    files = [f"tiered-imagenet/{m}_{k}.pkl" for m in ("train", "val", "test") for k in kinds]

    def split(data: Any, mode: str) -> LabelledImages:
        return _numbered(data, mode, 84)

    return _load("tiered_imagenet", "TieredImagenet", source, files, split, classes)


def cifar_fs(
    source: str | Path | None = None, classes: tuple[int, int, int] = (64, 16, 20)
) -> dict[str, LabelledImages]:
    """CIFAR-FS, (N, 3, 32, 32), with the splits of Bertinetto et al.

    Args:
        source: folder of cifarfs/cifar100/data and cifarfs/cifar100/splits/bertinetto, as in
            cifar100.zip; learn2learn copies the images into cifarfs/processed beside them once.
            None: `$METALEARN_DATA/cifar_fs`.
        classes: classes that training, validation and test have to have.

    Raises:
        UsageError: the folder is absent or incomplete, or an image is not 32x32.
    """
    # Once the images are sorted into splits, the archive's own folders are not read again.
    root = _folder("cifar_fs", source, "cifarfs/cifar100 of cifar100.zip")
    sorted_already = (root / "cifarfs/processed").is_dir()
    original = [f"cifarfs/cifar100/splits/bertinetto/{m}.txt" for m in ("train", "val", "test")]
    files = ["cifarfs/processed"] if sorted_already else ["cifarfs/cifar100/data", *original]

    def split(data: Any, mode: str) -> LabelledImages:
        arrays = (np.asarray(image) for image, _ in data)
        return _gather(arrays, data.targets, data.classes, 32, len(data))

    return _load("cifar_fs", "CIFARFS", root, files, split, classes)


def fc100(
    source: str | Path | None = None, classes: tuple[int, int, int] = (60, 20, 20)
) -> dict[str, LabelledImages]:
    """FC100, (N, 3, 32, 32), whose splits share no superclass.

    Args:
        source: folder of FC100_{train,val,test}.pickle; None: `$METALEARN_DATA/fc100`.
        classes: classes that training, validation and test have to have.

    Raises:
        UsageError: a file is absent, cut short or not of this dataset.
    """
    files = [f"FC100_{mode}.pickle" for mode in ("train", "val", "test")]

    def split(data: Any, mode: str) -> LabelledImages:
        return _numbered(data, mode, 32)

    return _load("fc100", "FC100", source, files, split, classes)


def _folder(name: str, source: str | Path | None, wanted: str) -> Path:
    data = os.environ.get("METALEARN_DATA")
    if source is None and data is None:
        raise UsageError(
            f"{name} has no source; give source=FOLDER, or set METALEARN_DATA to a folder whose "
            f"subfolder {name} holds {wanted}"
        )
    root = Path(data or "", name) if source is None else Path(source)
    root = root.expanduser()
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder; make it and place there {wanted}")
    return root


def _load(
    name: str,
    loader: str,
    source: str | Path | None,
    files: Sequence[str],
    split: Callable[[Any, str], LabelledImages],
    classes: tuple[int, int, int],
) -> dict[str, LabelledImages]:
    """Every mode of a learn2learn dataset, checked."""
    root = _folder(name, source, ", ".join(files))
    if absent := [file for file in files if not (root / file).exists()]:
        raise UsageError(f"{root} lacks {', '.join(absent)}; place {name} there whole")
    dataset = getattr(import_learn2learn("learn2learn.vision.datasets"), loader)
    splits: dict[str, LabelledImages] = {}
    for mode, count in zip(_MODES, classes, strict=True):
        try:
            with warnings.catch_warnings():
                # numpy's word on pickles that an older numpy wrote, as these all are
                warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
                splits[mode] = split(dataset(str(root), mode=mode, download=False), mode)
        except _FAULTS as fault:
            reason = " ".join(str(fault).split()) or type(fault).__name__
            raise UsageError(
                f"the {mode} split of {name} in {root} cannot be read ({reason}); "
                "place a whole copy there"
            ) from fault
        if (found := len(splits[mode].classes)) != count:
            raise UsageError(
                f"the {mode} split of {name} in {root} has {found} classes instead of {count}; "
                "place a whole copy there"
            )
    names = [c for s in splits.values() for c in s.classes]
    if len(set(names)) != len(names):
        raise UsageError(
            f"two splits of {name} in {root} share a class; place an original copy there"
        )
    return splits


def _numbered(data: Any, mode: str, side: int) -> LabelledImages:
    """A dataset of PIL images whose labels are numbers, with or without gaps."""
    if len(data.images) != len(data.labels):
        raise ValueError(f"{len(data.images)} images came with {len(data.labels)} labels")
    values, labels = np.unique(np.asarray(data.labels), return_inverse=True)
    arrays = (np.asarray(data[i][0]) for i in range(len(data)))
    return _gather(arrays, labels, [f"{mode}/{value}" for value in values], side, len(data))


def _gather(
    arrays: Iterable[np.ndarray],
    labels: Sequence[int] | np.ndarray,
    classes: Sequence[str],
    side: int,
    count: int | None = None,
) -> LabelledImages:
    """Images of (side, side, 3) with values 0 to 255, one by one: together they may be large."""
    count = len(labels) if count is None else count
    images = torch.empty(count, 3, side, side, dtype=torch.uint8)
    filled = 0
    for filled, array in enumerate(arrays, start=1):
        if array.shape != (side, side, 3):
            raise ValueError(f"an image is of shape {array.shape}, not {(side, side, 3)}")
        if filled > count:
            break
        images[filled - 1] = torch.from_numpy(array.astype(np.uint8)).permute(2, 0, 1)
    if filled != count:
        raise ValueError(f"{filled} images came with {count} labels")
    numbers = torch.from_numpy(np.asarray(labels).astype(np.int64))
    if not np.array_equal(np.unique(numbers), np.arange(len(classes))):
        raise ValueError(f"the labels do not match the {len(classes)} classes")
    return LabelledImages(images, numbers, tuple(classes))
