"""The fields of a checkpoint, which anyone may have altered since: their types and shapes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from metalearn.errors import UsageError
from metalearn.tree import named_leaves

Check = Callable[[Any], bool]

MISFITS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""The errors of an object that is given a state of another kind."""


def is_count(value: Any) -> bool:
    """Return True for a whole number of at least 0."""
    return type(value) is int and value >= 0


def is_number(value: Any) -> bool:
    """Return True for a number, which may be infinite."""
    return type(value) in (int, float) and value == value


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_tensor(value: Any) -> bool:
    return (
        isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    )


def is_tree(value: Any) -> bool:
    """Return True for a nest of floating-point tensors."""
    return all(is_tensor(x) and x.is_floating_point() for x in tree_leaves(value))


def record(**fields: Check) -> Check:
    """Return the check of a mapping with at least these keys."""
    return lambda value: (
        isinstance(value, dict)
        and fields.keys() <= value.keys()
        and all(check(value[name]) for name, check in fields.items())
    )


def each(check: Check) -> Check:
    """Return the check of a list."""
    return lambda value: isinstance(value, list) and all(map(check, value))


def row(*checks: Check) -> Check:
    """Return the check of a list or tuple with one value for each check."""
    return lambda value: (
        isinstance(value, list | tuple)
        and len(value) == len(checks)
        and all(check(x) for check, x in zip(checks, value, strict=True))
    )


def optional(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _is_word(value: Any) -> bool:
    return is_count(value) and value < 2**32


def _is_numpy_key(value: Any) -> bool:
    return is_tensor(value) and value.shape == (624,) and not value.is_complex()


def _is_data(value: Any) -> bool:
    """Return True for the record of a split's data."""
    return (
        record(classes=each(is_text))(value)
        and optional(is_text)(value.get("labels"))
        and optional(_is_hashes)(value.get("examples"))
    )


def _is_hashes(value: Any) -> bool:
    return is_tensor(value) and value.dim() == 1 and value.dtype == torch.int64


_RANDOM = record(
    python=row(is_count, row(*[_is_word] * 625), optional(is_number)),
    numpy=row(is_text, _is_numpy_key, lambda v: is_count(v) and v <= 624, is_count, is_number),
    torch=is_tensor,
    cuda=each(is_tensor),
)
_FIELDS: dict[str, tuple[str, Check]] = {
    "step": ("a whole number of at least 0", is_count),
    "best": ("a number", is_number),
    "meta": ("a nest of floating-point tensors", is_tree),
    "constants": (
        "tensors by name",
        lambda v: isinstance(v, dict) and all(map(is_text, v)) and all(map(is_tensor, v.values())),
    ),
    "config": ("the options of a run", lambda value: isinstance(value, dict)),
    "data": (
        "the classes of each split by name, and hashes of its examples",
        lambda v: isinstance(v, dict) and all(map(_is_data, v.values())),
    ),
    "average": ("null, or updates and meta", optional(record(updates=is_count, meta=is_tree))),
    "chosen": ("null, or step and meta", optional(record(step=is_count, meta=is_tree))),
    "runners_up": (
        "a list of step, score and meta",
        each(record(step=is_count, score=is_number, meta=is_tree)),
    ),
    "carry": ("a nest of floating-point tensors", lambda v: isinstance(v, dict) and is_tree(v)),
    "optimiser": ("the state of an optimiser", record(state=lambda v: isinstance(v, dict))),
    "halvings": ("a whole number of at least 0", is_count),
    "guards": (
        "refused, in_a_row and norms",
        record(refused=is_count, in_a_row=is_count, norms=each(is_number)),
    ),
    "parts": (
        "a list of whole numbers of at least 1",
        lambda v: each(lambda n: is_count(n) and n > 0)(v) and bool(v),
    ),
    "peak": ("a whole number of at least 0", is_count),
    "sampler": ("the state of a sampler", lambda value: isinstance(value, dict)),
    "random": ("random states", _RANDOM),
    "job": ("null, or text", optional(is_text)),
    "wandb_id": ("null, or text", optional(is_text)),
    "unvalidated": ("a row", optional(record(step=is_count, step_s=is_number))),
}


def check_fields(state: Mapping[str, Any], names: Collection[str], where: Path | str) -> None:
    """Raise UsageError if a field of a checkpoint, of these names, is of another type."""
    for name, (expected, check) in _FIELDS.items():
        if name in names and name in state and not check(state[name]):
            raise misfit(where, name, expected)


def check_fit(tree: Any, like: Any, name: str, where: Path | str) -> None:
    """Raise UsageError if a field's tensors have other names or shapes than those of `like`."""
    own, given = named_leaves(like), named_leaves(tree)
    if {k: x.shape for k, x in given.items()} != {k: x.shape for k, x in own.items()}:
        raise misfit(where, name, "tensors of the shapes of this run's model")


def misfit(where: Path | str, name: str, expected: str) -> UsageError:
    """Return the error of a field that is not what a run saves there."""
    return UsageError(
        f"{where} holds another {name} than a run saves: expected {expected}. Put back the run's "
        "own file, or train anew"
    )
