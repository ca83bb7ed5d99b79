"""
Implicit differentiation in five minutes
========================================

A ridge regression has a solution w that depends on its penalty c. This page computes the
derivative of w by c in three ways: by the closed form, through the steps of a solver, and by the
implicit function theorem.
"""

# %%
# The problem
# -----------
#
# The solution minimises ``ridge(w, X, y, c)``. All numbers are in float64, so that errors below
# 1e-10 can be seen.

import torch

from metalearn import implicit
from metalearn.linear_solve import CG

torch.manual_seed(0)
X, y = torch.randn(40, 5, dtype=torch.float64), torch.randn(40, dtype=torch.float64)
c = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)


def ridge(w, X, y, c):
    return 0.5 * (X @ w - y).square().sum() + 0.5 * c * (w @ w)


# %%
# The closed form
# ---------------
#
# The solution is w = (X'X + cI)⁻¹ X'y. Its derivative by c is -(X'X + cI)⁻¹ w. Few problems have
# such a form. Here it is the reference.

A = X.T @ X + c.detach() * torch.eye(5, dtype=torch.float64)
solution = torch.linalg.solve(A, X.T @ y)
exact = -torch.linalg.solve(A, solution)
print(exact)

# %%
# Through the steps of a solver
# -----------------------------
#
# Gradient descent is a chain of differentiable steps. Autograd goes back through all of them. The
# result is the derivative of the last iterate. It approaches the derivative of the solution as the
# iterate approaches the solution. The graph of every step stays in memory.

rate = 1 / torch.linalg.eigvalsh(A)[-1].item()


def unrolled(steps):
    w = torch.zeros(5, dtype=torch.float64)
    for _ in range(steps):
        w = w - rate * (X.T @ (X @ w - y) + c * w)
    return torch.stack([torch.autograd.grad(w_i, c, retain_graph=True)[0] for w_i in w])


def error(derivative):
    return ((derivative - exact).norm() / exact.norm()).item()


for steps in (2, 8, 32, 128):
    print(f"{steps:4} steps: relative error {error(unrolled(steps)):.1e}")

# %%
# By the implicit function theorem
# --------------------------------
#
# At the solution the gradient of ``ridge`` is zero, for every c. The derivative of this identity
# is a linear system in the derivative of w. ``implicit.argmin`` attaches this derivative to a
# solution. The solution may come from any solver, with or without a graph. Backward solves one
# linear system, here by conjugate gradients.

w = implicit.argmin(ridge, solution, X, y, c, linear_solver=CG(20, rtol=1e-12))
derivative = torch.stack([torch.autograd.grad(w_i, c, retain_graph=True)[0] for w_i in w])
print(f"relative error {error(derivative):.1e}")
assert error(derivative) < 1e-8

# %%
# Solve and differentiate in one call
# -----------------------------------
#
# ``implicit.minimise`` finds the solution too. Its result has a status and a sentence that says
# what to do. The other calls of this kind are ``root_find``, ``least_squares`` and
# ``find_fixed_point``.

result = implicit.minimise(ridge, torch.zeros(5, dtype=torch.float64), X, y, c)
(total,) = torch.autograd.grad(result.value.sum(), c)
print(result.sentence)
assert result.converged and abs(total - exact.sum()) < 1e-6 * abs(exact.sum())

# %%
# When the theorem fails
# ----------------------
#
# The theorem needs a solution at which the gradient is zero, and a system that is not singular. A
# point that is not a solution gives a warning with its distance from one. Never ignore this
# warning: the derivative at such a point is wrong.

import warnings

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    implicit.argmin(ridge, solution + 0.1, X, y, c)
print(caught[0].message)
assert isinstance(caught[0].message, implicit.InexactSolution)
