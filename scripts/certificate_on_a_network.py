"""How often, and how far, the certificate's estimate is off where the theory's assumptions fail.

On a network nothing is convex and no constant is known: the least Ritz value stands for the strong
convexity, the Lipschitz constants are measured at the point. For glyphs 5-way 1-shot tasks and a
meta-trained Conv4 (SiLU, 16 channels, lambda = 2) this compares the estimate with the true error of
each task's meta-gradient, the exact one being solved in float64. Rows to results/certificate/.

    .venv/bin/python scripts/certificate_on_a_network.py [tasks] [meta_steps]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "6")

import pandas as pd
import torch

from metalearn.config import compose
from metalearn.config.build import build
from metalearn.inner import GradientDescent
from metalearn.linear_solve import CG, Status
from metalearn.metagrad import Implicit
from metalearn.metagrad.exact import NotConverged, exact_implicit
from metalearn.metagrad.smoothness import local_smoothness
from metalearn.system.duration import format_duration
from metalearn.system.provenance import provenance
from metalearn.training.experiment import Experiment
from metalearn.tree import task_norm

PROX = 2.0
CONFIG = ["metagrad=imaml_gn", "model.channels=16", "model.activation=silu", f"problem.prox={PROX}"]


def main(tasks: int, meta_steps: int) -> None:
    print(f"{tasks} tasks, minutes each on one core: the first says what is left. For less: 2 10")
    experiment = Experiment.of(compose("train", CONFIG))
    sampler = experiment.tasks.sampler("train", 0, experiment.device)
    problem, meta = experiment.problem, experiment.meta
    optimiser = build(compose("train", CONFIG).optimiser)(meta.values())
    for _ in range(meta_steps):
        grads = experiment.metagrad(problem, meta, sampler.sample(8)).grads
        for name, p in meta.items():
            p.grad = grads[name]
        optimiser.step()

    began = time.perf_counter()
    wide = {name: p.detach().double() for name, p in meta.items()}
    batch = sampler.sample(tasks).to(torch.float64)
    rows = []
    for t in range(tasks):
        task = batch[t : t + 1]
        objective = partial(problem.inner_objective, meta=wide, task=task)
        start = GradientDescent(300, 0.1)(objective, problem.init(wide, task))
        try:
            exact = exact_implicit(problem, wide, task, start.params)
        except NotConverged as failure:
            print(f"task {t} has no exact gradient: {failure}")
            continue
        for steps in (16, 64, 256):
            for iterations in (2, 5, 20):
                way = Implicit(GradientDescent(steps, 0.1), CG(iterations, rtol=1e-10))
                result = way(problem, wide, task)
                certificate = result.certificate
                assert certificate is not None and certificate.eigenvalue_bounds is not None
                error = task_norm([(result.grads[k] - exact[k])[None] for k in exact])
                size = task_norm([exact[k][None] for k in exact])
                low = certificate.eigenvalue_bounds[0]
                estimate = float("inf")
                if low > 0:
                    constants = local_smoothness(
                        problem, result.inner.params, wide, task, low, PROX
                    )
                    estimate = float(certificate.bound(constants))
                assert certificate.status is not None
                rows.append(
                    {
                        "task": t,
                        "inner_steps": steps,
                        "cg_iterations": iterations,
                        "inner_grad_norm": float(certificate.inner_grad_norm),
                        "status": Status(int(certificate.status)).name.lower(),
                        "relative_error": float(error / size),
                        "relative_estimate": estimate / float(size),
                    }
                )
        left = (time.perf_counter() - began) / (t + 1) * (tasks - t - 1)
        print(f"task {t + 1}/{tasks}: {format_duration(left)} left", flush=True)
    table = pd.DataFrame(rows)
    table["covered"] = table.relative_estimate >= table.relative_error
    table["ratio"] = table.relative_estimate / table.relative_error
    summary = (
        table.groupby(["inner_steps", "cg_iterations"])
        .agg(
            tasks=("task", "size"),
            error=("relative_error", "median"),
            estimate=("relative_estimate", "median"),
            covered=("covered", "mean"),
            ratio_median=("ratio", "median"),
            ratio_least=("ratio", "min"),
        )
        .reset_index()
    )
    print(summary.to_string(index=False))
    folder = Path("results/certificate")
    folder.mkdir(parents=True, exist_ok=True)
    rows_text = json.loads(table.to_json(orient="records"))
    text = {
        "summary": json.loads(summary.to_json(orient="records")),
        "rows": rows_text,
        "meta_steps": meta_steps,
        **provenance(torch.device("cpu")),
    }
    part = folder / ".network.json.part"
    part.write_text(json.dumps(text, indent=1) + "\n")
    part.replace(folder / "network.json")


def positive(word: str) -> int:
    """Return a whole number of at least 1; argparse reports the ValueError of another word."""
    number = int(word)
    if number < 1:
        raise ValueError
    return number


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("tasks", 12), ("meta_steps", 100)):
        parser.add_argument(
            name, nargs="?", type=positive, default=default, help=f"at least 1; default: {default}"
        )
    chosen = parser.parse_args()
    main(chosen.tasks, chosen.meta_steps)
