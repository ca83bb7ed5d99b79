"""The descent of a bilevel method on a stochastic problem, one outer step at a time."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from metalearn.bilevel.batches import BatchStream
from metalearn.bilevel.iterate import Iterate, MakeOptimiser, MakeScheduler
from metalearn.bilevel.learned_rates import check_rates, fixed_rates
from metalearn.bilevel.method import Hypergradient, Method
from metalearn.bilevel.oracle import Gradients, Oracle, Precision
from metalearn.errors import UsageError
from metalearn.metagrad import NonFiniteGradient
from metalearn.metagrad.base import mean_over_tasks
from metalearn.parallel.ranks import ALONE, Ranks
from metalearn.problems.protocol import Meta, Params
from metalearn.problems.stochastic import StochasticProblem
from metalearn.system import random_state
from metalearn.training.given import check_meta, check_methods
from metalearn.tree import leaves_of, like_tree


@dataclass(frozen=True)
class OuterStep:
    """An outer step that was taken.

    Args:
        number: 1 for the first.
        grads: the hypergradient, a pytree like meta, at the meta before the step.
        grad_norm: its norm.
        outer_loss, inner_loss: the losses of the batches it was computed on.
        metrics: further numbers of the method.
    """

    number: int
    grads: Meta
    grad_norm: float
    outer_loss: float
    inner_loss: float
    metrics: dict[str, float]


class Descent:
    """A bilevel method at work: the params, meta, the method's memory, optimisers and data.

    `step` takes one outer step. Params and memory are carried from one step to the next. A state of
    `state_dict` resumes it bit for bit on a CPU: a `Descent` of the same arguments that loads the
    state takes the same steps. The state's tensors are no copies.

    Args:
        problem: the problem.
        method: such as `SOBA(system_lr=0.1)`.
        meta: where it begins, a pytree of floating-point tensors; it is copied.
        inner_loader, outer_loader: the data of each level.
        inner_optimiser: makes the optimiser of the params from a list of tensors.
        outer_optimiser: makes that of meta; None: meta stays where it is.
        inner_scheduler, outer_scheduler: make a schedule of the rate from an optimiser.
        device: where meta, params and batches are; None: where meta is.
        precision: "bf16" or "fp16" compute the losses by `torch.autocast`; fp16 scales the loss.
        micro_batches: the parts in which a batch is differentiated, for memory.
        ranks: the processes; all have the same loaders in the same order, and share each batch.
        seed: of the batches that a certificate draws.

    It warns of an inner optimiser with weight decay, such as AdamW by default, where the method's
    hypergradient does not know of the decay.

    Raises:
        UsageError: an argument cannot be used.
    """

    def __init__(
        self,
        problem: StochasticProblem,
        method: Method,
        meta: Meta,
        inner_loader: DataLoader[Any],
        outer_loader: DataLoader[Any],
        inner_optimiser: MakeOptimiser,
        outer_optimiser: MakeOptimiser | None = None,
        *,
        inner_scheduler: MakeScheduler | None = None,
        outer_scheduler: MakeScheduler | None = None,
        device: torch.device | str | None = None,
        precision: Precision = "full",
        micro_batches: int = 1,
        ranks: Ranks = ALONE,
        seed: int = 0,
    ) -> None:
        check_methods("problem", problem, "init", "inner_loss", "outer_loss")
        if not isinstance(method, Method):
            raise UsageError(
                f"method={type(method).__name__}: expected a method of metalearn.bilevel. Give one "
                "such as SOBA(system_lr=0.1)."
            )
        if outer_scheduler is not None and outer_optimiser is None:
            raise UsageError(
                "outer_scheduler without outer_optimiser: expected both, or neither. Give both."
            )
        here = check_meta(meta)
        device = here if device is None else torch.device(device)
        self.problem, self.method, self.device = problem, method, device
        self.meta = like_tree(meta, [_leaf(x, device) for x in leaves_of(meta)])
        start = problem.init(self.meta)
        _check_params(start)
        self.params: Params = {name: _leaf(p, device) for name, p in start.items()}
        self.oracle = Oracle(problem, device, precision, micro_batches, ranks)
        self.inner_stream = BatchStream("inner_loader", inner_loader, device, 2 * seed)
        self.outer_stream = BatchStream("outer_loader", outer_loader, device, 2 * seed + 1)
        leaves = list(self.params.values())
        self.inner = Iterate("inner", leaves, inner_optimiser, inner_scheduler)
        check_rates(problem, method, self.meta, self.params)
        _warn_of_decay(method, self.inner)
        self.copies = {
            name: Iterate(
                "inner", [_leaf(p, device) for p in leaves], inner_optimiser, inner_scheduler
            )
            for name in method.copies
        }
        self.outer: Iterate | None = None
        if outer_optimiser is not None:
            leaves = leaves_of(self.meta)
            self.outer = Iterate("outer", leaves, outer_optimiser, outer_scheduler)
        self.count = 0
        """The number of outer steps taken."""
        self.memory: dict[str, list[Tensor]] = method.begin(self)

    def step(self) -> OuterStep:
        """Take one outer step.

        Raises:
            NonFiniteGradient: the descent has diverged; its params are of no use from then on.
        """
        found = self.method.step(self)
        grads = mean_over_tasks(self.meta, found.by_meta, 1)
        norm = float(torch.nn.utils.get_total_norm(leaves_of(grads)))
        self._check(found, norm)
        if self.outer is not None:
            self.outer.step(leaves_of(grads))
            if not self.outer.finite():
                raise NonFiniteGradient(
                    f"outer step {self.count + 1}: meta is not finite after the step of the outer "
                    "optimiser; a smaller outer rate is the usual cure"
                )
        self.count += 1
        losses = float(found.outer_loss), float(found.inner_loss)
        return OuterStep(self.count, grads, norm, *losses, found.metrics)

    def hypergradient(self, inner_batch: Any, outer_batch: Any) -> Meta:
        """Return the method's hypergradient of the present state on given batches; nothing moves.

        Args:
            inner_batch, outer_batch: pytrees as the loaders yield them, on the device.
        """
        found = self.method.direction(self, inner_batch, outer_batch)
        return mean_over_tasks(self.meta, found.by_meta, 1)

    def inner_batch(self) -> Any:
        """Return the next batch of the inner level, on the device."""
        return self.inner_stream.next().data

    def outer_batch(self) -> Any:
        """Return the next batch of the outer level, on the device."""
        return self.outer_stream.next().data

    def descend_inner(self, steps: int) -> Gradients | None:
        """Take steps of the inner optimiser on the inner loss; return the last gradient."""
        found = None
        factors = fixed_rates(self.problem, self.meta, self.params)
        for _ in range(steps):
            found = self.oracle.inner(self.params, self.meta, self.inner_batch())
            self.inner.step(found.by_params, factors)
        return found

    def copy(self, name: str) -> Params:
        """Return a further iterate of the method, by the names of the params."""
        return dict(zip(self.params, self.copies[name].leaves, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values, for a checkpoint."""
        return {
            "count": self.count,
            "inner": self.inner.state_dict(),
            "copies": {name: copy.state_dict() for name, copy in self.copies.items()},
            "meta": [x.detach() for x in leaves_of(self.meta)],
            "outer": None if self.outer is None else self.outer.state_dict(),
            "memory": self.memory,
            "inner_stream": self.inner_stream.state_dict(),
            "outer_stream": self.outer_stream.state_dict(),
            "scale": self.oracle.scale.state_dict(),
            "random": random_state.get_states(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, and set the random states of the process to its.

        Raises:
            UsageError: the state is of a descent with other arguments.
        """
        _check_same("memory", self.memory, state["memory"])
        _check_same("meta", {"meta": leaves_of(self.meta)}, {"meta": state["meta"]})
        if state["copies"].keys() != self.copies.keys() or (state["outer"] is None) != (
            self.outer is None
        ):
            raise UsageError(
                "a state of another method or without the outer optimiser: expected one of a "
                "descent with the same arguments. Give these arguments."
            )
        self.inner.load_state_dict(state["inner"])
        for name, copy in self.copies.items():
            copy.load_state_dict(state["copies"][name])
        with torch.no_grad():
            for x, value in zip(leaves_of(self.meta), state["meta"], strict=True):
                x.copy_(value)
        if self.outer is not None:
            self.outer.load_state_dict(state["outer"])
        self.memory = {
            name: [v.to(self.device, copy=True) for v in values]
            for name, values in state["memory"].items()
        }
        self.count = state["count"]
        self.oracle.scale.load_state_dict(state["scale"])
        self.inner_stream.load_state_dict(state["inner_stream"])
        self.outer_stream.load_state_dict(state["outer_stream"])
        random_state.set_states(state["random"])

    def _check(self, found: Hypergradient, norm: float) -> None:
        """Raise NonFiniteGradient if a number of the state is not finite."""
        where = f"outer step {self.count + 1}"
        params = [self.inner, *self.copies.values()]
        if not all(iterate.finite() for iterate in params):
            raise NonFiniteGradient(
                f"{where}: the params are not finite; a smaller inner rate is the usual cure"
            )
        if not all(bool(v.isfinite().all()) for values in self.memory.values() for v in values):
            raise NonFiniteGradient(
                f"{where}: the linear system's x is not finite; a smaller system_lr or step_size, "
                "or more damping, is the usual cure"
            )
        losses = torch.stack([found.outer_loss.double(), found.inner_loss.double()])
        if not (bool(losses.isfinite().all()) and norm < torch.inf):
            raise NonFiniteGradient(
                f"{where}: a loss or the hypergradient is not finite, of norm {norm}, though the "
                "params are; look at the batches, or take smaller rates"
            )


def _warn_of_decay(method: Method, inner: Iterate) -> None:
    """Warn of a decay by the inner optimiser that the hypergradient does not know of."""
    decay = max(float(group.get("weight_decay") or 0.0) for group in inner.optimiser.param_groups)
    if decay and not method.sees_optimiser:
        name = type(inner.optimiser).__name__
        warnings.warn(
            f"inner_optimiser={name}(weight_decay={decay:g}): the hypergradient of "
            f"{type(method).__name__} is that of inner_loss, without this decay. Add the decay to "
            "inner_loss and give weight_decay=0, or use TruncatedUnrolling",
            stacklevel=3,
        )


def _leaf(x: Tensor, device: torch.device) -> Tensor:
    return x.detach().to(device, copy=True).requires_grad_()


def _check_params(params: Any) -> None:
    named = isinstance(params, dict) and params
    if not named or not all(
        isinstance(p, Tensor) and p.is_floating_point() for p in params.values()
    ):
        raise UsageError(
            f"problem.init returns {type(params).__name__}: expected a dict of floating-point "
            "tensors by name. Return dict(model.named_parameters()) or the like."
        )


def _check_same(
    name: str, own: Mapping[str, list[Tensor]], saved: Mapping[str, list[Tensor]]
) -> None:
    shapes, given = (
        {key: [tuple(v.shape) for v in values] for key, values in tree.items()}
        for tree in (own, saved)
    )
    if shapes != given:
        raise UsageError(
            f"a state whose {name} has other tensors: expected one of a descent with the same "
            "problem, method and data. Give these arguments."
        )
