"""`metalearn play`: a local page on which one draws characters and watches inner loops adapt."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from metalearn import config
from metalearn.errors import UsageError

SHIPPED = ("omniglot_maml_table", "omniglot_imaml_table")
"""The initialisations in results/ that the page shows by default: unrolled and implicit."""
_MOST = 3


def run(words: list[str]) -> int:
    """Serve the page until Ctrl-C; return the exit status.

    Raises:
        UsageError: a word is no option, a checkpoint cannot be used, or the port is not free.
        KeyboardInterrupt: the user ended it.
    """
    cfg = config.plain("play", words)
    asked: Any = cfg.checkpoint
    given = list(asked) if OmegaConf.is_list(asked) else [asked]
    if asked is not None and not (
        0 < len(given) <= _MOST and all(isinstance(word, str) and word for word in given)
    ):
        raise UsageError(
            f"checkpoint={asked}: expected the best.pt of a run, the name of an initialisation in "
            f"results/, or a list of up to {_MOST} of them. Give such as checkpoint=[PATH,PATH]"
        )

    # Slow, and a mistake in the words is said at once.
    from metalearn.play.answers import Answers
    from metalearn.play.initialisation import Initialisation
    from metalearn.play.request import MOST_STEPS
    from metalearn.play.server import make_app
    from metalearn.play.serving import ADDRESS, has_browser, listen, make_server

    if not 1 <= cfg.inner_steps <= MOST_STEPS:
        raise UsageError(
            f"inner_steps={cfg.inner_steps}: expected a whole number from 1 to {MOST_STEPS}"
        )
    paths = _shipped() if asked is None else [_find(word) for word in given]
    with listen(cfg.port) as port:
        opened = [Initialisation.open(p, cfg.source, cfg.device, cfg.threads) for p in paths]
        app = make_app(Answers(opened, cfg.inner_steps))
        address = f"http://{ADDRESS}:{port.getsockname()[1]}/"
        print(f"{address} shows {' and '.join(i.name for i in opened)}; Ctrl-C ends it", flush=True)
        if cfg.browser and has_browser():
            webbrowser.open(address)
        make_server(app).run(sockets=[port])
    return 0


def _shipped() -> list[Path]:
    """Return the paths of the shipped initialisations."""
    try:
        return [_find(name) for name in SHIPPED]
    except UsageError as error:
        raise UsageError(
            "play needs checkpoint=PATH of a run's best.pt, or checkpoint=[PATH,PATH] of two: the "
            "initialisations of the repository's results/ are not here"
        ) from error


def _find(word: str) -> Path:
    from metalearn.training import checkpoint

    return checkpoint.find(word)
