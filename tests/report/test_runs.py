"""Training runs on the page: their methods, their evaluations and their learning curves."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from made_up import SUMMARY
from omegaconf import OmegaConf
from report_page import Page, page

from metalearn.commands.main import main
from metalearn.config import compose
from metalearn.report import accuracy, collect

ROOT = Path(__file__).parents[2]
EXPERIMENT = "omniglot_5w1s_maml"


def trained(folder: Path, *words: str, **summary) -> Path:
    """Make the folder of a run of the experiment, as training leaves it."""
    cfg = compose("train", [f"experiment={EXPERIMENT}", *words])
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    summary = {**SUMMARY, "name": cfg.name, "steps": cfg.steps, "meta_batch": 32, **summary}
    (folder / "summary.json").write_text(json.dumps({**summary, "test_accuracy": 0.9111}))
    return folder


@pytest.mark.parametrize("words", [(), ("seed=3", "steps=9", "device=cpu", "threads=2")])
def test_an_experiments_own_run_has_its_method(tmp_path, results, words):
    made = page(tmp_path, results, f"runs=[{trained(tmp_path / 'mine', *words)}]")
    assert any(row[:2] == ["MAML", "91.11 ± 1.73"] for t in made.tables for row in t)


@pytest.mark.parametrize(
    ("words", "setting", "changed"),
    [
        (["metagrad=imaml"], "5-way 1-shot", "changed: metagrad"),
        (["tasks.ways=2"], "2-way 1-shot", "changed: tasks.ways"),
        (["metagrad.inner.lr=0.1"], "5-way 1-shot", "changed: metagrad.inner.lr"),
        (["tasks=glyphs"], "Glyphs 5-way", "changed: tasks"),
    ],
)
def test_a_changed_run_is_not_the_experiments(tmp_path, results, words, setting, changed):
    folder = trained(tmp_path / "mine", *words)
    summary = json.loads((folder / "summary.json").read_text())
    lone = {**summary, "command": f"metalearn train experiment={EXPERIMENT} {words[0]}"}
    for out in ("folder", "lone"):
        if out == "folder":
            made = page(tmp_path / out, results, f"runs=[{folder}]")
        else:
            (results / "lone.json").write_text(json.dumps(lone))
            made = page(tmp_path / out, results)
        (method,) = {row[0] for t in made.tables for row in t if "91.11 ± 1.73" in row}
        assert method.startswith(f"{EXPERIMENT}, changed: ") and changed[9:] in method
        (finding,) = [line for line in made.text.splitlines() if f"{method} 91.11" in line]
        assert setting in finding.partition(" after ")[0]


def test_a_changed_run_is_told_without_pytorch(tmp_path, results):
    folder = trained(tmp_path / "mine", "metagrad.inner.lr=0.1")
    program = (
        "import sys; from metalearn.commands.main import main\n"
        f"words = ['results={results}', 'runs=[{folder}]', 'out={tmp_path}/r']\n"
        "assert main(['report', *words]) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert "changed: metagrad.inner.lr" in (tmp_path / "r").read_text()


def test_a_run_whose_config_is_damaged_is_not_the_experiments(tmp_path, results):
    folder = trained(tmp_path / "mine")
    (folder / "config.yaml").write_text("{")
    made = page(tmp_path, results, f"runs=[{folder}]")
    (method,) = {row[0] for t in made.tables for row in t if "91.11 ± 1.73" in row}
    assert method == f"{EXPERIMENT}, changed: its config is not known"


def test_evaluations_of_a_run_count_beside_its_summary(tmp_path, results):
    rows = [
        {"mode": mode, "accuracy": accuracy, "accuracy_interval": 0.01, "ways": 5, "shots": 1}
        | {"inner_steps": steps, "trained_inner_steps": 16, "tasks": 4000}
        for mode, steps, accuracy in (
            ("transductive", 16, 0.9876),
            ("inductive", 16, 0.9654),
            ("transductive", 3, 0.9999),
        )
    ]
    path = results / "omniglot_500" / "omniglot_5w1s_imaml-5-way.json"
    path.write_text(json.dumps({"command": "metalearn evaluate", "rows": rows}))
    made = page(tmp_path, results)
    assert "Best of our runs: 98.76 ± 1.00 %" in made.text
    assert "iMAML, gradient descent, inductive 96.54 ± 1.00 %" in made.text
    assert "56.80 ±" not in made.text and "99.99" not in made.text.partition("Made by")[0]


def test_the_best_of_the_repositorys_runs_is_on_the_page(tmp_path):
    folder = ROOT / "results"
    found = collect.results(folder)[2]
    longest = json.loads((folder / "omniglot_long" / f"{EXPERIMENT}_long.json").read_text())
    best = max(
        row["accuracy"]
        for path in folder.glob("omniglot_*/*-5-way.json")
        for row in json.loads(path.read_text())["rows"]
        if row["shots"] == 1
    )
    texts = [f"{100 * x:.2f} ±" for x in (longest["test_accuracy"], best)]
    said = [f for f in accuracy.findings(found) if f.startswith("Omniglot 5-way 1-shot")]
    assert texts[0] in " ".join(said) and texts[1] in said[-1].partition("Best of our runs")[2]


@pytest.mark.parametrize(
    "metrics",
    [
        b"\xff\xfe{}\n",
        b'{"step": 1e999, "validation_accuracy": 1}\n',
        b'{"step": ' + b"9" * 400 + b', "validation_accuracy": 0.5}\n',
        b'{"step": "x", "validation_accuracy": [1]}\n[]\nnull\n' + b"[" * 100_000,
    ],
    ids=["bytes", "infinite", "huge", "types"],
)
def test_rows_of_metrics_that_cannot_be_drawn_are_left_out(tmp_path, results, metrics):
    folder = trained(tmp_path / "mine")
    sound = [{"step": n, "validation_accuracy": 0.5} for n in (10, 20)]
    lines = "".join(f"{json.dumps(row)}\n" for row in sound).encode()
    (folder / "metrics.jsonl").write_bytes(metrics + b"\n" + lines)
    made = page(tmp_path, results, f"runs=[{folder}]")
    assert "Validation accuracy over training" in made.text


def test_an_interval_of_two_tasks_may_be_wider_than_all_accuracies(tmp_path, results):
    (results / "run.json").write_text(json.dumps({**SUMMARY, "test_accuracy_interval": 1.27}))
    assert main(["report", f"results={results}", f"out={tmp_path}/r.html"]) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"test_accuracy": True},
        {"test_accuracy": math.nan},
        {"test_accuracy_interval": -1},
        {"steps": 10**400},
        {"peak_memory_bytes": [1]},
    ],
    ids=str,
)
def test_a_number_of_a_summary_that_is_none_is_one_sentence(tmp_path, results, capsys, change):
    (results / "run.json").write_text(json.dumps({**SUMMARY, **change}))
    assert main(["report", f"results={results}", f"out={tmp_path}/r.html"]) == 2
    said = capsys.readouterr().err
    assert f"run.json has {next(iter(change))}=" in said and said.count("\n") == 1


def test_ones_own_runs_alone_make_a_page_away_from_the_repository(tmp_path, monkeypatch):
    folder = trained(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert main(["report", f"runs=[{folder}]", "out=r.html"]) == 0
    assert "91.11 ±" in Page(tmp_path / "r.html").text
    for words in ([], [f"runs=[{folder}]", "results=nowhere"], ["runs=['']"]):
        assert main(["report", *words, "out=s.html"]) == 2
        assert not (tmp_path / "s.html").exists()
    shutil.move(folder, tmp_path / "runs" / "mine")  # where `metalearn train` leaves it
    assert main(["report"]) == 0
    assert "91.11 ±" in Page(tmp_path / "runs" / "report.html").text
