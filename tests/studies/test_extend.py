"""A study that goes on from its published rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import pandas as pd
import pytest
import torch
from made_up import Growth

from metalearn.errors import UsageError
from metalearn.studies.frame import options
from metalearn.studies.frame.publication import Publication
from metalearn.studies.frame.run import run_study

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Wide(Growth):
    """Cells of every type of value, some of whose columns other cells leave blank."""

    numbers: Sequence[float] = (1.0, 2.5)
    names: Sequence[str] = ("None", "10")
    scale: float = 1.0
    fails_at: object = None
    seen: tuple[list, ...] = ([],)
    growing = ("numbers", "names")

    def cells(self):
        numbers = [{"n": n, "exact": n > 2, "cube": None} for n in self.numbers]
        every = [{"n": 0, "name": name} for name in self.names]
        return [*numbers, {"n": 0}, *every]

    def measure(self, cell, device):
        self.seen[0].append(cell)
        if cell.get("name", cell["n"]) == self.fails_at:
            raise RuntimeError("the power went out")
        more = {} if "name" in cell else {"name": "of a row"}
        return [{"size": k, "share": (cell["n"] + k) / 3e-7, **more} for k in (1, 2)]

    def tables(self, rows):
        return {}

    def figures(self, rows):
        return {}

    def facts(self, rows):
        return {"largest": rows.share.max()}


def run(root, extend=False, **own):
    seen = ([],)
    study = Wide(**own, seen=seen)
    plain = {key: asdict(study)[key] for key in ("numbers", "names", "scale")}
    plain = {key: list(x) if isinstance(x, tuple) else x for key, x in plain.items()}
    to = Publication(
        "wide",
        {"_target_": "here.Wide", "threads": 1, **plain},
        root / "results",
        root / "runs",
        wandb="disabled",
        extend=extend,
    )
    return run_study(study, to, CPU), seen[0]


GROWN = {"numbers": (1.0, 2.5, 4.0), "names": ("None", "10", "x")}


def test_an_extended_study_measures_the_new_cells_and_publishes_the_rows_of_all(tmp_path):
    folder, _ = run(tmp_path)
    before = json.loads((folder / "provenance.json").read_text())
    _, seen = run(tmp_path, extend=True, **GROWN)
    assert seen == [{"n": 4.0, "exact": True, "cube": None}, {"n": 0, "name": "x"}]
    whole, _ = run(tmp_path / "whole", **GROWN)
    for name in ("rows.csv", "findings.json", "table.md"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    after = json.loads((folder / "provenance.json").read_text())
    assert after["extends"] == before
    assert after["options"]["numbers"] == [1.0, 2.5, 4.0]
    _, seen = run(tmp_path, extend=True, **GROWN | {"numbers": (1.0, 2.5, 4.0, 5.0)})
    assert [cell["n"] for cell in seen] == [5.0]
    twice = json.loads((folder / "provenance.json").read_text())
    assert twice["extends"]["extends"] == before


def test_an_interrupted_extension_goes_on(tmp_path):
    folder, _ = run(tmp_path)
    rows = (folder / "rows.csv").read_bytes()
    with pytest.raises(RuntimeError, match="power went out"):
        run(tmp_path, extend=True, **GROWN, fails_at="x")
    assert (folder / "rows.csv").read_bytes() == rows
    _, seen = run(tmp_path, extend=True, **GROWN)
    assert seen == [{"n": 0, "name": "x"}]


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ({"scale": 2.0}, r"scale=2.0: expected 1.0"),
        ({"numbers": (2.5, 1.0, 4.0)}, r"numbers=.*: expected \[1.0, 2.5\]"),
        ({"numbers": (1.0,)}, r"numbers=.*: expected \[1.0, 2.5\]"),
        ({}, "expected further cells than those"),
    ],
    ids=["another value", "another order", "fewer", "the same"],
)
def test_other_differences_are_refused_before_a_measurement(tmp_path, own, sentence):
    folder, _ = run(tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UsageError, match=sentence):
        run(tmp_path, extend=True, **own)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_list_that_changes_cells_is_refused(tmp_path, monkeypatch):
    run(tmp_path)
    monkeypatch.setattr(Wide, "growing", ("names",))
    with pytest.raises(UsageError, match=r"numbers=.*further values change its cells. Extend name"):
        run(tmp_path, extend=True, **GROWN)


def test_rows_that_are_absent_of_another_study_or_of_no_cell_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"extend=true, and .* holds no rows"):
        run(tmp_path, extend=True)
    assert not list(tmp_path.iterdir())
    folder, _ = run(tmp_path)
    rows = pd.read_csv(folder / "rows.csv", dtype=str, keep_default_na=False)
    for changed, sentence in (
        (rows.assign(n="7"), "row, number 1, that is of 0 cells"),
        (rows[rows.n != "2.5"], "no row of n=2.5"),
        (rows.drop(columns="n"), "is of 0 cells"),
    ):
        changed.to_csv(folder / "rows.csv", index=False)
        with pytest.raises(UsageError, match=sentence):
            run(tmp_path, extend=True, **GROWN)
    origin = json.loads((folder / "provenance.json").read_text())
    origin["options"]["_target_"] = "here.Narrow"
    (folder / "provenance.json").write_text(json.dumps(origin))
    with pytest.raises(UsageError, match=r"of another study \(Narrow\)"):
        run(tmp_path, extend=True, **GROWN)


def test_extend_is_an_option_of_every_study_and_no_option_of_its_rows():
    _, publication, _ = options.study("bench", "cg", ["extend=true"])
    assert publication.extend and "extend" not in publication.options
    with pytest.raises(UsageError, match="expected measure=true"):
        run_study(Wide(), replace(publication, measure=False), CPU)


@pytest.mark.parametrize("verb", ["bench", "solve"])
def test_a_growing_list_only_adds_cells(verb):
    for name in options.names(verb):
        study, publication, _ = options.study(verb, name, ["preset=full"])
        for growing in getattr(study, "growing", ()):
            values = publication.options[growing]
            if len(values) < 3:
                continue
            words = [f"{growing}=[{','.join(map(_word, values[:-1]))}]"]
            fewer = options.study(verb, name, ["preset=full", *words])[0].cells()
            assert all(cell in study.cells() for cell in fewer) and len(fewer) < len(study.cells())


def _word(value):
    return f"'{value}'" if isinstance(value, str) else str(value)
