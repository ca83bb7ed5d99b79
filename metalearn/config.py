"""Configs by Hydra: composed from `configs/`, and refused in one sentence where they are wrong."""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from metalearn.errors import UsageError
from metalearn.interpolation import resolved, resolver_call

PACKAGE = Path(__file__).resolve().parent

# What an option takes whose default is null, by the last part of its name.
_NULLABLE: dict[str, type] = {
    **dict.fromkeys(("threads", "queries", "steps", "truncate", "distinct"), int),
    **dict.fromkeys(("ways", "shots"), int),
    **dict.fromkeys(("clip_norm", "prox_head", "tol", "step_size"), float),
    **dict.fromkeys(("name", "run_dir", "resume", "init_from", "source"), str),
    **dict.fromkeys(("checkpoint", "results", "out"), str),
    "transductive": bool,
}
_ITEMS = {"inner_steps": 0}  # such as a list holds whose default is []; others hold texts
# What takes them checks them.
_OF_SEVERAL_TYPES = ("metagrad.checkpoint", "checkpoint", "learn_rates")
_HYDRAS = ("hydra.", "hydra/")
_OF_HYDRA = ("launcher", "sweeper")  # what a sweep may choose
_LONGEST_NAME = 100
_SEEDS = 2**32  # NumPy takes no larger one


def config_folder() -> Path:
    """`configs/` of the checkout, or the copy inside an installed package."""
    inside = PACKAGE / "configs"
    return inside if inside.is_dir() else PACKAGE.parent / "configs"


def compose(verb: str, overrides: list[str]) -> DictConfig:
    """The config of a verb with a user's overrides.

    Raises:
        UsageError: an unknown key or choice (with the nearest valid one), a value of another type,
            or words that are no key=value.
    """
    parsed = parse(overrides)
    groups = [o for o in parsed if _is_group(o)]
    for override in groups:
        _check_choice(override)
    base = _composed(verb, [_hydra_word(o) for o in groups if not o.is_sweep_override()])
    for override in parsed:
        if override.is_sweep_override():
            raise UsageError(f"{text_of(override)}; a sweep needs -m, and a list is key=[a,b]")
    own = [o for o in parsed if not _is_group(o) and not o.key_or_group.startswith(_HYDRAS)]
    for override in own:
        _check_value(override, base)
    config = _composed(verb, [_hydra_word(o) for o in parsed])
    _check_references(own, base, config)
    choices = config.hydra.runtime.choices
    with open_dict(config):
        config.name = run_name(config, choices)
        del config["hydra"]
    return config


def plain(verb: str, overrides: list[str]) -> DictConfig:
    """The config of a verb that has no groups to choose from; raises as `compose` does."""
    config = OmegaConf.load(config_folder() / f"{verb}.yaml")
    assert isinstance(config, DictConfig)
    return overridden(config, overrides, verb)


def overridden(
    config: DictConfig, overrides: list[str], verb: str, like: DictConfig | None = None
) -> DictConfig:
    """The config of `verb` with a user's overrides, in place; raises as `compose` does.

    Args:
        like: the same options, whose values' types are to be kept; None: those of `config`. A list
            that is empty there tells no type.
    """
    parsed, base = parse(overrides), (config if like is None else like).copy()
    for override in parsed:
        if override.is_sweep_override():
            raise UsageError(f"{text_of(override)}; {verb} takes one value at a time")
        _check_value(override, base)
    try:
        for override in parsed:
            OmegaConf.update(config, override.key_or_group, override.value())
        resolved(config)
    except OmegaConfBaseException as error:
        raise UsageError(" ".join(str(error).split())) from error
    _check_references(parsed, base, config)
    return config


def keys(overrides: list[str]) -> set[str]:
    """The names of the options and choices that a user gave."""
    return {override.key_or_group for override in parse(overrides)}


def values(overrides: list[str]) -> dict[str, Any]:
    """What a user gave, by the names of the options."""
    return {override.key_or_group: override.value() for override in parse(overrides)}


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
    return checked(config, str(path), verb)


def checked(config: Any, where: str, verb: str) -> DictConfig:
    """Check and complete a saved config of `verb`, which anyone may have altered since.

    An option added since the config was saved takes its default in configs/VERB.yaml, which means
    "as before". A group whose default is null may be absent.

    Args:
        config: a mapping or a DictConfig; it is not changed.
        where: the file that holds the config, for the error.

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
        call = resolver_call(OmegaConf.to_container(config))
        if call is None:
            resolved(config)
    except UsageError as error:
        raise UsageError(f"{where}: {error}, or {mend}") from error
    except OmegaConfBaseException as error:
        raise UsageError(f"{where} cannot be read as a config; {mend}") from error
    if call is not None:
        raise UsageError(f"{where} calls a resolver, {call}; {mend}")
    for key, choice in groups().items():
        options = config.get(key)
        if not isinstance(options, DictConfig) and (choice is not None or options is not None):
            raise UsageError(f"{where} lacks {key}; {mend}")
    for key, default in _flatten(OmegaConf.create(read_defaults(verb))).items():
        if default is ...:
            if not isinstance(OmegaConf.select(config, key, default={}), dict | DictConfig):
                raise UsageError(f"{where} lacks the options of {key}; {mend}")
            continue
        try:
            value = OmegaConf.select(config, key, default=default)
            _check_type(f"{key}={value}", key, value, default)
        except (UsageError, OmegaConfBaseException) as error:
            raise UsageError(f"{where}: {' '.join(str(error).split())}; {mend}") from error
        OmegaConf.update(config, key, value, force_add=True)
    return config


def read_defaults(verb: str) -> dict[str, Any]:
    """Read the options of configs/VERB.yaml with their defaults, without its groups."""
    plain: Any = OmegaConf.to_container(OmegaConf.load(config_folder() / f"{verb}.yaml"))
    return {key: value for key, value in plain.items() if key not in ("defaults", "hydra")}


def _check_references(given: list[Override], base: DictConfig, config: DictConfig) -> None:
    """Refuses a value by another option's name, such as ${prox}, that is not of its own type."""
    flat = _flatten(base)
    for override in given:
        key = override.key_or_group
        if "${" in text_of(override) and flat.get(key, ...) is not ...:
            _check_type(text_of(override), key, OmegaConf.select(config, key), flat[key])


def run_name(config: DictConfig, choices: Any) -> str:
    """The name of a run, from what was chosen where it is not given."""
    chosen = config.name or choices.get("experiment")
    name = str(chosen or f"{choices['tasks']}_{choices['metagrad']}")
    if not name.isprintable() or "/" in name or name.startswith(".") or len(name) > _LONGEST_NAME:
        raise UsageError(
            f"name={name}; expected at most {_LONGEST_NAME} printable characters, no / among them "
            "and no dot before them: folders are named after it"
        )
    return name


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or what is known where nothing is near."""
    known = sorted(set(known))
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if not close:
        by_end = [k for k in known if k.rsplit(".", 1)[-1] == word.rsplit(".", 1)[-1]]
        close = by_end[:1]
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(known)}"


def check_known(name: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises UsageError where the list option `name` has a value that is none of `known`."""
    for value in given:
        if value not in known:
            raise UsageError(f"{name} has {value!r}{nearest(value, known)}")


def _composed(verb: str, overrides: list[str]) -> DictConfig:
    try:
        with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
            config = hydra.compose(verb, overrides, return_hydra_config=True)
        own = [str(key) for key in config if key != "hydra"]
        resolved(OmegaConf.masked_copy(config, own))
        return config
    except InterpolationKeyError as error:
        raise UsageError(_does_not_fit(error, config.hydra.runtime.choices)) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(" ".join(str(error).split())) from error


def _does_not_fit(error: InterpolationKeyError, choices: Any) -> str:
    """One choice takes a value of another's that has none: model.ways of tasks=sinusoid."""
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


def parse(overrides: list[str]) -> list[Override]:
    """What a user gave; raises UsageError where a word is no key=value."""
    parsed = []
    for word in overrides:
        try:
            (override,) = OverridesParser.create().parse_overrides([word])
        except HydraException as error:
            raise UsageError(f"{word!r} cannot be read; expected key=value") from error
        if not override.key_or_group:
            raise UsageError(f"{word!r} names no option; expected key=value")
        # In the word too, of which a sweep's value shows its choices only later; in the value too,
        # which a word may hold as $\{ and \:.
        if call := resolver_call([word, override.value()]):
            raise UsageError(
                f"{word!r} calls a resolver, {call}; a value refers to options only: ${{prox}}"
            )
        if override.key_or_group.startswith(_HYDRAS) and (
            not override.key_or_group[len("hydra.") :].startswith(_OF_HYDRA) or "_target_" in word
        ):
            raise UsageError(f"{word!r} is no option; of Hydra's own only launcher and sweeper are")
        if override.is_delete():
            raise UsageError(f"{word!r} takes an option away; give it a value, key=value")
        parsed.append(override)
    return parsed


@functools.cache
def groups() -> dict[str, str | None]:
    """Read the groups of training and their default choices: the folders in train.yaml's defaults.

    A group whose default is None is optional: a config may be without it.
    """
    listed = OmegaConf.load(config_folder() / "train.yaml").defaults
    choices = [pair for entry in listed if isinstance(entry, DictConfig) for pair in entry.items()]
    return {str(key): choice for key, choice in choices if (config_folder() / str(key)).is_dir()}


def _is_group(override: Override) -> bool:
    return override.key_or_group in groups()


def _hydra_word(override: Override) -> str:
    """Return an override as Hydra takes it, which leaves out an optional group by a `~`."""
    if _is_group(override) and override.value() is None:
        return f"~{override.key_or_group}"
    return text_of(override)


def text_of(override: Override) -> str:
    return override.input_line or ""


def _check_choice(override: Override) -> None:
    group, value = override.key_or_group, override.value()
    known = [f.stem for f in (config_folder() / group).glob("*.yaml")]
    if override.is_sweep_override() or (value is None and groups()[group] is None):
        return
    if override.is_add() or value not in known:
        shown = "null" if value is None else _shown(value)
        raise UsageError(f"{group}={shown} is unknown{nearest(shown, known)}")


def _flatten(config: DictConfig) -> dict[str, Any]:
    """Every option's default by its name: None where it has none, ... where it has options."""
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


def _check_value(override: Override, config: DictConfig) -> None:
    flat = _flatten(config)
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
    _check_type(word, key, value, flat[key])


def _may_be_null(config: DictConfig, key: str) -> bool:
    """Whether the class that takes a group of options can do without."""
    parent, _, name = key.rpartition(".")
    target = OmegaConf.select(config, f"{parent}._target_") if parent else None
    if target is None:
        return False
    return type(None) in get_args(get_type_hints(hydra.utils.get_object(target)).get(name))


def _check_type(word: str, key: str, value: Any, default: Any) -> None:
    """Refuses a value, written as `word`, that is not of its option's type."""
    name = key.rpartition(".")[2]
    wanted = type(default) if default is not None else _NULLABLE.get(name)
    if wanted is None or key in _OF_SEVERAL_TYPES or (default is None and value is None):
        return
    if wanted is ListConfig:
        if not isinstance(value, list | ListConfig):
            raise UsageError(f"{word}; expected a list, such as {default or '[a,b]'}")
        for item in value:
            _check_type(word, key, item, default[0] if default else _ITEMS.get(name, ""))
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


def _shown(value: Any) -> str:
    """A value as the user wrote it, without the quotes."""
    return str(getattr(value, "text", value))
