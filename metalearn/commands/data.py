"""`metalearn data prepare`: make a dataset ready, from a folder or an archive of its files."""

from __future__ import annotations

import contextlib
import inspect
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

from hydra.utils import get_method
from omegaconf import OmegaConf

from metalearn.config import config_folder
from metalearn.errors import UsageError, nearest
from metalearn.system.files import with_home

if TYPE_CHECKING:
    from metalearn.tasks.cache import Splits


def read_datasets() -> dict[str, str]:
    """Return the datasets: the path of a function by the name of its config, `tasks=NAME`."""
    found = {}
    for path in sorted((config_folder() / "tasks").glob("*.yaml")):
        target = OmegaConf.select(OmegaConf.load(path), "dataset._target_")
        if target is not None:
            found[path.stem] = target
    return found


def run(words: list[str]) -> int:
    """Prepare the dataset that the words name, or print the help; return the exit status.

    Raises:
        UsageError: there is no such dataset, or a word is no option of it.
    """
    datasets = read_datasets()
    page = (
        "metalearn data prepare NAME [source=PATH]\n\n"
        f"  NAME    {', '.join(datasets)}\n"
        "  source  the folder where its files lie, or an archive of it (.zip, .tar, .tar.gz);\n"
        "          glyphs needs none, omniglot is downloaded without one\n"
    )
    asks = [w for w in words if w in ("-h", "--help")]
    if not words or words == asks or (words[0] == "prepare" and asks):
        print(page, end="")
        return 0
    if words[0] != "prepare" or len(words) < 2:
        raise UsageError("expected `metalearn data prepare NAME [source=PATH]`")
    name, options = words[1], words[2:]
    if name not in datasets:
        raise UsageError(f"{name!r} is no dataset{nearest(name, datasets)}")
    load = get_method(datasets[name])
    source: str | None = None
    for option in options:
        key, _, value = option.partition("=")
        if "source" not in inspect.signature(load).parameters:
            raise UsageError(f"{option!r} is no option of {name}, which takes none")
        if key != "source" or source is not None:
            raise UsageError(f"{option!r} is no option of {name}; expected source=PATH, once")
        source = value

    with _terminated_by_exception():
        splits, where = prepare(name, load, source)
    for split, data in splits.items():
        shape = "x".join(map(str, data.images.shape[1:]))
        print(f"{name} {split}: {len(data.classes)} classes, {len(data.images)} images of {shape}")
    print(where)
    return 0


@contextlib.contextmanager
def _terminated_by_exception() -> Iterator[None]:
    """Turn SIGTERM into SystemExit, so that temporary files are deleted on the way out."""

    def leave(signum: int, frame: FrameType | None) -> None:
        print("metalearn: terminated; nothing is kept, run the command again", file=sys.stderr)
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def prepare(
    name: str, load: Callable[..., Splits], source: str | None = None
) -> tuple[Splits, str]:
    """Return the splits of a dataset, and a sentence on where a run finds it.

    An archive is unpacked beside `cache_folder()/NAME`, checked, and renamed to it. Where the
    dataset's module says CACHED the splits are in the cache as arrays. No file is kept then, unless
    it also says NEEDS_FILES.

    Args:
        name: as in `tasks=NAME`.
        load: the dataset's function.
        source: the folder or archive of its files; None: the function's default.

    Raises:
        UsageError: the source is absent, damaged or not this dataset; nothing is kept of it.
    """
    # Slow: help and mistakes in the words need none of it.
    from metalearn.tasks.archive import SUFFIXES, is_archive, unpacked
    from metalearn.tasks.cache import cache_folder
    from metalearn.tasks.unfinished import put

    module = sys.modules[load.__module__]
    cached = getattr(module, "CACHED", False)
    needs_files = not cached or getattr(module, "NEEDS_FILES", False)
    path = with_home(source) if source is not None else None
    if path is None or (source and (path.is_dir() or path.suffix == ".csv")):
        splits = load() if path is None else load(path)
        where = f" tasks.dataset.source={source}" if source else ""
        if cached:
            use = f", by the files that tasks={name}{where} names" if needs_files else ""
            return splits, f"cached in {cache_folder()}{use}"
        return splits, f"checked; nothing is cached, each run reads the files: tasks={name}{where}"
    if source and not path.exists():
        raise UsageError(f"source={source} is not there; give the folder or archive of {name}")
    if not is_archive(path):
        raise UsageError(
            f"source={source} is no folder and no archive ({', '.join(SUFFIXES)}); give the one "
            f"that holds {name}"
        )
    with unpacked(path, cache_folder()) as folder:
        try:
            splits = load(folder)
        except UsageError as error:  # of the archive, which the user knows
            raise UsageError(str(error).replace(str(folder), str(path))) from error
        if not needs_files:
            return splits, f"cached in {cache_folder()}"
        put(folder, cache_folder() / name)
    return splits, f"unpacked into {cache_folder() / name}, where tasks={name} finds it"
