"""Searches for hyper-parameters, and what the study's rows, tables and findings mean."""

from __future__ import annotations

import dataclasses
import json
import math

import pandas as pd
import pytest
import torch
from scipy.optimize import minimize_scalar

from metalearn.commands.main import main
from metalearn.inner import LBFGS
from metalearn.linear_solve import CG
from metalearn.metagrad import Implicit
from metalearn.studies.frame.findings import render_findings
from metalearn.studies.hpo.exact import solved
from metalearn.studies.hpo.measure import grid_search, penalties, weights
from metalearn.studies.hpo.search import WarmStartedSolver, quasi_newton
from metalearn.studies.hpo.study import HPOStudy
from metalearn.training.optimiser import descend
from metalearn.tree import leaves_of

CPU = torch.device("cpu")
TINY = HPOStudy(
    problems=["ridge", "weights", "overfit"],
    methods=["cg", "unrolled"],
    splits=[0],
    grid=5,
    bounds=[1e-3, 1.0],
    start=0.02,
    spread=0.5,
    hypergradients=4,
    iterations=10,
    unrolled_steps=20,
    tols=[1e-2, 1e-4],
    directions=2,
    seeds=[0],
    hidden=8,
    images=300,
    validation=200,
    few=20,
    network_hypergradients=15,
    inner_steps=20,
    damping=0.03,
    lr=0.5,
)
NOT_FIRST = {"seeds": [9], "splits": [9]}
"""Of the first seed and split alone the exact hyper-gradients are made, which take longest."""
TIGHT = LBFGS(2000, memory=20, tol=1e-8)


def ridge():
    return penalties("diabetes", False, start=0.02, spread=1.0, seed=0, device=CPU)


def of_cg(tol):
    return lambda step, meta: Implicit(LBFGS(2000, memory=20, tol=tol), CG(50, rtol=1e-8))


def validation_loss(case, log):
    meta = {"common": torch.tensor(log, dtype=torch.float64)}
    params = solved(case.problem, meta, case.task).params
    return float(case.problem.outer_objective(params, meta, case.task)[0])


def test_ten_hyper_gradients_find_the_best_penalty():
    case, search = ridge(), WarmStartedSolver(of_cg(1e-6))
    quasi_newton(search, case.problem, case.meta, case.task, 10)
    best = minimize_scalar(lambda log: validation_loss(case, log), bounds=(-8, 3), method="bounded")
    assert len(search.visits) <= 10
    assert search.best.loss == pytest.approx(best.fun, abs=1e-6)


def test_a_search_makes_no_more_hyper_gradients_than_it_may():
    case, search = ridge(), WarmStartedSolver(of_cg(1e-6))
    quasi_newton(search, case.problem, case.meta, case.task, 3)
    assert len(search.visits) == 3


def test_the_grid_takes_the_point_that_validates_best():
    case = ridge()
    found = grid_search(case, 7, [1e-3, 1.0], TIGHT)
    grid = [10 ** (-3 + k / 2) for k in range(7)]
    losses = [validation_loss(case, math.log(penalty)) for penalty in grid]
    assert found["validation_loss"] == pytest.approx(min(losses), abs=1e-8)
    assert found["penalty"] == pytest.approx(grid[losses.index(min(losses))])
    assert found["best_test_loss"] <= found["test_loss"]


def test_warm_starts_save_inner_gradients_and_visits_add_them_up():
    spent = {}
    for warm in (True, False):
        case, search = ridge(), WarmStartedSolver(of_cg(1e-6), warm)
        for _ in range(3):
            search(case.problem, case.meta, case.task)
        gradients = [visit.gradients for visit in search.visits]
        spent[warm] = [gradients[0], gradients[1] - gradients[0], gradients[2] - gradients[1]]
        seconds = [visit.seconds for visit in search.visits]
        assert 0 < seconds[0] < seconds[1] < seconds[2]
    assert spent[True][0] == spent[False][0]
    assert spent[False][1] == spent[False][2] == spent[False][0]
    assert max(spent[True][1:]) <= 3 < spent[False][0]  # where it was left, nothing is to be done


def test_a_visit_keeps_the_meta_that_the_outer_loop_writes_into():
    case, search = ridge(), WarmStartedSolver(of_cg(1e-3))
    descend(case.problem, search, case.meta, lambda: case.task, 3, 0.5, lambda *_: None)
    logs = [float(visit.meta["common"]) for visit in search.visits]
    assert logs[0] == pytest.approx(math.log(0.02)) and len(set(logs)) == 3


def test_the_inner_tolerance_falls_from_the_first_to_the_last():
    case = ridge()
    for name, expected in (("cg", [1e-2, 1e-3, 1e-4]), ("cg_tight", [1e-4] * 3)):
        method = TINY._method(name, case, 3)
        tols = [method(step, case.meta).inner.tol for step in range(3)]
        assert tols == pytest.approx(expected)


def test_unrolled_steps_shorten_as_a_decay_grows():
    """At a rate of its own, gradient descent would diverge where decays have grown."""
    case = TINY._case("overfit", 0, CPU)
    heavy = {name: log + 15.0 for name, log in case.meta.items()}
    result = TINY._method("unrolled", case, 3)(0, heavy)(case.problem, heavy, case.task)
    assert all(g.isfinite().all() for g in leaves_of(result.grads))


def measured(problem, method, **changes):
    study = dataclasses.replace(TINY, **changes)
    return study.measure({"problem": problem, "seed": 0, "method": method}, CPU)


@pytest.mark.parametrize("method", TINY.methods)
def test_learned_weights_tell_wrong_labels_and_beat_equal_ones(method):
    rows = measured("weights", method, **NOT_FIRST)
    assert [row["hypergradient"] for row in rows] == list(range(1, 16))
    assert rows[0]["auc"] == 0.5  # all weights are the same
    assert rows[-1]["auc"] > 0.9
    assert rows[0]["unweighted_accuracy"] <= rows[0]["tuned_accuracy"]
    assert rows[-1]["test_accuracy"] > rows[0]["tuned_accuracy"] + 0.05


@pytest.mark.parametrize("method", TINY.methods)
def test_as_many_decays_as_parameters_fit_a_small_validation_set(method):
    rows = measured("overfit", method, network_hypergradients=25, inner_steps=40, **NOT_FIRST)
    assert min(row["validation_loss"] for row in rows) < 0.5 * rows[0]["validation_loss"]
    assert max(row["validation_accuracy"] for row in rows) == 1.0
    assert rows[0]["validation_accuracy"] < 1.0


def test_memory_grows_with_unrolled_steps_alone():
    def ratio(method):
        few, many = (
            measured("overfit", method, network_hypergradients=1, **{option: steps})
            for option in ("unrolled_steps" if method == "unrolled" else "inner_steps",)
            for steps in (20, 80)
        )
        return many[0]["peak_bytes"] / few[0]["peak_bytes"]

    assert ratio("unrolled") > 3
    assert ratio("cg") < 1.1


def test_an_exact_hyper_gradient_is_nearer_with_a_finer_tolerance():
    rough = measured("ridge", "cg_tight", tols=[1e-1, 1e-1], hypergradients=1)
    fine = measured("ridge", "cg_tight", tols=[1e-6, 1e-6], hypergradients=1)
    assert fine[0]["error"] < 1e-4 < rough[0]["error"]


def test_half_of_the_examples_of_the_search_for_weights_are_wrong():
    case = weights(300, 200, seed=0, device=CPU)
    assert case.wrong.float().mean() == 0.5 and len(case.problem.train) == 300


def rows_by_hand():
    """Two splits and seeds."""
    rows = []
    for seed in (0, 1):
        own = {"problem": "ridge", "seed": seed}
        if not seed:
            row = {"method": "exact", "meta_gradient": "Neumann", "error": 3e-9}
            rows.append({**own, **row, "reference": "closed form"})
        grid = {"method": "grid", "trainings": 100, "gradients": 2000, "validation_loss": 0.5}
        rows.append({**own, **grid, "test_loss": 0.6 + seed / 10, "best_test_loss": 0.55})
        for method, spent in (("cg", 10), ("cg_cold", 30), ("cg_tight", 15)):
            for step, loss in ((1, 0.9), (2, 0.4), (3, 0.7)):
                row = {"method": method, "hypergradient": step, "objective": loss}
                row |= {"validation_loss": loss, "test_loss": loss + 0.1, "seconds": 0.1 * step}
                row |= {"gradients": spent * step, "products": 5 * step}
                if not seed:
                    row |= {"error": 10.0**-step}
                    row |= {"peak_bytes": 3000.0} if step == 1 else {}
                rows.append({**own, **row})
        for problem in ("weights", "overfit"):
            for step, loss in ((1, 2.0), (2, 0.01)):
                row = {"problem": problem, "seed": seed, "method": "unrolled"}
                row |= {"hypergradient": step, "objective": loss, "validation_loss": loss}
                row |= {"test_loss": loss, "seconds": 1.0 * step, "gradients": 7.0 * step}
                row |= {"products": 3.0 * step, "test_accuracy": 0.7 + 0.1 * step}
                row |= {"validation_accuracy": 0.5 * step}
                if step == 1:
                    row |= {"peak_bytes": 4000.0 if not seed else None}
                if problem == "weights":
                    row |= {"auc": 0.5 if step == 1 else 0.97 + 0.01 * seed}
                    if step == 1:
                        row |= {"unweighted_accuracy": 0.8, "tuned_accuracy": 0.85}
                        row |= {"sound_accuracy": 0.88}
                rows.append(row)
    return pd.DataFrame(rows)


def test_tables_show_searches_beside_grids_and_references():
    rows = rows_by_hand()
    versus, told, decays, costs, exact = (t.texts() for t in TINY.tables(rows).values())
    cg = versus.set_index("method").loc["CG"]
    # Chosen at the least objective: 0.5 where the grid has 0.6 and 0.7.
    assert (cg["test loss"], cg["grid's"]) == ("0.5000", "0.6500")
    # Of two values the t interval is 12.71 times half their distance.
    assert cg["difference"] == "-0.1500 ± 0.6353"
    assert (cg["at or below"], cg["trainings"]) == ("2 of 2", "3.0")
    assert (cg["grid's trainings"], cg["gradients and products"]) == ("100", "45")
    assert told["area under the ROC curve"].tolist() == ["0.975 (least 0.970)"]
    assert decays["at the start"].tolist() == ["2.0000"]
    costs = costs.set_index(["problem", "method"])
    first = costs.loc[("ridge, one penalty", "CG")]
    assert first["hyper-gradient error, first"] == "1.0e-01" and first["last"] == "1.0e-03"
    assert costs.loc[("a weight an example", "unrolled"), "last"] == ""
    assert exact["error"].tolist() == ["3.0e-09"]
    assert set(TINY.figures(rows)) == {"ridge", "weights", "overfit"}


def test_tables_sort_cells_with_two_numbers_by_the_mean():
    versus, told, *_ = TINY.tables(rows_by_hand()).values()
    cells = dict(zip(versus.columns, versus.rows[0], strict=True))
    assert cells["difference"].key == pytest.approx(-0.15) and cells["at or below"].key == 1.0
    assert told.rows[0][1].key == pytest.approx(0.975)


def test_facts_name_the_farthest_gradient_and_compare_costs():
    facts = TINY.facts(rows_by_hand())
    (near,) = facts["exact"]
    assert (near["error"], near["meta_gradient"], near["compared"]) == (3e-9, "Neumann", 1)
    assert facts["trainings"] == 3
    assert [row["method"] for row in facts["penalties"]] == ["CG"]
    (weights,), (overfit,) = facts["weights"], facts["overfit"]
    assert (weights["above unweighted"], weights["above tuned"]) == ("10.0 ± 0.0", "5.0 ± 0.0")
    assert (overfit["without error"], overfit["validation loss"]) == ("2 of 2", "0.0100")
    assert facts["times"]["cg_cold"] == pytest.approx(3) and facts["seeds"] == 2
    assert facts["times"]["cg_tight"] == pytest.approx(1.5)


def test_findings_tell_of_each_problem():
    assert len(render_findings(TINY, rows_by_hand())) == 6


def test_from_the_command_line_to_the_published_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["preset=quick", "splits=[3]", "seeds=[3]", "hypergradients=2", "grid=3", "few=10"]
    small += ["network_hypergradients=2", "images=50", "validation=50", "hidden=3", "inner_steps=2"]
    small += ["iterations=2", "unrolled_steps=2", "problems=[ridge,overfit]"]
    assert main(["solve", "hpo", *small, "wandb=disabled", "threads=1"]) == 0
    folder = tmp_path / "runs" / "quick" / "hpo"
    rows = pd.read_csv(folder / "rows.csv")
    assert set(rows.method) == {"exact", "grid", "cg", "neumann", "unrolled"}
    assert rows[rows.method == "exact"].error.max() < 1e-8
    assert (folder / "ridge.svg").stat().st_size > 1000
    assert json.loads((folder / "provenance.json").read_text())["options"]["few"] == 10


def test_one_method_and_one_problem_can_be_published_alone():
    for problem in ("ridge", "weights", "overfit"):
        rows = pd.DataFrame(
            {"problem": problem, "seed": 0, "method": "cg", **row}
            for row in measured(problem, "cg", network_hypergradients=2, hypergradients=2)
        )
        assert TINY.tables(rows) and TINY.figures(rows)
        assert all(render_findings(TINY, rows))
