"""Whose speed is compared: ours by each back end, and the peers that are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from metalearn.bench import speed_peers as peers
from metalearn.bench.speed_workloads import Gradient, Setting, Workload
from metalearn.inner import GradientDescent
from metalearn.linear_solve import CG
from metalearn.metagrad import FirstOrder, Implicit, MetaGradient, Unrolled
from metalearn.problem import FewShot

Run = Callable[[], Gradient]


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


def ours(metagrad: Callable[[Workload], MetaGradient]) -> Callable[[Setting], Run]:
    def make(setting: Setting) -> Run:
        w, meta = setting.workload, dict(setting.model.named_parameters())
        problem = FewShot(setting.model, w.prox if w.method == "imaml" else 0.0)
        way = metagrad(w)
        return lambda: list(way(problem, meta, setting.task).grads.values())

    return make


def one_by_one(make: Callable[[Setting], Run]) -> Callable[[Setting], Run]:
    """The same way, given one task at a time."""

    def made(setting: Setting) -> Run:
        runs = [
            make(Setting(setting.workload, setting.model, setting.task[t : t + 1]))
            for t in range(setting.workload.tasks)
        ]

        def run() -> Gradient:
            total = runs[0]()
            for other in runs[1:]:
                for a, g in zip(total, other(), strict=True):
                    a += g
            return [a / len(runs) for a in total]

        return run

    return made


def _descent(w: Workload) -> GradientDescent:
    return GradientDescent(w.steps, w.lr)


def _implicit(w: Workload, **options: str) -> Implicit:
    return Implicit(_descent(w), CG(w.cg, rtol=0.0), **options)  # type: ignore[arg-type]


BATCHED = {
    "imaml": ours(_implicit),
    "maml": ours(lambda w: Unrolled(_descent(w), "batched")),
}
"""The back end that the targets are set for."""

_WRONG = "torch's batch norm has a wrong second derivative under vmap"

COMPETITORS: dict[str, dict[str, Competitor]] = {
    "imaml": {
        "ours": Competitor(BATCHED["imaml"]),
        "ours, recomputed": Competitor(ours(partial(_implicit, linearisation="recomputed"))),
        "ours, Gauss-Newton": Competitor(
            ours(partial(_implicit, curvature="gauss_newton")), differs="Gauss-Newton curvature"
        ),
        "TorchOpt": Competitor(peers.imaml_by_torchopt, "torchopt", "one"),
        "TorchOpt, normal equations": Competitor(
            partial(peers.imaml_by_torchopt, normal=True),
            "torchopt",
            "one",
            "CG on the normal equations, as in TorchOpt's example",
        ),
        "vmap": Competitor(peers.imaml_by_vmap, "torch"),
        "vmap, torch's norm": Competitor(
            partial(peers.imaml_by_vmap, elementary=False), "torch", differs=_WRONG
        ),
    },
    "maml": {
        "ours": Competitor(BATCHED["maml"]),
        "ours, by higher": Competitor(
            ours(lambda w: Unrolled(_descent(w), "higher")), in_flight="one"
        ),
        "ours, first-order": Competitor(
            ours(lambda w: FirstOrder(_descent(w))), differs="no second derivatives"
        ),
        "higher": Competitor(peers.maml_by_higher, "higher", "one"),
        "learn2learn": Competitor(peers.maml_by_learn2learn, "learn2learn", "one"),
        "TorchOpt": Competitor(peers.maml_by_torchopt, "torchopt", "one"),
        "vmap": Competitor(peers.maml_by_vmap, "torch"),
        "vmap, torch's norm": Competitor(
            partial(peers.maml_by_vmap, elementary=False), "torch", differs=_WRONG
        ),
    },
}
