"""Starts far from the solution, and solutions of zero: what counts as solved."""

from __future__ import annotations

import pytest
import torch

from metalearn import implicit
from metalearn.nonlinear_solve import NotSolved

FAR = {
    "cubic": (implicit.root_find, lambda x, c: x**3 - c, [1.0], 2 ** (1 / 3)),
    "square": (implicit.root_find, lambda x, c: x**2 - c, [1.0], 2**0.5),
    "power": (implicit.root_find, lambda x, c: x**1.4 - c, [1.0], 2 ** (1 / 1.4)),
    "quartic": (implicit.minimise, lambda x, c: (x**4 / 4 - c * x).sum(), [1.0], 2 ** (1 / 3)),
    "squares": (implicit.least_squares, lambda x, c: x**3 - c, [1.0], 2 ** (1 / 3)),
}


@pytest.mark.parametrize(
    ("away", "dtype"),
    [(1e1, torch.float32), (1e3, torch.float32), (1e3, torch.float64), (1e5, torch.float64)],
)
@pytest.mark.parametrize("name", FAR)
@pytest.mark.filterwarnings("ignore::metalearn.nonlinear_solve.NotSolved")
def test_a_start_far_away_does_not_loosen_the_tolerance(name, away, dtype):
    """The residual at the start is up to 1e20 times the one that matters."""
    find, function, start, expected = FAR[name]
    c = torch.tensor(2.0, dtype=dtype, requires_grad=True)
    found = find(function, away * torch.tensor(start, dtype=dtype), c)
    # Levenberg-Marquardt damps by the largest Jacobian so far: it is slow, and says so.
    assert found.converged or name == "squares"
    # Newton and L-BFGS stop where the next step, their error, is below 1e-3 of x at the most.
    if found.converged:
        assert found.value.item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_solution_of_zero_is_found(dtype):
    c = torch.tensor(1.0, dtype=dtype)
    for find, function in (
        (implicit.root_find, lambda x, c: x * (x + c)),
        (implicit.root_find, lambda x, c: c * x**2),
        (implicit.minimise, lambda x, c: c * (x**2).sum()),
        (implicit.minimise, lambda x, c: c * (x**4 + x**2).sum()),
    ):
        found = find(function, torch.full((1,), 3.0, dtype=dtype), c)
        assert found.converged and found.value.abs().item() < 1e-6


def test_a_direction_that_a_singular_system_leaves_out_is_not_solved():
    """The small equation's direction is rounding beside the large one's in float32."""

    def residual(x, c):
        return {"large": 1e8 * (x["large"] ** 2 - c), "small": x["small"] ** 2 - c}

    start = {"large": torch.tensor(3.0), "small": torch.tensor(3.0)}
    with pytest.warns(NotSolved):
        found = implicit.root_find(residual, start, torch.tensor(2.0))
    assert not found.converged
    double = {name: v.double() for name, v in start.items()}
    found = implicit.root_find(residual, double, torch.tensor(2.0, dtype=torch.float64))
    assert found.value["small"].item() == pytest.approx(2**0.5)
