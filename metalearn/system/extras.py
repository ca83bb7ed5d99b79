"""The extras: the packages beyond torch and numpy, and which part of metalearn needs them."""

from __future__ import annotations

from metalearn.errors import MissingPackage

DISTRIBUTION = "metalearn-implicit"
"""The name by which pip knows this package."""

EXTRAS = {
    "train": (
        *("annotated_types", "cycler", "fontTools", "higher", "hydra", "matplotlib"),
        *("omegaconf", "PIL", "pydantic", "rich", "scipy", "sklearn", "wandb"),
    ),
    "studies": ("jinja2", "markupsafe", "pandas"),
    "play": ("starlette", "uvicorn"),
    "all": ("torchvision",),
    "peers": ("torchopt",),
}
"""The modules that an extra of pyproject.toml brings, each under the first extra that does.

learn2learn belongs to none: it needs an installation of its own (`metalearn.tasks.l2l`).
"""


def missing_package(error: ModuleNotFoundError, what: str) -> MissingPackage | None:
    """Return the error that says how to install a package; None if no extra brings it.

    Args:
        error: of the import that failed.
        what: the part of metalearn that needs the package.
    """
    package = (error.name or "").partition(".")[0]
    for extra, modules in EXTRAS.items():
        if package in modules:
            return MissingPackage(
                f"{what} needs the package {package}, which is not installed. Install it by "
                f"`pip install '{DISTRIBUTION}[{extra}]'`."
            )
    return None
