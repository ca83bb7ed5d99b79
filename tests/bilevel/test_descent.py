"""A descent: its state, its optimisers, and what it says of bad input and divergence."""

from __future__ import annotations

import copy
import io
from functools import partial

import pytest
import torch
from network_problem import SGD, NetworkProblem, descent, loaders
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau, StepLR

from metalearn.bilevel import (
    BOME,
    F2SA,
    SABA,
    SOBA,
    AmIGO,
    Descent,
    Hypergradient,
    Method,
    StocBiO,
    TruncatedUnrolling,
)
from metalearn.errors import UsageError
from metalearn.metagrad import NonFiniteGradient
from metalearn.tree import leaves_of

METHODS = {
    "amigo": AmIGO(2, 2, 0.05),
    "stocbio": StocBiO(2, 3, 0.05),
    "soba": SOBA(0.05),
    "saba": SABA(0.05),
    "truncated": TruncatedUnrolling(3, 2),
    "darts": TruncatedUnrolling(1, 1, rehearse=True),
    "f2sa": F2SA(2, 5.0),
    "bome": BOME(2, 0.05),
}


def leaves(run: Descent) -> list[torch.Tensor]:
    found = [*leaves_of(run.meta), *run.params.values(), *leaves_of(run.memory)]
    return [x.detach().clone() for x in found + [p for c in run.copies.values() for p in c.leaves]]


def saved(run: Descent) -> dict:
    """The state as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(run.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_descent_takes_the_same_steps_to_the_bit(name):
    def begin() -> Descent:
        return descent(
            METHODS[name],
            dropout=0.3,
            fixed=name == "saba",
            inner_optimiser=partial(torch.optim.AdamW, lr=0.01, weight_decay=0.0),
            inner_scheduler=partial(CosineAnnealingLR, T_max=50),
            outer_scheduler=partial(StepLR, step_size=2),
        )

    torch.manual_seed(0)
    run = begin()
    for _ in range(3):  # within a pass over either loader
        run.step()
    state = saved(run)
    rest = [run.step() for _ in range(3)]
    torch.manual_seed(1)
    again = begin()
    again.step()
    again.load_state_dict(state)
    for before in rest:
        after = again.step()
        assert (after.number, after.outer_loss) == (before.number, before.outer_loss)
        assert all(map(torch.equal, leaves_of(after.grads), leaves_of(before.grads)))
    assert all(map(torch.equal, leaves(again), leaves(run)))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_lowers_the_outer_loss(name):
    torch.manual_seed(0)
    run = descent(METHODS[name], fixed=name == "saba", inner_optimiser=SGD)
    batch = run.problem.validation.tensors
    losses = [float(run.oracle.outer(run.params, run.meta, batch).loss)]
    for _ in range(40):
        run.step()
    losses.append(float(run.oracle.outer(run.params, run.meta, batch).loss))
    assert losses[1] < 0.9 * losses[0]
    pairs = zip(leaves_of(run.meta), leaves_of(begin()), strict=True)
    assert not any(torch.equal(a, b) for a, b in pairs)


def begin():
    return NetworkProblem().begin()


@pytest.mark.parametrize("name", METHODS)
def test_a_direction_moves_nothing(name):
    torch.manual_seed(0)
    run = descent(METHODS[name], fixed=name == "saba")
    run.step()
    before, state = leaves(run), copy.deepcopy(run.inner.optimiser.state_dict())
    found = run.hypergradient(run.problem.train.tensors, run.problem.validation.tensors)
    assert all(map(torch.equal, before, leaves(run)))
    after = run.inner.optimiser.state_dict()
    assert all(map(torch.equal, leaves_of(state["state"]), leaves_of(after["state"])))
    assert all(g.isfinite().all() for g in leaves_of(found))


@pytest.mark.parametrize("name", METHODS)
def test_divergence_is_a_sentence_and_never_nan(name):
    method = METHODS[name]
    run = descent(method, fixed=name == "saba", inner_optimiser=partial(torch.optim.SGD, lr=1e30))
    with pytest.raises(NonFiniteGradient, match=r"outer step .* is the usual cure|smaller rates"):
        for _ in range(10):
            run.step()


def test_a_linear_system_that_diverges_says_which_rate():
    run = descent(SOBA(1e30), inner_optimiser=partial(torch.optim.SGD, lr=1e-3))
    with pytest.raises(NonFiniteGradient, match="x is not finite; a smaller system_lr"):
        for _ in range(10):
            run.step()


def test_a_decay_that_the_hypergradient_does_not_know_of_is_warned_of():
    adamw = partial(torch.optim.AdamW, lr=0.01)
    with pytest.warns(UserWarning, match=r"AdamW\(weight_decay=0.01\): the hypergradient of SOBA"):
        descent(SOBA(0.05), inner_optimiser=adamw)
    descent(TruncatedUnrolling(), inner_optimiser=adamw)  # goes through it


def test_a_fixed_meta_stays_and_an_unused_leaf_is_named():
    run = descent(SOBA(0.05), outer_optimiser=None)
    run.step()
    assert all(map(torch.equal, leaves_of(run.meta), leaves_of(begin())))
    problem = NetworkProblem()
    meta = {**problem.begin(), "unused": torch.zeros(2)}
    other = Descent(problem, SOBA(0.05), meta, *loaders(problem), SGD, SGD)
    with pytest.raises(UsageError, match=r"no gradient reaches meta\['unused'\]"):
        other.step()


def test_parts_and_precision_are_those_of_the_oracle():
    runs = [
        descent(AmIGO(1, 1, 0.05), inner_optimiser=SGD, micro_batches=parts, precision=precision)
        for parts, precision in ((1, "full"), (3, "full"), (1, "bf16"))
    ]
    found = []
    for run in runs:
        torch.manual_seed(0)
        found.append(torch.cat([g.flatten() for g in leaves_of(run.step().grads)]))
    assert torch.allclose(found[0], found[1], rtol=1e-4, atol=1e-7)  # float32 sums reordered
    assert torch.allclose(found[0], found[2], rtol=0.1, atol=0.02 * float(found[0].norm()))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"inner_optimiser": torch.optim.LBFGS}, "expected an optimiser whose step takes no"),
        ({"inner_optimiser": 0.1}, "inner_optimiser=float: expected a function that makes"),
        ({"inner_optimiser": lambda p: torch.optim.SGD(p[:1], 0.1)}, "moves 1 tensors: expected"),
        ({"inner_scheduler": ReduceLROnPlateau}, "inner_scheduler=ReduceLROnPlateau: expected a"),
        (
            {"outer_optimiser": None, "outer_scheduler": partial(StepLR, step_size=1)},
            "outer_scheduler without outer_optimiser",
        ),
    ],
)
def test_bad_arguments_are_one_sentence(options, sentence):
    with pytest.raises(UsageError, match=sentence) as error:
        descent(SOBA(0.05), **options)
    assert "\n" not in str(error.value)


def test_what_is_no_problem_no_method_and_no_params_is_refused():
    problem = NetworkProblem()
    pair = loaders(problem)
    with pytest.raises(UsageError, match="expected an object with the methods init, inner_loss"):
        Descent(object(), SOBA(), begin(), *pair, SGD)
    with pytest.raises(UsageError, match=r"method=float: expected a method of metalearn.bilevel"):
        Descent(problem, 0.1, begin(), *pair, SGD)
    problem.init = lambda meta: [torch.zeros(3)]
    with pytest.raises(UsageError, match=r"problem.init returns list: expected a dict"):
        Descent(problem, SOBA(), begin(), *pair, SGD)
    with pytest.raises(UsageError, match="inner_loader has other batches in each pass"):
        descent(SABA())


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: SOBA(system_lr=0.0), r"SOBA\(system_lr=0.0\): expected a number above 0"),
        (lambda: AmIGO(damping=-1.0), r"AmIGO\(damping=-1.0\): expected a number of at least 0"),
        (lambda: StocBiO(terms=-1), r"StocBiO\(terms=-1\): expected a whole number from 0 on"),
        (lambda: F2SA(inner_steps=0), r"F2SA\(inner_steps=0\): expected a whole number from 1 on"),
        (lambda: BOME(control=float("nan")), r"BOME\(control=nan\): expected a number above 0"),
    ],
)
def test_bad_options_are_one_sentence(make, sentence):
    with pytest.raises(UsageError, match=sentence):
        make()


def test_a_state_of_another_method_is_refused():
    state = descent(F2SA()).state_dict()
    with pytest.raises(UsageError, match="expected one of a descent with the same"):
        descent(SOBA()).load_state_dict(state)
    with pytest.raises(UsageError, match="a state of another method"):
        descent(TruncatedUnrolling()).load_state_dict(state)


def test_any_scheduler_of_steps_is_kept():
    run = descent(SOBA(0.05), inner_scheduler=partial(OneCycleLR, max_lr=0.1, total_steps=20))
    run.step()
    state = saved(run)
    run.step()
    other = descent(SOBA(0.05), inner_scheduler=partial(OneCycleLR, max_lr=0.1, total_steps=20))
    other.load_state_dict(state)
    other.step()
    assert other.inner.rate == run.inner.rate != run.inner._rate


def test_a_method_of_ones_own_needs_one_function():
    class FirstOrder(Method):
        def step(self, at):
            at.descend_inner(1)
            found = at.oracle.inner(at.params, at.meta, at.inner_batch(), by_meta=True)
            return Hypergradient(found.by_meta, found.loss, found.loss)

    assert descent(FirstOrder()).step().number == 1
