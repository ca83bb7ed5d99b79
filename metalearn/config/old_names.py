"""The options that have been renamed: old overrides and saved configs are taken under new names."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

_PROBLEM = ("prox", "prox_head", "adapt", "transductive", "statistics", "learn_rates", "learn_prox")
TRAINING: Mapping[str, str] = {
    **{name: f"problem.{name}" for name in _PROBLEM},
    "parts": "micro_batches",
    "tasks.distinct": "tasks.task_pool",
}
"""The present name of each renamed option of `metalearn train`."""
STUDIES: Mapping[str, str] = {"words": "overrides"}
"""The present name of each renamed option of studies."""


def rename_overrides(overrides: Sequence[str], names: Mapping[str, str] = TRAINING) -> list[str]:
    """Return a user's overrides under the present names.

    Each old name is answered by one line on stderr that has the new one.
    """
    return [_renamed(word, names) for word in overrides]


def _renamed(word: str, names: Mapping[str, str]) -> str:
    word = re.sub(r"\$\{([\w.]+)\}", lambda found: f"${{{names.get(found[1], found[1])}}}", word)
    key, equals, value = word.partition("=")
    if names is TRAINING and key == "problem" and value in ("", "null") and equals:
        say(word, "problem=few_shot")
        return "problem=few_shot"
    if not equals or key not in names:
        return word
    say(f"{key}=", f"{names[key]}=")
    return f"{names[key]}={value}"


def say(old: str, new: str) -> None:
    """Print the line that answers an old name."""
    print(f"metalearn: {old} is now {new}", file=sys.stderr)


def rename_saved(config: DictConfig) -> DictConfig:
    """Return a saved config of `metalearn train` under the present names; it is changed in place.

    A problem that an earlier version called null or by its class takes its present target.
    """
    if "parts" in config:
        parts = config.pop("parts")
        config["micro_batches"] = None if parts == "measured" else parts
    tasks = config.get("tasks")
    if isinstance(tasks, DictConfig) and "distinct" in tasks:
        tasks["task_pool"] = tasks.pop("distinct")
    old: dict[str, Any] = {name: config.pop(name) for name in _PROBLEM if name in config}
    problem = config.get("problem")
    if isinstance(problem, DictConfig) and problem.get("_target_") != _OLD_HEAD:
        return config
    if problem is None and not old:
        return config
    if problem is None:
        own: dict[str, Any] = {"_target_": "metalearn.problems.build.few_shot", **old}
        own["rate_steps"] = OmegaConf.select(config, "metagrad.inner.steps")
    else:
        own = {str(name): value for name, value in problem.items()}
        own |= {name: old[name] for name in ("transductive", "statistics") if name in old}
        own["_target_"] = "metalearn.problems.build.convex_head"
    config["problem"] = own
    return config


_OLD_HEAD = "metalearn.problems.ConvexHead"
