"""The one-shot classification test of the Omniglot release (Lake et al. 2015), all_runs.zip.

The test has 20 runs, each with 20 characters of one alphabet. A run has one support drawing of each
character, and 20 query drawings by another person.
"""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metalearn.errors import UsageError
from metalearn.system.files import with_home
from metalearn.tasks.batch import TaskBatch
from metalearn.tasks.omniglot import LARGEST, decode

RUNS, WAYS = 20, 20
_PART = re.compile(
    r"(?:.*/)?(?P<run>run\d+)/(?P<part>class_labels\.txt|(?:training|test)/\w+\.png)"
)


@dataclass(frozen=True)
class FixedTasks:
    """A sampler that always returns the first `num_tasks` of the same tasks."""

    tasks: TaskBatch

    def sample(self, num_tasks: int) -> TaskBatch:
        return self.tasks[:num_tasks]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def official_runs(path: str | Path, size: int = 28) -> TaskBatch:
    """Return the runs as tasks: support and query are (20, 20, 1, size, size) in [0, 1].

    Ink has high values. A run's support set is sorted by the names of its classes, with the labels
    0 to 19. A query's label is the class of its file in class_labels.txt. The archive is read
    without being unpacked.

    Args:
        path: all_runs.zip.
        size: the side of the images in pixels.

    Raises:
        UsageError: the archive is missing, not a zip archive, incomplete or damaged.
    """
    path = with_home(path)
    if not path.is_file():
        raise UsageError(f"source={path} is no file; give the all_runs.zip of the Omniglot release")
    try:
        with zipfile.ZipFile(path) as archive:
            runs = _runs(archive)
            if len(runs) != RUNS:
                raise UsageError(
                    f"source={path} holds {len(runs)} runs instead of {RUNS}; fetch all_runs.zip "
                    "of the Omniglot release again"
                )
            read = [_run(archive, name, parts, size, path) for name, parts in sorted(runs.items())]
    except UsageError:
        raise
    except Exception as fault:  # zipfile's errors for a damaged archive share no class
        raise UsageError(
            f"source={path} is cut short or not a zip archive ({fault}); fetch it again"
        ) from fault
    support, query, labels = (torch.from_numpy(np.stack(part)) for part in zip(*read, strict=True))
    shown = torch.arange(WAYS).repeat(RUNS, 1)
    return TaskBatch(support.float() / 255, shown, query.float() / 255, labels)


def _runs(archive: zipfile.ZipFile) -> dict[str, dict[str, zipfile.ZipInfo]]:
    """Return the members of each run, by their paths within the run."""
    runs: dict[str, dict[str, zipfile.ZipInfo]] = {}
    for info in archive.infolist():
        if (found := _PART.fullmatch(info.filename)) and "__MACOSX" not in info.filename:
            runs.setdefault(found["run"], {})[found["part"]] = info
    return runs


def _run(
    archive: zipfile.ZipFile, name: str, parts: dict[str, zipfile.ZipInfo], size: int, path: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the support and query images, uint8, and the labels of the queries."""
    if large := [part for part, info in parts.items() if info.file_size > LARGEST]:
        raise UsageError(
            f"{name}/{large[0]} in {path} is too large for a drawing or a list of labels; "
            "fetch all_runs.zip again"
        )
    lines = archive.read(parts["class_labels.txt"]).decode() if "class_labels.txt" in parts else ""
    pairs = [[w.partition("/")[2] for w in line.split()] for line in lines.splitlines() if line]
    classes = sorted(part for part in parts if part.startswith("training/"))
    items = sorted(part for part in parts if part.startswith("test/"))
    answers = dict(pair for pair in pairs if len(pair) == 2)
    if not len(classes) == len(items) == WAYS or sorted(answers) != items:
        raise UsageError(
            f"{name} in {path} has {len(classes)} training and {len(items)} test drawings and "
            f"{len(answers)} labels instead of {WAYS} each; fetch all_runs.zip again"
        )
    if odd := sorted(set(answers.values()).difference(classes)):
        raise UsageError(f"{name} in {path} labels a drawing {odd[0]}, which is not there")

    def images(names: list[str]) -> np.ndarray:
        return np.stack(
            [decode(partial(archive.read, parts[n]), f"{name}/{n} in {path}", size) for n in names]
        )[:, None]

    labels = np.array([classes.index(answers[item]) for item in items])
    return images(classes), images(items), labels
