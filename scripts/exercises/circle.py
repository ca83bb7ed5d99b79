"""The unit circle: dy/dx of x^2 + y^2 = 1 by the implicit function theorem, and where it fails.

.venv/bin/python scripts/exercises/circle.py
"""

from __future__ import annotations

import argparse

import torch

from metalearn import implicit
from metalearn.linear_solve import Dense


def circle(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return x**2 + y**2 - 1


def slope(x: float, y: float) -> float:
    """dy/dx at a point of the circle."""
    at = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    height = implicit.root(circle, torch.tensor(y, dtype=torch.float64), at, linear_solver=Dense())
    return float(torch.autograd.grad(height, at)[0])


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    for x, y in ((0.6, 0.8), (0.6, -0.8), (0.8, 0.6)):
        print(f"at ({x}, {y}): dy/dx = {slope(x, y):+.12f}, by hand -x/y = {-x / y:+.12f}")
    for k in (2, 4, 6, 8):
        x = 1 - 10.0**-k
        print(f"at x = 1 - 1e-{k}: dy/dx = {slope(x, (1 - x * x) ** 0.5):.4e}, growing like 1/y")
    try:
        slope(1.0, 0.0)
    except implicit.NoDerivative as error:
        print(f"at (1, 0), where dF/dy = 2y = 0 and y is no function of x: {error}")
