"""Whose speed is compared: ours by each back end, and the peers that are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from metalearn.inner import GradientDescent
from metalearn.linear_solve import CG
from metalearn.metagrad import FirstOrder, Implicit, MetaGradient, Unrolled
from metalearn.parallel.batches import SplitGradient
from metalearn.problem import FewShot
from metalearn.studies.frame.timing import clocked, rounds
from metalearn.studies.speed import peers
from metalearn.studies.speed.workloads import Gradient, Run, Setting, Workload
from metalearn.training.calibration import fastest_parts

Make = Callable[[Setting], Run]
"""Gets all ready, so that each call of what it returns is one meta-gradient."""


def _as_it_is(make: Make, setting: Setting) -> Make:
    return make


@dataclass(frozen=True)
class Competitor:
    """
    Args:
        make: of a setting.
        library: whose it is; "" for ours.
        in_flight: the tasks whose graphs are alive at once, by which memory is compared.
        differs: why its gradient is another one; such a competitor is timed and never counts.
        choose: what it measures before it is timed.
    """

    make: Callable[[Setting], Run]
    library: str = ""
    in_flight: Literal["one", "all"] = "all"
    differs: str = ""
    choose: Callable[[Make, Setting], Make] = _as_it_is

    def settled(self, setting: Setting) -> Make:
        """`make`, with what is chosen by measurement chosen for that setting once and for all."""
        return self.choose(self.make, setting)

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


def ours(metagrad: Callable[[Workload], MetaGradient]) -> Callable[[Setting], Ours]:
    def make(setting: Setting) -> Ours:
        w = setting.workload
        problem = FewShot(setting.model, w.prox if w.method == "imaml" else 0.0)
        return Ours(SplitGradient(metagrad(w)), problem, setting)

    return make


def in_parts(make: Make, setting: Setting) -> Make:
    """Ours, in as many parts as are fastest here, as `parts=measured` trains."""
    first = make(setting)
    assert isinstance(first, Ours)
    parts = fastest_parts(first.split.metagrad, first.problem, first.meta, setting.task)

    def made(setting: Setting) -> Run:
        run = make(setting)
        assert isinstance(run, Ours)
        run.split.parts = parts
        return run

    return made


def parts_of(run: Run) -> int:
    """In which it takes the batch; 1 for a peer."""
    return run.split.parts if isinstance(run, Ours) else 1


def laid_out(make: Make, setting: Setting) -> Make:
    """A peer with its network's weights in the memory format that is faster for it here, which a
    few of the tasks tell."""

    def inside(setting: Setting, layout: torch.memory_format) -> Run:
        own = setting.apart()
        own.model.to(memory_format=layout)
        return make(own)

    layouts = (torch.channels_last, torch.contiguous_format)
    device = setting.task.support_x.device
    runs = {layout: clocked(inside(setting.first(4), layout), device) for layout in layouts}
    times = rounds(runs, 2, 0.0)
    fastest = min(layouts, key=lambda layout: times[layout].wall.min())
    return lambda setting: inside(setting, fastest)


def _descent(w: Workload) -> GradientDescent:
    return GradientDescent(w.steps, w.lr)


def _implicit(w: Workload, **options: str) -> Implicit:
    return Implicit(_descent(w), CG(w.cg, rtol=0.0), **options)  # type: ignore[arg-type]


WAYS: dict[str, Callable[[Workload], MetaGradient]] = {
    "imaml": _implicit,
    "maml": lambda w: Unrolled(_descent(w), "batched"),
}
"""The batched back ends."""

_peer = partial(Competitor, choose=laid_out)

_WRONG = "torch's batch norm has a wrong second derivative under vmap"

COMPETITORS: dict[str, dict[str, Competitor]] = {
    "imaml": {
        "ours": Competitor(ours(WAYS["imaml"])),
        "ours, parts": Competitor(ours(WAYS["imaml"]), choose=in_parts),
        "ours, recomputed": Competitor(ours(partial(_implicit, linearisation="recomputed"))),
        "ours, Gauss-Newton": Competitor(
            ours(partial(_implicit, curvature="gauss_newton")), differs="Gauss-Newton curvature"
        ),
        "TorchOpt": _peer(peers.imaml_by_torchopt, "torchopt", "one"),
        "TorchOpt, normal equations": _peer(
            partial(peers.imaml_by_torchopt, normal=True),
            "torchopt",
            "one",
            "CG on the normal equations, as in TorchOpt's example",
        ),
        "vmap": _peer(peers.imaml_by_vmap, "torch"),
        "vmap, torch's norm": _peer(
            partial(peers.imaml_by_vmap, elementary=False), "torch", differs=_WRONG
        ),
    },
    "maml": {
        "ours": Competitor(ours(WAYS["maml"])),
        "ours, parts": Competitor(ours(WAYS["maml"]), choose=in_parts),
        "ours, by higher": Competitor(
            ours(lambda w: Unrolled(_descent(w), "higher")), in_flight="one"
        ),
        "ours, first-order": Competitor(
            ours(lambda w: FirstOrder(_descent(w))), differs="no second derivatives"
        ),
        "higher": _peer(peers.maml_by_higher, "higher", "one"),
        "learn2learn": _peer(peers.maml_by_learn2learn, "learn2learn", "one"),
        "TorchOpt": _peer(peers.maml_by_torchopt, "torchopt", "one"),
        "vmap": _peer(peers.maml_by_vmap, "torch"),
        "vmap, torch's norm": _peer(
            partial(peers.maml_by_vmap, elementary=False), "torch", differs=_WRONG
        ),
    },
}
