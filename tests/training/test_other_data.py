"""A run whose data have changed since: what is refused, and what is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import TINY

from metalearn.commands.main import main
from metalearn.training import checkpoint


def photos(root: Path, classes: range, each: int = 6, name: str = "class") -> Path:
    for label in classes:
        folder = root / f"{name}{label}"
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(each):
            noise = np.random.default_rng([label, number]).integers(0, 256, (8, 8))
            Image.fromarray(noise.astype(np.uint8)).save(folder / f"{number}.png")
    return root


def train(root: Path, folder: Path, *words: str) -> Path:
    own = [f"data={root}", "tasks.ways=2", "tasks.queries=2", "tasks.image_size=8"]
    own += ["tasks.channels=1", "model.sizes=[64,4,2]", "wandb=disabled", f"run_dir={folder}"]
    tiny = [word for word in TINY if not word.startswith(("tasks", "model.sizes"))]
    assert main(["train", *tiny, *own, *words]) == 0
    return folder / "best.pt"


def evaluated(path: Path) -> dict:
    row: dict = json.loads((path.parent / "evaluation.json").read_text())["rows"][0]
    return row


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path]:
    root = photos(tmp_path / "photos", range(12))
    return root, train(root, tmp_path / "run")


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr().err.splitlines()
    return said[-1]


def test_more_classes_are_refused_where_they_move_the_others(made, tmp_path, capsys):
    """With three more the draw has class4 in the validation split, which was in training."""
    root, path = made
    photos(root, range(3), name="k")
    words = ["evaluate", f"checkpoint={path}", "tasks=4", "split=validation"]
    said = refused(words, capsys)
    assert f"{path} was trained on class 'class4', which is in the validation split" in said
    assert not (path.parent / "evaluation.json").exists()

    before = {p.name: p.read_bytes() for p in path.parent.iterdir() if p.is_file()}
    said = refused(["train", f"resume={path.parent}", "steps=8"], capsys)
    assert "class 'class4' is in validation, and was in train when" in said
    assert "Put them back" in said
    assert {p.name: p.read_bytes() for p in path.parent.iterdir() if p.is_file()} == before


def test_the_same_data_elsewhere_are_the_same(made, tmp_path, capsys):
    root, path = made
    shutil.move(root, tmp_path / "moved")
    words = [f"checkpoint={path}", "tasks=4", f"source={tmp_path / 'moved'}"]
    assert main(["evaluate", *words]) == 0
    assert "other_data" not in evaluated(path)
    assert main(["train", f"resume={path.parent}", "steps=8", f"source={tmp_path / 'moved'}"]) == 0


def test_new_classes_are_judged_with_a_remark(made, tmp_path, capsys):
    _, path = made
    root = photos(tmp_path / "new", range(100, 112))
    assert main(["evaluate", f"checkpoint={path}", "tasks=4", f"source={root}"]) == 0
    remark = evaluated(path)["other_data"]
    assert "is in test, and was in no split" in remark
    assert f"{remark} in training" in capsys.readouterr().out


def test_changed_images_of_the_same_classes(tmp_path, capsys):
    """With the same classes in every split an image of the test may be one of the training."""
    root = photos(tmp_path / "photos", range(3), each=20)
    path = train(root, tmp_path / "run", "tasks.dataset.split_by=images")
    assert main(["evaluate", f"checkpoint={path}", "tasks=4"]) == 0
    assert "other_data" not in evaluated(path)
    photos(root, range(3), each=40)
    for words in (
        ["evaluate", f"checkpoint={path}"],
        ["train", f"resume={path.parent}", "steps=8"],
    ):
        said = refused(words, capsys)
        assert "the images of the" in said and "are not what they were when" in said


def test_a_checkpoint_of_an_earlier_release_says_nothing_of_its_data(made, tmp_path):
    _, path = made
    root = photos(tmp_path / "new", range(100, 112))
    for file in path.parent.glob("*.pt"):
        state = checkpoint.load(file)
        del state["data"]
        checkpoint.save(file, state)
    assert main(["evaluate", f"checkpoint={path}", "tasks=4", f"source={root}"]) == 0
    assert "other_data" not in evaluated(path)
    assert main(["train", f"resume={path.parent}", "steps=8", f"source={root}"]) == 0


def test_altered_records_are_refused(made, capsys):
    _, path = made
    state = checkpoint.load(path)
    for data in ([], {"train": {}}, {"train": {"classes": [1]}}):
        checkpoint.save(path, {**state, "data": data})
        said = refused(["evaluate", f"checkpoint={path}", "tasks=4"], capsys)
        assert "holds another data than a run saves" in said
