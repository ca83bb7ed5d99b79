"""The study of deep equilibrium models at a tiny size: what its rows mean, not their digits."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch

from metalearn.commands.main import main
from metalearn.fixed_point import Picard
from metalearn.linear_solve import Neumann
from metalearn.nn import DEQ
from metalearn.studies.deq.models import (
    NOISE,
    SYMBOLS,
    CausalCell,
    Classifier,
    DenseCell,
    WeightTied,
    digits,
    recall,
)
from metalearn.studies.deq.study import BACKWARD, FORWARD, DEQStudy
from metalearn.studies.frame.findings import render_findings

CPU = torch.device("cpu")
TINY = DEQStudy(
    seeds=[0],
    width=32,
    depth=12,
    epochs=3,
    lr=3e-3,
    batch=128,
    pairs="each",
    depths=[4, 16],
    jacobian_weights=[0.0, 5.0],
    long_epochs=2,
    length=6,
    sequence_width=16,
    sequence_epochs=3,
    sequence_depths=[2, 6],
)


def measured(part):
    return {
        tuple(v for k, v in cell.items() if k not in ("part", "seed")): TINY.measure(cell, CPU)
        for cell in TINY.cells()
        if cell["part"] == part
    }


def test_every_solver_is_compared_and_its_gradient_is_right():
    cells = [c for c in TINY.cells() if c["part"] == "digits" and c["core"] == "deq"]
    assert {c["forward"] for c in cells} == set(FORWARD)
    assert {c["backward"] for c in cells} == set(BACKWARD)
    for cell in (cells[0], cells[-1]):
        (row,) = TINY.measure(cell, CPU)
        assert row["accuracy"] > 50  # chance is 10
        # Tolerances of 1e-4 each way, times a condition number of about 10, times float32's share.
        assert row["gradient_error"] < 2e-2
        assert row["forward_converged"] > 0.9 and row["backward_converged"] > 0.9
        assert 1 < row["condition_number"] <= row["condition_number_worst"]


def test_memory_is_flat_for_the_deq_and_grows_for_its_twin():
    peaks = {key: rows[0]["peak_bytes"] for key, rows in measured("memory").items()}
    assert peaks["deq", 16] <= 1.02 * peaks["deq", 4]
    assert peaks["unrolled", 16] > 2 * peaks["unrolled", 4]


def test_a_long_context_needs_as_many_applications_and_the_deq_has_them():
    accuracy = {key: rows[0]["accuracy"] for key, rows in measured("sequence").items()}
    chance = 100 / SYMBOLS
    assert accuracy["unrolled", 2] < chance + 6  # 1024 sequences: four standard deviations
    assert accuracy["deq", None] > chance + 12


def test_the_causal_fixed_point_is_the_recurrent_network_it_stands_for():
    torch.manual_seed(0)
    cell = CausalCell(3, 5).double()
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    deq = DEQ(cell, Picard(20, rtol=1e-12), Neumann(20, step_size=1.0, rtol=1e-12))
    z = deq(x, torch.zeros(2, 7, 5, dtype=torch.float64))
    assert (deq.forward_solution.iterations <= 8).all()  # 7 positions, and one to see it
    h = torch.zeros(2, 5, dtype=torch.float64)
    for t in range(7):
        gate, new = (cell.state(h) + cell.inject(x[:, t])).chunk(2, dim=-1)
        h = torch.sigmoid(gate) * h + (1 - torch.sigmoid(gate)) * torch.tanh(new)
        assert torch.allclose(z[:, t], h)


def test_data_is_what_it_says():
    data = digits()
    assert len(data.train_x) + len(data.test_x) == 1797
    assert set(data.test_y.tolist()) == set(range(10))
    sequences = recall(9, train=20, test=10)
    tokens = sequences.train_x.argmax(-1)
    assert sequences.train_x.shape == (20, 9, SYMBOLS + NOISE)
    assert torch.equal(tokens[:, 0], sequences.train_y)
    assert (tokens[:, 1:] >= SYMBOLS).all()


def test_the_twin_is_the_deq_in_the_limit():
    torch.manual_seed(0)
    x = digits().test_x[:4].double()
    cell = DenseCell(64, 16).double()
    solved = Classifier(DEQ(cell, Picard(500, rtol=1e-12)), 16, 10).double()
    twin = Classifier(WeightTied(cell, 300), 16, 10).double()
    assert torch.allclose(solved.state(x), twin.state(x), rtol=1e-8)


def rows_by_hand():
    """Two seeds, figures that no two cells share."""
    deq = {"part": "digits", "core": "deq", "forward": "Picard", "backward": "GMRES"}
    spectrum = {"spectral_radius": 0.5, "condition_number": 5.0, "condition_number_worst": 9.0}
    solves = {"forward_iterations": 11.0, "backward_iterations": 7.0}
    step = {"step_s": 0.002, "peak_bytes": 3_000_000}
    twin = {"part": "digits", "core": "unrolled", "depth": 30}
    rows = [
        {**deq, "seed": 0, "accuracy": 96.0, **solves, **spectrum, **step, "gradient_error": 2e-3},
        {**deq, "seed": 1, "accuracy": 98.0, **solves, **spectrum, **step, "gradient_error": 4e-3},
        {**twin, "seed": 0, "accuracy": 95.5, **step},
        {**twin, "seed": 1, "accuracy": 96.5, **step},
    ]
    for depth in (1, 4):
        rows.append({"part": "memory", "core": "deq", "depth": depth, "peak_bytes": 50, **solves})
        rows.append(
            {"part": "memory", "core": "unrolled", "depth": depth, "peak_bytes": 10 * depth}
        )
    for weight, condition in ((0.0, 40.0), (5.0, 2.0)):
        for epoch in (1, 2):
            row = {"jacobian_weight": weight, "epoch": epoch, "seed": 0, "accuracy": 90.0 + epoch}
            rows.append(
                {"part": "conditioning", **row, **spectrum, **solves, "condition_number": condition}
            )
    sequence = {"part": "sequence", "seed": 0, **step}
    rows.append({**sequence, "core": "deq", "accuracy": 99.0, **solves, **spectrum})
    rows += [
        {**sequence, "core": "unrolled", "depth": d, "accuracy": a}
        for d, a in ((3, 12.5), (6, 97.0))
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def rows():
    found = rows_by_hand()
    found.loc[found.part == "memory", "step_s"] = 0.001
    return found.assign(forward_converged=1.0)


def test_tables_show_means_over_the_seeds(rows):
    digits, memory, conditioning, sequence = (t.texts() for t in TINY.tables(rows).values())
    deq = digits[digits.core == "DEQ"].iloc[0]
    assert deq["accuracy, %"] == "97.00 (96.00 to 98.00)"
    assert (deq["forward iterations"], deq["backward iterations"]) == ("11.0", "7.0")
    twin = digits.set_index("core").loc["unrolled, 30 steps"]
    assert twin["accuracy, %"] == "96.00 (95.50 to 96.50)"
    assert twin["forward solver"] == twin["forward iterations"] == twin["gradient error"] == ""
    assert memory["applications"].tolist() == ["1", "4"]
    assert memory["unrolled"].tolist() == ["10 B", "40 B"]
    assert conditioning["condition number"].tolist() == ["40", "40", "2", "2"]
    assert sequence.set_index("core").loc["unrolled, 3 steps", "accuracy, %"] == "12.50"
    assert set(TINY.figures(rows)) == {"memory", "conditioning", "sequence"}


def test_facts_compare_the_deq_with_its_twin(rows):
    facts = TINY.facts(rows)
    assert facts["forward"] == {"Picard": 97.0} and facts["unrolled"] == 96.0
    assert (facts["deq_memory"], facts["unrolled_memory"]) == (1.0, 4.0)
    free, held = facts["conditioning"]
    assert (free["condition_number"], held["condition_number"]) == (40.0, 2.0)
    assert held["backward_iterations"] == 7.0
    assert facts["long_accuracy"] == 99.0
    assert facts["long_unrolled"] == [(3, 12.5), (6, 97.0)]


def test_findings_count_the_trainings_that_end_without_fixed_points(rows):
    assert TINY.facts(rows)["failed"] == 0
    rows.loc[0, "forward_converged"] = 0.5
    facts = TINY.facts(rows)
    assert (facts["failed"], facts["trainings"], facts["failed_accuracy"]) == (1, 2, 96.0)
    assert facts["failed_solvers"] == ["Picard"]
    one_weight = rows[rows.jacobian_weight != 5.0]  # there is nothing to compare it with
    assert len(render_findings(TINY, one_weight)) == len(render_findings(TINY, rows)) - 1


def test_from_the_command_line_to_the_published_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["preset=quick", "width=8", "depth=3", "epochs=1", "long_epochs=1", "depths=[1,2]"]
    small += ["length=4", "sequence_width=4", "sequence_epochs=1", "sequence_depths=[2]"]
    assert main(["solve", "deq", *small, "wandb=disabled", "threads=1"]) == 0
    folder = tmp_path / "runs" / "quick" / "deq"
    rows = pd.read_csv(folder / "rows.csv")
    assert set(rows.part) == {"digits", "memory", "conditioning", "sequence"}
    assert rows.depth.dropna().isin([1, 2, 3]).all()
    assert json.loads((folder / "provenance.json").read_text())["options"]["width"] == 8
