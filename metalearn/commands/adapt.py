"""`metalearn adapt`: a trained initialisation, adapted to a user's own classes."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from metalearn import config
from metalearn.errors import UsageError, counted


def run(words: list[str]) -> int:
    """Adapt the initialisation that the words name; return the exit status.

    Raises:
        UsageError: a word is no option, or the checkpoint and the images cannot be used.
    """
    cfg = config.plain("adapt", words)
    for name in ("checkpoint", "support", "out"):
        if OmegaConf.is_missing(cfg, name) or not isinstance(cfg[name], str) or not cfg[name]:
            raise UsageError(
                "adapt needs checkpoint=PATH of a run's best.pt or a name in results/, "
                f"support=FOLDER with a folder for each class, and out=FILE; {name}= is missing"
            )

    # Slow, and a mistake in the words is said at once.
    from metalearn.system.files import with_home
    from metalearn.training import checkpoint
    from metalearn.training.adaptation import adapt
    from metalearn.training.adapted import AdaptedModel
    from metalearn.training.evaluation_file import check_out, unwritable

    path, out = checkpoint.find(cfg.checkpoint), with_home(cfg.out)
    check_out(out, example="mine.pt")
    _check_replaceable(out)
    state = adapt(
        *(path, cfg.support, cfg.inner_steps, cfg.transductive, cfg.invert, cfg.source),
        *(cfg.device, cfg.threads),
    )
    model = AdaptedModel.of(state, out, cfg.device, cfg.threads)
    found = model.probabilities(model.support.images).argmax(dim=1)
    right = (found == model.support.labels).double().mean().item()
    counts = model.support.labels.bincount().tolist()
    named = zip(model.classes, counts, strict=True)
    if model.inverted:
        print("swapped dark and light, as in the run's own images (invert=false leaves it)")
    steps = state["adapted"]["inner_steps"]
    taken = "" if steps is None else f" in {counted(steps, 'inner step')}"
    print(
        f"{path}: adapted to {len(counts)} classes{taken}: "
        f"{', '.join(f'{name} ({count})' for name, count in named)}"
    )
    print(f"{100 * right:.1f} % of these images get their own class")
    try:
        checkpoint.save(out, state)
    except OSError as error:
        raise unwritable(out, error) from error
    print(f"wrote {out}")
    return 0


def _check_replaceable(out: Path) -> None:
    """Raise UsageError if the file is there and is no adapted model, such as a run's best.pt."""
    from metalearn.training import checkpoint

    try:
        if not out.exists() or "adapted" in checkpoint.read(out):
            return
    except checkpoint.DamagedCheckpoint:
        pass
    raise UsageError(
        f"out={out} is there and is no adapted model: expected a new file. Choose another name"
    )
