"""`metalearn evaluate`: the accuracy of checkpoints on held-out classes; alone or by torchrun."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from metalearn import config
from metalearn.errors import UsageError, counted
from metalearn.training.estimate import Estimate

if TYPE_CHECKING:  # slow imports
    from metalearn.parallel.ranks import Ranks
    from metalearn.training.protocol import EvaluationProtocol


def run(words: list[str]) -> int:
    """Evaluate the checkpoints that the words name; return the exit status.

    Under torchrun the processes share the tasks, and process 0 alone prints and writes.

    Raises:
        UsageError: a word is no option, or a checkpoint cannot be used.
        OutOfMemory: memory does not hold one task.
    """
    from metalearn.parallel.batches import OutOfMemory
    from metalearn.parallel.ranks import process_group

    with process_group() as ranks:
        try:
            _evaluate(words, ranks)
        except (UsageError, OutOfMemory) as error:  # every rank has the same one
            if ranks.rank == 0:
                raise
            return 1 if isinstance(error, OutOfMemory) else 2
    return 0


def _evaluate(words: list[str], ranks: Ranks) -> None:
    """Evaluate together with the other ranks; each error is every rank's."""
    from metalearn.system.machine import find_device
    from metalearn.system.provenance import provenance
    from metalearn.training.agreement import check_same, on_every_rank
    from metalearn.training.evaluation_file import write
    from metalearn.training.protocol import label

    cfg, given, protocol = on_every_rank(ranks, lambda: _asked(words))
    if ranks.size > 1:
        options: Any = OmegaConf.to_container(cfg)
        check_same(ranks, options | {"threads": None, "device": cfg.device.partition(":")[0]})
    paths, out = ranks.on_rank_zero(lambda: _find_files(cfg, given))

    def show(text: str) -> None:
        if ranks.rank == 0:
            print(text)

    def show_row(row: Mapping[str, Any]) -> None:
        show(f"  {describe(row)}")

    rows: list[dict[str, Any]] = []
    for group in [paths] if cfg.ensemble else [[path] for path in paths]:
        show(f"{', '.join(map(str, group))}: {protocol.described()}")
        if cfg.ensemble:
            found = protocol.ensemble_rows(group, cfg.device, cfg.threads, show_row, ranks)
        else:
            found = protocol.rows(group[0], cfg.device, cfg.threads, show_row, ranks)
            found = [{"checkpoint": label(group[0]), **row} for row in found]
        rows += found
        if note := protocol.note(found[0]):
            show(f"  {note}")
    spread = [] if cfg.ensemble else over_seeds(rows)
    if spread:
        show(f"{len(paths)} checkpoints: mean, its 95 % interval and the standard deviation")
    for row in spread:
        show(f"  {describe(row)}, {100 * row['deviation']:.2f}")
    device = find_device(cfg.device)
    earlier = out.is_file()
    ranks.on_rank_zero(
        lambda: write(out, {**provenance(device), "rows": rows, "over_checkpoints": spread})
    )
    if earlier:
        show(f"replaced the earlier evaluation in {out}; to keep both, give out=OTHER.json")
    else:
        show(f"wrote {out}")


def _asked(words: list[str]) -> tuple[DictConfig, list[str], EvaluationProtocol]:
    """Return the options, the words for the checkpoints, and the protocol.

    Raises:
        UsageError: a word is no option, or a value is out of its range.
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
    from metalearn.training.opened import MODES
    from metalearn.training.protocol import EvaluationProtocol

    modes = [m for m, own in MODES.items() if cfg.transductive in (None, own)]
    protocol = EvaluationProtocol(
        *(cfg.benchmark, cfg.source, cfg.split, cfg.tasks, cfg.seed, modes, cfg.queries),
        inner_steps=list(cfg.inner_steps),
        ways=cfg.ways,
        shots=cfg.shots,
    )
    return cfg, given, protocol


def _find_files(cfg: DictConfig, given: Sequence[str]) -> tuple[list[Path], Path]:
    """Return the checkpoints and the file for the rows.

    Raises:
        UsageError: there is no such checkpoint, or the file cannot be written.
    """
    from metalearn.training import checkpoint
    from metalearn.training.evaluation_file import check_out, default_out

    paths = [checkpoint.find(word) for word in given]
    out = Path(cfg.out) if cfg.out else default_out(given[0], paths[0])
    if out.suffix != ".json" and not out.is_dir():
        raise UsageError(
            f"out={out}: expected a .json file, which holds the rows. Give such as evaluation.json."
        )
    if cfg.out or os.path.isfile(paths[0]):  # else that there is no checkpoint is said later
        check_out(out, make_folder=not cfg.out)
    return paths, out


def describe(row: Mapping[str, Any]) -> str:
    """Return a row as a line for the screen."""
    number = row["inner_steps"]
    if number is not None:
        about = counted(number, "inner step")
    else:
        about = "each its own inner steps" if "ensemble" in row else "its own inner loop"
    shown = [f"{row['mode']}, {about}:"]
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
