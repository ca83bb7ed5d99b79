"""`metalearn bench NAME` and `metalearn solve NAME`: the studies."""

from __future__ import annotations

import sys

from metalearn.config import help
from metalearn.errors import UsageError, nearest
from metalearn.studies.frame import options


def run(verb: str, words: list[str]) -> int:
    """Run the study that the words name, or print its help; return the exit status.

    Raises:
        UsageError: there is no such study, or a word is no option of it.
    """
    known = options.names(verb)
    asks = [w for w in words if w in ("-h", "--help")]
    if not words or words == asks:
        print(f"metalearn {verb} NAME [preset=quick] [key=value ...]\n")
        width = max(map(len, known)) + 2
        for name in known:
            print(f"  {name:{width}}{help.purpose(f'{verb}/{name}')}")
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
