"""The interface of every meta-gradient, and its result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from metalearn.autograd import partials
from metalearn.errors import UsageError
from metalearn.inner import (
    AtRates,
    GradientMethod,
    InnerSolution,
    InnerSolver,
    Objective,
    StepRates,
    value_and_grad,
)
from metalearn.metagrad.captured_inner import captured_gradient
from metalearn.metagrad.certificate import Certificate
from metalearn.problem import BilevelProblem, Meta, Params, RatedProblem
from metalearn.system.memory import keep_freed_memory_by_default
from metalearn.system.random_state import TorchStates, replayed
from metalearn.tasks.batch import TaskBatch, check_shapes
from metalearn.tree import detached, leaves_of, like_tree, named_leaves, requires_grad_copy


class NonFiniteGradient(ArithmeticError):
    """The error of a meta-gradient or outer loss that is not finite, which is never returned."""


@dataclass(frozen=True)
class MetaGradientResult:
    """The meta-gradient of a batch of tasks, with its losses, inner solution and certificate.

    Args:
        grads: a pytree like meta, the mean over the tasks of d outer / d meta.
        outer_loss: (T,).
        metrics: the problem's further metrics, each (T,).
        inner: the inner solution that the tasks reached.
        certificate: the certificate of an implicit gradient; None for other methods.
        solution: the solution of an implicit gradient's linear system, x = A^-1 (d outer / d
            params) as far as it was solved: a dict of (T, ...) like the params. None for other
            methods.
        solver_state: keyword arguments for the next meta-step's call, which a training loop passes
            on; empty for a method that needs none.

    Raises:
        UsageError: outer_loss is not a value for each task.
        NonFiniteGradient: outer_loss or grads is not finite.
    """

    grads: Any
    outer_loss: Tensor
    metrics: dict[str, Tensor]
    inner: InnerSolution
    certificate: Certificate | None = None
    solution: Params | None = None
    solver_state: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_losses(self.outer_loss, len(self.inner.objective))
        if not self.outer_loss.isfinite().all():
            bad = int((~self.outer_loss.isfinite()).sum())
            raise NonFiniteGradient(
                f"the outer loss of {bad} of {len(self.outer_loss)} tasks is not finite; "
                "a smaller inner learning rate is the usual cure, where the tasks are finite"
            )
        if not all(g.isfinite().all() for g in leaves_of(self.grads)):
            raise NonFiniteGradient(
                "the meta-gradient is not finite though the outer loss is; try fewer inner steps, "
                "a smaller inner learning rate, or more damping"
            )


def check_losses(loss: Tensor, tasks: int) -> None:
    """Raise UsageError if the outer objective's value is not (T,)."""
    if loss.shape != (tasks,):
        raise UsageError(
            f"the outer objective has shape {tuple(loss.shape)}: expected ({tasks},), a value for "
            "each task. Take the mean over each task's other axes."
        )


class MetaGradient:
    """A method to differentiate a bilevel problem: `meta_gradient(problem, meta, task)`.

    It keeps no state. A method that continues from the previous meta-step takes
    `**previous.solver_state` too.

    Raises:
        UsageError: an argument is in another's place, meta is a module, or the tensors of a
            `TaskBatch` do not share a task axis.

    The features of a `FeatureProblem` are computed once, and differentiated once.
    """

    inner: InnerSolver
    estimates: ClassVar[Literal["unrolled", "implicit"] | None] = None
    """The exact gradient that it estimates (`metagrad.exact`): the derivative through the steps of
    `inner`, or that of the converged inner problem. None: neither."""

    def __call__(
        self, problem: BilevelProblem, meta: Meta, task: Any, **solver_state: Any
    ) -> MetaGradientResult:
        _check_parts(self, problem, meta)
        if isinstance(task, TaskBatch):
            check_shapes(task)
        keep_freed_memory_by_default()
        differentiate: Callable[..., MetaGradientResult] = self.differentiate
        if self.one_by_one and getattr(problem, "couples_tasks", False):
            raise UsageError(
                "problem.statistics=population: expected a method that takes all tasks together, "
                f"not {self}. Choose backend=batched, or linearisation=kept."
            )
        if self.one_by_one or not hasattr(problem, "on_features"):
            return differentiate(problem, meta, task, **solver_state)
        shared: Any = problem
        meta = requires_grad_copy(meta)
        with torch.enable_grad():
            inputs = {"features": shared.features(meta, task), "rest": shared.rest(meta)}
        result = differentiate(shared.on_features, detached(inputs), task, **solver_state)
        grads = partials(leaves_of(inputs), leaves_of(meta), leaves_of(result.grads))
        return replace(result, grads=mean_over_tasks(meta, grads, 1))

    @property
    def one_by_one(self) -> bool:
        """True for a method that takes the tasks apart, or that gives features no gradient."""
        return False

    def differentiate(self, problem: BilevelProblem, meta: Meta, task: Any) -> MetaGradientResult:
        """Return the meta-gradient of a problem as it stands; a subclass defines this method.

        A subclass that defines `__call__` in its place gets every problem as it stands.
        """
        raise NotImplementedError(
            f"{type(self).__name__} defines neither differentiate nor __call__"
        )

    def adapt(self, problem: BilevelProblem, meta: Meta, task: Any) -> InnerSolution:
        """Run the inner loop alone, as evaluation does."""
        solver, objective, start = self.inner_loop(problem, meta, task)
        return solver(objective, start)

    def inner_loop(
        self, problem: BilevelProblem, meta: Meta, task: Any
    ) -> tuple[InnerSolver, Objective, Params]:
        """Return the inner loop as `adapt` runs it: its solver, its objective and its start.

        The objective of a `FeatureProblem` holds the features, which are computed here.
        """
        _check_parts(self, problem, meta)
        if isinstance(task, TaskBatch):
            check_shapes(task, queries=False)
        meta = detached(meta)
        if hasattr(problem, "on_features"):
            shared: Any = problem
            task = shared.support_only(task)
            with torch.no_grad():
                meta = {"features": shared.features(meta, task), "rest": shared.rest(meta)}
            problem = shared.on_features
        solver = at_learned_rates(self.inner, problem, meta)
        return solver, InnerObjective(problem, meta, task), problem.init(meta, task)


def _check_parts(method: MetaGradient, problem: Any, meta: Any) -> None:
    """Raise UsageError if an argument is in another's place."""
    inner = getattr(method, "inner", None)
    if inner is not None and not hasattr(inner, "minimise"):
        raise UsageError(
            f"inner={inner}: expected an inner solver. Give GradientDescent(steps=16, lr=0.1), or "
            "another of metalearn.inner."
        )
    if not hasattr(problem, "inner_objective"):
        raise UsageError(
            f"problem={type(problem).__name__}: expected a problem with an inner and an outer "
            "objective. Give FewShot(model), or a problem of your own."
        )
    if odd := [x for x in leaves_of(meta) if not isinstance(x, Tensor)]:
        kind = type(odd[0]).__name__
        raise UsageError(
            f"meta={kind}: expected tensors by name, not a "
            f"{'module' if isinstance(odd[0], torch.nn.Module) else kind}. Give "
            "problem.begin(), or dict(model.named_parameters())."
        )


@dataclass(frozen=True)
class InnerObjective:
    """The inner objective of a problem at fixed meta and tasks, as inner solvers take it."""

    problem: BilevelProblem
    meta: Meta
    task: Any

    @property
    def relative_rounding(self) -> float | None:
        """The rounding of its values as a fraction of them; None: that of their type."""
        found: float | None = getattr(self.problem, "relative_rounding", None)
        return found

    def __call__(self, params: Params) -> Tensor:
        return self.problem.inner_objective(params, self.meta, self.task)

    def gradient(self, params: Params, create_graph: bool = False) -> list[Tensor]:
        """Return the gradient, each (T, ...), by captured operations where the problem has them."""
        found = captured_gradient(self.problem, params, self.meta, self.task, create_graph)
        return value_and_grad(self, params, create_graph)[1] if found is None else found


def step_rates(problem: BilevelProblem, meta: Meta) -> StepRates | None:
    """Return the problem's learned factors of the inner rates, differentiable in meta, or None."""
    return problem.step_rates(meta) if isinstance(problem, RatedProblem) else None


def at_learned_rates(inner: InnerSolver, problem: BilevelProblem, meta: Meta) -> InnerSolver:
    """Return the inner solver at the rates that the problem learns, or as it is without them.

    Raises:
        UsageError: the problem learns rates, and the solver's steps have none.
    """
    rates = step_rates(problem, meta)
    if rates is None:
        return inner
    if not isinstance(inner, GradientMethod):
        raise UsageError(
            f"inner={type(inner).__name__}: expected a solver whose steps have a rate to learn. "
            "Choose GradientDescent or Adam, or problem.learn_rates=false."
        )
    return AtRates(inner, rates)


def refuse_learned_rates(problem: BilevelProblem) -> None:
    """Refuse a problem that learns rates, for methods without a gradient in them.

    Raises:
        UsageError: the problem learns rates.
    """
    if isinstance(problem, RatedProblem):
        raise UsageError(
            "learn_rates: expected a meta-gradient that goes back through the inner steps. "
            "Choose metagrad=maml_batched, meta_sgd or maml_plus_plus, or problem.learn_rates="
            "false."
        )


def outer_gradient(
    problem: BilevelProblem, params: dict[str, Tensor], meta: Meta, task: Any
) -> tuple[Tensor, dict[str, Tensor], list[Tensor], list[Tensor | None]]:
    """Differentiate the outer objective at params and meta, which must be leaves.

    Returns:
        the outer loss (T,), the metrics, d outer / d params, and the direct d outer / d meta. d
        outer / d params is each task's own. d outer / d meta is summed over tasks, and None for a
        leaf without one.

    Raises:
        UsageError: the problem learns its inner rates, in which these derivatives say nothing.
    """
    refuse_learned_rates(problem)
    with torch.enable_grad():
        loss, metrics = problem.outer_objective(params, meta, task)
        leaves = list(params.values())
        by_params, by_meta = pull_back([loss.sum()], None, leaves, meta)
    detached = {name: value.detach() for name, value in metrics.items()}
    return loss.detach(), detached, by_params, by_meta


def pull_back(
    outputs: list[Tensor], weights: list[Tensor] | None, inputs: list[Tensor], meta: Meta
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Return weights' d outputs / d inputs, and weights' d outputs / d meta, None if absent.

    Args:
        weights: a tensor like each output; None: 1, for outputs that are numbers.
    """
    found = partials(outputs, inputs + leaves_of(meta), weights)
    by_inputs = [
        torch.zeros_like(x) if g is None else g
        for x, g in zip(inputs, found[: len(inputs)], strict=True)
    ]
    return by_inputs, found[len(inputs) :]


def through_init(
    problem: BilevelProblem, meta: Meta, task: Any, weights: list[Tensor], states: TorchStates
) -> list[Tensor | None]:
    """Return weights' d init / d meta, summed over tasks.

    This part of the meta-gradient is right if the inner loop is a translation.

    Args:
        states: the random states before the inner loop's own `init`, which may draw dropout masks.
    """
    with torch.enable_grad(), replayed(states):
        meta = requires_grad_copy(meta)
        start = list(problem.init(meta, task).values())
        return partials(start, leaves_of(meta), weights)


def mean_over_tasks(meta: Meta, summed: Sequence[Tensor | None], tasks: int) -> Any:
    """Return the meta-gradient, a pytree like meta, from its sum over tasks.

    Raises:
        UsageError: a leaf of meta has no gradient, since this method does not reach it. A zero
            would silently leave the leaf untrained.
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
