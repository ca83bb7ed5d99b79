"""The checkpoint of a run that has made no meta-step, without reading its data."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from metalearn import config
from metalearn.training import checkpoint
from metalearn.training.experiment import Experiment


def save_untrained(path: Path, *words: str) -> None:
    """Save the start of the run that the words of `metalearn train` describe."""
    run = config.compose("train", list(words))
    meta = {name: p.detach() for name, p in Experiment.of(run).meta.items()}
    options = OmegaConf.to_container(run, resolve=True)
    checkpoint.save(path, {"step": 0, "best": 0.0, "meta": meta, "config": options})
