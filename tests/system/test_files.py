"""Files are whole or not there, with several writers too."""

from __future__ import annotations

import os
import threading

import pytest

from metalearn.system.files import replace_bytes, replace_text, written_beside


def test_what_is_replaced_is_whole_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "a.txt"
    for text in ("long" * 1000, "short", ""):
        replace_text(path, text)
        assert path.read_text() == text
        assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "a"
    with written_beside(path, b"first" * 9) as one, written_beside(path, b"other") as other:
        assert one.read_bytes() == b"first" * 9 and other.read_bytes() == b"other"
        one.replace(path)
        assert path.read_bytes() == b"first" * 9
        other.replace(path)
        assert path.read_bytes() == b"other"
    assert list(tmp_path.iterdir()) == [path]


def test_many_writers_of_one_file_leave_one_of_theirs(tmp_path):
    path, wrong = tmp_path / "a", []
    contents = [bytes([65 + i]) * (20_000 * (i + 1)) for i in range(4)]

    def write(content: bytes) -> None:
        try:
            for _ in range(10):
                replace_bytes(path, content)
                if path.read_bytes() not in contents:
                    wrong.append("torn")
        except OSError as error:
            wrong.append(error)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt), written_beside(path, b"after"):
        raise KeyboardInterrupt
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
            with pytest.raises(OSError, match="No space left"):
                replace_bytes(path, b"after")
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"before"
