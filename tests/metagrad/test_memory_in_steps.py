"""Memory against inner steps: what implicit differentiation is for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from test_backends import batch

from metalearn.inner import GradientDescent, value_and_grad
from metalearn.linear_solve import CG
from metalearn.metagrad import Implicit, Unrolled
from metalearn.nn import Conv4
from metalearn.problem import FewShot
from metalearn.system.memory import peak_bytes
from metalearn.tree import detached

CPU = torch.device("cpu")
WAYS = list(itertools.product(["hessian", "gauss_newton"], ["kept", "recomputed"]))


def peak(metagrad, prox, channels=32):
    torch.manual_seed(0)
    model = Conv4(5, channels=channels)
    meta, task = dict(model.named_parameters()), batch(1, 5, 1, 1, torch.float32)
    return peak_bytes(lambda: metagrad(FewShot(model, prox), meta, task), CPU)[1]


@pytest.mark.parametrize(("curvature", "linearisation"), WAYS)
def test_implicit_is_flat(curvature, linearisation):
    one, many = (
        peak(
            Implicit(GradientDescent(k, 0.01), CG(3), 0.0, curvature, linearisation=linearisation),
            2.0,
        )
        for k in (1, 64)
    )
    assert abs(many - one) <= 0.02 * one


def in_inner_gradients(tasks, curvature, linearisation, strided=True):
    """The peak of an implicit gradient over that of one gradient of the inner objective.

    At 16 channels and 50 examples a task's activations take 25 times the memory of its parameters,
    as they do at the benchmarks' 64 channels and 100 examples (27 times): it is the graphs that are
    weighed, and not the ten or so copies of the parameters that an inner loop and CG hold.
    """
    torch.manual_seed(0)
    model = Conv4(5, channels=16, strided=strided)
    meta, task = dict(model.named_parameters()), batch(tasks, 5, 10, 10, torch.float32)
    problem = FewShot(model, 2.0)
    constant = detached(meta)
    params = {name: p.clone() for name, p in problem.init(constant, task).items()}
    gradient = peak_bytes(
        lambda: value_and_grad(lambda p: problem.inner_objective(p, constant, task), params), CPU
    )[1]
    way = Implicit(
        GradientDescent(2, 0.1), CG(3, rtol=0.0), 0.0, curvature, linearisation=linearisation
    )
    return peak_bytes(lambda: way(problem, meta, task), CPU)[1] / gradient


@pytest.mark.parametrize("strided", [True, False], ids=["strided", "pooled"])
@pytest.mark.parametrize(("curvature", "linearisation"), WAYS)
def test_a_task_takes_about_two_inner_gradients(curvature, linearisation, strided):
    # The Hessian's graph holds every activation and its gradient, 1.85 of what an inner gradient
    # takes at its peak; a product adds its own activations, less what it shares with the peak.
    assert in_inner_gradients(1, curvature, linearisation, strided) <= 2.1


@pytest.mark.parametrize("strided", [True, False], ids=["strided", "pooled"])
@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_recomputed_adds_next_to_nothing_to_the_inner_loop_of_several_tasks(curvature, strided):
    # A third of the tasks at a time, two gradients of each at most; 0.05 are copies of parameters.
    assert in_inner_gradients(3, curvature, "recomputed", strided) <= 1.05


def test_a_graph_that_is_let_go_of_takes_less():
    kept, recomputed = (in_inner_gradients(2, "hessian", way) for way in ("kept", "recomputed"))
    assert recomputed < 0.7 * kept


def test_unrolled_by_higher_grows_by_a_constant():
    steps = [1, 2, 4, 8, 16]
    peaks = [peak(Unrolled(GradientDescent(k, 0.01)), 0.0) for k in steps]
    slope, intercept = np.polyfit(steps, peaks, 1)
    fit = slope * np.array(steps) + intercept
    assert slope > 0.1 * peaks[0]
    assert np.abs(fit - peaks).max() <= 0.02 * slope


def test_checkpoints_take_the_memory_of_a_segment():
    inner = GradientDescent(64, 0.01)
    whole = peak(Unrolled(inner, "batched"), 0.0, channels=8)
    segments = peak(Unrolled(inner, "batched", checkpoint="sqrt"), 0.0, channels=8)
    assert segments <= 0.35 * whole


def test_truncated_takes_the_memory_of_its_last_steps():
    for backend in ("higher", "batched"):
        short = peak(Unrolled(GradientDescent(4, 0.01), backend), 0.0, channels=8)
        truncated = Unrolled(GradientDescent(32, 0.01), backend, truncate=4)
        assert peak(truncated, 0.0, channels=8) <= 1.1 * short
