"""The small datasets of scikit-learn in three splits, for hyper-parameters."""

from __future__ import annotations

import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from metalearn.tasks.image_splits import Labelled, Splits, image_splits


def thirds(name: str, seed: int) -> Splits:
    """Return a third each to train, to validate and to test; float64, x (n, features).

    Features, and the targets of diabetes, have mean 0 and deviation 1 over the training split. For
    digits this holds for all pixels together.
    """
    if name == "digits":
        return flat(image_splits("digits", None, seed, test=1 / 3, validation=0.5, train=10**6))
    load = {"diabetes": load_diabetes, "breast_cancer": load_breast_cancer}[name]
    x, y = load(return_X_y=True)
    labels = name == "breast_cancer"
    y = y if labels else y[:, None]
    rest, test = train_test_split(
        range(len(x)), test_size=1 / 3, random_state=seed, stratify=y if labels else None
    )
    train, validation = train_test_split(
        rest, test_size=0.5, random_state=seed, stratify=y[rest] if labels else None
    )
    x = StandardScaler().fit(x[train]).transform(x)
    y = y if labels else StandardScaler().fit(y[train]).transform(y)
    dtype = torch.int64 if labels else torch.float64
    return Splits(
        *(
            Labelled(torch.as_tensor(x[part]), torch.as_tensor(y[part], dtype=dtype))
            for part in (train, validation, test)
        )
    )


def flat(images: Splits) -> Splits:
    """Return images as rows of features, in float64."""
    parts = (images.train, images.validation, images.test)
    return Splits(*(Labelled(part.x.flatten(1).double(), part.y) for part in parts))


def corrupted(labels: Tensor, share: float, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Replace a share of the labels, (n,), by other labels drawn uniformly.

    Returns:
        the labels, and a mask of the replaced ones, (n,) bool.
    """
    g = torch.Generator().manual_seed(seed)
    wrong = torch.zeros(len(labels), dtype=torch.bool)
    wrong[torch.randperm(len(labels), generator=g)[: round(share * len(labels))]] = True
    shift = torch.randint(1, classes, labels.shape, generator=g)
    return torch.where(wrong, (labels + shift) % classes, labels), wrong
