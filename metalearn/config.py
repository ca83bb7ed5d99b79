"""Configs by Hydra: composed from `configs/`, and refused in one sentence where they are wrong."""

from __future__ import annotations

import difflib
import itertools
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from metalearn.errors import UsageError

PACKAGE = Path(__file__).resolve().parent


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
    parsed = _parse(overrides)
    groups = [o for o in parsed if _is_group(o)]
    for override in groups:
        _check_choice(override)
    base = _composed(verb, [_text(o) for o in groups])
    flat = _flatten(base)
    for override in parsed:
        if not _is_group(override):
            _check_value(override, flat)
    config = _composed(verb, overrides)
    choices = config.hydra.runtime.choices
    with open_dict(config):
        config.name = _name(config, choices)
        del config["hydra"]
    return config


def plain(verb: str, overrides: list[str]) -> DictConfig:
    """The config of a verb that has no groups to choose from; raises as `compose` does."""
    config = OmegaConf.load(config_folder() / f"{verb}.yaml")
    assert isinstance(config, DictConfig)
    flat = _flatten(config)
    for override in _parse(overrides):
        _check_value(override, flat)
        OmegaConf.update(config, override.key_or_group, override.value())
    return config


def jobs(overrides: list[str]) -> Iterable[list[str]]:
    """The overrides of each job of a sweep, `seed=0,1` giving two."""
    parsed = _parse(overrides)
    options = [
        [f"{o.key_or_group}={v}" for v in o.sweep_string_iterator()]
        if o.is_sweep_override()
        else [_text(o)]
        for o in parsed
    ]
    return [list(job) for job in itertools.product(*options)]


def multirun(verb: str, overrides: list[str], run: Callable[[DictConfig], int]) -> int:
    """Runs a sweep by Hydra's own launcher; the worst exit status of its jobs."""
    statuses: list[int] = []

    def job(config: DictConfig) -> None:
        hydra_config = HydraConfig.get()
        name = _name(config, hydra_config.runtime.choices)
        config.name = f"{name}-{hydra_config.job.num}"
        try:
            statuses.append(run(config))
        except UsageError as error:
            print(f"metalearn: {error}", file=sys.stderr)
            statuses.append(2)

    argv = sys.argv
    sys.argv = ["metalearn", "--multirun", *overrides]
    try:
        hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=verb)(job)()
    finally:
        sys.argv = argv
    return max(statuses, default=0)


def _name(config: DictConfig, choices: Any) -> str:
    chosen = config.name or choices.get("experiment")
    return str(chosen or f"{choices['tasks']}_{choices['metagrad']}")


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or what is known where nothing is near."""
    known = sorted(set(known))
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if not close:
        by_end = [k for k in known if k.rsplit(".", 1)[-1] == word.rsplit(".", 1)[-1]]
        close = by_end[:1]
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(known)}"


def help_page(verb: str, purpose: str) -> str:
    """The verb's options with their defaults and the comments of its config file."""
    folder = config_folder()
    text = (folder / f"{verb}.yaml").read_text()
    body = re.split(r"^hydra:\n", text, flags=re.MULTILINE)[0]
    body = re.sub(r"^defaults:\n(?:  .*\n)*", "", body, flags=re.MULTILINE)
    lines = [f"metalearn {verb} [key=value ...]      {purpose}", ""]
    if verb == "train":
        lines += ["Choices (key=name):"]
        for group in sorted(p for p in folder.iterdir() if p.is_dir()):
            names = ", ".join(sorted(f.stem for f in group.glob("*.yaml")))
            lines.append(f"  {group.name:11}{names}")
        lines += [
            "",
            "Each choice brings options of its own: tasks.ways=20 tasks.shots=5 prox=0.5",
            "metagrad.inner.steps=10 metagrad.linear_solver.max_iters=3 optimiser.lr=1e-4 ...",
            "A sweep: metalearn train -m seed=0,1,2 metagrad=maml,imaml",
            "",
        ]
    return "\n".join([*lines, "Options and defaults:", *(f"  {x}" for x in body.splitlines()[1:])])


def _composed(verb: str, overrides: list[str]) -> DictConfig:
    try:
        with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
            config = hydra.compose(verb, overrides, return_hydra_config=True)
        for key in list(config):
            if key != "hydra":
                OmegaConf.to_container(OmegaConf.create({"x": config._get_node(key)}))
        return config
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(" ".join(str(error).split())) from error


def _parse(overrides: list[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise UsageError(
            f"{' '.join(overrides)!r} cannot be read; expected words of the form key=value"
        ) from error


def _is_group(override: Override) -> bool:
    return (config_folder() / override.key_or_group).is_dir()


def _text(override: Override) -> str:
    return override.input_line or ""


def _check_choice(override: Override) -> None:
    group, value = override.key_or_group, override.value()
    known = [f.stem for f in (config_folder() / group).glob("*.yaml")]
    if value is not None and value not in known:
        raise UsageError(f"{group}={value} is unknown{nearest(str(value), known)}")


def _flatten(config: DictConfig) -> dict[str, Any]:
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
                found[name] = ... if OmegaConf.is_missing(node, key) else node[key]

    walk(config, "")
    return found


def _check_value(override: Override, flat: dict[str, Any]) -> None:
    key = override.key_or_group
    if override.is_delete() or override.is_add() or key.startswith("hydra"):
        return
    if key not in flat:
        raise UsageError(f"{key} is no option{nearest(key, flat)}")
    default, value = flat[key], override.value()
    if override.is_sweep_override() or (isinstance(value, str) and value.startswith("${")):
        return
    wanted = {
        bool: ((bool,), "true or false"),
        int: ((int,), "a whole number"),
        float: ((int, float), "a number"),
        str: ((str,), "a word"),
    }.get(type(default))
    if wanted is None:
        return
    types, described = wanted
    if not isinstance(value, types) or (
        isinstance(value, bool) and default is not True and default is not False
    ):
        shown = getattr(value, "text", value)
        raise UsageError(f"{key}={shown}; expected {described}, such as {default}")
