"""Problems whose network computes in bfloat16: what stays float32, and what the rounding costs.

bfloat16 has 8 significant bits, a relative rounding of 2^-9 = 0.002 in each product. A gradient
through several layers and steps may differ by some ten times as much: 0.05 is the tolerance.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import TINY, rows
from torch import Tensor, nn
from zoo import relative_difference

from metalearn.commands.main import main
from metalearn.errors import UsageError
from metalearn.inner import GradientDescent
from metalearn.linear_solve import CG, Solution, Status
from metalearn.linear_solve.solution import remeasured
from metalearn.metagrad import FirstOrder, Implicit, MetaGradient, Unrolled
from metalearn.metagrad.curvature import Hessian
from metalearn.nn import Body, Conv4, TaskBatched
from metalearn.problem import FewShot
from metalearn.problems.learned import LearnedProx
from metalearn.tasks import TaskBatch
from metalearn.tree import leaves_of, requires_grad_copy, task_norm

NEAR = 0.05
STEPS = GradientDescent(4, 0.1)
METHODS: dict[str, MetaGradient] = {
    "implicit": Implicit(STEPS, CG(5)),
    "implicit, recomputed": Implicit(STEPS, CG(5), linearisation="recomputed"),
    "implicit, Gauss-Newton": Implicit(STEPS, CG(5), curvature="gauss_newton"),
    "first-order": FirstOrder(STEPS),
    "unrolled": Unrolled(STEPS, "batched"),
    "unrolled, checkpointed": Unrolled(STEPS, "batched", checkpoint=2),
    "unrolled, mixed mode": Unrolled(STEPS, "batched", mode="mixed"),
    "unrolled, higher": Unrolled(STEPS, "higher"),
}


class Own(nn.Module):
    """A module that runs as it stands on each task's examples."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.weight = nn.Linear(784, 6), nn.Parameter(torch.randn(5, 6) / 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1)).tanh() @ self.weight.T


@cache
def tasks() -> TaskBatch:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(5).repeat(2, 2)
    x = [torch.rand(2, 10, 1, 28, 28, generator=g) for _ in range(2)]
    return TaskBatch(x[0], y, x[1], y)


def model(kind: str = "conv") -> nn.Module:
    torch.manual_seed(0)
    return Conv4(5, channels=8, activation="silu") if kind == "conv" else Own()


def stacked(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().expand(2, *p.shape) for name, p in module.named_parameters()}


@pytest.mark.parametrize("kind", ["conv", "own"])
def test_bf16_network_rounds_its_products_and_returns_float32(kind: str) -> None:
    module = model(kind)
    x, params = tasks().support_x, stacked(module)
    full = TaskBatched(module)(params, x)
    rounded = TaskBatched(module, "bf16")(params, x)
    assert rounded.dtype == torch.float32
    assert 1e-4 < float((rounded - full).norm() / full.norm()) < NEAR


def test_bf16_leaves_float64_as_it_is() -> None:
    module = model().double()
    x, params = tasks().support_x.double(), stacked(module)
    assert torch.equal(TaskBatched(module, "bf16")(params, x), TaskBatched(module)(params, x))


def test_bf16_network_in_full_precision_is_the_full_network() -> None:
    module = model()
    x, params = tasks().support_x, stacked(module)
    rounded = TaskBatched(module, "bf16")
    assert torch.equal(rounded.in_full_precision()(params, x), TaskBatched(module)(params, x))
    assert rounded.precision == "bf16"


@pytest.mark.parametrize("statistics", ["task", "population"])
def test_bf16_body_returns_float32_features_near_the_full_ones(statistics: Any) -> None:
    body = nn.Sequential(*list(model())[:-1])
    params = {name: p.detach() for name, p in body.named_parameters()}
    support, query = tasks().support_x, tasks().query_x
    full = Body(body, statistics)(params, support, query, False)
    rounded = Body(body, statistics, "bf16")(params, support, query, False)
    assert rounded.dtype == torch.float32
    assert 1e-4 < float((rounded - full).norm() / full.norm()) < NEAR


@pytest.mark.parametrize("name", METHODS)
def test_bf16_meta_gradient_is_float32_and_near_the_full_one(name: str) -> None:
    prox = 1.0 if name.startswith("implicit") else 0.0
    full, rounded = (
        METHODS[name](problem, problem.begin(), tasks()).grads
        for problem in (FewShot(model(), prox), FewShot(model(), prox, precision="bf16"))
    )
    assert {g.dtype for g in leaves_of(rounded)} == {torch.float32}
    assert 1e-4 < relative_difference(rounded, full) < NEAR


def test_certificate_of_a_bf16_gradient_measures_the_system_in_full_precision() -> None:
    module = model()
    problem = FewShot(module, prox=1.0, precision="bf16")
    result = Implicit(STEPS, CG(5))(problem, problem.begin(), tasks())
    assert result.certificate is not None
    assert result.solution is not None

    # The system at the same point in float64, from a problem that knows no precision.
    batch = tasks().to(torch.double)
    exact = FewShot(module.double(), prox=1.0)
    params = {name: p.double() for name, p in result.inner.params.items()}
    params, meta = requires_grad_copy(params), exact.begin()
    curvature = Hessian(exact, params, meta, batch)
    loss, _ = exact.outer_objective(params, meta, batch)
    b = torch.autograd.grad(loss.sum(), list(params.values()))
    product = curvature.matvec([result.solution[name].double() for name in params])
    residual = task_norm([x - y for x, y in zip(b, product, strict=True)])
    certificate, inner = result.certificate, task_norm(curvature.gradient)
    torch.testing.assert_close(certificate.residual_norm.double(), residual, rtol=1e-3, atol=0)
    torch.testing.assert_close(certificate.inner_grad_norm.double(), inner, rtol=1e-3, atol=0)


def test_bf16_solve_does_not_claim_a_tolerance_below_its_rounding() -> None:
    problem = FewShot(model(), prox=1.0, precision="bf16")
    result = Implicit(STEPS, CG(60, rtol=1e-6))(problem, problem.begin(), tasks())
    assert result.certificate is not None
    assert (result.certificate.status != Status.CONVERGED).all()
    assert (result.certificate.relative_residual > 1e-6).all()


def test_remeasured_residual_takes_back_a_false_convergence() -> None:
    x, b = [torch.ones(2, 3)], [torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1.5]])]
    zeros, status = torch.zeros(2), torch.full((2,), int(Status.CONVERGED))
    claimed = Solution(x, zeros, zeros, zeros.long(), status, None)
    found = remeasured(claimed, lambda v: v, b)
    assert found.status.tolist() == [Status.CONVERGED, Status.BREAKDOWN]
    torch.testing.assert_close(found.residual_norm, torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(found.relative_residual, torch.tensor([0.0, 0.5 / 4.25**0.5]))


def test_problem_with_a_learned_prox_passes_full_precision_on() -> None:
    wrapped = LearnedProx(FewShot(model(), precision="bf16"), 1.0)
    full = wrapped.in_full_precision()
    assert full.problem.model.precision == "full"
    assert full.in_full_precision() is full
    method = replace(METHODS["implicit"], linear_solver=CG(3))
    grads = method(wrapped, wrapped.begin(), tasks()).grads
    assert all(g.isfinite().all() for g in leaves_of(grads))


def test_unknown_precision_is_one_sentence() -> None:
    with pytest.raises(UsageError, match=r"precision='fp16': expected 'full' or 'bf16'"):
        FewShot(model(), precision="fp16")  # type: ignore[arg-type]


def test_bf16_training_resumes_and_is_evaluated(tmp_path: Path) -> None:
    words = ["problem.precision=bf16", "model=conv4", "model.channels=4", "wandb=disabled"]
    tiny = [word for word in TINY if not word.startswith("model")]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(["train", *tiny, *words, f"run_dir={whole}"]) == 0
    assert main(["train", *tiny, *words, f"run_dir={broken}", "steps=3"]) == 0
    assert main(["train", f"resume={broken}", "steps=6"]) == 0
    norms = [[row["grad_norm"] for row in rows(folder)] for folder in (whole, broken)]
    assert norms[0] == norms[1]
    assert main(["evaluate", f"checkpoint={whole}", "tasks=4"]) == 0
