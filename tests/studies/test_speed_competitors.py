"""The competitors of the study of speed: one gradient each, and the floor of its arithmetic."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_workloads import CPU, TINY

from metalearn.studies.speed import floor as speed_floor
from metalearn.studies.speed.competitors import BATCHED, COMPETITORS, ours
from metalearn.studies.speed.exact import (
    Reference,
    exact,
    exact_by_task,
    mean,
    relative_error,
    rounding,
    same,
)
from metalearn.studies.speed.workloads import setting

EVERY = [(method, name) for method in COMPETITORS for name in COMPETITORS[method]]


@pytest.fixture(autouse=True)
def others_deprecations():
    """Hide the deprecation warnings of other libraries, as the study does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# Without kinks rounding alone is left: float64's, and float32's in the layout that is timed.
@pytest.mark.parametrize(("double", "most"), [(True, 1e-10), (False, 1e-4)], ids=["64", "32"])
@pytest.mark.parametrize(("method", "name"), EVERY)
def test_a_competitor_computes_the_exact_gradient_or_says_that_it_differs(
    method, name, double, most
):
    competitor = COMPETITORS[method][name]
    if not competitor.installed:
        pytest.skip(f"{competitor.library} is not installed")
    start = setting(TINY[method], CPU)
    if double:
        start = start.double()
    error = relative_error(competitor.prepare(start)(start)(), exact(start))
    # What differs does so by far more than float64's rounding. bfloat16 takes no float64's place.
    differs = competitor.differs and not (double and name == "ours, bf16")
    assert (error > 1e-6) if differs else (error < most)


@pytest.mark.parametrize(("method", "name"), EVERY)
def test_a_batch_of_one_task_over_and_over_gives_that_tasks_gradient(method, name):
    competitor = COMPETITORS[method][name]
    if competitor.differs or not competitor.installed:
        pytest.skip("not compared")
    start = setting(TINY[method], CPU).double()
    every = exact_by_task(start)
    assert relative_error(every[0], every[1]) > 0.1  # two tasks that are told apart
    own = [competitor.make(start.filled(t, 3))() for t in range(len(every))]
    for found, expected in zip(own, every, strict=True):
        assert relative_error(found, expected) < 1e-10
    assert relative_error(competitor.make(start)(), mean(own)) < 1e-10


@pytest.mark.parametrize("method", ["imaml", "maml"])
def test_competitors_can_be_called_again(method):
    for name, competitor in COMPETITORS[method].items():
        if competitor.installed and not competitor.differs:
            run = competitor.make(setting(TINY[method], CPU))
            first = [g.double() for g in run()]
            assert relative_error(run(), first) < 1e-6, name


def errors_of(found):
    """Return the errors of a gradient `found` whose references are all equal."""
    exact = [torch.ones(2, dtype=torch.float64)]
    reference = Reference([exact] * 3, exact, exact, 0.0)
    return {"differs": ""} | reference.errors(**{"smooth": exact, "batch": exact} | found)


@pytest.mark.parametrize(
    ("found", "counts"),
    [
        ({"by_task": [[torch.ones(2)]] * 3}, True),
        ({"by_task": [[torch.ones(2)]] * 2 + [[torch.zeros(2)]]}, True),  # a kink crossed
        ({"by_task": [[torch.ones(2)]] + [[torch.zeros(2)]] * 2}, False),
        ({"by_task": [[torch.ones(2)]] * 3, "smooth": [1.001 * torch.ones(2)]}, False),
        ({"by_task": [[torch.ones(2)]] * 3, "batch": [torch.zeros(2)]}, True),  # its kinks
        ({"by_task": [[1.001 * torch.ones(2)]] * 3}, False),
        ({"by_task": []}, False),
    ],
)
def test_a_gradient_counts_by_the_smooth_networks_and_by_half_of_the_tasks(found, counts):
    assert same(errors_of(found)) is counts


def test_rounding_moves_the_gradient_by_little_where_it_is_smooth():
    start = setting(TINY["maml"], CPU)
    assert 1e-9 < rounding(start, exact(start)) < 1e-4


def test_the_floor_counts_a_gradient_as_the_counter_does():
    w = replace(TINY["maml"], tasks=1, channels=8)
    s = setting(w, CPU)
    first, whole = speed_floor._forward(w, w.ways * w.shots)

    def gradient():
        loss = F.cross_entropy(s.model(s.task.support_x[0]), s.task.support_y[0])
        torch.autograd.grad(loss, list(s.model.parameters()))

    assert speed_floor.count_operations(gradient) == 3 * whole - first


@pytest.mark.parametrize("method", ["imaml", "maml"])
def test_the_floor_is_below_what_the_engine_does_and_not_far(method):
    start = setting(replace(TINY[method], channels=16), CPU).of(0)
    needed = speed_floor.operations(start.workload)
    # Above it are a residual's product, and the inner gradient's norm at the end.
    assert needed <= speed_floor.count_operations(ours(BATCHED[method])(start)) <= 1.5 * needed


@pytest.mark.parametrize("field", ["tasks", "steps"])
def test_the_floor_is_linear_in_what_repeats(field):
    few, more, most = (
        speed_floor.operations(replace(TINY["imaml"], **{field: n})) for n in (1, 2, 3)
    )
    assert most - more == more - few > 0
