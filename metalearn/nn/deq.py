"""The deep equilibrium model: a layer whose output is a fixed point of its cell."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_map

from metalearn import implicit
from metalearn.autograd import gradients
from metalearn.errors import UsageError
from metalearn.fixed_point import Anderson, FixedPointSolver
from metalearn.implicit.equation import lost, no_derivative
from metalearn.linear_solve import GMRES, LinearSolver, Solution, Status
from metalearn.linear_solve.system import divide, seeded
from metalearn.tree import Tree


class DEQ(nn.Module):
    """The layer z* = cell(z*, x), with an implicit derivative; Bai, Kolter & Koltun 2019.

    It is an ordinary module: its parameters are the cell's, and its output carries gradients to
    them and to x. With J = d cell / d z at z*, backward solves (I - J)' u = d loss / d z by
    `linear_solver`. The iterations leave no graph. The memory is that of one application and of
    what the solvers keep, such as Anderson's window or GMRES's basis.

    The cell must be the same function at every call of one forward pass. `torch.func.vmap` does not
    reach through the solvers: pass a batch.

    Args:
        cell: a module (z, x) -> z'. Its tensors z are (B, ...).
        solver: the solver of the forward pass.
        linear_solver: the solver of the backward pass.
        batched: True: the cell treats the B samples one by one; each is its own system, and stops
            on its own. False: samples meet, as in batch norm; one system for all.

    Attributes:
        forward_solution, backward_solution: the `Solution` of the last pass each way, None before
            it and in copies. Derivatives of the derivative, and forward mode, also leave theirs in
            backward_solution.

    Raises:
        UsageError: a layer of the cell is a dropout, or keeps running averages, in training mode.
        ValueError: z0 is not given, and x is not a floating-point tensor to take zeros from.
        NoDerivative: forward if the cell gives infinities or NaN; backward if no system of the
            batch is solved (I - J is singular, or beyond the solver).

    Warns:
        InexactDerivative: a solve ended before its tolerance for at least one sample. Its best
            iterate serves, so that the gradient is inexact, or not that of a fixed point. The
            solutions' statuses count such samples. The words are always the same, so that Python
            shows the warning once.
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
        """Return the fixed point, a pytree like z0.

        Args:
            x: the cell's input beside z, a pytree.
            z0: the start of the iteration; None: zeros like x, which is then one tensor.
        """
        _check_same_at_every_call(self.cell)
        if z0 is None:
            if not isinstance(x, Tensor) or not x.is_floating_point():
                what = x.dtype if isinstance(x, Tensor) else type(x).__name__
                raise ValueError(f"x is {what}; expected a floating-point tensor, or z0 beside it")
            z0 = torch.zeros_like(x)
        tensors = {**dict(self.cell.named_parameters()), **dict(self.cell.named_buffers())}
        with torch.no_grad():
            still_x, still = _detached(x), _detached(tensors)
            solution = self.solver(
                lambda z: self._image(z, still_x, still), _detached(z0), batched=self.batched
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
            check="silent",  # forward_solution has the residual
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for copies and pickles, without the last solutions.

        These hold a batch's states.
        """
        return self.__dict__ | {"forward_solution": None, "backward_solution": None}

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
        """Return Hutchinson's estimate of |J|_F^2 / N for each sample, (B,).

        It is differentiable in the cell. Added to a loss with a weight, it keeps the cell a
        contraction (Bai, Koltun & Kolter 2021, equation 7). z, (B, ...) with N numbers a sample, is
        taken as a constant. The probes are normal, from torch's own random state; the variance
        falls as 1 / probes.

        Raises:
            ValueError: probes is below 1, or the samples meet (`batched` is False).
        """
        self._check_samples()
        if probes < 1:
            raise ValueError(f"probes={probes}; expected at least 1")
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            image = self.cell(z, x)
            total = z.new_zeros(len(z))
            for _ in range(probes):
                probe = torch.randn_like(image)
                (pulled,) = gradients(image, [z], [probe], create_graph=True)
                total = total + pulled.square().reshape(len(z), -1).mean(1)
        return total / probes

    @torch.no_grad()
    def spectral_radius(self, z: Tensor, x: Tree, iters: int = 60) -> Tensor:
        """Estimate J's largest |eigenvalue| for each sample, (B,), by a power iteration on J'.

        The estimate is the geometric mean of the growth over the last half of the products. A
        complex pair makes single ratios swing, and their mean converges as 1 / iters. Below 1,
        Picard's iteration converges near z. A J far from normal grows vectors for long, whatever
        its eigenvalues: if nilpotent of index k, it needs more than 2 k products to show its 0. The
        start is the same for every sample, and fixed.

        Raises:
            ValueError: iters is below 2, or the samples meet (`batched` is False).
        """
        self._check_samples()
        if iters < 2:
            raise ValueError(f"iters={iters}; expected at least 2")
        pull = self._pull(z, x)
        start = seeded((1, z[0].numel()), 0, z)
        v = start.expand(len(z), -1)
        growth = []
        for _ in range(iters):
            v = divide(v, v.norm(dim=1, keepdim=True))
            v = pull(v.reshape(z.shape)).reshape(len(z), -1)
            growth.append(v.norm(dim=1))
        return torch.stack(growth[iters // 2 :]).log().mean(0).exp()

    @torch.no_grad()
    def condition_number(self, z: Tensor, x: Tensor) -> Tensor:
        """Return the condition number of I - J in the 2-norm for each sample, (B,).

        It forms J, by N products. The number is infinite where I - J is singular or not finite.

        Raises:
            ValueError: the samples meet (`batched` is False).
        """
        self._check_samples()
        pull, size = self._pull(z, x), z[0].numel()
        identity = torch.eye(size, dtype=z.dtype, device=z.device)
        rows = [
            pull(unit.view_as(z[0]).expand_as(z)).reshape(len(z), -1) for unit in identity.unbind()
        ]
        system = identity - torch.stack(rows, dim=1)
        finite = system.isfinite().all(dim=2).all(dim=1)
        condition = torch.linalg.cond(torch.where(finite[:, None, None], system, 0.0))
        return condition.nan_to_num(nan=torch.inf, posinf=torch.inf)

    def _pull(self, z: Tensor, x: Tree) -> Any:
        """Return the map v -> J' v, on one linearisation."""
        still = _detached(x)
        with torch.enable_grad():
            linearised: Any = torch.func.vjp(lambda z: self.cell(z, still), z.detach())
        return lambda v: linearised[1](v)[0].detach()

    def _check_samples(self) -> None:
        if not self.batched:
            raise ValueError(
                "batched=False says that the samples meet in this cell: J has no part for each"
            )


def _check_same_at_every_call(cell: nn.Module) -> None:
    """Raise UsageError for a layer that changes from call to call."""
    for name, layer in cell.named_modules():
        if not layer.training:
            continue
        where = f"the cell's {name or 'module'}, {type(layer).__name__}, in training"
        if isinstance(layer, _NormBase) and layer.running_mean is not None:
            raise UsageError(
                f"{where}: expected the same function at every call, and its running averages "
                "change. Set track_running_stats=False, or call eval() on it."
            )
        if isinstance(layer, _DropoutNd) and layer.p > 0:
            raise UsageError(
                f"{where}: expected the same function at every call, and it draws a new mask. Draw "
                "one mask outside and give it in x, or call eval() on it."
            )


def _detached(tree: Tree) -> Tree:
    """Return the tree with its tensors detached; other leaves are passed on."""
    return tree_map(lambda v: v.detach() if isinstance(v, Tensor) else v, tree)
