"""Distillation: its gradients against finite differences, and what its rows mean."""

from __future__ import annotations

import dataclasses
import json

import pandas as pd
import pytest
import torch
from torch import nn
from zoo import finite_differences, relative_difference, solution_differences

from metalearn.commands.main import main
from metalearn.errors import UsageError
from metalearn.inner import GradientDescent, NewtonCG
from metalearn.linear_solve import CG, Neumann
from metalearn.metagrad import FirstOrder, Implicit, Unrolled
from metalearn.nn import MLP
from metalearn.problems.distillation import Distillation
from metalearn.problems.training_task import TrainingTask, fresh
from metalearn.studies.distill.study import DistillStudy
from metalearn.studies.frame.findings import render_findings
from metalearn.tasks.image_splits import image_splits

CPU = torch.device("cpu")
TINY = DistillStudy(
    seeds=[0],
    dataset="digits",
    source=None,
    test=0.25,
    validation=0.2,
    train=400,
    width=32,
    decay=0.01,
    methods=["unrolled", "gauss_newton"],
    unrolled_steps=20,
    implicit_steps=40,
    inner_lr=0.1,
    solver_iters=10,
    steps=40,
    lr=0.1,
    starts=2,
    batch=64,
    every=10,
    draws=3,
    judge_decays=[0.01],
    judge_starts=2,
)


def small():
    """Three images of four pixels, two starts; decayed enough for minima that are isolated."""
    torch.manual_seed(0)
    problem = Distillation(MLP([4, 3, 3], nn.SiLU), torch.arange(3), decay=0.1)
    params = fresh(lambda: MLP([4, 3, 3], nn.SiLU).double(), 2, CPU)
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.arange(9) % 3
    return problem, {"images": torch.randn(3, 4, dtype=torch.float64)}, TrainingTask(params, x, y)


SHORT = GradientDescent(7, 0.2, momentum=0.9)
NEWTON = NewtonCG(60, cg_iters=60, tol=1e-11)


@pytest.mark.parametrize(
    "metagrad",
    [
        Unrolled(SHORT, "batched"),
        Unrolled(SHORT, "batched", checkpoint=3),
        Unrolled(SHORT, "higher"),
        Implicit(NEWTON, CG(60, rtol=1e-12)),
        Implicit(NEWTON, Neumann(2000, rtol=1e-12)),
    ],
    ids=["batched", "checkpointed", "higher", "cg", "neumann"],
)
def test_gradients_are_those_of_finite_differences(metagrad):
    problem, meta, task = small()
    if isinstance(metagrad, Implicit):  # all solves end in the minimum that it found
        near = metagrad.adapt(problem, meta, task).params
        expected = solution_differences(problem, meta, task, near)
    else:
        expected = finite_differences(problem, meta, task, metagrad.inner)
    # Fourth-order differences at 1e-3: 1e-12 of truncation and 1e-11 / 1e-3 of the inner solve.
    assert relative_difference(metagrad(problem, meta, task).grads, expected) < 1e-6


def test_a_first_order_gradient_does_not_reach_the_images():
    problem, meta, task = small()
    with pytest.raises(UsageError, match="no gradient reaches meta"):
        FirstOrder(SHORT)(problem, meta, task)


def measured(study, source):
    return study.measure({"source": source, "seed": 0}, CPU)


def test_distilled_images_beat_random_ones_by_every_meta_gradient():
    random = [row["accuracy"] for row in measured(TINY, "random") if row["what"] == "judged"]
    assert len(random) == TINY.draws
    for method in TINY.methods:
        rows = measured(TINY, method)
        assert rows[0]["accuracy"] > sum(random) / len(random) + 10
        curve = [row for row in rows if row["what"] == "curve"]
        assert [row["step"] for row in curve] == [0, 10, 20, 30, 40]
        assert sum(row["what"] == "image" for row in rows) == 10
    assert measured(TINY, "whole")[0]["accuracy"] > sum(random) / len(random)


def test_memory_grows_with_unrolled_steps_and_not_with_those_to_a_minimum():
    longer = {"unrolled_steps": 80, "implicit_steps": 120, "steps": 1}
    long, short = dataclasses.replace(TINY, **longer), dataclasses.replace(TINY, steps=1)

    def ratio(source):
        return measured(long, source)[0]["peak_bytes"] / measured(short, source)[0]["peak_bytes"]

    assert ratio("unrolled") > 2
    assert ratio("gauss_newton") < 1.1


def test_the_class_means_that_are_shown_are_the_means():
    rows = [row for row in measured(TINY, "means") if row["what"] == "image"]
    train = image_splits("digits", None, 0, TINY.test, TINY.validation, TINY.train).train
    for row in rows:
        shown = torch.tensor([float(value) for value in row["pixels"].split()])
        mean = train.x[train.y == row["label"]].mean(0).flatten()
        assert torch.allclose(shown, mean, rtol=5e-3, atol=1e-6)  # three digits are written


def rows_by_hand():
    """Two seeds, figures that no two cells share."""
    rows = []
    for seed in (0, 1):
        for source, accuracy in (("random", 60.0), ("means", 88.0), ("whole", 97.0)):
            row = {"source": source, "seed": seed, "what": "judged", "accuracy": accuracy + seed}
            rows.append({**row, "validation_accuracy": 50.0, "linear_accuracy": 61.0})
        for source, accuracy in (("unrolled", 90.0), ("cg", 92.0), ("gauss_newton", 94.0)):
            row = {"source": source, "seed": seed, "what": "judged", "accuracy": accuracy + seed}
            row |= {"validation_accuracy": 100 - accuracy, "step_s": accuracy / 1e3}
            row |= {"peak_bytes": 1000 * accuracy, "inner_grad_norm": 0.01}
            row |= {"linear_accuracy": 80.0, "deeper_accuracy": 70.0}
            if source != "unrolled":
                row |= {"negative_curvature": 0.25 * (source == "cg"), "relative_residual": 1e-3}
                row |= {"solver_iterations": 12.0}
            rows.append(row)
            for step in (0, 5):
                point = {"source": source, "seed": seed, "what": "curve", "step": step}
                rows.append({**point, "train_s": 0.1 * step, "validation_accuracy": 70.0 + step})
            for label in (0, 1):
                image = {"source": source, "seed": seed, "what": "image", "label": label}
                rows.append({**image, "side": 2, "pixels": "0 1 2 3"})
    return pd.DataFrame(rows)


@pytest.fixture
def rows():
    found = rows_by_hand()
    found.loc[found.source == "random", "deeper_accuracy"] = 55.0
    return found


def test_tables_show_means_over_the_seeds(rows):
    accuracy, cost = (table.texts() for table in TINY.tables(rows).values())
    accuracy = accuracy.set_index("trained on")
    # Of two values the t interval is 12.71 times half their distance.
    assert accuracy["accuracy, %"]["ten class means"] == "88.50 ± 6.35"
    assert accuracy["above random, points"]["implicit, CG, Gauss-Newton"] == "34.00 ± 0.00"
    assert accuracy["above random, points"]["ten random real images"] == ""
    assert cost["ms a meta-step"].tolist() == ["90", "92", "94"]
    assert cost["negative curvature, % of solves"].tolist() == ["", "25", "0"]
    assert set(TINY.figures(rows)) == {"images", "training"}


def test_findings_of_one_seed_have_no_interval(rows):
    # These rows have the order on the test split the other way.
    assert TINY.facts(rows)["best"] == "unrolled"
    assert len(render_findings(TINY, rows)) == 4
    assert len(render_findings(TINY, rows[rows.source != "cg"])) == 3  # no two curvatures
    one = rows[rows.seed == 0]
    assert not any("±" in text or "interval" in text for text in render_findings(TINY, one))


def test_from_the_command_line_to_the_published_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["preset=quick", "seeds=[3]", "steps=2", "every=1", "width=4", "draws=2"]
    small += ["unrolled_steps=2", "implicit_steps=3", "judge_decays=[0.1]", "solver_iters=2"]
    assert main(["solve", "distill", *small, "wandb=disabled", "threads=1"]) == 0
    folder = tmp_path / "runs" / "quick" / "distill"
    rows = pd.read_csv(folder / "rows.csv")
    assert set(rows.source) == {"random", "means", "whole", "unrolled", "gauss_newton"}
    assert (folder / "images.svg").stat().st_size > 1000
    assert json.loads((folder / "provenance.json").read_text())["options"]["width"] == 4
