"""Checkpoints: whole or not there, known by their checksum, read without executing anything.

A file is what `torch.save` writes, a zip archive, and the archive's comment holds the SHA-256 of
all that lies before it. `torch.load(path, weights_only=True)` alone opens it as well.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from metalearn.errors import UsageError, nearest
from metalearn.system.files import replace_bytes, sync_folder, written_beside
from metalearn.training.saved_fields import check_fields

FORMAT = 2
"""Format 1 had no checksum and no random states: it can be evaluated, but not resumed."""
KEYS = frozenset({"step", "best", "meta", "config"})
RESUMED_KEYS = frozenset(
    {"optimiser", "sampler", "random", "guards", "chosen", "carry", "halvings", "peak", "parts"}
)

_SEAL = b"metalearn checkpoint, sha256 "
_DIGITS = 64


class DamagedCheckpoint(UsageError):
    """The file exists, and its content is not what was written."""


def find(word: str) -> Path:
    """Return the file that a user's `checkpoint=` means.

    A word with neither "/" nor ".pt" is the name of a kept initialisation, results/**/NAME.pt below
    the current directory, else in the checkout that holds this package. Any other is a path, and so
    is the name of a file that is there.

    Raises:
        UsageError: no initialisation has the name, or several have it.
    """
    path = Path(word)
    if "/" in word or ".pt" in word or path.is_file():
        return path
    from metalearn.config import PACKAGE  # Hydra, which reading and writing do not need

    names: set[str] = set()
    for folder in (Path("results"), PACKAGE.parent / "results"):
        kept = sorted(folder.rglob("*.pt"))
        named = [path for path in kept if path.stem == word]
        if len(named) > 1:
            raise UsageError(
                f"checkpoint={word}: expected the name of one file. Give one of the paths "
                f"{', '.join(map(str, named))}"
            )
        if named:
            return named[0]
        names.update(path.stem for path in kept)
    known = nearest(word, names) if names else "; give the path of a best.pt or last.pt"
    raise UsageError(f"there is no checkpoint {word} in results/{known}")


def save(path: Path, state: dict[str, Any]) -> None:
    """Replace `path` by a checkpoint of `state`, a nest of tensors and plain values."""
    replace_bytes(path, _sealed(state))


def load(path: Path) -> dict[str, Any]:
    """Return the state that `save` was given, and its "format".

    Raises:
        DamagedCheckpoint: the file is torn or tampered with, or no checkpoint at all.
        UsageError: there is no such file, it cannot be read or is of another format, or fields are
            missing or of another type. A file whose checksum is right is no damaged one.
    """
    state = read(path)
    if "adapted" in state:
        raise UsageError(
            f"{path} is a model that was adapted to classes: expected the checkpoint of a run. "
            "Give a best.pt or last.pt, or use this file by `metalearn predict`"
        )
    if missing := sorted(KEYS - state.keys()):
        raise UsageError(f"{path} is a checkpoint without {', '.join(missing)}; train it again")
    check_fields(state, (*KEYS, "average", "constants", "data"), path)
    return state


def read(path: Path) -> dict[str, Any]:
    """Return the state that `save` was given, of a run or of another kind; raise as `load` does.

    The fields are not checked.
    """
    try:
        if not path.is_file():
            raise UsageError(
                f"there is no checkpoint {path}; give the path of a best.pt or last.pt"
                + (f", such as {path / 'best.pt'}" if (path / "best.pt").is_file() else "")
            )
        data = path.read_bytes()
        end = len(data) - len(_SEAL) - _DIGITS
        sealed = end > 0 and data[end : end + len(_SEAL)] == _SEAL
        if sealed and data[-_DIGITS:] != _digest(data[:end]):
            raise DamagedCheckpoint(f"{path} is damaged: its checksum is another")
        state = _unpacked(data, path, sealed)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({error.strerror or error}); make it readable"
        ) from error
    except MemoryError as error:
        raise UsageError(f"{path} does not fit in memory; free some") from error
    if not isinstance(state, dict) or "format" not in state:
        refusal = UsageError if sealed else DamagedCheckpoint
        raise refusal(f"{path} is no checkpoint of metalearn's")
    if type(state["format"]) is not int or state["format"] not in (1, FORMAT):
        raise UsageError(
            f"{path} is a checkpoint of format {state['format']}; this release reads 1 and {FORMAT}"
        )
    if state["format"] == FORMAT and not sealed:
        raise DamagedCheckpoint(f"{path} is damaged: its checksum is missing")
    return state


def _unpacked(data: bytes, path: Path, sealed: bool) -> Any:
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # torch names no narrower class, neither for a damaged file
        if sealed:  # nor for want of memory
            reason = " ".join(str(error).split())
            raise UsageError(
                f"{path} is whole by its checksum, and torch cannot read it: {reason[:200]}. "
                "Use the torch that wrote it."
            ) from error
        raise DamagedCheckpoint(
            f"{path} cannot be read as a checkpoint; it may be damaged"
        ) from error


def save_newest(folder: Path, state: dict[str, Any], keep: int) -> None:
    """Makes `state` the folder's last.pt; the ones before it become last.1.pt and so on, `keep`
    files in all. A failure to write leaves them as they were."""
    with written_beside(generation(folder, 0), _sealed(state)) as part:
        for n in reversed(_numbers(folder)):
            if n >= keep:
                generation(folder, n).unlink()
            elif n + 1 < keep:
                generation(folder, n).replace(generation(folder, n + 1))
        part.replace(generation(folder, 0))
    sync_folder(folder)


def save_best(folder: Path, states: Sequence[dict[str, Any]], first: int = 0) -> None:
    """Make `states` the folder's best.pt, best.1.pt and so on, the best first; others go.

    The last one is written first, each by a rename: a kill leaves whole files only, and loses none
    of those that were there but the one that falls out.

    Args:
        first: the place of the first state that differs from what is there.
    """
    for place in reversed(range(first, len(states))):
        save(best(folder, place), states[place])
    for path in folder.glob("best*.pt"):
        if (match := _BEST.fullmatch(path.name)) and int(match[1] or 0) >= len(states):
            path.unlink()


def select_meta(state: dict[str, Any]) -> Any:
    """Return the meta-parameters to evaluate: their average, if the state holds one."""
    average = state.get("average")
    return average["meta"] if average else state["meta"]


def drop_unfinished(folder: Path) -> None:
    """Delete unfinished checkpoints of a killed process; no other process may be writing there."""
    for part in folder.glob(".*.pt-*.part"):
        part.unlink()


def _load_resumed(path: Path) -> dict[str, Any]:
    """Return the checkpoint of a training run, with all that a run needs to resume."""
    state = load(path)
    if missing := sorted(RESUMED_KEYS - state.keys()):
        what = f"of format 1 and lacks {', '.join(missing)}"
        if state["format"] == FORMAT:
            what = f"without {', '.join(missing)}"
        raise UsageError(
            f"{path} is a checkpoint {what}: it can be evaluated, but not gone on with; train anew"
        )
    return state


def newest(
    folder: Path, read_one: Callable[[Path], dict[str, Any]] = _load_resumed
) -> tuple[dict[str, Any], dict[Path, DamagedCheckpoint]]:
    """Return the newest whole checkpoint, and the errors of newer ones.

    Args:
        read_one: reads a checkpoint and checks its kind; raises DamagedCheckpoint.

    Raises:
        UsageError: the checkpoint is absent, or has a format that cannot be resumed.
    """
    damaged: dict[Path, DamagedCheckpoint] = {}
    for path in generations(folder):
        try:
            return read_one(path), damaged
        except DamagedCheckpoint as error:
            damaged[path] = error
    if damaged:
        raise UsageError(f"no checkpoint in {folder} is whole; train anew")
    raise UsageError(f"there is no checkpoint in {folder}; train anew")


def generation(folder: Path, n: int) -> Path:
    """last.pt, and last.N.pt for the N-th before it."""
    return folder / ("last.pt" if n == 0 else f"last.{n}.pt")


def best(folder: Path, place: int) -> Path:
    """best.pt for place 0, and best.N.pt for place N after it."""
    return folder / ("best.pt" if place == 0 else f"best.{place}.pt")


def generations(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the newest first."""
    return [generation(folder, n) for n in _numbers(folder)]


def _numbers(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return sorted({int(m[1] or 0) for p in folder.iterdir() if (m := _NAME.fullmatch(p.name))})


_NAME = re.compile(r"last(?:\.(\d+))?\.pt")
_BEST = re.compile(r"best(?:\.(\d+))?\.pt")


def _sealed(state: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.save({"format": FORMAT, **state}, file)
    # A zip archive's last two bytes are the length of its comment, which torch leaves empty.
    archive = file.getvalue()[:-2] + struct.pack("<H", len(_SEAL) + _DIGITS)
    return archive + _SEAL + _digest(archive)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()
