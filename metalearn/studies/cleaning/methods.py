"""The methods of the cleaning study, and the settings of its trainings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from metalearn.bilevel import BOME, F2SA, SABA, SOBA, AmIGO, Method, StocBiO, TruncatedUnrolling
from metalearn.studies.cleaning import models

SYSTEM = 10
"""The steps on the linear system, and the window of truncated unrolling."""


@dataclass(frozen=True)
class Setting:
    """A dataset, its model, and the rates of every training on it.

    Args:
        title: for tables.
        dataset: a name of `cleaning.data.DATASETS`.
        model: makes the model from the number of classes.
        lr, momentum, decay: of the inner optimiser SGD; the decay is a part of the inner loss.
        system_lr, damping: of the linear systems.
        outer_lr: of Adagrad on the weights' logits.
        penalty: of F2SA.
    """

    title: str
    dataset: str
    model: Callable[[int], nn.Module]
    lr: float
    momentum: float
    decay: float
    system_lr: float
    damping: float
    outer_lr: float
    penalty: float = 1.0


SETTINGS: dict[str, Setting] = {
    "digits_linear": Setting(
        title="digits, softmax regression",
        dataset="digits",
        model=models.linear,
        lr=0.1,
        momentum=0.0,
        decay=1e-2,
        system_lr=0.05,
        damping=0.0,
        outer_lr=0.5,
    ),
    "digits_mlp": Setting(
        title="digits, one hidden layer",
        dataset="digits",
        model=models.mlp,
        lr=0.1,
        momentum=0.0,
        decay=1e-3,
        system_lr=0.05,
        damping=0.5,
        outer_lr=0.5,
    ),
    "omniglot_resnet": Setting(
        title="Omniglot, 964 classes, three residual blocks",
        dataset="omniglot",
        model=models.resnet,
        lr=0.1,
        momentum=0.9,
        decay=0.0,
        system_lr=0.005,
        damping=2.0,
        outer_lr=1.0,
    ),
}
SETTINGS["glyphs_resnet"] = replace(
    SETTINGS["omniglot_resnet"], title="glyphs, three residual blocks", dataset="glyphs"
)


@dataclass(frozen=True)
class Kind:
    """A method in a training.

    Args:
        make: makes the method from a setting and its number of inner steps in an outer step.
        steps: this number in the learning of weights.
        moves: the steps of the params in an outer step of it.
    """

    make: Callable[[Setting, int], Method]
    steps: int
    moves: int


METHODS: dict[str, Kind] = {
    "SOBA": Kind(lambda s, steps: SOBA(s.system_lr, s.damping), 1, 1),
    "SABA": Kind(lambda s, steps: SABA(s.system_lr, s.damping), 1, 1),
    "AmIGO": Kind(lambda s, steps: AmIGO(steps, SYSTEM, s.system_lr, s.damping), 5, 5),
    "stocBiO": Kind(lambda s, steps: StocBiO(steps, SYSTEM, s.system_lr, s.damping), 5, 5),
    "truncated unrolling": Kind(lambda s, n: TruncatedUnrolling(n, min(n, SYSTEM)), 1, 1),
    "F2SA": Kind(lambda s, steps: F2SA(steps, s.penalty), 1, 1),
    "BOME": Kind(lambda s, steps: BOME(steps, s.lr), 5, 1),
}
SINGLE_LOOP = ("SOBA", "SABA")
"""The methods whose outer step has one inner step always."""
