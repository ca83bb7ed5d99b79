"""All that a meta-step changes: what a checkpoint holds and a resumed run puts back."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch.utils._pytree import tree_map_only

from metalearn.errors import TrainingStopped, UsageError
from metalearn.metagrad import MetaGradientResult, NonFiniteGradient
from metalearn.parallel.batches import OutOfMemory, SplitGradient
from metalearn.parallel.ranks import Ranks, job
from metalearn.parallel.sharding import ShardedGradient
from metalearn.problem import Meta
from metalearn.system import random_state as randomness
from metalearn.system.memory import peak_bytes
from metalearn.tasks import TaskBatch
from metalearn.training.averaging import MovingAverage
from metalearn.training.calibration import fastest_parts
from metalearn.training.experiment import Experiment, build_optimiser
from metalearn.training.guards import Guards
from metalearn.tree import fixed, leaves_of, like_tree


@dataclass(frozen=True)
class Chosen:
    """Meta-parameters that are among those that validated best."""

    step: int
    score: float
    meta: Meta


class TrainingState:
    """A run between two meta-steps.

    Raises:
        UsageError: the optimiser, the sampler or the guards refuse their options, or there are
            more ranks than tasks.
    """

    def __init__(self, config: DictConfig, experiment: Experiment, ranks: Ranks) -> None:
        if config.meta_batch < ranks.size:
            raise UsageError(
                f"meta_batch={config.meta_batch} has too few tasks for {ranks.size} processes; "
                "give each of them one at least"
            )
        if config.get("statistics", "task") != "task":
            if ranks.size > 1 or config.parts not in (None, 1):
                raise UsageError(
                    f"statistics={config.statistics}: expected one process and parts=null, for its "
                    "batch norms take all images of a meta-batch together. Set parts=null."
                )
            if config.transductive:
                raise UsageError(
                    f"statistics={config.statistics}: expected transductive=false, by which the "
                    "model is then chosen. Set transductive=false."
                )
        self._config, self._experiment, self._ranks = config, experiment, ranks
        self._leaves = leaves_of(experiment.meta)
        self.sampler = experiment.tasks.sampler("train", config.seed, experiment.device)
        self.optimiser = build_optimiser(config.optimiser, self._leaves)
        given = config.parts if isinstance(config.parts, int) else 1
        self._split = SplitGradient(experiment.metagrad, given)
        self._gradient = ShardedGradient(self._split, ranks)
        self.guards = Guards(
            config.on_nonfinite,
            config.on_failed_solve,
            config.on_explosion,
            config.explosion_factor,
        )
        self.step = 0
        self.carry: dict[str, Any] = {}  # what a meta-gradient hands on to the next meta-step's
        self.halvings = 0  # of the outer rate, by the guards
        self._average = self._new_average()
        self.best: list[Chosen] = []  # at most keep_best, the best first, of equal ones the earlier
        self.peak = 0
        self.warned: set[Any] = set()  # the warnings that were given, each once a session
        self._initial_rates = [group["lr"] for group in self.optimiser.param_groups]

    def meta_gradient(self, task: TaskBatch, say: Callable[[str], None]) -> MetaGradientResult:
        """Of the meta-parameters at hand; raises what a meta-gradient does, and OutOfMemory."""
        self._split.say = say
        return self._gradient(self._experiment.problem, self._experiment.meta, task, **self.carry)

    def measure(self) -> None:
        """The parts to take the meta-batch in, where they are to be measured, and the peak bytes of
        one meta-gradient on the rank that takes the most (apart from the run: on a CPU the profiler
        slows what it sees). Tasks and random states are as before."""
        drawn = self.sampler.state_dict()
        task = self.sampler.sample(self._config.meta_batch)
        self.sampler.load_state_dict(drawn)
        experiment, ranks = self._experiment, self._ranks
        self.peak, failed = 0, False
        # What fails here is met again by the first meta-step, or the profiler had no room.
        with randomness.untouched():
            if self._config.parts == "measured":
                own = task[ranks.share(len(task))]
                try:
                    self._split.parts = fastest_parts(
                        experiment.metagrad, experiment.problem, experiment.meta, own
                    )
                except (NonFiniteGradient, OutOfMemory):
                    failed = True
            if not ranks.largest(failed):  # for all ranks take part in what follows
                with contextlib.suppress(NonFiniteGradient, OutOfMemory, MemoryError):
                    _, self.peak = peak_bytes(
                        lambda: self.meta_gradient(task, print), experiment.device
                    )
        self.peak = ranks.largest(self.peak)

    @property
    def judged(self) -> Meta:
        """The meta-parameters that are validated and tested: the average, where there is one."""
        return self._experiment.meta if self._average is None else self._average.meta

    @property
    def chosen(self) -> Chosen | None:
        """The meta-parameters that validated best."""
        return self.best[0] if self.best else None

    def _new_average(self) -> MovingAverage | None:
        """The average that begins with the meta-parameters at hand."""
        decay = self._config.average
        return MovingAverage(decay, self._experiment.meta) if decay else None

    @property
    def rate(self) -> float:
        """The outer rate of the next meta-step, a function of what has been counted."""
        return self._initial_rates[0] * self._rate_factor()

    def _rate_factor(self) -> float:
        factor = 0.5**self.halvings
        if self._config.schedule == "cosine":
            factor *= (1 + math.cos(math.pi * self.step / self._config.steps)) / 2
        return factor

    def update(self, result: MetaGradientResult, norm: torch.Tensor) -> None:
        """The optimiser's step along a gradient of this norm.

        Raises:
            NonFiniteGradient: it made meta-parameters that are not finite; all is as before.
        """
        for p, grad in zip(self._leaves, leaves_of(result.grads), strict=True):
            p.grad = grad
        if self._config.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._leaves, self._config.clip_norm, norm)
        for group, rate in zip(self.optimiser.param_groups, self._initial_rates, strict=True):
            group["lr"] = rate * self._rate_factor()
        # Both work in place; two copies are a fraction of a millisecond.
        before = [p.detach().clone() for p in self._leaves]
        optimiser_before = tree_map_only(torch.Tensor, torch.clone, self.optimiser.state_dict())
        self.optimiser.step()
        if not all(p.isfinite().all() for p in self._leaves):
            with torch.no_grad():
                for p, value in zip(self._leaves, before, strict=True):
                    p.copy_(value)
            self.optimiser.load_state_dict(optimiser_before)
            raise NonFiniteGradient(
                "the optimiser's step made meta-parameters that are not finite; "
                "a smaller optimiser.lr is the usual cure"
            )
        self.carry = result.carry
        if self._average is not None:
            self._average.update(self._experiment.meta)

    def choose(self, score: float) -> int | None:
        """Keep the judged meta-parameters if they are among the `keep_best` best; return their
        place, 0 for the best, or None."""
        place = sum(other.score >= score for other in self.best)
        if place >= self._config.keep_best:
            return None
        meta = like_tree(self.judged, [p.detach().clone() for p in leaves_of(self.judged)])
        self.best.insert(place, Chosen(self.step, score, meta))
        del self.best[self._config.keep_best :]
        return place

    def check_ranks(self) -> None:
        """Raises TrainingStopped where the ranks' meta-parameters differ by a bit."""
        leaves = self._leaves + ([] if self._average is None else leaves_of(self._average.meta))
        bits = [p.detach().reshape(-1).view(torch.uint8) for p in leaves]
        sums = self._ranks.gather([int(b.sum(dtype=torch.int64)) for b in bits])
        if any(s != sums[0] for s in sums):
            raise TrainingStopped(
                f"stopped at meta-step {self.step}: the ranks' meta-parameters differ, which equal "
                "gradients cannot bring about; look at the machines, then go on from the checkpoint"
            )

    def streams(self) -> dict[str, Any]:
        """Where the tasks and the random states stand; `rewind` goes back there."""
        return {"sampler": self.sampler.state_dict(), "random": randomness.get_states()}

    def rewind(self, streams: dict[str, Any]) -> None:
        self.sampler.load_state_dict(streams["sampler"])
        randomness.set_states(streams["random"])

    def state_dict(self) -> dict[str, Any]:
        """Tensors are those at hand, not copies. All ranks ask for it together."""
        chosen = self.chosen
        return {
            "step": self.step,
            "best": chosen.score if chosen else -math.inf,
            "meta": fixed(self._experiment.meta),
            "chosen": {"step": chosen.step, "meta": chosen.meta} if chosen else None,
            "runners_up": [
                {"step": other.step, "score": other.score, "meta": other.meta}
                for other in self.best[1:]
            ],
            "average": None if self._average is None else self._average.state_dict(),
            "carry": self.carry,
            "optimiser": self.optimiser.state_dict(),
            "halvings": self.halvings,
            "guards": self.guards.state_dict(),
            "parts": self._ranks.gather(self._split.parts),
            "job": job(),
            "peak": self.peak,
            "config": OmegaConf.to_container(self._config, resolve=True),
            **self.streams(),
        }

    def best_states(self) -> list[dict[str, Any]]:
        """The entries that evaluation needs, of each of the best validated meta-parameters."""
        config = OmegaConf.to_container(self._config, resolve=True)
        return [
            {"step": one.step, "best": one.score, "meta": one.meta, "config": config}
            for one in self.best
        ]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state. An average that the state lacks begins here.

        Raises:
            UsageError: the meta-parameters are another model's.
        """
        self._experiment.load(state["meta"])
        self._average = self._new_average()
        if self._average is not None and state.get("average"):
            self._average.load_state_dict(state["average"])
        self.step, self.halvings, self.peak = state["step"], state["halvings"], state["peak"]
        self.carry = self._on_device(state["carry"])
        kept = [{**state["chosen"], "score": state["best"]}] if state["chosen"] else []
        self.best = [
            Chosen(one["step"], one["score"], self._on_device(one["meta"]))
            for one in (*kept, *state.get("runners_up", []))
        ][: self._config.keep_best]
        self.optimiser.load_state_dict(state["optimiser"])
        self.guards.load_state_dict(state["guards"])
        parts, here = state["parts"], self._ranks
        self._split.parts = parts[here.rank] if len(parts) == here.size else max(parts)
        self.rewind(state)

    def _on_device(self, tree: Any) -> Any:
        return like_tree(tree, [x.to(self._experiment.device) for x in leaves_of(tree)])
