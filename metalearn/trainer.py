"""The outer loop, the same for every meta-gradient."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from metalearn import checkpoint
from metalearn.errors import UsageError
from metalearn.evaluation import Estimate, evaluate
from metalearn.experiment import Experiment, build
from metalearn.linear_solve import Status
from metalearn.memory import format_bytes, peak_bytes
from metalearn.metagrad import MetaGradientResult, NonFiniteGradient
from metalearn.progress import RunProgress
from metalearn.provenance import provenance
from metalearn.tracking import Tracker


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

    run = _Run(run_dir, config, resume)
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

    peak = _peak(experiment, config)
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
            row = {"step": step, **_figures(result), "peak_memory_bytes": peak}
            step_times.append(time.perf_counter() - began)
            row |= {"sample_s": sampled - began, "step_s": step_times[-1]}

            if step % config.validation.every == 0 or step == config.steps:
                scores = validate()
                row |= _named("validation", scores)
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
            progress.update(step, _line(row, config.meta_batch, peak))

        checkpoint.save(run.last, state_at(step))
        summary = _summary(config, experiment, run, peak, step_times)
        run.finish(summary)
        for line in _closing(summary, run):
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


def _peak(experiment: Experiment, config: DictConfig) -> int:
    """Peak bytes of one meta-gradient, measured apart: on a CPU the profiler slows what it sees."""
    task = experiment.tasks.sampler("train", config.seed, experiment.device).sample(
        config.meta_batch
    )

    def once() -> None:
        experiment.metagrad(experiment.problem, experiment.meta, task)

    try:
        return peak_bytes(once, experiment.device)[1]
    except NonFiniteGradient:
        return 0  # the first meta-step will meet the same, and say so


def _figures(result: MetaGradientResult) -> dict[str, Any]:
    """A meta-step's figures: means over the tasks; extremes of what must not be averaged."""
    row: dict[str, Any] = {"query_loss": result.outer_loss.mean().item()}
    row |= {f"query_{name}": value.mean().item() for name, value in result.metrics.items()}
    row["inner_grad_norm"] = result.inner.grad_norm.mean().item()
    certificate = result.certificate
    if certificate is None or certificate.status is None:
        return row
    assert certificate.relative_residual is not None and certificate.iterations is not None
    row["solve_relative_residual"] = certificate.relative_residual.mean().item()
    row["solve_iterations"] = certificate.iterations.double().mean().item()
    counts = torch.bincount(certificate.status.flatten(), minlength=len(Status)).tolist()
    row |= {f"solve_{s.name.lower()}": counts[s] for s in Status}
    if certificate.eigenvalue_bounds is not None:
        low, high = certificate.eigenvalue_bounds
        known = low.isfinite()
        if known.any():
            row |= {"ritz_low": low[known].min().item(), "ritz_high": high[known].max().item()}
    return row


def _named(prefix: str, scores: dict[str, Estimate]) -> dict[str, float]:
    return {f"{prefix}_{name}": e.mean for name, e in scores.items()} | {
        f"{prefix}_{name}_interval": e.interval for name, e in scores.items()
    }


def _line(row: dict[str, Any], tasks: int, peak: int) -> str:
    accuracy = f"  accuracy {row['query_accuracy']:.3f}" if "query_accuracy" in row else ""
    rate = tasks / row["step_s"]
    return f"loss {row['query_loss']:.4f}{accuracy}  {format_bytes(peak)}  {rate:.1f} tasks/s"


def _summary(
    config: DictConfig, experiment: Experiment, run: _Run, peak: int, step_times: list[float]
) -> dict[str, Any]:
    """Figures on the test split, by the meta-parameters that validated best."""
    chosen = checkpoint.load(run.best)
    meta = {name: value.to(experiment.device) for name, value in chosen["meta"].items()}
    sampler = experiment.tasks.sampler("test", config.test.seed, experiment.device)
    scores = evaluate(experiment.problem, experiment.metagrad, meta, sampler, config.test.tasks)
    times = sorted(step_times) or [0.0]
    return {
        "name": config.name,
        **_named("test", scores),
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
        **provenance(experiment.device),
    }


def _closing(summary: dict[str, Any], run: _Run) -> list[str]:
    mode = "transductive" if summary["transductive"] else "inductive"
    lines = []
    if "test_accuracy" in summary:
        accuracy = Estimate(summary["test_accuracy"], summary["test_accuracy_interval"])
        lines.append(
            f"test accuracy {accuracy.percent()} over {summary['test_tasks']} tasks ({mode}), "
            f"by the checkpoint of meta-step {summary['chosen_step']}"
        )
    else:
        lines.append(f"test loss {summary['test_loss']:.4f} ± {summary['test_loss_interval']:.4f}")
    lines.append(
        f"peak memory {format_bytes(summary['peak_memory_bytes'])}, "
        f"{summary['step_s']:.3f} s a meta-step"
    )
    return [*lines, f"wrote {run.folder}/: {', '.join(run.written())}"]


@dataclass
class _Run:
    """A run's folder and its W&B run."""

    folder: Path
    config: DictConfig
    resume: bool

    @property
    def best(self) -> Path:
        return self.folder / "best.pt"

    @property
    def last(self) -> Path:
        return self.folder / "last.pt"

    def cut(self, step: int) -> None:
        """Drops the rows after `step`, which the resumed run makes again."""
        path = self.folder / "metrics.jsonl"
        rows = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
        _write(path, "".join(f"{line}\n" for line in rows))

    def __enter__(self) -> _Run:
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(self.folder / "config.yaml", OmegaConf.to_yaml(self.config, resolve=True))
        self._rows = (self.folder / "metrics.jsonl").open("a" if self.resume else "w", buffering=1)
        return self

    def start(self, say: Any) -> None:
        config: Any = OmegaConf.to_container(self.config, resolve=True)
        self._tracker = Tracker(
            self.folder, config, mode=self.config.wandb, name=self.config.name, warn=say
        )

    def log(self, row: dict[str, Any]) -> None:
        self._rows.write(json.dumps(row) + "\n")
        self._tracker.log({k: v for k, v in row.items() if k != "step"}, step=row["step"])

    def finish(self, summary: dict[str, Any]) -> None:
        _write(self.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        shown = [k for k in summary if isinstance(summary[k], int | float | str)]
        self._tracker.table("comparison", shown, [[summary[k] for k in shown]])
        self._tracker.finish(summary)

    def __exit__(self, *error: object) -> None:
        self._rows.close()
        if hasattr(self, "_tracker"):
            self._tracker.finish({})

    def written(self) -> list[str]:
        return sorted(p.name for p in self.folder.iterdir() if not p.name.startswith("."))


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    part.replace(path)
