"""Configs: composed by Hydra from `configs/`, checked, and turned into objects."""

from metalearn.config.compose import (
    OBJECTS,
    checked,
    compose,
    overridden,
    plain,
    read_defaults,
    run_name,
    saved,
)
from metalearn.config.overrides import (
    PACKAGE,
    config_folder,
    groups,
    keys,
    parse,
    shell_word,
    text_of,
    values,
)

__all__ = [
    "OBJECTS",
    "PACKAGE",
    "checked",
    "compose",
    "config_folder",
    "groups",
    "keys",
    "overridden",
    "parse",
    "plain",
    "read_defaults",
    "run_name",
    "saved",
    "shell_word",
    "text_of",
    "values",
]
