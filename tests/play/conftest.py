from __future__ import annotations

import base64
import threading
from collections.abc import Iterator

import pytest

from metalearn.play.answers import Answers
from metalearn.play.initialisation import Initialisation
from metalearn.play.request import SIDE
from metalearn.play.server import make_app
from metalearn.play.serving import listen, make_server
from metalearn.tasks.glyphs import sample_letters
from metalearn.training import checkpoint

SHIPPED = ("omniglot_maml_table", "omniglot_imaml_table")


@pytest.fixture(scope="session")
def initialisations() -> list[Initialisation]:
    """The shipped initialisations, unrolled and implicit."""
    return [Initialisation.open(checkpoint.find(name), threads=1) for name in SHIPPED]


@pytest.fixture(scope="session")
def answers(initialisations: list[Initialisation]) -> Answers:
    return Answers(initialisations, 3)


@pytest.fixture(scope="session")
def port(answers: Answers) -> Iterator[int]:
    """The port of a running server."""
    with listen(0) as found:
        server = make_server(make_app(answers))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [found]})
        number = found.getsockname()[1]
        thread.start()
        yield number
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def drawn() -> list[list[bytes]]:
    """Four drawings of each of three letters, as bytes of ink."""
    letters = sample_letters(3, 4, 1, SIDE).images.unflatten(0, (3, 4))
    return [[drawing.numpy().tobytes() for drawing in drawings] for drawings in letters]


@pytest.fixture(scope="session")
def body(drawn: list[list[bytes]]) -> dict:
    """A request of two, one and three drawings of the classes, whose query is of the third."""
    encoded = [[base64.b64encode(ink).decode() for ink in inks] for inks in drawn]
    support = [encoded[0][:2], encoded[1][:1], encoded[2][:3]]
    return {"classes": support, "query": encoded[2][3], "steps": 3}
