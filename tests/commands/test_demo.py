"""`metalearn demo`: its files, going on, and what it refuses."""

from __future__ import annotations

import signal
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

from metalearn import config
from metalearn.commands.main import main
from metalearn.errors import TrainingInterrupted
from metalearn.studies.demo.study import Demo
from metalearn.tasks import omniglot
from metalearn.training import forecast
from metalearn.training.session import Session

TINY = [
    "tasks=glyphs",
    "maml_steps=4",
    "imaml_steps=2",
    "inner_steps=[1,3]",
    "test_tasks=4",
]


def demo(folder: Path, *words: str) -> int:
    return main(["demo", f"out={folder}", *TINY, *words])


def test_an_interrupted_demo_goes_on_and_ends_in_a_table_and_a_figure(
    tmp_path, capsys, monkeypatch
):
    out, steps = tmp_path / "d", Session.steps

    def interrupted(self, state):
        for step in steps(self, state):
            yield step
            if self._config.name == "iMAML":
                signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Session, "steps", interrupted)
        patched.setattr(forecast, "WORTH_SAYING_S", 0.0)
        assert demo(out) == 128 + signal.SIGTERM
    said = capsys.readouterr()
    assert said.out.index("min on a quiet machine") < said.out.index("1 of 3")
    (shorter,) = [line for line in said.out.splitlines() if "For less: " in line]
    named = [word.strip("=") for word in shorter.partition("For less: ")[2].split(", ")]
    assert named and set(named) <= set(config.read_defaults("demo"))  # not those of `train`
    assert "the same command resumes" in said.err
    assert not (out / "table.md").exists()
    trained = (out / "maml" / "summary.json").stat().st_mtime_ns

    assert demo(out) == 0
    assert (out / "maml" / "summary.json").stat().st_mtime_ns == trained
    said = capsys.readouterr().out
    for name in ("table.md", "demo.svg", "demo.png", "paper/demo.pdf", "paper/table_1.csv"):
        assert (out / name).stat().st_size > 100 and f"{out}/{name}" in said
    rows = pd.read_csv(out / "rows.csv")
    peaks = rows[rows.part == "memory"].set_index(["method", "steps"]).peak_bytes
    assert peaks["MAML", 3] > 1.2 * peaks["MAML", 1]  # it keeps every step
    assert peaks["iMAML", 3] < 1.05 * peaks["iMAML", 1]
    texts = ElementTree.parse(out / "demo.svg").getroot().findall(".//{*}text")
    assert {"MAML (unrolled)", "iMAML (implicit)", "chance"} <= {text.text for text in texts}

    def left(self, cell, device):
        raise TrainingInterrupted(signal.SIGINT, "left")

    monkeypatch.setattr(Demo, "measure", left)
    assert demo(out) == 128 + signal.SIGINT
    assert not (out / "maml").exists()  # a finished demo starts anew


def test_it_refuses_a_folder_of_something_else(tmp_path, capsys):
    (tmp_path / "maml").mkdir()
    (tmp_path / "maml" / "mine").touch()
    assert demo(tmp_path) == 2
    assert "expected a new folder" in capsys.readouterr().err
    assert (tmp_path / "maml" / "mine").exists()


def test_omniglot_is_at_hand_in_the_cache_or_in_a_folder_and_never_downloaded(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("METALEARN_DATA", raising=False)
    assert not omniglot.at_hand()
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path))
    assert not omniglot.at_hand()
    (tmp_path / "omniglot").mkdir()
    assert omniglot.at_hand()
    monkeypatch.delenv("METALEARN_DATA")
    names: list[str] = []
    monkeypatch.setattr(omniglot, "cached", lambda name, build: names.append(name) or {})
    with pytest.raises(KeyError):
        omniglot.omniglot()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / f"{names[0]}.npz").touch()
    assert omniglot.at_hand()
