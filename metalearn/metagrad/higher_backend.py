"""The unrolled meta-gradient by the library `higher`, one task at a time.

It is slower than the batched back end and gives the same gradient. It is the independent reference.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.autograd import add, gradients, partials
from metalearn.errors import MissingPackage, UsageError
from metalearn.inner import Adam, GradientDescent, GradientMethod, LoopState, StepRates
from metalearn.metagrad.base import InnerObjective, check_losses, step_rates
from metalearn.problem import BilevelProblem, Meta, Params
from metalearn.tree import detached, leaves_of, requires_grad_copy


class _Holder(nn.Module):
    """A module that holds the params of one task, for `higher` to patch."""

    def __init__(self, params: Params) -> None:
        super().__init__()
        self.values = nn.ParameterList(nn.Parameter(p.detach().clone()) for p in params.values())


def unroll_with_higher(
    inner: GradientMethod, problem: BilevelProblem, meta: Meta, task: Any, kept: int
) -> tuple[Tensor, dict[str, Tensor], Params, Tensor, list[Tensor | None]]:
    """Return the outer loss (T,), metrics, adapted params, steps (T,), and the gradient.

    The gradient is summed over tasks. `higher` takes the last `kept` steps; the steps before them
    need no derivative.
    """
    results = [_one_task(inner, problem, meta, task[i : i + 1], kept) for i in range(len(task))]
    losses, metrics, params, grads = zip(*results, strict=True)
    loss = torch.cat(losses)
    return (
        loss,
        {name: torch.cat([m[name] for m in metrics]) for name in metrics[0]},
        {name: torch.cat([p[name] for p in params]) for name in params[0]},
        torch.full(loss.shape, inner.steps, dtype=torch.int64, device=loss.device),
        [reduce(add, parts) for parts in zip(*grads, strict=True)],
    )


def _one_task(
    inner: GradientMethod, problem: BilevelProblem, meta: Meta, task: Any, kept: int
) -> tuple[Tensor, dict[str, Tensor], Params, list[Tensor | None]]:
    try:
        import higher
    except ModuleNotFoundError as error:
        raise MissingPackage(
            "backend='higher' needs the package higher, which is not installed. Install it by "
            "`pip install 'metalearn-implicit[train]'`, or choose backend='batched', the same "
            "gradient."
        ) from error

    constant, meta = detached(meta), requires_grad_copy(meta)
    rates = step_rates(problem, meta)
    with torch.enable_grad():
        start = problem.init(meta, task)
        reached = inner.advance(
            InnerObjective(problem, constant, task),
            inner.start(start),
            inner.steps - kept,
            rates=step_rates(problem, constant),
        )
        holder = _Holder(reached.params)
        optimiser = _torch_optimiser(inner, holder, reached)
        with higher.innerloop_ctx(
            holder, optimiser, copy_initial_weights=False, track_higher_grads=True
        ) as (patched, differentiable):

            def current() -> Params:
                return dict(zip(start, patched.parameters(), strict=True))

            for count in range(inner.steps - kept, inner.steps):
                differentiable.step(
                    problem.inner_objective(current(), meta, task).sum(),
                    override=None if rates is None else _rates_of_step(inner, rates, start, count),
                )
            adapted = current()
            loss, metrics = problem.outer_objective(adapted, meta, task)
            check_losses(loss, 1)
            leaves = leaves_of(meta)
            by_start = gradients(loss.sum(), list(holder.values), retain_graph=True)
            direct = partials(loss.sum(), leaves)
        carried = partials(list(start.values()), leaves, by_start)
    return (
        loss.detach(),
        {name: value.detach() for name, value in metrics.items()},
        {name: p.detach() for name, p in adapted.items()},
        [add(a, b) for a, b in zip(direct, carried, strict=True)],
    )


def _rates_of_step(
    inner: GradientMethod, rates: StepRates, params: Params, count: int
) -> dict[str, list[Tensor]]:
    """Return the rate that `higher` takes for each parameter's group after `count` steps."""
    return {"lr": [inner.lr * rates[name][min(count, len(rates[name]) - 1)] for name in params]}


def _torch_optimiser(
    inner: GradientMethod, holder: nn.Module, reached: LoopState
) -> torch.optim.Optimizer:
    """Return a torch optimiser for `higher` to differentiate, as it stands after earlier steps."""
    optimiser: torch.optim.Optimizer
    groups = [{"params": [p]} for p in holder.parameters()]  # each has a rate of its own
    names: tuple[str, ...]
    if isinstance(inner, GradientDescent) and inner.tol is None:
        optimiser = torch.optim.SGD(groups, lr=inner.lr, momentum=inner.momentum)
        names = ("momentum_buffer",) if inner.momentum else ()
    elif isinstance(inner, Adam) and inner.tol is None:
        optimiser = torch.optim.Adam(groups, lr=inner.lr, betas=inner.betas, eps=inner.eps)
        names = ("exp_avg", "exp_avg_sq")
    else:
        raise UsageError(
            f"{inner} cannot be unrolled by higher; use GradientDescent or Adam without tol, "
            "or backend='batched'"
        )
    for p, *remembered in zip(holder.parameters(), *reached.memory, strict=True):
        optimiser.state[p] = {"step": reached.count, **dict(zip(names, remembered, strict=True))}
    return optimiser
