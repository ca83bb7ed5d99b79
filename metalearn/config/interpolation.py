"""References between the options of a config: `${problem.prox}` names another option, nothing else.

OmegaConf also calls functions from texts, `${oc.env:HOME}`, whose very name may be put together
from other options, `${oc.${x}:HOME}`. One could bring a secret of the environment into logs,
configs and results, so that none is ever let through.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from metalearn.errors import UsageError


def resolver_call(value: Any) -> str | None:
    """Return the first call in a nest of plain values: an interpolation with a colon.

    Its extent is counted in braces. Only what stands behind a colon may be quoted, and an escaped
    interpolation is taken for one, so that a text which OmegaConf would call is never missed.
    """
    for text in _texts(value):
        start, depth = 0, 0
        for i, sign in enumerate(text):
            if depth and sign == ":":
                return text[start : text.find("}", i) + 1 or None]
            if text.startswith("${", i):
                start, depth = (start if depth else i), depth + 1
            elif sign == "}" and depth:
                depth -= 1
    return None


def resolved(config: DictConfig) -> dict[str, Any]:
    """Return the plain values of a config, with their references resolved.

    Raises:
        UsageError: a value is an interpolation still. Put together from others, it has not been
            looked at, and whoever makes a config of it once more would resolve it.
        OmegaConfBaseException: a value refers to what is not there.
    """
    plain: Any = OmegaConf.to_container(config, resolve=True)
    check_resolved(plain)
    return plain


def check_resolved(value: Any) -> None:
    """Raise UsageError if a text in a nest of plain values still has a reference."""
    for text in _texts(value):
        if "${" in text:
            raise UsageError(
                f"{text} refers to an option in a roundabout way; give the value itself"
            )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(key)
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
