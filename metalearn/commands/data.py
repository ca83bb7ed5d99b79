"""`metalearn data prepare`: a dataset made ready, from a folder or an archive of its files."""

from __future__ import annotations

from metalearn.errors import UsageError
from metalearn.system.files import with_home
from metalearn.tasks import glyphs, omniglot, vision
from metalearn.tasks.archive import SUFFIXES, is_archive, keep, unpacked
from metalearn.tasks.cache import Splits, cache_folder


def prepare(name: str, source: str | None = None) -> tuple[Splits, str]:
    """The splits of a dataset of `tasks=NAME`, and a sentence on where a run finds it.

    An archive is unpacked beside `cache_folder()/NAME`, checked, and renamed to it. Omniglot's
    drawings are few enough to be cached as one array, which is all that is kept then.

    Raises:
        UsageError: the source is absent, damaged or not this dataset; nothing is kept of it.
    """
    if name == "glyphs":
        return glyphs.glyphs(), f"cached in {cache_folder()}"
    load = omniglot.omniglot if name == "omniglot" else getattr(vision, name)
    path = with_home(source) if source is not None else None
    if path is None or (source and path.is_dir()):
        splits = load(path)
        if name == "omniglot":
            return splits, f"cached in {cache_folder()}"
        where = f" tasks.dataset.source={source}" if source else ""
        return splits, f"checked; nothing is cached, each run reads the files: tasks={name}{where}"
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
        if name == "omniglot":
            return splits, f"cached in {cache_folder()}"
        keep(folder, cache_folder() / name)
    return splits, f"unpacked into {cache_folder() / name}, where tasks={name} finds it"
