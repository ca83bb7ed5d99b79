"""The study of deep equilibrium models at a tiny size: what its rows mean, not their digits."""

from __future__ import annotations

import pandas as pd
import torch

from metalearn.fixed_point import Picard
from metalearn.linear_solve import Neumann
from metalearn.nn import DEQ
from metalearn.solve.deq import BACKWARD, FORWARD, DEQStudy
from metalearn.solve.deq_models import (
    NOISE,
    SYMBOLS,
    CausalCell,
    Classifier,
    DenseCell,
    WeightTied,
    digits,
    recall,
)

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
        tuple(v for k, v in cell.items() if k not in ("part", "seed")): TINY.measure(cell)
        for cell in TINY.cells()
        if cell["part"] == part
    }


def test_every_solver_is_compared_and_its_gradient_is_right():
    cells = [c for c in TINY.cells() if c["part"] == "digits" and c["core"] == "deq"]
    assert {c["forward"] for c in cells} == set(FORWARD)
    assert {c["backward"] for c in cells} == set(BACKWARD)
    for cell in (cells[0], cells[-1]):
        (row,) = TINY.measure(cell)
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


def test_the_report_is_made_from_rows_alone():
    rows = []
    for cell in TINY.cells():
        if cell["part"] in ("memory", "conditioning", "sequence"):
            rows += [{**cell, **row} for row in TINY.measure(cell)]
    cells = [c for c in TINY.cells() if c["part"] == "digits"]
    for cell in (cells[0], cells[1]):
        rows += [{**cell, **row} for row in TINY.measure(cell)]
    frame = pd.DataFrame(rows)
    assert len(TINY.tables(frame)) == 4
    assert set(TINY.figures(frame)) == {"memory", "conditioning", "sequence"}
    assert len(TINY.findings(frame)) == 4
