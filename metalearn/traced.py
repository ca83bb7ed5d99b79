"""A function of tensors, traced as a list of torch's operations that runs without autograd.

`make_fx` records the operations of one call. Those that no result needs are left out. The others
are split into the part before some inputs are known, and the parts after it, which may run often.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from metalearn.system.random_state import replayed, torch_states
from metalearn.tree import task_norm

Function = Callable[..., list[list[Tensor]]]
"""A function of tensors, whose results come in parts."""

CHECKED = 2
"""The number of first runs of a captured function that are compared with the function itself.

Later an inner loop may be so near its minimum that the gradient is rounding alone.
"""

KINKS = 0.05
"""The relative difference that a compiled function, or one of narrow types, may have.

A compiler adds in another order, which can move a unit across a kink. The numbers of replayed
operations differ by rounding alone, where tensors lie differently in memory.
"""

FRESH = torch.ops.aten.lift_fresh_copy.default
"""The operation that makes a tensor of a number written in the code."""

READS = {
    Tensor.tolist,
    Tensor.numpy,
    Tensor.item,
    Tensor.__array__,
    Tensor.__bool__,
    Tensor.__float__,
    Tensor.__int__,
    Tensor.__index__,
    Tensor.__complex__,
}
"""The methods by which Python reads numbers from tensors."""


class NotCaptured(Exception):
    """The error of a function that cannot be captured; its text says what the function does."""


@dataclass(frozen=True)
class Inputs:
    """The inputs of a captured function.

    Args:
        early: those of the first pass.
        late: those that are known later; the parts after the first depend on them.
        constants: the tensors that the function reads beside its inputs.
        rounding: the relative rounding of the function, if it is not that of the inputs' types.
    """

    early: Sequence[Tensor]
    late: Sequence[Tensor] = ()
    constants: Sequence[Tensor] = ()
    rounding: float | None = None

    def described(self) -> Hashable:
        """Return what the operations depend on: shapes, layouts, types, and what autocast does."""
        everything = [*self.early, *self.constants, *self.late]
        kinds = sorted({x.device.type for x in everything})
        narrowed = tuple(
            torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
            for kind in kinds
        )
        sizes = len(self.early), len(self.constants), len(self.late)
        return sizes, narrowed, tuple((x.shape, _strides(x), x.dtype, x.device) for x in everything)


class Program:
    """A captured function in parts, the first of which depends on no late input.

    Raises:
        NotCaptured: the function cannot be captured.
    """

    def __init__(self, function: Function, inputs: Inputs, compiled: bool = False) -> None:
        sizes: list[int] = []

        def flat(*given: Tensor) -> list[Tensor]:
            parts = function(*given)
            sizes[:] = map(len, parts)
            return [x.detach() for part in parts for x in part]

        with replayed(torch_states()):  # draws no random numbers of the caller's
            module, given = _traced(flat, inputs)
        *nodes, output = module.graph.nodes
        late = given[len(given) - len(inputs.late) :]
        early = given[: len(given) - len(late)]
        results = iter(output.args[0])
        parts = [[next(results) for _ in range(size)] for size in sizes]
        after = _dependents(nodes, late)
        read = {a for n in after for a in n.all_input_nodes} | {n for part in parts for n in part}
        handed = [n for n in nodes if n in read and n not in after and n not in late]
        before = [n for n in nodes if n not in after and n.op != "placeholder"]
        self._first, self._strides = len(parts[0]), [x.stride() for x in inputs.late]
        self._begin = _part(module, before, early, [*parts[0], *handed], compiled)
        then = [n for n in nodes if n in after]
        self._finish = [_part(module, then, [*handed, *late], p, compiled) for p in parts[1:]]
        self._compiled, self._unchecked = compiled, CHECKED
        if not self.checked(function, inputs):
            raise NotCaptured("its captured operations give other numbers")

    def begin(self, inputs: Inputs) -> tuple[list[Tensor], list[Tensor]]:
        """Return the results of part 0, and the tensors that the other parts read."""
        with torch.no_grad():
            found = self._begin(*(x.detach() for x in (*inputs.early, *inputs.constants)))
        return list(found[: self._first]), list(found[self._first :])

    def finish(self, part: int, handed: list[Tensor], late: Sequence[Tensor]) -> list[Tensor]:
        """Return the results of part 1 or a later one.

        Late inputs are laid out in memory as those of the capture were.
        """
        with torch.no_grad():
            laid_out = [
                x.detach() if x.stride() == own else x.new_empty_strided(x.shape, own).copy_(x)
                for x, own in zip(late, self._strides, strict=True)
            ]
            return list(self._finish[part - 1](*handed, *laid_out))

    def checked(self, function: Function, inputs: Inputs) -> bool:
        """Return whether a run agrees with the function itself; only the first runs are compared.

        The parts after the first run twice, since they may not change what they read.
        """
        if not self._unchecked:
            return True
        states = torch_states()
        with replayed(states):
            expected = function(*(x.detach() for x in (*inputs.early, *inputs.late)))
        with replayed(states):
            first, handed = self.begin(inputs)
            for _ in range(2):
                rest = [self.finish(i, handed, inputs.late) for i in range(1, len(expected))]
        if not all(x.isfinite().all() for part in expected for x in part):
            return True  # numbers that say nothing; the next run is compared
        self._unchecked -= 1
        # The objective apart, since it may be so large that it hides an error of the gradient.
        parts = [(first[:1], expected[0][:1]), (first[1:], expected[0][1:])]
        parts += zip(rest, expected[1:], strict=True)
        return all(self._agree(found, own, inputs.rounding) for found, own in parts)

    def _agree(self, found: list[Tensor], expected: list[Tensor], rounding: float | None) -> bool:
        """Return whether the difference of two lists is that of rounding.

        Each tensor has to agree. One that is near 0 is measured by all of them.
        """
        if not expected:
            return True
        wide = [[x.double().flatten()[None] for x in part] for part in (found, expected)]
        whole = task_norm(wide[1])
        away = [a - b for a, b in zip(*wide, strict=True)]
        if self._compiled or rounding is not None:
            return bool(task_norm(away) <= KINKS * whole)
        eps = max(torch.finfo(x.dtype).eps for x in expected)
        return all(
            bool(difference.norm() <= eps * (1e5 * x.norm() + 1e3 * whole))
            for difference, x in zip(away, wide[1], strict=True)
        )


def _strides(x: Tensor) -> tuple[int, ...]:
    """Return the strides that decide where the numbers lie: those of axes of one element are 0."""
    return tuple(
        stride if size > 1 else 0 for size, stride in zip(x.shape, x.stride(), strict=True)
    )


def in_short(error: Exception) -> str:
    """Return the beginning of an error's text, on one line."""
    return " ".join(str(error).split())[:120]


class _NoReads(TorchFunctionMode):
    """The context in which Python may read no number from a tensor."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in READS:
            raise NotCaptured("it reads a number from a tensor")
        return func(*args, **kwargs or {})


def _traced(
    function: Callable[..., list[Tensor]], inputs: Inputs
) -> tuple[fx.GraphModule, list[fx.Node]]:
    """Return the operations, and the nodes of the early inputs, the constants and the late inputs.

    Raises:
        NotCaptured: the function reads numbers or unknown tensors, or its shapes depend on numbers.
    """
    given = [x.detach() for x in (*inputs.early, *inputs.late)]
    try:
        # torch notes a tensor without numbers for each result; one mode serves all of them.
        noted = TracingContext(FakeTensorMode(allow_fallback_kernels=True))
        with _NoReads(), tracing(noted):
            module = make_fx(function)(*given)
    except torch.OutOfMemoryError:
        raise
    except (NotImplementedError, RuntimeError) as error:
        reads = "_local_scalar_dense" in str(error)
        raise NotCaptured(
            "it reads a number from a tensor" if reads else in_short(error)
        ) from error
    graph = module.graph
    placeholders = graph.find_nodes(op="placeholder")
    known = {_place(x): i for i, x in enumerate(inputs.constants)}
    with graph.inserting_before(next(iter(graph.nodes))):
        own = [graph.placeholder(f"constant_{i}") for i in range(len(inputs.constants))]
    for node in graph.nodes:
        if node.op == "get_attr":
            constant = known.get(_place(getattr(module, node.target)))
            if constant is not None:
                node.replace_all_uses_with(own[constant])
            elif any(user.target is not FRESH for user in node.users):
                raise NotCaptured("it reads a tensor that is in neither params, meta nor task")
        if torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ()) or _is_masked(node):
            raise NotCaptured("the shape of a tensor depends on the numbers in another")
    early = len(inputs.early)
    return module, [*placeholders[:early], *own, *placeholders[early:]]


def _place(x: Tensor) -> Hashable:
    """Return where in memory a tensor lies, and how."""
    return x.untyped_storage().data_ptr(), x.storage_offset(), x.shape, x.stride(), x.dtype


def _is_masked(node: fx.Node) -> bool:
    """Return whether the node takes the elements of a tensor that a mask of booleans selects."""
    if node.target is not torch.ops.aten.index.Tensor:
        return False
    masks = (torch.bool, torch.uint8)
    return any(i.meta["val"].dtype in masks for i in node.all_input_nodes[1:])


def _dependents(nodes: Sequence[fx.Node], sources: Sequence[fx.Node]) -> set[fx.Node]:
    """Return the nodes that depend on `sources`."""
    found = set(sources)
    for node in nodes:
        if any(a in found for a in node.all_input_nodes):
            found.add(node)
    return found.difference(sources)


def _part(
    module: fx.GraphModule,
    nodes: Sequence[fx.Node],
    inputs: Sequence[fx.Node],
    outputs: Sequence[fx.Node],
    compiled: bool,
) -> Callable[..., Sequence[Tensor]]:
    """Return those of the nodes that the outputs need, as a function of the inputs."""
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in inputs}
    for node in _needed(module.graph, nodes, outputs):
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in outputs))
    part = fx.GraphModule(module, graph)
    if not compiled:
        return part
    run: Callable[..., Sequence[Tensor]] = torch.compile(
        part, fullgraph=True, dynamic=False, options={"fallback_random": True}
    )
    return run


def _needed(graph: fx.Graph, nodes: Sequence[fx.Node], outputs: Sequence[fx.Node]) -> list[fx.Node]:
    """Return those of the nodes that the outputs depend on, in order.

    An operation that writes in place is needed where what it writes to is read later. All random
    operations are kept, so that the same random numbers are drawn.
    """
    owner: dict[fx.Node, fx.Node] = {}  # of the memory that a node's result lies in
    for node in graph.nodes:
        owner[node] = owner[node.all_input_nodes[0]] if _shares(node) else node
    wanted, read, found = set(outputs), {owner[node] for node in outputs}, []
    for node in reversed(nodes):
        random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if node in wanted or random or any(owner[a] in read for a in _written(node)):
            found.append(node)
            wanted.update(node.all_input_nodes)
            read.update(owner[a] for a in node.all_input_nodes)
    return found[::-1]


def _shares(node: fx.Node) -> bool:
    """Return whether the result lies in the memory of the first input."""
    if node.target is operator.getitem:
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(r.alias_info is not None for r in schema.returns)


def _written(node: fx.Node) -> list[fx.Node]:
    """Return the inputs that the operation writes to."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    given = dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | node.kwargs
    written = [given.get(a.name) for a in schema.arguments if a.is_write]
    nodes = [x for part in written for x in (part if isinstance(part, Sequence) else [part])]
    return [x for x in nodes if isinstance(x, fx.Node)]
