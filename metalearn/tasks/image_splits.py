"""Images of ten classes in three splits, for the studies that learn from few images."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from metalearn.errors import UsageError, nearest
from metalearn.system.files import with_home
from metalearn.tasks.omniglot import omniglot

DATASETS = ("digits", "mnist", "omniglot")
CLASSES = 10
_MNIST = ("train", "t10k")


@dataclass(frozen=True)
class Labelled:
    """A set of n labelled images: x is (n, 1, height, width), y is (n,)."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device) -> Labelled:
        return Labelled(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Splits:
    """The three splits of a dataset; every class is in each split.

    Pixels have mean 0 and standard deviation 1 over the training split.
    """

    train: Labelled
    validation: Labelled
    test: Labelled

    def to(self, device: torch.device) -> Splits:
        return Splits(self.train.to(device), self.validation.to(device), self.test.to(device))


def image_splits(
    dataset: str, source: str | None, seed: int, test: float, validation: float, train: int
) -> Splits:
    """Return stratified splits of a dataset, drawn by `seed`.

    Args:
        dataset: "digits", scikit-learn's 1,797 images of 8x8 pixels; "mnist"; or "omniglot", ten
            characters of one alphabet with 20 drawings each.
        source: the folder of MNIST's four unpacked idx files, or of Omniglot's archives. None:
            `$METALEARN_DATA/mnist`, or the default source of `tasks.omniglot`. The digits have no
            source.
        seed: of all random choices.
        test: the fraction of the images for the test split; MNIST has its own test split.
        validation: the fraction of the remaining images for the validation split.
        train: the maximum number of training images.

    Raises:
        UsageError: the dataset is unknown, a folder lacks its files, or a split would lack a class.
    """
    if not (0 < test < 1 and 0 < validation < 1 and train >= CLASSES):
        raise UsageError(
            f"test={test}, validation={validation}, train={train}; expected shares between 0 and 1,"
            f" and at least {CLASSES} images"
        )
    pool, own_test = _images(dataset, source)
    try:
        if own_test is None:
            pool, own_test = _parted(pool, test, seed)
        pool, held_out = _parted(pool, validation, seed)
        if train < len(pool):
            pool, _ = _parted(pool, len(pool) - train, seed)
    except ValueError as error:
        raise UsageError(
            f"{dataset} cannot be split by test={test}, validation={validation}, train={train}: "
            f"{error}"
        ) from error
    mean, deviation = pool.x.mean(), pool.x.std()
    parts = (pool, held_out, own_test)
    return Splits(*(Labelled((part.x - mean) / deviation, part.y) for part in parts))


def _parted(data: Labelled, second: float, seed: int) -> tuple[Labelled, Labelled]:
    """Split images in two; `second` is the fraction or the number of images of the second part.

    Raises:
        ValueError: a part would have too few images.
    """
    pair = train_test_split(range(len(data)), test_size=second, random_state=seed, stratify=data.y)
    first, other = (Labelled(data.x[chosen], data.y[chosen]) for chosen in pair)
    return first, other


@lru_cache(maxsize=1)
def _images(dataset: str, source: str | None) -> tuple[Labelled, Labelled | None]:
    """Return all images, and the test set of a dataset that has one."""
    if dataset == "mnist":
        folder = _mnist_folder(source)
        train, test = (_idx(folder, part) for part in _MNIST)
        return train, test
    if dataset == "omniglot":
        data = omniglot(source)["train"]
        # The class names are sorted by alphabet.
        chosen = data.labels < CLASSES
        return Labelled(data.images[chosen].float() / 255, data.labels[chosen]), None
    if dataset != "digits":
        raise UsageError(f"dataset={dataset} is unknown{nearest(dataset, DATASETS)}")
    if source is not None:
        raise UsageError(f"source={source}; digits come with scikit-learn, leave source out")
    pixels, labels = load_digits(return_X_y=True)
    x = torch.as_tensor(pixels / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    return Labelled(x, torch.as_tensor(labels, dtype=torch.int64)), None


def _mnist_folder(source: str | None) -> Path:
    data = os.environ.get("METALEARN_DATA")
    if source is None and not data:
        raise UsageError("dataset=mnist needs source=FOLDER, where its four idx files lie")
    folder = with_home(source) if source else with_home(data or "") / "mnist"
    below = folder / "MNIST" / "raw"  # where torchvision stores them
    return below if below.is_dir() else folder


def _idx(folder: Path, part: str) -> Labelled:
    """Read one part of MNIST. Idx files hold only numbers, and reading them executes no code."""
    from torchvision.datasets.mnist import read_image_file, read_label_file  # slow to import

    files = [folder / f"{part}-{what}-ubyte" for what in ("images-idx3", "labels-idx1")]
    for file in files:
        if not file.is_file():
            raise UsageError(f"{folder} has no {file.name}; give MNIST's four idx files, unpacked")
    try:
        images, labels = read_image_file(str(files[0])), read_label_file(str(files[1]))
    except Exception as fault:  # what damaged files lead to shares no class
        raise UsageError(
            f"{folder} holds idx files of {part} that cannot be read ({fault}); fetch MNIST again"
        ) from fault
    if len(images) != len(labels) or set(labels.tolist()) != set(range(CLASSES)):
        raise UsageError(
            f"{folder} holds {len(images)} images and {len(labels)} labels of {part}; expected as "
            f"many, of {CLASSES} classes"
        )
    return Labelled(images[:, None].float() / 255, labels)
