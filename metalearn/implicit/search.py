"""The search for a solution on concrete numbers, whatever transforms are around it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from metalearn.errors import UsageError
from metalearn.nonlinear_solve import Found, NotSolved, SolveStatus
from metalearn.tree import Raveler, Tree

Leaves = tuple[Tensor, ...]
Run = Callable[[Callable[[Tensor], Tensor], Tensor], Found]
"""A solver with its limit: it maps a function of (T, N) and the start to the end."""


@dataclass(frozen=True)
class Result:
    """The solution that a solver found, with its derivative attached.

    Args:
        value: a pytree like x0, differentiable in `args`; always finite.
        status: `SolveStatus` as int64.
        steps: int64, the steps taken; for a fixed point, the applications of the function.
        residual_norm: the norm at `value` of the equation solved: the residual, the gradient of a
            minimum, or x - f(x).

    All fields but `value` have shape (T,) if the solve was batched, else ().
    """

    value: Any
    status: Tensor
    steps: Tensor
    residual_norm: Tensor

    @property
    def converged(self) -> Tensor:
        return self.status == SolveStatus.CONVERGED

    @property
    def sentence(self) -> str:
        """The sentence of the status, which says what to do; of the highest status in a batch."""
        return SolveStatus(int(self.status.max())).sentence


def search(
    name: str,
    run: Run,
    function: Callable[..., Tree],
    x0: Tree,
    args: Sequence[Tree],
    batched: bool,
) -> Result:
    """Return the `Result` of a search from x0, without a derivative.

    Args:
        name: the user's function, for the warning.
        function: maps (x, *args) to a pytree. If `batched`, each leaf begins with the axis T.
    """
    Raveler.of(x0, batched)  # raises for leaves that no solver takes
    x, x_spec = tree_flatten(x0)
    leaves, spec = tree_flatten(tuple(args))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def on_leaves(x: Leaves, c: Leaves) -> Leaves:
        filled = list(leaves)
        for i, tensor in zip(places, c, strict=True):
            filled[i] = tensor
        try:
            out = function(tree_unflatten(list(x), x_spec), *tree_unflatten(filled, spec))
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
            raise UsageError(
                f"{name}: the function calls torch.autograd.grad, and nothing is recorded there: "
                "expected torch.func.grad inside it. Take this."
            ) from error
        found = tree_flatten(out)[0]
        if odd := [type(leaf).__name__ for leaf in found if not isinstance(leaf, Tensor)]:
            raise UsageError(
                f"{name}: the function gives {odd[0]}: expected a tensor or a pytree of tensors. "
                "Return these."
            )
        return tuple(found)

    c = [leaves[i].detach() for i in places]
    task = _Search(name, run, on_leaves, depth=int(batched))
    *value, status, steps, norm = _Searched.apply(task, len(x), *(v.detach() for v in x), *c)
    return Result(tree_unflatten(value, x_spec), status, steps, norm)


@dataclass(frozen=True)
class _Search:
    """A search on tuples of tensors. x begins with `depth` axes of problems, as in `Equation`."""

    name: str
    run: Run
    function: Callable[[Leaves, Leaves], Leaves]
    depth: int

    def __call__(self, x: Leaves, c: Leaves) -> Leaves:
        depth, lead = self.depth, x[0].shape[: self.depth]
        folded = [v.reshape(-1, *v.shape[depth:]) if depth else v for v in x]
        raveler = Raveler.of(folded, batched=depth > 0)

        def unfold(leaves: Sequence[Tensor]) -> Leaves:
            return tuple(v.reshape(*lead, *v.shape[1:]) if depth else v for v in leaves)

        def on_rows(rows: Tensor) -> Tensor:
            at = tuple(
                v.reshape(*lead, *v.shape[1:]) if depth else v for v in raveler.unravel(rows)
            )
            out = self.function(at, c)
            return torch.cat([v.reshape(len(rows), -1).to(rows.dtype) for v in out], dim=1)

        start = raveler.ravel(folded)
        finite = start.isfinite().all(dim=1)
        start = torch.where(finite[:, None], start, 0.0)
        found = self.run(on_rows, start)
        status = torch.where(finite, found.status, SolveStatus.NON_FINITE)
        self._warn(status, found.residual_norm)
        value = unfold([v.detach() for v in raveler.unravel(found.x)])
        figures = (status, found.steps, found.residual_norm.detach())
        return value + tuple(v.reshape(lead) for v in figures)

    def _warn(self, status: Tensor, residual_norm: Tensor) -> None:
        failed = status != SolveStatus.CONVERGED
        if not failed.any():
            return
        share = f"{int(failed.sum())} of {len(status)} problems not solved"
        worst = SolveStatus(int(status.max()))
        largest = residual_norm[status == worst].max().item()
        warnings.warn(
            f"{self.name}: {share}, {worst.name} at residual norm {largest:.1e}. {worst.sentence} "
            "The derivative is that of a solution, and is wrong elsewhere.",
            NotSolved,
            stacklevel=2,
        )

    def mapped(self, dims: Sequence[int | None]) -> _Search:
        """Return the search with one more axis in x, and in those of c whose dim is not None."""
        function = torch.func.vmap(self.function, in_dims=(0, tuple(dims)))
        return replace(self, function=function, depth=self.depth + 1)


class _Searched(torch.autograd.Function):
    """The solution, status, steps and residual norm as constants, outside all transforms."""

    @staticmethod
    def forward(task: _Search, n: int, *leaves: Tensor) -> Leaves:
        return task(leaves[:n], leaves[n:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Leaves) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def vmap(info: Any, in_dims: Any, task: _Search, n: int, *leaves: Tensor) -> Any:
        moved = [
            v if d is None else v.movedim(d, 0) for v, d in zip(leaves, in_dims[2:], strict=True)
        ]
        mapped = [d is not None for d in in_dims[2:]]
        x = [
            v if m else v.expand(info.batch_size, *v.shape)
            for v, m in zip(moved[:n], mapped[:n], strict=True)
        ]
        dims = [0 if m else None for m in mapped[n:]]
        out = _Searched.apply(task.mapped(dims), n, *x, *moved[n:])
        return out, (0,) * len(out)
