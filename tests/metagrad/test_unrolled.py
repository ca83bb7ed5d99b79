"""Truncated and checkpointed back-propagation through the inner loop."""

from __future__ import annotations

import pytest
import torch
from test_backends import batch
from zoo import (
    FIRST_ORDER,
    UNROLLED,
    finite_differences,
    problems,
    relative_difference,
    unrolled_problems,
)

from metalearn.errors import UsageError
from metalearn.exact import meta_gradient_error
from metalearn.inner import Adam, GradientDescent, NewtonCG
from metalearn.learned import LearnedRates
from metalearn.metagrad import FirstOrder, Unrolled
from metalearn.nn import Conv4
from metalearn.problem import FewShot
from metalearn.tree import fixed

INNER = [GradientDescent(7, 0.1), GradientDescent(7, 0.1, 0.9), Adam(7, 0.05)]


class Cut:
    """A problem whose inner loop has been at `params` when meta was `at`, and goes on from there.

    It starts from params + init(meta) - init(at): the first-order carry over what came before. The
    rates, where they are learned, are those of the steps after `steps`.
    """

    def __init__(self, problem, at, params, steps):
        self.problem, self.at, self.params = problem, fixed(at), params
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
@pytest.mark.parametrize("backend", ["higher", "batched"])
def test_truncated_is_the_derivative_of_the_last_steps(name, backend):
    problem, meta, task = unrolled_problems()[name]
    result = Unrolled(GradientDescent(7, 0.1), backend, truncate=3)(problem, meta, task)
    before = FirstOrder(GradientDescent(4, 0.1)).adapt(problem, meta, task).params
    exact = finite_differences(
        Cut(problem, meta, before, 4), meta, task, GradientDescent(3, 0.1), step=1e-4
    )
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


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
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
