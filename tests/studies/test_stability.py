"""The study of iMAML's stability: its runs, and its report of made-up ones."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from metalearn.errors import UsageError
from metalearn.studies.frame.findings import render_findings
from metalearn.studies.stability.study import SOLVERS, StabilityStudy

CPU = torch.device("cpu")
WORDS = ["tasks=glyphs", "tasks.dataset.drawings=4", "tasks.queries=1", "model.channels=4"]
WORDS += ["meta_batch=2"]


def study(runs="unused", **options) -> StabilityStudy:
    whole = {
        "experiment": "omniglot_5w1s_imaml_collapse",
        "solvers": list(SOLVERS),
        "seeds": [0],
        "steps": 4,
        "fixed_rate_steps": 2,
        "overrides": WORDS,
        "validation_every": 2,
        "validation_tasks": 4,
        "test_tasks": 4,
        "runs": str(runs),
    }
    return StabilityStudy(**whole | options)


def rows(collapsing: bool) -> pd.DataFrame:
    found = []
    for solver, fall in zip(SOLVERS, (0.3 if collapsing else 0.0, 0.0), strict=True):
        for seed in (0, 1):
            cell = {"solver": solver, "seed": seed}
            for step, accuracy in ((100, 0.6), (200, 0.8), (300, 0.8 - fall)):
                about = {"accuracy": accuracy, "accuracy_interval": 0.01}
                found.append({**cell, "part": "validation", "step": step, **about})
                found.append(
                    {**cell, "part": "stretch", "step": step, "curvature": 18.0}
                    | {"inner_grad_norm": 0.1, "over_the_edge": 0.5 if fall else None}
                )
            for mode in ("transductive", "inductive"):
                found.append(
                    {**cell, "part": "test", "mode": mode, "step": 200, "edge": 20.0}
                    | {"accuracy": 0.8, "accuracy_interval": 0.01}
                )
    return pd.DataFrame(found)


def test_cells_are_both_solvers_of_each_seed() -> None:
    cells = study(seeds=[3, 4]).cells()
    assert [(c["solver"], c["seed"]) for c in cells] == [
        (solver, seed) for seed in (3, 4) for solver in SOLVERS
    ]


def test_measure_of_both_solvers_differs_in_the_inner_loop_only(tmp_path) -> None:
    made = study(tmp_path)
    found = {c["solver"]: pd.DataFrame(made.measure(c, CPU)) for c in made.cells()}
    for frame in found.values():
        assert set(frame[frame.part == "test"]["mode"]) == {"transductive", "inductive"}
        assert frame[frame.part == "stretch"].step.is_monotonic_increasing
        assert (frame[frame.part == "test"].edge == 20.0).all()
    steps = {name: list(frame[frame.part == "validation"].step) for name, frame in found.items()}
    assert steps == {"fixed rate": [2], "rate found by each task": [2, 4]}
    assert "over_the_edge" in found["fixed rate"]
    assert "over_the_edge" not in found["rate found by each task"]


@pytest.mark.parametrize(("collapsing", "count"), [(True, 2), (False, 0)])
def test_facts_count_the_trainings_that_collapsed(collapsing: bool, count: int) -> None:
    fixed, stable = study().facts(rows(collapsing))["solvers"]
    assert (fixed["name"], fixed["collapsed"], fixed["trainings"]) == ("fixed rate", count, 2)
    assert stable["collapsed"] == 0
    assert list(fixed["best"]) == pytest.approx([80, 80])
    assert list(fixed["last"]) == pytest.approx([50 if collapsing else 80] * 2)
    assert len(render_findings(study(), rows(collapsing))) >= 2
    (table,) = study().tables(rows(collapsing)).values()
    texts = table.texts()
    assert list(texts.collapsed) == ["yes" if collapsing else "no"] * 2 + ["no", "no"]
    assert set(texts["test, inductive, %"]) == {"80.00 ± 1.00"}


def test_facts_count_a_collapse_before_the_first_validation() -> None:
    found = rows(False)
    fixed = (found.solver == "fixed rate") & (found.seed == 1) & (found.part == "validation")
    found.loc[fixed, "accuracy"] = 0.2
    assert [s["collapsed"] for s in study().facts(found)["solvers"]] == [1, 0]


def test_figure_has_a_panel_for_each_curve() -> None:
    (figure,) = study().figures(rows(True)).values()
    assert len(figure.axes) == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"solvers": []}, "solvers="),
        ({"solvers": ["fixed"]}, "fixed rate"),
        ({"seeds": []}, "seeds="),
        ({"steps": 0, "fixed_rate_steps": 0}, "steps=0"),
        ({"fixed_rate_steps": 5}, "fixed_rate_steps=5"),
        ({"test_tasks": 1}, "tasks=1"),
    ],
)
def test_study_refuses_bad_options(options, said) -> None:
    with pytest.raises(UsageError, match=said):
        study(**options)
