"""Labelled images in memory: the form of every image dataset."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.errors import UsageError


@dataclass(frozen=True)
class LabelledImages:
    """One complete split of a dataset, as bytes.

    Args:
        images: (N, channels, height, width) uint8; ink or light is high.
        labels: (N,) int64, the index of each image's class in `classes`.
        classes: a name for each class, unique over all splits of a dataset.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        images, labels, classes = self.images, self.labels, self.classes
        if not _is(images, torch.uint8) or images.dim() != 4:
            raise UsageError(
                f"images={_described(images)}: expected a uint8 tensor of shape (N, channels, "
                "height, width). Scale the pixels to 0 .. 255 and round them"
            )
        if not _is(labels, torch.int64) or labels.shape != images.shape[:1]:
            raise UsageError(
                f"labels={_described(labels)}: expected an int64 tensor of shape "
                f"({len(images)},), one label an image. Give labels.long()"
            )
        if len(set(classes)) != len(classes):
            twice = next(name for name in classes if classes.count(name) > 1)
            raise UsageError(f"classes: {twice!r} is there twice; give each class its own name")
        outside = labels[(labels < 0) | (labels >= len(classes))]
        if len(outside):
            raise UsageError(
                f"labels: {int(outside[0])} is the index of none of the {len(classes)} classes; "
                f"expected 0 to {len(classes) - 1}"
            )

    def with_rotations(self) -> LabelledImages:
        """Return the images, and each class rotated by 90, 180 and 270 degrees as a new class."""
        turned = [torch.rot90(self.images, k, dims=(2, 3)) for k in range(4)]
        labels = [self.labels + k * len(self.classes) for k in range(4)]
        names = (self.classes, *(tuple(f"{c}@{90 * k}" for c in self.classes) for k in (1, 2, 3)))
        return LabelledImages(torch.cat(turned), torch.cat(labels), sum(names, ()))


def _is(value: object, dtype: torch.dtype) -> bool:
    return isinstance(value, Tensor) and value.dtype == dtype


def _described(value: object) -> str:
    """Describe a tensor or array by type and shape, and any other value by its class."""
    if not hasattr(value, "dtype"):
        return type(value).__name__
    return f"{value.dtype} of shape {tuple(getattr(value, 'shape', ()))}"
