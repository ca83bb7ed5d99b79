"""A study from its cells to its folder, interrupted and not."""

from __future__ import annotations

import json
import multiprocessing
import os
from dataclasses import dataclass, replace

import pandas as pd
import pytest
import torch

from metalearn.errors import TrainingInterrupted, TrainingStopped, UsageError
from metalearn.studies.frame.draw import label_lines
from metalearn.studies.frame.index import write_index
from metalearn.studies.frame.plot import canvas
from metalearn.studies.frame.publication import Publication
from metalearn.studies.frame.run import run_study
from metalearn.studies.frame.table import make_table
from metalearn.system.files import locked

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Squares:
    """n^2 and n^3 for n below `count`; fails at `fails_at`."""

    count: int
    fails_at: int = -1
    title = "Squares"
    seen: tuple[list, ...] = ([],)

    def cells(self):
        return [{"n": n} for n in range(self.count)]

    def measure(self, cell, device):
        if cell["n"] == self.fails_at:
            raise RuntimeError("the power went out")
        self.seen[0].append(cell["n"])
        return [{"power": p, "value": float(cell["n"] ** p)} for p in (2, 3)]

    def tables(self, rows):
        return {"All": make_table(list(rows.columns), rows.to_dict("records"))}

    def figures(self, rows):
        figure, (axes,) = canvas()
        for power, part in rows.groupby("power"):
            axes.plot(part.n, part.value, label=f"power {power}")
        label_lines(axes)
        return {"growth": figure}

    def facts(self, rows):
        return {"largest": rows.value.max()}


def publication(tmp_path, **options):
    options = {"_target_": "here.Squares", **options}
    return Publication(
        "squares", options, tmp_path / "results", tmp_path / "runs", wandb="disabled"
    )


def test_a_study_publishes_rows_table_figure_findings_and_provenance(tmp_path, capsys):
    folder = run_study(Squares(4, seen=([],)), publication(tmp_path), CPU)
    rows = pd.read_csv(folder / "rows.csv")
    assert rows.columns.tolist() == ["n", "power", "value"]
    assert (rows.value == rows.n**rows.power).all()
    assert "| 3   | 3       | 27      |" in (folder / "table.md").read_text()
    tables = json.loads((folder / "tables.json").read_text())
    assert tables["All"]["columns"] == ["n", "power", "value"]
    assert tables["All"]["keys"] == rows.values.tolist()
    assert tables["All"]["rows"] == [[f"{x:g}" for x in row] for row in rows.values.tolist()]
    assert json.loads((folder / "findings.json").read_text()) == ["The largest is 27."]
    assert "power 3" in (folder / "growth.svg").read_text()
    origin = json.loads((folder / "provenance.json").read_text())
    assert {"command", "commit", "versions", "machine", "date", "threads", "measure_s"} <= set(
        origin
    )
    index = (tmp_path / "results" / "README.md").read_text()
    assert "[Squares](squares/table.md)" in index and origin["command"] in index
    assert "4 measurements" in capsys.readouterr().out
    assert not list((tmp_path / "runs").rglob("rows-*"))


def test_tables_say_in_json_what_is_missing_and_what_is_infinite(tmp_path, monkeypatch):
    def tables(self, rows):
        infinite = float("inf")
        return {
            "Odd": make_table("abc", [[1.5, None, 1], [float("nan"), "x", 2], [infinite, True, 3]])
        }

    monkeypatch.setattr(Squares, "tables", tables)
    folder = run_study(Squares(1, seen=([],)), publication(tmp_path), CPU)
    text = (folder / "tables.json").read_text()
    odd = json.loads(text, parse_constant=pytest.fail)["Odd"]
    assert odd["rows"] == [["1.5", "", "1"], ["", "x", "2"], ["inf", "yes", "3"]]
    assert odd["keys"] == [[1.5, None, 1], [None, None, 2], ["inf", None, 3]]


def test_an_interrupted_study_goes_on_from_its_rows(tmp_path):
    seen = ([],)
    with pytest.raises(RuntimeError, match="power went out"):
        run_study(Squares(4, fails_at=2, seen=seen), publication(tmp_path), CPU)
    assert not list((tmp_path / "results" / "squares").iterdir())
    folder = run_study(Squares(4, seen=seen), publication(tmp_path), CPU)
    assert seen[0] == [0, 1, 2, 3]  # each once
    whole = run_study(Squares(4, seen=([],)), publication(tmp_path / "whole"), CPU)
    assert (folder / "rows.csv").read_text() == (whole / "rows.csv").read_text()


def test_other_options_start_their_own_rows(tmp_path):
    with pytest.raises(RuntimeError):
        run_study(Squares(4, fails_at=2, seen=([],)), publication(tmp_path, width=1), CPU)
    seen = ([],)
    run_study(Squares(4, seen=seen), publication(tmp_path, width=2), CPU)
    assert seen[0] == [0, 1, 2, 3]


def test_options_added_at_their_defaults_go_on_from_the_rows(tmp_path):
    then = {"count": 4, "device": "cpu"}
    added = {"fails_at": -1, "threads": None}  # of the constructor, and of configs/study.yaml
    for now, measured in (
        (then | added, [0, 1, 2, 3]),
        ({**then, "fails_at": 9}, [0, 1, 0, 1, 2, 3]),
    ):
        seen, root = ([],), tmp_path / str(now["fails_at"])
        with pytest.raises(RuntimeError):
            run_study(Squares(4, fails_at=2, seen=seen), publication(root, **then), CPU)
        run_study(Squares(4, seen=seen), publication(root, **now), CPU)
        assert seen[0] == measured


def test_rows_of_other_code_are_not_gone_on_from(tmp_path, monkeypatch):
    seen = ([],)
    with pytest.raises(RuntimeError):
        run_study(Squares(4, fails_at=2, seen=seen), publication(tmp_path), CPU)
    monkeypatch.setattr("metalearn.studies.frame.run.digest_code", lambda source: "another")
    run_study(Squares(4, seen=seen), publication(tmp_path), CPU)
    assert seen[0] == [0, 1, 0, 1, 2, 3]


def test_the_same_rows_make_the_same_files(tmp_path):
    once = run_study(Squares(3, seen=([],)), publication(tmp_path / "a"), CPU)
    twice = run_study(Squares(3, seen=([],)), publication(tmp_path / "b"), CPU)
    for name in ("rows.csv", "table.md", "tables.json", "growth.svg", "findings.json"):
        assert (once / name).read_bytes() == (twice / name).read_bytes()


def test_a_failure_to_draw_leaves_the_published_study_whole(tmp_path, monkeypatch):
    folder = run_study(Squares(3, seen=([],)), publication(tmp_path), CPU)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def broken(self, rows):
        raise RuntimeError("no ink")

    monkeypatch.setattr(Squares, "figures", broken)
    with pytest.raises(RuntimeError, match="no ink"):
        run_study(Squares(4, seen=([],)), publication(tmp_path), CPU)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "results").write_text("a file")
    with pytest.raises(UsageError, match="cannot be written"):
        run_study(Squares(1, seen=([],)), publication(tmp_path), CPU)


def test_all_but_the_rows_can_be_made_again_without_measuring(tmp_path):
    folder = run_study(Squares(3, seen=([],)), publication(tmp_path), CPU)
    rows = (folder / "rows.csv").read_bytes()
    before = json.loads((folder / "provenance.json").read_text())
    for name in ("table.md", "growth.svg"):
        (folder / name).write_text("old")
    seen = ([],)
    again = replace(publication(tmp_path), measure=False)
    run_study(Squares(3, seen=seen), again, CPU)
    assert not seen[0] and (folder / "rows.csv").read_bytes() == rows
    assert "| 2   | 3       | 8       |" in (folder / "table.md").read_text()
    assert "power 3" in (folder / "growth.svg").read_text()
    after = json.loads((folder / "provenance.json").read_text())
    assert {**after, "remade": None} == {**before, "remade": None}
    assert set(after["remade"]) == {"command", "commit", "date"}
    moved = before | {"options": {**before["options"], "_target_": "elsewhere.Squares"}}
    (folder / "provenance.json").write_text(json.dumps(moved))
    run_study(Squares(3, seen=seen), again, CPU)
    other = before | {"options": {**before["options"], "_target_": "elsewhere.Cubes"}}
    (folder / "provenance.json").write_text(json.dumps(other))
    with pytest.raises(UsageError, match="are of another study"):
        run_study(Squares(3, seen=([],)), again, CPU)
    (folder / "rows.csv").unlink()
    with pytest.raises(UsageError, match="no rows and provenance"):
        run_study(Squares(3, seen=([],)), again, CPU)


@dataclass(frozen=True)
class Twice(Squares):
    def cells(self):
        return [{"n": 1}, {"n": 1}]


def test_one_measurement_asked_for_twice_is_refused_before_any(tmp_path):
    seen = ([],)
    with pytest.raises(UsageError, match="n=1 is asked for twice"):
        run_study(Twice(2, seen=seen), publication(tmp_path), CPU)
    assert not seen[0] and not list(tmp_path.iterdir())


def test_the_index_lists_what_has_a_provenance_and_survives_what_has_none(tmp_path):
    run_study(Squares(1, seen=([],)), publication(tmp_path), CPU)
    results = tmp_path / "results"
    (results / "lone.json").write_text('{"date": "2026-01-02T03:04:05", "command": "x.py"}')
    (results / "old.json").write_text('{"date": "2025-01-02", "commit": "abcdef0123"}')
    (results / "list.json").write_text("[1, 2]")
    write_index(results)
    index = (results / "README.md").read_text()
    assert "| [lone](lone.json) | `x.py` | none | 2026-01-02 |" in index
    assert "| [old](old.json) | not recorded | abcdef0 | 2025-01-02 |" in index
    assert "list" not in index.split("|---|")[-1] and index.count("squares/table.md") == 1


def test_the_index_tells_results_of_one_title_apart(tmp_path):
    for name in ("squares", "squares_again"):
        to = Publication(name, {}, tmp_path / "results", tmp_path / "runs")
        run_study(Squares(1, seen=([],)), to, CPU)
    index = (tmp_path / "results" / "README.md").read_text()
    titles = [line.partition("](")[0] for line in index.splitlines() if "/table.md)" in line]
    assert [title.rpartition(" ")[2] for title in titles] == ["(squares)", "(squares_again)"]


def test_rows_go_to_wandb(tmp_path):
    to = Publication("squares", {}, tmp_path / "results", tmp_path / "runs", wandb="offline")
    run_study(Squares(2, seen=([],)), to, CPU)
    assert list((tmp_path / "runs" / "squares").rglob("*.wandb"))


def test_a_second_process_in_one_folder_is_refused(tmp_path):
    to = publication(tmp_path)
    for taken in (tmp_path / "results" / "squares", tmp_path / "runs" / "squares"):
        taken.mkdir(parents=True, exist_ok=True)
        seen = ([],)
        with locked(taken), pytest.raises(UsageError, match="in use by another process"):
            run_study(Squares(2, seen=seen), to, CPU)
        assert not seen[0] and not list(taken.iterdir())
    run_study(Squares(2, seen=([],)), to, CPU)
    with (
        locked(tmp_path / "results" / "squares"),
        pytest.raises(UsageError, match="in use by another process"),
    ):
        run_study(Squares(2, seen=([],)), replace(to, measure=False), CPU)


def test_processes_that_share_measure_each_cell_once_and_the_last_publishes(tmp_path):
    to = replace(publication(tmp_path), share=True)
    fork = multiprocessing.get_context("fork")
    both_measure = fork.Barrier(2)

    @dataclass(frozen=True)
    class Logged(Squares):
        def measure(self, cell, device):
            if cell["n"] < 2:  # the first cell of each
                both_measure.wait(timeout=60)
            with (tmp_path / "measured").open("a") as file:
                file.write(f"{cell['n']} {os.getpid()}\n")
            return super().measure(cell, device)

    def measured():
        return [line.split() for line in (tmp_path / "measured").read_text().splitlines()]

    processes = [fork.Process(target=run_study, args=(Logged(6), to, CPU)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(n for n, _ in measured()) == list("012345")
    assert len({process for _, process in measured()}) == 2
    rows = pd.read_csv(tmp_path / "results" / "squares" / "rows.csv")
    assert rows.n.tolist() == [n for n in range(6) for _ in range(2)]
    assert not any((tmp_path / "runs").rglob("rows-*"))

    run_study(Logged(6), to, CPU)  # one that starts late finds the work done
    assert len(measured()) == 6


def test_a_cell_of_a_stopped_process_is_measured_by_the_next(tmp_path, capsys):
    to, seen = replace(publication(tmp_path), share=True), ([],)
    with pytest.raises(RuntimeError):
        run_study(Squares(4, fails_at=1, seen=seen), to, CPU)
    run_study(Squares(4, seen=seen), to, CPU)
    assert seen[0] == [0, 1, 2, 3]


def test_a_cell_that_another_process_measures_is_left_to_it(tmp_path, capsys):
    to, seen = publication(tmp_path), ([],)

    @dataclass(frozen=True)
    class Busy(Squares):
        def measure(self, cell, device):
            if cell["n"] == 0:  # while this process measures the first cell
                run_study(Squares(3, seen=seen), replace(to, share=True), CPU)
                with pytest.raises(UsageError, match="give share=true to help"):
                    run_study(Squares(3, seen=seen), to, CPU)
            return super().measure(cell, device)

    folder = run_study(Busy(3, seen=seen), replace(to, share=True), CPU)
    assert "other processes measure 1 of 3" in capsys.readouterr().out
    assert seen[0] == [1, 2, 0] and (folder / "rows.csv").is_file()


@pytest.mark.parametrize(
    "line", [b"{", b"7", b"\xff\xfe", b'{"cell": {"n": 0}}', b"[" * 100_000], ids=range(5)
)
def test_damaged_rows_of_a_study_are_refused_before_a_measurement(tmp_path, line):
    seen = ([],)
    with pytest.raises(RuntimeError):
        run_study(Squares(4, fails_at=2, seen=seen), publication(tmp_path), CPU)
    (path,) = (tmp_path / "runs").rglob("rows-*.jsonl")
    sound = path.read_bytes()
    path.write_bytes(sound + line + b"\n")
    with pytest.raises(UsageError, match=r"rows-\w+\.jsonl is damaged"):
        run_study(Squares(4, seen=seen), publication(tmp_path), CPU)
    path.write_bytes(b"\xef\xbb\xbf" + sound)  # as an editor may leave it
    run_study(Squares(4, seen=seen), publication(tmp_path), CPU)
    assert seen[0] == [0, 1, 2, 3]


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"{}"], ids=repr)
def test_another_studys_damaged_provenance_is_refused_before_a_measurement(tmp_path, content):
    path = tmp_path / "results" / "other" / "provenance.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    seen = ([],)
    with pytest.raises(UsageError, match=r"other/provenance\.json is absent or damaged"):
        run_study(Squares(2, seen=seen), publication(tmp_path), CPU)
    assert not seen[0] and not (tmp_path / "results" / "squares").exists()


def test_stray_json_in_the_results_is_left_out_of_the_index(tmp_path):
    results = tmp_path / "results"
    (results / "folder.json").mkdir(parents=True)
    for name, content in (("a", b"{"), ("b", b"\xff"), ("c", b'{"date": 7, "title": "x|y\\nz"}')):
        (results / f"{name}.json").write_bytes(content)
    (results / "d.json").write_text('{"date": "2026-01-02"}', encoding="utf-8-sig")
    (results / "squares").mkdir()
    (results / "squares" / "provenance.json").write_text("{")  # its own: it is written anew
    run_study(Squares(1, seen=([],)), publication(tmp_path), CPU)
    index = (results / "README.md").read_text()
    assert r"| [x\|y z](c.json) | not recorded | none | 7 |" in index
    assert "(d.json)" in index and "(squares/table.md)" in index and "(a.json)" not in index


@pytest.mark.parametrize(
    ("ended", "status"),
    [(KeyboardInterrupt(), 130), (TrainingInterrupted(15, "go on with resume=/tmp/gone"), 143)],
    ids=["ctrl-c", "sigterm"],
)
def test_an_interrupted_study_says_what_is_kept_and_names_no_run(
    tmp_path, monkeypatch, ended, status
):
    def measure(self, cell, device):
        if cell["n"] == 2:
            raise ended
        return [{"power": 2, "value": 1.0}]

    monkeypatch.setattr(Squares, "measure", measure)
    with pytest.raises(TrainingInterrupted, match="2 of 4 measurements are finished") as error:
        run_study(Squares(4, seen=([],)), publication(tmp_path), CPU)
    assert error.value.status == status and "gone" not in str(error.value)


def test_a_stopped_training_keeps_its_reason_and_names_no_run(tmp_path, monkeypatch):
    def measure(self, cell, device):
        raise TrainingStopped("stopped at meta-step 3: the loss is nan; the state is in /tmp/gone")

    monkeypatch.setattr(Squares, "measure", measure)
    with pytest.raises(TrainingStopped, match="meta-step 3: the loss is nan; 0 of 4") as error:
        run_study(Squares(4, seen=([],)), publication(tmp_path), CPU)
    assert "gone" not in str(error.value)


@pytest.mark.parametrize("rows", ["", "a,b\n1,2\n", "n,power\n1,2\n", "n,power,value\n"])
def test_rows_of_another_form_cannot_be_made_again(tmp_path, rows):
    folder = run_study(Squares(3, seen=([],)), publication(tmp_path), CPU)
    (folder / "rows.csv").write_text(rows)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UsageError, match="measure=false"):
        run_study(Squares(3, seen=([],)), replace(publication(tmp_path), measure=False), CPU)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_that_takes_no_report_keeps_the_measurements(tmp_path):
    (tmp_path / "results" / "README.md").mkdir(parents=True)
    seen = ([],)
    with pytest.raises(UsageError, match="cannot be written"):
        run_study(Squares(2, seen=seen), publication(tmp_path), CPU)
    (tmp_path / "results" / "README.md").rmdir()
    run_study(Squares(2, seen=seen), publication(tmp_path), CPU)
    assert seen[0] == [0, 1]
