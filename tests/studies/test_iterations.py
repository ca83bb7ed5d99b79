"""The study of CG iterations: its cells, the meta-gradient's error, and its report."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from metalearn import config
from metalearn.errors import UsageError
from metalearn.inner import BacktrackingDescent, InnerSolver
from metalearn.linear_solve import CG, Dense, LinearSolver
from metalearn.metagrad import Implicit
from metalearn.studies.frame import options
from metalearn.studies.frame.findings import render_findings
from metalearn.studies.iterations import report as iterations_report
from metalearn.studies.iterations.errors import LEFT_OUT, Reference, compared, gradient_errors
from metalearn.studies.iterations.study import IterationsStudy
from metalearn.training.experiment import Experiment

CPU = torch.device("cpu")
WORDS = ["tasks=glyphs", "tasks.dataset.drawings=4", "model.channels=4", "model.activation=silu"]
WORDS += ["meta_batch=2", "tasks.queries=1", "prox=4.0"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> IterationsStudy:
    return IterationsStudy(
        experiment="omniglot_5w1s_imaml_iterations",
        iterations=[0, 2],
        curvatures=["hessian", "gauss_newton"],
        seeds=[0, 1],
        steps=2,
        overrides=WORDS,
        validation_every=1,
        validation_tasks=4,
        test_tasks=6,
        error_tasks=1,
        runs=str(tmp_path_factory.mktemp("runs")),
    )


def measure(study: IterationsStudy, **cell: Any) -> pd.DataFrame:
    return pd.DataFrame([{**cell, **row} for row in study.measure(cell, CPU)])


def test_cells_begin_with_the_first_seed_and_0_iterations_have_one(study):
    cells = [(c["seed"], c["iterations"], c["curvature"]) for c in study.cells()]
    first = [(0, 0, "none"), (0, 2, "hessian"), (0, 2, "gauss_newton")]
    assert cells == [*first, *((1, n, curvature) for _, n, curvature in first)]


def test_run_words_decide_the_linear_solve_and_nothing_else(study):
    composed = [config.compose("train", study.run_words(cell)) for cell in study.cells()[:3]]
    none, hessian, gauss_newton = composed
    assert none.metagrad.linear_solver is None
    assert hessian.metagrad.linear_solver.max_iters == 2
    assert (hessian.metagrad.curvature, gauss_newton.metagrad.curvature) == (
        "hessian",
        "gauss_newton",
    )
    for one in composed:
        one.metagrad.linear_solver = one.metagrad.curvature = None
    assert len({OmegaConf.to_yaml(one) for one in composed}) == 1


@pytest.mark.parametrize(("curvature", "iterations"), [("none", 0), ("hessian", 2)])
def test_measure_has_a_curve_tests_and_errors(study, monkeypatch, curvature, iterations):
    cell = {"curvature": curvature, "iterations": iterations, "seed": 0}
    rows = measure(study, **cell)
    curve, test, error = (rows[rows.part == part] for part in ("curve", "test", "error"))
    assert list(curve.step) == [1, 2]
    assert curve.negative_curvature.isna().all() == (iterations == 0)
    assert list(test["mode"]) == ["transductive", "inductive"] and set(test.tasks) == {6}
    assert list(error.reference) == ["same point", "solved"]
    assert (error[["compared", *LEFT_OUT]].sum(axis=1) == 1).all()
    assert iterations_report.tables(rows) and render_findings(study, rows)
    # The errors are kept beside the run: another session does not measure them again.
    monkeypatch.setattr("metalearn.studies.iterations.study.gradient_errors", None)
    pd.testing.assert_frame_equal(
        measure(study, **cell)[error.columns].query("part == 'error'"), error
    )


@pytest.fixture(scope="module")
def strong() -> Experiment:
    """A prox so strong that every task's Hessian is positive definite."""
    words = ["experiment=omniglot_5w1s_imaml_iterations", *WORDS, "model.channels=2", "prox=20.0"]
    return Experiment.of(config.compose("train", words))


def errors(experiment: Experiment, inner: InnerSolver, solver: LinearSolver) -> pd.DataFrame:
    other = dataclasses.replace(experiment, metagrad=Implicit(inner, solver))
    return pd.DataFrame(gradient_errors(other, 2)).set_index("reference")


def test_gradient_errors_vanish_with_many_iterations_at_the_same_point(strong):
    steps = BacktrackingDescent(5, 0.02)
    few, many = errors(strong, steps, CG(1)), errors(strong, steps, CG(100, rtol=1e-6))
    assert many.compared["same point"] == few.compared["same point"] == 2
    assert many.error["same point"] < 1e-3 < few.error["same point"]
    assert many.angle["same point"] < np.degrees(1e-3)


def test_gradient_errors_of_a_direct_solve_at_the_inner_minimum_are_small(strong):
    found = errors(strong, BacktrackingDescent(40, 0.05), Dense())
    assert list(found.compared) == [2, 2]
    assert (found.error < 1e-2).all() and (found.inner_grad_norm <= 1e-3).all()


def test_compared_takes_the_mean_over_tasks_that_have_a_reference():
    own = [torch.tensor(x, dtype=torch.float64) for x in ([2.0, 0.0], [0.0, 0.0], [9.0, 9.0])]
    exact = torch.tensor([0.0, 2.0], dtype=torch.float64)
    references = [
        Reference(exact, 0.1),
        Reference(exact / 2, 0.2),
        Reference(None, 5.0, "not solved"),
    ]
    row = compared(own, references)
    # The means are (1, 0) and (0, 3/2).
    assert row["error"] == pytest.approx(np.hypot(1, 1.5) / 1.5)
    assert row["angle"] == pytest.approx(90)
    assert (row["compared"], row["not solved"], row["negative curvature"]) == (2, 1, 0)
    assert row["inner_grad_norm"] == pytest.approx(0.2)
    nothing = compared(own[2:], references[2:])
    assert nothing["error"] is None and nothing["compared"] == 0


def made_up(seeds: int = 3) -> pd.DataFrame:
    """Accuracy 0.80 + 0.01 n + 0.001 seed, a point less with Gauss-Newton; 2 of 4 tasks solved."""
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        for curvature, n in (("none", 0), ("hessian", 1), ("hessian", 5), ("gauss_newton", 5)):
            cell = {"curvature": curvature, "iterations": n, "seed": seed}
            value = 0.80 + 0.01 * n + 0.001 * seed - 0.01 * (curvature == "gauss_newton")
            for step in (10, 20):
                share = None if n == 0 else 0.25
                timed = {"step": step, "train_s": step * 0.1 * (1 + n), "negative_curvature": share}
                rows.append({**cell, "part": "curve", **timed, "accuracy": value})
            about = {"steps": 20, "meta_batch": 8, "tasks": 400, "why": ""}
            about |= {"dataset": "omniglot", "ways": 5, "shots": 1}
            about |= {"inner_steps": 16, "trained_inner_steps": 16}
            for mode, less in (("transductive", 0.0), ("inductive", 0.1)):
                judged = {"part": "test", "mode": mode, "accuracy": value - less}
                rows.append({**cell, **judged, **about})
            for reference, kept in (("same point", 4), ("solved", 2)):
                error = {"error": 1.0 / (1 + n), "angle": 10.0, "task_error": 0.5}
                counts = dict.fromkeys(LEFT_OUT, 0) | {"not solved": 4 - kept, "compared": kept}
                norm = {"inner_grad_norm": 1e-4}
                error = {"part": "error", "reference": reference, **error, **counts, **norm}
                rows.append({**cell, **error})
    return pd.DataFrame(rows)


def texts(rows: pd.DataFrame) -> list[pd.DataFrame]:
    return [table.texts() for table in iterations_report.tables(rows).values()]


def test_tables_have_a_row_for_each_curvature_and_number():
    accuracy, references = texts(made_up())
    assert list(accuracy["CG iterations"]) == ["0", "1", "5", "5"]
    assert list(accuracy.curvature) == ["none (first-order)", "Hessian", "Hessian", "Gauss-Newton"]
    # Seeds 0.850, 0.851 and 0.852: t = 4.303 of 2 degrees, standard error 0.1 / sqrt(3) points.
    assert accuracy["test accuracy, %"][2] == "85.10 ± 0.25"
    assert accuracy["least of the seeds, %"][2] == "85.00"
    assert list(accuracy["negative curvature, % of solves"]) == ["", "25.0", "25.0", "25.0"]
    assert list(accuracy["s a meta-step"]) == ["0.1", "0.2", "0.6", "0.6"]
    solved = references[references.reference == "solved"]
    assert set(solved.tasks) == {"12"} and set(solved["left out: not solved"]) == {"6"}


def test_facts_are_those_of_the_rows(study):
    facts = iterations_report.facts(made_up())
    setting = "Omniglot 5-way 1-shot, 20 meta-steps of 8 tasks, 400 test tasks, 3 seeds"
    assert facts["setting"] == setting and facts["runs"] == 12 and facts["stopped"] == 0
    best = {row["curvature"]: (row["iterations"], row["accuracy"]) for row in facts["best"]}
    assert best == {"Hessian": (5, "85.10 ± 0.25"), "Gauss-Newton": (5, "84.10 ± 0.25")}
    worst = facts["worst"]
    assert worst["accuracy"] == pytest.approx(80) and worst["curvature"] == "none (first-order)"
    assert (worst["iterations"], worst["seed"]) == (0, 0)
    first = facts["changes"][0]
    assert (first["curvature"], first["before"], first["after"]) == ("Hessian", 0, 1)
    # Every seed gains the same, so that paired differences have no spread.
    assert first["gain"].mean == pytest.approx(1)
    assert first["gain"].interval == pytest.approx(0, abs=1e-9)
    errors = {(row["reference"], row["curvature"]): row["by"] for row in facts["errors"]}
    assert errors["solved", "Gauss-Newton"] == pytest.approx({0: 1, 5: 1 / 6})
    solved = facts["left_out"][1]
    assert solved == {"reference": "solved", "tasks": 48, "reasons": {"not solved": 24}}


def test_findings_tell_whether_a_change_is_significant(study):
    noisy = made_up()
    noisy.loc[(noisy.iterations == 1) & (noisy.seed == 0), "accuracy"] -= 0.05
    told = [text for text in render_findings(study, noisy) if "Hessian, 0 to 1" in text]
    assert ["not significant at 95 %" in text for text in told] == [True]
    assert not any("±" in text for text in render_findings(study, made_up(seeds=1)))


def test_figure_has_both_curvatures_from_0_iterations_on():
    accuracy, error, seconds = iterations_report.figures(made_up())["iterations"].axes
    assert [t.get_text() for t in accuracy.get_xticklabels()] == ["0", "1", "5"]
    lines = {line.get_label(): line for line in accuracy.get_lines()}
    np.testing.assert_allclose(lines["Hessian"].get_xydata(), [[0, 80.1], [1, 81.1], [2, 85.1]])
    np.testing.assert_allclose(lines["Gauss-Newton"].get_xydata(), [[0, 80.1], [2, 84.1]])
    assert error.get_yscale() == "log" and seconds.get_ylim()[0] == 0


def test_report_is_the_same_of_published_rows(study, tmp_path):
    rows = made_up()
    rows.convert_dtypes().to_csv(tmp_path / "rows.csv", index=False)
    again = pd.read_csv(tmp_path / "rows.csv")
    assert render_findings(study, again) == render_findings(study, rows)
    assert iterations_report.tables(again) == iterations_report.tables(rows)


def test_report_holds_with_stopped_runs_and_without_references(study):
    cell = {"curvature": "hessian", "iterations": 20, "seed": 0, "part": "stopped", "why": "nan"}
    rows = pd.concat([made_up().assign(error=None), pd.DataFrame([cell])])
    assert "Runs that a guard stopped" in render_findings(study, rows)[-1]
    accuracy, _ = texts(rows)
    row = accuracy[accuracy["CG iterations"] == "20"].iloc[0]
    assert (row["ended early"], row["test accuracy, %"]) == ("1", "")
    assert set(accuracy["gradient error, solved"]) == {""}
    assert iterations_report.figures(rows)
    alone = pd.DataFrame([cell])
    (stopped,) = texts(alone)
    assert list(stopped.why) == ["nan"] and not iterations_report.figures(alone)
    assert render_findings(study, alone) == [
        "Runs that a guard stopped before their first validation: 1."
    ]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"iterations": [1, -1]}, "iterations"),
        ({"iterations": []}, "iterations"),
        ({"curvatures": ["fisher"]}, r"curvatures\[0\]=fisher"),
        ({"seeds": []}, "seeds"),
        ({"error_tasks": 0}, "error_tasks=0"),
        ({"overrides": [*WORDS, "adapt=head"]}, "adapt=all"),
        ({"experiment": "omniglot_5w1s_maml"}, "linear_solver"),
    ],
)
def test_study_refuses_other_options(study, wrong, sentence):
    with pytest.raises(UsageError, match=sentence):
        dataclasses.replace(study, **wrong)


@pytest.mark.parametrize("preset", ["quick", "full"])
def test_presets_can_be_built(preset):
    made, _, _ = options.study("bench", "iterations", [f"preset={preset}"])
    assert isinstance(made, IterationsStudy)
