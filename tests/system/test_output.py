"""Streams that fail, and file systems that cannot sync: no work ends."""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import redirect_stdout

import pytest

from metalearn.commands.main import main
from metalearn.system import files
from metalearn.system.output import LastingStream, lasting_output


class Broken(io.StringIO):
    encoding = "ascii"

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.failure = error

    def write(self, text: str) -> int:
        if self.failure is not None:
            raise self.failure
        return super().write(text)


@pytest.mark.parametrize(
    "error", [BrokenPipeError(), OSError(errno.ENOSPC, "full"), ValueError("closed")]
)
def test_text_that_cannot_be_written_is_dropped(error):
    stream = LastingStream(Broken(error))
    print("one", "two", file=stream, flush=True)
    assert stream.error is error


def test_characters_that_the_encoding_lacks_are_escaped():
    inner = Broken()
    print("± \udcff a", file=LastingStream(inner))
    assert inner.getvalue() == "\\xb1 \\udcff a\n"


def test_a_missing_stream_takes_everything(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with lasting_output() as out:
        print("text")
    assert out.error is None and sys.stdout is None


@pytest.mark.parametrize(
    ("error", "status"), [(BrokenPipeError(), 141), (OSError(errno.ENOSPC, "full"), 0)]
)
def test_only_a_reader_that_has_gone_is_a_status(error, status):
    with redirect_stdout(Broken(error)):
        assert main(["--help"]) == status


def test_a_closed_descriptor_is_not_that_of_a_later_file(tmp_path):
    kept = os.dup(0)
    os.close(0)
    try:
        with lasting_output(), (tmp_path / "a").open("w") as file:
            assert file.fileno() != 0
    finally:
        os.dup2(kept, 0)
        os.close(kept)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_folder_that_cannot_be_synced_takes_files(tmp_path, monkeypatch, code):
    def refuse(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    files.replace_text(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text"


def test_other_failures_to_sync_are_raised(tmp_path, monkeypatch):
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "disk")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk"):
        files.replace_text(tmp_path / "a", "text")
    assert not list(tmp_path.iterdir())


def test_a_deleted_working_folder_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["train", "steps=1"]) == 2
    assert "working folder" in capsys.readouterr().err
