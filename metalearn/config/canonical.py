"""The canonical form of a config: configs of the same training have equal forms.

An option that is added later, with a default that means "as before", changes no canonical form.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from omegaconf import DictConfig

from metalearn.config import groups
from metalearn.config.build import read_argument_defaults
from metalearn.config.interpolation import resolved


def canonicalise(config: DictConfig, but_for: Collection[str] = ()) -> dict[str, Any]:
    """Return the plain values of a training config in canonical form.

    The form has neither groups of null nor arguments equal to their constructor's default.

    Args:
        config: composed, or saved and then completed by `config.checked`.
        but_for: the top-level options to leave out.

    Raises:
        UsageError: a config may not name a `_target_`.
    """
    own = {key: value for key, value in resolved(config).items() if key not in but_for}
    for key in groups():
        if own.get(key, ...) is None:
            del own[key]
    return drop_argument_defaults(own)


def find_difference(
    one: Mapping[str, Any], other: Mapping[str, Any]
) -> tuple[str, Any, Any] | None:
    """Return the first option that differs, by its dotted name, with both values.

    None: the nests are equal. An option that one of them leaves out has "its default" there.
    """
    for key in sorted({**one, **other}):
        a, b = one.get(key, "its default"), other.get(key, "its default")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            if inner := find_difference(a, b):
                return f"{key}.{inner[0]}", inner[1], inner[2]
        elif a != b or isinstance(a, bool) is not isinstance(b, bool):
            return key, a, b
    return None


def drop_argument_defaults(value: Any) -> Any:
    """Return a nest of plain values less the arguments equal to their constructor's default.

    The arguments are the entries of a node with a `_target_`.

    Raises:
        UsageError: a config may not name a `_target_`.
    """
    if isinstance(value, list):
        return [drop_argument_defaults(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    defaults = read_argument_defaults(value["_target_"]) if "_target_" in value else {}
    changed = select_changed(value, defaults)
    return {key: drop_argument_defaults(inner) for key, inner in changed.items()}


def select_changed(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that differ from their defaults, in groups of options too."""
    changed = {}
    for key, value in options.items():
        default = defaults.get(key, ...)
        if isinstance(value, dict) and isinstance(default, dict):
            if inner := select_changed(value, default):
                changed[key] = inner
        elif value != default or isinstance(value, bool) is not isinstance(default, bool):
            changed[key] = value
    return changed
