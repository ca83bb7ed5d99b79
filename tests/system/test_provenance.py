"""Where a figure comes from, without where it was made."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

import metalearn
from metalearn.system import provenance as module
from metalearn.system.provenance import provenance, short

ROOT = Path(metalearn.__file__).parent.parent


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        ([f"{ROOT}/.venv/bin/metalearn", "train", "seed=1"], "metalearn train seed=1"),
        ([f"{ROOT}/scripts/exercises/circle.py"], "scripts/exercises/circle.py"),
        ([f"{ROOT}/metalearn/__main__.py", "bench", "cg"], "python -m metalearn bench cg"),
        (["metalearn", "solve", "results=/home/me/x"], "metalearn solve results=x"),
        (["metalearn", "solve", "results=runs/x"], "metalearn solve results=runs/x"),
        (["metalearn", "evaluate", "/home/me/best.pt"], "metalearn evaluate best.pt"),
    ],
)
def test_the_command_is_what_one_types_in_the_checkout(argv, command, monkeypatch):
    monkeypatch.setattr(sys, "argv", argv)
    assert provenance(torch.device("cpu"))["command"] == command


@pytest.mark.parametrize("installed", ["0.7.3", None])
def test_a_peer_that_is_installed_is_named_with_its_version(installed, monkeypatch):
    def found(name):
        if name != "torchopt":
            return version(name)
        if installed is None:
            raise PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(module, "version", found)
    versions = provenance(torch.device("cpu"))["versions"]
    assert versions.get("torchopt") == installed and versions["torch"] == version("torch")


@pytest.mark.parametrize(("file", "mark"), [("results/README.md", ""), ("metalearn/a.py", "+")])
def test_a_changed_checkout_is_told_but_not_for_a_result(file, mark, tmp_path, monkeypatch):
    def git(*words):
        return subprocess.run(
            ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e", *words],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    git("init")
    for name in ("results/README.md", "metalearn/a.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("before")
    git("add", ".")
    git("commit", "-m", "all")
    monkeypatch.setattr(metalearn, "__file__", str(tmp_path / "metalearn" / "__init__.py"))
    assert provenance(torch.device("cpu"))["commit"] == git("rev-parse", "HEAD")
    (tmp_path / file).write_text("after")
    assert provenance(torch.device("cpu"))["commit"] == git("rev-parse", "HEAD") + mark


@pytest.mark.parametrize(
    ("commit", "shown"), [("a" * 40, "aaaaaaa"), ("a" * 40 + "+", "aaaaaaa+"), (None, "")]
)
def test_a_table_s_commit_keeps_the_mark_of_changed_files(commit, shown):
    assert short(commit) == shown
