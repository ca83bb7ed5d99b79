"""The study of training time to an accuracy: its clock, the examples and the report."""

from __future__ import annotations

import io
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from metalearn.errors import UsageError
from metalearn.metagrad import NonFiniteGradient
from metalearn.studies.frame import options
from metalearn.studies.frame.findings import render_findings
from metalearn.studies.time_to_accuracy import examples
from metalearn.studies.time_to_accuracy.learners import Ours, mean_accuracy, train_until
from metalearn.studies.time_to_accuracy.study import TimeToAccuracyStudy
from metalearn.tasks import ImageTasks, LabelledImages
from metalearn.training.estimate import Estimate

CPU = torch.device("cpu")
OPTIONS: dict[str, Any] = {
    "experiments": ["omniglot_5w1s_maml_quick"],
    "examples": ["higher"],
    "dataset": "glyphs",
    "overrides": [
        *("model.channels=4", "meta_batch=2", "steps=2"),
        *("tasks.queries=1", "tasks.dataset.drawings=4"),
    ],
    "seeds": [0, 1],
    "accuracy": 0.999,
    "limit_s": 1e-9,
    "resolution": 0.1,
    "queries": 1,
    "validation_tasks": 3,
    "test_tasks": 4,
    "keep_memory": "none",
    "threads": 1,
}


class Clocked:
    """A learner whose meta-step takes 2 s on the wall, of which 1 s is the processor's."""

    def __init__(self, steps: int | None = None) -> None:
        self.steps, self.wall, self.cpu = steps, 0.0, 0.0
        self.about: dict[str, Any] = {}

    def step(self) -> None:
        self.wall, self.cpu = self.wall + 2, self.cpu + 1

    def accuracy(self, sampler: Any, tasks: int) -> Estimate:
        raise AssertionError

    def trained(self, accuracies: list[float], **options: float) -> list[dict[str, Any]]:
        """The rows of a training whose validations take 100 s each."""
        left = iter(accuracies)

        def validate() -> Estimate:
            self.wall, self.cpu = self.wall + 100, self.cpu + 100
            return Estimate(next(left), 0.01)

        own = {"goal": 0.95, "limit_s": 1000.0, "resolution": 0.5, **options}
        clocks = (lambda: self.wall, lambda: self.cpu)
        return list(train_until(self, validate=validate, clocks=clocks, **own))


def test_train_until_counts_no_validation_and_ends_at_the_goal():
    rows = Clocked().trained([0.2, 0.5, 0.94, 0.95, 1.0])
    # A validation after at least 1 s, and then each time half as much again: 2, 3, 6, 9 s or more.
    assert [row["wall_s"] for row in rows] == [2, 4, 6, 10]
    assert [row["cpu_s"] for row in rows] == [1, 2, 3, 5]
    assert [row["step"] for row in rows] == [1, 2, 3, 5]
    assert rows[-1]["accuracy"] == 0.95


def test_train_until_ends_at_the_limit():
    rows = Clocked().trained([0.2] * 9, limit_s=7.0)
    assert [row["wall_s"] for row in rows] == [2, 4, 6, 8]  # the step that passes 7 s is the last


def test_train_until_ends_at_the_learners_last_step():
    assert [row["step"] for row in Clocked(steps=4).trained([0.2] * 9)] == [1, 2, 3, 4]


def tasks() -> ImageTasks:
    """5-way 1-shot tasks of noise, with as many drawings of a class as higher's example takes."""
    images = torch.randint(256, (96, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    data = LabelledImages(images.byte(), torch.arange(6).repeat_interleave(16), tuple("abcdef"))
    return ImageTasks(lambda: {"train": data, "validation": data}, 5, 1, 1, 2, False, 1, 28)


def test_mean_accuracy_is_the_share_of_right_queries_over_the_samplers_tasks():
    sampler = tasks().sampler("validation", 1000, CPU)
    batch = tasks().sampler("validation", 1000, CPU).sample(6)  # as `evaluate` draws them

    def nearest(sx: torch.Tensor, sy: torch.Tensor, qx: torch.Tensor) -> torch.Tensor:
        distances = torch.cdist(qx.flatten(1), sx.flatten(1))
        return -distances[:, sy.argsort()]

    expected = [
        (nearest(sx, sy, qx).argmax(-1) == qy).double().mean()
        for sx, sy, qx, qy in examples.each_task(batch)
    ]
    assert mean_accuracy(nearest, sampler, 6) == Estimate.of(torch.stack(expected))


@pytest.mark.parametrize(
    ("name", "steps", "lr", "queries", "divisor"),
    [("learn2learn", 1, 0.5, 1, 2), ("learn2learn, CNN", 1, 0.5, 1, 2), ("higher", 5, 0.1, 15, 1)],
)
def test_an_example_takes_the_unrolled_gradient_of_its_setting(
    monkeypatch, name, steps, lr, queries, divisor
):
    """Against autograd through the inner steps, without the library."""
    library, make = examples.EXAMPLES[name]
    pytest.importorskip(library)
    monkeypatch.setattr(examples, "META_BATCH", 2)
    torch.manual_seed(0)
    learner: Any = make(tasks(), 3, CPU)
    model = learner._model if name == "higher" else learner._maml.module
    start = {key: p.detach().clone() for key, p in model.named_parameters()}
    learner.step()
    found = {key: p.grad.clone() for key, p in model.named_parameters()}
    moved = {key: p.detach().clone() for key, p in model.named_parameters()}

    theta = {key: p.clone().requires_grad_() for key, p in start.items()}
    batch = examples.training_sampler(tasks(), queries, 3, CPU).sample(2)
    total = torch.zeros(())
    for sx, sy, qx, qy in examples.each_task(batch):
        params = theta
        for _ in range(steps):
            loss = F.cross_entropy(functional_call(model, params, sx), sy)
            grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            params = {k: p - lr * g for (k, p), g in zip(params.items(), grads, strict=True)}
        total = total + F.cross_entropy(functional_call(model, params, qx), qy)
    expected = torch.autograd.grad(total / divisor, list(theta.values()))
    assert len(qy) == 5 * queries
    for key, gradient in zip(theta, expected, strict=True):
        # Float32 through batch norms of few values; a bias before one has no gradient but rounding.
        torch.testing.assert_close(found[key], gradient, rtol=1e-2, atol=2e-4, msg=key)
    # Adam's first step moves each weight by its rate, against the sign of the gradient.
    rate = 0.001 if name == "higher" else 0.003
    for key in theta:
        large = found[key].abs() > 1e-4
        expected_move = -rate * found[key].sign()
        torch.testing.assert_close(
            (moved[key] - start[key])[large], expected_move[large], rtol=1e-2, atol=1e-6
        )


def test_train_ends_at_the_limit_and_says_the_accuracy_then():
    study = TimeToAccuracyStudy(**OPTIONS)
    rows = measured(study)
    assert list(rows.competitor.unique()) == ["omniglot_5w1s_maml_quick"]
    curve, end = rows[rows.part == "curve"], rows[rows.part == "end"].iloc[0]
    assert len(curve) == 1 and not end.reached and end.why == "not reached in 1e-09 s"
    assert 0 <= end.accuracy < 0.999 and end.parameters > 0 and end["mode"] == "transductive"
    findings = " ".join(render_findings(study, rows))
    assert (
        f"99.9 % not reached in 1e-09 s. Last validation accuracy: {100 * end.accuracy:.2f} %"
        in (findings)
    )


def measured(study: TimeToAccuracyStudy) -> pd.DataFrame:
    """The rows of the study's first cell, from a training in this process."""
    cell = study.cells()[0]
    return pd.DataFrame([{**cell, **row} for row in study.train(cell, CPU)])


def test_train_ends_after_the_steps_of_the_experiment():
    rows = measured(TimeToAccuracyStudy(**{**OPTIONS, "limit_s": 1e9}))
    end = rows[rows.part == "end"].iloc[0]
    assert end.step == 2 and end.why == "not reached in its 2 meta-steps"


def test_train_that_a_guard_ends_is_left_out_with_its_reason(monkeypatch):
    def refuse(self: Ours) -> None:
        raise NonFiniteGradient("the gradient is not finite")

    monkeypatch.setattr(Ours, "step", refuse)
    study = TimeToAccuracyStudy(**OPTIONS)
    rows = measured(study)
    assert list(rows.why) == ["the gradient is not finite"]
    assert list(study.tables(rows)) == ["Trainings that were left out"] and not study.figures(rows)


def test_measure_leaves_out_a_library_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    study = TimeToAccuracyStudy(**OPTIONS)
    (row,) = study.measure({"competitor": "higher", "seed": 0}, CPU)
    assert row["why"] == "higher is not installed"


def made_up() -> pd.DataFrame:
    """Ours reaches the goal with both seeds, a peer with one of three, another with none."""
    times = {"maml": [10.0, 30.0], "higher": [100.0, None, None], "learn2learn": [None, None]}
    rows = []
    for name, seconds in times.items():
        for seed, wall in enumerate(seconds):
            cell = {"competitor": name, "seed": seed}
            spent = wall or 1800.0
            figures = {"step": 7, "wall_s": spent, "cpu_s": spent / 2}
            accuracy = 0.96 if wall else 0.912
            rows.append({**cell, "part": "curve", **figures, "accuracy": accuracy})
            rows.append(
                {**cell, "part": "end", "library": "" if name == "maml" else name, **figures}
                | {"reached": bool(wall), "why": "" if wall else "not reached in 1800 s"}
                | {"accuracy": accuracy, "test_accuracy": 0.95, "goal": 0.95, "limit_s": 1800.0}
                | {"dataset": "omniglot", "threads": 1, "keep_memory": "ours", "setting": "x"}
                | {"mode": "transductive", "parameters": 10, "meta_batch": 32}
            )
    return pd.DataFrame(rows)


@pytest.mark.parametrize("stored", [False, True])
def test_report_counts_a_training_that_missed_as_longer_than_its_limit(stored):
    study, rows = TimeToAccuracyStudy(**OPTIONS), made_up()
    if stored:  # as `measure=false` reads them
        rows = pd.read_csv(io.StringIO(rows.convert_dtypes().to_csv(index=False)))
    table = next(iter(study.tables(rows).values())).texts().set_index("training")
    assert table["reached"].to_dict() == {
        "maml": "2 of 2",
        "higher": "1 of 3",
        "learn2learn": "0 of 2",
    }
    assert list(table["s"]) == ["30 [10, 30]", "more than 1800", "more than 1800"]
    # Of 10 and 30 s the upper one stands for the median, and 1800 s are 60 times as many.
    assert list(table["times our fastest"]) == ["1.00", "more than 60.0", "more than 60.0"]
    findings = render_findings(study, rows)
    assert (
        sum("95 % not reached in 1800 s. Last validation accuracy: 91.20 %" in f for f in findings)
        == 4
    )
    assert set(study.figures(rows)) == {"time_to_accuracy"}


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ({"experiments": [], "examples": []}, "expected at least one"),
        ({"experiments": ["omniglot_5w1s_mam"]}, "omniglot_5w1s_mam"),
        ({"examples": ["higherr"]}, "expected one of learn2learn"),
        ({"accuracy": 1.0}, "accuracy=1.0: expected a number below 1"),
        ({"limit_s": 0.0}, "limit_s=0.0: expected a number above 0"),
        ({"threads": None}, "threads=None: expected a whole number"),
    ],
)
def test_a_mistake_is_one_sentence(own, sentence):
    with pytest.raises(UsageError, match=sentence):
        TimeToAccuracyStudy(**{**OPTIONS, **own})


@pytest.mark.parametrize(("preset", "cells"), [("quick", 3), ("full", 15)])
def test_presets_are_sound(preset, cells):
    study, _, common = options.study("bench", "time_to_accuracy", [f"preset={preset}"])
    assert len(study.cells()) == cells and common.threads == 1


@pytest.mark.slow
def test_measure_trains_in_a_process_of_its_own():
    study = TimeToAccuracyStudy(**{**OPTIONS, "accuracy": 0.0})
    rows = study.measure(study.cells()[0], CPU)
    assert rows[-1]["reached"] and rows[-1]["why"] == ""
