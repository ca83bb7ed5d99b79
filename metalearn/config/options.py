"""Checked options: a dataclass whose fields pydantic checks, and a mistake in one sentence.

A study's options are the fields of such a class:

    @one_sentence
    @dataclass(frozen=True, config=STRICT)
    class MyStudy:
        seeds: Distinct[Seed]
        lr: Positive

`STRICT` takes no value for another: neither true for 1, nor a text for a number, nor nan.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Gt, Lt, MinLen
from pydantic import AfterValidator, ConfigDict, ValidationError

from metalearn.errors import UsageError

T = TypeVar("T")
C = TypeVar("C")

STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


def _check_distinct(values: Sequence[T]) -> Sequence[T]:
    if len(set(values)) < len(values):
        raise ValueError("no two equal values")
    return values


Count = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
Seed = Annotated[int, Ge(0), Lt(2**32)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Some = Annotated[Sequence[T], MinLen(1)]
"""A list with at least one value."""
Distinct = Annotated[Sequence[T], MinLen(1), AfterValidator(_check_distinct)]
"""A list with at least one value and no two equal ones."""


def one_of(known: Collection[str]) -> AfterValidator:
    """Return a check of a text, which has to be one of `known`."""

    def check(value: str) -> str:
        if value not in known:
            names = [f"'{name}'" if "," in name else name for name in known]
            raise ValueError(f"one of {', '.join(names)}")
        return value

    return AfterValidator(check)


_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "finite_number": "a finite number",
    "sequence_type": "a list",
    "is_instance_of": "a list",
    "greater_than_equal": "at least {ge}",
    "greater_than": "a number above {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "a number below {lt}",
    "literal_error": "{expected}",
    "too_short": "at least {min_length} value",
    "missing": "a value",
}


def one_sentence(cls: type[C]) -> type[C]:
    """Make the constructor of a pydantic dataclass raise UsageError for its first mistake."""
    init: Callable[..., None] = cls.__init__

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **options: Any) -> None:
        try:
            init(self, *args, **options)
        except ValidationError as error:
            raise _refusal(error) from None

    cls.__init__ = checked  # type: ignore[method-assign]
    return cls


def _refusal(error: ValidationError) -> UsageError:
    first = error.errors(include_url=False)[0]
    context = first.get("ctx", {})
    raised = context.get("error")
    if isinstance(raised, UsageError):  # of the class's own check across fields
        return raised
    if isinstance(raised, ValueError):
        expected = str(raised)
    else:
        plain = {key: f"{x:g}" if isinstance(x, float) else x for key, x in context.items()}
        expected = _EXPECTED.get(first["type"], first["msg"]).format(**plain)
        if first["type"] == "too_short":
            expected += "" if context["min_length"] == 1 else "s"
    name, *inner = first["loc"]
    name = f"{name}" + "".join(f"[{at}]" if isinstance(at, int) else f".{at}" for at in inner)
    return UsageError(f"{name}={first['input']}: expected {expected}. Give another value.")
