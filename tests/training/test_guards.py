"""Meta-steps whose gradient is not to be used, and what is done about them."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_run import rows, run, timeless

from metalearn.commands.main import main
from metalearn.errors import UsageError
from metalearn.linear_solve import Status
from metalearn.metagrad import Certificate, MetaGradientResult, NonFiniteGradient
from metalearn.metagrad.base import InnerSolution
from metalearn.parallel.batches import SplitGradient
from metalearn.training import checkpoint
from metalearn.training.guards import PATIENCE, Explosion, FailedSolve, Guards

WORDS = ["metagrad=first_order", "wandb=disabled", "optimiser.lr=0.01"]


def result(norm: float, statuses: tuple[Status, ...] = ()) -> MetaGradientResult:
    tasks = max(1, len(statuses))
    of_tasks = torch.zeros(tasks)
    certificate = Certificate(of_tasks, status=torch.tensor(statuses)) if statuses else None
    inner = InnerSolution({}, of_tasks, of_tasks, of_tasks)
    grads = {"w": torch.tensor([0.6 * norm, 0.8 * norm])}
    return MetaGradientResult(grads, of_tasks, {}, inner, certificate)


@pytest.fixture
def faulty(monkeypatch):
    """Makes the meta-gradients of chosen meta-steps fail."""
    whole = SplitGradient.__call__

    def spoil(*steps: int, error: Exception | None = None) -> None:
        calls = [0]  # the first is the measurement of the peak

        def spoilt(self, *args, **kwargs):
            calls[0] += 1
            if calls[0] - 1 in steps:
                raise error or NonFiniteGradient("the outer loss of 1 of 3 tasks is not finite")
            return whole(self, *args, **kwargs)

        monkeypatch.setattr(SplitGradient, "__call__", spoilt)

    return spoil


@pytest.mark.parametrize(("policy", "factor"), [("skip", 1.0), ("halve", 0.5)])
def test_a_meta_step_that_is_not_finite_is_left_out(tmp_path, capsys, faulty, policy, factor):
    faulty(2, 4)
    words = [*WORDS, f"on_nonfinite={policy}", "checkpoint_every=1", "keep_checkpoints=9"]
    assert run(tmp_path, *words) == 0
    found = rows(tmp_path)
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6]
    assert ["query_loss" in row for row in found] == [True, False, True, False, True, True]
    assert [row["refused_steps"] for row in found] == [0, 1, 1, 2, 2, 2]
    rates = [1, factor, factor, factor**2, factor**2, factor**2]
    assert [row["outer_lr"] for row in found] == pytest.approx([0.01 * r for r in rates])
    said = capsys.readouterr().out
    assert "meta-step 4 is left out (2 so far): the outer loss of 1 of 3 tasks" in said
    for step, moves in zip(range(1, 7), (True, False, True, False, True, True), strict=True):
        before, after = (
            checkpoint.load(checkpoint.generation(tmp_path, 6 - n)) for n in (step - 1, step)
        )
        assert after["step"] == step
        same = [torch.equal(before["meta"][k], after["meta"][k]) for k in after["meta"]]
        assert all(same) != moves
        assert before["sampler"] != after["sampler"]  # the next meta-step has other tasks


def test_a_halved_rate_is_what_the_optimiser_uses(tmp_path, faulty):
    """Of gradient descent, whose step is the rate times the gradient."""
    faulty(2)
    words = ["metagrad=first_order", "wandb=disabled", "optimiser=sgd", "optimiser.lr=0.1"]
    words += ["optimiser.momentum=0"]
    words += ["checkpoint_every=1", "keep_checkpoints=9", "on_nonfinite=halve", "steps=3"]
    assert run(tmp_path, *words) == 0
    moved = []
    for n in (3, 1):
        before, after = (
            checkpoint.load(checkpoint.generation(tmp_path, m))["meta"] for m in (n, n - 1)
        )
        moved.append(math.sqrt(sum(((after[k] - before[k]) ** 2).sum() for k in after)))
    norms = [row["grad_norm"] for row in rows(tmp_path) if "grad_norm" in row]
    # float32: a difference of numbers of order 1 that is of order 1e-2.
    assert moved[0] == pytest.approx(0.1 * norms[0], rel=1e-4)
    assert moved[1] == pytest.approx(0.05 * norms[1], rel=1e-4)


def test_a_run_with_refused_steps_is_gone_on_with_as_if_it_had_not_ended(tmp_path, faulty):
    words = [*WORDS, "on_nonfinite=halve"]
    faulty(2)
    assert run(tmp_path / "whole", *words) == 0
    faulty(2)
    assert run(tmp_path / "parts", *words, "steps=3") == 0
    faulty()
    assert main(["train", f"resume={tmp_path / 'parts'}", "steps=6"]) == 0
    assert timeless(tmp_path / "parts") == timeless(tmp_path / "whole")


def test_a_stopped_run_goes_on_under_another_policy(tmp_path, capsys, faulty):
    faulty(4)
    assert run(tmp_path / "skips", *WORDS, "on_nonfinite=skip") == 0
    faulty(4)
    assert run(tmp_path / "stops", *WORDS) == 1
    assert "stopped at meta-step 4" in capsys.readouterr().err
    assert [row["step"] for row in rows(tmp_path / "stops")] == [1, 2, 3]
    faulty(0)  # resumed, no peak is measured: the 4th meta-step's is the first call
    assert main(["train", f"resume={tmp_path / 'stops'}", "on_nonfinite=skip"]) == 0
    assert timeless(tmp_path / "stops") == timeless(tmp_path / "skips")


def test_parameters_that_an_optimiser_spoils_are_put_back(tmp_path):
    words = ["tasks=sinusoid", "model=mlp_sinusoid", "metagrad=first_order"]
    words += ["meta_batch=2", "validation.tasks=4", "test.tasks=4", "wandb=disabled"]
    words += ["optimiser=sgd", "optimiser.lr=3e38", "steps=1"]
    assert main(["train", *words, "on_nonfinite=skip", f"run_dir={tmp_path}"]) == 0
    (row,) = rows(tmp_path)
    assert row["refused_steps"] == 1 and "grad_norm" not in row
    first, last = (checkpoint.load(checkpoint.generation(tmp_path, n)) for n in (1, 0))
    assert (first["step"], last["step"]) == (0, 1)
    assert all(torch.equal(first["meta"][k], last["meta"][k]) for k in first["meta"])
    assert first["optimiser"]["state"] == last["optimiser"]["state"] == {}


def test_it_stops_where_no_meta_step_is_of_use(tmp_path, capsys, faulty):
    faulty(*range(3, 100))
    assert run(tmp_path, *WORDS, "on_nonfinite=skip", "steps=50") == 1
    assert f"stopped at meta-step {2 + PATIENCE}" in capsys.readouterr().err
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 1 + PATIENCE


@pytest.mark.parametrize("policy", ["stop", "skip", "halve"])
def test_solves_that_all_break_off(tmp_path, capsys, policy):
    words = ["metagrad=imaml", "prox=1e-3", "wandb=disabled"]  # where each meets negative curvature
    status = run(tmp_path, *words, f"on_failed_solve={policy}")
    assert status == (1 if policy == "stop" else 0)
    said = capsys.readouterr()
    assert "solve of every task broke off (negative_curvature 3)" in said.out + said.err
    if policy != "stop":
        assert rows(tmp_path)[-1]["refused_steps"] == 6
        assert "query_loss" in rows(tmp_path)[-1]  # which is known


def test_a_solve_that_one_task_has_done_is_used():
    guards = Guards(on_failed_solve="skip")
    guards.check(result(1.0, (Status.NEGATIVE_CURVATURE, Status.CONVERGED)))
    guards.check(result(1.0, (Status.MAX_ITERS, Status.MAX_ITERS)))  # cut off is not broken off
    bad = result(1.0, (Status.NEGATIVE_CURVATURE, Status.BREAKDOWN))
    with pytest.raises(FailedSolve, match="negative_curvature 1, breakdown 1"):
        guards.check(bad)
    Guards().check(bad)


def test_a_gradient_far_above_its_median():
    guards = Guards(on_explosion="halve", explosion_factor=10)
    for i in range(20):
        assert guards.accept(guards.check(result(1000.0 if i < 2 else 1.0))) >= 1
    guards.check(result(9.9))
    with pytest.raises(Explosion, match="times the median of the last 20") as raised:
        guards.check(result(10.1))
    assert guards.refuse(raised.value) == "halve" and guards.refused == 1
    again = Guards(on_explosion="halve", explosion_factor=10)
    again.load_state_dict(guards.state_dict())
    with pytest.raises(Explosion):
        again.check(result(10.1))
    Guards().check(result(1e6))


def test_a_median_of_0_judges_nothing():
    guards = Guards(on_explosion="skip")
    for _ in range(20):
        guards.accept(guards.check(result(0.0)))
    assert guards.accept(guards.check(result(1.0))) == pytest.approx(1.0)


def test_a_norm_that_its_type_cannot_hold_is_not_finite():
    """Each element is finite, and the optimiser would square it."""
    with pytest.raises(NonFiniteGradient, match="norm is inf"):
        Guards().check(result(1e30))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"on_nonfinite": "keep"}, "stop, skip, halve"),
        ({"on_failed_solve": "ignore"}, "halve, keep"),
        ({"explosion_factor": 1.0}, "above 1"),
        ({"explosion_factor": math.nan}, "above 1"),
    ],
)
def test_options_that_are_none(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        Guards(**options)
