"""The data of hyper-cleaning: training examples, half of them mislabelled, and clean ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.studies.hpo.data import corrupted
from metalearn.tasks.glyphs import glyphs
from metalearn.tasks.image_splits import Labelled, image_splits
from metalearn.tasks.omniglot import omniglot

DATASETS = ("digits", "glyphs", "omniglot")
BACKGROUND = 964
"""The characters of images_background in Omniglot's release."""
EVALUATION = (
    *("Angelic", "Atemayar_Qelisayer", "Atlantean", "Aurek-Besh", "Avesta", "Ge_ez"),
    *("Glagolitic", "Gurmukhi", "Kannada", "Keble", "Malayalam", "Manipuri", "Mongolian"),
    *("Old_Church_Slavonic_(Cyrillic)", "Oriya", "Sylheti", "Syriac_(Serto)", "Tengwar"),
    *("Tibetan", "ULOG"),
)
"""The alphabets of images_evaluation in Omniglot's release."""


@dataclass(frozen=True)
class Noisy:
    """A classification problem with wrong training labels.

    Args:
        train: the training examples, with the labels as they are given.
        clean: (n,) bool, the training examples whose labels are right.
        validation, test: clean examples.
        classes: their number.
    """

    train: Labelled
    clean: Tensor
    validation: Labelled
    test: Labelled
    classes: int


def noisy(dataset: str, share: float, seed: int, device: torch.device) -> Noisy:
    """Return a dataset of which a share of the training labels is wrong.

    digits: 900 training, 450 validation and 447 test images. Omniglot and glyphs: of the drawings
    of each character 12 train, 4 validate and 4 test. Omniglot has the 964 characters of
    images_background, the glyphs those of their training split.

    Raises:
        UsageError: the dataset cannot be read.
    """
    if dataset == "digits":
        splits = image_splits("digits", None, seed, 447 / 1797, 450 / 1350, 900)
        train, validation, test, classes = splits.train, splits.validation, splits.test, 10
    else:
        images, labels = _characters(dataset)
        classes = int(labels.max()) + 1
        g = torch.Generator().manual_seed(seed)
        each = len(labels) // classes
        order = torch.stack([c * each + torch.randperm(each, generator=g) for c in range(classes)])
        parts = [part.flatten() for part in order.split([each - 8, 4, 4], dim=1)]
        # A model may normalise by the statistics of a batch, so that the order is random.
        parts = [part[torch.randperm(len(part), generator=g)] for part in parts]
        train, validation, test = (Labelled(images[part], labels[part]) for part in parts)
    y, wrong = corrupted(train.y, share, classes, seed)
    return Noisy(
        Labelled(train.x, y).to(device),
        ~wrong,
        validation.to(device),
        test.to(device),
        classes,
    )


@lru_cache(maxsize=1)
def _characters(dataset: str) -> tuple[Tensor, Tensor]:
    """Return the images, of mean 0 and deviation 1, and labels, class after class."""
    parts = [glyphs()["train"]] if dataset == "glyphs" else list(omniglot().values())
    images, labels = [], []
    for part in parts:
        for c, name in enumerate(part.classes):
            if dataset == "glyphs" or name.split("/")[0] not in EVALUATION:
                images.append(part.images[part.labels == c])
                labels.append(torch.full((len(images[-1]),), len(images) - 1))
    if dataset == "omniglot" and len(images) != BACKGROUND:
        raise UsageError(
            f"dataset=omniglot: found {len(images)} background characters, expected {BACKGROUND}. "
            "Fetch the release again."
        )
    x = torch.cat(images).float()
    return (x - x.mean()) / x.std(), torch.cat(labels)
