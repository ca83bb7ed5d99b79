"""The outer loop, the same for every problem and meta-gradient."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from metalearn.parallel.batches import OutOfMemory
from metalearn.parallel.ranks import ALONE, Ranks
from metalearn.system.provenance import provenance
from metalearn.system.random_state import seed_all
from metalearn.tasks import Sampler
from metalearn.training.agreement import check_same, describe_options, on_every_rank
from metalearn.training.evaluation import evaluate
from metalearn.training.experiment import Experiment
from metalearn.training.fingerprint import describe_start, read_data
from metalearn.training.forecast import SHORTER, TIMED, describe_time_left
from metalearn.training.guards import REFUSALS
from metalearn.training.held_out import HeldOut, rewound
from metalearn.training.messages import (
    figures,
    named,
    solve_warning,
    stability_warning,
    validation_line,
)
from metalearn.training.options import check_options
from metalearn.training.session import Session
from metalearn.training.state import TrainingState


def train(
    config: DictConfig,
    run_dir: Path,
    resume: bool = False,
    ranks: Ranks = ALONE,
    shorter: Sequence[str] = SHORTER,
) -> dict[str, Any]:
    """Train one run into `run_dir`: config.yaml, metrics.jsonl, best.pt, last.pt, summary.json.

    With `average` above 0 the exponential moving average of the meta-parameters is what is
    validated, chosen from and tested (`MovingAverage`). With `keep_best` above 1 the runners-up of
    best.pt are kept too, best.1.pt, best.2.pt and so on.

    A run that ended anywhere, by a signal, a kill or a fault, and is resumed equals one that did
    not, bit for bit on a CPU with as many threads and ranks. Several ranks draw the same tasks and
    share them out; the run is that of one rank but for rounding.

    Args:
        shorter: the options of the caller that make the run shorter, for the sentence on its time.

    Returns:
        the summary, as in summary.json.

    Raises:
        UsageError: the config asks for what can't be had; nothing is written then.
        TrainingStopped: a guard stopped it (last.pt holds the state before that meta-step; after
            it, if only the validation loss is not finite), or the folder takes no more.
        TrainingInterrupted: a signal asked for it; last.pt holds the state at that moment.
    """
    return run(config, run_dir, resume, ranks, lambda: prepare(config, resume, ranks), shorter)


def run(
    config: DictConfig,
    run_dir: Path,
    resume: bool,
    ranks: Ranks,
    prepare: Callable[[], tuple[TrainingState, HeldOut]],
    shorter: Sequence[str] = SHORTER,
) -> dict[str, Any]:
    """Train what `prepare` returns, with the options of `config`; see `train`."""
    state, held_out = on_every_rank(ranks, prepare)
    if ranks.size > 1:
        own = describe_options(config) | {"resume": resume}
        check_same(ranks, own | describe_start(state.experiment, state.data))
    if not resume:
        state.measure()
    # The code that trains is meant, whatever becomes of the checkout meanwhile.
    origin = provenance(state.experiment.device)
    with Session(run_dir, config, resume, ranks) as session:
        row = session.begin(state)
        if row is not None:
            _validate(config, state, held_out, session, row)
            session.log(row)
            session.save(state)
        take_meta_steps(config, state, held_out, session, shorter)
        summary = summarise(config, state, held_out, session) | origin
        session.finish(summary)
    return summary


def prepare(config: DictConfig, resume: bool, ranks: Ranks) -> tuple[TrainingState, HeldOut]:
    """Build what a run needs, and try it on a task; nothing is written, no rank communicates.

    Raises:
        UsageError: the config asks for what can't be had.
    """
    check_options(config)
    seed_all(config.seed)
    experiment, start = Experiment.of(config), None if resume else config.init_from
    if start is not None:
        notes = experiment.start_from(start)
        if ranks.rank == 0:
            print("\n".join(notes), end="\n" if notes else "")
    state = TrainingState(config, experiment, ranks)
    if start is not None:
        state.begin_after(read_data(start), start)
    validation = experiment.tasks.sampler("validation", config.validation.seed, experiment.device)

    def test() -> Sampler:
        return experiment.tasks.sampler("test", config.test.seed, experiment.device)

    test()  # too few images of a class fail now
    try_first_task(state)
    return state, HeldOut(rewound(validation), test)


def try_first_task(state: TrainingState) -> None:
    """Try the problem on the first training task, and go back to before it.

    Raises:
        UsageError: the problem cannot take the task.
    """
    streams = state.streams()
    state.experiment.check(state.sampler.sample(1))
    state.rewind(streams)


def take_meta_steps(
    config: DictConfig,
    state: TrainingState,
    held_out: HeldOut,
    session: Session,
    shorter: Sequence[str] = SHORTER,
) -> None:
    """Take the meta-steps that are left, with a row for each in metrics.jsonl.

    Raises:
        TrainingStopped: a guard stops the run, or the validation loss is not finite.
        TrainingInterrupted: a signal asked for it.
    """
    begun, step_s = state.step, []
    for step in session.steps(state):
        row = _meta_step(config, state, session)
        step_s.append(row["step_s"])
        if step == begun + TIMED:
            held = held_out.validation is not None, held_out.test is not None
            if (said := describe_time_left(config, step_s, step, *held, shorter)) is not None:
                session.say(said)
        if step == config.steps or step % config.validation.every == 0:
            _validate(config, state, held_out, session, row)
        session.log(row)


def _meta_step(config: DictConfig, state: TrainingState, session: Session) -> dict[str, Any]:
    """Move the state on by one meta-step and return its row; a guard may leave the step out.

    Raises:
        TrainingStopped: a guard refuses the gradient, and its policy is to stop. The state before
            this meta-step is in last.pt.
    """
    began, streams, step = time.perf_counter(), state.streams(), state.step + 1
    task = state.sampler.sample(config.meta_batch)
    sampled = time.perf_counter()
    row: dict[str, Any] = {"step": step}
    try:
        result = state.meta_gradient(task, session.say)
        row |= figures(result)
        row["grad_norm"] = state.take(result)
        for warn in (solve_warning, stability_warning):
            if warn not in session.warned and (warning := warn(result)):
                session.say(f"meta-step {step}: {warning}")
                session.warned.add(warn)
    except (*REFUSALS, OutOfMemory) as error:
        policy = "stop" if isinstance(error, OutOfMemory) else state.guards.refuse(error)
        if policy == "stop":
            state.rewind(streams)
            before = f"the state before it, of meta-step {state.step},"
            session.stop(state, f"{step}: {error}; {before}")
        if policy == "halve":
            state.optimiser.halvings += 1
        session.say(f"meta-step {step} is left out ({state.guards.refused} so far): {error}")
    row |= {"outer_lr": state.optimiser.rate(state.step), "refused_steps": state.guards.refused}
    row |= {"peak_memory_bytes": state.peak, "sample_s": sampled - began}
    state.step = step
    return row | {"step_s": time.perf_counter() - began}


def _validate(
    config: DictConfig,
    state: TrainingState,
    held_out: HeldOut,
    session: Session,
    row: dict[str, Any],
) -> None:
    """Judge the meta-parameters, keep them if they are among the best, and add to the row.

    Without validation tasks it keeps the last meta-parameters alone.

    Raises:
        TrainingStopped: the loss is not finite, or memory does not hold a task.
        TrainingInterrupted: a signal asked for it; the meta-step is saved, its validation pends.
    """
    experiment, meta, streams = state.experiment, state.judged, state.streams()
    if held_out.validation is None:
        if state.step == config.steps:
            state.best.keep_last(state.step, meta)
            session.save_best(state, 0)
        return

    def leave_unless_done(done: int) -> None:
        if done < config.validation.tasks:
            session.leave_if_asked(state, (row, streams))

    try:
        scores = evaluate(
            experiment.settled(experiment.problem, meta),
            experiment.metagrad,
            meta,
            held_out.validation(),
            config.validation.tasks,
            progress=leave_unless_done,
            ranks=state.ranks,
            say=session.say,
        )
    except OutOfMemory as error:
        session.stop(state, f"{state.step}: {error}; the state", row)
    row |= named("validation", scores)
    session.say(validation_line(state.step, scores))
    score = scores["accuracy"].mean if "accuracy" in scores else -scores["loss"].mean
    if math.isfinite(score):
        if (place := state.best.add(state.step, score, meta)) is not None:
            session.save_best(state, place)
    elif config.on_nonfinite == "stop" or (state.step == config.steps and not state.best.kept):
        reason = (
            "the validation loss is not finite; a smaller inner learning rate is the usual cure"
        )
        session.stop(state, f"{state.step}: {reason}; the state", row)


def summarise(
    config: DictConfig, state: TrainingState, held_out: HeldOut, session: Session
) -> dict[str, Any]:
    """Return the summary: figures on the test tasks, of the best validated meta-parameters.

    Raises:
        TrainingInterrupted: a signal asked for it.
    """
    experiment, chosen = state.experiment, state.best.first
    assert chosen is not None  # the last meta-step is validated, and finite
    scores = {}
    if held_out.test is not None:
        scores = evaluate(
            experiment.settled(experiment.problem, chosen.meta),
            experiment.metagrad,
            chosen.meta,
            held_out.test(),
            config.test.tasks,
            progress=lambda done: session.leave_if_asked(state),
            ranks=state.ranks,
            say=session.say,
        )
    times = sorted(session.step_seconds())
    return {
        "name": config.name,
        **named("test", scores),
        "test_tasks": config.test.tasks if scores else 0,
        "mode": experiment.mode,
        "chosen_step": chosen.step,
        "validation_best": chosen.score if math.isfinite(chosen.score) else None,
        "steps": config.steps,
        "meta_batch": config.meta_batch,
        "peak_memory_bytes": state.peak,
        "step_s": times[len(times) // 2],
        "train_s": sum(times),
        "threads": torch.get_num_threads(),
        "ranks": state.ranks.size,
        "seed": config.seed,
    }
