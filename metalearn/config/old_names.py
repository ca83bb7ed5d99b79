"""The options that have been renamed: old overrides and saved configs are taken under new names."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

PROBLEM = ("prox", "prox_head", "adapt", "transductive", "statistics", "learn_rates", "learn_prox")
"""The options of training that became the problem's own: prox is now problem.prox."""


def rename_overrides(overrides: Sequence[str]) -> list[str]:
    """Return a user's overrides of `metalearn train` under the present names.

    Each old name is answered by one line on stderr that has the new one.
    """
    return [_renamed(word) for word in overrides]


def _renamed(word: str) -> str:
    old = "|".join(PROBLEM)
    word = re.sub(rf"\$\{{({old})\}}", r"${problem.\1}", word)
    if re.match(r"problem=(null)?$", word):
        _say("problem=null", "problem=few_shot")
        return "problem=few_shot"
    if found := re.match(rf"({old})=", word):
        _say(f"{found[1]}=", f"problem.{found[1]}=")
        return f"problem.{word}"
    return word


@functools.cache
def _say(old: str, new: str) -> None:
    print(f"metalearn: {old} is now {new}", file=sys.stderr)


def rename_saved(config: DictConfig) -> DictConfig:
    """Return a saved config of `metalearn train` under the present names; it is changed in place.

    A problem that an earlier version called null or by its class takes its present target.
    """
    old: dict[str, Any] = {name: config.pop(name) for name in PROBLEM if name in config}
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
