"""Overrides: a user's `key=value`, of an option or of a group."""

from __future__ import annotations

import functools
import re
import shlex
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from metalearn.config.interpolation import resolver_call
from metalearn.errors import UsageError, nearest

PACKAGE = Path(__file__).resolve().parent.parent
HYDRAS = ("hydra.", "hydra/")
_OF_HYDRA = ("launcher", "sweeper")  # what a sweep may choose
_PATHS = (
    *("run_dir", "resume", "init_from", "name", "checkpoint", "source", "out", "results", "runs"),
    *("support", "images"),
)
"""The options that take a text as it stands, by the last part of their names."""
_LISTS = ("checkpoint", "runs")  # which also take several of them


def config_folder() -> Path:
    """Return `configs/` of the checkout, or the copy inside an installed package."""
    inside = PACKAGE / "configs"
    return inside if inside.is_dir() else PACKAGE.parent / "configs"


def parse(overrides: list[str]) -> list[Override]:
    """Parse overrides; raise UsageError if a word is no key=value."""
    parsed = []
    for given in overrides:
        override = _parse_word(given)
        word = text_of(override)
        if not override.key_or_group:
            raise UsageError(f"{word!r} names no option; expected key=value")
        # In the word too, of which a sweep's value shows its choices only later; in the value too,
        # which a word may hold as $\{ and \:.
        if call := resolver_call([word, override.value()]):
            raise UsageError(
                f"{word!r} calls a resolver, {call}; a value refers to options only, such as "
                "${problem.prox}"
            )
        if override.key_or_group.startswith(HYDRAS) and (
            not override.key_or_group[len("hydra.") :].startswith(_OF_HYDRA) or "_target_" in word
        ):
            raise UsageError(f"{word!r} is no option; of Hydra's own only launcher and sweeper are")
        if override.is_delete():
            raise UsageError(f"{word!r} takes an option away; give it a value, key=value")
        parsed.append(override)
    return parsed


def _parse_word(word: str) -> Override:
    """Parse a word; a path that Hydra's grammar does not take is quoted first."""
    if any("\ud800" <= sign <= "\udfff" for sign in word):
        raise UsageError(f"{word!a} cannot be read: expected text in UTF-8. Rename the file")
    key, _, value = word.partition("=")
    name = key.rpartition(".")[2].lstrip("+")
    try:
        (override,) = OverridesParser.create().parse_overrides([word])
    except HydraException as error:
        if name not in _PATHS or not value:
            raise UsageError(
                f"{word!r} cannot be read; expected key=value, with its brackets closed and a text "
                "that has = or a comma in quotes: key=['a=1']"
            ) from error
    else:
        if name != "resume" or not override.is_sweep_override():  # no sweep resumes a run
            return override
    if name in _LISTS and value.startswith("[") and value.endswith("]"):
        value = f"[{','.join(map(quote, value[1:-1].split(',')))}]"
    else:
        value = quote(value)
    try:
        (override,) = OverridesParser.create().parse_overrides([f"{key}={value}"])
    except HydraException as error:
        raise UsageError(
            f"{word!r} cannot be read; expected key=value, with its brackets closed and a text "
            "that has = or a comma in quotes: key=['a=1']"
        ) from error
    return override


def quote(value: str) -> str:
    """Return a text in the quotes of Hydra's grammar; a text in quotes keeps its own."""
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return value
    return _in_quotes(value)


def _in_quotes(value: str) -> str:
    value = re.sub(r"(\\*)'", r"\1\1\'", value)
    return f"'{value}{value[len(value.rstrip(chr(92))) :]}'"


def shell_word(key: str, value: object) -> str:
    """Return `key=value` as it is typed in a shell, for a value that is taken as it stands."""
    word = f"{key}={value}"
    try:
        same = values([word])[key] == str(value)
    except UsageError:
        same = False
    return shlex.quote(word if same else f"{key}={_in_quotes(str(value))}")


def keys(overrides: list[str]) -> set[str]:
    """Return the names of the options and groups that are overridden."""
    return {override.key_or_group for override in parse(overrides)}


def values(overrides: list[str]) -> dict[str, Any]:
    """Return the overridden values, by the names of the options."""
    return {override.key_or_group: override.value() for override in parse(overrides)}


def text_of(override: Override) -> str:
    return override.input_line or ""


@functools.cache
def groups() -> dict[str, str | None]:
    """Read the groups of training and their default choices: the folders in train.yaml's defaults.

    A group whose default is None is optional: a config may be without it.
    """
    listed = OmegaConf.load(config_folder() / "train.yaml").defaults
    choices = [pair for entry in listed if isinstance(entry, DictConfig) for pair in entry.items()]
    return {str(key): choice for key, choice in choices if (config_folder() / str(key)).is_dir()}


def is_group(override: Override) -> bool:
    return override.key_or_group in groups()


def hydra_word(override: Override) -> str:
    """Return an override as Hydra takes it, which leaves out an optional group by a `~`."""
    if is_group(override) and override.value() is None:
        return f"~{override.key_or_group}"
    return text_of(override)


def check_choice(override: Override) -> None:
    group, value = override.key_or_group, override.value()
    known = [f.stem for f in (config_folder() / group).glob("*.yaml")]
    if override.is_sweep_override() or (value is None and groups()[group] is None):
        return
    if override.is_add() or value not in known:
        shown = "null" if value is None else _shown(value)
        raise UsageError(f"{group}={shown} is unknown{nearest(shown, known)}")


def _shown(value: Any) -> str:
    """Return a value as the user wrote it, without the quotes."""
    return str(getattr(value, "text", value))
