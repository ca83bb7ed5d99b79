"""The command line: `metalearn VERB key=value ...`."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

from metalearn.errors import TrainingInterrupted, TrainingStopped, UsageError, nearest
from metalearn.system.extras import missing_package
from metalearn.system.output import lasting_output

USAGE = """\
metalearn VERB [key=value ...]      differentiating through optimisation

  demo            MAML and iMAML side by side, in a minute or two
  train           one training run into runs/
  evaluate        accuracy of a checkpoint on held-out classes
  adapt           a checkpoint adapted to your own classes, as one file
  predict         the classes of your images by an adapted file
  play            a local page to draw characters on and to watch inner loops adapt
  bench NAME      a study into results/
  solve NAME      also cleaning, deq, distill, hpo, influence, minibatches, nas, rates, training
  report          one HTML page of the results and of chosen runs
  data prepare    build a dataset's cache

metalearn VERB --help explains each; metalearn --version prints the version.
"""

PAGES = {
    "demo": "MAML and iMAML side by side, in a minute or two",
    "train": "one training run; -m sweeps over a,b values",
    "evaluate": "accuracy of a checkpoint on held-out classes",
    "adapt": "a checkpoint adapted to your own classes, as one file",
    "predict": "the classes of your images by an adapted file",
    "play": "a local page to draw characters on and to watch inner loops adapt",
    "report": "one self-contained HTML page of what is in results/",
}
"""The verbs whose help is a page of their options."""
VERBS = (*PAGES, "bench", "solve", "data")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    0: done. 1: training stopped. 2: a user's mistake. 128 and a signal's number: training was asked
    to leave and wrote a checkpoint, or the reader of the output has gone (141).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for name, level in (("KINETO_LOG_LEVEL", "6"), ("TORCH_CPP_LOG_LEVEL", "ERROR")):
        os.environ.setdefault(name, level)  # before torch: its profiler talks on stderr
    with lasting_output() as out:
        status = _status(words)
        out.flush()
    return 141 if status == 0 and isinstance(out.error, BrokenPipeError) else status


def _status(words: list[str]) -> int:
    """Run a command and return its exit status, whatever becomes of its output."""
    try:
        _check_working_folder()
        return _run(words)
    except UsageError as error:
        _complain(" ".join(str(error).split()))
        return 2
    except ModuleNotFoundError as error:
        if (missing := missing_package(error, f"metalearn {words[0]}")) is None:
            raise
        _complain(missing)
        return 2
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # any look at a path may find it
            raise
        _complain(f"{error.filename} is too long for a path")
        return 2
    except (TrainingStopped, TrainingInterrupted) as error:  # within a study, or an evaluation
        _complain(error)
        return error.status
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130


def _run(words: list[str]) -> int:
    """Run the verb of the words; its modules are slow to import, and help needs none of them."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if words[0] == "--version":
        from metalearn import __version__

        print(__version__)
        return 0
    verb, *rest = words
    if verb not in VERBS:
        raise UsageError(f"{verb!r} is no command{nearest(verb, VERBS)}")
    if verb not in ("train", "evaluate"):
        _refuse_ranks(verb)
    if verb in PAGES and ("-h" in rest or "--help" in rest):
        from metalearn.config import help

        print(help.verb_page(verb, PAGES[verb], rest))
        return 0
    if verb == "train":
        from metalearn.commands import train

        return train.run(rest, _complain)
    if verb == "demo":
        from metalearn.commands import demo

        return demo.run(rest)
    if verb == "evaluate":
        from metalearn.commands import evaluate

        return evaluate.run(rest)
    if verb == "adapt":
        from metalearn.commands import adapt

        return adapt.run(rest)
    if verb == "predict":
        from metalearn.commands import predict

        return predict.run(rest)
    if verb == "play":
        from metalearn.commands import play

        return play.run(rest)
    if verb == "report":
        from metalearn.commands import report

        return report.run(rest)
    if verb == "data":
        from metalearn.commands import data

        return data.run(rest)
    from metalearn.commands import study

    return study.run(verb, rest)


def _check_working_folder() -> None:
    """Raise UsageError if the working folder has been deleted, or may not be looked at."""
    try:
        os.getcwd()
    except OSError as error:
        raise UsageError(
            f"the working folder cannot be used ({error.strerror}): expected one that exists. Go "
            "to another one by cd"
        ) from error


def _complain(error: Exception | str) -> None:
    rank = os.environ.get("RANK", "0")
    print(f"metalearn{'' if rank == '0' else f' (rank {rank})'}: {error}", file=sys.stderr)


def _refuse_ranks(verb: str) -> None:
    """Raise UsageError among several processes of torchrun, each of which would do all the work."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    from metalearn.parallel.ranks import world_size

    if world_size() > 1:
        raise UsageError(f"{verb} is no work for several processes; start it without torchrun")


if __name__ == "__main__":
    sys.exit(main())
