"""The outer loop, the same for every meta-gradient."""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from metalearn import checkpoint
from metalearn.errors import UsageError
from metalearn.evaluation import Estimate, evaluate
from metalearn.experiment import Experiment, build_optimiser
from metalearn.memory import peak_bytes
from metalearn.metagrad import NonFiniteGradient
from metalearn.progress import RunProgress
from metalearn.provenance import provenance
from metalearn.reporting import closing, figures, named, progress_line, solve_warning
from metalearn.run_folder import RunFolder
from metalearn.tasks import TaskBatch
from metalearn.tree import fixed, leaves_of, like_tree


class TrainingStopped(RuntimeError):
    """Training met what is not finite; last.pt holds the last good state."""


def train(config: DictConfig, run_dir: Path, resume: bool = False) -> dict[str, Any]:
    """One run into `run_dir`: config.yaml, metrics.jsonl, best.pt, last.pt and summary.json.

    Returns the summary.

    Raises:
        UsageError: the config asks for what can't be had; nothing is written then.
        TrainingStopped: a loss, a gradient or meta-parameters that are not finite; last.pt holds
            the state before that meta-step (after it, if only the validation loss is not).
    """
    _check(config)
    experiment = Experiment.of(config)
    meta, device = experiment.meta, experiment.device
    problem, metagrad = experiment.problem, experiment.metagrad
    sampler = experiment.tasks.sampler("train", config.seed, device)
    held_out = experiment.tasks.sampler("validation", config.validation.seed, device)
    episodes = held_out.state_dict()  # every validation sees the same tasks
    experiment.tasks.sampler("test", config.test.seed, device)  # a split that is short fails now
    leaves = leaves_of(meta)
    optimiser = build_optimiser(config.optimiser, leaves)
    schedule = _schedule(config, optimiser)

    drawn = sampler.state_dict()
    experiment.check(sampler.sample(1))
    sampler.load_state_dict(drawn)

    origin = provenance(device)  # of the code that trains, whatever the checkout becomes meanwhile

    run = RunFolder(run_dir, config, resume)
    step, best, wandb_id = 0, -math.inf, None
    carry: dict[str, Any] = {}  # what a meta-gradient hands on to the next meta-step's
    if resume:
        state = checkpoint.load(run.last)
        step, best, wandb_id = state["step"], state["best"], state.get("wandb_id")
        if config.steps < step:
            raise UsageError(f"steps={config.steps}; this run has taken {step} meta-steps already")
        if best > -math.inf:
            checkpoint.load(run.best)  # the summary needs it
        experiment.load(state["meta"])
        carry = _on(device, state.get("carry", {}))
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        sampler.load_state_dict(state["sampler"])
        run.cut(step)
    plain = OmegaConf.to_container(config, resolve=True)

    def state_at(step: int) -> dict[str, Any]:
        return {
            "step": step,
            "best": best,
            "meta": fixed(meta),
            "carry": carry,
            "optimiser": optimiser.state_dict(),
            "schedule": schedule.state_dict(),
            "sampler": sampler.state_dict(),
            "wandb_id": run.wandb_id,
            "config": plain,
        }

    def validate() -> dict[str, Estimate]:
        held_out.load_state_dict(episodes)
        return evaluate(problem, metagrad, meta, held_out, config.validation.tasks)

    drawn = sampler.state_dict()
    peak = _peak(experiment, sampler.sample(config.meta_batch))
    sampler.load_state_dict(drawn)
    warned = False
    with run, RunProgress(config.steps, start=step) as progress:
        run.start(progress.say, wandb_id)
        while step < config.steps:
            good = copy.deepcopy(state_at(step))  # the optimiser works in place
            began = time.perf_counter()
            task = sampler.sample(config.meta_batch)
            sampled = time.perf_counter()
            try:
                result = metagrad(problem, meta, task, **carry)
                for p, grad in zip(leaves, leaves_of(result.grads), strict=True):
                    p.grad = grad
                if config.clip_norm is not None:
                    torch.nn.utils.clip_grad_norm_(leaves, config.clip_norm)
                optimiser.step()
                if not all(p.isfinite().all() for p in leaves):
                    raise NonFiniteGradient(
                        "the optimiser's step made meta-parameters that are not finite; "
                        "a smaller optimiser.lr is the usual cure"
                    )
            except NonFiniteGradient as error:
                checkpoint.save(run.last, good)
                raise TrainingStopped(
                    f"stopped at meta-step {step + 1}: {error}; "
                    f"the state before it, of meta-step {step}, is in {run.last}"
                ) from error
            schedule.step()
            step += 1
            carry = result.carry
            row = {"step": step, **figures(result), "peak_memory_bytes": peak}
            row |= {"sample_s": sampled - began, "step_s": time.perf_counter() - began}
            warning = None if warned else solve_warning(result)
            if warning:
                progress.say(f"meta-step {step}: {warning}")
                warned = True

            if step % config.validation.every == 0 or step == config.steps:
                scores = validate()
                row |= named("validation", scores)
                score = scores["accuracy"].mean if "accuracy" in scores else -scores["loss"].mean
                if not math.isfinite(score):
                    checkpoint.save(run.last, state_at(step))
                    run.log(row)
                    raise TrainingStopped(
                        f"stopped at meta-step {step}: the validation loss is not finite; a "
                        f"smaller inner learning rate is the usual cure; the state is in {run.last}"
                    )
                if score > best:
                    best = score
                    checkpoint.save(run.best, state_at(step))
                checkpoint.save(run.last, state_at(step))
                shown = scores.get("accuracy")
                progress.say(
                    f"meta-step {step}: validation "
                    + (
                        f"accuracy {shown.percent()}"
                        if shown
                        else f"loss {scores['loss'].mean:.4f}"
                    )
                )
            run.log(row)
            progress.update(step, progress_line(row, config.meta_batch, peak))

        checkpoint.save(run.last, state_at(step))
        summary = _summary(config, experiment, run, peak) | origin
        run.finish(summary)
        for line in closing(summary, str(run_dir), run.written()):
            progress.say(line)
    return summary


def _check(config: DictConfig) -> None:
    least = {"steps": 1, "meta_batch": 1, "validation.every": 1}
    least |= {"validation.tasks": 2, "test.tasks": 2}  # one has no interval
    for name, fewest in least.items():
        value = OmegaConf.select(config, name)
        if not isinstance(value, int) or value < fewest:
            raise UsageError(f"{name}={value}; expected a whole number of at least {fewest}")
    if config.schedule not in ("constant", "cosine"):
        raise UsageError(f"schedule={config.schedule}; expected 'constant' or 'cosine'")
    if config.wandb not in ("offline", "online", "disabled"):
        raise UsageError(f"wandb={config.wandb}; expected 'offline', 'online' or 'disabled'")
    clip = config.clip_norm
    if clip is not None and not (isinstance(clip, int | float) and clip > 0):
        raise UsageError(f"clip_norm={config.clip_norm}; expected a number above 0, or null")


def _schedule(
    config: DictConfig, optimiser: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.LRScheduler:
    if config.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)
    return torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1.0)


def _on(device: torch.device, tree: Any) -> Any:
    return like_tree(tree, [x.to(device) for x in leaves_of(tree)])


def _peak(experiment: Experiment, task: TaskBatch) -> int:
    """Peak bytes of one meta-gradient, measured apart: on a CPU the profiler slows what it sees."""

    def once() -> None:
        experiment.metagrad(experiment.problem, experiment.meta, task)

    try:
        return peak_bytes(once, experiment.device)[1]
    except NonFiniteGradient:
        return 0  # the first meta-step will meet the same, and say so


def _summary(
    config: DictConfig, experiment: Experiment, run: RunFolder, peak: int
) -> dict[str, Any]:
    """Figures on the test split, by the meta-parameters that validated best."""
    chosen = checkpoint.load(run.best)
    meta = _on(experiment.device, chosen["meta"])
    sampler = experiment.tasks.sampler("test", config.test.seed, experiment.device)
    scores = evaluate(experiment.problem, experiment.metagrad, meta, sampler, config.test.tasks)
    times = sorted(row["step_s"] for row in run.rows())  # of all sessions of the run
    return {
        "name": config.name,
        **named("test", scores),
        "test_tasks": config.test.tasks,
        "transductive": config.transductive,
        "chosen_step": chosen["step"],
        "validation_best": chosen["best"],
        "steps": config.steps,
        "meta_batch": config.meta_batch,
        "peak_memory_bytes": peak,
        "step_s": times[len(times) // 2],
        "train_s": sum(times),
        "threads": torch.get_num_threads(),
        "seed": config.seed,
    }
