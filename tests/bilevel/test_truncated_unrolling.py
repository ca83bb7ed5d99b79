"""The derivative through the last inner steps, through every optimiser of torch."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from network_problem import descent
from torch import optim
from torch.optim.lr_scheduler import CosineAnnealingLR

from metalearn.bilevel import SOBA, Descent, TruncatedUnrolling
from metalearn.errors import UsageError
from metalearn.studies.rates.problems import TYPE, Logistic, full

OPTIMISERS = [
    partial(optim.SGD, lr=0.3),
    partial(optim.SGD, lr=0.3, momentum=0.9, nesterov=True, weight_decay=0.1),
    partial(optim.SGD, lr=0.3, momentum=0.9, dampening=0.3),
    partial(optim.Adam, lr=0.1),
    partial(optim.Adam, lr=0.1, amsgrad=True, weight_decay=0.1),
    partial(optim.AdamW, lr=0.1, weight_decay=0.1),
    partial(optim.RMSprop, lr=0.05, momentum=0.5, centered=True),
    partial(optim.Adagrad, lr=0.1),
    partial(optim.Adamax, lr=0.1),
    partial(optim.NAdam, lr=0.1),
    partial(optim.RAdam, lr=0.1),
]


class Shifted(Logistic):
    """The problem from another start, where no gradient is 0."""

    def init(self, meta):
        return {"w": torch.linspace(-1, 1, 5, dtype=TYPE)[None]}


def unrolling(problem, meta, optimiser, method, scheduler=None) -> Descent:
    loaders = full(problem.inner), full(problem.outer)
    return Descent(problem, method, meta, *loaders, optimiser, inner_scheduler=scheduler)


def slopes(problem, optimiser, steps, scheduler=None):
    """Finite differences of the outer loss after inner steps."""

    def value(meta):
        run = unrolling(problem, meta, optimiser, TruncatedUnrolling(), scheduler)
        run.descend_inner(steps)
        return float(problem.outer_loss(run.params, meta, problem.outer).detach())

    centre = problem.begin()["l"]
    moves = 1e-5 * torch.eye(5, dtype=TYPE)[:, None]
    found = [(value({"l": centre + m}) - value({"l": centre - m})) / 2e-5 for m in moves]
    return torch.tensor(found, dtype=TYPE)


@pytest.mark.parametrize(
    "optimiser", OPTIMISERS, ids=lambda o: f"{o.func.__name__}-{len(o.keywords)}"
)
def test_the_whole_derivative_is_that_of_finite_differences(optimiser):
    problem = Shifted()
    run = unrolling(problem, problem.begin(), optimiser, TruncatedUnrolling(4, 4))
    # 1e-7: central differences of 1e-5 are right to about 1e-10 / 1e-5 by rounding.
    found, exact = run.step().grads["l"][0], slopes(problem, optimiser, 4)
    assert torch.allclose(found, exact, rtol=1e-6, atol=1e-7 * float(exact.abs().max()))


class Rated(Shifted):
    """The problem with a learned rate for each of its weights."""

    def begin(self):
        return {**super().begin(), "rate": torch.linspace(-1, 0.5, 5, dtype=TYPE)[None]}

    def inner_rates(self, meta):
        return {"w": meta["rate"].exp()}


@pytest.mark.parametrize(
    "optimiser", OPTIMISERS, ids=lambda o: f"{o.func.__name__}-{len(o.keywords)}"
)
def test_learned_rates_have_the_derivative_of_finite_differences(optimiser):
    problem, moves = Rated(), 1e-5 * torch.eye(5, dtype=TYPE)[:, None]

    def value(name, move):
        meta = {**problem.begin(), name: problem.begin()[name] + move}
        run = unrolling(problem, meta, optimiser, TruncatedUnrolling())
        run.descend_inner(4)
        return float(problem.outer_loss(run.params, meta, problem.outer).detach())

    found = unrolling(problem, problem.begin(), optimiser, TruncatedUnrolling(4, 4)).step().grads
    for name in ("l", "rate"):
        slopes = torch.tensor([(value(name, m) - value(name, -m)) / 2e-5 for m in moves])
        assert torch.allclose(
            found[name][0], slopes.to(TYPE), rtol=1e-6, atol=1e-7 * float(slopes.abs().max())
        )


def test_a_rate_of_one_changes_nothing_and_a_rate_of_zero_freezes():
    class Frozen(Shifted):
        def inner_rates(self, meta):
            return {"w": torch.tensor([1, 1, 1, 1, 0], dtype=TYPE)}

    optimiser = partial(optim.Adam, lr=0.1)
    plain = unrolling(Shifted(), Shifted().begin(), optimiser, TruncatedUnrolling(3, 3))
    run = unrolling(Frozen(), Frozen().begin(), optimiser, TruncatedUnrolling())
    start = run.params["w"].detach().clone()
    run.descend_inner(1)
    plain.descend_inner(1)
    assert torch.allclose(run.params["w"][:, :4], plain.params["w"][:, :4], rtol=1e-12)
    assert torch.equal(run.params["w"][:, 4], start[:, 4])


@pytest.mark.parametrize(
    ("rates", "method", "sentence"),
    [
        ({"w": torch.ones(5)}, SOBA(system_lr=0.1), "goes through the inner optimiser"),
        ({"v": torch.ones(5)}, TruncatedUnrolling(), "'v': expected names of params"),
        ({"w": torch.ones(3)}, TruncatedUnrolling(), r"of shape \(3,\): expected one that broad"),
    ],
)
def test_rates_of_no_use_are_refused(rates, method, sentence):
    class Unfit(Shifted):
        def inner_rates(self, meta):
            return rates

    with pytest.raises(UsageError, match=sentence):
        unrolling(Unfit(), Unfit().begin(), partial(optim.SGD, lr=0.3), method)


def test_the_schedule_is_that_of_the_steps():
    problem, optimiser = Shifted(), partial(optim.SGD, lr=0.3, momentum=0.9)
    scheduler = partial(CosineAnnealingLR, T_max=5)
    run = unrolling(problem, problem.begin(), optimiser, TruncatedUnrolling(4, 4), scheduler)
    found, exact = run.step().grads["l"][0], slopes(problem, optimiser, 4, scheduler)
    assert torch.allclose(found, exact, rtol=1e-6, atol=1e-8)


def test_one_step_is_the_rule_of_luketina():
    problem, meta = Shifted(), Shifted().begin()
    run = unrolling(problem, meta, partial(optim.SGD, lr=0.3), TruncatedUnrolling())
    run.step()
    w = run.params["w"].detach().clone().requires_grad_()
    found = run.step().grads["l"]
    (slope,) = torch.autograd.grad(
        problem.outer_loss(run.params, meta, problem.outer), run.params["w"]
    )
    # w' = w - 0.3 (... + exp(l) w), so that d w' / d l = -0.3 exp(l) w.
    assert torch.allclose(found, -0.3 * meta["l"].exp() * w * slope, rtol=1e-12)


def test_a_rehearsed_step_is_that_of_darts_and_leaves_no_trace():
    problem, meta = Shifted(), Shifted().begin()
    optimiser = partial(optim.SGD, lr=0.3, momentum=0.9)
    run = unrolling(problem, meta, optimiser, TruncatedUnrolling(1, 1, rehearse=True))
    plain = unrolling(problem, meta, optimiser, TruncatedUnrolling())
    found = run.step().grads["l"]
    plain.descend_inner(1)
    assert torch.equal(run.params["w"], plain.params["w"])
    assert torch.equal(found, plain.step().grads["l"])  # the second step, which run has undone
    run.step()
    assert torch.equal(run.params["w"], plain.params["w"])


@pytest.mark.parametrize("optimiser", [partial(optim.Adam, lr=0.1), partial(optim.RMSprop, lr=0.1)])
def test_a_gradient_of_zero_gives_no_nan(optimiser):
    class Unused(Shifted):
        def init(self, meta):
            return {**super().init(meta), "unused": torch.ones(2, dtype=TYPE)}

    problem = Unused()
    run = unrolling(problem, problem.begin(), optimiser, TruncatedUnrolling(3, 3))
    reference = unrolling(Shifted(), problem.begin(), optimiser, TruncatedUnrolling(3, 3))
    assert torch.equal(run.step().grads["l"], reference.step().grads["l"])


def test_dropout_draws_the_same_masks_on_the_way_back():
    torch.manual_seed(0)
    run = descent(TruncatedUnrolling(3, 3), dropout=0.5, outer_optimiser=None)
    start = run.inner.snapshot()
    # `direction` draws as `step` does from the same random state, by the same batches.
    batches = run.inner_batch(), run.outer_batch()
    torch.manual_seed(1)
    first = run.method.direction(run, *batches)
    run.inner.load_state_dict(start)

    def value(decay: float) -> float:
        with torch.no_grad():
            run.meta["decay"].fill_(decay)
        run.inner.load_state_dict(start)
        torch.manual_seed(1)
        return float(run.method.direction(run, *batches).outer_loss)

    # 2 %: float32 differences of 0.02 keep two digits.
    slope = (value(-2.99) - value(-3.01)) / 0.02
    assert float(first.by_meta[0]) == pytest.approx(slope, rel=0.02)


def test_optimisers_without_a_derivative_are_refused():
    problem = Shifted()
    with pytest.raises(UsageError, match="inner_optimiser=SparseAdam: expected an optimiser whose"):
        unrolling(problem, problem.begin(), optim.SparseAdam, TruncatedUnrolling())
    with pytest.raises(UsageError, match=r"steps=2, window=3.*expected a window of at most"):
        TruncatedUnrolling(2, 3)
