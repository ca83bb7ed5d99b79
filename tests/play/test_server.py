"""The server: who may ask, what it refuses, and that it answers what the trace says."""

from __future__ import annotations

import base64
import http.client
import json
import re
import socket

import pytest
import torch

from metalearn.play.request import MOST_BYTES, SIDE, Drawings, images
from metalearn.play.server import FILES, HEADERS

JSON = {"content-type": "application/json"}


def ask(port, path, body=None, headers=None, method=None) -> tuple[int, dict, bytes]:
    """The status, the headers and the content of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(
            method or ("GET" if body is None else "POST"),
            path,
            json.dumps(body) if isinstance(body, dict) else body,
            {**(JSON if body is not None else {}), **(headers or {})},
        )
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def said(answer: tuple[int, dict, bytes]) -> str:
    """The one sentence of a refusal."""
    (sentence,) = json.loads(answer[2]).values()
    assert isinstance(sentence, str) and "\n" not in sentence and "Traceback" not in sentence
    return sentence


def test_the_page_asks_for_nothing_elsewhere(port):
    for path, (_, kind) in FILES.items():
        status, headers, content = ask(port, path)
        assert status == 200 and headers["content-type"].startswith(kind)
        assert HEADERS.items() <= headers.items()
        addresses = set(re.findall(rb"\b\w+://[^\s\"'`]+|[\"'`(]//[^\s\"'`]+", content))
        assert addresses <= {b"http://www.w3.org/2000/svg"}  # a name, which nothing fetches
        assert b"style=" not in content and not re.search(rb"<script(?![^>]*src=)", content)


def test_it_answers_what_the_trace_says(port, initialisations, body):
    status, _, content = ask(port, "/api/adapt", body)
    assert status == 200
    request = Drawings.of(body)
    for own, found in zip(initialisations, json.loads(content)["initialisations"], strict=True):
        trace = own.trace(request.labelled(1, 28), 3)
        assert found["losses"] == pytest.approx(trace.losses, rel=1e-6)
        expected = trace.probabilities(images([request.query], 1, 28))[:, 0]
        torch.testing.assert_close(torch.tensor(found["predictions"]).double(), expected)
    asked = {"classes": body["classes"], "steps": 3, "initialisation": 1, "step": 2}
    status, _, content = ask(port, "/api/stability", asked)
    assert json.loads(content) == {"stability": pytest.approx(trace.stability(2), rel=1e-6)}


def test_without_a_query_there_are_losses_alone(port, body):
    for query in ({}, {"query": None}):
        asked = {"classes": body["classes"], "steps": 1, **query}
        for found in json.loads(ask(port, "/api/adapt", asked)[2])["initialisations"]:
            assert len(found["losses"]) == 2 and found["predictions"] is None


def test_examples_are_letters_that_the_seed_chooses(port):
    asked = {"classes": 10, "drawings": 2, "seed": 7}
    found = json.loads(ask(port, "/api/examples", asked)[2])
    assert found == json.loads(ask(port, "/api/examples", asked)[2])
    assert len(found["classes"]) == 10 and len(set(found["names"])) == 10
    drawings = [ink for inks in found["classes"] for ink in inks] + [found["query"]]
    assert len(set(drawings)) == 21 and 0 <= found["query_class"] < 10
    other = json.loads(ask(port, "/api/examples", {**asked, "seed": 8})[2])
    assert other["names"] != found["names"]


def ink(length: int = SIDE**2) -> str:
    return base64.b64encode(bytes(length)).decode()


TWO = {"classes": [[ink()], [ink()]], "steps": 1}
BAD = [
    ("adapt", b"{", "no JSON"),
    ("adapt", b"", "no JSON"),
    ("adapt", b"\xff", "no JSON"),
    ("adapt", b'{"steps": NaN}', "no JSON"),
    ("adapt", b'{"steps": -Infinity}', "no JSON"),
    ("adapt", b"[" * 100_000, "no JSON"),
    ("adapt", b"9" * 10_000, "no JSON"),
    ("adapt", b"[1]", "expected an object"),
    ("adapt", {}, "classes: expected a list of 2 to 10"),
    ("adapt", {**TWO, "classes": [[ink()]]}, "classes: expected a list of 2 to 10"),
    ("adapt", {**TWO, "classes": [[ink(3)]] * 11}, "classes: expected a list of 2 to 10"),
    ("adapt", {**TWO, "classes": [[0]] * 100_000}, "classes: expected a list of 2 to 10"),
    ("adapt", {**TWO, "classes": {"A": [ink()]}}, "classes: expected a list of 2 to 10"),
    ("adapt", {**TWO, "classes": [[ink()], []]}, "class B: expected a list of 1 to 5"),
    ("adapt", {**TWO, "classes": [[ink()], ["A"] * 100_000]}, "class B: expected a list"),
    ("adapt", {**TWO, "classes": [[ink()], ink()]}, "class B: expected a list of 1 to 5"),
    ("adapt", {**TWO, "classes": [[ink()], [ink(784)]]}, "class B: expected each drawing"),
    ("adapt", {**TWO, "classes": [[ink()], [[0] * SIDE**2]]}, "class B: expected each drawing"),
    ("adapt", {**TWO, "classes": [[ink()], ["%" * 14_700]]}, "class B: expected each drawing"),
    ("adapt", {**TWO, "classes": [[ink()], ["é" * 14_700]]}, "class B: expected each drawing"),
    ("adapt", {**TWO, "query": ink(SIDE**2 + 1)}, "query: expected each drawing"),
    ("adapt", {**TWO, "query": "A" * 500_000}, "query: expected each drawing"),
    ("adapt", {**TWO, "steps": -1}, "steps: expected a whole number from 0 to 30"),
    ("adapt", {**TWO, "steps": 31}, "steps: expected a whole number from 0 to 30"),
    ("adapt", {**TWO, "steps": 1.5}, "steps: expected a whole number from 0 to 30"),
    ("adapt", {**TWO, "steps": True}, "steps: expected a whole number from 0 to 30"),
    ("adapt", {**TWO, "steps": "1"}, "steps: expected a whole number from 0 to 30"),
    ("adapt", {**TWO, "path": "/"}, "has 'path': expected only classes, query, steps"),
    ("stability", {**TWO, "step": 0}, "initialisation: expected a whole number from 0 to 1"),
    ("stability", {**TWO, "initialisation": 2, "step": 0}, "initialisation: expected"),
    ("stability", {**TWO, "initialisation": 0, "step": 2}, "step: expected a whole number"),
    ("examples", {"classes": 5, "drawings": 1, "seed": -1}, "seed: expected a whole number"),
    ("examples", {"classes": 1, "drawings": 1, "seed": 0}, "classes: expected a whole number"),
    ("examples", {"classes": 2, "drawings": 9, "seed": 0}, "drawings: expected a whole number"),
]


@pytest.mark.parametrize(("path", "body", "sentence"), BAD, ids=[row[2][:40] for row in BAD])
def test_bad_input_gets_a_sentence(port, path, body, sentence):
    answer = ask(port, f"/api/{path}", body)
    assert answer[0] == 400 and sentence in said(answer)
    assert HEADERS.items() <= answer[1].items()


def test_a_long_request_is_refused_before_it_is_read(port):
    announced = ask(port, "/api/adapt", b"", {"content-length": str(10**12)})
    assert announced[0] == 413 and str(MOST_BYTES) in said(announced)
    chunks = (b" " * 65536 for _ in range(MOST_BYTES // 65536 + 2))
    sent = ask(port, "/api/adapt", chunks)  # of no announced length
    assert sent[0] == 413
    odd = ask(port, "/api/adapt", b"{}", {"content-type": "text/plain"})
    assert odd[0] == 415 and "application/json" in said(odd)


@pytest.mark.parametrize("host", ["example.org", "127.0.0.1.example.org", "", "[::1]"])
@pytest.mark.parametrize("path", ["/", "/api/setup"])
def test_another_name_for_this_machine_is_refused(port, host, path):
    refused = ask(port, path, headers={"host": host})
    assert refused[0] == 403 and "is not this machine" in said(refused)


def test_another_sites_page_is_refused_and_its_own_is_not(port, body):
    for origin in (
        "https://example.org",
        "null",
        "http://127.0.0.1:1",
        f"https://localhost:{port}",
    ):
        refused = ask(port, "/api/adapt", body, {"origin": origin})
        assert refused[0] == 403 and "another site" in said(refused)
    for name in ("127.0.0.1", "localhost"):
        own = {"host": f"{name}:{port}", "origin": f"http://{name}:{port}"}
        assert ask(port, "/api/setup", headers=own)[0] == 200


def test_a_request_that_is_broken_off_is_no_error(port, caplog):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        head = "POST /api/adapt HTTP/1.1", "host: 127.0.0.1", "content-type: application/json"
        connection.sendall("\r\n".join([*head, "content-length: 9", "", "{"]).encode())
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"no HTTP\r\n\r\n")
        assert b" 400 " in connection.recv(100)
    assert ask(port, "/api/setup")[0] == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_other_addresses_and_methods_are_refused(port):
    assert ask(port, "/../pyproject.toml")[0] == 404
    assert ask(port, "/server.py")[0] == 404
    assert ask(port, "/api/adapt")[0] == 405
    assert ask(port, "/api/adapt", method="OPTIONS")[0] == 405
