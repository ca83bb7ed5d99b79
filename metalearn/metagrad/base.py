"""What every meta-gradient is, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.inner import AtRates, GradientMethod, InnerSolution, InnerSolver, StepRates
from metalearn.metagrad.certificate import Certificate
from metalearn.problem import BilevelProblem, Meta, Params, RatedProblem
from metalearn.tree import fixed, leaves_of, like_tree, live, named_leaves, partials


class NonFiniteGradient(ArithmeticError):
    """A meta-gradient or an outer loss is not finite; it is never handed on."""


@dataclass(frozen=True)
class MetaGradientResult:
    """
    Args:
        grads: a pytree like meta, the mean over the tasks of d outer / d meta.
        outer_loss: (T,).
        metrics: the problem's further figures, each (T,).
        inner: the inner solution that the tasks reached.
        certificate: of an implicit gradient; None for the others.
        solution: of an implicit gradient's linear system, x = A^-1 (d outer / d params) as far as
            it was solved, a dict of (T, ...) like the params; None for the others.
        carry: keyword arguments for the next meta-step's call, which a training loop hands on;
            empty for what needs none.
    """

    grads: Any
    outer_loss: Tensor
    metrics: dict[str, Tensor]
    inner: InnerSolution
    certificate: Certificate | None = None
    solution: Params | None = None
    carry: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.outer_loss.isfinite().all():
            bad = int((~self.outer_loss.isfinite()).sum())
            raise NonFiniteGradient(
                f"the outer loss of {bad} of {len(self.outer_loss)} tasks is not finite; "
                "a smaller inner learning rate is the usual cure"
            )
        if not all(g.isfinite().all() for g in leaves_of(self.grads)):
            raise NonFiniteGradient(
                "the meta-gradient is not finite though the outer loss is; try fewer inner steps, "
                "a smaller inner learning rate, or more damping"
            )


class MetaGradient:
    """A way to differentiate a bilevel problem: `meta_gradient(problem, meta, task)`.

    It keeps no state: one that goes on from the meta-step before takes `**previous.carry` too.

    The features of a `FeatureProblem` are computed once, and gone back through once.
    """

    inner: InnerSolver

    def __call__(
        self, problem: BilevelProblem, meta: Meta, task: Any, **carry: Any
    ) -> MetaGradientResult:
        differentiate: Callable[..., MetaGradientResult] = self.differentiate
        if self.one_by_one and getattr(problem, "statistics", "task") != "task":
            raise UsageError(
                f"statistics=population: expected a method that takes all tasks together, not "
                f"{self}. Choose backend=batched, or linearisation=kept."
            )
        if self.one_by_one or not hasattr(problem, "on_features"):
            return differentiate(problem, meta, task, **carry)
        shared: Any = problem
        meta = live(meta)
        with torch.enable_grad():
            inputs = {"features": shared.features(meta, task), "rest": shared.rest(meta)}
        result = differentiate(shared.on_features, fixed(inputs), task, **carry)
        grads = partials(leaves_of(inputs), leaves_of(meta), leaves_of(result.grads))
        return replace(result, grads=mean_over_tasks(meta, grads, 1))

    @property
    def one_by_one(self) -> bool:
        """True for a method that takes the tasks apart, or that no gradient in features reaches."""
        return False

    def differentiate(self, problem: BilevelProblem, meta: Meta, task: Any) -> MetaGradientResult:
        """The meta-gradient of a problem as it stands; what a subclass defines.

        One that defines `__call__` in its place is given every problem as it stands.
        """
        raise NotImplementedError(
            f"{type(self).__name__} defines neither differentiate nor __call__"
        )

    def adapt(self, problem: BilevelProblem, meta: Meta, task: Any) -> InnerSolution:
        """The inner loop alone, as evaluation runs it."""
        meta = fixed(meta)
        if hasattr(problem, "on_features"):
            shared: Any = problem
            task = shared.support_only(task)
            with torch.no_grad():
                meta = {"features": shared.features(meta, task), "rest": shared.rest(meta)}
            problem = shared.on_features
        solver = at_learned_rates(self.inner, problem, meta)
        return solver(
            lambda params: problem.inner_objective(params, meta, task), problem.init(meta, task)
        )


def step_rates(problem: BilevelProblem, meta: Meta) -> StepRates | None:
    """The factors of the inner rates that the problem learns, differentiable in meta, or None."""
    return problem.step_rates(meta) if isinstance(problem, RatedProblem) else None


def at_learned_rates(inner: InnerSolver, problem: BilevelProblem, meta: Meta) -> InnerSolver:
    """The inner solver at the rates that the problem learns, or as it is where there are none.

    Raises:
        UsageError: the problem learns rates, and the solver's steps have none.
    """
    rates = step_rates(problem, meta)
    if rates is None:
        return inner
    if not isinstance(inner, GradientMethod):
        raise UsageError(
            f"inner={type(inner).__name__}: expected a solver whose steps have a rate to learn. "
            "Choose GradientDescent or Adam, or learn_rates=false."
        )
    return AtRates(inner, rates)


def refuse_learned_rates(problem: BilevelProblem) -> None:
    """Raises UsageError where the problem learns rates: for methods without a gradient in them."""
    if isinstance(problem, RatedProblem):
        raise UsageError(
            "learn_rates: expected a meta-gradient that goes back through the inner steps. "
            "Choose metagrad=maml_batched, meta_sgd or maml_plus_plus, or learn_rates=false."
        )


def outer_gradient(
    problem: BilevelProblem, params: dict[str, Tensor], meta: Meta, task: Any
) -> tuple[Tensor, dict[str, Tensor], list[Tensor], list[Tensor | None]]:
    """The outer loss (T,), metrics, d outer / d params (each task's own) and the direct
    d outer / d meta (summed over tasks, None where there is none), at params and meta that are
    leaves.

    Raises:
        UsageError: the problem learns its inner rates, in which these derivatives say nothing.
    """
    refuse_learned_rates(problem)
    with torch.enable_grad():
        loss, metrics = problem.outer_objective(params, meta, task)
        leaves = list(params.values())
        found = partials(loss.sum(), leaves + leaves_of(meta))
    by_params = [
        torch.zeros_like(x) if g is None else g
        for x, g in zip(leaves, found[: len(leaves)], strict=True)
    ]
    detached = {name: value.detach() for name, value in metrics.items()}
    return loss.detach(), detached, by_params, found[len(leaves) :]


def through_init(
    problem: BilevelProblem, meta: Meta, task: Any, weights: list[Tensor]
) -> list[Tensor | None]:
    """weights' d init / d meta, summed over tasks: right if the inner loop is a translation."""
    with torch.enable_grad():
        meta = live(meta)
        start = list(problem.init(meta, task).values())
        return partials(start, leaves_of(meta), weights)


def mean_over_tasks(meta: Meta, summed: Sequence[Tensor | None], tasks: int) -> Any:
    """The meta-gradient, a pytree like meta, from its sum over tasks.

    Raises:
        UsageError: a leaf of meta has none: this way of differentiating does not reach it, and a
            zero would train it in silence to nothing.
    """
    missing = [i for i, g in enumerate(summed) if g is None]
    if missing:
        paths = list(named_leaves(meta))
        raise UsageError(
            f"no gradient reaches meta{', meta'.join(paths[i] for i in missing)}: neither the "
            "outer objective nor what this method differentiates depends on it; leave it out of "
            "meta, or use another meta-gradient"
        )
    return like_tree(meta, [g / tasks for g in summed if g is not None])
