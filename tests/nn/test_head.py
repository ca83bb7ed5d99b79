"""Symmetric heads: the classes start alike, and their number is the task's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from metalearn.errors import UsageError
from metalearn.inner import GradientDescent
from metalearn.linear_solve import CG
from metalearn.metagrad import FirstOrder, Implicit, Unrolled
from metalearn.nn import Conv4, SymmetricHead
from metalearn.problem import FewShot
from metalearn.tasks import TaskBatch
from metalearn.tree import leaves_of, like_tree

SYMMETRIC = ("zero", "tied", "prototypes", "solved")
SIZE = 6


def model_with(head: str, learn_scale: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(SIZE, 5), nn.Tanh(), SymmetricHead(5, head, learn_scale)]  # type: ignore[arg-type]
    return nn.Sequential(*layers).double()


def meta_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def tasks(ways: int = 3, shots: int = 2, count: int = 2, seed: int = 1) -> TaskBatch:
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(count, ways, 1, SIZE, generator=g, dtype=torch.float64)

    def drawn(each: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = centres + 0.5 * torch.randn(count, ways, each, SIZE, generator=g, dtype=torch.float64)
        y = torch.arange(ways).repeat_interleave(each).repeat(count, 1)
        return x.flatten(1, 2), y

    return TaskBatch(*drawn(shots), *drawn(3))


def by_differences(value: Any, meta: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Central differences of `value(meta)`, h = 1e-5: exact to about 1e-9 in float64."""
    leaves, found = leaves_of(meta), []
    for i, leaf in enumerate(leaves):
        grad = torch.zeros_like(leaf).flatten()
        for j in range(leaf.numel()):
            ends = []
            for h in (1e-5, -1e-5):
                moved = leaf.clone().flatten()
                moved[j] += h
                new = [*leaves[:i], moved.view_as(leaf), *leaves[i + 1 :]]
                ends.append(float(value(like_tree(meta, new))))
            grad[j] = (ends[0] - ends[1]) / 2e-5
        found.append(grad.view_as(leaf))
    return found


@pytest.mark.parametrize("head", SYMMETRIC)
def test_symmetric_head_takes_the_ways_of_the_task(head: str) -> None:
    model = model_with(head)
    problem, meta = FewShot(model, prox=0.5), meta_of(model)
    for ways in (2, 4):
        task = tasks(ways)
        params = problem.init(meta, task)
        assert params["2.weight"].shape == (2, ways, 5)
        assert problem.query_predictions(params, meta, task).shape == (2, 3 * ways, ways)


@pytest.mark.parametrize("head", SYMMETRIC)
def test_symmetric_head_is_equivariant_to_the_order_of_classes(head: str) -> None:
    model, task = model_with(head), tasks()
    problem, meta = FewShot(model, prox=0.5), meta_of(model)
    order = torch.tensor([2, 0, 1])
    renamed = TaskBatch(task.support_x, order[task.support_y], task.query_x, order[task.query_y])
    inner = GradientDescent(3, 0.1)
    found = []
    for t in (task, renamed):
        params = Unrolled(inner, "batched").adapt(problem, meta, t).params
        found.append(problem.query_predictions(params, meta, t))
    torch.testing.assert_close(found[1][..., order], found[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("head", ["zero", "tied", "prototypes", "solved"])
@pytest.mark.parametrize("learn_scale", [False, True])
def test_unrolled_gradient_of_a_symmetric_head_equals_finite_differences(
    head: str, learn_scale: bool
) -> None:
    model, task = model_with(head, learn_scale), tasks()
    problem, meta = FewShot(model, prox=0.5), meta_of(model)
    unrolled = Unrolled(GradientDescent(2, 0.1), backend="batched")
    result = unrolled(problem, meta, task)

    def value(m: Any) -> torch.Tensor:
        params = unrolled.adapt(problem, m, task).params
        return problem.outer_objective(params, m, task)[0].mean()

    # A solved head is solved to a gradient of 1e-4, and its derivative by CG to 1e-4.
    tol = 2e-3 if head == "solved" else 1e-7
    for grad, exact in zip(leaves_of(result.grads), by_differences(value, meta), strict=True):
        torch.testing.assert_close(grad, exact, rtol=tol, atol=tol)


def test_tied_vector_changes_nothing_under_cross_entropy() -> None:
    model, task = model_with("tied"), tasks()
    problem, meta = FewShot(model), meta_of(model)
    unrolled = Unrolled(GradientDescent(3, 0.2), backend="batched")
    start = unrolled(problem, meta, task)
    moved = unrolled(problem, {**meta, "2.weight": torch.randn(1, 5, dtype=torch.float64)}, task)
    torch.testing.assert_close(moved.outer_loss, start.outer_loss, rtol=1e-12, atol=1e-12)
    assert start.grads["2.weight"].abs().max() < 1e-14


def test_one_step_from_a_zero_head_moves_the_head_alone() -> None:
    """MAML's gradient is then ANIL's: the body's inner gradient is zero for every meta."""
    model, task = model_with("zero"), tasks()
    meta, inner = meta_of(model), GradientDescent(1, 0.4)
    found = {}
    for adapt in ("all", "head"):
        problem = FewShot(model, adapt=adapt)  # type: ignore[arg-type]
        found[adapt] = Unrolled(inner, backend="batched")(problem, meta, task)
    torch.testing.assert_close(found["all"].outer_loss, found["head"].outer_loss)
    for name, grad in found["all"].grads.items():
        torch.testing.assert_close(grad, found["head"].grads[name], rtol=1e-10, atol=1e-12)


def test_prototypes_choose_the_nearest_class_mean() -> None:
    model, task = model_with("prototypes"), tasks(shots=4)
    problem, meta = FewShot(model), meta_of(model)
    scores = problem.query_predictions(problem.init(meta, task), meta, task)
    body = nn.Sequential(model[0], model[1])
    with torch.no_grad():
        support, query = body(task.support_x), body(task.query_x)
    means = support.view(2, 3, 4, 5).mean(2)
    nearest = torch.cdist(query, means).argmin(-1)
    assert torch.equal(scores.argmax(-1), nearest)


def test_solved_head_starts_at_a_small_gradient() -> None:
    model, task = model_with("solved"), tasks()
    meta = meta_of(model)
    problem = FewShot(model, prox=0.1, adapt="head")
    solution = FirstOrder(GradientDescent(0, 0.1)).adapt(problem, meta, task)
    assert solution.grad_norm.max() <= 1e-4


def test_prox_head_holds_the_head_alone() -> None:
    model, task = model_with("zero"), tasks()
    meta = meta_of(model)
    params = {
        name: p + 1.0 for name, p in FewShot(model).init(meta, task).items()
    }  # a distance of 1 along every number
    loss = FewShot(model).inner_objective(params, meta, task)
    held = FewShot(model, prox=2.0, prox_head=0.5).inner_objective(params, meta, task)
    body, head = 5 * SIZE + 5, 3 * 5
    torch.testing.assert_close(held - loss, torch.full_like(loss, (2.0 * body + 0.5 * head) / 2))


def test_implicit_gradient_with_prox_head_equals_the_exact_one() -> None:
    model, task = model_with("zero"), tasks()
    meta = meta_of(model)
    problem = FewShot(model, prox=1.0, prox_head=0.3)
    long = GradientDescent(1500, 0.2)
    implicit = Implicit(long, CG(200, rtol=1e-12))(problem, meta, task)
    unrolled = Unrolled(long, backend="batched", checkpoint="sqrt")(problem, meta, task)
    for name, grad in unrolled.grads.items():
        torch.testing.assert_close(implicit.grads[name], grad, rtol=1e-6, atol=1e-9)


def test_conv4_with_a_symmetric_head_adapts_any_number_of_classes() -> None:
    model = Conv4(5, channels=4, head="zero", feature_norm=True)
    assert not any(name.startswith("15") for name, _ in model.named_parameters())
    free = Conv4(5, channels=4)
    assert isinstance(free[-1], nn.Linear)
    x = torch.rand(2, 7, 1, 28, 28)
    y = torch.arange(7).repeat(2, 1)
    task = TaskBatch(x, y, x, y)
    result = Unrolled(GradientDescent(1, 0.4), "batched")(
        FewShot(model), dict(model.named_parameters()), task
    )
    assert result.outer_loss.isfinite().all()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Conv4(5, head="zeros"), "head='zeros'"),
        (lambda: Conv4(5, learn_scale=True), "learn_scale=True"),
        (lambda: SymmetricHead(4, "none"), "start='none'"),  # type: ignore[arg-type]
        (lambda: FewShot(nn.Sequential(SymmetricHead(4), nn.Linear(1, 3))), "SymmetricHead"),
        (lambda: FewShot(model_with("zero"), prox_head=-1.0), "prox_head=-1.0"),
        (lambda: FewShot(model_with("solved")), "head=solved"),
    ],
)
def test_bad_heads_are_refused(make: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make()
