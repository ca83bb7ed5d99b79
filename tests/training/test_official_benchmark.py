"""The official one-shot test of the Omniglot release: its archive, and checkpoints."""

from __future__ import annotations

import io
import json
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import conv_run

from metalearn.commands.main import main
from metalearn.errors import UsageError
from metalearn.tasks import LabelledImages
from metalearn.tasks.omniglot_official import official_runs
from metalearn.training import checkpoint
from metalearn.training.fingerprint import hash_each
from metalearn.training.protocol import EvaluationProtocol


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return conv_run(tmp_path_factory.mktemp("runs") / "r")


def drawing(character: int, shift: int) -> bytes:
    """White paper with a character's own pattern of 5x5 squares, moved by some pixels."""
    cells = np.random.default_rng(character).integers(0, 2, (5, 5)).astype(bool)
    ink = np.zeros((105, 105), bool)
    ink[15 + shift : 75 + shift, 15:75] = np.kron(cells, np.ones((12, 12), bool))
    buffer = io.BytesIO()
    Image.fromarray(~ink).save(buffer, "PNG")
    return buffer.getvalue()


def archive(path: Path, runs: int = 20, items: int = 20, top: str = "") -> Path:
    """all_runs.zip in its format; query i of run r is of class (7 i + r) mod 20 there."""
    with zipfile.ZipFile(path, "w") as file:
        for r in range(1, runs + 1):
            where, labels = f"run{r:02}", []
            for i in range(items):
                of = (7 * i + r) % 20
                names = f"{where}/test/item{i + 1:02}.png", f"{where}/training/class{of + 1:02}.png"
                labels.append(" ".join(names))
                file.writestr(f"{top}{where}/training/class{i + 1:02}.png", drawing(i + 50 * r, 0))
                file.writestr(f"{top}{where}/test/item{i + 1:02}.png", drawing(of + 50 * r, 3))
            file.writestr(f"{top}{where}/class_labels.txt", "\n".join(labels) + "\n")
    return path


@pytest.fixture(scope="module")
def all_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return archive(tmp_path_factory.mktemp("official") / "all_runs.zip")


def test_the_runs_are_read_in_the_archives_own_order_of_answers(all_runs):
    task = official_runs(all_runs)
    assert task.support_x.shape == task.query_x.shape == (20, 20, 1, 28, 28)
    assert task.support_x.max() > 0.9 and task.support_x.mean() < 0.5  # ink high
    expected = [[(7 * i + r) % 20 for i in range(20)] for r in range(1, 21)]
    assert task.query_y.tolist() == expected
    # Each query is its class's drawing moved by 3 of 105 pixels: nearest neighbours know it.
    support, query = task.support_x.flatten(2), task.query_x.flatten(2)
    nearest = torch.cdist(query, support).argmin(-1)
    assert (nearest == task.query_y).float().mean() > 0.9


def test_a_folder_around_the_runs_does_not_matter(all_runs, tmp_path):
    within = official_runs(archive(tmp_path / "a.zip", top="all_runs/"))
    assert torch.equal(within.query_x, official_runs(all_runs).query_x)


def damaged(path: Path, kind: str) -> Path:
    if kind == "absent":
        return path
    if kind == "text":
        path.write_text("no archive")
        return path
    archive(path, runs=3 if kind == "3 runs" else 20, items=19 if kind == "19 items" else 20)
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:20000])
    return path


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("absent", "is no file"),
        ("text", "not a zip archive"),
        ("cut", "not a zip archive"),
        ("3 runs", "3 runs instead of 20"),
        ("19 items", "instead of 20 each"),
    ],
)
def test_a_damaged_archive_is_one_sentence(tmp_path, kind, sentence):
    with pytest.raises(UsageError, match=sentence):
        official_runs(damaged(tmp_path / "all_runs.zip", kind))


def test_a_list_of_labels_that_would_fill_the_memory_is_not_unpacked(tmp_path):
    """The list takes a thousandth of its size in the archive."""
    path = tmp_path / "all_runs.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for r in range(1, 21):
            file.writestr(f"run{r:02}/class_labels.txt", bytes((64 << 20) if r == 1 else 0))
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match=r"run01/class_labels\.txt in .* is too large"):
            official_runs(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_the_official_test_by_the_command(all_runs, tmp_path, capsys):
    path = conv_run(tmp_path / "r", "tasks.ways=20", "steps=1")
    words = ["evaluate", "benchmark=omniglot_official", f"source={all_runs}", f"checkpoint={path}"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "inductive, 3 inner steps" in said and "trained on" not in said
    found = json.loads((path.parent / "evaluation.json").read_text())
    rows = found["rows"]
    assert [row["mode"] for row in rows] == ["transductive", "inductive"]
    assert {row["tasks"] for row in rows} == {20}
    assert {row["characters_trained_on"] for row in rows} == {0}
    assert str(tmp_path) not in json.dumps(found)
    # An accuracy over 20 runs of 20 queries is a number of four hundredths.
    assert all(
        (400 * row["accuracy"]) == pytest.approx(round(400 * row["accuracy"])) for row in rows
    )


def test_characters_that_a_run_trained_on_are_counted(all_runs, tmp_path, monkeypatch, capsys):
    path = conv_run(tmp_path / "r", "tasks.ways=20", "steps=1")
    runs = official_runs(all_runs)
    shown = (runs.support_x[0, :7] * 255).round().to(torch.uint8)
    train = LabelledImages(shown, torch.arange(7), tuple("abcdefg"))
    monkeypatch.setattr("metalearn.tasks.ImageTasks.split", lambda self, name: train)
    protocol = EvaluationProtocol("omniglot_official", str(all_runs))
    assert protocol.rows(path)[0]["characters_trained_on"] == 0  # by the record of its data
    state = checkpoint.load(path)
    state["data"]["train"]["examples"][:3] = hash_each(shown[:3])
    checkpoint.save(path, state)
    assert protocol.rows(path)[0]["characters_trained_on"] == 3
    del state["data"]  # as in a checkpoint of an earlier release: the data of now count
    checkpoint.save(path, state)
    (row, *_) = protocol.rows(path)
    assert row["characters_trained_on"] == 7 and row["characters"] == 400
    assert "7 of the 400 characters" in EvaluationProtocol.note(row)


def test_a_five_way_run_cannot_take_the_official_test(all_runs, trained, capsys):
    words = [f"checkpoint={trained}", "benchmark=omniglot_official", f"source={all_runs}"]
    assert main(["evaluate", *words]) == 2
    said = capsys.readouterr().err
    assert "have 5 ways" in said and said.count("\n") == 1
