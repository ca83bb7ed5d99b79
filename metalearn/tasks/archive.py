"""Safe extraction of dataset archives into one folder."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import shutil
import stat
import tarfile
import uuid
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from metalearn.errors import UsageError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MEMBERS = 2_000_000
"""The maximum number of files and folders of an archive; tiered-ImageNet has 779,165 images."""
LARGEST = 64 << 30
"""The maximum total size of the members in bytes; tiered-ImageNet has 12 GB."""
EXPANSION = 200
"""The maximum ratio of the members' size to the archive's; images and raw pixels stay below 20."""

_ANYWAY = 1 << 20  # bytes that an archive of any size may unpack to
_CHUNK = 1 << 20
_OPENERS: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}
# The errors of a truncated, altered or encrypted archive, and of a full disk.
_FAULTS = (
    *(OSError, EOFError, ValueError, RuntimeError, NotImplementedError, MemoryError),
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
)


def is_archive(path: Path) -> bool:
    """Return True if `path` is a file with the suffix of a supported archive."""
    return path.is_file() and path.name.lower().endswith(SUFFIXES)


@contextlib.contextmanager
def unpacked(archive: Path, parent: Path) -> Iterator[Path]:
    """Unpack a zip or tar archive, and yield the hidden folder in `parent` with its members.

    Only plain files and folders are created, all of them inside that folder. Permissions, owners
    and times are not restored. The folder is deleted at the end of the `with` block; `keep` moves
    it elsewhere before that.

    Raises:
        UsageError: a member would lie outside the folder, or is a link or a device; the members are
            too many or too large; or the archive is damaged. No files are left in that case.
    """
    part = parent / f".{archive.name}-{uuid.uuid4().hex}.part"
    try:
        try:
            part.mkdir(parents=True)
            _unpack(archive, part)
        except UsageError:
            raise
        except _FAULTS as fault:
            reason = getattr(fault, "strerror", None) or " ".join(str(fault).split())
            raise UsageError(
                f"{archive} cannot be unpacked into {parent} ({reason or type(fault).__name__}); "
                "it may be damaged, or the disk full"
            ) from fault
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def keep(part: Path, target: Path) -> None:
    """Rename a folder to `target`; a folder at `target` is replaced at the last moment."""
    old = part.with_suffix(".old")
    if target.exists():
        target.replace(old)
    part.replace(target)
    shutil.rmtree(old, ignore_errors=True)


def _unpack(archive: Path, folder: Path) -> None:
    most = min(LARGEST, max(_ANYWAY, EXPANSION * archive.stat().st_size))
    left = most
    with contextlib.closing(_members(archive)) as members:
        for count, (name, size, open_member) in enumerate(members, start=1):
            if count > MEMBERS:
                raise UsageError(f"{archive} has more than {MEMBERS} members; fetch it again")
            path = folder.joinpath(*_steps(name, archive))
            if open_member is None:
                path.mkdir(parents=True, exist_ok=True)
                continue
            if size > left:  # `size` is the declared size; the loop below reads no more
                raise UsageError(
                    f"{archive} unpacks to more than {most} bytes, which no dataset of its size "
                    "does; fetch it again"
                )
            left -= size
            path.parent.mkdir(parents=True, exist_ok=True)
            with open_member() as file, path.open("xb") as out:  # fails for a duplicate name
                while chunk := file.read(min(_CHUNK, size)):
                    out.write(chunk)
                    size -= len(chunk)
            if size:
                raise EOFError(f"{name!r} is cut short")


def _steps(name: str, archive: Path) -> tuple[str, ...]:
    """Return the parts of a member's path; refuse a path that leaves the folder."""
    path = PurePosixPath(name)
    odd = any(sign in name for sign in "\\:\0") or name.startswith("/") or ".." in path.parts
    if odd or not name:
        raise UsageError(f"{name!r} in {archive} would not lie in its folder; fetch it again")
    return path.parts


def _members(archive: Path) -> Generator[tuple[str, int, Callable[[], Any] | None]]:
    """Yield the name, the size and the opening function of each member; None for a folder."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for member in opened.infolist():
                kind = stat.S_IFMT(member.external_attr >> 16)
                _check_kind(kind in (0, stat.S_IFREG, stat.S_IFDIR), member.filename, archive)
                read = None if member.is_dir() else partial(opened.open, member)
                yield member.filename, member.file_size, read
        return
    with archive.open("rb") as raw:
        magic = raw.read(6)
    unpack = next((how for start, how in _OPENERS.items() if magic.startswith(start)), None)
    with contextlib.ExitStack() as open_files:
        stream = open_files.enter_context(unpack(archive) if unpack else archive.open("rb"))
        bounded: Any = _Bounded(stream)
        tar = open_files.enter_context(tarfile.TarFile(fileobj=bounded))
        for info in tar:
            _check_kind(info.isfile() or info.isdir(), info.name, archive)
            if info.size < 0:
                raise ValueError(f"{info.name!r} has a size of {info.size}")
            yield info.name, info.size, None if info.isdir() else partial(tar.extractfile, info)
        stream.read(_CHUNK)  # reads to the end, where a compressed stream has its checksum


def _check_kind(plain: bool, name: str, archive: Path) -> None:
    if not plain:
        raise UsageError(
            f"{name!r} in {archive} is a link or a device, and no file or folder; fetch it again, "
            "or unpack it yourself and give source= the folder"
        )


class _Bounded:
    """A file with bounded reads, since the header of a tar archive may claim any length."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _CHUNK:
            raise ValueError(f"a header of {size} bytes")
        return self._file.read(size)
