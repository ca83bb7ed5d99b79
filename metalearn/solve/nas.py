"""Architecture search by gradients: which operation each edge of a cell should be."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn

from metalearn.config import nearest
from metalearn.errors import UsageError
from metalearn.inner import Adam, GradientDescent
from metalearn.linear_solve import CG, Neumann
from metalearn.metagrad import FirstOrder, Implicit, MetaGradient, Unrolled
from metalearn.solve import nas_report
from metalearn.solve.image_splits import CLASSES, Splits, image_splits
from metalearn.solve.nas_measure import retrained, search
from metalearn.solve.nas_model import OPERATIONS, Architecture, CellNetwork, Mixture, edges
from metalearn.study import Cell, Row

MOMENTUM = 0.9


@dataclass(frozen=True)
class NASStudy:
    """
    Args:
        seeds: of the splits, of weights, and of the architectures chosen at random.
        dataset, source, test, validation, train: `image_splits`'s.
        nodes: of the cell, after its input.
        channels: of the networks trained from scratch; `search_channels`: of the search's.
        decay: of the weights.
        methods: meta-gradients, by their names in `_meta_gradients`.
        warmup: steps of Adam on the weights before the search.
        weight_steps, weight_lr: of the inner descent of a meta-step.
        solver_iters, damping: of an implicit gradient's linear solve.
        steps, lr: of Adam on the mixtures.
        random: architectures chosen at random for each seed.
        retrain_steps, retrain_lr: of Adam on the weights of every network that is compared.
        retrain_starts: networks trained of each architecture.
    """

    title: ClassVar[str] = "Architecture search by gradients, beside architectures chosen at random"

    seeds: Sequence[int]
    dataset: str
    source: str | None
    test: float
    validation: float
    train: int
    nodes: int
    channels: int
    search_channels: int
    decay: float
    methods: Sequence[str]
    warmup: int
    weight_steps: int
    weight_lr: float
    solver_iters: int
    damping: float
    steps: int
    lr: float
    random: int
    retrain_steps: int
    retrain_lr: float
    retrain_starts: int

    def __post_init__(self) -> None:
        counts = ("nodes", "channels", "search_channels", "weight_steps", "solver_iters", "steps")
        for name in (*counts, "random", "retrain_steps", "retrain_starts"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}; expected at least 1")
        if self.warmup < 0:
            raise UsageError(f"warmup={self.warmup}; expected at least 0")
        for name in ("weight_lr", "lr", "retrain_lr"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name}={getattr(self, name)}; expected a number above 0")
        for name in ("decay", "damping"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{name}={getattr(self, name)}; expected a number of at least 0")
        for name in ("seeds", "methods"):
            if not getattr(self, name):
                raise UsageError(f"{name}=[]; expected at least one")
        known = self._meta_gradients()
        for name in self.methods:
            if name not in known:
                raise UsageError(f"methods has {name!r}{nearest(name, known)}")
        if self.random > (most := len(OPERATIONS) ** len(edges(self.nodes))):
            raise UsageError(f"random={self.random}; a cell of nodes={self.nodes} has {most} forms")
        self._data(self.seeds[0])  # an unfit dataset is refused before anything is measured

    def cells(self) -> list[Cell]:
        found: list[Cell] = []
        for seed in self.seeds:
            found += [
                {"source": "random", "seed": seed, "draw": draw} for draw in range(self.random)
            ]
            found += [{"source": name, "seed": seed} for name in ("average", *self.methods)]
        return found

    def measure(self, cell: Cell, device: torch.device) -> list[Row]:
        seed: Any = cell["seed"]
        data = self._data(seed).to(device)
        torch.manual_seed(seed)
        source = str(cell["source"])
        if source == "average":
            return [{"what": "retrained", **self._retrained(self._mixture(self.channels), data)}]
        if source == "random":
            drawn = self.drawn(seed)[int(cell["draw"] or 0)]
            return [self._row(drawn, data)]
        found = search(
            self._mixture(self.search_channels)(),
            self._meta_gradients()[source],
            data,
            self.decay,
            Adam(self.warmup, self.retrain_lr),
            self.steps,
            self.lr,
        )
        rows: list[Row] = [{**self._row(found.architecture, data), **found.figures}]
        for name, alpha in found.alphas.items():
            edge = name.removesuffix(".alpha").removeprefix("edge_").replace("_", " to ")
            weights = zip(OPERATIONS, alpha.softmax(0).tolist(), strict=True)
            rows += [
                {"what": "mixture", "edge": edge, "operation": operation, "weight": weight}
                for operation, weight in weights
            ]
        return rows + found.curve

    def drawn(self, seed: int) -> list[Architecture]:
        """The seed's random architectures, no two of them equal."""
        draws, names = random.Random(seed), list(OPERATIONS)
        found: dict[Architecture, None] = {}
        while len(found) < self.random:
            found[tuple(draws.choice(names) for _ in edges(self.nodes))] = None
        return list(found)

    def _data(self, seed: int) -> Splits:
        return image_splits(self.dataset, self.source, seed, self.test, self.validation, self.train)

    def _meta_gradients(self) -> dict[str, MetaGradient]:
        descent = GradientDescent(self.weight_steps, self.weight_lr, MOMENTUM)
        cg = CG(self.solver_iters)
        # The rate at which the descent moves, momentum counted: Lorraine et al. 2020 take it so.
        neumann = Neumann(self.solver_iters, step_size=self.weight_lr / (1 - MOMENTUM))
        return {
            "first_order": FirstOrder(descent),
            "unrolled_one": Unrolled(descent, "batched", truncate=1),
            "unrolled": Unrolled(descent, "batched"),
            "gauss_newton": Implicit(descent, cg, self.damping, "gauss_newton"),
            "cg": Implicit(descent, cg, self.damping),
            "neumann": Implicit(descent, neumann, self.damping),
        }

    def _mixture(self, channels: int) -> Callable[[], nn.Module]:
        return lambda: CellNetwork(lambda edge: Mixture(channels), self.nodes, channels, CLASSES)

    def _retrained(self, model: Callable[[], nn.Module], data: Splits) -> dict[str, Any]:
        inner = Adam(self.retrain_steps, self.retrain_lr)
        return retrained(model, inner, data, self.decay, self.retrain_starts)

    def _row(self, architecture: Architecture, data: Splits) -> dict[str, Any]:
        def model() -> nn.Module:
            return CellNetwork(
                lambda edge: OPERATIONS[architecture[edge]](self.channels),
                self.nodes,
                self.channels,
                CLASSES,
            )

        torch.manual_seed(0)  # the same architecture begins alike, whatever found it
        shown = ", ".join(architecture)
        return {"what": "retrained", "architecture": shown, **self._retrained(model, data)}

    def tables(self, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
        return nas_report.tables(rows)

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        return nas_report.figures(rows)

    def findings(self, rows: pd.DataFrame) -> list[str]:
        return nas_report.findings(rows)
