"""The command line: `metalearn VERB key=value ...`."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from metalearn.errors import TrainingInterrupted, TrainingStopped, UsageError, nearest

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
            from metalearn.errors import nearest

            raise UsageError(f"{words[0]!r} is no command{nearest(words[0], verbs)}")
        if words[0] != "train":
            _refuse_ranks(words[0])
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


def _refuse_ranks(what: str) -> None:
    """Raises UsageError among several processes of torchrun, each of which would do it all."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
        raise UsageError(f"{what} is no work for several processes; start it without torchrun")


def _train(words: list[str]) -> int:
    from metalearn.config import help

    if "-h" in words or "--help" in words:
        print(help.verb_page("train", "one training run; -m sweeps over a,b values"))
        return 0
    from metalearn.commands.train import run

    return run(words, _complain)


def _evaluate(words: list[str]) -> int:
    from metalearn import config
    from metalearn.config import help

    if "-h" in words or "--help" in words:
        print(help.verb_page("evaluate", "accuracy of a checkpoint on held-out classes"))
        return 0
    # `tasks` is a number here, and its two parts have options of their own.
    words = [re.sub(r"^tasks\.(ways|shots)=", r"\1=", word) for word in words]
    cfg = config.plain("evaluate", words)

    from omegaconf import OmegaConf

    asked: Any = None if OmegaConf.is_missing(cfg, "checkpoint") else cfg.checkpoint
    given = list(asked) if OmegaConf.is_list(asked) else [asked]
    if not given or not all(isinstance(word, str) and word for word in given):
        raise UsageError(
            "evaluate needs checkpoint=PATH, the best.pt or last.pt of a run, or [PATH,PATH], or "
            "the name of an initialisation in results/"
        )

    from metalearn.system.machine import find_device
    from metalearn.system.provenance import provenance
    from metalearn.training import checkpoint
    from metalearn.training import protocol as held_out

    modes = [m for m, own in held_out.MODES.items() if cfg.transductive in (None, own)]
    protocol = held_out.Protocol(
        *(cfg.benchmark, cfg.source, cfg.split, cfg.tasks, cfg.seed, modes, cfg.queries),
        inner_steps=list(cfg.inner_steps),
        ways=cfg.ways,
        shots=cfg.shots,
    )
    paths = [checkpoint.find(word) for word in given]
    out = Path(cfg.out) if cfg.out else held_out.default_out(given[0], paths[0])
    if cfg.out or os.path.isfile(paths[0]):  # else that there is no checkpoint is said below
        held_out.check_out(out, make_folder=not cfg.out)
    rows: list[dict[str, Any]] = []

    def show(line: str) -> None:
        print(f"  {line}")

    for group in [paths] if cfg.ensemble else [[path] for path in paths]:
        print(f"{', '.join(map(str, group))}: {protocol.described()}")
        if cfg.ensemble:
            found = protocol.ensemble_rows(group, cfg.device, cfg.threads, show)
        else:
            found = protocol.rows(group[0], cfg.device, cfg.threads, show)
            found = [{"checkpoint": held_out.label(group[0]), **row} for row in found]
        rows += found
        if note := protocol.note(found[0]):
            show(note)
    spread = [] if cfg.ensemble else held_out.over_seeds(rows)
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
    from metalearn.config import help
    from metalearn.studies.frame import options

    known = options.names(verb)
    asks = [w for w in words if w in ("-h", "--help")]
    if not words or words == asks:
        print(f"metalearn {verb} NAME [preset=quick] [key=value ...]\n")
        print("".join(f"  {name:12}{help.purpose(f'{verb}/{name}')}\n" for name in known), end="")
        print(f"\nmetalearn {verb} NAME --help explains each.")
        return 0
    name = words[0]
    if name not in known:
        raise UsageError(f"{verb} {name!r} is unknown{nearest(name, known)}")
    if asks:
        print(help.study_page(verb, name))
        return 0
    study, publication, common = options.study(verb, name, words[1:])

    from metalearn.studies.frame.run import run_study
    from metalearn.system.machine import find_device, use_threads

    use_threads(common.threads)
    try:
        run_study(study, publication, find_device(common.device))
    except ArithmeticError as error:
        print(f"metalearn: {verb} {name} stopped: {error}", file=sys.stderr)
        return 1
    return 0


def _report(words: list[str]) -> int:
    from metalearn import config
    from metalearn.config import help

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
    from metalearn.errors import nearest

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

    from metalearn.commands.data import prepare

    splits, where = prepare(name, source)
    for split, data in splits.items():
        shape = "x".join(map(str, data.images.shape[1:]))
        print(f"{name} {split}: {len(data.classes)} classes, {len(data.images)} images of {shape}")
    print(where)
    return 0


if __name__ == "__main__":
    sys.exit(main())
