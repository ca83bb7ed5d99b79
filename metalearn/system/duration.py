"""Durations in words."""

from __future__ import annotations

from itertools import pairwise

_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def format_duration(seconds: float) -> str:
    """Return seconds in the two largest units: "8 s", "2 min 5 s", "3 h 6 min", "2 d"."""
    for (unit, size), (smaller, part) in pairwise(_UNITS):
        parts = round(seconds / part)
        if parts >= size // part:
            whole, rest = divmod(parts, size // part)
            return f"{whole} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{round(seconds)} s"
