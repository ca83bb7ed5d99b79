"""The lines of code and the autodiff of one run of a method."""

from __future__ import annotations

import ast
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from unittest import mock

import torch

import metalearn

PACKAGE = str(Path(metalearn.__file__).parent)
STUDIES = str(Path(PACKAGE, "studies"))


def functions_run(work: Callable[[], Any]) -> set[CodeType]:
    """Return this package's functions that `work` enters in the calling thread.

    Functions of the studies are left out.
    """
    entered: set[CodeType] = set()

    def see(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            entered.add(frame.f_code)

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        work()
    finally:
        sys.setprofile(before)
    return {code for code in entered if not code.co_filename.startswith(STUDIES)}


def lines_of(functions: set[CodeType]) -> set[tuple[str, int]]:
    """Return (file, number) of the functions' lines, without blanks, comments and docstrings."""
    found: set[tuple[str, int]] = set()
    for code in functions:
        lines, first = inspect.getsourcelines(code)
        own = _code_lines(code.co_filename).intersection(range(first, first + len(lines)))
        found.update((code.co_filename, number) for number in own)
    return found


@cache
def _code_lines(path: str) -> frozenset[int]:
    code: set[int] = set()
    texts: set[int] = set()
    for node in ast.walk(ast.parse(Path(path).read_text())):
        if isinstance(node, ast.stmt | ast.expr | ast.arg | ast.keyword):
            last = node.end_lineno or node.lineno
            code.update((node.lineno, last))
            alone = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if alone:  # a docstring
                texts.update(range(node.lineno, last + 1))
    return frozenset(code - texts)


def custom_derivatives(functions: set[CodeType]) -> list[str]:
    """Return the names of the `torch.autograd.Function`s among the functions."""
    classes = _heirs(torch.autograd.Function)
    return sorted(c.__name__ for c in classes if getattr(c.forward, "__code__", None) in functions)


def _heirs(cls: type[Any]) -> Iterator[type[Any]]:
    heirs: list[type[Any]] = cls.__subclasses__()
    for heir in heirs:
        yield heir
        yield from _heirs(heir)


def autodiff_used(work: Callable[[], Any]) -> Counter[str]:
    """Count the calls of `torch.autograd.grad` in `work`.

    - calls: all calls.
    - create_graph: the calls whose gradients can be differentiated again.
    - retain_graph: the calls that keep the graph.
    - weighted: the vector-Jacobian products.
    """
    used: Counter[str] = Counter(calls=0, create_graph=0, retain_graph=0, weighted=0)
    grad = torch.autograd.grad

    def counting(
        outputs: Any, inputs: Any, grad_outputs: Any = None, *rest: Any, **how: Any
    ) -> Any:
        weights = grad_outputs if isinstance(grad_outputs, list | tuple) else [grad_outputs]
        used.update(
            calls=1,
            create_graph=bool(how.get("create_graph")),
            retain_graph=bool(how.get("retain_graph")),
            weighted=any(w is not None for w in weights),
        )
        return grad(outputs, inputs, grad_outputs, *rest, **how)

    with mock.patch.object(torch.autograd, "grad", counting):
        work()
    return used
