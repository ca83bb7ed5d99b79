"""`metalearn evaluate`: the accuracy of checkpoints on held-out classes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from metalearn import config
from metalearn.errors import UsageError
from metalearn.training.estimate import Estimate


def run(words: list[str]) -> int:
    """Evaluate the checkpoints that the words name; return the exit status.

    Raises:
        UsageError: a word is no option, or a checkpoint cannot be used.
    """
    # `tasks` is a number here, and its two parts have options of their own.
    words = [re.sub(r"^tasks\.(ways|shots)=", r"\1=", word) for word in words]
    cfg = config.plain("evaluate", words)

    asked: Any = None if OmegaConf.is_missing(cfg, "checkpoint") else cfg.checkpoint
    given = list(asked) if OmegaConf.is_list(asked) else [asked]
    if not given or not all(isinstance(word, str) and word for word in given):
        raise UsageError(
            "evaluate needs checkpoint=PATH, the best.pt or last.pt of a run, or [PATH,PATH], or "
            "the name of an initialisation in results/"
        )

    # Slow, and a mistake in the words is said at once.
    from metalearn.system.machine import find_device
    from metalearn.system.provenance import provenance
    from metalearn.training import checkpoint
    from metalearn.training.evaluation_file import check_out, default_out, write
    from metalearn.training.opened import MODES
    from metalearn.training.protocol import EvaluationProtocol, label

    modes = [m for m, own in MODES.items() if cfg.transductive in (None, own)]
    protocol = EvaluationProtocol(
        *(cfg.benchmark, cfg.source, cfg.split, cfg.tasks, cfg.seed, modes, cfg.queries),
        inner_steps=list(cfg.inner_steps),
        ways=cfg.ways,
        shots=cfg.shots,
    )
    paths = [checkpoint.find(word) for word in given]
    out = Path(cfg.out) if cfg.out else default_out(given[0], paths[0])
    if out.suffix != ".json" and not out.is_dir():
        raise UsageError(
            f"out={out}: expected a .json file, which holds the rows. Give such as evaluation.json."
        )
    if cfg.out or os.path.isfile(paths[0]):  # else that there is no checkpoint is said below
        check_out(out, make_folder=not cfg.out)
    rows: list[dict[str, Any]] = []

    def show(row: Mapping[str, Any]) -> None:
        print(f"  {describe(row)}")

    for group in [paths] if cfg.ensemble else [[path] for path in paths]:
        print(f"{', '.join(map(str, group))}: {protocol.described()}")
        if cfg.ensemble:
            found = protocol.ensemble_rows(group, cfg.device, cfg.threads, show)
        else:
            found = protocol.rows(group[0], cfg.device, cfg.threads, show)
            found = [{"checkpoint": label(group[0]), **row} for row in found]
        rows += found
        if note := protocol.note(found[0]):
            print(f"  {note}")
    spread = [] if cfg.ensemble else over_seeds(rows)
    if spread:
        print(f"{len(paths)} checkpoints: mean, its 95 % interval and the standard deviation")
    for row in spread:
        print(f"  {describe(row)}, {100 * row['deviation']:.2f}")
    write(out, {**provenance(find_device(cfg.device)), "rows": rows, "over_checkpoints": spread})
    print(f"wrote {out}")
    return 0


def describe(row: Mapping[str, Any]) -> str:
    """Return a row as a line for the screen."""
    steps = "step" if row["inner_steps"] == 1 else "steps"
    number = "each its own" if row["inner_steps"] is None else row["inner_steps"]
    shown = [f"{row['mode']}, {number} inner {steps}:"]
    for name in [key for key in row if f"{key}_interval" in row]:
        value, interval = row[name], row[f"{name}_interval"]
        if value is None:
            shown.append(f"{name} not finite")
        elif name == "accuracy":
            shown.append(f"{name} {Estimate(value, interval).percent()}")
        else:
            shown.append(f"{name} {value:.4f} ± {interval:.4f}")
    return "  ".join(shown)


def over_seeds(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each mode and number of inner steps that several checkpoints have.

    It holds the mean of their accuracies, its 95 % interval and their standard deviation.
    """
    groups: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        if "accuracy" in row:
            groups.setdefault((row["mode"], row["inner_steps"]), []).append(row["accuracy"])
    found = []
    for (mode, steps), values in groups.items():
        if len(values) > 1:
            estimate = Estimate.of(values)
            found.append(
                {
                    **{"mode": mode, "inner_steps": steps, "checkpoints": len(values)},
                    **{"accuracy": estimate.mean, "accuracy_interval": estimate.interval},
                    "deviation": float(np.std(values, ddof=1)),
                }
            )
    return found
