"""The command line: `metalearn VERB key=value ...`."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metalearn.errors import TrainingInterrupted, TrainingStopped, UsageError

if TYPE_CHECKING:
    from omegaconf import DictConfig  # slow: `metalearn --help` needs none of it

    from metalearn.ranks import Ranks

USAGE = """\
metalearn VERB [key=value ...]      differentiating through optimisation

  train           one training run into runs/
  evaluate        accuracy of a checkpoint on held-out classes
  bench NAME      a study into results/
  solve NAME      the other uses of implicit gradients: deq, distill, hpo, nas
  report          one HTML page of the results and of chosen runs
  data prepare    build a dataset's cache

metalearn VERB --help explains each; metalearn --version prints the version.
"""

# What may be given beside resume=: how long the run goes on, where, who is told, what guards it.
WITH_RESUME = (
    *("resume", "steps", "device", "threads", "wandb", "checkpoint_every", "keep_checkpoints"),
    *("on_nonfinite", "on_failed_solve", "on_explosion", "explosion_factor"),
)

DATASETS = ("glyphs", "omniglot", "mini_imagenet", "tiered_imagenet", "cifar_fs", "fc100")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status: 0, 1 (training stopped), 2 (a user's mistake), or
    128 and a signal's number (training was asked to leave, and wrote a checkpoint)."""
    words = list(sys.argv[1:] if argv is None else argv)
    for name, level in (("KINETO_LOG_LEVEL", "6"), ("TORCH_CPP_LOG_LEVEL", "ERROR")):
        os.environ.setdefault(name, level)  # before torch: its profiler talks on stderr
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if words[0] == "--version":
        from metalearn import __version__

        print(__version__)
        return 0
    verbs: dict[str, Callable[[list[str]], int]] = {
        "train": _train,
        "evaluate": _evaluate,
        "bench": lambda words: _study("bench", words),
        "solve": lambda words: _study("solve", words),
        "report": _report,
        "data": _data,
    }
    try:
        if words[0] not in verbs:
            from metalearn.config import nearest

            raise UsageError(f"{words[0]!r} is no command{nearest(words[0], verbs)}")
        return verbs[words[0]](words[1:])
    except UsageError as error:
        _complain(" ".join(str(error).split()))
        return 2
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # what any look at a path may find
            raise
        _complain(f"{error.filename} is too long for a path")
        return 2
    except (TrainingStopped, TrainingInterrupted) as error:  # within a study, or an evaluation
        _complain(error)
        return error.status
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130


def _complain(error: Exception | str) -> None:
    rank = os.environ.get("RANK", "0")
    print(f"metalearn{'' if rank == '0' else f' (rank {rank})'}: {error}", file=sys.stderr)


def _train(words: list[str]) -> int:
    from metalearn import config, help

    if "-h" in words or "--help" in words:
        print(help.verb_page("train", "one training run; -m sweeps over a,b values"))
        return 0
    asks_for_sweep = [w for w in words if w in ("-m", "--multirun")]
    overrides = [w for w in words if w not in asks_for_sweep]
    resumed = "resume" in config.keys(overrides)
    if not asks_for_sweep and (own := [w for w in overrides if w.startswith("hydra/")]):
        raise UsageError(f"{own[0]} is a sweep's; add -m")
    if asks_for_sweep:
        if resumed:
            raise UsageError("resume= goes on with one run; leave -m out")
        from metalearn import sweep

        for job in sweep.jobs(overrides):
            config.compose("train", job)  # every job is sound before the first one starts
        return sweep.multirun("train", overrides, _one_run)
    from metalearn import ranks

    with ranks.joined() as here:
        if resumed:
            cfg, folder = here.lead(lambda: _resumed(overrides))
            return _train_into(cfg, folder, True, here)
        return _one_run(config.compose("train", overrides), here)


def _one_run(cfg: DictConfig, ranks: Ranks | None = None) -> int:
    from metalearn import checkpoint
    from metalearn.ranks import ALONE, may_restart, restarted
    from metalearn.run_folder import check_unused

    here = ranks or ALONE
    if cfg.run_dir == "":
        raise UsageError("run_dir= is empty; give a folder, or leave it out")
    if cfg.run_dir is None:
        if may_restart():
            raise UsageError("run_dir= is missing, by which a restart would find the run; give it")
        folder = here.lead(lambda: _fresh(Path("runs"), cfg.name))
        return _train_into(cfg, folder, False, here)
    folder = Path(cfg.run_dir)
    if restarted() and here.lead(lambda: bool(checkpoint.generations(folder))):
        return _train_into(cfg, folder, True, here)
    here.lead(lambda: check_unused(folder))
    return _train_into(cfg, folder, False, here)


def _resumed(overrides: list[str]) -> tuple[DictConfig, Path]:
    """The config of the run that resume= names, with what the user gave beside it; its folder."""
    from metalearn import config

    given = config.keys(overrides)
    if odd := sorted(given.difference(WITH_RESUME)):
        raise UsageError(
            f"{odd[0]}= cannot be given beside resume=, which keeps the run's own config; only "
            f"{', '.join(WITH_RESUME[1:])} can"
        )
    asked = config.compose("train", overrides)
    folder = Path(asked.resume or "")
    if asked.resume is None or not os.path.isfile(folder / "config.yaml"):
        raise UsageError(f"resume={asked.resume}: there is no run; give the folder of one in runs/")
    cfg = config.saved(folder / "config.yaml", "train")
    if cfg.schedule == "cosine" and "steps" in given and asked.steps != cfg.steps:
        raise UsageError(
            f"steps={asked.steps}, but schedule=cosine brings the rate to 0 at this run's "
            f"{cfg.steps} meta-steps; leave steps= out, or train anew with steps={asked.steps}"
        )
    for key in given.difference(("resume",)):
        cfg[key] = asked[key]
    return cfg, folder


def _train_into(cfg: DictConfig, folder: Path, resume: bool, ranks: Ranks) -> int:
    from metalearn.trainer import train

    cfg.resume = None
    try:
        train(cfg, folder, resume, ranks)
    except (TrainingStopped, TrainingInterrupted) as error:
        _complain(error)
        return error.status
    return 0


def _fresh(parent: Path, name: str) -> Path:
    """A folder that no other process takes at the same moment, be it one of a sweep's many."""
    import datetime
    import secrets

    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = parent / f"{name}-{stamp}"
    while folder.exists():
        folder = parent / f"{name}-{stamp}-{secrets.token_hex(3)}"
    return folder


def _evaluate(words: list[str]) -> int:
    from metalearn import config, help

    if "-h" in words or "--help" in words:
        print(help.verb_page("evaluate", "accuracy of a checkpoint on held-out classes"))
        return 0
    cfg = config.plain("evaluate", words)

    from omegaconf import OmegaConf

    asked: Any = None if OmegaConf.is_missing(cfg, "checkpoint") else cfg.checkpoint
    given = list(asked) if OmegaConf.is_list(asked) else [asked]
    if not given or not all(isinstance(word, str) and word for word in given):
        raise UsageError(
            "evaluate needs checkpoint=PATH, the best.pt or last.pt of a run, or [PATH,PATH]"
        )
    paths = [Path(word) for word in given]

    from metalearn import held_out
    from metalearn.machine import find_device
    from metalearn.provenance import provenance

    modes = [m for m, own in held_out.MODES.items() if cfg.transductive in (None, own)]
    protocol = held_out.Protocol(
        *(cfg.benchmark, cfg.source, cfg.split, cfg.tasks, cfg.seed, modes, cfg.queries),
        inner_steps=list(cfg.inner_steps),
    )
    out = Path(cfg.out) if cfg.out else paths[0].parent / "evaluation.json"
    if cfg.out or os.path.isfile(paths[0]):  # else that there is no checkpoint is said below
        held_out.check_out(out)
    rows = []
    for path in paths:
        print(f"{path}: {protocol.described()}")
        found = protocol.rows(path, cfg.device, cfg.threads, lambda line: print(f"  {line}"))
        rows += [{"checkpoint": f"{path.parent.name}/{path.name}", **row} for row in found]
        if note := protocol.note(found[0]):
            print(f"  {note}")
    spread = held_out.over_seeds(rows)
    if spread:
        print(f"{len(paths)} checkpoints: mean, its 95 % interval and the standard deviation")
    for row in spread:
        print(f"  {held_out.described(row)}, {100 * row['deviation']:.2f}")
    held_out.write(
        out, {**provenance(find_device(cfg.device)), "rows": rows, "over_checkpoints": spread}
    )
    print(f"wrote {out}")
    return 0


def _study(verb: str, words: list[str]) -> int:
    from metalearn import config, help
    from metalearn.study import options

    known = options.names(verb)
    asks = [w for w in words if w in ("-h", "--help")]
    if not words or words == asks:
        print(f"metalearn {verb} NAME [preset=quick] [key=value ...]\n")
        print("".join(f"  {name:12}{help.purpose(f'{verb}/{name}')}\n" for name in known), end="")
        print(f"\nmetalearn {verb} NAME --help explains each.")
        return 0
    name = words[0]
    if name not in known:
        raise UsageError(f"{verb} {name!r} is unknown{config.nearest(name, known)}")
    if asks:
        print(help.study_page(verb, name))
        return 0
    study, publication, common = options.study(verb, name, words[1:])

    from metalearn.machine import find_device, use_threads
    from metalearn.study.run import run_study

    use_threads(common.threads)
    try:
        run_study(study, publication, find_device(common.device))
    except ArithmeticError as error:
        print(f"metalearn: {verb} {name} stopped: {error}", file=sys.stderr)
        return 1
    return 0


def _report(words: list[str]) -> int:
    from metalearn import config, help

    if "-h" in words or "--help" in words:
        print(help.verb_page("report", "one self-contained HTML page of what is in results/"))
        return 0
    cfg = config.plain("report", words)
    if not cfg.results or not cfg.out:
        raise UsageError("results= or out= is empty; give a path, or leave it out")

    from metalearn.report.page import make_page

    shown = make_page(Path(cfg.results), [Path(run) for run in cfg.runs], Path(cfg.out))
    counted = ", ".join(f"{n} {what if n == 1 else plural}" for (what, plural), n in shown.items())
    print(f"wrote {cfg.out} ({os.path.getsize(cfg.out) / 1e3:.0f} kB): {counted}")
    return 0


def _data(words: list[str]) -> int:
    page = (
        "metalearn data prepare NAME [source=PATH]\n\n"
        f"  NAME    {', '.join(DATASETS)}\n"
        "  source  the folder where its files lie, or an archive of it (.zip, .tar, .tar.gz);\n"
        "          glyphs needs none, omniglot is downloaded without one\n"
    )
    asks = [w for w in words if w in ("-h", "--help")]
    if not words or words == asks or (words[0] == "prepare" and asks):
        print(page, end="")
        return 0
    from metalearn.config import nearest

    if words[0] != "prepare" or len(words) < 2:
        raise UsageError("expected `metalearn data prepare NAME [source=PATH]`")
    name, options = words[1], words[2:]
    if name not in DATASETS:
        raise UsageError(f"{name!r} is no dataset{nearest(name, DATASETS)}")
    source: str | None = None
    for option in options:
        key, _, value = option.partition("=")
        if name == "glyphs":
            raise UsageError(f"{option!r} is no option of glyphs, which takes none")
        if key != "source" or source is not None:
            raise UsageError(f"{option!r} is no option of {name}; expected source=PATH, once")
        source = value

    from metalearn.tasks.prepare import prepare

    splits, where = prepare(name, source)
    for split, data in splits.items():
        shape = "x".join(map(str, data.images.shape[1:]))
        print(f"{name} {split}: {len(data.classes)} classes, {len(data.images)} images of {shape}")
    print(where)
    return 0


if __name__ == "__main__":
    sys.exit(main())
