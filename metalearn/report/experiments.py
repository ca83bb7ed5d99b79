"""The experiment that a run follows, and the options in which the run differs from it."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from metalearn import config
from metalearn.config.interpolation import resolved
from metalearn.errors import UsageError

_NOT_ITS_OWN = (
    *("name", "seed", "steps", "device", "threads", "wandb", "test", "run_dir", "resume"),
    *("checkpoint_every", "keep_checkpoints", "keep_best", "tracking"),
)
"""The options that do not make another experiment. The page states the budget and test tasks."""


def read_config(path: Path, summary: Mapping[str, Any]) -> DictConfig | None:
    """Return the config of a run, None if it is not known; no interpolation of it is resolved."""
    saved = path.with_name("config.yaml")
    try:
        if path.name == "summary.json" and saved.is_file():
            found = OmegaConf.load(saved)
            return found if isinstance(found, DictConfig) else None
        _, *words = shlex.split(str(summary["command"]))
        own = words[words.index("train") + 1 :]
        return compose_words(*(word for word in own if word.partition("=")[0] not in _NOT_ITS_OWN))
    except Exception:  # YAML's, OmegaConf's, shlex's and the file system's errors share no class
        return None


@functools.cache
def compose_words(*words: str) -> DictConfig:
    composed: Any = OmegaConf.create(resolved(config.compose("train", list(words))))
    return composed


def read_data(own: DictConfig | None) -> tuple[str, int | None, int | None]:
    """Return the dataset, ways and shots of a config; "" and None if they are missing."""
    plain: Any = {} if own is None else OmegaConf.to_container(own)
    tasks = plain.get("tasks")
    tasks = tasks if isinstance(tasks, dict) else {}
    dataset = tasks.get("dataset")
    target = dataset.get("_target_") if isinstance(dataset, dict) else None
    name = str(target or "").rpartition(".")[2]
    return name, as_count(tasks.get("ways")), as_count(tasks.get("shots"))


def name_method(
    path: Path, summary: Mapping[str, Any], own: DictConfig | None, setting: str
) -> str:
    """Return the method of the run's experiment, or the run's name with the changes to it."""
    name, stem = str(summary["name"]), path.stem.partition("-seed")[0]
    if own is not None and own.get("init_from"):
        own = own.copy()  # a seed of a second training starts from its own seed of the first
        own["init_from"] = own["init_from"].removesuffix(f"-seed{summary.get('seed')}")
    changes = {
        e: _changes_to(e, own, path) for e in dict.fromkeys((name, stem)) if is_experiment(e)
    }
    for experiment, changed in changes.items():
        if changed == []:
            dataset = f"{setting.partition('_')[0]}_"
            return experiment.removeprefix(setting).removeprefix(dataset)
    if name not in changes:
        return name
    changed = changes[name] or ["its config is not known"]
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return f"{name}, changed: {', '.join(changed[:3])}{more}"


def is_experiment(experiment: str) -> bool:
    folder = config.config_folder() / "experiment"
    return experiment in {path.stem for path in folder.glob("*.yaml")}


def _changes_to(experiment: str, own: DictConfig | None, path: Path) -> list[str] | None:
    """Return the options in which a config differs from an experiment; None: it is not known."""
    if own is None:
        return None
    try:
        mine = config.checked(own, str(path), "train")
        base = compose_words(f"experiment={experiment}")
        plain = _options(mine), _options(base)
        if _have_same_keys(*plain):
            return _differences(*plain)
        from metalearn.config.canonical import canonicalise  # which imports what it compares

        return _differences(canonicalise(mine, _NOT_ITS_OWN), canonicalise(base, _NOT_ITS_OWN))
    except UsageError:
        return None


def _options(cfg: DictConfig) -> dict[str, Any]:
    """Return the options that make an experiment, without groups of null."""
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    dropped = {key for key in config.groups() if plain.get(key) is None}.union(_NOT_ITS_OWN)
    return {key: value for key, value in plain.items() if key not in dropped}


def _have_same_keys(own: Any, base: Any) -> bool:
    """Return True if the nodes of the same choice have the same options.

    A constructor's default then plays no part, since no option is left to it.
    """
    both = isinstance(own, dict) and isinstance(base, dict)
    if not both or own.get("_target_") != base.get("_target_"):
        return True
    return own.keys() == base.keys() and all(_have_same_keys(own[k], base[k]) for k in own)


def _differences(own: Any, base: Any, at: str = "") -> list[str]:
    """Return the names of the options that differ; a group's own name if it is another choice."""
    both = isinstance(own, dict) and isinstance(base, dict)
    if both and own.get("_target_") == base.get("_target_"):
        keys = dict.fromkeys([*own, *base])
        nested = [_differences(own.get(k), base.get(k), f"{at}.{k}") for k in keys]
        return [name for names in nested for name in names]
    return [] if own == base else [at.removeprefix(".")]


def as_count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
