"""Inner rates and a proximal strength that are learned; ANIL, whose body has no rate at all."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tiny_run import run
from zoo import few_shot, learned_prox, learned_rates, learned_step_rates, relative_difference

from metalearn.config.build import build
from metalearn.errors import UsageError
from metalearn.inner import Adam, GradientDescent, NewtonCG
from metalearn.linear_solve import CG
from metalearn.metagrad import (
    FirstOrder,
    IMAMLAuthorsCode,
    Implicit,
    MetaGradient,
    Reptile,
    Unrolled,
    implicit_by_iterations,
)
from metalearn.nn import MLP, Conv4, ResNet12
from metalearn.problem import FewShot
from metalearn.problems.learned import LearnedProx, LearnedRates
from metalearn.training import checkpoint
from metalearn.training.protocol import EvaluationProtocol
from metalearn.tree import leaves_of, requires_grad_copy, task_norm

CONFIGS = Path(__file__).parents[2] / "configs" / "metagrad"
CONVERGED = NewtonCG(60, cg_iters=40, tol=1e-11)


def with_rates(theta, log_rate):
    return {
        "theta": theta,
        "log_rates": {k: torch.full_like(p, log_rate) for k, p in theta.items()},
    }


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_equal_rates_are_one_rate(momentum):
    problem, theta, task = few_shot(regression=False, prox=0.0)
    plain = Unrolled(GradientDescent(5, 0.3, momentum), "batched")(problem, theta, task)
    ways = {"lr": (0.3, 0.0), "log_rates": (1.0, math.log(0.3)), "both": (3.0, math.log(0.1))}
    for lr, log_rate in ways.values():
        learned = Unrolled(GradientDescent(5, lr, momentum), "batched")(
            LearnedRates(problem), with_rates(theta, log_rate), task
        )
        assert torch.allclose(learned.outer_loss, plain.outer_loss, rtol=1e-12)
        assert relative_difference(learned.grads["theta"], plain.grads) < 1e-12


def test_each_number_has_its_own_rate():
    problem, meta, task = learned_rates(prox=0.0)
    inner = GradientDescent(3, 0.2)
    reached = FirstOrder(inner).adapt(problem, meta, task).params
    theta = {k: p.detach() for k, p in meta["theta"].items()}
    phi = problem.problem.init(theta, task)
    for _ in range(3):
        phi = {k: p.detach().requires_grad_() for k, p in phi.items()}
        loss = problem.problem.inner_objective(phi, theta, task).sum()
        grads = torch.autograd.grad(loss, list(phi.values()))
        phi = {
            k: p - 0.2 * meta["log_rates"][k].exp() * g
            for (k, p), g in zip(phi.items(), grads, strict=True)
        }
    for k, p in phi.items():
        assert torch.allclose(reached[k], p, rtol=1e-12, atol=1e-14)


def loop_by_hand(problem, meta, task, steps, lr):
    """The mean outer loss after gradient descent whose rates are given step by step."""
    phi = problem.init(meta["theta"], task)
    for step in range(steps):
        loss = problem.inner_objective(phi, meta["theta"], task).sum()
        grads = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
        phi = {
            k: p - lr * meta["log_rates"][k][min(step, 2)].exp() * g
            for (k, p), g in zip(phi.items(), grads, strict=True)
        }
    return problem.outer_objective(phi, meta["theta"], task)[0]


@pytest.mark.parametrize("steps", [2, 3, 5])
def test_each_step_has_its_own_rate(steps):
    problem, meta, task = learned_step_rates(prox=0.0)
    leaves = requires_grad_copy(meta)
    loss = loop_by_hand(problem.problem, leaves, task, steps, 0.2)
    by_hand = torch.autograd.grad(loss.mean(), leaves_of(leaves), materialize_grads=True)
    inner = GradientDescent(steps, 0.2)
    for options in ({"backend": "higher"}, {"backend": "batched"}):
        result = Unrolled(inner, **options)(problem, meta, task)
        assert torch.allclose(result.outer_loss, loss, rtol=1e-12)
        assert relative_difference(result.grads, by_hand) < 1e-12
    parts = Unrolled(inner, "batched", checkpoint=2)(problem, meta, task)
    assert relative_difference(parts.grads, by_hand) < 1e-12


@pytest.mark.parametrize("steps", [0, 2, 3, 5])
def test_adaptation_takes_the_learned_rates_however_many_the_steps(steps):
    problem, meta, task = learned_step_rates(prox=0.0)
    params = Unrolled(GradientDescent(steps, 0.2), "batched").adapt(problem, meta, task).params
    loss = problem.outer_objective(params, meta, task)[0]
    assert torch.allclose(loss, loop_by_hand(problem.problem, meta, task, steps, 0.2), rtol=1e-12)


def test_a_truncated_gradient_leaves_the_rates_of_the_earlier_steps_out():
    problem, meta, task = learned_step_rates(prox=0.0)
    for backend in ("higher", "batched"):
        way = Unrolled(GradientDescent(3, 0.2), backend, truncate=1)
        for grad in way(problem, meta, task).grads["log_rates"].values():
            assert (grad[:2] == 0).all() and grad[2] != 0


def test_an_evaluation_with_more_steps_takes_the_last_learned_rate(tmp_path):
    assert run(tmp_path, "metagrad=maml_plus_plus", "wandb=disabled", "optimiser.lr=0.01") == 0
    state = checkpoint.load(tmp_path / "best.pt")
    assert all(rates.shape == (3,) for rates in state["meta"]["log_rates"].values())
    assert all((rates != 0).all() for rates in state["meta"]["log_rates"].values())
    for rates in state["meta"]["log_rates"].values():
        rates[2] = -math.inf  # the third step and all after it stand still
    checkpoint.save(tmp_path / "still.pt", state)
    protocol = EvaluationProtocol(tasks=8, modes=["transductive"], inner_steps=[1, 2, 3, 7])
    first, *others = [row["loss"] for row in protocol.rows(tmp_path / "still.pt")]
    assert len(set(others)) == 1 and first != others[0]


@pytest.mark.parametrize("learned", [learned_rates, learned_step_rates])
@pytest.mark.parametrize(
    "metagrad",
    [
        FirstOrder(GradientDescent(3, 0.2)),
        Reptile(GradientDescent(3, 0.2)),
        Implicit(GradientDescent(3, 0.2)),
        Implicit(GradientDescent(3, 0.2), None),
        Implicit(NewtonCG(3)),
        Implicit(GradientDescent(3, 0.2), curvature="gauss_newton"),
        Implicit(GradientDescent(3, 0.2), linearisation="recomputed"),
        implicit_by_iterations(GradientDescent(3, 0.2), 2, "warm_cg"),
        IMAMLAuthorsCode(GradientDescent(3, 0.2)),
    ],
    ids=repr,
)
def test_what_has_no_gradient_in_rates_refuses_them(metagrad, learned):
    problem, meta, task = learned(prox=0.0 if isinstance(metagrad, IMAMLAuthorsCode) else 0.5)
    with pytest.raises(UsageError, match="Choose metagrad=maml_batched"):
        metagrad(problem, meta, task)


WHOLE = [
    file
    for file in sorted(CONFIGS.glob("*.yaml"))
    if "_target_: metalearn.metagrad" in file.read_text()
]
"""The configs that name a class; the others set options of one of these."""


@pytest.mark.parametrize("file", WHOLE, ids=lambda file: file.stem)
def test_every_config_has_a_gradient_in_rates_or_refuses_them(file):
    options = OmegaConf.load(file).metagrad
    if "inner" not in options:
        pytest.skip("its inner solver is another config's")
    options.inner.steps = 2
    way = build(options, MetaGradient)
    problem, meta, task = learned_rates(prox=0.0 if isinstance(way, IMAMLAuthorsCode) else 0.5)
    if isinstance(way, Unrolled):
        rates = way(problem, meta, task).grads["log_rates"]
        assert all((grad != 0).any() for grad in rates.values())
    else:
        with pytest.raises(UsageError, match="learn_rates"):
            way(problem, meta, task)


@pytest.mark.parametrize("backend", ["higher", "batched"])
def test_a_gradient_without_steps_refuses_rates(backend):
    problem, meta, task = learned_rates(prox=0.5)
    with pytest.raises(UsageError, match=r"no gradient reaches meta\['log_rates'\]"):
        Unrolled(GradientDescent(3, 0.2), backend, truncate=0)(problem, meta, task)


def test_a_wrapper_that_hides_the_rates_refuses_them():
    problem, meta, task = learned_rates(prox=0.0)
    hidden = {"theta": meta, "log_prox": torch.zeros((), dtype=torch.float64)}
    for way in (Unrolled(GradientDescent(2, 0.1), "batched"), Implicit(GradientDescent(2, 0.1))):
        with pytest.raises((UsageError, AttributeError)):
            way(LearnedProx(problem), hidden, task)


def test_a_solver_without_a_rate_refuses_learned_ones():
    problem, meta, task = learned_rates(prox=0.5)
    with pytest.raises(UsageError, match="inner=NewtonCG: expected a solver whose steps have a"):
        FirstOrder(NewtonCG(3)).adapt(problem, meta, task)


@pytest.mark.parametrize("backend", ["higher", "batched"])
def test_adams_steps_go_with_the_rate(backend):
    problem, theta, task = few_shot(regression=False, prox=0.0)
    plain = Unrolled(Adam(4, 0.02), backend)(problem, theta, task)
    learned = Unrolled(Adam(4, 0.01), backend)(
        LearnedRates(problem), with_rates(theta, math.log(2)), task
    )
    assert torch.allclose(learned.outer_loss, plain.outer_loss, rtol=1e-12)
    assert relative_difference(learned.grads["theta"], plain.grads) < 1e-12


def test_a_rate_for_a_whole_tensor():
    problem, meta, task = learned_rates(prox=0.0)
    shared = {k: torch.zeros((), dtype=torch.float64) for k in meta["log_rates"]}
    spread = {k: torch.zeros_like(p) for k, p in meta["log_rates"].items()}
    way = Unrolled(GradientDescent(4, 0.2), "batched")
    one = way(problem, {**meta, "log_rates": shared}, task).grads
    each = way(problem, {**meta, "log_rates": spread}, task).grads
    assert relative_difference(one["theta"], each["theta"]) < 1e-12
    summed = {k: g.sum() for k, g in each["log_rates"].items()}
    assert relative_difference(one["log_rates"], summed) < 1e-12


def test_a_strength_that_could_be_learned_is_that_strength():
    learned, meta, task = learned_prox(prox=0.7)
    fixed, theta, _ = few_shot(regression=False, prox=0.7)
    for way in (
        Implicit(GradientDescent(20, 0.2), CG(30)),
        Implicit(GradientDescent(20, 0.2), CG(30), curvature="gauss_newton"),
        Unrolled(GradientDescent(5, 0.2), "batched"),
    ):
        one, other = way(learned, meta, task), way(fixed, theta, task)
        assert relative_difference(one.grads["theta"], other.grads) < 1e-10
        assert torch.allclose(one.outer_loss, other.outer_loss)
        assert torch.allclose(one.metrics["prox"], torch.full((3,), 0.7, dtype=torch.float64))


def test_the_strength_is_out_of_reach_of_first_order():
    problem, meta, task = learned_prox(prox=0.7)
    for way in (FirstOrder(GradientDescent(2, 0.1)), Reptile(GradientDescent(2, 0.1))):
        with pytest.raises(UsageError, match="log_prox"):
            way(problem, meta, task)


@pytest.mark.parametrize("backend", ["higher", "batched"])
def test_anil_is_maml_whose_body_has_rate_zero(backend):
    anil, theta, task = few_shot(regression=False, prox=0.0, adapt="head")
    maml, _, _ = few_shot(regression=False, prox=0.0)
    log_rates = {
        k: torch.full_like(p, 0.0 if k in anil.adapted else -math.inf) for k, p in theta.items()
    }
    way = Unrolled(GradientDescent(5, 0.3), backend)
    one = way(anil, theta, task)
    other = way(LearnedRates(maml), {"theta": theta, "log_rates": log_rates}, task)
    assert torch.allclose(one.outer_loss, other.outer_loss, rtol=1e-12)
    assert relative_difference(one.grads, other.grads["theta"]) < 1e-12
    assert one.inner.params.keys() == set(anil.adapted)


def test_a_proximal_term_holds_the_head_alone():
    problem, theta, task = few_shot(regression=False, prox=0.5, adapt="head")
    solution = FirstOrder(CONVERGED).adapt(problem, theta, task)
    plain = FewShot(MLP([3, 5, 2], torch.nn.Tanh).double(), adapt="head")
    pull = [problem.prox * (p - theta[k]) for k, p in solution.params.items()]
    leaves = {k: p.detach().requires_grad_() for k, p in solution.params.items()}
    loss = plain.inner_objective(leaves, theta, task)
    push = torch.autograd.grad(loss.sum(), list(leaves.values()))
    assert task_norm([a + b for a, b in zip(pull, push, strict=True)]).max() < 1e-10


@pytest.mark.parametrize(
    ("model", "adapt", "names"),
    [
        (Conv4(5, channels=4), "head", ["13.weight", "13.bias"]),
        (ResNet12(5, widths=(4, 4, 4, 4)), "head", ["6.weight", "6.bias"]),
        (MLP([3, 2]), "head", ["1.weight", "1.bias"]),
        (torch.nn.Linear(3, 2), "head", ["weight", "bias"]),
        (MLP([3, 4, 2]), ["3.bias", "1.bias"], ["1.bias", "3.bias"]),
        (MLP([3, 2]), "all", ["1.weight", "1.bias"]),
    ],
    ids=["conv4", "resnet12", "mlp", "linear", "names", "all"],
)
def test_what_is_adapted(model, adapt, names):
    problem = FewShot(model, adapt=adapt)
    assert problem.adapted == names
    task = few_shot(regression=False, prox=0.0)[2]
    assert list(problem.init(dict(model.named_parameters()), task)) == names


@pytest.mark.parametrize(
    ("adapt", "sentence"),
    [("tail", "'all', 'head'"), (["1.weights"], "names, of 1.weight"), ([], "nothing to adapt")],
    ids=str,
)
def test_what_cannot_be_adapted(adapt, sentence):
    with pytest.raises(UsageError, match=sentence):
        FewShot(MLP([3, 2]), adapt=adapt)


def test_wrappers_nest():
    problem, meta, task = learned_prox(prox=0.5)
    nested = LearnedRates(problem)
    assert isinstance(nested.problem, LearnedProx)
    rates = {k: torch.zeros_like(p) for k, p in meta["theta"].items()}
    way = Unrolled(GradientDescent(5, 0.2), "batched")
    one = way(nested, {"theta": meta, "log_rates": rates}, task).grads
    assert relative_difference(one["theta"], way(problem, meta, task).grads) < 1e-12
