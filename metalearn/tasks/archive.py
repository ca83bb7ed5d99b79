"""Safe extraction of dataset archives into one folder."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from metalearn.errors import UsageError
from metalearn.tasks.unfinished import temporary_folder

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MEMBERS = 2_000_000
"""The maximum number of files and folders of an archive; tiered-ImageNet has 779,165 images."""
EXPANSION = 200
"""The maximum ratio of the members' size to the archive's; images and raw pixels stay below 20."""
DEPTH = 32
"""The maximum number of folders around a file."""

_ANYWAY = 1 << 20  # bytes that an archive of any size may unpack to, and the most of a tar header
_OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}


def is_archive(path: Path) -> bool:
    """Return True if `path` is a file with the suffix of a supported archive."""
    return path.is_file() and path.name.lower().endswith(SUFFIXES)


@contextlib.contextmanager
def unpacked(archive: Path, parent: Path) -> Iterator[Path]:
    """Unpack a zip or tar archive, and yield the hidden folder in `parent` with its members.

    Only plain files and folders are created, all of them inside that folder. The folder is deleted
    at the end of the `with` block; `unfinished.put` moves it elsewhere before that.

    Raises:
        UsageError: a member would lie outside the folder, or is a link or a device; the members are
            too many, too deep or too large; or the archive is damaged. No files are left then.
    """
    with contextlib.ExitStack() as held:
        try:
            part = held.enter_context(temporary_folder(parent, archive.name))
            extract = _extract_zip if zipfile.is_zipfile(archive) else _extract_tar
            extract(archive, part, _Bound(archive, part))
        except UsageError:
            raise
        except Exception as fault:  # the errors of zipfile, tarfile and the codecs share no class
            reason = getattr(fault, "strerror", None) or " ".join(str(fault).split())
            raise UsageError(
                f"{archive} cannot be unpacked into {parent} ({reason or type(fault).__name__}); "
                "it may be damaged, or the disk full"
            ) from fault
        yield part


class _Bound:
    """The bound on an archive: the number, kinds, places and total size of its members."""

    def __init__(self, archive: Path, folder: Path) -> None:
        self.archive, self.folder, self.count = archive, folder, 0
        self.most = self.left = max(_ANYWAY, EXPANSION * archive.stat().st_size)

    def check(self, name: str, size: int, plain: bool) -> None:
        """Count a member in, and raise UsageError or another error if it must not be extracted."""
        if size < 0:
            raise ValueError(f"{name[:100]!r} has a size of {size}")
        self.count += 1
        self.left -= size
        if self.count > MEMBERS:
            self._refuse(f"has more than {MEMBERS} members")
        parts = PurePosixPath(name).parts
        odd = any(sign in name for sign in "\\:\0") or name.startswith("/") or ".." in parts
        if odd or not name:
            self._refuse(f"has a member {name[:100]!r}, which would not lie in its folder")
        if len(parts) > DEPTH:
            self._refuse(f"has a member {name[:100]!r}... in more than {DEPTH} folders")
        if not plain:
            self._refuse(f"has a member {name[:100]!r}, which is a link or a device")
        if self.left < 0:
            self._refuse(f"unpacks to more than {self.most} bytes, which no dataset does")
        if (path := self.folder / name).exists() and not path.is_dir():
            raise FileExistsError(f"File exists: {name!r} is there twice")

    def _refuse(self, reason: str) -> None:
        raise UsageError(
            f"{self.archive} {reason}; fetch it again, or unpack it yourself and give source= the "
            "folder"
        )


def _extract_zip(archive: Path, folder: Path, bound: _Bound) -> None:
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
            bound.check(member.filename, member.file_size, plain)  # no more than file_size is read
            opened.extract(member, folder)


def _extract_tar(archive: Path, folder: Path, bound: _Bound) -> None:
    with archive.open("rb") as raw:
        unpack = _OPENERS.get(raw.read(2), open)
    with unpack(archive, "rb") as stream:
        with tarfile.TarFile(fileobj=_Headers(stream)) as opened:  # type: ignore[arg-type]
            for member in opened:
                bound.check(member.name, member.size, member.isfile() or member.isdir())
                opened.extract(member, folder, filter="data")
        stream.read(_ANYWAY)  # to the end, where a compressed stream has its checksum


class _Headers:
    """A file with bounded reads, since the header of a tar archive may claim any length."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _ANYWAY:
            raise ValueError(f"a header of {size} bytes")
        return self._file.read(size)
