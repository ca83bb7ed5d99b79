"""A script in a folder of its own, where a program that notes its words stands for metalearn."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]


def noted_script(folder: Path, name: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """What the script does with words: its stdout is a line for each call of metalearn."""
    (folder / "scripts").mkdir()
    (folder / ".venv" / "bin").mkdir(parents=True)
    shutil.copytree(ROOT / "configs", folder / "configs")
    script = shutil.copy(ROOT / "scripts" / name, folder / "scripts")
    program = folder / ".venv" / "bin" / "metalearn"
    program.write_text('#!/bin/sh\necho "$*"\n')
    program.chmod(0o755)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([script, *words], capture_output=True, text=True, check=False)

    return run
