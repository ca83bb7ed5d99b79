"""Truncated and checkpointed back-propagation through the inner loop, and its multi-step loss."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_backends import batch
from zoo import (
    FIRST_ORDER,
    UNROLLED,
    few_shot,
    finite_differences,
    problems,
    relative_difference,
    unrolled_problems,
)

from metalearn.errors import UsageError
from metalearn.inner import Adam, GradientDescent, NewtonCG
from metalearn.metagrad import FirstOrder, Unrolled
from metalearn.metagrad.exact import meta_gradient_error
from metalearn.nn import Conv4
from metalearn.parallel.batches import SplitGradient
from metalearn.problem import FewShot
from metalearn.problems.learned import LearnedRates
from metalearn.tree import detached, leaves_of

INNER = [GradientDescent(7, 0.1), GradientDescent(7, 0.1, 0.9), Adam(7, 0.05)]


class Cut:
    """A problem whose inner loop has been at `params` when meta was `at`, and goes on from there.

    It starts from params + init(meta) - init(at): the first-order carry over what came before. The
    rates, where they are learned, are those of the steps after `steps`.
    """

    def __init__(self, problem, at, params, steps):
        self.problem, self.at, self.params = problem, detached(at), params
        if isinstance(problem, LearnedRates):
            self.step_rates = lambda meta: {
                name: rates[min(steps, len(rates) - 1) :]
                for name, rates in problem.step_rates(meta).items()
            }
        self.inner_objective = problem.inner_objective
        self.outer_objective = problem.outer_objective

    def init(self, meta, task):
        now, then = self.problem.init(meta, task), self.problem.init(self.at, task)
        return {name: p + now[name] - then[name] for name, p in self.params.items()}


@pytest.mark.parametrize("name", UNROLLED)
def test_truncated_is_the_derivative_of_the_last_steps(name):
    problem, meta, task = unrolled_problems()[name]
    before = FirstOrder(GradientDescent(4, 0.1)).adapt(problem, meta, task).params
    exact = finite_differences(
        Cut(problem, meta, before, 4), meta, task, GradientDescent(3, 0.1), step=1e-4
    )
    for backend in ("higher", "batched"):
        result = Unrolled(GradientDescent(7, 0.1), backend, truncate=3)(problem, meta, task)
        assert relative_difference(result.grads, exact) < 1e-6
        assert result.inner.steps.tolist() == [7] * len(task)


def test_truncated_gradient_descent_has_its_closed_form():
    # d phi / d theta = (I - aA)^k + a lambda sum_{j<k} (I - aA)^j, the last k steps' own.
    problem, meta, task = problems()["quadratic"]
    rate, steps, kept = 0.1, 7, 3
    eye = torch.eye(4, dtype=torch.float64)
    contraction = eye - rate * (problem.A + problem.prox * eye)
    powers = [torch.linalg.matrix_power(contraction, j) for j in range(kept + 1)]
    jacobian = powers[kept] + rate * problem.prox * sum(powers[:kept])
    phi = meta["theta"].expand(3, 4)
    for _ in range(steps):
        step = torch.einsum("tij,tj->ti", problem.A, phi) - problem.b
        phi = phi - rate * (step + problem.prox * (phi - meta["theta"]))
    exact = torch.einsum("tij,ti->tj", jacobian, phi - problem.c).mean(0)
    result = Unrolled(GradientDescent(steps, rate), "batched", truncate=kept)(problem, meta, task)
    assert relative_difference(result.grads, {"theta": exact}) < 1e-12


@pytest.mark.parametrize("inner", INNER, ids=repr)
@pytest.mark.parametrize("name", FIRST_ORDER)
def test_truncation_goes_from_first_order_to_the_whole(name, inner):
    problem, meta, task = problems()[name]
    first = FirstOrder(inner)(problem, meta, task).grads
    for backend in ("higher", "batched"):
        whole = Unrolled(inner, backend)(problem, meta, task).grads
        errors = [
            relative_difference(
                Unrolled(inner, backend, truncate=k)(problem, meta, task).grads, whole
            )
            for k in (0, 4, 7, 100)
        ]
        assert min(errors[:2]) > 1e-6
        assert errors[2:] == [0, 0]
        none = Unrolled(inner, backend, truncate=0)(problem, meta, task).grads
        assert relative_difference(none, first) < 1e-14


@pytest.mark.parametrize("inner", INNER, ids=repr)
@pytest.mark.parametrize("truncate", [3, 5])
def test_both_back_ends_truncate_alike(inner, truncate):
    # The state that the last steps start with, velocities and moments too, is the same one.
    torch.manual_seed(0)
    model = Conv4(3, channels=4, norm="none").double()
    meta, task = dict(model.named_parameters()), batch(2, 3, 1, 2)
    one = Unrolled(inner, "higher", truncate)(FewShot(model), meta, task)
    other = Unrolled(inner, "batched", truncate)(FewShot(model), meta, task)
    assert relative_difference(other.grads, one.grads) <= 1e-10


@pytest.mark.parametrize("inner", INNER, ids=repr)
@pytest.mark.parametrize("name", UNROLLED)
def test_checkpoints_leave_the_gradient_as_it_is(name, inner):
    problem, meta, task = unrolled_problems()[name]
    for truncate in (None, 5):
        whole = Unrolled(inner, "batched", truncate)(problem, meta, task)
        for checkpoint in (1, 3, 7, 100, "sqrt"):
            parts = Unrolled(inner, "batched", truncate, checkpoint)(problem, meta, task)
            # The sum over segments is rounded in another order; nothing else differs.
            assert relative_difference(parts.grads, whole.grads) < 1e-13
            assert torch.equal(parts.outer_loss, whole.outer_loss)
            assert torch.equal(parts.inner.steps, whole.inner.steps)


def test_checkpoints_in_single_precision():
    torch.manual_seed(0)
    model = Conv4(3, channels=8)
    meta, task = dict(model.named_parameters()), batch(2, 3, 1, 2, torch.float32)
    inner = GradientDescent(9, 0.05)
    whole = Unrolled(inner, "batched")(FewShot(model), meta, task).grads
    parts = Unrolled(inner, "batched", checkpoint="sqrt")(FewShot(model), meta, task).grads
    assert relative_difference(parts, whole) < 1e-6


def test_checkpoints_keep_who_has_stopped():
    problem, meta, task = problems()["quadratic"]
    inner = GradientDescent(60, 0.3, tol=0.1)
    whole = Unrolled(inner, "batched")(problem, meta, task)
    parts = Unrolled(inner, "batched", checkpoint=4)(problem, meta, task)
    assert len(set(whole.inner.steps.tolist())) > 1
    assert torch.equal(parts.inner.steps, whole.inner.steps)
    assert relative_difference(parts.grads, whole.grads) < 1e-13


@pytest.mark.parametrize("inner", INNER, ids=repr)
@pytest.mark.parametrize("name", UNROLLED)
def test_mixed_mode_gives_the_gradient_of_reverse_mode(name, inner):
    problem, meta, task = unrolled_problems()[name]
    for truncate in (None, 5):
        reverse = Unrolled(inner, "batched", truncate)(problem, meta, task)
        mixed = Unrolled(inner, "batched", truncate, mode="mixed")(problem, meta, task)
        # Both are exact; forward mode rounds in another order.
        assert relative_difference(mixed.grads, reverse.grads) < 1e-12
        assert torch.equal(mixed.outer_loss, reverse.outer_loss)
        assert torch.equal(mixed.inner.steps, reverse.inner.steps)


def test_mixed_mode_keeps_who_has_stopped():
    problem, meta, task = problems()["quadratic"]
    inner = GradientDescent(60, 0.3, tol=0.1)
    reverse = Unrolled(inner, "batched")(problem, meta, task)
    mixed = Unrolled(inner, "batched", mode="mixed")(problem, meta, task)
    assert len(set(reverse.inner.steps.tolist())) > 1
    assert relative_difference(mixed.grads, reverse.grads) < 1e-12


@pytest.mark.parametrize(
    ("steps", "checkpoint", "lengths"),
    [
        (64, "sqrt", [8] * 8),
        (10, "sqrt", [4, 4, 2]),
        (7, 3, [3, 3, 1]),
        (5, 9, [5]),
        (5, None, [5]),
        (0, None, [0]),
        (0, "sqrt", [0]),
        (1, "sqrt", [1]),
    ],
)
def test_segments(steps, checkpoint, lengths):
    unrolled = Unrolled(GradientDescent(steps, 0.1), "batched", checkpoint=checkpoint)
    assert unrolled._segments(steps) == lengths


def test_no_steps_are_the_derivative_of_init():
    problem, meta, task = problems()["classification"]
    first = FirstOrder(GradientDescent(0, 0.1))(problem, meta, task).grads
    for checkpoint in (None, "sqrt"):
        none = Unrolled(GradientDescent(0, 0.1), "batched", checkpoint=checkpoint)
        assert relative_difference(none(problem, meta, task).grads, first) < 1e-14


def test_the_error_of_a_truncated_gradient_is_its_distance_from_the_whole():
    problem, meta, task = problems()["classification"]
    inner = GradientDescent(7, 0.1)
    whole = Unrolled(inner, "batched")(problem, meta, task).grads
    truncated = Unrolled(inner, "batched", truncate=2)
    expected = relative_difference(truncated(problem, meta, task).grads, whole)
    assert meta_gradient_error(truncated, problem, meta, task) == pytest.approx(expected)


def weighted(inner, weights, problem, meta, task):
    """The weighted sum of the gradients of unrolled runs of 1, 2, ... steps."""
    runs = [Unrolled(replace(inner, steps=k + 1), "batched") for k in range(len(weights))]
    grads = [leaves_of(run(problem, meta, task).grads) for run in runs]
    return [sum(w * g for w, g in zip(weights, gs, strict=True)) for gs in zip(*grads, strict=True)]


@pytest.mark.parametrize("inner", INNER, ids=repr)
@pytest.mark.parametrize("name", UNROLLED)
def test_the_multi_step_gradient_is_the_weighted_sum_of_its_steps(name, inner):
    problem, meta, task = unrolled_problems()[name]
    inner = replace(inner, steps=4)
    last = Unrolled(inner, "batched")(problem, meta, task)
    for made, weights in ((None, [0.25] * 4), (3.0, [0.1, 0.1, 0.1, 0.7])):
        expected = weighted(inner, weights, problem, meta, task)
        solver_state = {} if made is None else {"meta_step": torch.tensor(made)}
        for checkpoint in (None, 1, 3, "sqrt"):
            way = Unrolled(inner, "batched", checkpoint=checkpoint, multi_step=5)
            result = way(problem, meta, task, **solver_state)
            assert relative_difference(result.grads, expected) < 1e-10
            assert torch.equal(result.outer_loss, last.outer_loss)
            assert result.metrics.keys() == last.metrics.keys()
            for key, values in last.metrics.items():
                assert torch.equal(result.metrics[key], values)


def test_multi_step_weights_of_tasks_that_stop():
    problem, meta, task = problems()["quadratic"]
    inner = GradientDescent(12, 0.3, tol=0.5)
    result = Unrolled(inner, "batched", multi_step=1)(problem, meta, task)
    assert result.inner.steps.max() < 12
    expected = weighted(inner, [1 / 12] * 12, problem, meta, task)
    assert relative_difference(result.grads, expected) < 1e-10


def test_the_weights_of_the_earlier_steps_fall_to_zero_by_the_carry():
    problem, meta, task = problems()["classification"]
    inner, solver_state = GradientDescent(2, 0.3), {}
    way = Unrolled(inner, "batched", multi_step=4)
    for early in (0.5, 0.375, 0.25, 0.125):
        result = way(problem, meta, task, **solver_state)
        expected = weighted(inner, [early, 1 - early], problem, meta, task)
        assert relative_difference(result.grads, expected) < 1e-10
        solver_state = result.solver_state
    plain = Unrolled(inner, "batched")(problem, meta, task)
    for _ in range(2):
        counted = Counted(problem)
        result = way(counted, meta, task, **solver_state)
        assert relative_difference(result.grads, plain.grads) == 0
        assert counted.outer == 1
        solver_state = result.solver_state
    assert plain.solver_state == {}


class Counted:
    """A problem that counts the evaluations of its outer objective."""

    def __init__(self, problem):
        self.problem, self.outer = problem, 0
        self.init, self.inner_objective = problem.init, problem.inner_objective

    def outer_objective(self, params, meta, task):
        self.outer += 1
        return self.problem.outer_objective(params, meta, task)


def test_a_batch_in_parts_counts_its_meta_steps_once():
    problem, meta, task = few_shot(regression=False, prox=0.0)
    way = Unrolled(GradientDescent(3, 0.3), "batched", multi_step=7)
    split, whole, parts = SplitGradient(way, micro_batches=2), {}, {}
    for _ in range(9):
        one, two = way(problem, meta, task, **whole), split(problem, meta, task, **parts)
        whole, parts = one.solver_state, two.solver_state
        assert torch.equal(whole["meta_step"], parts["meta_step"])
        assert relative_difference(two.grads, one.grads) < 1e-12


@pytest.mark.parametrize("steps", [0, 1])
def test_a_loop_without_earlier_steps_has_no_other_loss(steps):
    problem, meta, task = problems()["classification"]
    inner = GradientDescent(steps, 0.3)
    plain = Unrolled(inner, "batched")(problem, meta, task)
    result = Unrolled(inner, "batched", multi_step=5)(problem, meta, task)
    assert relative_difference(result.grads, plain.grads) == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"multi_step": 0, "backend": "batched"}, "at least 1 meta-step"),
        ({"multi_step": 2.5, "backend": "batched"}, "at least 1 meta-step"),
        ({"multi_step": 5}, "backend='batched'"),
        ({"multi_step": 5, "backend": "batched", "truncate": 2}, "Leave out truncate=2"),
        ({"mode": "forward", "backend": "batched"}, "expected 'reverse' or 'mixed'"),
        ({"mode": "mixed"}, "expected backend=batched, not higher"),
        ({"mode": "mixed", "backend": "batched", "checkpoint": 2}, "expected checkpoint=null"),
        ({"mode": "mixed", "backend": "batched", "multi_step": 2}, "expected multi_step=null"),
        ({"truncate": -1}, "at least 0 steps"),
        ({"truncate": 1.5}, "at least 0 steps"),
        ({"checkpoint": 0, "backend": "batched"}, "at least 1 step"),
        ({"checkpoint": "root", "backend": "batched"}, "'sqrt'"),
        ({"checkpoint": "sqrt", "backend": "higher"}, "backend='batched'"),
        ({"truncate": 2, "inner": GradientDescent(5, 0.1, tol=1e-3)}, "leave tol out"),
    ],
    ids=str,
)
def test_bad_options_are_refused(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        Unrolled(**{"inner": GradientDescent(5, 0.1), **options})


def test_a_line_search_is_not_unrolled():
    problem, meta, task = problems()["quadratic"]
    with pytest.raises(UsageError, match="NewtonCG has no unrolled derivative"):
        Unrolled(NewtonCG(2), "batched")(problem, meta, task)
