from __future__ import annotations

import pytest
import torch

from metalearn.inner import GradientDescent
from metalearn.metagrad import FirstOrder
from metalearn.nn import MLP
from metalearn.problem import FewShot
from metalearn.tasks import TaskBatch
from metalearn.training import calibration
from metalearn.training.calibration import fastest_parts


@pytest.mark.parametrize(
    ("cost", "tasks", "best"),
    [
        (lambda n: 5.0 + n, 12, 1),  # each call costs: all at once
        (lambda n: n * n, 12, 12),  # each task is dearer in company: one at a time
        (lambda n: 8.0 + n * n, 16, 4),  # 2 sqrt(2) tasks at once are best, 4 the nearest tried
        (lambda n: float(n), 12, 1),  # no difference: at once
        (lambda n: n * n, 1, 1),
    ],
)
def test_the_cheapest_parts_are_taken(monkeypatch, cost, tasks, best):
    """A clock that goes on by what a part of n tasks costs."""
    now = [0.0]

    class Costs(FirstOrder):
        def __call__(self, problem, meta, task):
            now[0] += cost(len(task))
            return super().__call__(problem, meta, task)

    monkeypatch.setattr(calibration, "now", lambda device: now[0])
    model = MLP([2, 3])
    x, y = torch.randn(tasks, 4, 2), torch.zeros(tasks, 4, dtype=torch.int64)
    meta = dict(model.named_parameters())
    found = fastest_parts(
        Costs(GradientDescent(1, 0.1)), FewShot(model), meta, TaskBatch(x, y, x, y)
    )
    assert found == best
