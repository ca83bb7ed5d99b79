"""The implicit meta-gradients by a name and a number of iterations, for an ablation's sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from metalearn.errors import MAX_FLOAT32, UsageError
from metalearn.inner import InnerSolver
from metalearn.linear_solve import (
    CG,
    Jacobi,
    Neumann,
    Nystrom,
)
from metalearn.metagrad.implicit import Implicit

WAYS: Mapping[str, Callable[[int, float], dict[str, Any]]] = {
    "cg": lambda n, damping: {"linear_solver": CG(n)},
    "gauss_newton": lambda n, damping: {"linear_solver": CG(n), "curvature": "gauss_newton"},
    "damped": lambda n, damping: {"linear_solver": CG(n), "damping": damping},
    "neumann": lambda n, damping: {"linear_solver": Neumann(n)},
    "nystrom": lambda n, damping: {"linear_solver": Nystrom(n, damping, power=0)},
    "nystrom_cg": lambda n, damping: {
        "linear_solver": CG(n, preconditioner=Nystrom(5, damping=1e-3, power=1))
    },
    "jacobi_cg": lambda n, damping: {"linear_solver": CG(n, preconditioner=Jacobi(8))},
    "warm_cg": lambda n, damping: {"linear_solver": CG(n), "warm_start": True},
}
"""The options of `Implicit` for each variant, by the number of iterations and the damping."""


BUILDABLE = ("implicit_by_iterations",)
"""The functions that a config may name."""


def implicit_by_iterations(
    inner: InnerSolver, iterations: int, way: str = "cg", damping: float = 0.5
) -> Implicit:
    """Return `Implicit` with one option for the number of iterations.

    With 0 iterations it is the first-order gradient at the same inner solution.

    Args:
        iterations: the iterations of the variant's solver, at least 0; for "nystrom" the rank, one
            product each.
        way: the variant:
            - "cg": CG;
            - "gauss_newton": CG with that curvature;
            - "damped": CG with `damping` on A's diagonal;
            - "neumann": the Neumann series;
            - "nystrom": the Nystroem solver, whose own damping is `damping`;
            - "nystrom_cg": preconditioned CG (10 products more a solve);
            - "jacobi_cg": preconditioned CG (8 products more a solve);
            - "warm_cg": CG that begins with the mean of the last meta-step's solutions.
        damping: the damping of "damped" and "nystrom", above 0.

    Raises:
        UsageError: the variant is unknown, iterations is negative, or damping is not above 0.
    """
    if way not in WAYS:
        raise UsageError(f"way={way!r} is unknown; expected one of {', '.join(WAYS)}")
    if iterations < 0:
        raise UsageError(f"iterations={iterations}; expected a whole number of at least 0")
    if not 0 < damping <= MAX_FLOAT32:
        raise UsageError(f"damping={damping}; expected a number above 0, up to {MAX_FLOAT32:.1e}")
    if iterations == 0:
        return Implicit(inner, None)
    return Implicit(inner, **WAYS[way](iterations, damping))
