"""The study of bilevel methods on minibatches: its tasks, runs, search and report."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pandas as pd
import pytest
import torch

from metalearn.errors import UsageError
from metalearn.studies.frame.findings import render_findings
from metalearn.studies.minibatches.descend import METHODS, Rates, ranked, run, spread
from metalearn.studies.minibatches.report import REFERENCE, curves, suboptimality
from metalearn.studies.minibatches.study import MinibatchesStudy
from metalearn.studies.minibatches.tasks import penalties

TINY = MinibatchesStudy(
    tasks=["penalties", "cleaning"],
    methods=list(METHODS),
    seeds=[0, 1],
    search_seed=7,
    examples=64,
    batch=16,
    calls=70,
    search_calls=40,
    points=2,
    inner_lrs=[0.1],
    outer_lrs=[0.1, 1.0],
    powers=[0.5],
    hypergradients=3,
)
RATES = Rates(0.1, 1.0, 0.0)


@cache
def rows_of(task: str, method: str) -> list[dict]:
    cell = {"task": task, "method": method}
    return [{**cell, **row} for row in TINY.measure(cell, torch.device("cpu"))]


def made_up() -> pd.DataFrame:
    """Two methods whose values fall by known factors, above a reference of 1."""
    rates = {"inner": 0.1, "outer": 1.0, "power": 0.0}
    rows = [{"task": "penalties", "method": REFERENCE, "part": "reference", "value": 1.0}]
    for method, factor in (("SOBA", 0.5), ("F2SA", 0.01)):
        at = {"task": "penalties", "method": method, **rates}
        rows.append({**at, "part": "search", "value": math.inf})
        for seed in (0, 1, 2):
            for point in range(3):
                cost = {"calls": 10 * point, "seconds": 0.1 * point}
                value = 1 + (1 + 0.1 * seed) * factor**point
                rows.append(
                    {**at, **cost, "part": "run", "seed": seed, "point": point, "value": value}
                )
    return pd.DataFrame(rows)


@pytest.mark.parametrize("name", METHODS)
def test_an_outer_step_takes_the_calls_that_its_method_states(name):
    task, kind = penalties(64), METHODS[name]
    first, *_, last = run(task, name, RATES, calls=3 * kind.calls + 16, batch=16, points=1, seed=0)
    assert (last["calls"] - first["calls"]) % kind.calls == 0
    # SABA's memory takes a first pass of four batches on each level: a product and a gradient.
    assert first["calls"] == (12 if name == "SABA" else 0)


def test_a_run_depends_on_its_seed_alone():
    task = penalties(64)
    paths = [run(task, "SOBA", RATES, 60, 16, 3, seed) for seed in (0, 0, 1)]
    first, again, other = ([row["value"] for row in path] for path in paths)
    assert first == again and first != other


def test_the_reference_and_a_method_go_below_the_start():
    task = penalties(256)
    start = task.value(task.meta)
    reached = run(task, "SOBA", Rates(0.2, 0.3, 0.0), 600, 32, 1, 0)[-1]["value"]
    assert reached < start and task.least(10) < start


def test_rates_that_diverge_are_a_value_of_infinity():
    path = run(penalties(64), "SOBA", Rates(1e30, 1e30, 0.0), 300, 16, 3, 0)
    assert path[-1]["value"] == math.inf


def test_the_search_is_on_a_seed_of_its_own():
    rows = pd.DataFrame(rows_of("penalties", "SOBA"))
    tried, runs = rows[rows.part == "search"], rows[rows.part == "run"]
    assert len(tried) == 2 and set(runs.seed) == {0, 1}
    best = tried.loc[tried.value.idxmin()]
    assert (runs.outer == best.outer).all() and (runs.inner == best.inner).all()


def told_by_runs(monkeypatch, lost):
    """The rows and findings of runs that diverge where `lost(outer rate, seed)` says so.

    The larger outer rate of the two is better in the search, which no seed of the runs has.
    """

    def shown(task, name, rates, calls, batch, points, seed):
        end = math.inf if lost(rates.outer, seed) else 1 / rates.outer
        return [{"calls": n, "seconds": 0.1, "value": v} for n, v in ((0, 20.0), (calls, end))]

    for module in ("descend", "study"):
        monkeypatch.setattr(f"metalearn.studies.minibatches.{module}.run", shown)
    cells = [{"task": "penalties", "method": name} for name in ("SOBA", "AmIGO")]
    cpu = torch.device("cpu")
    rows = pd.DataFrame([{**cell, **row} for cell in cells for row in TINY.measure(cell, cpu)])
    return rows, " ".join(render_findings(TINY, rows))


def test_rates_at_which_a_longer_run_diverges_are_replaced_by_the_next_best(monkeypatch):
    rows, text = told_by_runs(monkeypatch, lambda outer, seed: outer == 1.0 and seed == 1)
    assert set(rows[rows.part == "replaced"].outer) == {1.0}
    assert set(rows[rows.part == "run"].outer) == {0.1}
    assert "took their place: SOBA 1 time; AmIGO 1 time." in text
    (table,) = TINY.tables(rows).values()
    assert list(table.texts()["rates replaced"]) == ["1", "1"]


@pytest.mark.parametrize("of_the_search", [False, True])
def test_without_sound_rates_the_best_of_the_search_stay(monkeypatch, of_the_search):
    seeds = (1, TINY.search_seed) if of_the_search else (1,)
    rows, text = told_by_runs(monkeypatch, lambda outer, seed: seed in seeds)
    assert "replaced" not in set(rows.part) and "took their place" not in text
    assert set(rows[rows.part == "run"].outer) == {0.1 if of_the_search else 1.0}
    assert "2 runs diverged" in text


@pytest.mark.parametrize("values", [[math.inf, math.inf], [2.0, math.inf]])
def test_a_search_leaves_out_rates_that_diverged_unless_all_did(values):
    grid = [RATES, Rates(0.1, 2.0, 0.0)]
    assert ranked(grid, values) == [RATES]
    assert ranked(grid, [2.0, 1.0]) == grid[::-1]


def test_the_report_has_medians_of_the_suboptimality():
    rows = made_up()
    assert suboptimality(rows).gap.min() == pytest.approx(0.01**2)
    medians = curves(rows).set_index(["method", "point"])
    assert medians.loc[("SOBA", 2), "gap"] == pytest.approx(1.1 * 0.25)
    (table,) = TINY.tables(rows).values()
    assert list(table.texts().method) == ["F2SA", "SOBA"]
    assert list(table.texts()["diverged in the search"]) == ["1 of 1", "1 of 1"]
    text = " ".join(render_findings(TINY, rows))
    assert "F2SA has the least suboptimality" in text
    assert "SOBA did not reach 10% of the first suboptimality" in text
    assert set(TINY.figures(rows)) == {"minibatches_penalties"}


def test_the_seed_of_the_search_is_none_of_the_runs():
    with pytest.raises(UsageError, match="search_seed=1: expected none of seeds"):
        replace(TINY, search_seed=1)


def test_points_grow_in_equal_ratios():
    assert spread(10, 1000, 3) == [10, 100, 1000] and spread(10, 1000, 1) == [1000]
