"""The outer loop, the same for every meta-gradient."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from metalearn import checkpoint
from metalearn.errors import UsageError
from metalearn.evaluation import Estimate, evaluate
from metalearn.experiment import Experiment, build
from metalearn.memory import peak_bytes
from metalearn.metagrad import NonFiniteGradient
from metalearn.progress import RunProgress
from metalearn.provenance import provenance
from metalearn.reporting import closing, figures, named, progress_line
from metalearn.run_folder import RunFolder
from metalearn.tasks import TaskBatch


class TrainingStopped(RuntimeError):
    """Training met a loss or a gradient that is not finite; the last good state is kept."""


def train(config: DictConfig, run_dir: Path, resume: bool = False) -> dict[str, Any]:
    """One run into `run_dir`: config.yaml, metrics.jsonl, best.pt, last.pt and summary.json.

    Returns the summary.

    Raises:
        UsageError: the config asks for what can't be had; nothing is written then.
        TrainingStopped: a non-finite loss or gradient; last.pt holds the state before it.
    """
    _check(config)
    experiment = Experiment.of(config)
    meta, device = experiment.meta, experiment.device
    problem, metagrad = experiment.problem, experiment.metagrad
    sampler = experiment.tasks.sampler("train", config.seed, device)
    held_out = experiment.tasks.sampler("validation", config.validation.seed, device)
    episodes = held_out.state_dict()  # every validation sees the same tasks
    experiment.tasks.sampler("test", config.test.seed, device)  # a split that is short fails now
    optimiser = build(config.optimiser)(meta.values())
    schedule = _schedule(config, optimiser)

    origin = provenance(device)  # of the code that trains, whatever the checkout becomes meanwhile

    run = RunFolder(run_dir, config, resume)
    step, best = 0, -float("inf")
    if resume:
        state = checkpoint.load(run.last)
        with torch.no_grad():
            for name, value in state["meta"].items():
                meta[name].copy_(value)
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        sampler.load_state_dict(state["sampler"])
        step, best = state["step"], state["best"]
        run.cut(step)

    def state_at(step: int) -> dict[str, Any]:
        return {
            "step": step,
            "best": best,
            "meta": {name: p.detach().cpu() for name, p in meta.items()},
            "optimiser": optimiser.state_dict(),
            "schedule": schedule.state_dict(),
            "sampler": sampler.state_dict(),
            "config": OmegaConf.to_container(config, resolve=True),
        }

    def validate() -> dict[str, Estimate]:
        held_out.load_state_dict(episodes)
        return evaluate(problem, metagrad, meta, held_out, config.validation.tasks)

    drawn = sampler.state_dict()
    peak = _peak(experiment, sampler.sample(config.meta_batch))
    sampler.load_state_dict(drawn)
    step_times: list[float] = []
    with run, RunProgress(config.steps, start=step) as progress:
        run.start(progress.say)
        while step < config.steps:
            began = time.perf_counter()
            task = sampler.sample(config.meta_batch)
            sampled = time.perf_counter()
            try:
                result = metagrad(problem, meta, task)
            except NonFiniteGradient as error:
                if not run.last.exists():
                    checkpoint.save(run.last, state_at(step))
                raise TrainingStopped(
                    f"stopped at meta-step {step + 1}: {error}; "
                    f"the state before it is in {run.last}"
                ) from error
            for name, p in meta.items():
                p.grad = result.grads[name]
            if config.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(list(meta.values()), config.clip_norm)
            optimiser.step()
            schedule.step()
            step += 1
            row = {"step": step, **figures(result), "peak_memory_bytes": peak}
            step_times.append(time.perf_counter() - began)
            row |= {"sample_s": sampled - began, "step_s": step_times[-1]}

            if step % config.validation.every == 0 or step == config.steps:
                scores = validate()
                row |= named("validation", scores)
                score = scores["accuracy"].mean if "accuracy" in scores else -scores["loss"].mean
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
        summary = _summary(config, experiment, run, peak, step_times) | origin
        run.finish(summary)
        for line in closing(summary, str(run_dir), run.written()):
            progress.say(line)
    return summary


def _check(config: DictConfig) -> None:
    for name in ("steps", "meta_batch", "validation.every", "validation.tasks", "test.tasks"):
        value = OmegaConf.select(config, name)
        if not isinstance(value, int) or value < 1:
            raise UsageError(f"{name}={value}; expected a whole number of at least 1")
    if config.schedule not in ("constant", "cosine"):
        raise UsageError(f"schedule={config.schedule}; expected 'constant' or 'cosine'")
    if config.wandb not in ("offline", "online", "disabled"):
        raise UsageError(f"wandb={config.wandb}; expected 'offline', 'online' or 'disabled'")
    if config.clip_norm is not None and not config.clip_norm > 0:
        raise UsageError(f"clip_norm={config.clip_norm}; expected a number above 0, or null")


def _schedule(
    config: DictConfig, optimiser: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.LRScheduler:
    if config.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)
    return torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1.0)


def _peak(experiment: Experiment, task: TaskBatch) -> int:
    """Peak bytes of one meta-gradient, measured apart: on a CPU the profiler slows what it sees."""

    def once() -> None:
        experiment.metagrad(experiment.problem, experiment.meta, task)

    try:
        return peak_bytes(once, experiment.device)[1]
    except NonFiniteGradient:
        return 0  # the first meta-step will meet the same, and say so


def _summary(
    config: DictConfig, experiment: Experiment, run: RunFolder, peak: int, step_times: list[float]
) -> dict[str, Any]:
    """Figures on the test split, by the meta-parameters that validated best."""
    chosen = checkpoint.load(run.best)
    meta = {name: value.to(experiment.device) for name, value in chosen["meta"].items()}
    sampler = experiment.tasks.sampler("test", config.test.seed, experiment.device)
    scores = evaluate(experiment.problem, experiment.metagrad, meta, sampler, config.test.tasks)
    times = sorted(step_times) or [0.0]
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
        "train_s": sum(step_times),
        "threads": torch.get_num_threads(),
        "seed": config.seed,
    }
