"""Archives unpack into their folder, whole or not at all, and are refused in a sentence."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from metalearn.errors import UsageError
from metalearn.tasks import archive
from metalearn.tasks.archive import is_archive, unpacked
from metalearn.tasks.unfinished import put, restore, temporary_folder

Members = list[tuple[str, bytes | None]]
GOOD: Members = [("a/", None), ("a/b/c.png", b"\x89PNG" * 1000), ("d.txt", b""), ("./e", b"1")]
SUFFIXES = [".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"]


def make(path: Path, members: Members) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
            for name, data in members:
                opened.writestr(name, data or b"")
        return path
    mode = {"gz": "w:gz", "tgz": "w:gz", "bz2": "w:bz2", "xz": "w:xz", "tar": "w"}
    with tarfile.open(path, mode[path.name.rpartition(".")[2]]) as opened:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            info.size, info.mode, info.uid = len(data or b""), 0o4777, 7
            opened.addfile(info, io.BytesIO(data or b""))
    return path


def tree(folder: Path) -> dict[str, bytes | None]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else None
        for p in folder.rglob("*")
    }


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_was_packed_is_there_while_the_block_lasts(suffix: str, tmp_path: Path) -> None:
    path = make(tmp_path / f"data{suffix}", GOOD)
    assert is_archive(path) and not is_archive(tmp_path)
    expected = {"a": None, "a/b": None, "a/b/c.png": GOOD[1][1], "d.txt": b"", "e": b"1"}
    with unpacked(path, tmp_path / "new") as folder:
        assert folder.parent == tmp_path / "new" and tree(folder) == expected
        for file in folder.rglob("*"):
            assert not file.stat().st_mode & stat.S_ISUID and file.stat().st_uid == os.getuid()
    assert list((tmp_path / "new").iterdir()) == []


def test_what_is_kept_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    path = make(tmp_path / "data.zip", GOOD)
    target = tmp_path / "new" / "set"
    for _ in range(2):
        with unpacked(path, target.parent) as folder:
            put(folder, target)
        assert [p.name for p in target.parent.iterdir()] == ["set"]
        assert (target / "e").read_bytes() == b"1" and not (target / "old").exists()
        (target / "old").touch()
    with pytest.raises(RuntimeError, match="no dataset"), unpacked(path, target.parent):
        raise RuntimeError("no dataset")
    assert [p.name for p in target.parent.iterdir()] == ["set"] and (target / "old").exists()


def tar_with(path: Path, kind: bytes, name: str, link: str) -> Path:
    with tarfile.open(path, "w") as opened:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        opened.addfile(info)
        info = tarfile.TarInfo(f"{name}/x")
        info.size = 1
        opened.addfile(info, io.BytesIO(b"x"))
    return path


def zip_link(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        opened.writestr(info, "/etc")
        opened.writestr("link/x", b"x")
    return path


def bomb(path: Path) -> Path:
    return make(
        path, [("zeros", bytes(1 << 22))] * 1 + [(f"z{i}", bytes(1 << 20)) for i in range(8)]
    )


def understated(path: Path) -> Path:
    """A member that holds more than the archive's directory says."""
    make(path, [("x", bytes(1 << 16))])
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 10)
    path.write_bytes(bytes(data))
    return path


def overlapping(path: Path) -> Path:
    """Many entries of the directory that share one member's bytes (Fifield 2019)."""
    make(path, [("x", bytes(1 << 20))])
    data = path.read_bytes()
    at, end = data.rindex(b"PK\x01\x02"), data.rindex(b"PK\x05\x06")
    many = data[at:end] * 600
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 600, 600, len(many), at, 0)
    path.write_bytes(data[:at] + many + tail)
    return path


def cut(path: Path) -> Path:
    make(path, GOOD)
    path.write_bytes(path.read_bytes()[:-60] if path.suffix == ".zip" else path.read_bytes()[:-9])
    return path


def altered(path: Path) -> Path:
    make(path, [("x", bytes(range(256)) * 40)])
    data = bytearray(path.read_bytes())
    data[60] ^= 0xFF
    path.write_bytes(bytes(data))
    return path


def huge_header(path: Path) -> Path:
    """A long name's header that claims a gigabyte, and packs small."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    with gzip.open(path, "wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 22))
    return path


def negative(path: Path) -> Path:
    info = tarfile.TarInfo("x")
    info.size = 5
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 12  # -1 in base 256
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header[:512])
    path.write_bytes(bytes(header) + bytes(2048))
    return path


def member(*members: tuple[str, bytes | None]) -> Callable[[Path], Path]:
    return lambda path: make(path, [("first", b"1"), *members])


BAD: list[tuple[str, str, Callable[[Path], Path], str]] = [
    (kind, f"bad{suffix}", member((name, b"x")), "would not lie in its folder")
    for suffix in (".zip", ".tar", ".tar.gz")
    for kind, name in [
        ("absolute", "/tmp/escaped"),
        ("upwards", "../escaped"),
        ("deep upwards", "a/b/../../../escaped"),
        ("backslash", "..\\escaped"),
        ("drive", "C:/escaped"),
    ]
]
BAD += [
    ("symbolic", "bad.tar", lambda p: tar_with(p, tarfile.SYMTYPE, "l", "/tmp"), "is a link"),
    ("relative link", "bad.tar", lambda p: tar_with(p, tarfile.SYMTYPE, "l", "a"), "is a link"),
    ("hard", "bad.tar", lambda p: tar_with(p, tarfile.LNKTYPE, "l", "/etc/passwd"), "is a link"),
    ("device", "bad.tar", lambda p: tar_with(p, tarfile.CHRTYPE, "l", ""), "or a device"),
    ("fifo", "bad.tar", lambda p: tar_with(p, tarfile.FIFOTYPE, "l", ""), "or a device"),
    ("link in a zip", "bad.zip", zip_link, "is a link"),
    ("bomb", "bad.zip", bomb, "unpacks to more than"),
    ("bomb", "bad.tar.xz", bomb, "unpacks to more than"),
    ("bomb", "bad.tar.bz2", bomb, "unpacks to more than"),
    ("overlapping", "bad.zip", overlapping, "unpacks to more than|cannot be unpacked"),
    ("understated", "bad.zip", understated, "cannot be unpacked"),
    ("huge header", "bad.tar.gz", huge_header, "a header of 1073741824 bytes"),
    ("negative size", "bad.tar", negative, "cannot be unpacked"),
    ("twice", "bad.tar", member(("x", b"1"), ("x", b"2")), "File exists"),
    ("a file as a folder", "bad.zip", member(("x", b"1"), ("x/y", b"2")), "cannot be unpacked"),
    ("cut", "bad.zip", cut, "cannot be unpacked"),
    ("cut", "bad.tar.gz", cut, "cannot be unpacked"),
    ("altered", "bad.zip", altered, "cannot be unpacked"),
    ("no archive", "bad.tar", lambda p: p.write_bytes(b"text" * 500) and p, "cannot be unpacked"),
    ("empty", "bad.zip", lambda p: p.touch() or p, "cannot be unpacked"),
]


@pytest.mark.parametrize(
    ("kind", "name", "write", "sentence"), BAD, ids=[f"{b[0]}{b[1]}" for b in BAD]
)
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_a_malicious_or_damaged_archive_is_refused(
    kind: str, name: str, write: Callable[[Path], Path], sentence: str, tmp_path: Path
) -> None:
    Path("/tmp/escaped").unlink(missing_ok=True)
    inside = tmp_path / "x" / "y"
    inside.mkdir(parents=True)
    path = write(inside / name)
    before = tree(tmp_path)
    with pytest.raises(UsageError, match=sentence) as caught, unpacked(path, inside):
        pytest.fail("it was unpacked")
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert tree(tmp_path) == before
    assert not Path("/tmp/escaped").exists()


def nested(path: Path) -> Path:
    """More folders within each other than Python's recursion takes."""
    return make(path, [("/".join(["d"] * 1199) + "/x", b"1")])


def nameless(path: Path) -> Path:
    """A zip archive whose first member has an empty name."""
    make(path, [("xyz", b"1")])
    data = bytearray(path.read_bytes())
    for magic, length, header in ((b"PK\x03\x04", 26, 30), (b"PK\x01\x02", 28, 46)):
        start = data.index(magic)
        data[start + length : start + length + 2] = b"\0\0"
        del data[start + header : start + header + 3]
    start, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    data[end + 12 : end + 20] = struct.pack("<2L", end - start, start)
    path.write_bytes(bytes(data))
    return path


def long_names(path: Path) -> Path:
    """Headers of long names without end, each of which describes the next header."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1
    path.write_bytes((info.tobuf(tarfile.GNU_FORMAT) + bytes(512)) * 3000)
    return path


@pytest.mark.parametrize(
    ("name", "write", "sentence"),
    [
        ("a.zip", nested, "more than 32 folders"),
        ("a.tar.gz", nested, "more than 32 folders"),
        ("a.zip", nameless, "''"),
        ("a.tar", long_names, "cannot be unpacked"),
    ],
)
def test_hostile_structure_is_refused(
    name: str, write: Callable[[Path], Path], sentence: str, tmp_path: Path
) -> None:
    path = write(tmp_path / name)
    with pytest.raises(UsageError, match=sentence) as caught, unpacked(path, tmp_path):
        pytest.fail("it was unpacked")
    assert "\n" not in str(caught.value) and [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.xz"])
def test_any_altered_byte_is_unpacked_or_refused(name: str, tmp_path: Path) -> None:
    """The outcome for every flipped byte is a whole extraction or one sentence."""
    path = make(tmp_path / name, [("a/b", b"1" * 30), ("c", b"2")])
    whole = path.read_bytes()
    for at in range(0, len(whole), 1 + len(whole) // 150):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with contextlib.suppress(UsageError), unpacked(path, tmp_path):
            pass
        assert [p.name for p in tmp_path.iterdir()] == [name]


def killed(act: Callable[[], object]) -> None:
    """Run `act` in a process that ends in it as a killed one does, without tidying up."""
    if (child := os.fork()) == 0:
        try:
            act()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_what_a_kill_left_is_deleted_by_the_next_process(tmp_path: Path) -> None:
    def work() -> None:
        with temporary_folder(tmp_path, "x") as part:
            (part / "y").touch()
            os._exit(9)

    killed(work)
    (tmp_path / ".single-file.part").touch()
    (left,) = tmp_path.glob(".x-*.part")
    with temporary_folder(tmp_path, "mine") as part:
        assert list(tmp_path.iterdir()) == [part] and not left.exists()
        with temporary_folder(tmp_path, "other") as other:  # a living process keeps its folder
            assert part.exists() and other.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("use", ["restore", "temporary_folder"])
def test_a_kill_between_the_two_renames_loses_no_dataset(use: str, tmp_path: Path) -> None:
    target, part = tmp_path / "set", tmp_path / ".set-new.part"
    target.mkdir()
    (target / "mine").touch()

    def exchange() -> None:
        rename = Path.replace
        Path.replace = lambda p, to: os._exit(9) if to == target else rename(p, to)  # type: ignore
        put(part, target)

    killed(exchange)
    assert not target.exists()
    if use == "restore":
        assert restore(target) == target
    else:
        with temporary_folder(tmp_path, "y"):
            pass
    assert [p.name for p in tmp_path.rglob("*")] == ["set", "mine"]


def test_a_failed_rename_puts_the_former_dataset_back(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(FileNotFoundError):
        put(tmp_path / ".nowhere.part", tmp_path / "set")
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MEMBERS", 3)
    path = make(tmp_path / "a.tar", GOOD)
    with pytest.raises(UsageError, match="more than 3 members"), unpacked(path, tmp_path):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    path = make(tmp_path / "a.zip", GOOD)
    with pytest.raises(UsageError, match="cannot be unpacked into"), unpacked(path, path / "b"):
        pass
