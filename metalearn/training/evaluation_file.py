"""The file that an evaluation writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metalearn.errors import UsageError
from metalearn.system.files import replace_text, written_beside
from metalearn.training.metrics_file import to_json


def default_out(word: str, path: Path) -> Path:
    """Return the file for the rows of a checkpoint that the user calls `word`.

    A path has them beside it, in evaluation.json. A name has them in runs/NAME-evaluation.json, for
    nothing but studies writes into results/.
    """
    if path == Path(word):
        return path.parent / "evaluation.json"
    return Path("runs") / f"{word}-evaluation.json"


def check_out(path: Path, make_folder: bool = False, example: str = "evaluation.json") -> None:
    """Raise UsageError where the file cannot be written, before the work is done.

    It leaves nothing behind, or the folder alone that `make_folder` makes.
    """
    try:
        if make_folder:
            path.parent.mkdir(exist_ok=True)
        if path.is_dir():
            raise UsageError(
                f"out={path} is a folder; give the file to write, such as {path / example}"
            )
        with written_beside(path, b""):
            pass
    except OSError as error:
        raise unwritable(path, error) from error


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON, beside and renamed.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        replace_text(path, to_json(dict(content), indent=1) + "\n")
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> UsageError:
    """Return the error of a file that cannot be written."""
    if not path.parent.exists():
        return UsageError(
            f"out={path} cannot be written: there is no folder {path.parent}. Make it, or choose "
            "another file"
        )
    return UsageError(f"out={path} cannot be written ({error.strerror}); choose another file")
