"""When the backward system of a fixed point becomes ill-conditioned.

z = rho Q z + x for an orthogonal Q, whose Jacobian has the spectral radius rho: backward solves
(I - rho Q)' u = y. As rho goes to 1 the condition number goes up to (1 + rho) / (1 - rho), the
iterations to a given residual rise, and the error for that residual with them. Float32; the exact
derivative in float64 is the reference. Rows and figure go to results/exercises/. It takes about 15
seconds of one core.

    .venv/bin/python scripts/exercises/conditioning.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
import torch

from metalearn import implicit
from metalearn.linear_solve import GMRES, BiCGStab, LinearSolver, Neumann, NormalCG, Solution
from metalearn.system.provenance import provenance

SIZE, RTOL, MOST = 200, 1e-4, 4000
SOLVERS: dict[str, LinearSolver] = {
    "Neumann": Neumann(MOST, step_size=1.0, rtol=RTOL),
    "GMRES(20)": GMRES(MOST, restart=20, rtol=RTOL),
    "BiCGStab": BiCGStab(MOST, rtol=RTOL),
    "NormalCG": NormalCG(MOST, rtol=RTOL),
}
RADII = (0.3, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998)


def rows() -> pd.DataFrame:
    g = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=g, dtype=torch.float64)).Q
    y = torch.randn(SIZE, generator=g, dtype=torch.float64)
    x = torch.randn(SIZE, generator=g, dtype=torch.float64)
    found = []
    for rho in RADII:
        system = torch.eye(SIZE, dtype=torch.float64) - rho * Q
        z, exact = torch.linalg.solve(system, x), torch.linalg.solve(system.T, y)
        small = (rho * Q).float()
        for name, solver in SOLVERS.items():
            seen: list[Solution] = []
            at = x.float().requires_grad_()
            fixed = implicit.fixed_point(
                lambda z, x, J: J @ z + x,
                z.float(),
                at,
                small,
                linear_solver=solver,
                report=seen.append,
            )
            (u,) = torch.autograd.grad(fixed, at, y.float())
            found.append(
                {
                    "spectral_radius": rho,
                    "condition_number": float(torch.linalg.cond(system)),
                    "solver": name,
                    "iterations": int(seen[0].iterations),
                    "converged": bool(seen[0].converged),
                    "relative_residual": float(seen[0].relative_residual),
                    "gradient_error": float((u - exact).norm() / exact.norm()),
                }
            )
    return pd.DataFrame(found)


def figure(table: pd.DataFrame, path: Path) -> None:
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    for name, part in table.groupby("solver", sort=False):
        left.loglog(1 - part.spectral_radius, part.iterations, marker="o", label=name)
        right.loglog(1 - part.spectral_radius, part.gradient_error, marker="o", label=name)
    gap = 1 - table.spectral_radius.drop_duplicates()
    condition = table.condition_number.iloc[:: len(SOLVERS)]
    right.loglog(gap, RTOL * condition, "k--", label="tolerance x condition number")
    for axes, title in ((left, "iterations"), (right, "error of the gradient")):
        axes.set_xlabel("1 - spectral radius of J")
        axes.set_title(f"{title}, to a residual of {RTOL:.0e}", fontsize=10)
        axes.invert_xaxis()
        axes.grid(alpha=0.3)
    right.legend(fontsize=8)
    fig.tight_layout()
    fig.savefig(path, dpi=130)
    plt.close(fig)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    folder = Path("results/exercises")
    folder.mkdir(parents=True, exist_ok=True)
    table = rows()
    part = folder / ".conditioning.part.png"
    figure(table, part)
    part.replace(folder / "conditioning.png")
    text = {"rows": table.to_dict("records"), **provenance(torch.device("cpu"))}
    part = folder / ".conditioning.json.part"
    part.write_text(json.dumps(text, indent=1) + "\n")
    part.replace(folder / "conditioning.json")
    print(table.to_string(index=False))
