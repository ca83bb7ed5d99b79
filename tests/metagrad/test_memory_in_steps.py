"""Memory against inner steps: what implicit differentiation is for."""

from __future__ import annotations

import numpy as np
import torch
from test_backends import batch

from metalearn.inner import GradientDescent
from metalearn.linear_solve import CG
from metalearn.memory import peak_bytes
from metalearn.metagrad import Implicit, Unrolled
from metalearn.nn import Conv4
from metalearn.problem import FewShot


def peak(metagrad, prox, channels=32):
    torch.manual_seed(0)
    model = Conv4(5, channels=channels)
    meta, task = dict(model.named_parameters()), batch(1, 5, 1, 1, torch.float32)
    return peak_bytes(lambda: metagrad(FewShot(model, prox), meta, task), torch.device("cpu"))[1]


def test_implicit_is_flat():
    one, many = (peak(Implicit(GradientDescent(k, 0.01), CG(3)), 2.0) for k in (1, 64))
    assert abs(many - one) <= 0.02 * one


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
