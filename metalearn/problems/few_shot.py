"""The few-shot problem of MAML and iMAML."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from metalearn.captured import Capture, Captured
from metalearn.errors import MAX_FLOAT32, UsageError
from metalearn.nn import TaskBatched
from metalearn.nn.body import head_layer
from metalearn.nn.class_vectors import ClassVectors
from metalearn.nn.precision import Precision
from metalearn.nn.structure import as_key, frozen_parameters, options_of, refuse_frozen
from metalearn.problems.prediction_loss import (
    Loss,
    check_loss,
    check_targets,
    prediction_metrics,
    select_loss,
)
from metalearn.problems.protocol import Params
from metalearn.problems.query_statistics import QueryStatistics
from metalearn.tasks.batch import TaskBatch
from metalearn.tree import half_squared_distance

T = TypeVar("T")


class FewShot(QueryStatistics):
    """The few-shot problem: meta is the initialisation theta of the task's parameters phi.

    inner(phi, theta) = support loss(phi) + prox / 2 |phi - theta|^2, and outer = query loss(phi).
    With prox = 0 it is MAML's problem (Finn et al. 2017, eq. 1). With prox > 0 it is iMAML's
    (Rajeswaran et al. 2019, eq. 3 and 4). The loss is the mean cross-entropy for integer labels,
    and the mean squared error for floating-point targets of the outputs' shape.

    Args:
        model: a module that `TaskBatched` takes. Its structure, training flags, buffers and frozen
            parameters are used.
        prox: the proximal strength lambda, at least 0.
        transductive: True: batch norm normalises the queries by their own statistics, as in the
            papers. A query's prediction then depends on the other queries. False: by the statistics
            of the support set, wherever torch's batch norm is called. A module that relates
            examples in another way still does.
        adapt: the parameters that the inner loop moves: "all"; "head", the parameters of the
            model's last layer, which is ANIL's problem (Raghu et al. 2020); or a list of names. The
            other parameters are the body: shared by all tasks, a part of meta alone, and not in the
            proximal term.
        prox_head: the proximal strength of the last layer's parameters; None: `prox`. The paper's
            lambda may differ between parameters. A strong one keeps the body's curvature small,
            while a weak one leaves the head free.
        loss: of the support and the query set. None: by the targets' type, as above. It refuses
            targets that are all 0.0 or 1.0, since they may be classes, one-hot or binary, that were
            meant for the cross-entropy. "squared_error" takes these too. "binary_cross_entropy" is
            for logits and several labels. A function of outputs (T, n, ...) and targets returns
            (T, ...), and is averaged over all axes but the first; Gauss-Newton curvature needs it
            to be convex in the outputs.
        query_training: the training mode of the model's modules for the queries; False turns their
            dropout off. None: the mode that they have. The inner loop takes the mode that
            `model.train()` and `model.eval()` leave them in, at each call.
        precision: "bf16": convolutions and products of the model in bfloat16; parameters, losses
            and linear solves in float32. "full": all in the parameters' type.
        capture: "replay": the operations of an inner gradient and of a Hessian product are captured
            at their first call for each set of shapes, and run again from then on without autograd
            and without the model's Python code. The numbers are the same up to rounding. The first
            two runs are compared with the model's own. Numbers that Python code holds are those of
            the capture, but for the options of modules and loss. "compile": `torch.compile` makes a
            program of what was captured. "none": nothing is captured. See `metalearn.captured`.

    `meta` is `self.begin()`: the named parameters of the model without those of
    `requires_grad=False`. These are constants, neither adapted nor learned, and are read from the
    model at each call. `adapted` holds the names of phi's tensors. The class vectors of a
    `SymmetricHead` are always adapted; they are (T, ways, features), where each task defines its
    ways.

    "head" needs a chain of layers (`nn.Sequential`) that ends in a linear layer.

    Raises:
        UsageError: an option has another value, or meta lacks a name or shape of `begin()`.
    """

    def __init__(
        self,
        model: nn.Module,
        prox: float = 0.0,
        transductive: bool = True,
        adapt: Literal["all", "head"] | Sequence[str] = "all",
        prox_head: float | None = None,
        loss: str | Loss | None = None,
        query_training: bool | None = None,
        precision: Precision = "full",
        capture: Capture = "none",
    ) -> None:
        self._loss = select_loss(loss)
        for name, value in (("prox", prox), ("prox_head", prox_head)):
            if value is not None and not 0 <= value <= MAX_FLOAT32:
                raise UsageError(
                    f"{name}={value}; the proximal strength must be at least 0, and up to "
                    f"{MAX_FLOAT32:.1e}"
                )
        self.model, self.captured = TaskBatched(model, precision), Captured.of(capture)
        self.prox, self.prox_head = prox, prox if prox_head is None else prox_head
        self.transductive, self.loss = transductive, loss
        self.query_training = query_training
        self._head = ClassVectors.of(model, precision)
        self._model, self._frozen = model, frozenset(frozen_parameters(model))
        own = list(self.begin())
        vectors: list[str] = []
        if self._head is not None:
            vectors = self._head.names
            own = [name for name in own if not name.startswith(self._head.prefix)]
            if self._head.solved and not self.prox_head:
                raise UsageError(
                    "head=solved: expected a proximal strength above 0, without which the head has "
                    "no solution. Set prox or prox_head above 0, or head=zero."
                )
        if not own and not vectors:
            raise UsageError(
                f"model={type(model).__name__}: expected a parameter to adapt, and all have "
                "requires_grad=False. Call requires_grad_(True) on some."
            )
        self.last_layer: list[str] = vectors
        if not vectors and (adapt == "head" or prox_head is not None):
            prefix = head_layer(model)
            self.last_layer = [name for name in own if name.startswith(prefix)]
        self.adapted = _adapted(own + vectors, self.last_layer, adapt, self._frozen)
        self.adapted += [name for name in vectors if name not in self.adapted]

    def begin(self) -> Params:
        """Return the model's own parameters that are not frozen, by name."""
        named = self._model.named_parameters()
        return {name: p for name, p in named if name not in self._frozen}

    @property
    def any_ways(self) -> bool:  # type: ignore[override]
        """True if the head has no learned vector for each class."""
        return self._head is not None

    @property
    def relative_rounding(self) -> float | None:
        """The rounding of the objectives as a fraction of them; None: that of their type."""
        return None if self.model.precision == "full" else torch.finfo(torch.bfloat16).eps

    def capture_key(self) -> Hashable:
        """Return what decides, beside the tensors, which operations the inner objective runs."""
        return (self.prox, self.prox_head, self.model.settings(), _options(self.loss))

    def constants(self) -> list[Tensor]:
        """Return the tensors that the inner objective reads beside its arguments."""
        own = dict(self._model.named_parameters())
        return [*self._model.buffers(), *(own[name] for name in sorted(self._frozen))]

    def in_full_precision(self) -> FewShot:
        """Return the same problem with the model in the type of its parameters."""
        if self.model.precision == "full":
            return self
        problem = copy.copy(self)
        problem.captured = None  # it serves one product of a meta-gradient
        problem.model = self.model.in_full_precision()
        problem._head = self._head and self._head.in_full_precision()
        return problem

    def adapted_shapes(self) -> dict[str, torch.Size]:
        """Return the shape of each adapted tensor; a symmetric head's class vectors share one."""
        shapes = dict(self._model.named_buffers()) | dict(self._model.named_parameters())
        return {name: shapes[name].shape for name in self.adapted}

    def check(self, meta: Params, task: TaskBatch) -> None:
        y = task.support_y
        outputs = try_inputs(
            lambda: self.query_predictions(self.init(meta, task), meta, task), task
        )
        if self.loss not in (None, "squared_error"):
            return check_loss(self.loss, outputs, task.query_y)
        shape = tuple(outputs.shape[2:])
        if y.is_floating_point():
            if shape != tuple(y.shape[2:]):
                raise UsageError(
                    f"the model's outputs are of shape {shape}, the targets of shape "
                    f"{tuple(y.shape[2:])}; choose model= for them, such as model=mlp_sinusoid"
                )
            return
        classes = int(y.max()) + 1
        if len(shape) != 1 or shape[0] < classes:
            raise UsageError(
                f"the model has outputs of shape {shape} and the tasks have {classes} classes; "
                f"give it an output a class (model.ways={classes}, or sizes that end in {classes})"
            )

    def _check_meta(self, meta: Params) -> None:
        """Raise UsageError if meta lacks a parameter, or has one of another shape."""
        for name, p in self.begin().items():
            found = meta.get(name) if isinstance(meta, dict) else None
            if found is None or found.shape != p.shape:
                what = "is not there" if found is None else f"has shape {tuple(found.shape)}"
                raise UsageError(
                    f"meta[{name!r}] {what}: expected a dict of tensors, and one of shape "
                    f"{tuple(p.shape)} here. Give problem.begin(), or tensors like its own."
                )

    def _with_frozen(self, meta: Params) -> Params:
        """Return meta and the frozen parameters, which it must not hold."""
        if not self._frozen:
            return meta
        refuse_frozen(meta, self._frozen)
        own = dict(self._model.named_parameters())
        return {**meta, **{name: own[name].detach() for name in self._frozen}}

    def init(self, meta: Params, task: TaskBatch) -> Params:
        self._check_meta(meta)
        meta = self._with_frozen(meta)
        if not isinstance(task, TaskBatch):
            raise UsageError(
                f"task={type(task).__name__}: expected a TaskBatch. Give "
                "TaskBatch(support_x, support_y, query_x, query_y)."
            )
        if self.loss is None:
            check_targets(task.support_y)
            check_targets(task.query_y)
        per_task = self._head.names if self._head is not None and self._head.per_task else ()
        start = {
            name: p if name in per_task else p.expand(len(task), *p.shape)
            for name, p in self._centre(meta, task, task.ways if self._head else 0).items()
        }
        if self._head is not None and self._head.solved:
            start |= self._head.solution(meta, task, self.prox_head, self._loss)
        return start

    def _centre(self, meta: Params, task: TaskBatch, ways: int) -> Params:
        """Return the centre of the proximal term: each tensor common to all tasks, or (T, ...).

        Args:
            ways: the number of class vectors of a symmetric head.
        """
        vectors = {} if self._head is None else self._head.centre(meta, task, ways)
        return {name: vectors[name] if name in vectors else meta[name] for name in self.adapted}

    def inner_objective(self, params: Params, meta: Params, task: TaskBatch) -> Tensor:
        return self.inner_loss(self.inner_outputs(params, meta, task), meta, task)

    def inner_outputs(self, params: Params, meta: Params, task: TaskBatch) -> dict[str, Any]:
        predictions = self._predict(params, meta, task.support_x)
        # The proximal term is quadratic in the parameters, so the parameters are outputs too.
        held = self.prox or self.prox_head
        return {"predictions": predictions} | ({"params": params} if held else {})

    def inner_loss(self, outputs: dict[str, Any], meta: Params, task: TaskBatch) -> Tensor:
        loss = self._loss(outputs["predictions"], task.support_y)
        if "params" not in outputs:
            return loss
        phi = outputs["params"]
        ways = phi[self._head.names[0]].shape[1] if self._head else 0
        start = self._centre(self._with_frozen(meta), task, ways)
        if self.prox == self.prox_head:
            return loss + self.prox * half_squared_distance([*phi.values()], [*start.values()])
        for strength, head in ((self.prox, False), (self.prox_head, True)):
            names = [name for name in phi if (name in self.last_layer) == head]
            if strength and names:
                away = half_squared_distance([phi[n] for n in names], [start[n] for n in names])
                loss = loss + strength * away
        return loss

    def outer_objective(
        self, params: Params, meta: Params, task: TaskBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        predictions = self.query_predictions(params, meta, task)
        loss = self._loss(predictions, task.query_y)
        return loss, prediction_metrics(self.loss, predictions, task.query_y)

    def query_predictions(self, params: Params, meta: Params, task: TaskBatch) -> Tensor:
        """Return the model's outputs for the queries, (T, queries, ...).

        Batch norm takes the statistics that `transductive` selects.
        """
        if self.transductive:
            return self._predict(params, meta, task.query_x, training=self.query_training)
        shown = task.support_x.shape[1]
        both = torch.cat([task.support_x, task.query_x], dim=1)
        return self._predict(params, meta, both, shown, self.query_training)[:, shown:]

    def _predict(
        self,
        params: Params,
        meta: Params,
        x: Tensor,
        statistics_from: int | None = None,
        training: bool | None = None,
    ) -> Tensor:
        meta = self._with_frozen(meta)
        shared = {name: p[None] for name, p in meta.items() if name not in params}
        return self.model({**shared, **params}, x, statistics_from, training)


def _options(loss: str | Loss | None) -> Hashable:
    """Return a key of a loss's options: its own, and those of the modules in it."""
    own = {**getattr(loss, "__dict__", {}), **getattr(loss, "keywords", {})}
    held = [x for x in (loss, *own.values()) if isinstance(x, nn.Module)]
    modules = [module for x in held for module in x.modules()]
    options = tuple((module.training, options_of(module)) for module in modules)
    return options if isinstance(loss, nn.Module) else (as_key(own), options)


def try_inputs(run: Callable[[], T], task: TaskBatch) -> T:
    """Return the result of `run`.

    Raises:
        UsageError: the model cannot take the task's inputs.
    """
    try:
        return run()
    except (RuntimeError, ValueError) as error:
        x = task.support_x
        values = x[0, 0].numel()
        raise UsageError(
            f"the model cannot take the tasks' inputs, {values} values of shape "
            f"{tuple(x.shape[2:])}; choose model= for them, or sizes that begin with {values}"
        ) from error


def _adapted(
    names: list[str], last_layer: list[str], adapt: str | Sequence[str], frozen: frozenset[str]
) -> list[str]:
    """Return the names that `FewShot(adapt=...)` selects."""
    if adapt == "all":
        return list(names)
    if adapt == "head":
        if not last_layer:
            raise UsageError(
                "adapt='head': expected a last layer that is not frozen. Call requires_grad_(True) "
                "on it, or name the parameters to adapt."
            )
        return list(last_layer)
    if isinstance(adapt, str):
        raise UsageError(f"adapt={adapt!r}; expected 'all', 'head' or a list of parameters' names")
    if still := sorted(frozen.intersection(adapt)):
        raise UsageError(
            f"adapt has {still[0]!r}: expected no parameter with requires_grad=False. "
            "Leave it out, or call requires_grad_(True)."
        )
    if odd := sorted(set(adapt).difference(names)):
        raise UsageError(f"adapt has {odd[0]!r}: expected parameters' names, of {', '.join(names)}")
    if not adapt:
        raise UsageError("adapt=[] leaves the inner loop nothing to adapt; name a parameter")
    return [name for name in names if name in adapt]
