#!/usr/bin/env python3
"""Compare the hypergradients of BOAT and Betty with the exact one, on a small problem.

The problem is logistic regression with a learned L2 penalty for each of 20 features, in float64.
Each option trains the inner params from zero by gradient descent at rate 0.1. Betty's example of
this problem has this rate and 100 steps. After 2,000 steps the inner problem is solved.

Install BOAT and Betty beside metalearn:
  .venv/bin/pip install --no-deps boat-torch==1.1.1 betty-ml==0.1.1
Then run: .venv/bin/python scripts/hypergradients_beside_libraries.py
Where both are installed in these versions, it writes results/libraries/hypergradients.json.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from metalearn.inner import GradientDescent, NewtonCG
from metalearn.linear_solve import CG, Neumann
from metalearn.metagrad import FirstOrder, Implicit, MetaGradient, Unrolled
from metalearn.problem import FullBatch
from metalearn.studies.rates.problems import TYPE, FeaturePenalties
from metalearn.system.files import replace_text
from metalearn.system.provenance import provenance
from metalearn.tree import relative_error

EXAMPLES, FEATURES, LOG_PENALTY = 200, 20, -2.0
LR = 0.1
STEPS = (100, 2000)
PROBLEM = FeaturePenalties()
NAMES = {"boat_torch": "boat-torch==1.1.1", "betty": "betty-ml==0.1.1"}

_g = torch.Generator().manual_seed(0)
_truth = torch.randn(FEATURES, generator=_g, dtype=TYPE) * (torch.arange(FEATURES) < 5)
_x = torch.randn(2, EXAMPLES, FEATURES, generator=_g, dtype=TYPE)
_y = (torch.rand(2, EXAMPLES, generator=_g, dtype=TYPE) < torch.sigmoid(_x @ _truth)).to(TYPE)
TRAIN, VALIDATION = zip(_x, _y, strict=True)
WHOLE = FullBatch(PROBLEM, TRAIN, VALIDATION)
META = {"l": torch.full((FEATURES,), LOG_PENALTY, dtype=TYPE)}


def exact() -> Tensor:
    """Return the exact hypergradient: inner gradient and linear system solved to 1e-10."""
    found = Implicit(NewtonCG(30, cg_iters=FEATURES, tol=1e-10), CG(200, rtol=1e-10))
    return found(WHOLE, META, range(1)).grads["l"]


def of_metalearn(make: Callable[[GradientDescent], MetaGradient], steps: int) -> Tensor:
    """Return the hypergradient of a method of metalearn after gradient descent."""
    return make(GradientDescent(steps, LR))(WHOLE, META, range(1)).grads["l"]


class Vector(nn.Module):
    """A module that returns its one parameter."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value.clone())

    def forward(self) -> Tensor:
        return self.value


def boat_lower(feed: Any, upper: Any, lower: Any, **params: Any) -> Tensor:
    """Return the inner loss as BOAT calls it."""
    return PROBLEM.inner_loss({"w": lower(**params)}, {"l": upper()}, feed["batch"])


def boat_upper(feed: Any, upper: Any, lower: Any, **params: Any) -> Tensor:
    """Return the outer loss as BOAT calls it."""
    return PROBLEM.outer_loss({"w": lower(**params)}, {}, feed["batch"])


def of_boat(operations: list[str], steps: int, iterations: int = 10, window: int = 0) -> Tensor:
    """Return the hypergradient of BOAT; k = 10, r and the tolerance are those of its example.

    FD is for one inner step from a warm start. It has `steps` - 1 steps before.

    Args:
        operations: the `na_op` of its configuration.
        iterations: k of CG and NS.
        window: the last steps that RGT differentiates.
    """
    import boat_torch

    before = GradientDescent(steps - 1 if "FD" in operations else 0, LR)
    lower = Vector(FirstOrder(before).adapt(WHOLE, META, range(1)).params["w"])
    upper = Vector(META["l"])
    config = {
        **{"fo_op": None, "gm_op": ["NGD"], "na_op": operations, "device": "cpu"},
        **{"lower_level_model": lower, "lower_level_var": list(lower.parameters())},
        **{"upper_level_model": upper, "upper_level_var": list(upper.parameters())},
        "lower_level_opt": SGD(lower.parameters(), lr=LR),
        "upper_level_opt": SGD(upper.parameters(), lr=LR),
        **{"lower_iters": steps - before.steps, "return_grad": True, "accumulate_grad": False},
        **{"copy_last_param": False, "loss_log_path": os.devnull, "FD": {"r": 1e-2}},
        "GDA": {"alpha_init": 0.0, "alpha_decay": 0.9},
        "CG": {"k": iterations, "tolerance": 1e-10},
        "RGT": {"truncate_iter": steps - window if window else 0},
    }
    levels = ("lower", "upper")
    losses = {f"{name}_level_loss": {"function": f"{__name__}.boat_{name}"} for name in levels}
    problem = boat_torch.Problem(config, losses).build_ll_solver().build_ul_solver()
    return problem.run_iter({"batch": TRAIN}, {"batch": VALIDATION}, current_iter=0)[0][0]


def of_betty(kind: str, steps: int, **options: Any) -> Tensor:
    """Return the hypergradient of Betty, by the `type` and options of its `Config`."""
    from betty.configs import Config, EngineConfig
    from betty.engine import Engine
    from betty.problems import ImplicitProblem

    class Outer(ImplicitProblem):
        def training_step(self, batch: Any) -> Tensor:
            return PROBLEM.outer_loss({"w": self.inner()}, {}, batch)

        def custom_optimizer_step(self) -> None:
            self.found = self.module.value.grad.clone().cpu()

    class Inner(ImplicitProblem):
        def training_step(self, batch: Any) -> Tensor:
            return PROBLEM.inner_loss({"w": self.module()}, {"l": self.outer()}, batch)

    def level(make: Any, name: str, value: Tensor, config: Any, batch: Any) -> Any:
        module = Vector(value)
        sgd = SGD(module.parameters(), lr=LR)
        return make(name, config, module, sgd, train_data_loader=[batch])

    config = Config(type=kind, unroll_steps=steps, **options)
    outer = level(Outer, "outer", META["l"], Config(), VALIDATION)
    inner = level(Inner, "inner", torch.zeros_like(META["l"]), config, TRAIN)
    links = {"u2l": {outer: [inner]}, "l2u": {inner: [outer]}}
    with contextlib.redirect_stderr(None), contextlib.redirect_stdout(None):
        Engine([outer, inner], EngineConfig(train_iters=steps), links).run()
    return outer.found


OPTIONS: dict[str, dict[str, Callable[[int], Tensor]]] = {
    "metalearn": {
        "`Implicit`, `CG(10)`": partial(of_metalearn, lambda inner: Implicit(inner, CG(10))),
        "`Implicit`, `Neumann(10)`": partial(of_metalearn, lambda i: Implicit(i, Neumann(10))),
        "`Unrolled`": partial(of_metalearn, lambda inner: Unrolled(inner, "batched")),
        "`Unrolled`, last 10 steps": partial(of_metalearn, lambda i: Unrolled(i, "batched", 10)),
    },
    "boat_torch": {
        "CG, k = 10": partial(of_boat, ["CG"]),
        "NS, k = 10": partial(of_boat, ["NS"]),
        "NS, k = 100": partial(of_boat, ["NS"], iterations=100),
        "RAD": partial(of_boat, ["RAD"]),
        "RGT and RAD, last 10 steps": partial(of_boat, ["RGT", "RAD"], window=10),
        "FD, r = 0.01": partial(of_boat, ["FD"]),
        "IGA": partial(of_boat, ["IGA"]),
    },
    "betty": {
        "cg, 3 iterations": partial(of_betty, "cg", cg_iterations=3),
        "cg, 10 iterations": partial(of_betty, "cg", cg_iterations=10),
        "cg, 100 iterations": partial(of_betty, "cg", cg_iterations=100),
        "neumann, 3 iterations": partial(of_betty, "neumann", neumann_iterations=3),
        "neumann, 100 iterations": partial(of_betty, "neumann", neumann_iterations=100),
        "darts": partial(of_betty, "darts"),
    },
}


def label(library: str) -> str:
    """Return the name on the package index and the installed version, as in NAME==1.0."""
    if library not in NAMES:
        return library
    name = NAMES[library].split("==")[0]
    return f"{name}=={version(name)}"


def rows(library: str) -> list[dict[str, Any]]:
    """Return a row for each option of a library: an error and a cosine for each of `STEPS`."""
    reference, found = exact(), []
    for option, hypergradient in OPTIONS[library].items():
        row: dict[str, Any] = {"library": label(library), "option": option}
        for steps in STEPS:
            grad = hypergradient(steps)
            row[f"error, {steps:,} steps"] = relative_error([grad], [reference])
            row[f"cosine, {steps:,} steps"] = torch.cosine_similarity(grad, reference, 0).item()
        found.append(row)
    return found


def line(row: dict[str, Any]) -> str:
    """Return a row in Markdown."""
    library, option, *figures = row.values()
    cells = [f"{x:.4f}" if i % 2 else f"{x:.1e}" for i, x in enumerate(figures)]
    return f"| {' | '.join([library.split('==')[0], option, *cells])} |"


def main() -> None:
    """Print the table of the libraries that are installed, and write it if it is whole."""
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    there = [name for name in OPTIONS if importlib.util.find_spec(name)]
    for name in sorted(set(OPTIONS) - set(there)):
        print(f"{name} is not installed: run .venv/bin/pip install --no-deps {NAMES[name]}.\n")
    heads = [f"{what}, {steps:,} steps" for steps in STEPS for what in ("error", "cosine")]
    print(f"| library | option | {' | '.join(heads)} |\n|---|---|{'---|' * len(heads)}")
    found = []
    for name in there:
        found += (own := rows(name))
        print(*map(line, own), sep="\n", flush=True)
    if {row["library"] for row in found} >= set(NAMES.values()):
        out = Path(__file__).parents[1] / "results/libraries/hypergradients.json"
        out.parent.mkdir(exist_ok=True)
        replace_text(out, json.dumps({"rows": found, **provenance(torch.device("cpu"))}, indent=1))


if __name__ == "__main__":
    main()
