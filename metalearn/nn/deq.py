"""Deep equilibrium models: a layer whose output is a fixed point of its cell."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from metalearn import implicit
from metalearn.fixed_point import Anderson, FixedPointSolver
from metalearn.implicit.equation import lost, no_derivative
from metalearn.linear_solve import GMRES, LinearSolver, Solution, Status
from metalearn.tree import Tree, fixed


class DEQ(nn.Module):
    """z* = cell(z*, x), differentiated by the implicit function theorem; Bai, Kolter & Koltun 2019.

    An ordinary module: its parameters are the cell's, its output carries gradients to them and to
    x. Backward solves (I - J)' u = d loss / d z by `linear_solver`, J = d cell / d z at z*; the
    iterations leave no graph, so that memory does not grow with their number.

    The cell must be the same function at every call of one forward pass: no dropout in it, and no
    running statistics.

    Args:
        cell: a module (z, x) -> z'. Its tensors z are (B, ...).
        solver: of the forward pass.
        linear_solver: of the backward pass.
        batched: the cell treats the B samples one by one; each is then a system of its own, and
            stops on its own. False where samples meet, as in batch norm: one system for all.

    Attributes:
        forward_solution, backward_solution: `Solution` of the last pass each way, None before it.

    Raises:
        NoDerivative: forward where the cell gives infinities or NaN; backward where no system of
            the batch is solved (I - J is singular, or beyond the solver).

    Warns:
        InexactDerivative: a solve ended before its tolerance for a sample or more. Its best iterate
            serves, and the gradient is that of no fixed point, or not quite that of this one; the
            solutions' statuses count them. Always in the same words, so that Python shows it once.
    """

    forward_solution: Solution | None
    backward_solution: Solution | None

    def __init__(
        self,
        cell: nn.Module,
        solver: FixedPointSolver = Anderson(max_iters=50, rtol=1e-4),  # noqa: B008
        linear_solver: LinearSolver = GMRES(max_iters=30, restart=30, rtol=1e-4),  # noqa: B008
        batched: bool = True,
    ) -> None:
        super().__init__()
        self.cell, self.solver, self.linear_solver = cell, solver, linear_solver
        self.batched = batched
        self.forward_solution = self.backward_solution = None

    def forward(self, x: Tree, z0: Tree | None = None) -> Tree:
        """The fixed point, a pytree like z0.

        Args:
            x: what the cell is given beside z, a pytree.
            z0: where the iteration starts; None: zeros like x, which is then one tensor.
        """
        if z0 is None:
            z0 = torch.zeros_like(x)
        tensors = {**dict(self.cell.named_parameters()), **dict(self.cell.named_buffers())}
        with torch.no_grad():
            constant = {name: t.detach() for name, t in tensors.items()}
            solution = self.solver(
                lambda z: self._image(z, fixed(x), constant), fixed(z0), batched=self.batched
            )
        self.forward_solution = solution
        if (broken := int((solution.status == Status.NON_FINITE).sum())) > 0:
            raise implicit.NoDerivative(
                f"the cell is not finite on the way to {broken} of {solution.status.numel()} fixed "
                "points; smaller weights, a bounded activation or a normalised state is the cure"
            )
        if not solution.converged.all():
            self._warn("forward")
        return implicit.fixed_point(
            self._image,
            solution.value,
            x,
            tensors,
            linear_solver=self.linear_solver,
            batched=self.batched,
            report=self._solved,
        )

    def _image(self, z: Tree, x: Tree, tensors: dict[str, Tensor]) -> Tree:
        return torch.func.functional_call(self.cell, tensors, (z, x))

    def _solved(self, solution: Solution) -> None:
        self.backward_solution = solution
        if lost(solution).all():
            raise no_derivative(solution)
        if not solution.converged.all():
            self._warn("backward")

    def _warn(self, which: str) -> None:
        warnings.warn(
            f"the {which} solve of a DEQ ended before its tolerance; its {which}_solution says for "
            "which samples, and more iterations or a cell that contracts (jacobian_norm) mend it",
            implicit.InexactDerivative,
            stacklevel=3,
        )

    def jacobian_norm(self, z: Tensor, x: Tree, probes: int = 1) -> Tensor:
        """Hutchinson's estimate of |J|_F^2 / N for each sample, (B,), differentiable in the cell.

        Added to a loss with a weight it keeps the cell a contraction; Bai, Koltun & Kolter 2021,
        equation 7. z, (B, ...) with N numbers a sample, is taken as a constant. The probes are
        normal, from torch's own random state; the variance falls as 1 / probes.

        Raises:
            ValueError: probes is below 1.
        """
        if probes < 1:
            raise ValueError(f"probes={probes}; expected at least 1")
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            image = self.cell(z, x)
            total = z.new_zeros(len(z))
            for _ in range(probes):
                probe = torch.randn_like(image)
                (pulled,) = torch.autograd.grad(image, z, probe, create_graph=True)
                total = total + pulled.square().flatten(1).mean(1)
        return total / probes

    @torch.no_grad()
    def spectral_radius(self, z: Tensor, x: Tree, iters: int = 60) -> Tensor:
        """Estimate of J's largest |eigenvalue| for each sample, (B,), by a power iteration on J'.

        The geometric mean of the growth over the last half of the products: a complex pair makes
        single ratios swing, and their mean converges as 1 / iters. Below 1, Picard's iteration
        converges near z. The start is a fixed one.
        """
        pull = self._pull(z, fixed(x))
        v = torch.randn(z.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        v = v.to(z)
        growth = []
        for _ in range(iters):
            length = v.flatten(1).norm(dim=1).clamp_min(torch.finfo(v.dtype).tiny)
            v = pull(v / length.view(-1, *[1] * (v.dim() - 1)))
            growth.append(v.flatten(1).norm(dim=1))
        return torch.stack(growth[iters // 2 :]).log().mean(0).exp()

    @torch.no_grad()
    def condition_number(self, z: Tensor, x: Tensor) -> Tensor:
        """Condition number of I - J in the 2-norm for each sample, (B,); forms J, N products."""
        pull, size = self._pull(z, fixed(x)), z[0].numel()
        rows = []
        for unit in torch.eye(size, dtype=z.dtype, device=z.device):
            rows.append(pull(unit.view_as(z[0]).expand_as(z)).flatten(1))
        system = torch.eye(size, dtype=z.dtype, device=z.device) - torch.stack(rows, dim=1)
        return torch.linalg.cond(system)

    def _pull(self, z: Tensor, x: Tree) -> Any:
        """v -> J' v, on one linearisation."""
        with torch.enable_grad():
            linearised: Any = torch.func.vjp(lambda z: self.cell(z, x), z.detach())
        return lambda v: linearised[1](v)[0].detach()
