"""The order of the pages, and the links that differ between a code host and the site."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx

START = "README"
"""The start page of the site. It is README.md itself, so that there is one of them."""

SECTIONS = {
    "Start": [
        *("docs/quickstart", "docs/play", "docs/gallery/index", "docs/which_gradient"),
        *("docs/which_linear_solver", "docs/certificates", "docs/other_libraries", "docs/faq"),
    ],
    "Train": [
        *("docs/train", "docs/data", "docs/your_images", "docs/heads", "docs/python", "docs/own"),
        *("docs/metrics", "docs/fair_comparison", "docs/memory_and_speed", "docs/stability"),
        *("docs/runs", "docs/processes"),
    ],
    "Solve": [
        *("docs/library", "docs/solve", "docs/bilevel", "docs/deq", "docs/hpo"),
        *("docs/influence", "docs/distill", "docs/nas"),
    ],
    "Results": ["docs/benchmarks", "docs/studies", "docs/reproducing", "results/README"],
    "Reference": [
        *("docs/api/index", "docs/architecture", "CHANGELOG", "CONTRIBUTING", "SECURITY"),
    ],
}

TUTORIALS = {
    r"\]\((?:docs/)?tutorials/(\d\w+)\.py\)": r"](/docs/gallery/\1.rst)",
    r"\]\((?:docs/)?tutorials\.md\)": "](/docs/gallery/index.rst)",
}


def toctree(pages: list[str], caption: str = "", options: str = "") -> str:
    head = f":caption: {caption}\n" if caption else ""
    entries = "\n".join(f"/{page}" for page in pages)
    return f"\n```{{toctree}}\n:hidden:\n{head}{options}\n{entries}\n```\n"


def add_contents(app: Sphinx, page: str, source: list[str]) -> None:
    """Add the contents to the pages that have entries; a handler of `source-read`."""
    if page == START:
        source[0] += "".join(toctree(pages, caption) for caption, pages in SECTIONS.items())
    if page == "results/README":
        source[0] += toctree(["results/*/table"], options=":glob:\n")
    # A tutorial is a script on a code host, and a page of the gallery here.
    for pattern, target in TUTORIALS.items():
        source[0] = re.sub(pattern, target, source[0])


def copy_start(app: Sphinx, error: Exception | None) -> None:
    """Make the start page index.html too, where browsers look for it."""
    start = Path(app.outdir, f"{START}.html")
    if error is None and start.exists():
        shutil.copy(start, start.with_name("index.html"))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", add_contents)
    app.connect("build-finished", copy_start)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
