"""The moving average of meta-parameters, and a run that is judged by it."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_run import rows, run, timeless

from metalearn.commands.main import main
from metalearn.training import checkpoint
from metalearn.training.averaging import MovingAverage

WORDS = ["metagrad=maml_batched", "wandb=disabled", "checkpoint_every=1", "keep_checkpoints=7"]


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_it_is_the_weighted_mean_of_all_updates_and_of_nothing_else(decay):
    torch.manual_seed(0)
    points = [{"a": torch.randn(3, dtype=torch.float64)} for _ in range(6)]
    average = MovingAverage(decay, {"a": torch.full((3,), 1e6, dtype=torch.float64)})
    for n in range(1, 7):
        average.update(points[n - 1])
        weights = torch.tensor([decay ** (n - k) for k in range(1, n + 1)], dtype=torch.float64)
        expected = sum(w * p["a"] for w, p in zip(weights / weights.sum(), points, strict=False))
        assert torch.allclose(average.meta["a"], expected, rtol=1e-12)


def test_it_goes_on_from_its_state_and_begins_where_it_is_told():
    torch.manual_seed(0)
    start, *points = (torch.randn(3) for _ in range(5))
    whole = MovingAverage(0.9, start)
    assert torch.equal(whole.meta, start) and whole.meta is not start
    for point in points[:2]:
        whole.update(point)
    resumed = MovingAverage(0.9, torch.zeros(3))
    resumed.load_state_dict(whole.state_dict())
    for point in points[2:]:
        whole.update(point)
        resumed.update(point)
    assert torch.equal(whole.meta, resumed.meta)


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("averaged") / "r"
    assert run(folder, *WORDS, "average=0.7") == 0
    return folder


def test_a_run_averages_what_it_trains_and_trains_as_without(averaged, tmp_path):
    assert run(tmp_path / "r", *WORDS) == 0
    before = [row["query_loss"] for row in rows(tmp_path / "r")]
    assert [row["query_loss"] for row in rows(averaged)] == before
    # last.pt, last.1.pt and so on are of meta-steps 6, 5, ...: every update's raw meta-parameters.
    states = [checkpoint.load(checkpoint.generation(averaged, n)) for n in range(6)]
    expected = MovingAverage(0.7, states[-1]["meta"])
    for state in reversed(states):
        expected.update(state["meta"])
        found = state["average"]["meta"]
        assert all(torch.equal(found[k], x) for k, x in expected.meta.items())
        assert state["step"] == state["average"]["updates"]
    assert any((expected.meta[k] != x).any() for k, x in states[0]["meta"].items())


def test_the_average_is_what_is_chosen_tested_and_evaluated(averaged, tmp_path, capsys):
    last, best = (checkpoint.load(averaged / name) for name in ("last.pt", "best.pt"))
    (chosen,) = (
        state
        for n in range(6)
        if (state := checkpoint.load(checkpoint.generation(averaged, n)))["step"] == best["step"]
    )
    assert all(torch.equal(best["meta"][k], x) for k, x in chosen["average"]["meta"].items())
    summary = json.loads((averaged / "summary.json").read_text())
    out = tmp_path / "e.json"
    for name, figure in (("best.pt", summary["test_loss"]), ("last.pt", None)):
        words = [f"checkpoint={averaged / name}", "tasks=8", "transductive=true", f"out={out}"]
        assert main(["evaluate", *words]) == 0
        (row,) = json.loads(out.read_text())["rows"]
        assert figure is None or row["loss"] == pytest.approx(figure, rel=1e-6)
    # last.pt is judged by its average, as validation at its meta-step was.
    words[1:] = ["tasks=6", "transductive=true", "split=validation", "seed=1000", f"out={out}"]
    assert main(["evaluate", *words]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["loss"] == pytest.approx(rows(averaged)[-1]["validation_loss"], rel=1e-6)
    assert last["step"] == rows(averaged)[-1]["step"]


def test_an_averaged_run_resumed_equals_one_left_alone(averaged, tmp_path):
    assert run(tmp_path / "r", *WORDS, "average=0.7", "steps=4", "validation.every=3") == 0
    assert main(["train", f"resume={tmp_path / 'r'}", "steps=6"]) == 0
    one, other = (checkpoint.load(f / "last.pt") for f in (tmp_path / "r", averaged))
    assert one["average"]["updates"] == other["average"]["updates"] == 6
    for found, expected in ((one, other), (one["average"], other["average"])):
        assert all(torch.equal(found["meta"][k], x) for k, x in expected["meta"].items())


def test_a_run_of_before_the_options_goes_on(tmp_path):
    assert run(tmp_path / "whole", *WORDS) == 0
    assert run(tmp_path / "r", *WORDS, "steps=3") == 0
    for path in (tmp_path / "r").glob("last*.pt"):
        state = checkpoint.load(path)
        for key in ("average", "runners_up"):
            del state[key]
        for key in ("average", "keep_best"):
            del state["config"][key]
        checkpoint.save(path, state)
    config = tmp_path / "r" / "config.yaml"
    lines = [x for x in config.read_text().splitlines() if "average" not in x]
    config.write_text("\n".join(x for x in lines if "keep_best" not in x))
    assert main(["train", f"resume={tmp_path / 'r'}", "steps=6"]) == 0
    assert timeless(tmp_path / "r") == timeless(tmp_path / "whole")
