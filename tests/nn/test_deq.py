"""A DEQ's values and gradients against closed forms and its unrolled twin, in float64.

Solves run to 1e-12; the systems' condition numbers are below 100, so 1e-8 is asked of gradients.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from metalearn.fixed_point import Anderson, Broyden, NewtonGMRES, Picard
from metalearn.implicit import InexactDerivative, NoDerivative
from metalearn.linear_solve import GMRES, BiCGStab, Dense, Neumann, NormalCG
from metalearn.memory import peak_bytes
from metalearn.nn import DEQ

TIGHT = Anderson(500, rtol=1e-12)
EXACT = GMRES(50, restart=50, rtol=1e-12)


class Cell(nn.Module):
    """act(W z + U x + b), |W| about `slope`."""

    def __init__(self, size=6, slope=0.7, act=torch.tanh, seed=0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        W = torch.randn(size, size, generator=g, dtype=torch.float64)
        self.W = nn.Parameter(slope * W / torch.linalg.matrix_norm(W, 2))
        self.U = nn.Parameter(torch.randn(size, size, generator=g, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(size, generator=g, dtype=torch.float64))
        self.act = act

    def forward(self, z, x):
        return self.act(z @ self.W.mT + x @ self.U.mT + self.b)


def linear(slope=0.7):
    return Cell(slope=slope, act=lambda v: v)


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flat_grads(loss, module, *others):
    grads = torch.autograd.grad(loss, [*module.parameters(), *others])
    return torch.cat([g.flatten() for g in grads])


def test_a_linear_cell_has_the_derivatives_of_its_closed_form():
    cell, x, target = linear(), draw(5, 6).requires_grad_(), draw(5, 6, seed=2)
    z = DEQ(cell, TIGHT, EXACT)(x)
    exact = torch.linalg.solve(
        torch.eye(6, dtype=torch.float64) - cell.W, (x @ cell.U.mT + cell.b).mT
    ).mT
    assert torch.allclose(z, exact, rtol=1e-10)
    found = flat_grads(((z - target) ** 2).sum(), cell, x)
    closed = flat_grads(((exact - target) ** 2).sum(), cell, x)
    assert (found - closed).norm() <= 1e-8 * closed.norm()


@pytest.mark.parametrize("solver", [Picard, Anderson, Broyden, NewtonGMRES])
@pytest.mark.parametrize(
    "linear_solver",
    [EXACT, BiCGStab(99, 1e-12), NormalCG(99, 1e-12), Neumann(999, 1.0, 1e-12), Dense()],
    ids=lambda s: type(s).__name__,
)
def test_every_pair_of_solvers_equals_the_cell_unrolled_to_convergence(solver, linear_solver):
    cell, x, target = Cell(), draw(4, 6).requires_grad_(), draw(4, 6, seed=2)
    z = torch.zeros_like(x)
    for _ in range(300):
        z = cell(z, x)
    unrolled = flat_grads(((z - target) ** 2).sum(), cell, x)
    deq = DEQ(cell, solver(500, rtol=1e-12), linear_solver)
    found = flat_grads(((deq(x) - target) ** 2).sum(), cell, x)
    assert (found - unrolled).norm() <= 1e-8 * unrolled.norm()
    assert deq.forward_solution.converged.all() and deq.backward_solution.converged.all()


def test_gradcheck_and_gradgradcheck_through_the_module():
    deq, x = DEQ(Cell(size=3), TIGHT, EXACT), draw(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(deq, x)
    assert torch.autograd.gradgradcheck(deq, x)


def test_samples_are_systems_of_their_own():
    cell = Cell(slope=0.95)
    deq = DEQ(cell, Picard(2000, rtol=1e-9), GMRES(50, restart=50, rtol=1e-9))
    x = torch.cat([100 * draw(1, 6), 0.1 * draw(1, 6)])  # saturated: J near 0; and not
    deq(x).sum().backward()
    for solution in (deq.forward_solution, deq.backward_solution):
        assert solution.iterations.shape == (2,)
        assert solution.iterations[0] < solution.iterations[1]
    one = DEQ(cell, deq.solver, deq.linear_solver)
    assert torch.allclose(deq(x)[1], one(x[1:])[0])


class Coupled(Cell):
    """Samples meet in the batch's mean."""

    def forward(self, z, x):
        return super().forward(z - 0.5 * z.mean(0), x)


def test_a_cell_whose_samples_meet_is_one_system():
    x, target = draw(4, 6).requires_grad_(), draw(4, 6, seed=2)
    cell = Coupled()
    z = torch.zeros_like(x)
    for _ in range(300):
        z = cell(z, x)
    unrolled = flat_grads(((z - target) ** 2).sum(), cell, x)
    deq = DEQ(cell, TIGHT, EXACT, batched=False)
    found = flat_grads(((deq(x) - target) ** 2).sum(), cell, x)
    assert (found - unrolled).norm() <= 1e-8 * unrolled.norm()


def test_samples_that_meet_are_never_silently_wrong_as_systems_of_their_own():
    x, cell = draw(4, 6).requires_grad_(), Coupled()
    right = flat_grads(DEQ(cell, TIGHT, EXACT, batched=False)(x).square().sum(), cell, x)
    deq = DEQ(cell, TIGHT, EXACT)
    try:
        found = flat_grads(deq(x).square().sum(), cell, x)
    except (NoDerivative, InexactDerivative):
        return
    # The residual that says "converged" is that of the whole system.
    assert (found - right).norm() <= 1e-8 * right.norm()


def test_what_is_measured_of_j_is_that_of_the_jacobian_formed():
    cell, x = Cell(slope=0.9), draw(3, 6)
    deq = DEQ(cell, TIGHT, EXACT)
    z = deq(x).detach()
    J = torch.stack(
        [torch.func.jacrev(lambda z, x=x_i: cell(z, x))(z_i) for z_i, x_i in zip(z, x, strict=True)]
    )
    condition = torch.linalg.cond(torch.eye(6, dtype=torch.float64) - J)
    assert torch.allclose(deq.condition_number(z, x), condition)
    # A complex pair's growth swings; over 2000 products its mean is right to a few 1e-3.
    radius = torch.linalg.eigvals(J).abs().amax(1)
    assert torch.allclose(deq.spectral_radius(z, x, iters=4000), radius, rtol=1e-2)
    # 4000 probes: the estimate's standard deviation is below sqrt(2 / 4000) = 2.2 % of it.
    torch.manual_seed(0)
    norm = deq.jacobian_norm(z, x, probes=4000)
    assert torch.allclose(norm, J.square().sum((1, 2)) / 6, rtol=0.1)


def test_the_jacobian_norm_trains_the_cell():
    deq, x = DEQ(linear(), TIGHT, EXACT), draw(3, 6)
    torch.manual_seed(0)
    norm = deq.jacobian_norm(deq(x), x, probes=4000).mean()
    (slope,) = torch.autograd.grad(norm, deq.cell.W)
    exact = 2 * deq.cell.W / 6  # of |W|^2 / N
    assert (slope - exact).norm() <= 0.1 * exact.norm()
    with pytest.raises(ValueError, match="at least 1"):
        deq.jacobian_norm(draw(3, 6), x, probes=0)


def test_memory_does_not_grow_with_the_iterations():
    cell, x = Cell(size=32).float(), torch.randn(256, 32)

    def peak(iterations):
        deq = DEQ(cell, Picard(iterations, rtol=0.0), BiCGStab(10, rtol=1e-4))

        def step():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", InexactDerivative)
                deq(x).sum().backward()

        step()
        return peak_bytes(step, torch.device("cpu"))[1]

    few, many = peak(2), peak(64)
    assert many <= 1.02 * few


def test_without_gradients_there_is_no_graph_and_no_backward_solve():
    deq = DEQ(Cell(), TIGHT, EXACT)
    with torch.no_grad():
        assert not deq(draw(2, 6)).requires_grad
    assert deq.backward_solution is None


def test_an_ordinary_optimiser_fits_it():
    torch.manual_seed(0)
    deq = DEQ(Cell(), Anderson(rtol=1e-6), GMRES(30, restart=30, rtol=1e-6))
    x = draw(64, 6)
    with torch.no_grad():
        target = DEQ(Cell(seed=5), Anderson(rtol=1e-6))(x)  # a teacher's
    optimiser = torch.optim.Adam(deq.parameters(), 3e-2)
    losses = []
    for _ in range(100):
        loss = ((deq(x) - target) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert {name for name, _ in deq.named_parameters()} == {"cell.W", "cell.U", "cell.b"}


def test_what_goes_wrong_is_said():
    x = draw(2, 6)
    with pytest.warns(InexactDerivative, match="forward solve of a DEQ"):
        DEQ(Cell(), Picard(2, rtol=1e-9), EXACT)(x)
    with pytest.warns(InexactDerivative, match="backward solve of a DEQ"):
        DEQ(Cell(), TIGHT, Neumann(1, 1.0, 1e-9))(x).sum().backward()
    with pytest.raises(NoDerivative, match="the cell is not finite"):
        DEQ(Cell(act=lambda v: v / 0))(x)
    # z = z + 0 has J = I: every z is a fixed point, and I - J is 0.
    with pytest.raises(NoDerivative, match="singular"):
        DEQ(Still(), TIGHT, EXACT)(x.requires_grad_()).sum().backward()


class Still(nn.Module):
    def forward(self, z, x):
        return z + 0 * x


def test_it_starts_where_it_is_told():
    deq, x = DEQ(Cell(), TIGHT, EXACT), draw(2, 6)
    z = deq(x).detach()
    deq(x, z)
    assert (deq.forward_solution.iterations == 1).all()
