"""The names and signatures that others call."""

from __future__ import annotations

import subprocess
import sys

import torch

from metalearn import linear_solve, metagrad, nn, tasks
from metalearn.inner import LBFGS, Adam, GradientDescent, NewtonCG
from metalearn.linear_solve import (
    CG,
    GMRES,
    BiCGStab,
    Dense,
    Jacobi,
    Neumann,
    NormalCG,
    Nystrom,
)
from metalearn.metagrad import FirstOrder, Implicit, Reptile, Unrolled
from metalearn.problem import BilevelProblem, FewShot


def test_solutions():
    solution = CG(max_iters=50)(lambda v: 2 * v, torch.ones(3), x0=None, batched=False)
    low, high = solution.eigenvalue_bounds
    for field in (
        solution.residual_norm,
        solution.relative_residual,
        solution.iterations,
        solution.converged,
        solution.status,
        low,
        high,
    ):
        assert field.shape == ()
    many = Dense()(lambda v: {"x": 2 * v["x"]}, {"x": torch.ones(4, 3)}, batched=True)
    assert many.value["x"].shape == (4, 3)
    assert many.converged.shape == (4,)


def test_every_linear_solver():
    for solver in (
        CG(max_iters=10, rtol=1e-6, atol=0.0, preconditioner=None),
        CG(preconditioner=Nystrom(3, 1e-3)),
        CG(preconditioner=Jacobi(samples=4)),
        Neumann(max_iters=10, step_size=None, rtol=1e-6),
        GMRES(max_iters=20, restart=20, rtol=1e-6),
        BiCGStab(max_iters=20, rtol=1e-6),
        NormalCG(max_iters=20, rtol=1e-6),
        Dense(),
        Nystrom(rank=3, damping=1e-9, seed=0),
    ):
        b = torch.ones(2, 3, dtype=torch.float64)
        solution = solver(lambda v: [2 * v[0]], [b], x0=[0.4 * b], batched=True)
        assert torch.allclose(solution.value[0], 0.5 * b, rtol=1e-5)
        assert solution.converged.tolist() == [True, True]


def test_meta_gradients_on_a_model():
    model = nn.Conv4(5, channels=4, in_channels=1, strided=True)
    meta = dict(model.named_parameters())
    x, y = torch.rand(2, 5, 1, 28, 28), torch.arange(5).repeat(2, 1)
    task = tasks.TaskBatch(support_x=x, support_y=y, query_x=x, query_y=y)
    problem: BilevelProblem = FewShot(model, prox=2.0)
    inner = GradientDescent(2, 0.1, momentum=0.0)
    for way in (
        Unrolled(inner, backend="higher"),
        Unrolled(Adam(2, 0.1), backend="batched"),
        Unrolled(inner, backend="higher", truncate=1, checkpoint=None),
        Unrolled(inner, backend="batched", truncate=None, checkpoint="sqrt"),
        FirstOrder(inner),
        Reptile(inner),
        Implicit(inner, linear_solver=CG(), damping=0.0, curvature="hessian"),
        Implicit(NewtonCG(2, cg_iters=5), CG(2), curvature="gauss_newton"),
        Implicit(LBFGS(3), CG(2)),
        Implicit(inner, CG(2, preconditioner=Nystrom(2, 1e-3))),
        Implicit(inner, GMRES(2)),
        Implicit(inner, linear_solver=None),
    ):
        result = way(problem, meta, task)
        assert {k: g.shape for k, g in result.grads.items()} == {
            k: p.shape for k, p in meta.items()
        }
        assert result.outer_loss.shape == (2,)
        assert result.metrics["accuracy"].shape == (2,)
        assert (result.certificate is not None) == isinstance(way, Implicit)
    stacked = {k: torch.stack([p, p]) for k, p in meta.items()}
    assert nn.TaskBatched(model)(stacked, x).shape == (2, 5, 5)
    assert nn.MLP([3, 2]) and nn.ResNet12(ways=5)


def test_public_names():
    assert set(linear_solve.__all__) >= {"CG", "Neumann", "GMRES", "BiCGStab", "NormalCG"}
    assert set(linear_solve.__all__) >= {"Dense", "Nystrom", "Jacobi", "Solution", "Status"}
    assert set(metagrad.__all__) >= {"Unrolled", "FirstOrder", "Implicit", "Reptile"}


def test_importing_the_package_imports_no_torch():
    code = "import sys, metalearn, metalearn.commands.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
