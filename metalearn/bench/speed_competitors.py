"""Whose speed is compared: ours by each back end, and the peers that are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from metalearn.batch_split import SplitGradient
from metalearn.bench import speed_peers as peers
from metalearn.bench.speed_workloads import Gradient, Run, Setting, Workload
from metalearn.bench.timing import clocked, rounds
from metalearn.calibration import fastest_parts
from metalearn.inner import GradientDescent
from metalearn.linear_solve import CG
from metalearn.metagrad import FirstOrder, Implicit, MetaGradient, Unrolled
from metalearn.problem import FewShot


@dataclass(frozen=True)
class Competitor:
    """
    Args:
        make: gets all ready, so that each call of what it returns is one meta-gradient.
        library: whose it is; "" for ours.
        in_flight: the tasks whose graphs are alive at once, by which memory is compared.
        differs: why its gradient is another one; such a competitor is timed and never counts.
    """

    make: Callable[[Setting], Run]
    library: str = ""
    in_flight: Literal["one", "all"] = "all"
    differs: str = ""

    @property
    def installed(self) -> bool:
        return not self.library or importlib.util.find_spec(self.library) is not None


@dataclass(frozen=True)
class Ours:
    """A meta-gradient of ours at work; `split.parts` says in how many parts it takes the batch."""

    split: SplitGradient
    problem: FewShot
    setting: Setting

    def __call__(self) -> Gradient:
        result = self.split(self.problem, self.meta, self.setting.task)
        return list(result.grads.values())

    @property
    def meta(self) -> dict[str, Tensor]:
        return dict(self.setting.model.named_parameters())


def ours(
    metagrad: Callable[[Workload], MetaGradient], measured: bool = False
) -> Callable[[Setting], Ours]:
    """`measured`: in as many parts as are fastest here, as `parts=measured` trains."""

    def make(setting: Setting) -> Ours:
        w = setting.workload
        problem = FewShot(setting.model, w.prox if w.method == "imaml" else 0.0)
        run = Ours(SplitGradient(metagrad(w)), problem, setting)
        if measured:
            run.split.parts = fastest_parts(metagrad(w), problem, run.meta, setting.task)
        return run

    return make


def laid_out(make: Callable[[Setting], Run]) -> Callable[[Setting], Run]:
    """A peer with its network's weights in the memory format that is faster for it here, which a
    few of the tasks tell."""

    def made(setting: Setting) -> Run:
        def inside(setting: Setting, layout: torch.memory_format) -> Run:
            own = setting.apart()
            own.model.to(memory_format=layout)
            return make(own)

        layouts = (torch.channels_last, torch.contiguous_format)
        device = setting.task.support_x.device
        runs = {layout: clocked(inside(setting.first(4), layout), device) for layout in layouts}
        times = rounds(runs, 2, 0.0)
        return inside(setting, min(layouts, key=lambda layout: times[layout].wall.min()))

    return made


def _descent(w: Workload) -> GradientDescent:
    return GradientDescent(w.steps, w.lr)


def _implicit(w: Workload, **options: str) -> Implicit:
    return Implicit(_descent(w), CG(w.cg, rtol=0.0), **options)  # type: ignore[arg-type]


WAYS: dict[str, Callable[[Workload], MetaGradient]] = {
    "imaml": _implicit,
    "maml": lambda w: Unrolled(_descent(w), "batched"),
}
"""The batched back ends."""

_WRONG = "torch's batch norm has a wrong second derivative under vmap"

COMPETITORS: dict[str, dict[str, Competitor]] = {
    "imaml": {
        "ours": Competitor(ours(WAYS["imaml"])),
        "ours, parts": Competitor(ours(WAYS["imaml"], measured=True)),
        "ours, recomputed": Competitor(ours(partial(_implicit, linearisation="recomputed"))),
        "ours, Gauss-Newton": Competitor(
            ours(partial(_implicit, curvature="gauss_newton")), differs="Gauss-Newton curvature"
        ),
        "TorchOpt": Competitor(laid_out(peers.imaml_by_torchopt), "torchopt", "one"),
        "TorchOpt, normal equations": Competitor(
            laid_out(partial(peers.imaml_by_torchopt, normal=True)),
            "torchopt",
            "one",
            "CG on the normal equations, as in TorchOpt's example",
        ),
        "vmap": Competitor(laid_out(peers.imaml_by_vmap), "torch"),
        "vmap, torch's norm": Competitor(
            laid_out(partial(peers.imaml_by_vmap, elementary=False)), "torch", differs=_WRONG
        ),
    },
    "maml": {
        "ours": Competitor(ours(WAYS["maml"])),
        "ours, parts": Competitor(ours(WAYS["maml"], measured=True)),
        "ours, by higher": Competitor(
            ours(lambda w: Unrolled(_descent(w), "higher")), in_flight="one"
        ),
        "ours, first-order": Competitor(
            ours(lambda w: FirstOrder(_descent(w))), differs="no second derivatives"
        ),
        "higher": Competitor(laid_out(peers.maml_by_higher), "higher", "one"),
        "learn2learn": Competitor(laid_out(peers.maml_by_learn2learn), "learn2learn", "one"),
        "TorchOpt": Competitor(laid_out(peers.maml_by_torchopt), "torchopt", "one"),
        "vmap": Competitor(laid_out(peers.maml_by_vmap), "torch"),
        "vmap, torch's norm": Competitor(
            laid_out(partial(peers.maml_by_vmap, elementary=False)), "torch", differs=_WRONG
        ),
    },
}
