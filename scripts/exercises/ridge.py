"""Ridge regression: dw/dlambda from the optimality condition, against the closed form.

.venv/bin/python scripts/exercises/ridge.py
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_diabetes

from metalearn import implicit
from metalearn.linear_solve import CG


def loss(w: torch.Tensor, X: torch.Tensor, y: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    return 0.5 * ((X @ w - y) ** 2).sum() + 0.5 * penalty * (w @ w)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    data = load_diabetes()
    X, y = torch.as_tensor(data.data), torch.as_tensor(data.target - data.target.mean())
    penalty = torch.tensor(0.1, dtype=torch.float64)
    A = X.T @ X + penalty * torch.eye(X.shape[1], dtype=X.dtype)
    w = torch.linalg.solve(A, X.T @ y)

    def attached(penalty: torch.Tensor) -> torch.Tensor:
        return implicit.argmin(loss, w, X, y, penalty, linear_solver=CG(100, rtol=1e-13))

    by_theorem = torch.func.jacfwd(attached)(penalty)
    by_hand = -torch.linalg.solve(A, w)  # differentiate X'(Xw - y) + lambda w = 0
    error = (by_theorem - by_hand).norm() / by_hand.norm()
    print("dw/dlambda by the theorem:", [f"{v:+.4f}" for v in by_theorem.tolist()])
    print("-(X'X + lambda I)^-1 w:   ", [f"{v:+.4f}" for v in by_hand.tolist()])
    print(f"relative difference {error:.1e}")
