"""A run of a bilevel method into a folder, which survives a kill at any moment."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from metalearn.bilevel.certificate import Certify
from metalearn.bilevel.descent import Descent
from metalearn.bilevel.iterate import MakeOptimiser, MakeScheduler
from metalearn.bilevel.method import Method
from metalearn.bilevel.oracle import Precision
from metalearn.bilevel.run_folder import BilevelFolder
from metalearn.errors import TrainingInterrupted, TrainingStopped, UsageError
from metalearn.metagrad import NonFiniteGradient
from metalearn.parallel.ranks import Ranks, process_group, sum_bytes
from metalearn.problems.protocol import Meta
from metalearn.problems.stochastic import StochasticProblem
from metalearn.system.random_state import seed_all, untouched
from metalearn.training.given import describe
from metalearn.training.signals import Interruption
from metalearn.tree import leaves_of


def train(
    problem: StochasticProblem,
    method: Method,
    meta: Meta,
    inner_loader: DataLoader[Any],
    outer_loader: DataLoader[Any],
    inner_optimiser: MakeOptimiser,
    outer_optimiser: MakeOptimiser,
    *,
    run_dir: str | os.PathLike[str],
    steps: int,
    inner_scheduler: MakeScheduler | None = None,
    outer_scheduler: MakeScheduler | None = None,
    device: torch.device | str | None = None,
    precision: Precision = "full",
    micro_batches: int = 1,
    certify: Certify | None = None,
    certify_every: int = 100,
    checkpoint_every: int = 100,
    keep_checkpoints: int = 2,
    seed: int = 0,
    resume: bool = False,
) -> Descent:
    """Take outer steps of a method, with a row for each in `run_dir`/metrics.jsonl.

    The folder also gets checkpoints, last.pt and the ones before it, and summary.json. A run that
    ended anywhere, by a signal, a kill or a fault, and is resumed equals one that did not, bit for
    bit on a CPU. Under torchrun all processes call this function, and share each batch. The random
    states of the process are restored at the end.

    Args:
        problem, method, meta, inner_loader, outer_loader: as `Descent` takes them, and the
            optimisers, schedulers, device, precision and micro_batches.
        run_dir: a folder without a run; with `resume` that of the run.
        steps: the number of outer steps, with those of a resumed run.
        certify: makes a certificate, whose figures are added to the rows; None: none is made.
        certify_every, checkpoint_every: the outer steps from one to the next.
        keep_checkpoints: the number to keep.
        seed: of the random states in training, such as dropout's.
        resume: True: go on with the run in `run_dir`. All arguments are as they were, except for
            `steps`, `certify` and the periods.

    Returns:
        The descent at its end, whose attributes `meta` and `params` are the result.

    Raises:
        UsageError: an argument cannot be trained with.
        TrainingStopped: the descent diverged, or the folder takes no more.
        TrainingInterrupted: a signal asked the run to leave; it can be resumed.
    """
    periods = {"certify_every": certify_every, "checkpoint_every": checkpoint_every}
    for name, value in {"steps": steps, "keep_checkpoints": keep_checkpoints, **periods}.items():
        if type(value) is not int or value < 1:
            raise UsageError(f"{name}={value}: expected a whole number from 1 on. Give one.")
    with untouched(), process_group() as ranks:
        seed_all(seed)
        descent = Descent(
            problem,
            method,
            meta,
            inner_loader,
            outer_loader,
            inner_optimiser,
            outer_optimiser,
            inner_scheduler=inner_scheduler,
            outer_scheduler=outer_scheduler,
            device=device,
            precision=precision,
            micro_batches=micro_batches,
            ranks=ranks,
            seed=seed,
        )
        own = _describe(descent, precision, micro_batches, seed)
        check_ranks(descent, ranks)
        with (
            Interruption() as interruption,
            BilevelFolder(Path(run_dir), resume, keep_checkpoints, ranks) as folder,
        ):
            if resume:
                _go_on(descent, folder.load(), own, steps)
            else:
                folder.save(_state(descent, own))
            while descent.count < steps:
                row = _take_step(descent, folder)
                if certify is not None and descent.count % certify_every == 0:
                    row |= certify(descent).row()
                folder.log(row)
                signum = ranks.all_reduce_max(interruption.signum or 0)
                last = descent.count == steps
                if last or signum or descent.count % checkpoint_every == 0:
                    check_ranks(descent, ranks)
                    folder.save(_state(descent, own))
                if signum and not last:
                    raise TrainingInterrupted(
                        signum,
                        f"left after outer step {descent.count}; go on with resume=True and "
                        f"run_dir={str(folder.folder)!r}",
                    )
            summary = {"steps": descent.count, "ranks": ranks.size}
            folder.finish(summary | {name: _plain(value) for name, value in own.items()})
    return descent


def _take_step(descent: Descent, folder: BilevelFolder) -> dict[str, Any]:
    began = time.perf_counter()
    try:
        found = descent.step()
    except NonFiniteGradient as error:
        raise TrainingStopped(f"stopped at {error}; {folder.last_good}") from error
    row: dict[str, Any] = {
        "step": found.number,
        "outer_loss": found.outer_loss,
        "inner_loss": found.inner_loss,
        "grad_norm": found.grad_norm,
        "inner_lr": descent.inner.rate,
    }
    if descent.outer is not None:
        row["outer_lr"] = descent.outer.rate
    return row | found.metrics | {"step_s": time.perf_counter() - began}


def _state(descent: Descent, own: dict[str, Any]) -> dict[str, Any]:
    return {"step": descent.count, "run": own, "descent": descent.state_dict()}


def _go_on(descent: Descent, state: dict[str, Any], own: dict[str, Any], steps: int) -> None:
    """Load a checkpoint.

    Raises:
        UsageError: it is of other arguments, or beyond `steps`.
    """
    for name in own.keys() | state["run"].keys():
        before, now = state["run"].get(name), own.get(name)
        if before != now:
            raise UsageError(
                f"{name}={now}: expected {before}, as in the run that is resumed. Give that, or "
                "choose another run_dir."
            )
    if state["step"] > steps:
        raise UsageError(
            f"steps={steps}: expected at least {state['step']}, the outer steps that this run has "
            "taken already. Give more."
        )
    descent.load_state_dict(state["descent"])


def _describe(descent: Descent, precision: str, micro_batches: int, seed: int) -> dict[str, Any]:
    """Return plain values that say what a run is."""
    optimisers = {"inner": descent.inner, "outer": descent.outer}
    return {
        "problem": describe(descent.problem),
        "method": describe(descent.method),
        "inner_batches": _count(descent.inner_stream.loader),
        "outer_batches": _count(descent.outer_stream.loader),
        **{
            f"{name}_optimiser": describe(iterate.optimiser)
            for name, iterate in optimisers.items()
            if iterate is not None
        },
        "precision": precision,
        "micro_batches": micro_batches,
        "seed": seed,
    }


def _count(loader: DataLoader[Any]) -> int | None:
    """Return the number of batches of a pass; None for a stream without a length."""
    try:
        return len(loader)
    except TypeError:
        return None


def _plain(value: Any) -> int | str:
    return value if isinstance(value, int | str) else str(value)


def check_ranks(descent: Descent, ranks: Ranks) -> None:
    """Compare the ranks' meta, params and last batches.

    Raises:
        TrainingStopped: they differ by a bit.
    """
    if ranks.size == 1:
        return
    leaves = leaves_of(descent.meta) + list(descent.params.values())
    last = [stream.digest() for stream in (descent.inner_stream, descent.outer_stream)]
    found = ranks.gather([*last, *sum_bytes(leaves)])
    if any(other != found[0] for other in found):
        raise TrainingStopped(
            f"stopped at outer step {descent.count}: the ranks' batches, meta or params differ; "
            "give every process the same problem, meta and seed, and loaders of the same order"
        )
