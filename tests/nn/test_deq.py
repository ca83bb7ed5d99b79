"""A DEQ's values and gradients against closed forms and its unrolled twin, in float64.

Solves run to 1e-12; the systems' condition numbers are below 100, so 1e-8 is asked of gradients.
"""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from metalearn.errors import UsageError
from metalearn.fixed_point import Anderson, Broyden, NewtonGMRES, Picard
from metalearn.implicit import InexactDerivative, NoDerivative
from metalearn.linear_solve import GMRES, BiCGStab, Dense, Neumann, NormalCG
from metalearn.nn import DEQ
from metalearn.system.memory import peak_bytes

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


def test_samples_that_meet_a_little_end_as_the_one_system_or_in_a_warning():
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


@pytest.mark.parametrize(
    ("solver", "most"),
    [(Picard, 1.02), (Anderson, 1.10), (Broyden, 1.02), (NewtonGMRES, 1.02)],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_memory_does_not_grow_with_the_iterations(solver, most):
    # Anderson's window, Broyden's updates and Newton's basis are full at 32 applications; what
    # Anderson's small systems take besides is measured against, not hidden.
    cell, x = Cell(size=32).float(), torch.randn(256, 32)

    def peak(iterations):
        deq = DEQ(cell, solver(iterations, rtol=0.0), BiCGStab(10, rtol=1e-4))

        def step():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", InexactDerivative)
                deq(x).sum().backward()

        step()
        deq.forward_solution = deq.backward_solution = None
        return peak_bytes(step, torch.device("cpu"))[1]

    assert peak(128) <= most * peak(32)


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


def test_it_goes_under_activation_checkpointing():
    deq, x = DEQ(Cell(), TIGHT, EXACT), draw(2, 6).requires_grad_()
    plain = flat_grads(deq(x).square().sum(), deq, x)
    again = flat_grads(checkpoint(deq, x, use_reentrant=False).square().sum(), deq, x)
    assert torch.allclose(plain, again, rtol=1e-9)


def test_it_moves_and_loads_as_any_module():
    deq, x = DEQ(Cell(), Anderson(rtol=1e-5)), draw(2, 6)
    deq(x)
    assert copy.deepcopy(deq).float()(x.float()).dtype == torch.float32
    other = DEQ(Cell(seed=3), deq.solver)
    other.load_state_dict(deq.state_dict())
    assert torch.equal(other(x), deq(x))


def test_copies_go_without_the_last_batch():
    deq, x = DEQ(Cell(), TIGHT, EXACT), draw(2, 6)
    torch.func.grad(lambda x: deq(x).sum())(x)
    other = pickle.loads(pickle.dumps(copy.deepcopy(deq)))
    assert other.forward_solution is None and other.backward_solution is None
    assert torch.equal(other(x), deq(x))


class Nested(Cell):
    """A pytree for a state, and one beside it that holds a number and nothing."""

    def forward(self, z, x):
        image = super().forward(z["a"], x["gain"] * x["u"])
        return {"a": image, "b": [0.5 * z["b"][0] + image]}


def test_states_and_inputs_may_be_pytrees_with_leaves_that_are_no_tensors():
    x, z0 = draw(3, 6), {"a": torch.zeros(3, 6).double(), "b": [torch.zeros(3, 6).double()]}
    cell = Nested()
    z = DEQ(cell, TIGHT, EXACT)({"u": x, "gain": 2.0, "mask": None}, z0)
    single = DEQ(Cell(), TIGHT, EXACT)(2.0 * x)
    assert torch.allclose(z["a"], single)
    assert torch.allclose(z["b"][0], 2 * single)
    for bad in ({"u": x}, torch.arange(3), None):
        with pytest.raises(ValueError, match="or z0 beside it"):
            DEQ(cell)(bad)


def test_what_has_no_part_for_each_sample_is_not_measured_for_each():
    deq, x = DEQ(Coupled(), TIGHT, EXACT, batched=False), draw(4, 6)
    for measure in (deq.jacobian_norm, deq.spectral_radius, deq.condition_number):
        with pytest.raises(ValueError, match="samples meet"):
            measure(x, x)


class Shift(nn.Module):
    """J moves each entry by one place: nilpotent of index 6, and so far from normal."""

    def forward(self, z, x):
        return torch.nn.functional.pad(z[:, :-1], (1, 0)) + x


def test_the_spectrum_at_its_edges():
    x, still, shift = draw(2, 6), DEQ(Still()), DEQ(Shift())
    assert (shift.spectral_radius(x, x, iters=20) == 0).all()
    assert torch.allclose(still.spectral_radius(x, x), torch.ones(2).double())
    assert torch.isinf(still.condition_number(x, x)).all()  # I - J = 0
    ignores = DEQ(Cell(slope=0.0))
    assert torch.equal(ignores.jacobian_norm(x, x), torch.zeros(2).double())
    assert torch.allclose(ignores.condition_number(x, x), torch.ones(2).double())
    same = DEQ(Cell(slope=0.9)).spectral_radius(x[:1].expand(2, 6), x[:1].expand(2, 6))
    assert same[0] == same[1]  # wherever in the batch
    with pytest.raises(ValueError, match="at least 2"):
        shift.spectral_radius(x, x, iters=1)


def test_it_starts_where_it_is_told():
    deq, x = DEQ(Cell(), TIGHT, EXACT), draw(2, 6)
    z = deq(x).detach()
    deq(x, z)
    assert (deq.forward_solution.iterations == 1).all()


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.BatchNorm1d(4), "the cell's 1, BatchNorm1d, in training.*track_running_stats=False"),
        (nn.Dropout(0.1), "the cell's 1, Dropout, in training.*one mask outside"),
    ],
    ids=["averages", "dropout"],
)
def test_a_cell_that_changes_from_call_to_call_is_refused(layer, said):
    class Two(nn.Sequential):
        def forward(self, z, x):
            return torch.tanh(0.1 * super().forward(z) + x)

    layer = DEQ(Two(nn.Linear(4, 4), layer)).double()
    with pytest.raises(UsageError, match=said):
        layer(draw(5, 4))
    layer.eval()(draw(5, 4)).sum().backward()
    assert layer.cell[0].weight.grad.isfinite().all()


def test_a_cell_may_normalise_each_batch_by_itself():
    class Normed(nn.BatchNorm1d):
        def forward(self, z, x):
            return torch.tanh(0.1 * super().forward(z) + x)

    layer = DEQ(Normed(4, track_running_stats=False), batched=False).double()
    layer(draw(5, 4)).sum().backward()
    assert layer.forward_solution.converged.all() and layer.cell.weight.grad.isfinite().all()
