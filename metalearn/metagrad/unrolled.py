"""The unrolled meta-gradient, which goes back through the inner steps as MAML does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from metalearn.autograd import add
from metalearn.errors import UsageError
from metalearn.inner import GradientMethod, InnerSolution, InnerSolver, LoopState, value_and_grad
from metalearn.metagrad.base import (
    InnerObjective,
    MetaGradient,
    MetaGradientResult,
    mean_over_tasks,
    pull_back,
    step_rates,
    through_init,
)
from metalearn.metagrad.higher_backend import unroll_with_higher
from metalearn.metagrad.mixed_mode import back_through_mixed
from metalearn.problem import BilevelProblem, Meta, Params
from metalearn.system.random_state import drawn_since, replayed, torch_states
from metalearn.tree import detached, requires_grad_copy, task_norm


@dataclass(frozen=True)
class Unrolled(MetaGradient):
    """The exact derivative of the inner loop as run, K steps and no more; Finn et al. 2017.

    Memory grows with the number of inner steps, unless they are truncated or checkpointed.

    Args:
        inner: `GradientDescent` or `Adam`.
        backend: "higher" runs the tasks one by one with the library `higher`, the reference;
            "batched" runs all tasks in one graph.
        truncate: back through the last `truncate` steps only (Shaban et al. 2019), the loop's state
            before them a constant. What reaches meta through the earlier steps' objective is left
            out; `problem.init` is carried over them as by `FirstOrder`, d params / d init taken to
            be the identity, since it would else be lost altogether, and MAML's whole gradient with
            it. 0: `FirstOrder` itself; K or more, and None: the exact derivative.
        checkpoint: the number of steps in a segment. The loop's state is kept at the start of each
            segment; a segment's graph is made again at its turn in the backward sweep (Chen et al.
            2016), with the same random numbers. The gradient is the same, for one more run of the
            inner loop without a graph. The memory is that of K / checkpoint states and one
            segment's graph. "sqrt": segments of the
            square root of the steps, rounded up. That is the least memory if a state is as large as
            a step's graph; for a network with large activations 1 takes less. Only with
            backend="batched".
        multi_step: the multi-step loss of MAML++ (Antoniou et al. 2019, section 4). Every inner
            step's outer loss counts 1 / K at the first meta-step. The weights of all but the last
            fall linearly to 0 over `multi_step` meta-steps, and the last weight rises to 1. The
            result's `solver_state` holds the number of meta-steps made; without it the count is 0.
            The reported loss and metrics are those of the last inner step. Only with
            backend="batched" and without `truncate`. None: the last step's loss alone.
        mode: "reverse" differentiates each step's gradient by a graph of it; "mixed" by forward
            mode over reverse mode, without a graph of a gradient (`metagrad.mixed_mode`). The state
            before each step is kept. Only with backend="batched", without `checkpoint` and
            `multi_step`.

    Raises:
        UsageError: an unknown back end, a bad `truncate`, `checkpoint` or `multi_step`, or an inner
            solver that the back end cannot unroll.
        NonFiniteGradient: the outer loss or the gradient is not finite.
    """

    estimates: ClassVar = "unrolled"

    inner: InnerSolver
    backend: Literal["higher", "batched"] = "higher"
    truncate: int | None = None
    checkpoint: int | Literal["sqrt"] | None = None
    multi_step: int | None = None
    mode: Literal["reverse", "mixed"] = "reverse"

    def __post_init__(self) -> None:
        if self.backend not in ("higher", "batched"):
            raise UsageError(f"backend={self.backend!r} is unknown; expected 'higher' or 'batched'")
        if self.truncate is not None:
            if type(self.truncate) is not int or self.truncate < 0:
                raise UsageError(f"truncate={self.truncate}; expected at least 0 steps, or null")
            if getattr(self.inner, "tol", None) is not None:
                raise UsageError(
                    f"truncate={self.truncate} with inner.tol={self.inner.tol}; the last steps are "  # type: ignore[attr-defined]
                    "counted from a loop of fixed length, so leave tol out"
                )
        if self.checkpoint is not None:
            whole = type(self.checkpoint) is int and self.checkpoint >= 1
            if not whole and self.checkpoint != "sqrt":
                raise UsageError(
                    f"checkpoint={self.checkpoint}; expected at least 1 step, 'sqrt', or null"
                )
            if self.backend != "batched":
                raise UsageError(
                    f"checkpoint={self.checkpoint} needs backend='batched'; the library higher "
                    "keeps the graph of every step"
                )
        if self.multi_step is not None:
            if type(self.multi_step) is not int or self.multi_step < 1:
                raise UsageError(
                    f"multi_step={self.multi_step}: expected at least 1 meta-step, or null. Give "
                    "a whole number."
                )
            if self.backend != "batched":
                raise UsageError(
                    f"multi_step={self.multi_step}: expected backend='batched', which alone weighs "
                    "the losses of the earlier steps. Set backend='batched', or multi_step=null."
                )
            if self.truncate is not None:
                raise UsageError(
                    f"multi_step={self.multi_step}: expected truncate=null, for the earlier steps "
                    f"have losses of their own. Leave out truncate={self.truncate}."
                )

        if self.mode not in ("reverse", "mixed"):
            raise UsageError(f"mode={self.mode!r}: expected 'reverse' or 'mixed'. Choose one.")
        if self.mode == "mixed":
            wanted = {"backend": "batched", "checkpoint": None, "multi_step": None}
            for name, value in wanted.items():
                if getattr(self, name) != value:
                    raise UsageError(
                        f"mode=mixed: expected {name}={value or 'null'}, not {getattr(self, name)}."
                        f" Set {name}={value or 'null'}, or mode=reverse."
                    )

    @property
    def one_by_one(self) -> bool:
        return self.backend == "higher"

    def differentiate(
        self, problem: BilevelProblem, meta: Meta, task: Any, meta_step: Tensor | None = None
    ) -> MetaGradientResult:
        if not isinstance(self.inner, GradientMethod):
            raise UsageError(
                f"{type(self.inner).__name__} has no unrolled derivative; use an implicit or "
                "first-order meta-gradient"
            )
        made = 0 if meta_step is None else round(meta_step.item())
        steps = self.inner.steps
        kept = steps if self.truncate is None else min(self.truncate, steps)
        if self.mode == "mixed":
            loss, metrics, params, taken, grads = back_through_mixed(
                self.inner, problem, meta, task, steps - kept
            )
        elif self.backend == "batched":
            loss, metrics, params, taken, grads = back_through(
                self.inner,
                problem,
                meta,
                task,
                steps - kept,
                self._segments(kept),
                self._earlier_weight(made, steps),
            )
        else:
            loss, metrics, params, taken, grads = unroll_with_higher(
                self.inner, problem, meta, task, kept
            )
        constant = detached(meta)
        value, inner_grads = value_and_grad(InnerObjective(problem, constant, task), params)
        return MetaGradientResult(
            mean_over_tasks(meta, grads, len(value)),
            loss,
            metrics,
            InnerSolution(params, value.detach(), task_norm(inner_grads), taken),
            solver_state=self._carry(made + 1, loss),
        )

    def _earlier_weight(self, made: int, steps: int) -> float:
        """Return the weight of the outer loss after each inner step but the last.

        `made` is the number of meta-steps before this one.
        """
        if self.multi_step is None or made >= self.multi_step or steps < 2:
            return 0.0
        return (1 - made / self.multi_step) / steps

    def _carry(self, made: int, like: Tensor) -> dict[str, Tensor]:
        """Return the count of meta-steps, in the gradient's type and no larger than needed.

        Micro-batches and ranks take the mean of their counts, which the type must hold.
        """
        if self.multi_step is None:
            return {}
        return {"meta_step": like.new_tensor(min(made, self.multi_step))}

    def _segments(self, steps: int) -> list[int]:
        """Return the lengths of the segments, at least one."""
        length = self.checkpoint or steps
        if length == "sqrt":
            length = math.isqrt(max(steps - 1, 0)) + 1
        whole, rest = divmod(steps, max(length, 1))
        return [length] * whole + [rest] * (rest > 0) or [0]


def back_through(
    inner: GradientMethod,
    problem: BilevelProblem,
    meta: Meta,
    task: Any,
    skipped: int,
    segments: list[int],
    earlier: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor], Params, Tensor, list[Tensor | None]]:
    """Run `skipped` steps and the segments' steps forward, then the segments backward.

    No more than one segment's graph exists at once; the last segment's is made on the way forward.

    Args:
        earlier: the weight of the outer loss after each step of the loop but the last, whose weight
            is the rest of 1.

    Returns:
        the outer loss (T,), metrics, adapted params, steps (T,), and the gradient for each leaf of
        meta. The gradient is summed over tasks, and None for a leaf without one.
    """
    constant, meta = detached(meta), requires_grad_copy(meta)
    objective = InnerObjective(problem, constant, task)

    def forward(state: LoopState, steps: int) -> LoopState:
        rates, before = step_rates(problem, constant), torch_states()
        for some in [1] * steps if earlier else [steps]:
            state = inner.advance(objective, state, some, rates=rates)
            if earlier and drawn_since(before):  # draw what `with_graph` draws for this step's loss
                with torch.no_grad():
                    problem.outer_objective(state.params, constant, task)
        return state

    def with_graph(state: LoopState, steps: int) -> tuple[LoopState, LoopState, list[Tensor]]:
        """Return the state as leaves, the state reached, and the weighted earlier losses."""
        begin = end = state.requires_grad_copy()
        rates, losses = step_rates(problem, meta), []
        for some in [1] * steps if earlier else [steps]:
            end = inner.advance(InnerObjective(problem, meta, task), end, some, True, rates)
            if earlier and end.count < inner.steps:
                losses.append(earlier * problem.outer_objective(end.params, meta, task)[0].sum())
        return begin, end, losses

    first_draw = torch_states()
    states = [forward(inner.start(problem.init(constant, task)), skipped)]
    draws = []
    for steps in segments[:-1]:
        draws.append(torch_states())
        states.append(forward(states[-1], steps))
    with torch.enable_grad():
        begin, end, losses = with_graph(states.pop(), segments[-1])
        loss, metrics = problem.outer_objective(end.params, meta, task)
        last = (1 - (inner.steps - 1) * earlier) * loss.sum()
        by_state, by_meta = pull_back([last, *losses], None, begin.leaves(), meta)
        for steps in reversed(segments[:-1]):
            with replayed(draws.pop()):
                begin, reached, losses = with_graph(states.pop(), steps)
            weights = by_state + [torch.ones_like(x) for x in losses]
            by_state, more = pull_back(reached.leaves() + losses, weights, begin.leaves(), meta)
            by_meta = [add(a, b) for a, b in zip(by_meta, more, strict=True)]
    carried = through_init(problem, constant, task, by_state[: len(end.params)], first_draw)
    return (
        loss.detach(),
        {name: value.detach() for name, value in metrics.items()},
        detached(end.params),
        end.taken,
        [add(a, b) for a, b in zip(by_meta, carried, strict=True)],
    )
