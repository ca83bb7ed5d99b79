"""Architecture search by gradients: which operation each edge of a cell should be."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, ClassVar

import pandas as pd
import torch
from matplotlib.figure import Figure
from pydantic.dataclasses import dataclass

from metalearn.config.options import (
    STRICT,
    Count,
    Natural,
    NonNegative,
    Positive,
    Seed,
    Some,
    one_sentence,
)
from metalearn.errors import UsageError, check_known
from metalearn.inner import Adam, GradientDescent
from metalearn.linear_solve import CG, Neumann
from metalearn.metagrad import FirstOrder, Implicit, MetaGradient, Unrolled
from metalearn.nn.mixed_cell import OPERATIONS, Architecture, MixedCell, edges
from metalearn.studies.frame import Cell, Row
from metalearn.studies.frame.metagrads import check_metagrads, named_metagrad
from metalearn.studies.frame.table import Table
from metalearn.studies.nas import report as nas_report
from metalearn.studies.nas.measure import search, trained
from metalearn.tasks.image_splits import CLASSES, Splits, image_splits

MOMENTUM = 0.9


@one_sentence
@dataclass(frozen=True, config=STRICT)
class NASStudy:
    """The comparison of architecture search by gradients with random architectures.

    Args:
        seeds: the seeds of the splits, the weights and the random architectures.
        dataset, source, test, validation, train: arguments of `image_splits`.
        nodes: nodes of the cell after its input.
        channels: channels of every node.
        decay: weight decay.
        methods: meta-gradients, by their names in `_own`.
        metagrads: further meta-gradients (`named_metagrad`), with the study's inner descent.
        warmup: steps of Adam on the weights before the search.
        weight_steps, weight_lr: options of the inner descent of a meta-step.
        solver_iters, damping: options of an implicit gradient's linear solve.
        steps, lr: options of Adam on the mixtures.
        random: random architectures for each seed.
        retrain_steps, retrain_lr: options of Adam on the weights of every compared network.
        retrain_starts: trainings of each architecture.
    """

    title: ClassVar[str] = "Architecture search by gradients, beside architectures chosen at random"
    growing: ClassVar = ("seeds", "methods", "metagrads")

    seeds: Some[Seed]
    dataset: str
    source: str | None
    test: float
    validation: float
    train: int
    nodes: Count
    channels: Count
    decay: Positive
    methods: Some[str]
    warmup: Natural
    weight_steps: Count
    weight_lr: Positive
    solver_iters: Count
    damping: NonNegative
    steps: Count
    lr: Positive
    random: Count
    retrain_steps: Count
    retrain_lr: Positive
    retrain_starts: Count
    metagrads: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_known("methods", self.methods, self._own())
        check_metagrads(self.metagrads, self._own())
        if self.random > (most := len(OPERATIONS) ** len(edges(self.nodes))):
            raise UsageError(
                f"random={self.random}: expected at most the {most} architectures of a cell of "
                f"nodes={self.nodes}. Give a smaller number."
            )
        self._data(self.seeds[0])  # raises for an unfit dataset, before anything is measured

    def cells(self) -> list[Cell]:
        found: list[Cell] = []
        for seed in self.seeds:
            found += [
                {"source": "random", "seed": seed, "draw": draw} for draw in range(self.random)
            ]
            found += [{"source": name, "seed": seed} for name in self._named()]
        return found

    def measure(self, cell: Cell, device: torch.device) -> list[Row]:
        seed: Any = cell["seed"]
        data = self._data(seed).to(device)
        source = str(cell["source"])
        every_edge = len(edges(self.nodes))
        if source == "random":
            return [self._retrained(self.drawn(seed)[int(cell["draw"] or 0)], seed, data)]
        if source == "largest":
            return [self._retrained(("conv_5x5",) * every_edge, seed, data)]
        mixed = self._made_of([tuple(OPERATIONS)] * every_edge)
        if source == "average":
            return [self._trained(mixed, seed, data)]
        torch.manual_seed(seed)
        found = search(
            mixed,
            self._meta_gradient(source),
            data,
            self.decay,
            Adam(self.warmup, self.retrain_lr),
            self.steps,
            self.lr,
        )
        rows: list[Row] = [
            {**self._retrained(mixed.chosen(found.alphas), seed, data), **found.figures}
        ]
        for edge, operation, share in mixed.mixtures(found.alphas):
            rows.append({"what": "mixture", "edge": edge, "operation": operation, "share": share})
        return rows + found.curve

    def drawn(self, seed: int) -> list[Architecture]:
        """Return the seed's random architectures, no two of them equal."""
        draws, names = random.Random(seed), list(OPERATIONS)
        found: dict[Architecture, None] = {}
        while len(found) < self.random:
            found[tuple(draws.choice(names) for _ in edges(self.nodes))] = None
        return list(found)

    def _data(self, seed: int) -> Splits:
        return image_splits(self.dataset, self.source, seed, self.test, self.validation, self.train)

    def _named(self) -> tuple[str, ...]:
        return ("average", "largest", *self.methods, *self.metagrads)

    def _meta_gradient(self, name: str) -> MetaGradient:
        own = self._own()
        return own[name] if name in own else named_metagrad(name, self._descent)

    @property
    def _descent(self) -> GradientDescent:
        return GradientDescent(self.weight_steps, self.weight_lr, MOMENTUM)

    def _own(self) -> dict[str, MetaGradient]:
        descent, cg = self._descent, CG(self.solver_iters)
        return {
            "first_order": FirstOrder(descent),
            "unrolled_one": Unrolled(descent, "batched", truncate=1),
            "unrolled": Unrolled(descent, "batched"),
            "gauss_newton": Implicit(descent, cg, self.damping, "gauss_newton"),
            "cg": Implicit(descent, cg, self.damping),
            "neumann": Implicit(descent, Neumann(self.solver_iters), self.damping),
        }

    def _made_of(self, choices: Sequence[Sequence[str]]) -> MixedCell:
        return MixedCell(choices, self.nodes, self.channels, CLASSES)

    def _retrained(self, architecture: Architecture, seed: int, data: Splits) -> dict[str, Any]:
        row = self._trained(self._made_of([(op,) for op in architecture]), seed, data)
        return {**row, "architecture": ", ".join(architecture)}

    def _trained(self, cell: MixedCell, seed: int, data: Splits) -> dict[str, Any]:
        torch.manual_seed(seed)  # an architecture has the same start for every method
        inner = Adam(self.retrain_steps, self.retrain_lr)
        row = trained(cell, inner, data, self.decay, self.retrain_starts)
        return {"what": "trained", **row}

    def tables(self, rows: pd.DataFrame) -> dict[str, Table]:
        return nas_report.tables(rows)

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        return nas_report.figures(rows)

    def facts(self, rows: pd.DataFrame) -> dict[str, Any]:
        return nas_report.facts(rows)
