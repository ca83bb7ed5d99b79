"""The bilevel problem that is differentiated, and what further uses ask of it.

minimise over meta  mean over tasks of outer(params*(meta), meta)
where               params*(meta) minimises inner(params, meta), or is K steps from init(meta)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from metalearn.errors import UsageError

Params = dict[str, Tensor]
"""The adapted parameters by name, each tensor (T, ...)."""

Meta = Any
"""The meta-parameters: a pytree of tensors without a task axis."""


class BilevelProblem(Protocol):
    """A problem with an inner and an outer objective. `task` has a length T and can be sliced."""

    def init(self, meta: Meta, task: Any) -> Params:
        """Return the start of the inner loop: tensors (T, ...), differentiable in meta."""
        ...

    def inner_objective(self, params: Params, meta: Meta, task: Any) -> Tensor:
        """Return the inner loss, (T,). A task's loss depends on its own params alone."""
        ...

    def outer_objective(
        self, params: Params, meta: Meta, task: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the outer loss of adapted params, (T,), and further metrics, each (T,)."""
        ...


@runtime_checkable
class CompositeProblem(BilevelProblem, Protocol):
    """A problem with inner objective `inner_loss(inner_outputs(params))`, where the loss is convex.

    Gauss-Newton curvature needs this split (Schraudolph 2002). The matrix J' (d2 loss / d outputs2)
    J, with J = d outputs / d params, is positive semi-definite.
    """

    def inner_outputs(self, params: Params, meta: Meta, task: Any) -> Any:
        """Return the outputs, a pytree of tensors."""
        ...

    def inner_loss(self, outputs: Any, meta: Meta, task: Any) -> Tensor:
        """Return the loss, (T,), which is convex in the outputs."""
        ...


class FeatureProblem(BilevelProblem, Protocol):
    """A problem whose params act on features that depend on meta alone.

    `on_features` is the same problem with meta {"features": (T, n, F), "rest": ...}. A
    meta-gradient computes the features once, differentiates `on_features`, and backpropagates
    through the features once.
    """

    on_features: BilevelProblem

    def features(self, meta: Meta, task: Any) -> Tensor:
        """Return the features (T, n, F), differentiable in meta."""
        ...

    def rest(self, meta: Meta) -> Meta:
        """Return the leaves of meta that act beside the features: the same tensors, not copies."""
        ...

    def support_only(self, task: Any) -> Any:
        """Return the task as the inner loop sees it, without queries."""
        ...


@runtime_checkable
class PredictingProblem(BilevelProblem, Protocol):
    """A problem of classification that predicts the classes of a task's queries."""

    def query_predictions(self, params: Params, meta: Meta, task: Any) -> Tensor:
        """Return the logits of the queries, (T, queries, ways)."""
        ...


def query_predictions(problem: BilevelProblem, params: Params, meta: Meta, task: Any) -> Tensor:
    """Return the logits that `problem` predicts for a task's queries, (T, queries, ways).

    Raises:
        UsageError: the problem has no method `query_predictions`, which is optional.
    """
    if not isinstance(problem, PredictingProblem):
        raise UsageError(
            f"{type(problem).__name__} has no query_predictions: expected a problem that predicts "
            "classes. Write the method, or judge its checkpoints one by one by `metalearn evaluate`"
        )
    return problem.query_predictions(params, meta, task)


@runtime_checkable
class RatedProblem(BilevelProblem, Protocol):
    """A problem that learns the rates of its inner steps as a part of meta."""

    def step_rates(self, meta: Meta) -> dict[str, Tensor]:
        """Return the factors of the inner solver's `lr` by param name, each (K, ...).

        Row k applies to inner step k and broadcasts against one task's tensor. Steps after the K-th
        take the last row.
        """
        ...


@runtime_checkable
class ReducedProblem(BilevelProblem, Protocol):
    """A problem that may compute in a narrower type than that of its parameters."""

    def in_full_precision(self) -> BilevelProblem:
        """Return the same problem in the type of its parameters; itself if it already is."""
        ...


def in_full_precision(problem: BilevelProblem) -> BilevelProblem:
    """Return the problem in the type of its parameters, which is itself for most problems."""
    return problem.in_full_precision() if isinstance(problem, ReducedProblem) else problem


@runtime_checkable
class TrainableProblem(BilevelProblem, Protocol):
    """A problem that `metalearn train` can train. A problem of your own derives from this class.

    It writes `begin` and the three methods of `BilevelProblem`; all else has a default.

    Attributes:
        mode: the name of the mode in which the problem is trained, a key of `modes`.
        couples_tasks: True if a task's loss depends on the other tasks of its meta-batch, which
            then cannot be split.
        any_ways: True if a task may have another number of classes than the training tasks.
    """

    mode: str = "default"
    couples_tasks: bool = False
    any_ways: bool = True

    def begin(self) -> Meta:
        """Return the meta-parameters at the start of training, leaves of autograd."""
        ...

    def check(self, meta: Meta, task: Any) -> None:
        """Try the problem on a task, without gradients.

        Raises:
            UsageError: the problem cannot take the task.
        """
        name = type(self).__name__
        try:
            loss, _ = self.outer_objective(self.init(meta, task), meta, task)
        except (RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(
                f"problem={name}: expected tasks that it takes ({reason}). Choose tasks= or model= "
                "for it."
            ) from error
        if loss.shape != (len(task),):
            raise UsageError(
                f"problem={name}: expected an outer loss for each task, of shape "
                f"({len(task)},), not {tuple(loss.shape)}. Mend outer_objective."
            )

    def modes(self) -> dict[str, BilevelProblem]:
        """Return the problems by which the meta-parameters are judged, by the mode's name."""
        return {self.mode: self}

    def settled(self, meta: Meta, images: Callable[[], Tensor]) -> BilevelProblem:
        """Return the problem as evaluation uses it.

        Args:
            images: returns a fixed sample of training images, (n, ...).
        """
        return self
