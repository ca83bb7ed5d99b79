"""Data hyper-cleaning with minibatches on both levels, half of the training labels wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import pandas as pd
import torch
from annotated_types import Ge, Gt, Lt
from matplotlib.figure import Figure
from pydantic.dataclasses import dataclass

from metalearn.config.options import STRICT, Count, Distinct, Seed, one_of, one_sentence
from metalearn.errors import UsageError
from metalearn.studies.cleaning import report as cleaning_report
from metalearn.studies.cleaning.data import noisy
from metalearn.studies.cleaning.methods import METHODS, SETTINGS
from metalearn.studies.cleaning.peaks import GROWING, measure_peak
from metalearn.studies.cleaning.training import REFERENCES, learn_weights, train_reference
from metalearn.studies.frame import Cell, Row
from metalearn.studies.frame.table import Table


@one_sentence
@dataclass(frozen=True, config=STRICT)
class CleaningStudy:
    """The learned weights of training examples, beside trainings without them.

    Args:
        settings: names in `SETTINGS`: a dataset and a model each.
        methods: names in `METHODS`, for the settings that are not in `large`.
        large: the settings with few methods, one seed and `large_batch`.
        large_methods: names in `METHODS`, for `large`.
        seeds: the seeds of the splits, the wrong labels, the params and the batches; the first one
            for `large`.
        wrong: the share of the training labels that is wrong.
        inner_steps: the steps of the inner optimiser in a training.
        batch: the examples of a minibatch on each level.
        large_batch: those for `large`.
        points: the points of a training that are measured.
        memory_setting: the name in `SETTINGS` of which the memory is measured.
        memory_methods: names in `METHODS` and `GROWING` of which the memory is measured.
        memory_steps: the inner steps of a hypergradient whose memory is measured.
        memory_limit: the most inner steps of a method of `GROWING` that are run; above, the peak is
            predicted.
    """

    title: ClassVar[str] = "Data hyper-cleaning: learned weights of mislabelled examples"
    growing: ClassVar = (
        *("settings", "methods", "large", "large_methods", "seeds"),
        *("memory_methods", "memory_steps"),
    )

    settings: Distinct[Annotated[str, one_of(SETTINGS)]]
    methods: Distinct[Annotated[str, one_of(METHODS)]]
    large: Sequence[Annotated[str, one_of(SETTINGS)]]
    large_methods: Distinct[Annotated[str, one_of(METHODS)]]
    seeds: Distinct[Seed]
    wrong: Annotated[float, Gt(0), Lt(1)]
    inner_steps: Count
    batch: Annotated[int, Ge(2)]
    large_batch: Annotated[int, Ge(2)]
    points: Count
    memory_setting: Annotated[str, one_of(SETTINGS)]
    memory_methods: Distinct[Annotated[str, one_of((*METHODS, *GROWING))]]
    memory_steps: Distinct[Count]
    memory_limit: Count

    def __post_init__(self) -> None:
        both = sorted(set(self.settings) & set(self.large))
        if both:
            raise UsageError(
                f"settings and large: expected no common name, found {', '.join(both)}. Remove it "
                "from one."
            )

    def cells(self) -> list[Cell]:
        small = [(s, seed, self.methods) for s in self.settings for seed in self.seeds]
        large = [(s, self.seeds[0], self.large_methods) for s in self.large]
        found: list[Cell] = [
            {"part": "learn", "setting": setting, "seed": seed, "method": name}
            for setting, seed, methods in [*small, *large]
            for name in [*REFERENCES, *methods]
        ]
        at = {"part": "memory", "setting": self.memory_setting}
        return found + [
            {**at, "method": name, "steps": steps}
            for name in self.memory_methods
            for steps in sorted(self.memory_steps)
        ]

    def measure(self, cell: Cell, device: torch.device) -> list[Row]:
        at: Any = cell
        setting, name = SETTINGS[at["setting"]], at["method"]
        batch = self.large_batch if at["setting"] in self.large else self.batch
        data = noisy(setting.dataset, self.wrong, at.get("seed", self.seeds[0]), device)
        if at["part"] == "memory":
            steps, limit = at["steps"], self.memory_limit
            return [measure_peak(setting, data, name, steps, batch, limit, device)]
        train = train_reference if name in REFERENCES else learn_weights
        rows = train(setting, data, name, self.inner_steps, batch, self.points, at["seed"])
        return [{"point": i, **row} for i, row in enumerate(rows)]

    def tables(self, rows: pd.DataFrame) -> dict[str, Table]:
        return cleaning_report.tables(rows)

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        return cleaning_report.figures(rows)

    def facts(self, rows: pd.DataFrame) -> dict[str, Any]:
        return cleaning_report.facts(rows)
