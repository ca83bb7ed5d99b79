"""How checkpoints are judged, and the official one-shot test of the Omniglot release."""

from __future__ import annotations

import hashlib
import io
import json
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import TINY, run

from metalearn.commands.evaluate import over_seeds
from metalearn.commands.main import main
from metalearn.errors import UsageError
from metalearn.inner import GradientDescent
from metalearn.metagrad import FirstOrder
from metalearn.nn import Conv4
from metalearn.problem import FewShot
from metalearn.problems.learned import LearnedProx, LearnedRates
from metalearn.tasks import ImageTaskSampler, LabelledImages
from metalearn.tasks.omniglot_official import official_runs
from metalearn.training import checkpoint
from metalearn.training.estimate import Estimate
from metalearn.training.evaluation import Member, evaluate, evaluate_each, evaluate_ensemble
from metalearn.training.protocol import EvaluationProtocol, digest


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


def conv_run(folder: Path, *words: str) -> Path:
    """The best checkpoint of a tiny run of MAML with a network that has batch norm."""
    own = [
        "model=conv4",
        "model.head=free",
        "model.channels=4",
        "metagrad=maml_batched",
        "wandb=disabled",
    ]
    tiny = [word for word in TINY if not word.startswith("model")]
    assert main(["train", *tiny, *own, f"run_dir={folder}", *words]) == 0
    return folder / "best.pt"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return conv_run(tmp_path_factory.mktemp("runs") / "r")


@pytest.fixture(scope="module")
def symmetric(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return conv_run(tmp_path_factory.mktemp("runs") / "s", "model.head=zero")


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


@pytest.mark.parametrize("out", [".", "absent/e.json", "e.json/e.json"])
def test_where_it_is_to_be_written_is_looked_at_first(trained, tmp_path, monkeypatch, capsys, out):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(EvaluationProtocol, "rows", None)  # it is not come to that
    (tmp_path / "e.json").write_text("{}")
    assert main(["evaluate", f"checkpoint={trained}", f"out={out}"]) == 2
    said = capsys.readouterr().err
    assert f"out={out} " in said and said.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["e.json"]


def test_a_list_of_labels_that_would_fill_the_memory_is_not_unpacked(tmp_path):
    """It takes a thousandth of its size in the archive."""
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
    (row, *_) = EvaluationProtocol("omniglot_official", str(all_runs)).rows(path)
    assert row["characters_trained_on"] == 7 and row["characters"] == 400
    assert "7 of the 400 characters" in EvaluationProtocol.note(row)


def test_a_five_way_run_cannot_take_the_official_test(all_runs, trained, capsys):
    words = [f"checkpoint={trained}", "benchmark=omniglot_official", f"source={all_runs}"]
    assert main(["evaluate", *words]) == 2
    said = capsys.readouterr().err
    assert "have 5 ways" in said and said.count("\n") == 1


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
    assert digest(classes) == row["classes_sha256"] and row["classes"] == len(classes)


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


def three_way() -> ImageTaskSampler:
    """A stream of 3-way tasks on six classes of noise."""
    images = torch.randint(256, (60, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    data = LabelledImages(images.byte(), torch.arange(6).repeat_interleave(10), tuple("abcdef"))
    return ImageTaskSampler(data, 3, 1, 2, seed=4)


def three_way_member(seed: int, steps: int) -> tuple[Conv4, Member]:
    """A small network whose inner loop takes so many steps; normalised by the queries or not."""
    torch.manual_seed(seed)
    model = Conv4(3, channels=4)
    problems = {mode: FewShot(model, transductive=mode == "t") for mode in ("t", "i")}
    return model, Member(
        problems, FirstOrder(GradientDescent(steps, 0.1)), dict(model.named_parameters())
    )


def test_an_ensemble_is_the_mean_of_its_members_probabilities():
    """Against each task's own pass through the network, its softmax and their mean."""
    pairs = [three_way_member(0, 2), three_way_member(1, 4), three_way_member(2, 0)]
    found = evaluate_ensemble([member for _, member in pairs], three_way(), 5, batch=2)
    task = three_way().sample(5)
    losses, correct = [], []
    for t in range(5):
        probabilities = torch.zeros(6, 3)
        for model, member in pairs:
            phi = member.metagrad.adapt(member.problems["t"], member.meta, task).params
            own = {name: p[t] for name, p in phi.items()}
            logits = torch.func.functional_call(model, own, task.query_x[t])
            probabilities += logits.detach().softmax(-1) / len(pairs)
        losses.append(-probabilities[range(6), task.query_y[t]].log().mean())
        correct.append((probabilities.argmax(-1) == task.query_y[t]).float().mean())
    for name, values in (("loss", losses), ("accuracy", correct)):
        expected = Estimate.of(torch.stack(values))
        assert found["t"][name].mean == pytest.approx(expected.mean, rel=1e-5)
        assert found["t"][name].interval == pytest.approx(expected.interval, rel=1e-4)
    assert found["i"].keys() == {"loss", "accuracy"} and found["i"] != found["t"]


@pytest.mark.parametrize("size", [1, 3])
def test_an_ensemble_of_one_checkpoint_is_that_checkpoint(trained, size):
    alone = EvaluationProtocol(tasks=8).rows(trained)
    same = EvaluationProtocol(tasks=8).ensemble_rows([trained] * size)
    for row, single in zip(same, alone, strict=True):
        assert row["ensemble"] == size and len(row["members"]) == size
        for name in ("loss", "loss_interval", "accuracy", "accuracy_interval"):
            assert row[name] == pytest.approx(single[name], rel=1e-5)
        kept = single.keys() - {"name", "seed", "chosen_step"}
        assert row.keys() == kept | {"ensemble", "members"}
        different = {name for name in kept if row[name] != single[name]}
        assert all(name.startswith(("loss", "accuracy")) for name in different)


def wrapped(kind: str, model: Conv4) -> tuple[LearnedRates | LearnedProx, dict]:
    theta = dict(model.named_parameters())
    if kind == "rates":
        return LearnedRates(FewShot(model)), {
            "theta": theta,
            "log_rates": {name: torch.full_like(p, 0.3) for name, p in theta.items()},
        }
    return LearnedProx(FewShot(model)), {"theta": theta, "log_prox": torch.tensor(0.2)}


@pytest.mark.parametrize("kind", ["rates", "prox"])
def test_a_wrapped_problem_predicts_what_it_is_judged_by(kind):
    problem, meta = wrapped(kind, three_way_member(0, 2)[0])
    metagrad = FirstOrder(GradientDescent(2, 0.1))
    single = evaluate(problem, metagrad, meta, three_way(), 5)
    found = evaluate_ensemble([Member({"": problem}, metagrad, meta)], three_way(), 5)[""]
    for name in ("loss", "accuracy"):
        assert found[name].mean == pytest.approx(single[name].mean, rel=1e-5)


class Silent(FewShot):
    """A problem of before predictions could be asked for."""

    query_predictions = None

    def outer_objective(self, params, meta, task):
        return self.inner_objective(params, meta, task), {}


@pytest.mark.parametrize("wrap", [lambda p: p, LearnedProx, LearnedRates])
def test_a_problem_that_predicts_nothing_is_refused(wrap):
    _, member = three_way_member(0, 1)
    problem, meta = wrap(Silent(Conv4(3, channels=4))), member.meta
    if wrap is LearnedProx:
        meta = {"theta": meta, "log_prox": torch.tensor(0.0)}
    elif wrap is LearnedRates:
        rates = {name: torch.zeros_like(p) for name, p in meta.items()}
        meta = {"theta": meta, "log_rates": rates}
    with pytest.raises(UsageError, match="Silent has no query_predictions: expected a problem"):
        evaluate_ensemble([Member({"": problem}, member.metagrad, meta)], three_way(), 4)


def test_members_adapt_each_in_its_own_way_and_the_row_says_whose_they_are(trained, tmp_path):
    second = conv_run(tmp_path / "s1", "seed=1", "metagrad.inner.steps=2", "model.channels=6")
    out = tmp_path / "out.json"
    both = [f"checkpoint=[{trained},{second}]", "ensemble=true", "tasks=8", f"out={out}"]
    assert main(["evaluate", *both, "transductive=false"]) == 0
    found = json.loads(out.read_text())
    (row,) = found["rows"]
    assert row["mode"] == "inductive" and row["ensemble"] == 2 and row["tasks"] == 8
    assert row["inner_steps"] is None and row["trained_inner_steps"] is None
    assert [member["seed"] for member in row["members"]] == [0, 1]
    assert row["members"][1]["checkpoint"] == "s1/best.pt"
    assert found["over_checkpoints"] == []
    assert main(["evaluate", *both, "inner_steps=[1,3]"]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["inner_steps"] for row in rows] == [1, 1, 3, 3]


def test_members_of_other_tasks_are_refused(trained, tmp_path, capsys):
    other = conv_run(tmp_path / "s1", "tasks.shots=2", "steps=1")
    words = ["evaluate", f"checkpoint=[{trained},{other}]", "ensemble=true", "tasks=8"]
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"{other} has tasks.shots=2 and {trained} 1: expected" in said
    assert said.count("\n") == 1
    assert main([*words, "shots=1"]) == 0


def test_a_regression_has_no_ensemble(tmp_path, capsys):
    words = ["tasks=sinusoid", "model=mlp_sinusoid", "steps=1", "meta_batch=2", "wandb=disabled"]
    words += ["metagrad=maml_batched", "validation.tasks=2", "test.tasks=2"]
    assert main(["train", *words, f"run_dir={tmp_path}"]) == 0
    path = tmp_path / "best.pt"
    capsys.readouterr()
    for word, sentence in (("ensemble=true", "expected tasks of classes"), ("ways=3", "ways=3: ")):
        assert main(["evaluate", f"checkpoint={path}", "tasks=4", word]) == 2
        said = capsys.readouterr().err
        assert sentence in said and said.count("\n") == 1


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
