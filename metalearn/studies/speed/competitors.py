"""The competitors: our meta-gradients by each back end, and the installed peers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from metalearn.captured import Capture
from metalearn.inner import GradientDescent
from metalearn.linear_solve import CG
from metalearn.metagrad import FirstOrder, Implicit, MetaGradient, Unrolled
from metalearn.nn.precision import Precision
from metalearn.problem import FewShot
from metalearn.studies.frame.timing import clocked, rounds
from metalearn.studies.speed import peers
from metalearn.studies.speed.workloads import Gradient, Run, Setting, Workload

Make = Callable[[Setting], Run]
"""A function that prepares a setting. Each call of its result computes one meta-gradient."""


def _no_choice(make: Make, setting: Setting) -> Make:
    return make


@dataclass(frozen=True)
class Competitor:
    """An implementation whose speed is compared.

    Args:
        make: prepares a setting.
        library: the name of the library, "" for ours.
        in_flight: the tasks whose graphs are alive at once. Memory is compared by task.
        differs: the reason why the gradient is another one, "" for none. Such a competitor is
            timed, and not compared.
        choose: measures before the timing which variant of `make` is the fastest.
        default: False: a variant of ours by an option that is off by default. Peers are not
            compared with it.
    """

    make: Callable[[Setting], Run]
    library: str = ""
    in_flight: Literal["one", "all"] = "all"
    differs: str = ""
    choose: Callable[[Make, Setting], Make] = _no_choice
    default: bool = True

    def prepare(self, setting: Setting) -> Make:
        """Return `make` with the choices by measurement made for that setting."""
        return self.choose(self.make, setting)

    @property
    def installed(self) -> bool:
        return not self.library or importlib.util.find_spec(self.library) is not None


def ours(
    metagrad: Callable[[Workload], MetaGradient],
    precision: Precision = "full",
    capture: Capture = "none",
) -> Make:
    """Return the function that prepares our meta-gradient of a setting.

    Settings of one workload have models of one structure, and share what is captured.
    """
    problems: dict[Workload, FewShot] = {}

    def make(setting: Setting) -> Run:
        w = setting.workload
        differentiate = metagrad(w)
        prox = w.prox if w.method == "imaml" else 0.0
        if w not in problems:
            problems[w] = FewShot(setting.model, prox, precision=precision, capture=capture)
        problem = problems[w]
        meta = dict(setting.model.named_parameters())

        def run() -> Gradient:
            return list(differentiate(problem, meta, setting.task).grads.values())

        return run

    return make


def choose_layout(make: Make, setting: Setting) -> Make:
    """Return a peer with its weights in the memory format that is faster here, by a few tasks."""

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


BATCHED: dict[str, Callable[[Workload], MetaGradient]] = {
    "imaml": _implicit,
    "maml": lambda w: Unrolled(_descent(w), "batched"),
}
"""The batched back end of each method."""

_peer = partial(Competitor, choose=choose_layout)

_ROUNDED = "products in bfloat16"
_WRONG = "torch's batch norm has a wrong second derivative under vmap"

COMPETITORS: dict[str, dict[str, Competitor]] = {
    "imaml": {
        "ours": Competitor(ours(BATCHED["imaml"])),
        "ours, captured": Competitor(ours(BATCHED["imaml"], capture="replay"), default=False),
        "ours, recomputed": Competitor(ours(partial(_implicit, linearisation="recomputed"))),
        "ours, Gauss-Newton": Competitor(
            ours(partial(_implicit, curvature="gauss_newton")), differs="Gauss-Newton curvature"
        ),
        "ours, bf16": Competitor(ours(BATCHED["imaml"], "bf16"), differs=_ROUNDED),
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
        "ours": Competitor(ours(BATCHED["maml"])),
        "ours, captured": Competitor(ours(BATCHED["maml"], capture="replay"), default=False),
        "ours, by higher": Competitor(
            ours(lambda w: Unrolled(_descent(w), "higher")), in_flight="one"
        ),
        "ours, first-order": Competitor(
            ours(lambda w: FirstOrder(_descent(w))), differs="no second derivatives"
        ),
        "ours, bf16": Competitor(ours(BATCHED["maml"], "bf16"), differs=_ROUNDED),
        "higher": _peer(peers.maml_by_higher, "higher", "one"),
        "learn2learn": _peer(peers.maml_by_learn2learn, "learn2learn", "one"),
        "TorchOpt": _peer(peers.maml_by_torchopt, "torchopt", "one"),
        "vmap": _peer(peers.maml_by_vmap, "torch"),
        "vmap, torch's norm": _peer(
            partial(peers.maml_by_vmap, elementary=False), "torch", differs=_WRONG
        ),
    },
}
