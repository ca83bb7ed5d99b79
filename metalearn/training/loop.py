"""The outer loop, the same for every meta-gradient."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from omegaconf import DictConfig, OmegaConf

from metalearn.config import checked
from metalearn.errors import TrainingInterrupted, TrainingStopped, UsageError
from metalearn.parallel.batches import OutOfMemory
from metalearn.parallel.ranks import ALONE, Ranks
from metalearn.system.provenance import provenance
from metalearn.system.random_state import seed_all
from metalearn.training.estimate import Estimate
from metalearn.training.evaluation import evaluate
from metalearn.training.experiment import Experiment
from metalearn.training.guards import REFUSALS
from metalearn.training.messages import (
    closing,
    figures,
    named,
    progress_line,
    solve_warning,
    stability_warning,
    validation_line,
)
from metalearn.training.progress import RunProgress
from metalearn.training.run_folder import RunFolder
from metalearn.training.signals import Interruption
from metalearn.training.state import TrainingState

MOST_TASKS = 100_000
"""Of a meta-step; 5-way 1-shot ones of Omniglot take 3 GB then."""


def train(
    config: DictConfig, run_dir: Path, resume: bool = False, ranks: Ranks = ALONE
) -> dict[str, Any]:
    """One run into `run_dir`: config.yaml, metrics.jsonl, best.pt, last.pt and summary.json.

    With `average` above 0 the exponential moving average of the meta-parameters is what is
    validated, chosen from and tested (`MovingAverage`). With `keep_best` above 1 the runners-up of
    best.pt are kept too, best.1.pt, best.2.pt and so on.

    Returns the summary. A run that ended anywhere, by a signal, a kill or a fault, and is resumed
    equals one that did not, bit for bit on a CPU with as many threads and ranks. Several ranks draw
    the same tasks and share them out; the run is that of one rank but for rounding.

    Raises:
        UsageError: the config asks for what can't be had; nothing is written then.
        TrainingStopped: a guard stopped it (last.pt holds the state before that meta-step; after
            it, if only the validation loss is not finite), or the folder takes no more.
        TrainingInterrupted: a signal asked for it; last.pt holds the state at that moment.
    """
    _check(config)
    seed_all(config.seed)
    experiment = Experiment.of(config)
    if config.init_from is not None and not resume:
        experiment.start_from(config.init_from)
    state = TrainingState(config, experiment, ranks)
    held_out = experiment.tasks.sampler("validation", config.validation.seed, experiment.device)
    episodes = held_out.state_dict()  # every validation sees the same tasks
    experiment.tasks.sampler("test", config.test.seed, experiment.device)  # too short fails now
    streams = state.streams()
    experiment.check(state.sampler.sample(1))
    state.rewind(streams)
    if not resume:
        state.measure()
    origin = provenance(experiment.device)  # of the code that trains, whatever becomes of it

    def validate() -> dict[str, Estimate]:
        held_out.load_state_dict(episodes)
        metagrad, meta = experiment.metagrad, state.judged
        problem = experiment.settled(experiment.problem, meta)
        tasks = config.validation.tasks
        return evaluate(problem, metagrad, meta, held_out, tasks, ranks=ranks, say=progress.say)

    with Interruption() as interruption, RunFolder(run_dir, config, resume, ranks) as run:
        saved, damaged = run.load() if resume else ({}, [])
        if resume:
            _check_resumed(config, saved)
            state.load_state_dict(saved)
            if checked(saved["config"], str(run.last), "train").device != config.device:
                state.measure()
        with RunProgress(config.steps, start=state.step, silent=ranks.rank > 0) as progress:
            for sentence in damaged:
                progress.say(sentence)
            run.start(progress.say, state.step, saved.get("wandb_id"))
            if not resume:
                run.save(state.state_dict())
            else:
                run.save_best(state.best_states())  # what is there may be of a later meta-step

            def asked_to_leave() -> int | None:
                """The signal that any rank has got by now."""
                return ranks.largest(interruption.signum or 0) or None

            def leave_if_asked(done: int = 0) -> None:
                if signum := asked_to_leave():
                    leave(signum)

            def leave(signum: int) -> None:
                raise TrainingInterrupted(
                    signum,
                    f"left after meta-step {state.step}; go on with "
                    f"`metalearn train resume={run_dir}`",
                )

            def stop(row: dict[str, Any], why: str) -> NoReturn:
                run.log(row)
                run.save(state.state_dict())
                raise TrainingStopped(
                    f"stopped at meta-step {state.step}: {why}; the state is in {run.last}"
                )

            while state.step < config.steps:
                row = _meta_step(state, config.meta_batch, run, progress.say)
                last = state.step == config.steps
                if last or state.step % config.validation.every == 0:
                    try:
                        scores = validate()
                    except OutOfMemory as error:
                        stop(row, str(error))
                    row |= named("validation", scores)
                    progress.say(validation_line(state.step, scores))
                    score = (
                        scores["accuracy"].mean if "accuracy" in scores else -scores["loss"].mean
                    )
                    if math.isfinite(score):
                        if (place := state.choose(score)) is not None:
                            run.save_best(state.best_states(), place)
                    elif config.on_nonfinite == "stop" or (last and state.chosen is None):
                        stop(
                            row,
                            "the validation loss is not finite; a smaller inner learning rate is "
                            "the usual cure",
                        )
                run.log(row)
                asked = asked_to_leave()
                if last or asked or state.step % config.checkpoint_every == 0:
                    state.check_ranks()
                    run.save(state.state_dict())
                progress.update(state.step, progress_line(row, config.meta_batch, state.peak))
                if asked:
                    leave(asked)

            summary = _summary(config, experiment, state, run, ranks, leave_if_asked, progress.say)
            summary |= origin
            run.finish(summary)
            for line in closing(summary, str(run_dir), run.written()):
                progress.say(line)
    return summary


def _meta_step(
    state: TrainingState, tasks: int, run: RunFolder, say: Callable[[str], None]
) -> dict[str, Any]:
    """Moves the state on by one meta-step; returns its row.

    Raises:
        TrainingStopped: the gradient is not to be used, and the policy is to stop; the state before
            this meta-step is in last.pt.
    """
    began = time.perf_counter()
    streams, number = state.streams(), state.step + 1
    task = state.sampler.sample(tasks)
    sampled = time.perf_counter()
    row: dict[str, Any] = {"step": number}
    try:
        result = state.meta_gradient(task, say)
        row |= figures(result)
        norm = state.guards.check(result)
        state.update(result, norm)
        row["grad_norm"] = state.guards.accept(norm)
        for warn in (solve_warning, stability_warning):
            if warn not in state.warned and (warning := warn(result)):
                say(f"meta-step {number}: {warning}")
                state.warned.add(warn)
    except (*REFUSALS, OutOfMemory) as error:
        policy = "stop" if isinstance(error, OutOfMemory) else state.guards.refuse(error)
        if policy == "stop":
            state.rewind(streams)
            run.save(state.state_dict())
            raise TrainingStopped(
                f"stopped at meta-step {number}: {error}; "
                f"the state before it, of meta-step {state.step}, is in {run.last}"
            ) from error
        if policy == "halve":
            state.halvings += 1
        say(f"meta-step {number} is left out ({state.guards.refused} so far): {error}")
    row |= {"outer_lr": state.rate, "refused_steps": state.guards.refused}
    row |= {"peak_memory_bytes": state.peak, "sample_s": sampled - began}
    state.step = number
    return row | {"step_s": time.perf_counter() - began}


def _check(config: DictConfig) -> None:
    least = {"steps": 1, "meta_batch": 1, "validation.every": 1}
    least |= {"checkpoint_every": 1, "keep_checkpoints": 1, "keep_best": 1}
    least |= {"validation.tasks": 2, "test.tasks": 2}  # one has no interval
    for name, fewest in least.items():
        value = OmegaConf.select(config, name)
        if not isinstance(value, int) or value < fewest:
            raise UsageError(f"{name}={value}; expected a whole number of at least {fewest}")
    if config.meta_batch > MOST_TASKS:
        raise UsageError(
            f"meta_batch={config.meta_batch}; expected at most {MOST_TASKS} tasks, for all of a "
            "meta-step's are drawn before it"
        )
    parts, most = config.parts, config.meta_batch
    if parts not in (None, "measured") and not (type(parts) is int and 1 <= parts <= most):
        raise UsageError(
            f"parts={parts}; expected a whole number from 1 to meta_batch={most}, 'measured', or "
            "null for the whole meta-batch at once"
        )
    if config.schedule not in ("constant", "cosine"):
        raise UsageError(f"schedule={config.schedule}; expected 'constant' or 'cosine'")
    if config.wandb not in ("offline", "online", "disabled"):
        raise UsageError(f"wandb={config.wandb}; expected 'offline', 'online' or 'disabled'")
    if not 0 <= config.average < 1:
        raise UsageError(
            f"average={config.average}: expected a decay from 0 up to 1, 1 excluded. Give 0 for no "
            "average, or such as 0.99 for one over about the last 100 meta-steps"
        )
    clip = config.clip_norm
    if clip is not None and not (isinstance(clip, int | float) and clip > 0):
        raise UsageError(f"clip_norm={config.clip_norm}; expected a number above 0, or null")


def _check_resumed(config: DictConfig, saved: dict[str, Any]) -> None:
    if config.steps < saved["step"]:
        raise UsageError(
            f"steps={config.steps}; this run has taken {saved['step']} meta-steps already"
        )


def _summary(
    config: DictConfig,
    experiment: Experiment,
    state: TrainingState,
    run: RunFolder,
    ranks: Ranks,
    progress: Callable[[int], None],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Figures on the test split, by the meta-parameters that validated best."""
    assert state.chosen is not None  # the last meta-step is validated, and finite
    sampler = experiment.tasks.sampler("test", config.test.seed, experiment.device)
    scores = evaluate(
        experiment.settled(experiment.problem, state.chosen.meta),
        experiment.metagrad,
        state.chosen.meta,
        sampler,
        config.test.tasks,
        progress=progress,
        ranks=ranks,
        say=say,
    )
    times = sorted(run.step_seconds())
    return {
        "name": config.name,
        **named("test", scores),
        "test_tasks": config.test.tasks,
        "transductive": config.transductive,
        "chosen_step": state.chosen.step,
        "validation_best": state.chosen.score,
        "steps": config.steps,
        "meta_batch": config.meta_batch,
        "peak_memory_bytes": state.peak,
        "step_s": times[len(times) // 2],
        "train_s": sum(times),
        "threads": torch.get_num_threads(),
        "ranks": ranks.size,
        "seed": config.seed,
    }
