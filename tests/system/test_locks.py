"""Locks, and training on a system without what only Unix has."""

from __future__ import annotations

import ast
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_run import TINY

import metalearn
from metalearn.system import locks
from metalearn.system.locks import hold

UNIX = {"fcntl", "grp", "pwd", "resource", "select", "termios"}
ONE_STUDY = {"soak/study.py"}  # reads /proc, and says so where there is none
HIDDEN = """
import sys
for name in {modules}:
    sys.modules[name] = None
import hydra, numpy, os, rich, scipy, signal, torch, wandb
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGALRM", "SIGKILL", "SIGCHLD"):
    delattr(signal, name)
for name in ("sysconf", "fork", "getuid", "uname", "O_NOFOLLOW", "sched_getaffinity"):
    delattr(os, name)
from metalearn.commands.main import main
sys.exit(main(["train", *{words}]) or main(["train", "resume=r", "steps=2"]))
"""


@pytest.fixture(params=["posix", "nt"])
def system(request, monkeypatch):
    """The name of the system, of which only the locks know."""
    same = {n: getattr(os, n) for n in ("open", "close", "strerror", "O_RDONLY", "O_RDWR")}
    fake = SimpleNamespace(name=request.param, O_CREAT=os.O_CREAT, **same)
    monkeypatch.setattr(locks, "os", fake)
    return request.param


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_lock_excludes_until_its_block_ends(system, kind, tmp_path):
    path = tmp_path / "x"
    path.mkdir() if kind == "folder" else path.touch()
    with hold(path) as sure:
        assert sure
        with pytest.raises(BlockingIOError), hold(path):
            pass
        with hold(tmp_path):
            pass
    with hold(path, wait=True) as sure:
        assert sure
    beside = {".x.lock"} if system == "nt" else set()
    assert {p.name for p in tmp_path.iterdir()} == {"x", *beside}


def test_a_killed_process_holds_no_lock(tmp_path):
    code = f"""
import os, signal
from pathlib import Path
from metalearn.system.locks import hold
with hold(Path({str(tmp_path)!r})):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    with hold(tmp_path) as sure:
        assert sure


def test_a_system_without_locks_says_that_nothing_is_held(tmp_path, monkeypatch):
    def fail(*args: object, **options: object) -> bool:
        raise OSError(number, "no")

    monkeypatch.setattr(locks, "lock_descriptor", fail)
    number = errno.ENOSYS
    with hold(tmp_path) as sure:
        assert not sure
    number = errno.EIO
    with pytest.raises(OSError, match="no"), hold(tmp_path):
        pass


def test_no_module_imports_what_only_unix_has():
    for path in Path(metalearn.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            named = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            named += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not UNIX.intersection(named), path
            if isinstance(node, ast.Attribute) and not str(path).endswith(tuple(ONE_STUDY)):
                odd = ("SIGUSR1", "SIGHUP", "SIGKILL", "sysconf", "fork", "getuid", "O_NOFOLLOW")
                assert node.attr not in odd, f"{path}:{node.lineno}"


@pytest.mark.slow
def test_training_needs_nothing_that_only_unix_has(tmp_path):
    words = [*TINY, "metagrad=maml_batched", "steps=1", "wandb=disabled", "run_dir=r"]
    code = HIDDEN.format(modules=sorted(UNIX - {"select"}), words=words)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {"best.pt", "last.pt", "summary.json"} <= {p.name for p in (tmp_path / "r").iterdir()}
