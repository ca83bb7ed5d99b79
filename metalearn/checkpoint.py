"""Checkpoints: written whole or not at all, read without executing anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from metalearn.errors import UsageError

FORMAT = 1
KEYS = frozenset({"step", "best", "meta", "optimiser", "schedule", "sampler", "config"})


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes beside `path`, flushes to the disk and renames."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def load(path: Path) -> dict[str, Any]:
    """The state that `save` was given.

    Raises:
        UsageError: there is no such file, or it is no checkpoint of this format, or not whole.
    """
    if not path.is_file():
        raise UsageError(f"there is no checkpoint {path}; give the path of a best.pt or last.pt")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch names no narrower class for a damaged file
        raise UsageError(f"{path} cannot be read as a checkpoint; it may be damaged") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UsageError(f"{path} is no checkpoint of format {FORMAT}; train it again")
    if missing := sorted(KEYS - state.keys()):
        raise UsageError(f"{path} is a checkpoint without {', '.join(missing)}; train it again")
    return state
