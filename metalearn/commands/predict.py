"""`metalearn predict`: the classes of images by an adapted model."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from metalearn import config
from metalearn.errors import UsageError, counted


def run(words: list[str]) -> int:
    """Predict the classes of the images that the words name; return the exit status.

    An image that cannot be read is left out, and a line on stderr names it.

    Raises:
        UsageError: a word is no option, the file is no adapted model, or no image can be read.
    """
    cfg = config.plain("predict", words)
    for name in ("checkpoint", "images", "out"):
        if OmegaConf.is_missing(cfg, name) or not cfg[name]:
            raise UsageError(
                "predict needs checkpoint=FILE that `metalearn adapt` wrote, and images=FOLDER; "
                f"{name}= is missing"
            )

    # Slow, and a mistake in the words is said at once.
    import torch

    from metalearn.system.files import replace_text, with_home
    from metalearn.tasks.labelled_files import find_images, read_one
    from metalearn.training import adapted
    from metalearn.training.evaluation_file import check_out, unwritable

    images, out = with_home(cfg.images), with_home(cfg.out)
    check_out(out, example="predictions.csv")
    if out.suffix.lower() != ".csv" or (out.exists() and images.exists() and out.samefile(images)):
        raise UsageError(
            f"out={out}: expected a .csv file other than images=. Give such as predictions.csv"
        )
    model = adapted.load(Path(cfg.checkpoint), cfg.device, cfg.threads)
    paths = find_images(cfg.images)
    _, channels, size, _ = model.support.images.shape
    written = _line(["path", "label", *model.classes])
    sys.stdout.write(written)
    done = 0
    for start in range(0, len(paths), model.batch):
        read: list[tuple[Path, torch.Tensor]] = []
        for path in paths[start : start + model.batch]:
            try:
                _check_name(path)
                read.append((path, read_one(path, channels, size)))
            except ValueError as fault:
                print(f"metalearn: left out: {fault}", file=sys.stderr)
        if not read:
            continue
        found = model.probabilities(torch.stack([image for _, image in read]))
        for (path, _), row in zip(read, found.tolist(), strict=True):
            label = model.classes[row.index(max(row))]
            line = _line([path.as_posix(), label, *(f"{value:.6f}" for value in row)])
            sys.stdout.write(line)
            written += line
        done += len(read)
    if not done:
        raise UsageError(
            f"images={cfg.images}: expected at least one image that can be read, and none of "
            f"{len(paths)} can be. Replace the files"
        )
    try:
        replace_text(out, written)
    except OSError as error:
        raise unwritable(out, error) from error
    left = f", left out {len(paths) - done}" if done < len(paths) else ""
    print(f"metalearn: wrote {out}: {counted(done, 'image')}{left}", file=sys.stderr)
    return 0


def _line(values: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


def _check_name(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError as fault:
        raise ValueError(f"{str(path)!a} is no name in UTF-8") from fault
