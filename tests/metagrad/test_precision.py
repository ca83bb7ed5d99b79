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
from metalearn.inner import BacktrackingDescent, GradientDescent
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


@pytest.mark.parametrize("rtol", [1e-6, 3e-3, 0.5])
def test_bf16_solve_converges_where_the_full_residual_meets_its_tolerance(rtol: float) -> None:
    problem = FewShot(model(), prox=1.0, precision="bf16")
    method = Implicit(STEPS, CG(40, rtol=rtol), curvature="gauss_newton", warm_start=True)
    result = method(problem, problem.begin(), tasks())
    assert result.certificate is not None
    assert result.certificate.relative_residual is not None
    met = result.certificate.relative_residual <= rtol
    expected = torch.where(met, Status.CONVERGED, Status.MAX_ITERS)
    assert torch.equal(result.certificate.status, expected)
    # An iterate at the floor of bfloat16 is of use to the next meta-step.
    assert any(start.abs().max() > 0 for start in result.solver_state["x0"].values())


def test_remeasured_residual_decides_what_has_converged() -> None:
    x = [torch.ones(4, 2)]
    b = [torch.tensor([[1.0, 1.0], [1.0, 1.5], [0.1, 0.1], [1.0, 1.0]])]
    zeros = torch.zeros(4)
    status = torch.tensor([Status.CONVERGED] * 3 + [Status.NEGATIVE_CURVATURE])
    claimed = Solution(x, zeros, zeros, zeros.long(), status, None)
    found = remeasured(claimed, lambda v: v, b, 1e-3)
    assert found.status.tolist() == [
        Status.CONVERGED,
        Status.MAX_ITERS,
        Status.BREAKDOWN,
        Status.NEGATIVE_CURVATURE,
    ]
    assert remeasured(claimed, lambda v: v, b, 1e-3, atol=0.5).status[1] == Status.CONVERGED
    torch.testing.assert_close(found.residual_norm[:2], torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(found.relative_residual[1], torch.tensor(0.5 / 3.25**0.5))


def test_bf16_certificate_of_a_network_with_dropout_has_the_masks_of_the_solve() -> None:
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(784, 16), nn.Tanh(), nn.Dropout(), nn.Linear(16, 5)
    problem = FewShot(nn.Sequential(*layers), prox=1.0, precision="bf16")
    method = Implicit(STEPS, CG(20), curvature="gauss_newton")
    certificate = method(problem, problem.begin(), tasks()).certificate
    assert certificate is not None
    assert certificate.relative_residual is not None
    assert (certificate.relative_residual < NEAR).all()


def test_bf16_line_search_sees_no_decrease_below_its_rounding() -> None:
    norms = []
    for problem in (FewShot(model(), prox=0.3), FewShot(model(), prox=0.3, precision="bf16")):
        method = Implicit(BacktrackingDescent(60, 0.1), CG(2))
        norms.append(method(problem, problem.begin(), tasks()).certificate.inner_grad_norm)  # type: ignore[union-attr]
    assert (norms[1] < 1.1 * norms[0]).all()


def test_bf16_group_norm_is_differentiated_in_mixed_mode() -> None:
    torch.manual_seed(0)
    norm = nn.Conv2d(1, 8, 3, 2), nn.GroupNorm(4, 8), nn.SiLU()
    module = nn.Sequential(*norm, nn.Flatten(), nn.Linear(8 * 13 * 13, 5))
    full, rounded = (
        METHODS["unrolled, mixed mode"](problem, problem.begin(), tasks()).grads
        for problem in (FewShot(module), FewShot(module, precision="bf16"))
    )
    assert 1e-4 < relative_difference(rounded, full) < NEAR


def test_bf16_reaches_the_body_of_a_head_of_prototypes() -> None:
    module = Conv4(5, channels=8, activation="silu", head="prototypes")
    full, rounded = FewShot(module), FewShot(module, precision="bf16")
    again = rounded.in_full_precision()
    starts = [list(p.init(p.begin(), tasks()).values())[-1] for p in (full, rounded, again)]
    assert not torch.equal(starts[0], starts[1])
    assert torch.equal(starts[0], starts[2])


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
    assert main(["evaluate", f"checkpoint={whole / 'best.pt'}", "tasks=4"]) == 0
