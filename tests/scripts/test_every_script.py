"""The scripts: `--help`, unknown words, and `make clean`."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(p for p in (ROOT / "scripts").rglob("*") if p.is_file() and p.suffix != ".pyc")


def run(script: Path, monkeypatch, capsys, folder: Path, *words: str) -> tuple[int, str, str]:
    """Run a script in an empty folder, a Python one in this process; its status and outputs."""
    monkeypatch.chdir(folder)
    if script.suffix != ".py":
        done = subprocess.run([script, *words], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr
    monkeypatch.setattr(sys, "argv", [str(script), *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    said = capsys.readouterr()
    code = ended.value.code
    return (1, said.out, code) if isinstance(code, str) else (code or 0, said.out, said.err)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help_is_shown_and_an_unknown_word_refused(script, monkeypatch, capsys, tmp_path):
    before = (ROOT / "README.md").stat().st_mtime_ns
    status, out, _ = run(script, monkeypatch, capsys, tmp_path, "--help")
    assert status == 0 and len(out) > 40
    for word in ("--nonsense", "nonsense", "nonsense=1/"):
        if "=" in word and script.suffix != ".py":
            continue  # goes to metalearn, which refuses it
        status, out, err = run(script, monkeypatch, capsys, tmp_path, word)
        assert status != 0 and err and not out, word
    assert (ROOT / "README.md").stat().st_mtime_ns == before
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not shutil.which("make"), reason="no make here")
def test_make_clean_keeps_the_runs_and_clean_runs_asks(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    best = tmp_path / "runs" / "mine" / "best.pt"
    best.parent.mkdir(parents=True)
    (tmp_path / "runs" / "README.md").touch()
    (tmp_path / ".ruff_cache").mkdir()

    def make(target: str, answer: str) -> None:
        best.touch()
        subprocess.run(["make", target], cwd=tmp_path, input=answer, text=True, check=True)

    for target, answer in (("clean", ""), ("distclean", ""), ("clean-runs", "y\n")):
        make(target, answer)
        assert best.exists(), target
    assert not (tmp_path / ".ruff_cache").exists()
    make("clean-runs", "yes\n")
    assert not best.exists() and (tmp_path / "runs" / "README.md").exists()
