"""Truncated unrolling: back through the last inner steps, whatever the inner optimiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from metalearn.autograd import add, partials
from metalearn.bilevel.learned_rates import learned_rates
from metalearn.bilevel.method import Hypergradient, Method, check_counts
from metalearn.bilevel.recorded_step import RecordedStep, State, check_differentiable
from metalearn.errors import UsageError
from metalearn.system.random_state import TorchStates, replayed, torch_states
from metalearn.tree import leaves_of

if TYPE_CHECKING:
    from metalearn.bilevel.descent import Descent


class _Visit(NamedTuple):
    """An inner step of the window: its batch, the random states before it, and the step."""

    batch: Any
    states: TorchStates
    step: RecordedStep


@dataclass(frozen=True)
class TruncatedUnrolling(Method):
    """The derivative of the outer loss through the last `window` of `steps` inner steps.

    Truncated backpropagation: every T1 = `steps` inner steps it goes back T2 = `window` steps
    (Williams & Peng 1990; for hyper-parameters Shaban et al. 2019, section 3). Training continues
    from the params reached. One step and a window of one is the method of Luketina et al. 2016;
    with `rehearse` it is DARTS (Liu et al. 2019) with the exact product in the place of its finite
    differences.

    The derivative is exact for the steps of the window, through SGD with momentum, Adam, AdamW and
    every other optimiser of torch with the option `differentiable`, schedules among them. It is
    also that by the rates of a `RatedStochasticProblem`. The params before the window count as a
    constant. No graph is kept from step to step: each step's is made again on the way back. The
    memory is that of one inner gradient, and of the params, the gradient and the optimiser's state
    for each step of the window.

    For gradient descent near the inner minimum, the bias is at most (1 - lr mu)^window times a
    constant, mu the least eigenvalue of A (Shaban et al. 2019).

    Args:
        steps: T1, the inner steps in an outer step.
        window: T2, from 1 to `steps`; with `rehearse` any number from 1 on.
        rehearse: True: after `steps` inner steps, `window` more are taken for the derivative alone
            and undone. They take batches of their own.

    Raises:
        UsageError: an option is out of its range; at the start: the inner optimiser's step has no
            derivative.
    """

    sees_optimiser: ClassVar[bool] = True

    steps: int = 1
    window: int = 1
    rehearse: bool = False

    def __post_init__(self) -> None:
        check_counts(self, "steps", "window")
        if self.window > self.steps and not self.rehearse:
            raise UsageError(
                f"TruncatedUnrolling(steps={self.steps}, window={self.window}): expected a window "
                "of at most the steps. Take more steps, or a shorter window."
            )

    def begin(self, at: Descent) -> dict[str, list[Tensor]]:
        check_differentiable(at.inner.optimiser)
        return {}

    def step(self, at: Descent) -> Hypergradient:
        before_window = self.steps if self.rehearse else self.steps - self.window
        at.descend_inner(before_window)
        snapshot = at.inner.snapshot() if self.rehearse else None
        batches = [at.inner_batch() for _ in range(self.window)]
        found = self._through(at, batches, at.outer_batch())
        if snapshot is not None:
            at.inner.load_state_dict(snapshot)
        return found

    def direction(self, at: Descent, inner_batch: Any, outer_batch: Any) -> Hypergradient:
        snapshot = at.inner.snapshot()
        found = self._through(at, [inner_batch] * self.window, outer_batch)
        at.inner.load_state_dict(snapshot)
        return found

    def _through(self, at: Descent, batches: list[Any], outer_batch: Any) -> Hypergradient:
        """Take inner steps on batches, and go back through them."""
        with torch.enable_grad():
            learned = learned_rates(at.problem, at.meta, at.params)
        factors = [None if f is None else f.detach() for f in learned]
        visits = []
        for batch in batches:
            states = torch_states()
            inner = at.oracle.inner(at.params, at.meta, batch)
            step = RecordedStep.of(at.inner.optimiser, at.inner.leaves, inner.by_params, factors)
            visits.append(_Visit(batch, states, step))
            at.inner.step(inner.by_params, factors)
        outer = at.oracle.outer(at.params, at.meta, outer_batch)
        by_params, by_meta = outer.by_params, outer.by_meta
        by_state: State | None = None
        by_rates: list[list[Tensor]] = []
        for visit in reversed(visits):
            by_params, by_state, by_grads, by_factors = visit.step.pull_back(by_params, by_state)
            by_rates.append(by_factors)
            there = dict(zip(at.params, visit.step.params, strict=True))
            with replayed(visit.states):
                second = at.oracle.products(there, at.meta, visit.batch, by_grads)
            by_params = [p + h for p, h in zip(by_params, second.hessian, strict=True)]
            by_meta = [add(m, new) for m, new in zip(by_meta, second.mixed, strict=True)]
        rates = [f for f in learned if f is not None]
        weights = [torch.stack(parts).sum(0) for parts in zip(*by_rates, strict=True)]
        by_rate = partials(rates, leaves_of(at.meta), weights)
        by_meta = [add(m, new) for m, new in zip(by_meta, by_rate, strict=True)]
        return Hypergradient(by_meta, outer.loss, inner.loss)
