"""The pages that `--help` prints: a config file's options, its defaults and its comments."""

from __future__ import annotations

import re
from typing import Any

from omegaconf import ListConfig, OmegaConf

from metalearn.config import config_folder, groups


def purpose(name: str) -> str:
    """Return the first line of a config file, which says what it is for."""
    return _text(name).splitlines()[0].removeprefix("# ")


def verb_page(verb: str, purpose: str) -> str:
    """Return the help of a verb with one config file, `configs/VERB.yaml`."""
    lines = [f"metalearn {verb} [key=value ...]      {purpose}", ""]
    if verb == "train":
        lines += ["Choices (key=name):"]
        for group in sorted(groups()):
            names = ", ".join(sorted(f.stem for f in (config_folder() / group).glob("*.yaml")))
            lines.append(f"  {group:11}{names}")
        lines += [
            "",
            "Each choice brings options of its own: tasks.ways=20 tasks.shots=5 problem.prox=0.5",
            "metagrad.inner.steps=10 metagrad.linear_solver.max_iters=3 optimiser.lr=1e-4 ...",
            "Own images: metalearn train data=PATH (tasks=images tasks.dataset.source=PATH)",
            "Data that has moved: metalearn train resume=RUN source=PATH",
            "A sweep: metalearn train -m seed=0,1,2 metagrad=maml,imaml",
            "",
        ]
    body = re.split(r"^hydra:\n", _text(verb), flags=re.MULTILINE)[0]
    body = re.sub(r"^defaults:\n(?:  .*\n)*", "", body, flags=re.MULTILINE)
    return "\n".join([*lines, "Options and defaults:", *_options(body)])


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
