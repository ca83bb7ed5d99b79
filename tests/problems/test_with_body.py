"""A problem under a shared body: the features are had once, the gradient is the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from metalearn.inner import GradientDescent
from metalearn.linear_solve import CG
from metalearn.metagrad import FirstOrder, Implicit, MetaGradient, Unrolled
from metalearn.nn import SymmetricHead, body_and_head
from metalearn.problem import FewShot
from metalearn.problems import WithBody
from metalearn.tasks import TaskBatch
from metalearn.training.evaluation import evaluate_each

INNER = GradientDescent(3, 0.1)


class Counted(nn.Module):
    """A linear layer that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 6, dtype=torch.float64))
        self.calls: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append(1)
        return torch.tanh(x @ self.weight.mT)


def parts() -> tuple[nn.Sequential, dict[str, torch.Tensor], TaskBatch]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), SymmetricHead(5, "zero")).double()
    g = torch.Generator().manual_seed(1)
    y = torch.arange(3).repeat_interleave(2).repeat(4, 1)
    support = torch.randn(4, 6, 6, generator=g, dtype=torch.float64)
    query = torch.randn(4, 6, 6, generator=g, dtype=torch.float64)
    meta = {name: p.detach() for name, p in model.named_parameters()}
    return model, meta, TaskBatch(support, y, query, y)


@pytest.mark.parametrize(
    "metagrad",
    [
        Unrolled(INNER, backend="batched"),
        Unrolled(INNER, backend="higher"),
        FirstOrder(INNER),
        Implicit(INNER, CG(50, rtol=1e-12)),
        Implicit(INNER, CG(50, rtol=1e-12), curvature="gauss_newton"),
        Implicit(INNER, CG(50, rtol=1e-12), linearisation="recomputed"),
    ],
    ids=repr,
)
def test_gradient_equals_that_of_few_shot_adapting_the_head(metagrad: MetaGradient) -> None:
    model, meta, task = parts()
    body, head = body_and_head(model)
    once = metagrad(WithBody(body, FewShot(head, prox=0.5)), meta, task)
    each = metagrad(FewShot(model, prox=0.5, adapt="head"), meta, task)
    torch.testing.assert_close(once.outer_loss, each.outer_loss)
    for name, grad in each.grads.items():
        torch.testing.assert_close(once.grads[name], grad, rtol=1e-9, atol=1e-12)


def test_body_runs_once_whatever_the_inner_steps() -> None:
    _, _, task = parts()
    body = Counted()
    meta = {"0.weight": body.weight.detach()}
    model = nn.Sequential(body, SymmetricHead(5, "zero"))
    shared, head = body_and_head(model)
    problem: Any = WithBody(shared, FewShot(head), statistics="population")
    counter = problem._body._module[0]
    Unrolled(GradientDescent(7, 0.1), backend="batched")(problem, meta, task)
    assert len(counter.calls) == 1


def test_evaluation_agrees_with_training_on_the_outer_loss() -> None:
    model, meta, task = parts()
    body, head = body_and_head(model)
    problem, metagrad = WithBody(body, FewShot(head)), Unrolled(INNER, backend="batched")
    result = metagrad(problem, meta, task)
    params = metagrad.adapt(problem, meta, task).params
    loss, _ = problem.outer_objective(params, meta, task)
    torch.testing.assert_close(loss, result.outer_loss)


def test_each_mode_is_judged_with_its_own_features() -> None:
    """With "population" statistics the inner problem itself differs between the modes: judged
    together or one by one, the figures are the same."""
    torch.manual_seed(0)
    layers = [nn.Linear(6, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Tanh()]
    model = nn.Sequential(*layers, SymmetricHead(5, "zero")).double()
    _, _, task = parts()
    meta = {name: p.detach() for name, p in model.named_parameters()}
    body, head = body_and_head(model)
    images = torch.randn(40, 6, dtype=torch.float64)
    modes = {
        mode: WithBody(body, FewShot(head), mode == "transductive", "population").settled(
            meta, lambda: images
        )
        for mode in ("transductive", "inductive")
    }

    class Fixed:
        def sample(self, number: int) -> TaskBatch:
            return task[:number]

    metagrad = Unrolled(INNER, backend="batched")
    sampler: Any = Fixed()
    together = evaluate_each(modes, metagrad, meta, sampler, 4)
    for mode, problem in modes.items():
        assert evaluate_each({mode: problem}, metagrad, meta, sampler, 4)[mode] == together[mode]
    assert together["transductive"] != together["inductive"]
