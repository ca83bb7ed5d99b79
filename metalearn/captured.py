"""Functions of tensors, captured as lists of torch's operations and run again without autograd.

An inner gradient that is computed thousands of times for inputs of the same shapes goes through
the same operations each time. The first call captures them (`make_fx`). Later calls run the
captured list: no graph is made, no Python of the model runs, and no operation whose result nobody
asked for. The operations are the same, and so are the numbers.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Literal

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import _get_current_dispatch_mode

from metalearn.autograd import transformed
from metalearn.errors import UsageError
from metalearn.system.random_state import replayed, torch_states
from metalearn.tree import relative_error

Capture = Literal["none", "replay", "compile"]
"""The way to run inner gradients: uncaptured, operation by operation, or compiled by inductor."""

Function = Callable[..., list[list[Tensor]]]
"""A function of tensors, whose results come in parts."""

CHECKED = 2
"""The number of first runs of a captured function that are compared with the function itself."""

TOLERANCE = 0.05
"""The relative difference above which a captured function is refused.

Replayed operations give the same numbers. A compiler adds in another order, which may move a unit
across a kink, and rounds bfloat16 elsewhere. A larger difference is that of another function.
"""

MOST_PROGRAMS = 64
"""The number of captured functions that a problem keeps; then the oldest is dropped."""


class NotCaptured(Exception):
    """The error of a function that cannot be captured; its text says what the function does."""


class Captured:
    """The functions that a problem has captured: one for each key and each set of shapes.

    A problem that may be captured holds one as its attribute `captured`. Its inner objective must
    run the same operations whenever the shapes are equal, but for what these methods say, which it
    may have:

    - `capture_key()` returns what else decides which operations run, such as a module's mode;
    - `constants()` returns the tensors that the objective reads beside params, meta and task.

    Copies of the problem share it. A pickled or deeply copied one is empty.

    Args:
        compiled: True: `torch.compile` makes a program of each captured function, in 10 to 60 s.
    """

    def __init__(self, compiled: bool = False) -> None:
        self.compiled = compiled
        self._programs: dict[Hashable, Program | None] = {}
        self._warned = False

    @classmethod
    def of(cls, capture: Capture) -> Captured | None:
        """Return an empty store, or None for "none".

        Raises:
            UsageError: `capture` is unknown.
        """
        if capture not in ("none", "replay", "compile"):
            raise UsageError(
                f"capture={capture!r}: expected 'none', 'replay' or 'compile'. Choose one."
            )
        return None if capture == "none" else cls(capture == "compile")

    def __reduce__(self) -> tuple[type[Captured], tuple[bool]]:
        return Captured, (self.compiled,)

    def program(
        self,
        key: Hashable,
        function: Function,
        inputs: Sequence[Tensor],
        late: int = 0,
        constants: Sequence[Tensor] = (),
    ) -> Program | None:
        """Return the captured function, or None for a function that has to be run as it is.

        The first such function gives a warning.

        Args:
            key: what decides, beside the inputs' shapes, which operations the function runs.
            function: maps the inputs to tensors, and may use autograd.
            late: the number of last inputs that `Program.finish` takes.
            constants: the tensors that the function reads beside its inputs.
        """
        if transformed() or _get_current_dispatch_mode() is not None:
            return None
        shapes = tuple((x.shape, x.stride(), x.dtype, x.device) for x in inputs)
        narrowed = frozenset(torch.is_autocast_enabled(x.device.type) for x in inputs)
        beside = tuple(map(_memory, constants))
        own = (key, shapes, late, beside, narrowed, torch.get_default_dtype())
        if own in self._programs:
            found = self._programs[own]
            if found is not None:
                found.check(function, inputs)
            return found
        while len(self._programs) >= MOST_PROGRAMS:
            del self._programs[next(iter(self._programs))]
        self._programs[own] = self._new(function, inputs, late, beside)
        return self._programs[own]

    def warn(self, sentence: str) -> None:
        """Give the first warning of this problem."""
        if not self._warned:
            warnings.warn(sentence, stacklevel=4)
        self._warned = True

    def _new(
        self, function: Function, inputs: Sequence[Tensor], late: int, beside: Sequence[int]
    ) -> Program | None:
        for compiled in (True, False) if self.compiled else (False,):
            try:
                return Program(function, inputs, late, beside, compiled)
            except NotCaptured as error:
                self.warn(f"{error}. It runs uncaptured; set capture=none.")
                return None
            except RuntimeError as error:
                if not compiled:
                    raise
                reason = " ".join(str(error).split())[:120]
                self.warn(f"torch.compile failed ({reason}). Set capture=replay.")
        return None


class Program:
    """A captured function in parts. Part 0 depends on the early inputs alone, and runs first.

    Args:
        late: the number of last inputs, which the other parts take.
        beside: the addresses in memory of the tensors that the function reads beside its inputs.
        compiled: True: each part is compiled at its first run.

    Raises:
        NotCaptured: the function cannot be captured.
        UsageError: its results are not those of the function.
    """

    def __init__(
        self,
        function: Function,
        inputs: Sequence[Tensor],
        late: int = 0,
        beside: Sequence[int] = (),
        compiled: bool = False,
    ) -> None:
        sizes: list[int] = []

        def flat(*leaves: Tensor) -> list[Tensor]:
            parts = function(*leaves)
            sizes[:] = map(len, parts)
            return [x.detach() for part in parts for x in part]

        inputs = [x.detach() for x in inputs]
        with replayed(torch_states()):  # draws no random numbers of the caller's
            module = _traced(flat, inputs, beside)
        *nodes, output = module.graph.nodes
        given = [node for node in nodes if node.op == "placeholder"]
        self._early = len(inputs) - late
        self._strides = [x.stride() for x in inputs[self._early :]]
        early, late_inputs = given[: self._early], given[self._early :]
        results = iter(output.args[0])
        parts = [[next(results) for _ in range(size)] for size in sizes]
        after = _dependents(nodes, late_inputs)
        read = {a for n in after for a in n.all_input_nodes} | {n for part in parts for n in part}
        handed = [n for n in nodes if n in read and n not in after and n not in late_inputs]
        self._first = len(parts[0])
        before = [n for n in nodes if n not in after and n not in given]
        last = [n for n in nodes if n in after]
        self._begin = _part(module, before, early, [*parts[0], *handed], compiled)
        self._finish = [
            _part(module, last, [*handed, *late_inputs], part, compiled) for part in parts[1:]
        ]
        self._unchecked = CHECKED
        self.check(function, inputs)

    def begin(self, early: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the results of part 0, and the tensors that the other parts read."""
        with torch.no_grad():
            found = self._begin(*(x.detach() for x in early))
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

    def check(self, function: Function, inputs: Sequence[Tensor]) -> None:
        """Compare the first runs with the function itself, the parts after 0 twice."""
        if not self._unchecked:
            return
        inputs, states = [x.detach() for x in inputs], torch_states()
        with replayed(states):
            expected = function(*inputs)
        early, late = inputs[: self._early], inputs[self._early :]
        with replayed(states):
            first, handed = self.begin(early)
            found = [first, *(self.finish(i, handed, late) for i in range(1, len(expected)))]
            again = [first, *(self.finish(i, handed, late) for i in range(1, len(expected)))]
        for parts in (found, again):
            error = relative_error(parts, expected)
            if math.isnan(error):  # the numbers are not finite, or all 0; the next run is checked
                return
            if error > TOLERANCE:
                raise UsageError(
                    f"capture: the captured inner gradient differs by {error:.1g} from the one "
                    "that is run as it is, expected the same. Its Python code runs other "
                    "operations at each call; set capture=none."
                )
        self._unchecked -= 1


def _traced(
    function: Callable[..., list[Tensor]], inputs: Sequence[Tensor], beside: Sequence[int]
) -> fx.GraphModule:
    try:
        module = make_fx(function)(*inputs)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:120]
        if "_local_scalar_dense" in reason:
            reason = "it reads a number from a tensor"
        raise NotCaptured(f"the inner objective cannot be captured: {reason}") from error
    fresh = torch.ops.aten.lift_fresh_copy.default  # a number written in the code
    for node in module.graph.find_nodes(op="get_attr"):
        known = _memory(getattr(module, node.target)) in beside
        if not known and any(user.target is not fresh for user in node.users):
            raise NotCaptured(
                "the inner objective cannot be captured: it reads a tensor that is in neither "
                "params, meta nor task"
            )
    return module


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


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
    """Return the nodes that lead from the inputs to the outputs, as a function."""
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

    An operation in place is needed where its result is, or where what it writes to is read later.
    """
    owner: dict[fx.Node, fx.Node] = {}  # of the memory that a node's result lies in
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        shares = schema is not None and any(r.alias_info is not None for r in schema.returns)
        owner[node] = owner[node.all_input_nodes[0]] if shares else node
    wanted, read, found = set(outputs), {owner[node] for node in outputs}, []
    for node in reversed(nodes):
        schema = getattr(node.target, "_schema", None)
        writes = schema is not None and schema.is_mutable
        if node in wanted or (writes and owner[node] in read):
            found.append(node)
            wanted.update(node.all_input_nodes)
            read.update(owner[a] for a in node.all_input_nodes)
    return found[::-1]
