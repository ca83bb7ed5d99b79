"""The inner gradient and the inner Hessian of a problem whose operations are captured."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from metalearn.captured import Captured
from metalearn.inner.solver import value_and_grad
from metalearn.metagrad.curvature import Hessian
from metalearn.nn.structure import PLAIN
from metalearn.problem import BilevelProblem, Meta, Params
from metalearn.traced import Inputs, Program
from metalearn.tree import Raveler, detached, leaves_of, requires_grad_copy


def captured_gradient(
    problem: BilevelProblem, params: Params, meta: Meta, task: Any, create_graph: bool = False
) -> list[Tensor] | None:
    """Return the inner gradient, each (T, ...); None if it is not captured.

    With `create_graph` it can be differentiated once, in params and meta.
    """
    inputs = _Inner.of(problem, params, meta, task)
    if inputs is None:
        return None
    starts = any(0 in p.stride() for p in params.values())  # a layout of its own, which comes once
    if create_graph:
        if inputs.depend_on_more():
            return None
        if starts:
            laid_out = [p.clone() for p in params.values()]
            inputs = replace(inputs, tensors=laid_out + inputs.tensors[len(params) :])
        linearised = _linearised(problem, inputs, [p.contiguous() for p in params.values()])
        if linearised is None:
            return None
        return list(_Gradient.apply(*linearised, inputs, *inputs.tensors))
    if starts:
        return None

    def gradient(*tensors: Tensor) -> list[list[Tensor]]:
        params, meta, task = inputs.filled(tensors)
        return [value_and_grad(lambda p: problem.inner_objective(p, meta, task), params)[1]]

    own = inputs.to_capture()
    program = inputs.store.program(("gradient", inputs.key), gradient, own)
    return None if program is None else program.begin(own)[0]


class CapturedHessian:
    """A `Curvature`: the Hessian, whose products read what the first pass has kept."""

    def __init__(self, program: Program, inputs: Inputs) -> None:
        (self.objective, *self.gradient), self._kept = program.begin(inputs)
        self._program = program

    @classmethod
    def of(
        cls, problem: BilevelProblem, params: Params, meta: Meta, task: Any
    ) -> CapturedHessian | None:
        """Return the Hessian at params; None if it is not captured."""
        inputs = _Inner.of(problem, params, meta, task)
        if inputs is None:
            return None
        # Linear solvers hand over the rows of one matrix.
        rows = Raveler.of(detached(params), batched=True, as_it_lies=True)
        v = rows.unravel(rows.ravel(detached(params)))
        linearised = _linearised(problem, inputs, list(v.values()))
        return None if linearised is None else cls(*linearised)

    def matvec(self, v: list[Tensor], last: bool = False) -> list[Tensor]:
        return self._program.finish(1, self._kept, v)

    def mixed(self, x: list[Tensor]) -> list[Tensor | None]:
        return [m if m.numel() else None for m in self._program.finish(2, self._kept, x)]


def _linearised(
    problem: BilevelProblem, inputs: _Inner, v: list[Tensor]
) -> tuple[Program, Inputs] | None:
    """Return the captured objective and inner gradient, Hessian products and mixed partials.

    An empty tensor stands for the mixed partial of a leaf on which the gradient does not depend.

    Args:
        v: an example of what the Hessian is multiplied by.
    """
    number = len(v)

    def products(*tensors: Tensor) -> list[list[Tensor]]:
        params, meta, task = inputs.filled(tensors[:-number])
        v = list(tensors[-number:])
        own = Hessian(problem, requires_grad_copy(params), requires_grad_copy(meta), task)
        curved = own.matvec(v)
        mixed = [v[0].new_empty(0) if m is None else m for m in own.mixed(v)]
        return [[own.objective, *own.gradient], curved, mixed]

    own = inputs.to_capture(v)
    program = inputs.store.program(("linearised", inputs.key), products, own)
    return None if program is None else (program, own)


class _Gradient(torch.autograd.Function):
    """The inner gradient, with the captured products as its derivative."""

    @staticmethod
    def forward(ctx: Any, program: Program, own: Inputs, inner: _Inner, *_: Tensor) -> Any:
        found, kept = program.begin(own)
        ctx.program, ctx.others = program, len(inner.tensors) - inner.differentiable
        ctx.save_for_backward(*kept)
        return tuple(found[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *v: Tensor) -> Any:
        kept = list(ctx.saved_tensors)
        by_params, by_meta = (ctx.program.finish(part, kept, v) for part in (1, 2))
        reached = [m if m.numel() else None for m in by_meta]
        return (*[None] * 3, *by_params, *reached, *[None] * ctx.others)


@dataclass(frozen=True)
class _Inner:
    """The params, meta and task of an inner objective, taken apart.

    Args:
        tensors: with their graphs.
        differentiable: the number of tensors in params and meta, which come first.
        plain: the leaves that are no tensors, with the class `Tensor` in the place of each tensor.
        constants: the tensors that the inner objective reads beside them.
        rounding: the relative rounding of a problem of narrow types.
    """

    store: Captured
    key: Hashable
    tensors: list[Tensor]
    differentiable: int
    plain: tuple[Any, ...]
    spec: TreeSpec
    constants: list[Tensor]
    rounding: float | None

    @classmethod
    def of(cls, problem: BilevelProblem, params: Params, meta: Meta, task: Any) -> _Inner | None:
        """Return the inputs; None if the problem is not captured, or they are not plain."""
        store: Captured | None = getattr(problem, "captured", None)
        if store is None:
            return None
        leaves, spec = tree_flatten((params, meta, task))
        plain = tuple(Tensor if isinstance(x, Tensor) else x for x in leaves)
        if odd := [
            x for x in plain if x is not Tensor and x is not None and not isinstance(x, PLAIN)
        ]:
            store.warn(
                f"cannot be captured: meta or the task holds a {type(odd[0]).__name__}, expected "
                "tensors in classes that torch's pytree knows"
            )
            return None
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        constants: list[Tensor] = getattr(problem, "constants", list)()
        if any(x.layout != torch.strided for x in (*tensors, *constants)):
            store.warn("cannot be captured: it reads a sparse tensor")
            return None
        own: Hashable = getattr(problem, "capture_key", tuple)()
        return cls(
            store,
            (type(problem), own, plain, spec),
            tensors,
            sum(isinstance(x, Tensor) for x in leaves_of((params, meta))),
            plain,
            spec,
            constants,
            getattr(problem, "relative_rounding", None),
        )

    def to_capture(self, late: Sequence[Tensor] = ()) -> Inputs:
        return Inputs(self.tensors, late, self.constants, self.rounding)

    def depend_on_more(self) -> bool:
        """Return whether the task or a constant has a graph, which no captured product reaches."""
        return any(x.requires_grad for x in (*self.tensors[self.differentiable :], *self.constants))

    def filled(self, tensors: Sequence[Tensor]) -> Any:
        """Return (params, meta, task) of other tensors."""
        given = iter(tensors)
        leaves = [next(given) if x is Tensor else x for x in self.plain]
        return tree_unflatten(leaves, self.spec)
