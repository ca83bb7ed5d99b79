"""Configs, composed by Hydra from `configs/`; a mistake gets one sentence."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from metalearn.config.build import import_named
from metalearn.config.fitting import fit_targets, leave_prox_out
from metalearn.config.interpolation import resolved, resolver_call
from metalearn.config.old_names import rename_overrides, rename_saved, say
from metalearn.config.overrides import (
    HYDRAS,
    check_choice,
    config_folder,
    groups,
    hydra_word,
    is_group,
    parse,
    text_of,
)
from metalearn.config.types import check_type, check_values, flatten
from metalearn.errors import UsageError

_LONGEST_NAME = 100
OBJECTS = "objects"
"""The option of a run that Python made: a description of its objects, which nothing builds."""


def compose(verb: str, overrides: list[str]) -> DictConfig:
    """Return the config of a verb with a user's overrides.

    Raises:
        UsageError: an unknown key or choice (with the nearest valid one), a value of another type,
            or words that are no key=value.
    """
    parsed = parse(rename_overrides(overrides))
    for override in parsed:
        if override.key_or_group == "import" and override.value() is not None:
            import_named(override.value())
    groups = [o for o in parsed if is_group(o)]
    for override in groups:
        check_choice(override)
    # Of Hydra's own words, a launcher's name chooses a group of options too.
    choosing = [o for o in parsed if is_group(o) or o.key_or_group.startswith(HYDRAS)]
    words = [hydra_word(o) for o in choosing if not o.is_sweep_override()]
    base = _composed(verb, tuple(words), config_folder())
    for override in parsed:
        if override.is_sweep_override():
            raise UsageError(f"{text_of(override)}; a sweep needs -m, and a list is key=[a,b]")
    own = [o for o in parsed if not is_group(o) and not o.key_or_group.startswith(HYDRAS)]
    check_values(own, base)
    config = base.copy()
    with _explained(config):
        for override in own:
            if override.is_add() and OmegaConf.select(config, override.key_or_group) is not None:
                raise UsageError(f"{text_of(override)} adds an option that is there; leave out +")
            key, value = override.key_or_group, override.value()
            OmegaConf.update(config, key, value, force_add=override.is_add())
        _check_resolved(config)
    _check_references(own, base, config)
    fit_targets(config, [o.key_or_group for o in own])
    choices = config.hydra.runtime.choices
    with open_dict(config):
        if "problem" in choices and not _has_prox(choices.problem, config_folder()):
            leave_prox_out(config.problem, [o.key_or_group for o in own])
        config.name = run_name(config, choices)
        if "metagrad._target_" not in [o.key_or_group for o in own]:
            config.tracking.method = config.tracking.method or choices.get("metagrad")
        del config["hydra"]
    return config


def plain(verb: str, overrides: list[str]) -> DictConfig:
    """Return the config of a verb without groups; raise as `compose` does."""
    config = OmegaConf.load(config_folder() / f"{verb}.yaml")
    assert isinstance(config, DictConfig)
    config = overridden(config, overrides, verb)
    if config.get("import") is not None:
        import_named(config["import"])
    return config


def overridden(
    config: DictConfig, overrides: list[str], verb: str, like: DictConfig | None = None
) -> DictConfig:
    """Override the config of `verb` in place and return it; raise as `compose` does.

    Args:
        like: the same options, whose values' types are to be kept; None: those of `config`. A list
            that is empty there tells no type.
    """
    parsed, base = parse(overrides), (config if like is None else like).copy()
    for override in parsed:
        if override.is_sweep_override():
            raise UsageError(f"{text_of(override)}; {verb} takes one value at a time")
    check_values(parsed, base)
    try:
        for override in parsed:
            OmegaConf.update(config, override.key_or_group, override.value())
        resolved(config)
    except OmegaConfBaseException as error:
        raise UsageError(" ".join(str(error).split())) from error
    _check_references(parsed, base, config)
    return config


def saved(path: Path, verb: str) -> DictConfig:
    """Read the config that a run of `verb` left in a file, completed as `checked` does.

    Raises:
        UsageError: the file is absent or damaged, or `checked` refuses its config.
    """
    try:
        config = OmegaConf.load(path)
    except Exception as error:  # YAML's, OmegaConf's and the file system's errors share no class
        raise UsageError(
            f"{path} is absent or cannot be read as a config; put back the run's own, or train anew"
        ) from error
    if isinstance(config, DictConfig) and config.get("parts") == "measured":
        say("parts=measured", "micro_batches=null")
    return checked(config, str(path), verb)


def checked(config: Any, where: str, verb: str, from_python: bool = False) -> DictConfig:
    """Check and complete a saved config of `verb`, which anyone may have altered since.

    An option added since the config was saved takes its default in configs/VERB.yaml, which means
    "as before". A group whose default is null may be absent.

    Args:
        config: a mapping or a DictConfig; it is not changed.
        where: the file that holds the config, for the error.
        from_python: the run is expected to be one of `metalearn.train`, whose config describes its
            objects, and has no groups to build them from.

    Returns:
        A new config with every option of configs/VERB.yaml.

    Raises:
        UsageError: a group is absent, an option is of another type, or a value calls a resolver.
    """
    mend = "put back the run's own, or train anew"
    if not isinstance(config, dict | DictConfig):
        raise UsageError(f"{where} holds no options; {mend}")
    try:
        config = OmegaConf.create(config) if isinstance(config, dict) else config.copy()
        if verb == "train":
            config = rename_saved(config)
        call = resolver_call(OmegaConf.to_container(config))
        if call is None:
            resolved(config)
    except UsageError as error:
        raise UsageError(f"{where}: {error}, or {mend}") from error
    except OmegaConfBaseException as error:
        raise UsageError(f"{where} cannot be read as a config; {mend}") from error
    if call is not None:
        raise UsageError(f"{where} calls a resolver, {call}; {mend}")
    if (OBJECTS in config) is not from_python:
        raise UsageError(
            f"{where} was trained in Python by metalearn.train: expected a run of `metalearn "
            "train`, whose config says how to build its problem and tasks. Judge it by test= of "
            "metalearn.train(..., resume=True)"
            if OBJECTS in config
            else f"{where} was trained by `metalearn train`: expected a run of metalearn.train in "
            "Python. Go on with it by `metalearn train resume=FOLDER`"
        )
    for key, choice in ({} if from_python else groups()).items():
        options = config.get(key)
        if not isinstance(options, DictConfig) and (choice is not None or options is not None):
            raise UsageError(f"{where} lacks {key}; {mend}")
    for key, default in flatten(OmegaConf.create(read_defaults(verb))).items():
        if default is ...:
            if not isinstance(OmegaConf.select(config, key, default={}), dict | DictConfig):
                raise UsageError(f"{where} lacks the options of {key}; {mend}")
            continue
        try:
            value = OmegaConf.select(config, key, default=default)
            check_type(f"{key}={value}", key, value, default)
        except (UsageError, OmegaConfBaseException) as error:
            raise UsageError(f"{where}: {' '.join(str(error).split())}; {mend}") from error
        OmegaConf.update(config, key, value, force_add=True)
    return config


def read_defaults(verb: str) -> dict[str, Any]:
    """Read the options of configs/VERB.yaml with their defaults, without its groups."""
    plain: Any = OmegaConf.to_container(OmegaConf.load(config_folder() / f"{verb}.yaml"))
    return {key: value for key, value in plain.items() if key not in ("defaults", "hydra")}


def _check_references(given: list[Override], base: DictConfig, config: DictConfig) -> None:
    """Raise UsageError if a reference such as ${problem.prox} has a value of another type."""
    flat = flatten(base)
    for override in given:
        key = override.key_or_group
        if "${" in text_of(override) and flat.get(key, ...) is not ...:
            check_type(text_of(override), key, OmegaConf.select(config, key), flat[key])


def run_name(config: DictConfig, choices: Any) -> str:
    """Return the name of a run; without `name` it is made of the choices."""
    chosen = config.name or choices.get("experiment")
    name = str(chosen or f"{choices['tasks']}_{choices['metagrad']}")
    if not name.isprintable() or "/" in name or name.startswith(".") or len(name) > _LONGEST_NAME:
        raise UsageError(
            f"name={name}; expected at most {_LONGEST_NAME} printable characters, no / among them "
            "and no dot before them: folders are named after it"
        )
    return name


@functools.lru_cache
def _composed(verb: str, words: tuple[str, ...], folder: Path) -> DictConfig:
    """Compose the chosen groups; the config is shared, so that it must not be changed."""
    try:
        with _own_hydra(folder):
            config = hydra.compose(verb, list(words), return_hydra_config=True)
    except HydraException as error:
        raise UsageError(" ".join(str(error).split())) from error
    with _explained(config):
        _check_resolved(config)
    return config


@functools.lru_cache
def _has_prox(problem: str, folder: Path) -> bool:
    """Return whether the file of a problem= sets prox, without any metagrad=."""
    with _own_hydra(folder):
        return "prox" in hydra.compose(f"problem/{problem}").problem


def _check_resolved(config: DictConfig) -> None:
    resolved(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]))


@contextmanager
def _explained(config: DictConfig) -> Iterator[None]:
    """Raise UsageError in place of OmegaConf's errors."""
    try:
        yield
    except InterpolationKeyError as error:
        raise UsageError(_does_not_fit(error, config.hydra.runtime.choices)) from error
    except OmegaConfBaseException as error:
        raise UsageError(" ".join(str(error).split())) from error


@contextmanager
def _own_hydra(folder: Path) -> Iterator[None]:
    """Initialise Hydra on the folder of configs, and give a caller's own Hydra its place back."""
    state = GlobalHydra.instance()
    callers = state.hydra
    state.clear()
    try:
        with hydra.initialize_config_dir(str(folder), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = callers


def _does_not_fit(error: InterpolationKeyError, choices: Any) -> str:
    """Explain a reference that has no value, such as model.ways with tasks=sinusoid."""
    group = str(error.full_key).partition(".")[0]
    found = re.search(r"'(.+?)'", str(error))
    wanted = found[1] if found else ""
    giver = wanted.partition(".")[0]
    if group not in choices or giver not in choices:
        return f"{error.full_key} refers to {wanted}, which is no option"
    return (
        f"{group}={choices[group]} needs {wanted}, which {giver}={choices[giver]} has not; choose "
        f"another {group}" + (" (model=mlp_sinusoid)" if choices[giver] == "sinusoid" else "")
    )
