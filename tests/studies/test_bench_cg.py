"""The study of CG iterations at a tiny size: what its rows mean, not their digits."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch
import yaml

from metalearn import config
from metalearn.commands.main import main
from metalearn.linear_solve import CG, Dense
from metalearn.metagrad import Implicit
from metalearn.metagrad.exact import exact_implicit
from metalearn.studies.cg.points import compared
from metalearn.studies.cg.report import crossovers, plateau, plateaus
from metalearn.studies.cg.study import CGStudy
from metalearn.studies.frame import options
from metalearn.studies.frame.findings import render_findings

CPU = torch.device("cpu")
TINY = CGStudy(
    seeds=[0],
    iterations=[0, 1, 3, 12],
    proxes=[2.0],
    ways=["cg", "gauss_newton", "jacobi_cg"],
    train_iterations=[0, 3],
    way_iterations=3,
    channels=2,
    inner_steps=4,
    inner_lr=0.1,
    start_steps=2,
    tasks=2,
    steps=2,
    meta_batch=2,
    validation_tasks=2,
    test_tasks=4,
)


def measured(*parts: str) -> list[dict]:
    cells = [cell for cell in TINY.cells() if cell["part"] in parts]
    return [{**cell, **row} for cell in cells for row in TINY.measure(cell, CPU)]


@pytest.fixture(scope="module")
def tasks() -> pd.DataFrame:
    rows = pd.DataFrame(measured("task"))
    return rows.assign(definite=rows.definite.astype(bool))


@pytest.fixture(scope="module")
def accuracies() -> list[dict]:
    return measured("accuracy")


@pytest.fixture(scope="module")
def gradients() -> list[dict]:
    return measured("gradient")


def test_the_error_falls_under_the_bounds_where_the_system_is_definite(tasks):
    definite = tasks[tasks.definite]
    systems = definite.groupby(["prox", "point", "curvature", "task"])
    assert len(systems) >= 3  # Gauss-Newton's 2, and a minimum
    for _, rows in systems:
        solved = rows[rows.iterations > 0]
        # 1e-9: the reference itself is solved to 1e-10, times a condition number's root.
        assert (solved.error.diff().dropna() <= 1e-9).all()
        # In A's norm one iteration finds the best multiple of the first-order gradient.
        assert (rows.energy_error.diff().dropna() <= 1e-9).all()
        assert (rows.error <= rows.rate_bound + 1e-9).all()
        assert (solved.error <= solved.solve_bound * (1 + 1e-6) + 1e-9).all()


def test_gauss_newton_is_definite_by_construction_and_ritz_values_lie_inside(tasks):
    gauss_newton = tasks[tasks.curvature == "gauss_newton"]
    # (5 images and 5 classes leave most directions without curvature: prox is an eigenvalue.)
    assert (gauss_newton.eigen_low / gauss_newton.prox - 1).abs().max() < 1e-5
    solved = tasks[tasks.iterations > 0]
    assert (solved.ritz_low >= solved.eigen_low - 1e-5 * solved.eigen_high.abs()).all()
    assert (solved.ritz_high <= solved.eigen_high * (1 + 1e-5)).all()
    assert gauss_newton.certificate.isna().all()  # its distance from the Hessian is not known


def test_the_references_are_those_of_dense_algebra_and_of_the_exact_meta_gradient():
    points = TINY._points(0, 2.0)
    assert points.known
    t = points.known[0]
    systems = points.systems("minimum", "hessian")[t]
    dense = systems.solve(Dense())
    low, high = systems.spectrum()
    assert dense.eigenvalue_bounds is not None
    # eigsh is asked for 1e-6 of each eigenvalue.
    assert torch.allclose(low, dense.eigenvalue_bounds[0], rtol=1e-5)
    assert torch.allclose(high, dense.eigenvalue_bounds[1], rtol=1e-5)
    x = points.minimum[t]
    # A residual of 1e-10 times the condition number.
    assert (systems.flat(dense.value)[0] - x).norm() <= 1e-10 * float(high / low) * x.norm()

    experiment = points.experiment
    meta = {name: p.detach().double() for name, p in experiment.meta.items()}
    start = {name: p[t : t + 1] for name, p in points.places["minimum"].items()}
    task = points.task[t : t + 1].to(torch.float64)
    exact = exact_implicit(experiment.problem, meta, task, start)
    flat = torch.cat([g.flatten() for g in exact.values()])
    # Both minima have gradients of at most 1e-8.
    assert (2.0 * x - flat).norm() <= 1e-5 * flat.norm()


def test_a_full_solve_has_no_error_and_first_order_is_the_study_s_zero(gradients):
    points = TINY._points(0, 2.0)
    inner = points.experiment.metagrad.inner
    full = compared(points, "minimum", Implicit(inner, CG(500, rtol=1e-7)))
    assert full["error"] < 1e-2  # float32 and a condition number of some 1e3
    assert full["error"] == full["true_error"]
    rows = {(r["way"], r["iterations"], r["point"]): r for r in gradients}
    first = compared(points, "adapted", Implicit(inner, None))
    assert rows["cg", 0, "adapted"]["true_error"] == first["true_error"]
    assert rows["cg", 0, "adapted"]["products"] == 0
    assert rows["cg", 3, "minimum"]["products"] == 3  # the residual is the iteration's
    assert rows["jacobi_cg", 3, "minimum"]["products"] == 11
    assert rows["cg", 12, "minimum"]["error"] < rows["cg", 3, "minimum"]["error"]


def test_a_multirun_s_jobs_have_the_accuracies_of_the_study(accuracies, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = pd.DataFrame(accuracies).query("way == 'cg'").dropna(subset="test_accuracy")
    assert own.iterations.tolist() == [0, 3]
    words = [w for w in TINY.words("cg", 0, 2.0, 0) if "iterations" not in w]
    sweep = [*words, "metagrad.iterations=0,3", "wandb=disabled", "threads=1"]
    assert main(["train", "-m", *sweep]) == 0
    files = sorted((tmp_path / "runs").glob("*/summary.json"))  # named by what differs
    found = [json.loads(f.read_text())["test_accuracy"] for f in files]
    assert found == own.test_accuracy.tolist()


def test_the_sweep_file_is_the_study_s_trainings():
    # It takes seconds to import: not at the top, for the other tests' sake.
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    study, _, _ = options.study("bench", "cg", [])
    assert isinstance(study, CGStudy)
    sweep = yaml.safe_load((config.config_folder() / "sweep" / "cg.yaml").read_text())
    values = {name: given["values"] for name, given in sweep["parameters"].items()}
    assert values == {
        "metagrad.way": ["cg", "gauss_newton"],
        "metagrad.iterations": study.train_iterations,
        "problem.prox": study.proxes,
        "seed": study.seeds,
    }
    assert sweep["program"] == "metalearn"
    assert sweep["command"][:3] == ["${env}", "${program}", "train"]
    assert sweep["command"][-1] == "${args_no_hyphens}"
    for job in (("cg", 0, 0.5, 0), ("gauss_newton", 20, 2.0, 2)):
        given = {name: {"value": v} for name, v in zip(values, job, strict=True)}
        words = create_sweep_command_args({"args": given})["args_no_hyphens"]
        sent = config.compose("train", [*sweep["command"][3:-1], *words])
        assert sent.wandb == "online"
        sent.wandb = "offline"
        assert sent == config.compose("train", study.words(*job))


def test_plateau_is_the_least_number_that_no_larger_one_improves_on():
    columns = [0, 1, 5, 20]
    rising = pd.DataFrame([[0.2, 0.3, 0.4, 0.4], [0.3, 0.4, 0.5, 0.5], [0.1, 0.2, 0.31, 0.3]])
    rising.columns = columns
    assert plateau(rising) == 5
    noise = pd.DataFrame([[0.2, 0.3, 0.1, 0.2], [0.3, 0.2, 0.4, 0.3], [0.1, 0.2, 0.2, 0.1]])
    noise.columns = columns
    assert plateau(noise) == 0


def by_hand(**changes):
    """Final rows of three seeds, one of whose trainings may have stopped."""
    rows = []
    for seed, accuracies in enumerate([(0.2, 0.3, 0.3), (0.3, 0.4, 0.4), (0.1, 0.21, 0.2)]):
        for iterations, accuracy in zip((0, 5, 20), accuracies, strict=True):
            row = {"part": "accuracy", "way": "cg", "prox": 2.0, "seed": seed}
            row |= {"iterations": iterations, "train_s": 1.0, "test_accuracy": accuracy}
            rows.append(row | {"validation_accuracy": accuracy, "stopped": False})
    frame = pd.DataFrame(rows)
    for name, value in changes.items():
        frame.loc[frame.index[-1], name] = value
    return frame


def test_plateaus_take_the_seeds_that_have_all_trainings():
    (whole,) = plateaus(by_hand())
    assert (whole["number"], whole["seeds"], whole["left_out"]) == (5, 3, 0)
    gain = whole["over_first"]
    assert whole["first"] == 0
    assert (gain.mean, gain.interval) == pytest.approx((10.33, 1.43), abs=0.01)
    assert whole["largest_gain"].mean == pytest.approx(-1 / 3)
    (short,) = plateaus(by_hand(test_accuracy=float("nan"), stopped=True))
    assert (short["seeds"], short["left_out"]) == (2, 1)
    assert short["accuracy"].mean == pytest.approx(35)


def errors_by_hand(errors):
    row = {"part": "task", "point": "minimum", "curvature": "hessian", "prox": 2.0, "task": 0}
    numbers = zip((0, 2, 5, 10), errors, strict=True)
    return pd.DataFrame(
        [{**row, "definite": True, "iterations": n, "error": e} for n, e in numbers]
    )


@pytest.mark.parametrize(
    ("errors", "nearer_from"),
    [
        ((0.5, 0.6, 0.4, 0.1), 5),
        ((0.5, 0.4, 0.7, 0.6), None),
        ((0.5, 0.4, 0.7, 0.1), 10),
        ((0.5, 0.4, 0.3, 0.1), 2),
    ],
)
def test_crossovers_begin_where_cg_stays_nearer(errors, nearer_from):
    (found,) = crossovers(errors_by_hand(errors))
    assert found["nearer_from"] == nearer_from
    assert (found["first_order"], found["fewest"], found["error"]) == (0.5, 2, errors[1])


def test_report_is_made_from_rows_alone(tasks, gradients, accuracies):
    rows = [*tasks.to_dict("records"), *gradients, *accuracies]
    for cell in TINY.cells():
        if cell["part"] == "cost" and cell["iterations"] in (0, 3):
            rows += [{**cell, **row} for row in TINY.measure(cell, CPU)]
    frame = pd.DataFrame(rows)
    accuracy = frame[frame.part == "accuracy"]
    assert (accuracy.groupby(["way", "iterations", "prox"]).trained_tasks.max() == 4).all()
    assert (frame[frame.part == "cost"].peak_bytes > 0).all()
    tables = {name: table.texts() for name, table in TINY.tables(frame).items()}
    assert len(tables) == 5 and all(len(table) for table in tables.values())
    assert "every method with 3 iterations, lambda = 2" in next(iter(tables))
    choice, accuracies, *_ = tables.values()
    assert choice.method.tolist() == ["first-order", "CG", "CG, Gauss-Newton", "CG, Jacobi"]
    first, *_ = [g for g in gradients if g["point"] == "minimum"]
    assert choice["error at the minimum"][0] == f"{first['error']:.2g}"
    # One seed has no interval.
    final = accuracy.dropna(subset="test_accuracy").test_accuracy
    shown = accuracies["after the same tasks (test)"]
    assert sorted(shown) == sorted(f"{100 * share:.1f}" for share in final)
    assert set(TINY.figures(frame)) == {"accuracy", "cost", "error"}
    facts = TINY.facts(frame)
    definite = tasks[tasks.definite & (tasks.iterations > 0)]
    assert facts["bounded"] == facts["errors"] == len(definite)
    assert facts["falling"] == facts["systems"] == len(definite) / 3
    last = tasks[tasks.iterations == 12]
    assert sum(group["true"] for group in facts["definite"]) == last.definite.sum()
    assert sum(group["total"] for group in facts["definite"]) == len(last)
    findings = " ".join(render_findings(TINY, frame))
    assert "bound of theory" in findings
    assert not any(wrong in findings for wrong in ("nan", "± inf", " 1 iterations"))
