"""The provenance of a result: command, versions, commit, machine, date."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import metalearn


def provenance(device: torch.device) -> dict[str, Any]:
    """Return the facts that are needed to reproduce a result; no host or user name."""
    return {
        "command": _command(*sys.argv),
        "versions": {
            "metalearn": metalearn.__version__,
            "python": platform.python_version(),
            **_versions("torch", "learn2learn", "higher", "numpy", "torchopt"),
        },
        "commit": _commit(),
        "machine": _machine(device),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def short(commit: str | None) -> str:
    """Return a commit as tables show it: 7 digits and any "+"; empty if it is not known."""
    if not isinstance(commit, str):
        return ""
    return commit[:7] + ("+" if commit.endswith("+") else "")


def _versions(*names: str) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _command(program: str, *words: str) -> str:
    """Return a command as a user would type it in the checkout.

    A path outside of the checkout is shortened to its last part.
    """
    root = Path(metalearn.__file__).parent.parent
    path = Path(program).resolve()
    if path.name == "__main__.py":
        start = ["python", "-m", "metalearn"]
    elif path.is_relative_to(root / "scripts"):
        start = [path.relative_to(root).as_posix()]
    else:
        start = [path.name]
    return shlex.join([*start, *(_shown(word) for word in words)])


def _shown(word: str) -> str:
    key, equals, value = word.rpartition("=")
    return f"{key}{equals}{Path(value).name}" if Path(value).is_absolute() else word


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {os.cpu_count()} cores"


def _commit() -> str | None:
    """Return the commit of the checkout of this package, followed by "+" if tracked files differ.

    Files in `results/` do not count, since the results of one study do not change the code of the
    next one. None: the package was installed from a wheel, or git is missing.
    """
    root = Path(metalearn.__file__).parent.parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None  # installed from a wheel, or git is missing
