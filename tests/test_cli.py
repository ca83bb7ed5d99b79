"""What the command line says to a newcomer, and to a mistake."""

from __future__ import annotations

import pytest
from tiny_run import TINY

from metalearn.cli import main


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian"], "did you mean 'train'"),
        (["train", "stps=3"], "did you mean 'steps'"),
        (["train", "metagrad=imam"], "did you mean 'imaml'"),
        (["train", "metagrad.inner.step=3"], "did you mean 'metagrad.inner.steps'"),
        (["train", "tasks=omniglt"], "did you mean 'omniglot'"),
        (["train", "steps=abc"], "expected a whole number"),
        (["train", "steps=0"], "at least 1"),
        (["train", "transductive=3"], "true or false"),
        (["train", "prox=-1"], "at least 0"),
        (["train", "prox=0"], "prox above 0"),
        (["train", "metagrad.curvature=gauss"], "'hessian' or 'gauss_newton'"),
        (["train", "metagrad.linear_solver.max_iters=-2"], "negative"),
        (["train", "metagrad.inner.lr=0"], "lr above 0"),
        (["train", "tasks.ways=4000"], "4000"),
        (["train", "tasks.shots=9"], "images a class"),
        (["train", "schedule=linear"], "'constant' or 'cosine'"),
        (["train", "wandb=yes"], "'offline'"),
        (["train", "device=tpu0"], "'cpu' or 'cuda'"),
        (["train", "tasks.image_size=32"], "image_size"),
        (["train", "steps"], "key=value"),
        (["train", "resume=/nowhere"], "there is no run"),
        (["evaluate"], "checkpoint=PATH"),
        (["evaluate", "checkpoint=/nowhere.pt"], "no checkpoint"),
        (["data", "prepare", "omniglt"], "did you mean 'omniglot'"),
        (["data", "prepare", "glyphs", "source=/x"], "no option of glyphs"),
        (["data", "fetch"], "data prepare"),
    ],
    ids=" ".join,
)
def test_a_mistake_gets_one_sentence_and_writes_nothing(
    words, sentence, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    if words[0] == "train":
        chosen = {w.split("=")[0] for w in words}
        words = [words[0], *(t for t in TINY if t.split("=")[0] not in chosen), *words[1:]]
    assert main(words) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--help"], "train"),
        ([], "evaluate"),
        (["train", "--help"], "imaml_authors_code"),
        (["evaluate", "--help"], "checkpoint"),
        (["data", "--help"], "omniglot"),
        (["--version"], "0."),
    ],
)
def test_help(words, part, capsys):
    assert main(words) == 0
    assert part in capsys.readouterr().out


def test_data_prepare_says_what_it_made(capsys):
    assert main(["data", "prepare", "glyphs"]) == 0
    said = capsys.readouterr().out
    for split in ("train", "validation", "test"):
        assert f"glyphs {split}:" in said


def test_a_damaged_checkpoint_is_refused(tmp_path, capsys):
    path = tmp_path / "best.pt"
    path.write_bytes(b"not a checkpoint")
    assert main(["evaluate", f"checkpoint={path}"]) == 2
    assert "damaged" in capsys.readouterr().err
