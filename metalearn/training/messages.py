"""The row of each meta-step, and the lines on the screen."""

from __future__ import annotations

from typing import Any

import torch

from metalearn.linear_solve import Status
from metalearn.metagrad import MetaGradientResult
from metalearn.system.memory import format_bytes
from metalearn.training.estimate import Estimate


def figures(result: MetaGradientResult) -> dict[str, Any]:
    """Return the figures of a meta-step: means over the tasks, extremes of the Ritz values."""
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
            row["ritz_high_mean"] = high[known].mean().item()
    stability = certificate.inner_stability
    if stability is not None:
        known = certificate.ritz_known
        row["inner_stability"] = stability[known].mean().item()
        row["inner_unstable_share"] = (stability[known] > 1).double().mean().item()
    return row


ENDED_BADLY = (
    Status.NEGATIVE_CURVATURE,
    Status.BREAKDOWN,
    Status.DIVERGED,
    Status.SINGULAR,
    Status.NON_FINITE,
)


def failed_solves(result: MetaGradientResult) -> dict[Status, int]:
    """Count the tasks whose linear solve failed, by its status."""
    certificate = result.certificate
    if certificate is None or certificate.status is None:
        return {}
    statuses = certificate.status.flatten().tolist()
    return {s: n for s in ENDED_BADLY if (n := statuses.count(s))}


def solve_warning(result: MetaGradientResult) -> str | None:
    """Return the remedy if the linear solve of most tasks failed, else None."""
    counts, tasks = failed_solves(result), len(result.outer_loss)
    if 2 * sum(counts.values()) <= tasks:
        return None
    how = ", ".join(f"{s.name.lower()} {n}" for s, n in counts.items())
    return (
        f"warning: the linear solve of {sum(counts.values())} of {tasks} tasks broke off "
        f"({how}); metagrad.curvature=gauss_newton, a larger problem.prox or a larger "
        "metagrad.damping makes its system definite"
    )


def stability_warning(result: MetaGradientResult) -> str | None:
    """Return the remedy if the inner loop of most tasks is unstable, else None."""
    certificate = result.certificate
    stability = None if certificate is None else certificate.inner_stability
    if stability is None or not 2 * int((stability > 1).sum()) > len(stability):
        return None
    assert certificate is not None and certificate.inner_rate is not None
    return (
        f"warning: the inner loop of {int((stability > 1).sum())} of {len(stability)} tasks is "
        f"unstable: its rate {certificate.inner_rate:g} is above 2 / curvature. Use "
        "metagrad=imaml_stable, or a smaller metagrad.inner.lr."
    )


def named(prefix: str, scores: dict[str, Estimate]) -> dict[str, float]:
    return {f"{prefix}_{name}": e.mean for name, e in scores.items()} | {
        f"{prefix}_{name}_interval": e.interval for name, e in scores.items()
    }


def progress_line(row: dict[str, Any], tasks: int, peak: int) -> str:
    loss = f"loss {row['query_loss']:.4f}  " if "query_loss" in row else ""
    accuracy = f"accuracy {row['query_accuracy']:.3f}  " if "query_accuracy" in row else ""
    return f"{loss}{accuracy}{format_bytes(peak)}  {tasks / row['step_s']:.1f} tasks/s"


def validation_line(step: int, scores: dict[str, Estimate]) -> str:
    if "accuracy" in scores:
        return f"meta-step {step}: validation accuracy {scores['accuracy'].percent()}"
    figures = "  ".join(f"{name} {scores[name].mean:.4f}" for name in scores)
    return f"meta-step {step}: validation {figures}"


def closing(summary: dict[str, Any], folder: str, written: list[str]) -> list[str]:
    lines = []
    if "test_accuracy" in summary:
        accuracy = Estimate(summary["test_accuracy"], summary["test_accuracy_interval"])
        lines.append(
            f"test accuracy {accuracy.percent()} over {summary['test_tasks']} tasks "
            f"({summary['mode']}), by the checkpoint of meta-step {summary['chosen_step']}"
        )
    elif "test_loss" in summary:
        names = [key for key in summary if f"{key}_interval" in summary]
        lines += [
            f"{key.replace('_', ' ', 1)} {summary[key]:.4f} ± {summary[f'{key}_interval']:.4f}"
            for key in names
        ]
    lines.append(
        f"peak memory {format_bytes(summary['peak_memory_bytes'])}, "
        f"{summary['step_s']:.3f} s a meta-step"
    )
    return [*lines, f"wrote {folder}/: {', '.join(written)}"]
