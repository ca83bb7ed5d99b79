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
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            raise UsageError(
                f"images are {self.images.dtype} of shape {tuple(self.images.shape)}; "
                "expected uint8 of shape (N, channels, height, width)"
            )
        if self.labels.shape != self.images.shape[:1]:
            raise UsageError(
                f"{len(self.images)} images came with labels of shape {tuple(self.labels.shape)}; "
                "expected one label an image"
            )

    def with_rotations(self) -> LabelledImages:
        """Return the images, and each class rotated by 90, 180 and 270 degrees as a new class."""
        turned = [torch.rot90(self.images, k, dims=(2, 3)) for k in range(4)]
        labels = [self.labels + k * len(self.classes) for k in range(4)]
        names = (self.classes, *(tuple(f"{c}@{90 * k}" for c in self.classes) for k in (1, 2, 3)))
        return LabelledImages(torch.cat(turned), torch.cat(labels), sum(names, ()))
