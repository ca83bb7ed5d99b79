"""A user's own images on the command line: trained on, moved, resumed and evaluated."""

from __future__ import annotations

import os
import signal
import time
import zipfile
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image

from metalearn.commands.main import main

WORDS = [
    *("tasks.ways=2", "tasks.queries=1", "tasks.image_size=8", "tasks.channels=1"),
    *("model=mlp", "model.sizes=[64,4,2]", "metagrad=maml_batched", "metagrad.inner.steps=1"),
    *("meta_batch=2", "validation.every=2", "validation.tasks=2", "test.tasks=2", "threads=1"),
    *("wandb=disabled", "problem.prox=0"),
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with photos/ of 10 classes."""
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for c in range(10):
        for i in range(3):
            path = tmp_path / "photos" / f"class{c}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (10, 9 + i), (25 * c, 10, 10)).save(path)
    return tmp_path


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(words) == 2
    *read, last = capsys.readouterr().err.splitlines()
    assert all("read the images" in line or "drew the splits" in line for line in read)
    return last


def test_a_run_on_own_images_is_resumed_and_evaluated_from_any_folder(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "data=photos/", "run_dir=run", "steps=2", *WORDS]) == 0
    stored = OmegaConf.load(home / "run" / "config.yaml")
    assert stored.tasks.dataset.source == str(home / "photos")
    assert "read the images" in capsys.readouterr().err
    (home / "elsewhere").mkdir()
    monkeypatch.chdir(home / "elsewhere")
    judge = ["evaluate", f"checkpoint={home}/run/best.pt", "tasks=2", "out=e.json"]
    assert main(judge) == 0
    assert main(["train", f"resume={home}/run", "steps=3"]) == 0
    (home / "photos").rename(home / "moved")
    assert "photos is not there" in refused(judge, capsys)
    assert "photos is not there" in refused(["train", f"resume={home}/run", "steps=4"], capsys)
    assert main([*judge, "source=../moved"]) == 0
    assert main(["train", f"resume={home}/run", "steps=4", "source=../moved"]) == 0
    stored = OmegaConf.load(home / "run" / "config.yaml")
    assert Path(stored.tasks.dataset.source).resolve() == home / "moved"
    assert main(["train", f"resume={home}/run", "steps=5"]) == 0
    assert "read the images" not in capsys.readouterr().err  # the cache knows them by content


def test_two_classes_in_every_split_are_trained_on_and_evaluated(home: Path) -> None:
    for path in (home / "photos").iterdir():
        if path.name > "class1":
            path.rename(home / path.name)
    words = ["train", "data=photos", "tasks.dataset.split_by=images", "run_dir=run", "steps=2"]
    words += ["tasks.dataset.fractions=[0.34,0.33,0.33]", "seed=1"]
    for c in range(2):
        for i in range(3, 6):
            Image.new("RGB", (9, 9), (25 * c, 10, 10)).save(home / f"photos/class{c}/{i}.png")
    assert main([*words, *WORDS]) == 0
    assert main(["evaluate", "checkpoint=run/best.pt", "tasks=2", "out=e.json"]) == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "data=nowhere"], "nowhere is not there"),
        (["train", "data="], "data=: expected the path of your images"),
        (["train", "data=.", "run_dir=run"], "run_dir=run: expected a folder outside the images"),
        (["train", "data=."], "run_dir=runs: expected a folder outside the images"),
        (["train", "data=photos", "tasks=omniglot"], "Leave one of them out"),
        (["train", "data=photos", "resume=run"], "Leave one of them out"),
        (["train", "tasks=sinusoid", "source=photos"], "tasks.dataset.source is no option"),
        (["train", "tasks=images"], "Give data=PATH"),
        (["train", "data=photos", "tasks.ways=9"], "ways=9, but the train split has"),
        (["train", "data=photos", "tasks.shots=3"], "the smallest class, 'class"),
        (["train", "data=photos", "tasks.dataset.fractions=[1,0,0]"], "fractions=[1, 0, 0]"),
        (["train", "data=photos", "tasks.dataset.split_by=class"], "'classes' or 'images'"),
        (["train", "data=photos", "+tasks.dataset.foo=1"], "foo=1: images has no such option"),
        (["train", "tasks=omniglot", "+tasks.dataset.foo=1"], "foo=1: omniglot has no such"),
        (["train", "tasks=glyphs", "+tasks.dataset._args_=[1]"], "_args_=[1]: glyphs has no"),
        (["train", "+tasks.dataset.drawing=1", "tasks=glyphs"], "did you mean 'drawings'"),
        (
            ["train", "tasks.dataset._target_=metalearn.tasks.LabelledImages"],
            "expected a function that reads a dataset",
        ),
    ],
    ids=lambda words: " ".join(words)[:60],
)
def test_a_mistake_in_the_data_gets_one_sentence(
    words: list[str], sentence: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {word.partition("=")[0].lstrip("+") for word in words}
    rest = [w for w in WORDS if w.partition("=")[0] not in given]
    if not any(word.startswith("data=") for word in words):
        rest = [w for w in rest if not w.startswith("tasks.")]
    assert sentence in refused([*words, *rest], capsys)
    assert not (home / "runs").exists()


def test_moved_data_of_tasks_without_files_is_refused(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tasks=sinusoid", "model=mlp_sinusoid", "steps=2", "run_dir=run"]
    assert main(["train", *words, *WORDS[6:], "model.sizes=[1,4,1]"]) == 0
    for command in (["evaluate", "checkpoint=run/best.pt"], ["train", "resume=run"]):
        said = refused([*command, "source=photos"], capsys)
        assert "expected tasks that are read from files" in said


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_prepare_leaves_nothing_for_long(signum: int, home: Path) -> None:
    """A terminated process tidies up itself; after a kill the next one does."""
    path = home / "big.zip"
    with zipfile.ZipFile(path, "w") as opened:
        for c in range(4):
            for i in range(400):
                opened.write(home / f"photos/class{c}/0.png", f"class{c}/{i}.png")
        opened.writestr("class0/noise.png", os.urandom(30_000_000))
    if (child := os.fork()) == 0:
        try:
            os._exit(main(["data", "prepare", "images", f"source={path}"]))
        except SystemExit as error:
            os._exit(int(str(error.code)))
    while not list(home.glob("cache/.*.part")):
        time.sleep(0.001)
    time.sleep(0.05)
    os.kill(child, signum)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == (143 if signum == signal.SIGTERM else -signum)
    if signum == signal.SIGKILL:
        assert list((home / "cache").iterdir())
        assert main(["data", "prepare", "images", "source=photos"]) == 0
    assert not list((home / "cache").glob(".*"))
