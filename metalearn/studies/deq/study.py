"""Deep equilibrium models beside the same cells unrolled."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import pandas as pd
import torch
from annotated_types import Ge
from matplotlib.figure import Figure
from pydantic.dataclasses import dataclass
from torch import Tensor

from metalearn.config.options import (
    STRICT,
    Count,
    NonNegative,
    Positive,
    Seed,
    Some,
    one_sentence,
)
from metalearn.errors import UsageError
from metalearn.fixed_point import Anderson, Broyden, FixedPointSolver, NewtonGMRES, Picard
from metalearn.implicit import InexactDerivative
from metalearn.linear_solve import (
    GMRES,
    BiCGStab,
    LinearSolver,
    Neumann,
    NormalCG,
)
from metalearn.nn import DEQ
from metalearn.studies.deq import report as deq_report
from metalearn.studies.deq.measure import gradient_error, iterations, spectrum, step
from metalearn.studies.deq.models import (
    NOISE,
    SYMBOLS,
    CausalCell,
    Classifier,
    DenseCell,
    WeightTied,
    accuracy,
    digits,
    fit,
    recall,
)
from metalearn.studies.frame import Cell, Row
from metalearn.studies.frame.table import Table

INPUTS, CLASSES = 64, 10

FORWARD: dict[str, FixedPointSolver] = {
    "Picard": Picard(100, rtol=1e-4),
    "Anderson": Anderson(100, rtol=1e-4),
    "Broyden": Broyden(100, rtol=1e-4),
    # With 100 applications some samples ended far from a fixed point, where the gradient is wrong,
    # and the training diverged.
    "NewtonGMRES": NewtonGMRES(300, rtol=1e-4, linear_iters=10, linear_rtol=0.1),
}
BACKWARD: dict[str, LinearSolver] = {
    "GMRES": GMRES(60, restart=60, rtol=1e-4),
    "BiCGStab": BiCGStab(60, rtol=1e-4),
    "NormalCG": NormalCG(60, rtol=1e-4),
    "Neumann": Neumann(60, step_size=1.0, rtol=1e-4),
}


@one_sentence
@dataclass(frozen=True, config=STRICT)
class DEQStudy:
    """The comparison of deep equilibrium models with the same cells unrolled.

    Args:
        seeds: the seeds of weights and batches; every training is run with each.
        width: the size of a state on digits.
        depth: applications of the cell by the unrolled twin on digits.
        epochs, lr, batch: options of the training on digits.
        pairs: "all" trains all pairs of a forward and a backward solver; "each" trains each solver
            once, with Anderson or GMRES as the other.
        depths: forward iterations at which memory is measured.
        jacobian_weights: weights of the Jacobian-norm regularisation; 0: no regularisation.
        long_epochs: epochs of the trainings that measure conditioning.
        length: tokens of a sequence.
        sequence_width, sequence_epochs: the size of a state and the epochs on sequences.
        sequence_depths: applications of the cell by the unrolled twins on sequences.
    """

    title: ClassVar[str] = "Deep equilibrium models beside their unrolled twins"
    growing: ClassVar = ("seeds", "depths", "jacobian_weights", "sequence_depths")

    seeds: Some[Seed]
    width: Count
    depth: Count
    epochs: Count
    lr: Positive
    batch: Count
    pairs: Literal["all", "each"]
    depths: Some[Count]
    jacobian_weights: Some[NonNegative]
    long_epochs: Count
    length: Annotated[int, Ge(2)]
    sequence_width: Count
    sequence_epochs: Count
    sequence_depths: Some[Count]

    def __post_init__(self) -> None:
        if self.batch > (most := len(digits().train_x)):
            raise UsageError(
                f"batch={self.batch}: expected at most the {most} training images of the digits. "
                "Give a smaller number."
            )

    def cells(self) -> list[Cell]:
        found: list[Cell] = []
        for seed in self.seeds:
            found.append({"part": "digits", "core": "unrolled", "depth": self.depth, "seed": seed})
            for forward, backward in self._pairs():
                how = {"forward": forward, "backward": backward}
                found.append({"part": "digits", "core": "deq", **how, "seed": seed})
        for depth in self.depths:
            found += [{"part": "memory", "core": c, "depth": depth} for c in ("unrolled", "deq")]
        for seed in self.seeds:
            for weight in self.jacobian_weights:
                found.append({"part": "conditioning", "jacobian_weight": weight, "seed": seed})
        for seed in self.seeds:
            found.append({"part": "sequence", "core": "deq", "depth": None, "seed": seed})
            for depth in self.sequence_depths:
                found.append({"part": "sequence", "core": "unrolled", "depth": depth, "seed": seed})
        return found

    def _pairs(self) -> list[tuple[str, str]]:
        pairs = [(f, b) for f in FORWARD for b in BACKWARD]
        return [p for p in pairs if self.pairs == "all" or p[0] == "Anderson" or p[1] == "GMRES"]

    def measure(self, cell: Cell, device: torch.device) -> list[Row]:
        measures: dict[Any, Callable[[Any, torch.device], list[Row]]] = {
            "digits": self._digits,
            "memory": self._memory,
            "conditioning": self._conditioning,
            "sequence": self._sequence,
        }
        with warnings.catch_warnings():
            # The rows say how each solve ended.
            warnings.simplefilter("ignore", InexactDerivative)
            return measures[cell["part"]](cell, device)

    def _model(
        self,
        seed: int,
        forward: FixedPointSolver | None = None,
        backward: LinearSolver | None = None,
        depth: int = 0,
    ) -> Classifier:
        torch.manual_seed(seed)
        cell = DenseCell(INPUTS, self.width)
        if forward is None or backward is None:
            return Classifier(WeightTied(cell, depth), self.width, CLASSES)
        return Classifier(DEQ(cell, forward, backward), self.width, CLASSES)

    def _digits(self, cell: Any, device: torch.device) -> list[Row]:
        data, deq, seed = digits().to(device), cell["core"] == "deq", cell["seed"]
        if deq:
            model = self._model(seed, FORWARD[cell["forward"]], BACKWARD[cell["backward"]])
        else:
            model = self._model(seed, depth=cell["depth"])
        model.to(device)
        began = time.perf_counter()
        fit(model, data, self.epochs, self.lr, self.batch, seed)
        row = {"accuracy": accuracy(model, data), "train_s": time.perf_counter() - began}
        row |= step(model, data, self.batch)
        if deq:
            x, y = data.train_x[: self.batch], data.train_y[: self.batch]
            row["gradient_error"] = gradient_error(model, x, y)
            row |= spectrum(model, data.test_x[:32])
        return [row]

    def _memory(self, cell: Any, device: torch.device) -> list[Row]:
        if cell["core"] == "deq":
            # No tolerance: the iterations are the same for every sample and, backward, every depth.
            model = self._model(0, Anderson(cell["depth"], rtol=0.0), GMRES(20, rtol=0.0))
        else:
            model = self._model(0, depth=cell["depth"])
        return [step(model.to(device), digits().to(device), 1024)]

    def _conditioning(self, cell: Any, device: torch.device) -> list[Row]:
        data, weight = digits().to(device), cell["jacobian_weight"]
        model = self._model(cell["seed"], FORWARD["Anderson"], BACKWARD["GMRES"]).to(device)
        core: Any = model.core
        rows: list[Row] = []

        def penalty(x: Tensor) -> Tensor:
            loss: Tensor = weight * core.jacobian_norm(core.forward_solution.value, x).mean()
            return loss

        def look(epoch: int) -> None:
            if epoch & (epoch - 1) and epoch != self.long_epochs:
                return  # only powers of two and the last epoch are measured
            row = {"epoch": epoch, "accuracy": accuracy(model, data)}
            row |= iterations(model, data.test_x, data.test_y)
            rows.append(row | spectrum(model, data.test_x[:32]))

        fit(
            model,
            data,
            self.long_epochs,
            self.lr,
            self.batch,
            cell["seed"],
            penalty if weight else None,
            look,
        )
        return rows

    def _sequence(self, cell: Any, device: torch.device) -> list[Row]:
        data, width = recall(self.length, seed=cell["seed"]).to(device), self.sequence_width
        torch.manual_seed(cell["seed"])
        causal = CausalCell(SYMBOLS + NOISE, width)
        # J is nilpotent: both solvers are exact after as many steps as there are positions.
        most = 2 * self.length
        core: Any = DEQ(causal, Picard(most, rtol=1e-5), Neumann(most, step_size=1.0, rtol=1e-5))
        if cell["core"] == "unrolled":
            core = WeightTied(causal, cell["depth"])
        model = Classifier(core, width, SYMBOLS).to(device)
        began = time.perf_counter()
        fit(model, data, self.sequence_epochs, 1e-2, 64, cell["seed"])
        row = {"accuracy": accuracy(model, data), "train_s": time.perf_counter() - began}
        row |= step(model, data, 64)
        if cell["core"] == "deq":
            row |= spectrum(model, data.test_x[:2], iters=2 * self.length + 2)
        return [row]

    def tables(self, rows: pd.DataFrame) -> dict[str, Table]:
        return deq_report.tables(rows)

    def figures(self, rows: pd.DataFrame) -> dict[str, Figure]:
        return deq_report.figures(rows)

    def facts(self, rows: pd.DataFrame) -> dict[str, Any]:
        return deq_report.facts(rows)
