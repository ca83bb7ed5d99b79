"""The types of options: an option takes values of the type of its default."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, get_args, get_type_hints

import hydra
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf

from metalearn.config.overrides import text_of
from metalearn.errors import UsageError, nearest

# What an option takes whose default is null, by the last part of its name.
_NULLABLE: dict[str, type] = {
    **dict.fromkeys(("threads", "queries", "steps", "truncate", "task_pool"), int),
    **dict.fromkeys(("ways", "shots", "inner_steps"), int),
    **dict.fromkeys(("clip_norm", "prox_head", "tol", "step_size"), float),
    **dict.fromkeys(("name", "run_dir", "resume", "init_from", "source"), str),
    **dict.fromkeys(("checkpoint", "results", "out", "support", "images"), str),
    **dict.fromkeys(("project", "entity", "group", "job_type", "notes", "method"), str),
    **dict.fromkeys(("transductive", "query_training", "invert"), bool),
    "loss": str,
}
_ITEMS = {"inner_steps": 0}  # such as a list holds whose default is []; others hold texts
# What takes them checks them.
_OF_SEVERAL_TYPES = (
    "metagrad.checkpoint",
    "checkpoint",
    "problem.learn_rates",
    "problem.adapt",
    "import",
    "frozen",
)
_SEEDS = 2**32  # NumPy takes no larger one


def flatten(config: DictConfig) -> dict[str, Any]:
    """Return the default of every option by its name: `...` for a group of options."""
    found: dict[str, Any] = {}

    def walk(node: DictConfig, prefix: str) -> None:
        for key in node:
            name = prefix + str(key)
            if name == "hydra":
                continue
            child = node._get_node(key)
            if isinstance(child, DictConfig) and not child._is_none():
                found[name] = ...
                walk(child, f"{name}.")
            else:
                found[name] = None if OmegaConf.is_missing(node, key) else node[key]

    walk(config, "")
    return found


def check_values(overrides: Iterable[Override], config: DictConfig) -> None:
    """Raise UsageError if an override names no option of the config, or has another type."""
    flat = flatten(config)
    for override in overrides:
        _check_value(override, config, flat)


def _check_value(override: Override, config: DictConfig, flat: dict[str, Any]) -> None:
    key, value, word = override.key_or_group, override.value(), text_of(override)
    if override.is_add():
        if f"{key.rpartition('.')[0]}._target_" not in flat:
            raise UsageError(
                f"{word} adds an option, and nothing takes it; write key=value, and + only for a "
                "further argument of a class, as in +optimiser.weight_decay=0.1"
            )
        return
    if key not in flat:
        raise UsageError(f"{key} is no option{nearest(key, flat)}")
    if override.is_sweep_override() or (isinstance(value, str) and value.startswith("${")):
        return
    if flat[key] is ...:
        if value is not None or not _may_be_null(config, key):
            own = next(k for k in flat if k.startswith(f"{key}.") and "._" not in k)
            raise UsageError(f"{word}; {key} has options of its own: give them one by one ({own}=)")
        return
    check_type(word, key, value, flat[key])


def _may_be_null(config: DictConfig, key: str) -> bool:
    """Return True if the class that takes a group of options also takes None."""
    parent, _, name = key.rpartition(".")
    target = OmegaConf.select(config, f"{parent}._target_") if parent else None
    if target is None:
        return False
    return type(None) in get_args(get_type_hints(hydra.utils.get_object(target)).get(name))


def check_type(word: str, key: str, value: Any, default: Any) -> None:
    """Raise UsageError if a value, written as `word`, is not of its option's type."""
    name = key.rpartition(".")[2]
    wanted = type(default) if default is not None else _NULLABLE.get(name)
    if wanted is None or key in _OF_SEVERAL_TYPES or (default is None and value is None):
        return
    if wanted is ListConfig:
        if not isinstance(value, list | ListConfig):
            example = default or ("[1,5]" if name in _ITEMS else "[a,b]")
            raise UsageError(f"{word}; expected a list, such as {example}")
        for item in value:
            check_type(word, key, item, default[0] if default else _ITEMS.get(name, ""))
        return
    types, described = {
        bool: ((bool,), "true or false"),
        int: ((int,), "a whole number"),
        float: ((int, float), "a number"),
        str: ((str,), "text (a number in quotes: \"'1'\")"),
    }[wanted]
    if not isinstance(value, types) or (wanted is not bool and isinstance(value, bool)):
        example = {"": "", None: ", or null"}.get(default, f", such as {default}")
        raise UsageError(f"{word}; expected {described}{example}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{word}; expected a finite number")
    if name in ("seed", "seeds") and isinstance(value, int) and not 0 <= value < _SEEDS:
        raise UsageError(f"{word}; expected a whole number from 0 to {_SEEDS - 1}")
