"""The trace of an inner loop beside `metalearn adapt` and `predict`, and beside the solver."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image
from untrained import save_untrained

from metalearn.commands.main import main
from metalearn.errors import UsageError
from metalearn.play.answers import Answers
from metalearn.play.initialisation import Initialisation
from metalearn.play.request import SIDE, Drawings, images
from metalearn.training.adaptation import Adaptable

METHODS = ["unrolled", "implicit"]


@pytest.mark.parametrize("which", [0, 1], ids=METHODS)
def test_the_last_step_is_what_adapt_and_predict_give(
    which, initialisations, body, tmp_path, monkeypatch
):
    path = initialisations[which].opened.path.resolve()
    monkeypatch.chdir(tmp_path)
    own, request = initialisations[which], Drawings.of(body)
    for name, inks in (*zip("ABC", request.support, strict=True), ("query", [request.query])):
        Path(name if name == "query" else f"support/{name}").mkdir(parents=True)
        for number, ink in enumerate(inks):
            folder = Path(name if name == "query" else f"support/{name}")
            Image.frombytes("L", (SIDE, SIDE), ink).save(folder / f"{number}.png")
    words = [f"checkpoint={path}", "support=support", "threads=1", "out=mine.pt"]
    assert main(["adapt", *words, f"inner_steps={request.steps}"]) == 0
    assert main(["predict", "checkpoint=mine.pt", "images=query", "threads=1"]) == 0
    with open("predictions.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    trace = own.trace(request.labelled(1, 28), request.steps)
    found = trace.probabilities(images([request.query], 1, 28))
    assert found.shape == (4, 1, 3)
    expected = torch.tensor([float(row[name]) for name in "ABC"], dtype=torch.float64)
    # The CSV has six digits; one pass for all points rounds differently in float32.
    torch.testing.assert_close(found[-1, 0], expected, rtol=0, atol=1e-5)
    assert row["label"] == "C"
    torch.testing.assert_close(found[0, 0], torch.full((3,), 1 / 3).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("which", [0, 1], ids=METHODS)
def test_each_loss_is_the_inner_solvers(which, initialisations, body):
    own = initialisations[which]
    support = Drawings.of(body).labelled(1, 28)
    trace = own.trace(support, 3)
    for steps, loss in enumerate(trace.losses):
        _, metagrad = own.opened.inner_loop(steps)
        task = own.task(support, support.images)
        solution = metagrad.adapt(own.problem, own.opened.experiment.meta, task)
        assert loss == pytest.approx(solution.objective.item(), rel=1e-5, abs=1e-7)  # float32
    assert len(trace.losses) == 4


def test_the_stability_is_above_1_where_backtracking_refuses_a_step(initialisations, body):
    """A refused step leaves the loss as it is and halves the rate, and so the stability."""
    trace = initialisations[1].trace(Drawings.of(body).labelled(1, 28), 3)
    refused = [i for i in range(3) if trace.losses[i + 1] == trace.losses[i]]
    assert refused
    for step in refused:
        assert (before := trace.stability(step)) > 1
        assert trace.stability(step + 1) == pytest.approx(before / 2, rel=1e-6)


def test_dark_ink_is_made_of_drawings_for_a_run_on_dark_ink(initialisations, body, monkeypatch):
    own, support = initialisations[0], Drawings.of(body).labelled(1, 28)
    light = own.task(support, support.images)
    monkeypatch.setattr(Adaptable, "light_ink", False)
    dark = own.task(support, support.images)
    torch.testing.assert_close(dark.support_x, 1 - light.support_x)
    torch.testing.assert_close(dark.query_x, 1 - light.query_x)


@pytest.fixture(scope="module")
def free(tmp_path_factory) -> Initialisation:
    """A run with a head for five classes."""
    path = tmp_path_factory.mktemp("run") / "best.pt"
    model = ["tasks=glyphs", "model=mlp", "model.sizes=[784,8,5]"]
    save_untrained(path, *model, "metagrad=maml_batched", "metagrad.inner.steps=3")
    return Initialisation.open(path, threads=1)


def test_a_head_for_five_classes_takes_no_three(free, initialisations, body):
    assert free.name.endswith("/best.pt") and free.method == "unrolled"
    assert Answers([initialisations[0], free], 3).setup()["classes"] == {
        **{"least": 5, "most": 5, "first": 5}
    }
    with pytest.raises(UsageError, match="3 classes: expected the 5"):
        free.trace(Drawings.of(body).labelled(1, 28), 3)


def test_a_trace_ends_where_the_inner_loop_diverges(free, body):
    classes = [[body["query"]], *body["classes"], body["classes"][0]]
    support = Drawings.of({**body, "classes": classes}).labelled(1, 28)
    whole = free.trace(support, 3)
    assert len(whole.points) == 4 and not whole.diverges
    options = free.opened.run.metagrad.inner
    rate = options.lr
    options.lr = 1e30
    try:
        trace = free.trace(support, 3)
    finally:
        options.lr = rate
    assert trace.diverges and 1 <= len(trace.points) == len(trace.losses) < 4
    assert all(torch.tensor(trace.losses).isfinite())


def test_a_head_that_is_solved_in_closed_form_makes_no_inner_step(body, tmp_path):
    words = ["tasks=glyphs", "model.channels=4", "problem=ridge", "metagrad=implicit_closed_form"]
    save_untrained(tmp_path / "best.pt", *words)
    trace = Initialisation.open(tmp_path / "best.pt").trace(Drawings.of(body).labelled(1, 28), 3)
    assert len(trace.points) == 1 and not trace.diverges
    assert trace.probabilities(trace.support.images).shape == (1, 6, 3)
