"""From a folder of images to predictions on the command line: train, evaluate, adapt, predict."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import metalearn
from metalearn.commands.main import main
from metalearn.config import build
from metalearn.training import adapted, checkpoint

COLOURS = [(r, g, b) for r in (30, 220) for g in (30, 220) for b in (30, 130, 220)]
NEW = {"cat": (130, 30, 90), "owl": (90, 220, 130), "yak": (60, 90, 240)}
MODES = ("RGB", "RGBA", "P", "CMYK")
TRAIN = [
    *("train", "data=photos", "tasks.ways=2", "tasks.image_size=16", "model.channels=8"),
    *("metagrad=maml_batched", "metagrad.inner.steps=3", "meta_batch=4", "threads=1"),
    *("validation.every=30", "validation.tasks=4", "test.tasks=4", "wandb=disabled"),
    "tasks.dataset.fractions=[0.5,0.25,0.25]",  # so that the test has three classes
]


def draw(path: Path, colour: tuple[int, int, int], number: int) -> None:
    """A noisy colour with stripes, in a size and a mode of its own."""
    random = np.random.default_rng(number)
    height, width = random.integers(12, 40, 2)
    pixels = colour + random.normal(0, 15, (height, width, 3))
    pixels[::4] *= 0.7
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(MODES[number % 4])
    image.save(path.with_suffix(".tiff" if image.mode == "CMYK" else ".png"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run on photos/, and new/ and unknown/ of three other classes."""
    home = tmp_path_factory.mktemp("home")
    for label, colour in enumerate(COLOURS):
        for number in range(6):
            draw(home / "photos" / f"class{label}" / str(number), colour, number)
    for name, colour in NEW.items():
        for number in range(12):
            folder = home / "new" / name if number < 4 else home / "unknown"
            draw(folder / f"{name}{number}", colour, number)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("METALEARN_CACHE", str(home / "cache"))
        assert main([*TRAIN, "steps=30", "run_dir=run"]) == 0
        assert main([*TRAIN, "steps=1", "run_dir=free", "model.head=free"]) == 0
        assert main(["adapt", "checkpoint=run/best.pt", "support=new", "out=mine.pt"]) == 0
    return home


@pytest.fixture
def home(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of `trained` as the current one, to be changed."""
    monkeypatch.setenv("METALEARN_CACHE", str(trained / "cache"))
    shutil.copytree(trained, tmp_path / "h", ignore=shutil.ignore_patterns("cache"))
    monkeypatch.chdir(tmp_path / "h")
    return tmp_path / "h"


def predict(*words: str) -> dict[str, dict[str, Any]]:
    """The written rows by the name of the image."""
    assert main(["predict", *words]) == 0
    with Path("predictions.csv").open(newline="") as file:
        return {Path(row["path"]).name: row for row in csv.DictReader(file)}


def files() -> dict[Path, int]:
    """The time of the last change of each file here."""
    return {path: path.stat().st_mtime_ns for path in Path().rglob("*") if path.is_file()}


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a refusal that leaves the current folder as it was."""
    before = files()
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr().err
    assert files() == before
    assert said.count("\n") == 1
    return said


def test_photos_become_predictions_of_new_classes(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run was trained on tasks of two classes; the chance of three is 1/3."""
    words = ["ways=3", "shots=3", "queries=2", "tasks=10", "out=e.json"]
    assert main(["evaluate", "checkpoint=run/best.pt", *words]) == 0
    rows = json.loads(Path("e.json").read_text())["rows"]
    assert rows and all(row["ways"] == 3 and row["accuracy"] > 0.8 for row in rows)
    shutil.rmtree("run")  # the file alone predicts
    capsys.readouterr()
    found = predict("checkpoint=mine.pt", "images=unknown")
    assert capsys.readouterr().out == Path("predictions.csv").read_text()
    assert len(found) == 24
    assert np.mean([name.startswith(row["label"]) for name, row in found.items()]) > 0.8
    for row in found.values():
        assert list(row) == ["path", "label", *NEW]
        chances = {name: float(row[name]) for name in NEW}
        assert sum(chances.values()) == pytest.approx(1, abs=1e-5)
        assert row["label"] == max(chances, key=lambda name: chances[name])


def test_a_prediction_depends_on_no_other_image(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = predict("checkpoint=mine.pt", "images=unknown")
    monkeypatch.setattr(adapted, "BATCH", 1)  # then 12, the number of support images
    Path("some.csv").write_text("path\nunknown/cat4.png\nunknown/yak5.png\n")
    for images in ("unknown", "some.csv", "unknown/owl6.png"):
        for name, row in predict("checkpoint=mine.pt", f"images={images}").items():
            for label in NEW:
                assert float(row[label]) == pytest.approx(float(together[name][label]), abs=1e-4)


def test_the_adapted_parameters_are_those_of_gradient_descent(home: Path) -> None:
    """Zero steps leave the start; a CSV with the images in another order adapts to the same."""
    words = ["adapt", "checkpoint=run/best.pt"]
    images = sorted(Path("new").rglob("*.*"))[::-1]
    lines = [f"{path},{path.parent.name}" for path in images]
    Path("new.csv").write_text("\n".join(["path,label", *lines]))
    assert main([*words, "support=new.csv", "out=table.pt"]) == 0
    assert main([*words, "support=new", "out=start.pt", "inner_steps=0"]) == 0
    folder, table, start = (checkpoint.read(Path(f"{n}.pt")) for n in ("mine", "table", "start"))
    for name, x in folder["adapted"]["params"].items():
        torch.testing.assert_close(table["adapted"]["params"][name], x, rtol=1e-3, atol=1e-4)
        begun = start["adapted"]["params"][name][0]
        torch.testing.assert_close(begun, folder["meta"].get(name, torch.zeros_like(begun)))
        assert not torch.equal(x[0], begun)
    assert folder["provenance"]["versions"]["metalearn"] == metalearn.__version__


def test_an_odd_image_is_named_and_left_out(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("unknown/torn.png").write_bytes(b"\x89PNG torn")
    found = predict("checkpoint=mine.pt", "images=unknown")
    assert "torn.png cannot be read" in capsys.readouterr().err
    assert len(found) == 24 and "torn.png" not in found


def test_a_free_head_takes_as_many_classes_as_it_was_trained_with(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["adapt", "checkpoint=free/best.pt", "support=new", "out=free.pt"]
    assert "support=new has 3 classes: expected 2" in refused(words, capsys)
    shutil.rmtree("new/owl")
    assert main(words) == 0
    assert set(predict("checkpoint=free.pt", "images=unknown")["cat4.png"]) >= {"cat", "yak"}


@pytest.mark.parametrize("words", [["problem=ridge"], ["problem=ridge", "statistics=population"]])
def test_a_shared_body_predicts_from_its_file_alone(words: list[str], home: Path) -> None:
    own = ["metagrad=implicit_closed_form", "problem.transductive=false", "run_dir=ridge"]
    rest = [word for word in TRAIN if not word.startswith("metagrad")]
    words = [word.replace("statistics", "problem.statistics") for word in words]
    assert main([*rest, *own, *words, "steps=4"]) == 0
    assert main(["adapt", "checkpoint=ridge/last.pt", "support=new", "out=ridge.pt"]) == 0
    for folder in ("photos", "new", "ridge"):
        shutil.rmtree(folder)
    found = predict("checkpoint=ridge.pt", "images=unknown")
    assert np.mean([name.startswith(row["label"]) for name, row in found.items()]) > 0.8


def test_dark_ink_is_inverted_for_a_run_on_light_ink(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        for name, side in (("wide", (40, 4)), ("tall", (4, 40))):
            page = Image.new("L", (60, 60), 255)
            page.paste(0, (10, 10, 10 + side[0], 10 + side[1] + number))
            folder = Path("pages" if number < 2 else "queries") / name
            folder.mkdir(parents=True, exist_ok=True)
            page.save(folder / f"{name}{number}.png")
    words = ["adapt", "checkpoint=omniglot_5w1s_maml_quick", "support=pages"]
    assert main([*words, "out=ink.pt"]) == 0
    assert "swapped dark and light" in capsys.readouterr().out
    assert checkpoint.read(Path("ink.pt"))["adapted"]["inverted"] is True
    for name, row in predict("checkpoint=ink.pt", "images=queries").items():
        assert name.startswith(row["label"])
    assert main([*words, "out=ink.pt", "invert=false"]) == 0
    assert checkpoint.read(Path("ink.pt"))["adapted"]["inverted"] is False


ADAPT = ["adapt", "checkpoint=run/best.pt", "support=new", "out=x.pt"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([*ADAPT, "support=new/cat"], "none of the layouts"),
        ([*ADAPT, "support=new/cat/cat0.png"], "is a file"),
        ([*ADAPT, "support=split.csv"], "it has the splits test, train"),
        ([*ADAPT, "support=one.csv"], "the class 'cat' alone"),
        ([*ADAPT, "support=odd.csv"], "the class 'path'"),
        ([*ADAPT, "support=torn.csv"], "torn.png cannot be read"),
        ([*ADAPT, "support=twice.csv"], "is there twice"),
        ([*ADAPT, "out=run/best.pt"], "is no adapted model"),
        ([*ADAPT, "out=torn.png"], "is no adapted model"),
        ([*ADAPT, "inner_steps=-1"], "at least 0"),
        ([*ADAPT, "checkpoint=mine.pt"], "expected the checkpoint of a run"),
        ([*ADAPT, "source=elsewhere"], ""),
        (["evaluate", "checkpoint=mine.pt"], "expected the checkpoint of a run"),
        (["predict", "checkpoint=run/best.pt", "images=new"], "is no adapted model"),
        (["predict", "checkpoint=none.pt", "images=new"], "expected a file of `metalearn adapt`"),
        (["predict", "checkpoint=mine.pt", "images=empty"], "it has no image"),
        (["predict", "checkpoint=mine.pt", "images=absent"], "absent is not there"),
        (["predict", "checkpoint=mine.pt", "images=torn.png"], ""),
        (["predict", "checkpoint=mine.pt", "images=one.csv", "out=one.csv"], "other than images="),
        (["predict", "checkpoint=bad.pt", "images=new"], "bad.pt is damaged"),
        (["predict", "checkpoint=odd.pt", "images=new"], "another params"),
    ],
    ids=lambda words: " ".join(words[1:])[:60] if isinstance(words, list) else "",
)
def test_a_mistake_gets_one_sentence(
    words: list[str], sentence: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("split.csv").write_text("path,label,split\nnew/cat/cat0.png,a,train\ntorn.png,b,test\n")
    Path("one.csv").write_text("path,label\nnew/cat/cat0.png,cat\n")
    Path("odd.csv").write_text("path,label\nnew/cat/cat0.png,path\nnew/owl/owl0.png,b\n")
    Path("torn.csv").write_text("path,label\nnew/cat/cat0.png,a\ntorn.png,b\n")
    Path("twice.csv").write_text("path,label\nnew/cat/cat0.png,a\nnew/cat/cat0.png,b\n")
    Path("torn.png").write_bytes(b"torn")
    Path("empty").mkdir()
    whole = Path("mine.pt").read_bytes()
    Path("bad.pt").write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    state = checkpoint.read(Path("mine.pt"))
    own = state["adapted"]
    params = {name: x[..., :1] for name, x in own["params"].items()}
    checkpoint.save(Path("odd.pt"), {**state, "adapted": {**own, "params": params}})
    given = {word.partition("=")[0]: word for word in words[1:]}
    if sentence:
        assert sentence in refused([words[0], *given.values()], capsys)
    elif words[0] == "predict":
        assert main([words[0], *given.values()]) == 2
        assert "none of 1 can be" in capsys.readouterr().err
        assert not Path("predictions.csv").exists()
    else:  # the training data is not read
        assert main([words[0], *given.values()]) == 0


def test_a_problem_that_predicts_no_classes_is_refused(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path(__file__).parents[2] / "docs" / "own.md"
    code, *_ = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    Path("my_adapt_module.py").write_text(code)
    monkeypatch.setattr(build, "_IMPORTED", set())
    monkeypatch.syspath_prepend(str(home))
    own = ["import=my_adapt_module", "problem._target_=my_adapt_module.Ridge", "tasks=sinusoid"]
    own += ["model=mlp_sinusoid", "steps=1", "run_dir=own", "metagrad=maml_batched"]
    assert main(["train", *own, "validation.tasks=2", "test.tasks=2", "wandb=disabled"]) == 0
    words = ["adapt", "checkpoint=own/best.pt", "support=new", "out=x.pt"]
    assert "expected a problem that predicts classes" in refused([*words, own[0]], capsys)
