"""The hyper-parameters of a whole training: rates and decays of layers, and augmentation."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import pandas as pd
import torch
from annotated_types import Ge
from matplotlib.figure import Figure
from pydantic.dataclasses import dataclass

from metalearn.config.options import STRICT, Count, Distinct, Positive, Seed, one_of, one_sentence
from metalearn.errors import UsageError
from metalearn.studies.cleaning.data import noisy
from metalearn.studies.frame import Cell, Row
from metalearn.studies.frame.table import Table
from metalearn.studies.training import report as training_report
from metalearn.studies.training.measure import descent_of, learned_values, train
from metalearn.studies.training.variants import SETTINGS, VARIANTS


@one_sentence
@dataclass(frozen=True, config=STRICT)
class TrainingStudy:
    """The comparison of trainings that learn hyper-parameters with one that keeps them fixed.

    Each variant is trained twice: while its hyper-parameters are learned, and then from the start
    with the learned ones, which stay fixed.

    Args:
        settings: names in `SETTINGS`: a dataset and a model each.
        variants: names in `VARIANTS`; "fixed" is trained always.
        seeds: the seeds of the splits, the params and the batches.
        inner_steps: the steps of SGD in a training.
        window: the inner steps of an outer step, and those that unrolling goes through.
        batch: the examples of a minibatch on each level.
        outer_lr: the rate of Adam on the logarithms of the hyper-parameters.
        points: the points of a training that are measured.
    """

    title: ClassVar[str] = "Hyper-parameters learned during one whole training"
    growing: ClassVar = ("settings", "variants", "seeds")

    settings: Distinct[Annotated[str, one_of(SETTINGS)]]
    variants: Distinct[Annotated[str, one_of(VARIANTS)]]
    seeds: Distinct[Seed]
    inner_steps: Count
    window: Count
    batch: Annotated[int, Ge(2)]
    outer_lr: Positive
    points: Count

    def __post_init__(self) -> None:
        if self.inner_steps % self.window:
            raise UsageError(
                f"inner_steps={self.inner_steps}: expected a multiple of window={self.window}. "
                "Give another."
            )

    def cells(self) -> list[Cell]:
        variants = dict.fromkeys(("fixed", *self.variants))
        return [
            {"setting": setting, "seed": seed, "variant": variant}
            for setting in self.settings
            for seed in self.seeds
            for variant in variants
        ]

    def measure(self, cell: Cell, device: torch.device) -> list[Row]:
        at: Any = cell
        setting, variant = SETTINGS[at["setting"]], VARIANTS[at["variant"]]
        data = noisy(setting.dataset, 0.0, at["seed"], device)
        options = (self.inner_steps, self.window, self.batch, self.outer_lr, at["seed"])
        first = descent_of(setting, data, variant, *options)
        rows = train(first, data, self.inner_steps, self.points)
        found: list[Row] = [{"stage": "learned", "point": i, **row} for i, row in enumerate(rows)]
        if variant.learned and not rows[-1]["diverged"]:
            again = descent_of(setting, data, variant, *options, learned_values(first))
            rows = train(again, data, self.inner_steps, self.points)
            found += [{"stage": "retrained", "point": i, **row} for i, row in enumerate(rows)]
        return found

    def tables(self, rows: pd.DataFrame) -> dict[str, Table]:
        return training_report.tables(rows)

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        return training_report.figures(rows)

    def facts(self, rows: pd.DataFrame) -> dict[str, Any]:
        return training_report.facts(rows)
