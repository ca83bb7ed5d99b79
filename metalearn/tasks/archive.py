"""Archives of datasets, unpacked into one folder and nowhere else."""

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
"""Most files and folders of an archive; tiered-ImageNet has 779,165 images."""
LARGEST = 64 << 30
"""Most bytes of all of them together; tiered-ImageNet has 12 GB."""
EXPANSION = 200
"""Most bytes of them for one of the archive's; images and raw pixels have fewer than 20."""

_ANYWAY = 1 << 20  # bytes that the smallest archive may unpack to
_CHUNK = 1 << 20
_OPENERS: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}
# What a cut, altered or encrypted archive leads to, and a full disk.
_FAULTS = (
    *(OSError, EOFError, ValueError, RuntimeError, NotImplementedError, MemoryError),
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
)


def is_archive(path: Path) -> bool:
    """Whether it is a file whose name is one of an archive that can be unpacked."""
    return path.is_file() and path.name.lower().endswith(SUFFIXES)


@contextlib.contextmanager
def unpacked(archive: Path, parent: Path) -> Iterator[Path]:
    """A hidden folder in `parent` with the members of a zip or tar archive, while `with` lasts.

    Plain files and folders are made, all of them inside that folder; permissions, owners and times
    are not taken over. What is to stay is moved elsewhere before the block ends (`keep`).

    Raises:
        UsageError: a member would lie elsewhere, or is a link or a device; members are too many or
            too large; or the archive is damaged. Nothing is left of it then.
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
    """Renames a folder to `target`; what was there makes way at the last moment."""
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
            if size > left:  # what it claims; what it has is held to that
                raise UsageError(
                    f"{archive} unpacks to more than {most} bytes, which no dataset of its size "
                    "does; fetch it again"
                )
            left -= size
            path.parent.mkdir(parents=True, exist_ok=True)
            with open_member() as file, path.open("xb") as out:  # refuses a name that comes twice
                while chunk := file.read(min(_CHUNK, size)):
                    out.write(chunk)
                    size -= len(chunk)
            if size:
                raise EOFError(f"{name!r} is cut short")


def _steps(name: str, archive: Path) -> tuple[str, ...]:
    """The steps of a member's path, all of them downwards."""
    path = PurePosixPath(name)
    odd = any(sign in name for sign in "\\:\0") or name.startswith("/") or ".." in path.parts
    if odd or not name:
        raise UsageError(f"{name!r} in {archive} would not lie in its folder; fetch it again")
    return path.parts


def _members(archive: Path) -> Generator[tuple[str, int, Callable[[], Any] | None]]:
    """The name and the size of each member, and what opens it; None for a folder."""
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
        stream.read(_CHUNK)  # to the end, where a compressed stream has its checksum


def _check_kind(plain: bool, name: str, archive: Path) -> None:
    if not plain:
        raise UsageError(
            f"{name!r} in {archive} is a link or a device, and no file or folder; fetch it again, "
            "or unpack it yourself and give source= the folder"
        )


class _Bounded:
    """A file that is never read whole: a header of a tar archive may claim any length."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _CHUNK:
            raise ValueError(f"a header of {size} bytes")
        return self._file.read(size)
