"""The evaluation of checkpoints on held-out classes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from tiny_run import conv_run, run

from metalearn.commands.evaluate import over_seeds
from metalearn.commands.main import main
from metalearn.errors import UsageError
from metalearn.inner import GradientDescent
from metalearn.metagrad import FirstOrder
from metalearn.nn import Conv4
from metalearn.problem import FewShot
from metalearn.tasks import ImageTaskSampler, LabelledImages
from metalearn.training import checkpoint
from metalearn.training.estimate import Estimate
from metalearn.training.evaluation import evaluate, evaluate_each
from metalearn.training.fingerprint import digest_names
from metalearn.training.protocol import EvaluationProtocol


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return conv_run(tmp_path_factory.mktemp("runs") / "r")


@pytest.fixture(scope="module")
def symmetric(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return conv_run(tmp_path_factory.mktemp("runs") / "s", "model.head=zero")


@pytest.mark.parametrize("out", [".", "absent/e.json", "e.json/e.json"])
def test_where_it_is_to_be_written_is_looked_at_first(trained, tmp_path, monkeypatch, capsys, out):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(EvaluationProtocol, "rows", None)  # it is not come to that
    (tmp_path / "e.json").write_text("{}")
    assert main(["evaluate", f"checkpoint={trained}", f"out={out}"]) == 2
    said = capsys.readouterr().err
    assert f"out={out} " in said and said.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["e.json"]


def test_both_modes_and_each_number_of_steps_are_rows_with_their_origin(trained, tmp_path, capsys):
    out = tmp_path / "out.json"
    words = [f"checkpoint={trained}", "tasks=12", "inner_steps=[0,1,3]", f"out={out}"]
    assert main(["evaluate", *words]) == 0
    found = json.loads(out.read_text())
    cells = [(row["mode"], row["inner_steps"]) for row in found["rows"]]
    assert cells == [(m, s) for s in (0, 1, 3) for m in ("transductive", "inductive")]
    assert found["machine"] and found["command"] and "commit" in found
    for row in found["rows"]:
        assert row["trained_inner_steps"] == 3 and row["tasks"] == 12 and row["split"] == "test"
        assert 0 <= row["accuracy"] <= 1 and row["accuracy_interval"] > 0
    # As evaluating one mode and number of steps alone.
    alone = EvaluationProtocol(tasks=12, modes=["inductive"], inner_steps=[1]).rows(trained)
    assert [
        row for row in found["rows"] if (row["mode"], row["inner_steps"]) == ("inductive", 1)
    ] == [{"checkpoint": f"{trained.parent.name}/best.pt", **alone[0]}]
    assert not list(tmp_path.glob(".*"))


def test_steps_that_diverge_are_told_and_not_written_as_numbers(tmp_path, capsys):
    folder = tmp_path / "r"
    assert run(folder, "metagrad=first_order", "metagrad.inner.lr=1e6", "wandb=disabled") in (0, 1)
    checkpoint = folder / ("best.pt" if (folder / "best.pt").exists() else "last.pt")
    assert main(["evaluate", f"checkpoint={checkpoint}", "tasks=4", "inner_steps=[60]"]) == 0
    rows = json.loads((folder / "evaluation.json").read_text())["rows"]
    assert all(row["loss"] is None or row["loss"] > 1 for row in rows)


def test_several_checkpoints_give_the_spread_over_them(trained, tmp_path, capsys):
    second = conv_run(tmp_path / "s1", "seed=1")
    out = tmp_path / "out.json"
    both = f"checkpoint=[{trained},{second}]"
    assert main(["evaluate", both, "tasks=8", f"out={out}"]) == 0
    found = json.loads(out.read_text())
    assert "2 checkpoints" in capsys.readouterr().out
    (spread, _) = found["over_checkpoints"]
    pair = [r["accuracy"] for r in found["rows"] if r["mode"] == "transductive"]
    assert spread["accuracy"] == pytest.approx(sum(pair) / 2)
    assert spread["deviation"] == pytest.approx(abs(pair[0] - pair[1]) / 2**0.5)
    assert over_seeds(found["rows"][:2]) == []  # one checkpoint has no spread


def test_a_split_that_shares_a_class_with_training_is_no_held_out_one(trained, monkeypatch):
    from metalearn.tasks import ImageTasks

    monkeypatch.setattr(ImageTasks, "classes", lambda self, split: ("x", split))
    with pytest.raises(UsageError, match="shares x with the training split"):
        EvaluationProtocol(tasks=4).rows(trained)


def test_a_digest_is_that_of_the_names(trained):
    (row, _) = EvaluationProtocol(tasks=4, split="validation").rows(trained)
    from metalearn.tasks.glyphs import glyphs

    classes = glyphs(drawings=4)["validation"].classes
    assert row["classes_sha256"] == hashlib.sha256("\n".join(classes).encode()).hexdigest()
    assert digest_names(classes) == row["classes_sha256"] and row["classes"] == len(classes)


def test_each_problem_is_judged_as_alone():
    images = torch.randint(256, (60, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    data = LabelledImages(images.byte(), torch.arange(6).repeat_interleave(10), tuple("abcdef"))
    torch.manual_seed(0)
    model = Conv4(3, channels=4)
    problems = {mode: FewShot(model, transductive=mode == "t") for mode in ("t", "i")}
    metagrad, meta = FirstOrder(GradientDescent(2, 0.1)), dict(model.named_parameters())

    def sampler() -> ImageTaskSampler:
        return ImageTaskSampler(data, 3, 1, 2, seed=4)

    both = evaluate_each(problems, metagrad, meta, sampler(), 5, batch=2)
    for mode, problem in problems.items():
        assert both[mode] == evaluate(problem, metagrad, meta, sampler(), 5, batch=2)
    assert both["t"] != both["i"]
    assert isinstance(both["t"]["accuracy"], Estimate)


@pytest.mark.parametrize("prefix", ["", "tasks."])
def test_tasks_of_other_ways_and_shots(symmetric, tmp_path, prefix):
    out = tmp_path / "out.json"
    words = [f"checkpoint={symmetric}", "tasks=8", "queries=1", "transductive=true", f"out={out}"]
    assert main(["evaluate", *words, f"{prefix}ways=3", f"{prefix}shots=2"]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["ways"], row["shots"]) == (3, 2)
    # An accuracy over 8 tasks of 3 queries is a number of twenty-fourths.
    assert 24 * row["accuracy"] == pytest.approx(round(24 * row["accuracy"]))
    assert main(["evaluate", *words]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["ways"], row["shots"]) == (5, 1)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("ways=1", "nothing to tell apart"),
        ("ways=100000", "ask for fewer ways"),
        ("shots=4", "images a class"),
        ("shots=0", "at least 1"),
    ],
)
def test_ways_and_shots_that_cannot_be_had_are_refused(symmetric, capsys, word, sentence):
    assert main(["evaluate", f"checkpoint={symmetric}", "tasks=8", word]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


@pytest.mark.parametrize("word", ["ways=3", "ways=6", "tasks.ways=6"])
def test_a_free_head_takes_no_other_ways(trained, capsys, word):
    assert main(["evaluate", f"checkpoint={trained}", "tasks=8", word]) == 2
    sentence = f"{word.removeprefix('tasks.')}: expected 5, for the head"
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


@pytest.fixture
def kept(trained, tmp_path, monkeypatch):
    """A working directory whose results/ keeps two initialisations."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results" / "inits" / "deep"
    folder.mkdir(parents=True)
    for name in ("letters_5w1s", "shapes"):
        (folder / f"{name}.pt").write_bytes(trained.read_bytes())
    return folder


def test_a_kept_initialisation_is_evaluated_by_its_name(kept, trained, tmp_path, capsys):
    before = {path: path.read_bytes() for path in (tmp_path / "results").rglob("*.pt")}
    assert main(["evaluate", "checkpoint=letters_5w1s", "tasks=8"]) == 0
    found = json.loads((tmp_path / "runs" / "letters_5w1s-evaluation.json").read_text())["rows"]
    alone = EvaluationProtocol(tasks=8).rows(trained)
    assert found == [{"checkpoint": "deep/letters_5w1s.pt", **row} for row in alone]
    assert {path for path in (tmp_path / "results").rglob("*") if path.is_file()} == set(before)
    words = ["checkpoint=[letters_5w1s,shapes]", "ensemble=true", "tasks=8", "out=e.json"]
    assert main(["evaluate", *words]) == 0


def test_names_that_are_none_or_of_two_are_one_sentence(kept, tmp_path, capsys):
    assert main(["evaluate", "checkpoint=leters_5w1s"]) == 2
    said = capsys.readouterr().err
    assert "no checkpoint leters_5w1s in results/; did you mean 'letters_5w1s'?" in said
    assert said.count("\n") == 1
    twin = tmp_path / "results" / "shapes.pt"
    twin.write_bytes((kept / "shapes.pt").read_bytes())
    assert main(["evaluate", "checkpoint=shapes"]) == 2
    said = capsys.readouterr().err
    assert "checkpoint=shapes: expected the name of one file" in said
    assert "results/shapes.pt" in said and "results/inits/deep/shapes.pt" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_names_are_looked_for_in_the_checkout_too(trained, tmp_path, monkeypatch):
    checkout = tmp_path / "checkout"
    (checkout / "results").mkdir(parents=True)
    shipped = checkout / "results" / "shipped.pt"
    shipped.write_bytes(trained.read_bytes())
    monkeypatch.setattr("metalearn.config.PACKAGE", checkout / "metalearn")
    here = tmp_path / "here"
    (here / "results").mkdir(parents=True)
    monkeypatch.chdir(here)
    assert checkpoint.find("shipped") == shipped
    (here / "results" / "shipped.pt").write_bytes(b"")
    assert checkpoint.find("shipped") == Path("results/shipped.pt")
    assert checkpoint.find("runs/shipped") == Path("runs/shipped")
    assert checkpoint.find("shipped.pt") == Path("shipped.pt")
    (here / "own").write_bytes(b"")
    assert checkpoint.find("own") == Path("own")
