"""The state of a run between two meta-steps: what a checkpoint holds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from metalearn.errors import TrainingStopped, UsageError
from metalearn.metagrad import MetaGradientResult, NonFiniteGradient
from metalearn.parallel.batches import OutOfMemory, SplitGradient
from metalearn.parallel.ranks import Ranks, job, sum_bytes
from metalearn.parallel.sharding import ShardedGradient
from metalearn.problem import Meta
from metalearn.system import random_state
from metalearn.system.memory import peak_bytes
from metalearn.tasks import TaskBatch
from metalearn.training.averaging import MovingAverage
from metalearn.training.best import Best
from metalearn.training.data_source import OPTION
from metalearn.training.experiment import Setup
from metalearn.training.fingerprint import (
    BEFORE,
    DataRecord,
    describe_data,
    find_leak,
    find_other_data,
    join_earlier,
)
from metalearn.training.guards import Guards
from metalearn.training.optimiser import OuterOptimiser
from metalearn.training.saved_fields import MISFITS, check_fields, check_fit, misfit
from metalearn.tree import detached, leaves_of, like_tree


class TrainingState:
    """A run between two meta-steps.

    Raises:
        UsageError: the optimiser, the sampler or the guards refuse their options, or there are
            more ranks than tasks.
    """

    def __init__(self, config: DictConfig, experiment: Setup, ranks: Ranks) -> None:
        _check(config, experiment, ranks)
        self._config, self.experiment, self.ranks = config, experiment, ranks
        self.data = describe_data(experiment.tasks)
        self.sampler = experiment.tasks.sampler("train", config.seed, experiment.device)
        self.optimiser = OuterOptimiser(
            experiment.optimiser(experiment.leaves),
            experiment.meta,
            config.schedule,
            config.steps,
            config.clip_norm,
        )
        self._split = SplitGradient(experiment.metagrad, config.micro_batches or 1)
        self._gradient = ShardedGradient(self._split, ranks)
        self.guards = Guards(
            config.on_nonfinite,
            config.on_failed_solve,
            config.on_explosion,
            config.explosion_factor,
        )
        self.step = 0
        self.solver_state: dict[
            str, Any
        ] = {}  # a meta-gradient's own state, for the next meta-step
        self.best = Best(config.keep_best)
        self.peak = 0  # bytes of one meta-gradient
        self._average = self._new_average()

    def begin_after(self, earlier: DataRecord, word: str) -> None:
        """Keep what the weights at the start, of `word`, were trained on in the record of the data.

        Raises:
            UsageError: it is in the validation or the test split of this run.
        """
        if not earlier:
            return
        for split in ("validation", "test"):
            if leak := find_leak(self.data, earlier, split):
                raise UsageError(
                    f"init_from={word} {leak}: expected data that it has not seen. Give the data "
                    "and splits of its training"
                )
        self.data[BEFORE] = join_earlier(earlier)

    def meta_gradient(self, task: TaskBatch, say: Callable[[str], None]) -> MetaGradientResult:
        """Compute the meta-gradient at the current meta-parameters.

        Raises:
            OutOfMemory: memory does not hold one task; and whatever the meta-gradient raises.
        """
        self._split.say = say
        return self._gradient(
            self.experiment.problem, self.experiment.meta, task, **self.solver_state
        )

    def take(self, result: MetaGradientResult) -> float:
        """Move the meta-parameters along a meta-gradient; return its norm.

        Raises:
            NonFiniteGradient, FailedSolve, Explosion: a guard refuses it; all is as before.
        """
        norm = self.guards.check(result)
        self.optimiser.step(result.grads, norm, self.step)
        self.solver_state = result.solver_state
        if self._average is not None:
            self._average.update(self.experiment.meta)
        return self.guards.accept(norm)

    def measure(self) -> None:
        """Measure the peak bytes of one meta-gradient, on the rank that takes the most.

        Tasks and random states are as before.

        It is apart from the run because on a CPU the profiler slows what it sees.
        """
        drawn = self.sampler.state_dict()
        task = self.sampler.sample(self._config.meta_batch)
        self.sampler.load_state_dict(drawn)
        self.peak = 0
        # An error here is met again by the first meta-step, or the profiler had no room.
        with (
            random_state.untouched(),
            contextlib.suppress(NonFiniteGradient, OutOfMemory, MemoryError),
        ):
            _, self.peak = peak_bytes(
                lambda: self.meta_gradient(task, print), self.experiment.device
            )
        self.peak = self.ranks.all_reduce_max(self.peak)

    @property
    def judged(self) -> Meta:
        """The meta-parameters that are validated and tested: the average, where there is one."""
        return self.experiment.meta if self._average is None else self._average.meta

    def _new_average(self) -> MovingAverage | None:
        decay = self._config.average
        return MovingAverage(decay, self.experiment.meta) if decay else None

    def check_ranks(self) -> None:
        """Compare the ranks' meta-parameters.

        Raises:
            TrainingStopped: they differ by a bit.
        """
        leaves = leaves_of(self.experiment.meta)
        if self._average is not None:
            leaves = leaves + leaves_of(self._average.meta)
        sums = self.ranks.gather(sum_bytes(leaves))
        if any(s != sums[0] for s in sums):
            raise TrainingStopped(
                f"stopped at meta-step {self.step}: the ranks' meta-parameters differ, which equal "
                "gradients cannot bring about; look at the machines, then go on from the checkpoint"
            )

    def streams(self) -> dict[str, Any]:
        """Return the states of the sampler and of the random generators, for `rewind`."""
        return {"sampler": self.sampler.state_dict(), "random": random_state.get_states()}

    def rewind(self, streams: dict[str, Any]) -> None:
        """Put back the states that `streams` returned."""
        self.sampler.load_state_dict(streams["sampler"])
        random_state.set_states(streams["random"])

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds; its tensors are no copies. All ranks call it together."""
        return {
            "step": self.step,
            "meta": detached(self.experiment.meta),
            "average": None if self._average is None else self._average.state_dict(),
            "carry": self.solver_state,
            **self.best.state_dict(),
            **self.optimiser.state_dict(),
            "guards": self.guards.state_dict(),
            "parts": self.ranks.gather(self._split.micro_batches),
            "data": self.data,
            "job": job(),
            "peak": self.peak,
            "config": OmegaConf.to_container(self._config, resolve=True),
            **self._constants(),
            **self.streams(),
        }

    def _constants(self) -> dict[str, Any]:
        constants = detached(self.experiment.constants)
        return {"constants": constants} if constants else {}

    def best_states(self) -> list[dict[str, Any]]:
        """Return what evaluation needs of each of the best validated meta-parameters."""
        config = OmegaConf.to_container(self._config, resolve=True)
        return [
            {"step": one.step, "best": one.score, "meta": one.meta, "config": config}
            | {"data": self.data}
            | self._constants()
            for one in self.best.kept
        ]

    def load_state_dict(self, state: dict[str, Any], where: Path | str = "the state") -> None:
        """Go on from a state. An average that the state lacks begins here.

        Args:
            where: the state's file, for the error.

        Raises:
            UsageError: the data or the meta-parameters are others, or a field is of another type.
        """
        device, meta = self.experiment.device, self.experiment.meta
        check_fields(state, state.keys() - {"format"}, where)
        saved = state.get("data", {})
        if difference := find_other_data(self.data, saved):
            place = OmegaConf.select(self._config, OPTION) is not None
            raise UsageError(
                f"{where} was trained on other data ({difference}): expected the same. Put them "
                f"back{', or give their place by source=' if place else ''}, or train anew"
            )
        if BEFORE in saved:
            self.data[BEFORE] = saved[BEFORE]
        self.experiment.load(state["meta"])
        self.experiment.load_constants(state.get("constants", {}))
        averages = [state["average"]] if state.get("average") else []
        for one in (*averages, *filter(None, [state["chosen"]]), *state.get("runners_up", [])):
            check_fit(one["meta"], meta, "average, chosen or runners_up", where)
        self._check_carry(state["carry"], where)
        self._average = self._new_average()
        if self._average is not None and state.get("average"):
            self._average.load_state_dict(state["average"])
        self.step, self.peak = state["step"], state["peak"]
        self.solver_state = like_tree(
            state["carry"], [x.to(device) for x in leaves_of(state["carry"])]
        )
        self.best.load_state_dict(state, device)
        try:
            self.optimiser.load_state_dict(state)
        except MISFITS as error:
            raise misfit(where, "optimiser", "the state of this run's optimiser") from error
        self.guards.load_state_dict(state["guards"])
        micro_batches, here = state["parts"], self.ranks
        if state["config"].get("parts") == "measured":
            micro_batches = [1]
        own = micro_batches[here.rank] if len(micro_batches) == here.size else max(micro_batches)
        self._split.micro_batches = min(own, self._config.meta_batch)
        try:
            self.rewind(state)
            self.sampler.sample(1)
            self.rewind(state)
        except MISFITS as error:
            raise misfit(where, "sampler or random", "the states of this run") from error

    def _check_carry(self, solver_state: dict[str, Any], where: Path | str) -> None:
        """Raise UsageError if the meta-gradient of this run leaves another carry."""
        if not solver_state:
            return
        experiment, streams = self.experiment, self.streams()
        task = self.sampler.sample(1)
        try:
            with contextlib.suppress(NonFiniteGradient, OutOfMemory, MemoryError):
                made = experiment.metagrad(experiment.problem, experiment.meta, task)
                check_fit(solver_state, made.solver_state, "carry", where)
        finally:
            self.rewind(streams)


def _check(config: DictConfig, experiment: Setup, ranks: Ranks) -> None:
    if config.meta_batch < ranks.size:
        raise UsageError(
            f"meta_batch={config.meta_batch} has too few tasks for {ranks.size} processes; "
            "give each of them one at least"
        )
    if experiment.couples_tasks and (ranks.size > 1 or config.micro_batches not in (None, 1)):
        raise UsageError(
            f"problem={type(experiment.problem).__name__}: expected one process and "
            "micro_batches=null, for a task's loss depends on the whole meta-batch. Set "
            "micro_batches=null."
        )
