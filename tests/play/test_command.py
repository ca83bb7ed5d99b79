"""`metalearn play` as a program: its start, its refusals and its end."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import webbrowser
from pathlib import Path

import pytest
from untrained import save_untrained

from metalearn import config
from metalearn.commands import play
from metalearn.commands.main import main
from metalearn.play import serving


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["play", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_a_busy_port_is_named(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = refused([f"port={port}", "browser=false"], capsys)
    assert f"port={port} is in use by another program" in said and "port=0" in said


def test_the_socket_is_of_this_machine_alone():
    with serving.listen(0) as found:
        assert found.getsockname()[0] == "127.0.0.1"


def test_without_the_shipped_results_a_checkpoint_must_be_given(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "PACKAGE", tmp_path / "site-packages" / "metalearn")
    assert "play needs checkpoint=PATH" in refused(["port=0", "browser=false"], capsys)
    said = refused(["checkpoint=omniglot_maml_table"], capsys)
    assert "there is no checkpoint omniglot_maml_table" in said


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_without_its_extra_it_says_so(package, capsys, monkeypatch):
    for name in list(sys.modules):
        if name.partition(".")[0] == package or name.startswith("metalearn.play.serv"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    said = refused(["port=0"], capsys)
    assert f"metalearn play needs the package {package}" in said
    assert "pip install 'metalearn-implicit[play]'" in said


def test_a_head_for_more_classes_than_the_page_has_is_refused(capsys, tmp_path):
    words = ["tasks=glyphs", "tasks.ways=11", "model=mlp", "model.sizes=[784,8,11]"]
    save_untrained(tmp_path / "best.pt", *words)
    said = refused([f"checkpoint={tmp_path}/best.pt", "port=0"], capsys)
    assert "up to 10" in said and "11" in said


def test_ctrl_c_ends_it_with_the_status_of_the_other_commands():
    words = [sys.executable, "-m", "metalearn", "play", "checkpoint=omniglot_maml_table"]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        [*words, "port=0", "browser=false"], cwd=root, env=environment, **pipes
    ) as running:
        try:
            first = running.stdout.readline()
            assert first.startswith("http://127.0.0.1:") and "Ctrl-C" in first
            port = int(first.split("/")[2].partition(":")[2])
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", "/")
            assert connection.getresponse().read().startswith(b"<!doctype html>")
            running.send_signal(signal.SIGINT)  # with a connection open
            out, err = running.communicate(timeout=60)
            connection.close()
        finally:
            running.kill()
    assert (running.returncode, out, err) == (130, "", "metalearn: interrupted\n")


@pytest.mark.parametrize(
    ("screen", "asked", "opened"), [(True, "true", 1), (False, "true", 0), (True, "false", 0)]
)
def test_a_browser_opens_where_there_is_a_screen(screen, asked, opened, monkeypatch):
    class Server:
        def run(self, sockets):
            assert sockets

    addresses: list[str] = []
    monkeypatch.setattr(webbrowser, "open", addresses.append)
    monkeypatch.setattr(serving, "has_browser", lambda: screen)
    monkeypatch.setattr(serving, "make_server", lambda app: Server())
    words = ["checkpoint=omniglot_maml_table", "port=0", "threads=1", f"browser={asked}"]
    assert play.run(words) == 0
    assert len(addresses) == opened
