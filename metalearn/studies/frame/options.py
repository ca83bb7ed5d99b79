"""The options of a study: configs/VERB/NAME.yaml, a preset, and the user's overrides."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from metalearn import config
from metalearn.config.old_names import STUDIES, rename_overrides
from metalearn.errors import UsageError, nearest
from metalearn.studies.frame.protocol import Study

if TYPE_CHECKING:
    from metalearn.studies.frame.publication import Publication

PRESETS = ("quick", "full")
NOT_ROWS = ("results", "name", "wandb", "measure", "extend", "share", "paper")
"""The options that have no effect on the rows."""


def names(verb: str) -> list[str]:
    """Return the names of a verb's studies."""
    return sorted(path.stem for path in (config.config_folder() / verb).glob("*.yaml"))


def study(verb: str, name: str, words: list[str]) -> tuple[Study, Publication, DictConfig]:
    """Return a study, its publication, and the options that all studies have.

    Args:
        verb: "bench" or "solve".
        name: the name of the study.
        words: the user's overrides, such as "steps=10".

    Raises:
        UsageError: an option is unknown or has an invalid value.
    """
    # These imports are slow, and a list of the studies does not need them.
    import pandas  # noqa: F401  # without it the error names the extra, not the study's class

    from metalearn.config.build import build, import_named
    from metalearn.studies.frame.publication import Publication

    words = rename_overrides(words, STUDIES)
    if sweeps := {"-m", "--multirun"}.intersection(words):
        raise UsageError(f"{sweeps.pop()}: {verb} {name} runs one study; give it lists, key=[a,b]")
    folder = config.config_folder()
    common, own = (
        OmegaConf.load(folder / "study.yaml"),
        OmegaConf.load(folder / verb / f"{name}.yaml"),
    )
    assert isinstance(common, DictConfig) and isinstance(own, DictConfig)
    presets, minutes = own.pop("presets", {}), own.pop("expected_minutes", {})
    chosen = config.values(words).get("preset", common.preset)
    if chosen not in PRESETS:
        raise UsageError(f"preset={chosen}{nearest(str(chosen), PRESETS)}")
    whole = OmegaConf.merge(common, own)
    merged = OmegaConf.merge(whole, presets.get(chosen) or {})
    assert isinstance(whole, DictConfig) and isinstance(merged, DictConfig)
    # A preset may empty a list. The study's own default then gives the type of its items.
    options = config.overridden(merged, words, f"{verb} {name}", like=whole)
    if options["import"] is not None:
        import_named(options["import"])

    common = OmegaConf.masked_copy(options, list(common))
    plain: Any = OmegaConf.to_container(options, resolve=True)
    # A study that needs a common option, such as the device, has it in its own file too.
    fields = {key: plain[key] for key in plain if key in own}
    if options.wandb not in ("offline", "online", "disabled"):
        raise UsageError(f"wandb={options.wandb}; expected 'offline', 'online' or 'disabled'")
    folder_name = name if options.name is None else str(options.name)
    if not re.fullmatch(r"\w[\w.-]*", folder_name):
        raise UsageError(
            f"name={folder_name!r}; expected a folder's own name: letters, digits, '_', '-' or '.'"
        )
    changed = {key.partition(".")[0] for key in config.keys(words)}.intersection(fields)
    publication = Publication(
        name=folder_name,
        options={key: value for key, value in plain.items() if key not in NOT_ROWS},
        results=Path(options.results or ("results" if chosen == "full" else "runs/quick")),
        scratch=Path("runs") / "studies",
        minutes=None if changed else minutes.get(chosen),
        quick_minutes=None if chosen == "quick" else minutes.get("quick"),
        wandb=options.wandb,
        measure=options.measure,
        extend=options.extend,
        share=options.share,
        paper=options.paper,
    )
    return build(fields), publication, common
