"""Hyper-parameters by implicit gradients, beside unrolled ones and grid search."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import torch
from matplotlib.figure import Figure

from metalearn.errors import UsageError
from metalearn.inner import LBFGS, GradientDescent, NewtonCG
from metalearn.linear_solve import CG, GMRES, BiCGStab, Dense, Neumann
from metalearn.metagrad import Implicit, MetaGradient, Unrolled
from metalearn.problem import Meta, begun_at
from metalearn.solve import hpo_report
from metalearn.solve.hpo_data import Split, cross_validation
from metalearn.solve.hpo_measure import (
    curvature,
    exact_hypergradient,
    grid_search,
    judged,
    linear,
    path,
    peak_of_one,
    penalties,
    relative_error,
    ridge_hypergradient,
    slope_error,
    solved,
)
from metalearn.solve.hpo_networks import NETWORKS, network_method, search_network
from metalearn.solve.hpo_problems import WeightDecay
from metalearn.solve.hpo_search import Method, Search, quasi_newton
from metalearn.study import Cell, Row

PARTS = ("exact", "penalties", *NETWORKS)
METHODS = ("cg", "neumann", "unrolled")
PENALTIES = {
    "diabetes, one penalty": ("diabetes", False),
    "diabetes": ("diabetes", True),
    "breast cancer": ("breast_cancer", True),
    "digits": ("digits", True),
}
"""A search for penalties by its name: the data, and whether each feature has its own."""


@dataclass(frozen=True)
class HPOStudy:
    """
    Args:
        parts: of the study, some of `PARTS`.
        splits, digits_splits: seeds of the splits into folds and test set.
        folds, grid, bounds: of cross-validation and of the grid search.
        start, spread: of the searches for penalties (`WeightDecay`).
        hypergradients, iterations, unrolled_steps: of a search for penalties.
        tols: inner gradient norms, the schedule's first and last.
        seeds, hidden: of networks.
        network_hypergradients, network_iterations, inner_steps: of a network's search.
    """

    title: ClassVar[str] = "Hyper-parameters by implicit gradients, unrolling and grid search"

    parts: Sequence[str]
    splits: Sequence[int]
    digits_splits: Sequence[int]
    folds: int
    grid: int
    bounds: Sequence[float]
    start: float
    spread: float
    hypergradients: int
    iterations: int
    unrolled_steps: int
    tols: Sequence[float]
    seeds: Sequence[int]
    hidden: int
    network_hypergradients: int
    network_iterations: int
    inner_steps: int

    def __post_init__(self) -> None:
        if not self.parts or not set(self.parts) <= set(PARTS):
            raise UsageError(f"parts={list(self.parts)}; expected some of {', '.join(PARTS)}")
        for name in ("grid", "hypergradients", "iterations", "unrolled_steps", "hidden"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}; expected at least 1")
        for name in ("network_hypergradients", "network_iterations", "inner_steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}; expected at least 1")
        if not 2 <= self.folds <= 50:
            raise UsageError(f"folds={self.folds}; expected from 2 to 50")
        for name in ("start", "spread"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name}={getattr(self, name)}; expected a number above 0")
        for name in ("bounds", "tols"):
            pair = getattr(self, name)
            if len(pair) != 2 or not all(0 < x < math.inf for x in pair):
                raise UsageError(f"{name}={list(pair)}; expected two numbers above 0")
        if not self.bounds[0] < self.bounds[1] or self.tols[0] < self.tols[1]:
            raise UsageError(
                f"bounds={list(self.bounds)}, tols={list(self.tols)}; expected bounds to rise and "
                "tols to fall"
            )
        if not self.splits or not self.seeds:
            raise UsageError(
                f"splits={list(self.splits)}, seeds={list(self.seeds)}; expected one of each at "
                "least"
            )

    def cells(self) -> list[Cell]:
        found: list[Cell] = []
        for problem, (data, _) in PENALTIES.items():
            splits = self.digits_splits if data == "digits" else self.splits
            if "exact" in self.parts and splits:
                found.append({"part": "exact", "problem": problem, "seed": splits[0]})
            if "penalties" in self.parts:
                for seed in splits:
                    own = {"part": "penalties", "problem": problem, "seed": seed}
                    found += [own | {"method": method} for method in ("grid", *METHODS)]
        for part in NETWORKS:
            if part in self.parts:
                for seed in self.seeds:
                    own = {"part": part, "problem": part, "seed": seed}
                    found += [own | {"method": method} for method in METHODS]
        return found

    def measure(self, cell: Cell, device: torch.device) -> list[Row]:
        measures: dict[Any, Callable[[Any, torch.device], list[Row]]] = {
            "exact": self._exact,
            "penalties": self._penalties,
        }
        return measures.get(cell["part"], self._network)(cell, device)

    def _split(self, cell: Any, device: torch.device) -> tuple[Split, bool]:
        data, per_feature = PENALTIES[cell["problem"]]
        return cross_validation(data, self.folds, 0.3, cell["seed"]).to(device), per_feature

    def _exact(self, cell: Any, device: torch.device) -> list[Row]:
        split, per_feature = self._split(cell, device)
        task, problem = split.folds[:1], linear(split, self.spread)
        meta = penalties(split, math.log(self.start), per_feature)
        params = solved(problem, meta, task, None)
        begun, rows = begun_at(problem, params), []
        for name, metagrad in claimed_exact(problem, meta, split).items():
            grads = metagrad(begun, meta, task).grads
            row: dict[str, Any] = {"method": name}
            if not split.folds.support_y.is_floating_point():
                row["error"] = slope_error(problem, meta, grads, task, 16, seed=0)
                row["reference"] = "finite differences"
            else:
                row["error"] = relative_error(grads, ridge_hypergradient(problem, meta, task))
                row["reference"] = "closed form"
            rows.append(row)
        return rows

    def _penalties(self, cell: Any, device: torch.device) -> list[Row]:
        split, per_feature = self._split(cell, device)
        if cell["method"] == "grid":
            return [grid_search(split, self.grid, self.bounds, self.tols[1])]
        problem = linear(split, self.spread)
        meta = penalties(split, math.log(self.start), per_feature)
        search = Search(problem, split.folds, self._method(cell["method"], problem, split))
        quasi_newton(search, meta, self.hypergradients)
        rows = path(search)
        first = self.digits_splits if PENALTIES[cell["problem"]][0] == "digits" else self.splits
        if cell["seed"] == first[0]:  # the exact gradient takes longer than the search
            for row, visit in zip(rows, search.visits, strict=True):
                start = visit.result.inner.params
                exact = exact_hypergradient(problem, visit.meta, split.folds, start)
                row["error"] = relative_error(visit.result.grads, exact)
            rows[0]["peak_bytes"] = peak_of_one(search, meta, device)
        rows[-1] |= {"trainings": len(rows), "best_validation_loss": _loss(search)}
        rows[-1] |= judged(problem, search.best, split, self.tols[1])
        return list(rows)

    def _method(self, name: str, problem: WeightDecay, split: Split) -> Method:
        first, last = self.tols

        def method(step: int, meta: Meta) -> MetaGradient:
            share = min(step / max(self.hypergradients - 1, 1), 1.0)
            inner = LBFGS(5000, memory=20, tol=first * (last / first) ** share)
            if name == "cg":
                return Implicit(inner, CG(self.iterations, rtol=1e-6))
            if name == "neumann":
                return Implicit(inner, Neumann(self.iterations, rtol=1e-6))
            rate = 1 / curvature(problem, meta, split.folds)
            return Unrolled(GradientDescent(self.unrolled_steps, rate), backend="batched")

        return method

    def _network(self, cell: Any, device: torch.device) -> list[Row]:
        hypergradients = self.network_hypergradients
        method = network_method(
            cell["method"],
            hypergradients,
            self.network_iterations,
            self.inner_steps,
            (self.tols[0], self.tols[1]),
        )
        case = NETWORKS[cell["part"]](self.hidden, cell["seed"], device)
        references = cell["seed"] == self.seeds[0]
        return list(search_network(case, method, hypergradients, device, references))

    def tables(self, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
        return hpo_report.tables(rows)

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        return hpo_report.figures(rows)

    def findings(self, rows: pd.DataFrame) -> list[str]:
        return hpo_report.findings(rows)


def _loss(search: Search) -> float:
    return float(search.best.result.metrics["loss"].mean())


def claimed_exact(problem: WeightDecay, meta: Meta, split: Split) -> dict[str, MetaGradient]:
    """Every meta-gradient that is exact for a linear model when its iterations are enough.

    Each is to begin near the solution: the unrolled derivative then converges to the implicit one
    with its steps, as the Neumann series that it is.
    """
    inner = NewtonCG(20, cg_iters=300, tol=1e-10)
    rate = 1 / curvature(problem, meta, split.folds)
    found: dict[str, MetaGradient] = {
        "CG": Implicit(inner, CG(2000, rtol=1e-12)),
        "Neumann": Implicit(inner, Neumann(20000, rtol=1e-11)),
        "GMRES": Implicit(inner, GMRES(700, restart=700, rtol=1e-12)),
        "BiCGStab": Implicit(inner, BiCGStab(2000, rtol=1e-12)),
        "CG, Gauss-Newton": Implicit(inner, CG(2000, rtol=1e-12), curvature="gauss_newton"),
        "unrolled": Unrolled(GradientDescent(2000, rate), backend="batched"),
    }
    if sum(p.numel() for p in problem.start.values()) <= 100:
        found["Dense"] = Implicit(inner, Dense())
    return found
