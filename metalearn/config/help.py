"""The pages that `--help` prints: a config file's options, its defaults and its comments."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from omegaconf import ListConfig, OmegaConf

from metalearn.config import config_folder, groups, parse, read_defaults
from metalearn.config.overrides import check_choice, is_group
from metalearn.errors import UsageError, nearest


def purpose(name: str) -> str:
    """Return the first line of a config file, which says what it is for."""
    return _text(name).splitlines()[0].removeprefix("# ")


def verb_page(verb: str, purpose: str, words: Sequence[str] = ()) -> str:
    """Return the help of a verb with one config file, `configs/VERB.yaml`.

    Args:
        words: the other words of the command line. For `train` each choice among them, such as
            metagrad=imaml, shows its own options in the place of the page.

    Raises:
        UsageError: a word is neither a choice nor an option of `train`.
    """
    lines = [f"metalearn {verb} [key=value ...]      {purpose}", ""]
    if verb == "train":
        if chosen := _chosen([word for word in words if word not in ("-h", "--help")]):
            return "\n\n".join(_choice(group, name) for group, name in chosen)
        lines += ["Choices (key=name; metalearn train --help key=name shows its options):"]
        for group in sorted(groups()):
            names = ", ".join(sorted(f.stem for f in (config_folder() / group).glob("*.yaml")))
            lines.append(f"  {group:11}{names}")
        lines += [
            "",
            "Each choice has options of its own: tasks.ways=20 tasks.shots=5 problem.prox=0.5",
            "metagrad.inner.steps=10 metagrad.linear_solver.max_iters=3 optimiser.lr=1e-4 ...",
            "Own images: metalearn train data=PATH (tasks=images tasks.dataset.source=PATH)",
            "Data that has moved: metalearn train resume=RUN source=PATH",
            "A sweep: metalearn train -m seed=0,1,2 metagrad=maml,imaml",
            "",
        ]
    body = re.split(r"^hydra:\n", _text(verb), flags=re.MULTILINE)[0]
    body = re.sub(r"^defaults:\n(?:  .*\n)*", "", body, flags=re.MULTILINE)
    return "\n".join([*lines, "Options and defaults:", *_options(body)])


def _chosen(words: list[str]) -> list[tuple[str, str]]:
    """Return the groups and names of the choices among the words of `train`.

    Raises:
        UsageError: a word is neither a choice nor an option.
    """
    options = {*groups(), *read_defaults("train"), "data", "source"}
    found = []
    for override in parse(words):
        key = override.key_or_group
        if is_group(override):
            check_choice(override)
            name = override.value()
            if isinstance(name, str):
                found.append((key, name))
        elif key.split(".")[0] not in options:
            raise UsageError(f"{key} is no choice{nearest(key, groups())}")
    return found


def _choice(group: str, name: str) -> str:
    """Return a choice's purpose and options: its file, after the files that it builds on."""
    content = OmegaConf.load(config_folder() / group / f"{name}.yaml")
    defaults = OmegaConf.select(content, "defaults", default=[])
    bases = [word for word in defaults if isinstance(word, str) and word != "_self_"]
    hidden = r"# @package _global_|defaults: \[.*\]"
    lines = [x for x in _text(f"{group}/{name}").splitlines() if not re.fullmatch(hidden, x)]
    own = "\n".join([f"{group}={name}", *(f"  {line}" for line in lines)])
    return "\n\n".join([*(_choice(group, base) for base in bases), own])


def study_page(verb: str, name: str) -> str:
    """Return the help of a study: `configs/VERB/NAME.yaml`, and the options of every study."""
    own = re.split(r"^(?:expected_minutes|presets):", _text(f"{verb}/{name}"), flags=re.MULTILINE)[
        0
    ]
    own = re.sub(r"^_target_:.*\n", "", own, flags=re.MULTILINE)
    options = OmegaConf.load(config_folder() / verb / f"{name}.yaml")
    changes = OmegaConf.select(options, "presets.quick", default={}).items()
    quick = " ".join(_word(key, value) for key, value in changes)
    return "\n".join(
        [
            f"metalearn {verb} {name} [key=value ...]      {purpose(f'{verb}/{name}')}",
            "",
            "Options and defaults:",
            *_options(own),
            "",
            "Options of every study:",
            *_options(_text("study")),
            "",
            f"preset=quick stands for {quick}",
        ]
    )


def _word(key: Any, value: Any) -> str:
    """Return an option as it is given on a command line."""
    if not isinstance(value, ListConfig):
        return f"{key}={value}"
    items = [v if re.fullmatch(r"[\w.-]+", v) else f"'{v}'" for v in map(str, value)]
    word = f"{key}=[{','.join(items)}]"
    return f'"{word}"' if "'" in word else word


def _text(name: str) -> str:
    return (config_folder() / f"{name}.yaml").read_text(encoding="utf-8")


def _options(body: str) -> list[str]:
    """Return the lines of a config file after its first, which says what it is for."""
    return [f"  {line}" for line in body.splitlines()[1:]]
