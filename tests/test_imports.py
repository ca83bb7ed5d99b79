"""What starts fast: the modules that are loaded are counted, not the seconds."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"gym", "higher", "learn2learn", "matplotlib", "pandas", "scipy", "torch", "wandb"}


def loaded(code: str) -> set[str]:
    """The top-level modules after `code` in an interpreter of its own."""
    listing = "import json, sys; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{listing}"], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_package_itself_loads_nothing():
    assert not HEAVY & loaded("import metalearn")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--help"],
        ["--version"],
        ["train", "--help"],
        ["bench"],
        ["bench", "speed", "-h"],
        ["data"],
    ],
)
def test_help_loads_nothing_heavy(words):
    assert not HEAVY & loaded(
        f"from metalearn.commands.main import main; assert main({words}) == 0"
    )


def test_the_library_loads_torch_and_no_tracker_or_sampler():
    code = "import metalearn.implicit, metalearn.metagrad, metalearn.nn, metalearn.tasks"
    found = loaded(code)
    assert "torch" in found
    assert not (HEAVY - {"torch"}) & found
