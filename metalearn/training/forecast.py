"""The time that a training will take, from meta-steps that were timed on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

from omegaconf import DictConfig, open_dict

from metalearn.errors import UsageError
from metalearn.metagrad import NonFiniteGradient
from metalearn.parallel.batches import OutOfMemory
from metalearn.parallel.ranks import ALONE
from metalearn.system import random_state
from metalearn.system.duration import format_duration
from metalearn.training.experiment import Experiment
from metalearn.training.state import TrainingState

TIMED = 3
"""The meta-steps that are timed before a run says what it takes."""
WORTH_SAYING_S = 10.0
"""The shortest time left that is said."""
SHORTER = ("steps", "meta_batch", "validation.tasks", "test.tasks")
"""The options of `metalearn train` that make a run shorter."""


def describe_time_left(
    config: DictConfig,
    step_s: Sequence[float],
    done: int,
    validates: bool,
    tests: bool,
    shorter: Sequence[str] = SHORTER,
) -> str | None:
    """Return the sentence about the time that a run has left.

    None: a few seconds are left, or no meta-step, so that no option could make the run shorter.

    A task of a validation or of the test is counted as one of training. Both adapt to it; the
    first also predicts more queries, and the second differentiates.

    Args:
        config: the run's.
        step_s: the seconds of the timed meta-steps, of which the first also prepares.
        done: the meta-steps that are behind.
        validates, tests: False: the run has no validation or no test tasks.
        shorter: the names of the options that make the run shorter.
    """
    each = median(step_s[1:] or step_s)
    left = each * (config.steps - done)
    validations = config.steps // config.validation.every - done // config.validation.every
    validations += config.steps % config.validation.every > 0
    judged = validations * config.validation.tasks if validates else 0
    judged += config.test.tasks if tests else 0
    judging = each / config.meta_batch * judged
    if done == config.steps or left + judging < WORTH_SAYING_S:
        return None
    absent = [name for name, given in (("validation", validates), ("test", tests)) if not given]
    helps = [f"{name}=" for name in shorter if not name.startswith(tuple(absent))]
    also = f", {judged} tasks of validation and test up to about {format_duration(judging)}"
    return (
        f"{config.steps - done} meta-steps take about {format_duration(left)} on this machine"
        f"{also if judged else ''}. For less: {', '.join(helps)}"
    )


def time_meta_step(config: DictConfig) -> float | None:
    """Return the seconds of a meta-step of a run on this machine, from the second of two.

    Nothing is written, and the random states stay as they were. None: it cannot be measured, as
    where the data is absent; the run itself says why.
    """
    with random_state.untouched():
        try:
            config = config.copy()
            with open_dict(config):
                config.init_from = None
            state = TrainingState(config, Experiment.of(config), ALONE)
            seconds = 0.0
            for _ in range(2):
                began = time.perf_counter()
                state.meta_gradient(state.sampler.sample(config.meta_batch), lambda _: None)
                seconds = time.perf_counter() - began
        except (UsageError, NonFiniteGradient, OutOfMemory, MemoryError):
            return None
    return seconds
