"""The backward sweep through an inner loop in mixed mode: forward over reverse.

The pull-back of an inner step needs v' d grad / d (params, meta), with grad the inner gradient in
the params. Reverse mode obtains it from a graph of the gradient's own computation. Second
derivatives are symmetric: the same row is the derivative of the inner gradient in (params, meta)
along v, which forward mode computes beside the gradient itself (Kemaev et al. 2025, MixFlow-MG,
section 3). No graph of a gradient is kept.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from metalearn.autograd import add, partials, without_saved_tensor_hooks
from metalearn.inner import GradientMethod, LoopState, value_and_grad
from metalearn.metagrad.base import InnerObjective, pull_back, step_rates, through_init
from metalearn.problem import BilevelProblem, Meta, Params
from metalearn.system.random_state import replayed, torch_states
from metalearn.tree import detached, leaves_of, requires_grad_copy


def back_through_mixed(
    inner: GradientMethod, problem: BilevelProblem, meta: Meta, task: Any, skipped: int
) -> tuple[Tensor, dict[str, Tensor], Params, Tensor, list[Tensor | None]]:
    """Run the inner loop forward, and back through its steps after the first `skipped` ones.

    The loop's state before each step is kept. The arguments and results are otherwise those of
    `unrolled.back_through`.
    """
    constant, meta = detached(meta), requires_grad_copy(meta)
    rates = step_rates(problem, constant)
    objective = InnerObjective(problem, constant, task)
    first_draw = torch_states()
    state = inner.advance(
        objective, inner.start(problem.init(constant, task)), skipped, rates=rates
    )
    before: list[tuple[LoopState, tuple[Tensor, ...]]] = []
    for _ in range(inner.steps - skipped):
        before.append((state, torch_states()))
        state = inner.advance(objective, state, 1, rates=rates)
    end = state.requires_grad_copy()
    with torch.enable_grad():
        loss, metrics = problem.outer_objective(end.params, meta, task)
    weights, by_meta = pull_back([loss.sum()], None, end.leaves(), meta)
    mixed: list[Tensor] | None = None
    for begin, draw in reversed(before):
        grads = [torch.zeros_like(p) for p in begin.params.values()]
        if rates is not None or not inner.linear:
            with replayed(draw):
                _, grads = value_and_grad(objective, begin.params)
        weights, by_grads, by_rates = _pulled_through_update(
            inner, problem, meta, begin, grads, weights
        )
        with replayed(draw):
            by_params, more = _pushed(problem, constant, task, begin.params, by_grads)
        for i, term in enumerate(by_params):
            weights[i] = weights[i] + term
        mixed = more if mixed is None else [a + b for a, b in zip(mixed, more, strict=True)]
        by_meta = [add(a, b) for a, b in zip(by_meta, by_rates, strict=True)]
    carried = through_init(problem, constant, task, weights[: len(end.params)], first_draw)
    by_meta = [add(a, b) for a, b in zip(by_meta, carried, strict=True)]
    if mixed is not None:
        reached = _reached(problem, meta, task, end.params)
        by_meta = [
            add(a, b) if a is not None or there else None
            for a, b, there in zip(by_meta, mixed, reached, strict=True)
        ]
    return (
        loss.detach(),
        {name: value.detach() for name, value in metrics.items()},
        detached(end.params),
        end.taken,
        by_meta,
    )


def _pulled_through_update(
    inner: GradientMethod,
    problem: BilevelProblem,
    meta: Meta,
    begin: LoopState,
    grads: list[Tensor],
    weights: list[Tensor],
) -> tuple[list[Tensor], list[Tensor], list[Tensor | None]]:
    """Pull weights back through a step's update, its gradients taken as inputs of their own.

    Returns:
        weights' d state / d begin, weights' d state / d grads, and weights' d state / d rates / d
        meta.
    """
    start, grads = begin.requires_grad_copy(), requires_grad_copy(grads)
    with torch.enable_grad():
        reached = inner.step(start, grads, step_rates(problem, meta))
    found, by_meta = pull_back(reached.leaves(), weights, start.leaves() + grads, meta)
    return found[: -len(grads)], found[-len(grads) :], by_meta


def _pushed(
    problem: BilevelProblem, meta: Meta, task: Any, params: Params, along: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the derivatives of d inner / d params and of d inner / d meta along a move of params.

    The second is summed over tasks.
    """

    def gradient(params: Params) -> Any:
        def total(params: Params, meta: Meta) -> Tensor:
            return problem.inner_objective(params, meta, task).sum()

        return torch.func.grad(total, argnums=(0, 1))(params, meta)

    # Forward mode takes no tensors that lie on themselves, as the expanded start of a loop does.
    point = {name: p.detach().contiguous() for name, p in params.items()}
    move = dict(zip(params, along, strict=True))
    with without_saved_tensor_hooks(), warnings.catch_warnings():
        # torch 2.14 scripts its forward-mode rules by what it deprecates itself.
        warnings.filterwarnings("ignore", "`torch.jit.script`")
        pushed: Any = torch.func.jvp(gradient, (point,), (move,))
    by_params, by_meta = pushed[1]
    return [by_params[name] for name in params], leaves_of(by_meta)


def _reached(problem: BilevelProblem, meta: Meta, task: Any, params: Params) -> list[bool]:
    """Return for each leaf of meta whether the inner objective depends on it."""
    with torch.enable_grad():
        objective = problem.inner_objective(detached(params), meta, task)
        found = partials(objective.sum(), leaves_of(meta))
    return [g is not None for g in found]
