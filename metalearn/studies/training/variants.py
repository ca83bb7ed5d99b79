"""The trainings that the study compares: what each learns, and by which method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from metalearn.bilevel import SOBA, Method, TruncatedUnrolling
from metalearn.problems.scheduled_training import GROUPS
from metalearn.studies.cleaning import models


@dataclass(frozen=True)
class Setting:
    """A dataset with its model and its hyper-parameters at the start.

    Args:
        title: for tables.
        dataset: a name of `cleaning.data.DATASETS`.
        model: makes the model from the number of classes.
        lr: the rate of SGD with momentum 0.9, at the start of a cosine schedule.
        decay: the weight decay of every layer at the start.
        strength: the strength of every move of the augmentation at the start.
    """

    title: str
    dataset: str
    model: Callable[[int], nn.Module]
    lr: float = 0.05
    decay: float = 1e-3
    strength: float = 0.05


SETTINGS: dict[str, Setting] = {
    "digits": Setting("digits, one hidden layer", "digits", models.mlp, lr=0.1),
    "glyphs": Setting("glyphs, three residual blocks", "glyphs", models.resnet),
    "omniglot": Setting("Omniglot, 964 classes, three residual blocks", "omniglot", models.resnet),
    "glyphs_resnet18": Setting("glyphs, ResNet-18", "glyphs", models.resnet18),
    "omniglot_resnet18": Setting("Omniglot, 964 classes, ResNet-18", "omniglot", models.resnet18),
}


@dataclass(frozen=True)
class Variant:
    """A training.

    Args:
        title: for tables: what it learns.
        learned: names in `GROUPS`.
        make: makes the method from the window of unrolled steps.
    """

    title: str
    learned: tuple[str, ...]
    make: Callable[[int], Method]


def _unrolled(window: int) -> Method:
    return TruncatedUnrolling(window, window)


def _soba(window: int) -> Method:
    return SOBA(0.01, 1.0)


VARIANTS: dict[str, Variant] = {
    "fixed": Variant("nothing", (), _unrolled),
    "rates": Variant("rates", ("rates",), _unrolled),
    "decays": Variant("decays", ("decays",), _unrolled),
    "strengths": Variant("augmentation", ("strengths",), _unrolled),
    "all": Variant("rates, decays and augmentation", GROUPS, _unrolled),
    "soba": Variant("decays and augmentation, SOBA", ("decays", "strengths"), _soba),
}
