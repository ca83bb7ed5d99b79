"""The documentation site: `make docs` builds it into build/site.

The source directory is the repository itself, so that a page's links to other pages, to results/
and to configs/ are the same here and on a code host. All assets are local: a reader needs no
network.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT)]

import metalearn  # noqa: E402

project = "metalearn"
author = "The metalearn authors"
version = release = metalearn.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
    "docstrings",
    "pages",
]
root_doc = "README"
top = ["README", "CHANGELOG", "CONTRIBUTING", "SECURITY"]
include_patterns = [*(f"{page}.md" for page in top), "docs/**", "results/**"]
exclude_patterns = [".*", "build", "runs", "wandb", "docs/site", "docs/tutorials*"]
exclude_patterns += [
    "docs/gallery/sg_execution_times.rst"
]  # its page fetches scripts from elsewhere

# A reference that leads nowhere is an error (`sphinx-build -W`), but for those to other projects.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(torch|numpy|np|pathlib|collections|typing|argparse|os|enum|PIL|omegaconf)\b.*"),
    ("py:class", r".*\.T|ArrayLike|Tensor"),  # a type variable, and types that are not qualified
]
suppress_warnings = ["config.cache"]
if "pages" in tags:  # noqa: F821  # a test's quick build, without the reference, which takes longest
    exclude_patterns.append("docs/api")
    suppress_warnings.append("toc.not_readable")

default_role = "name"  # of docstrings.py
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False
myst_heading_anchors = 3

sphinx_gallery_conf = {
    "examples_dirs": str(ROOT / "docs" / "tutorials"),
    "gallery_dirs": str(ROOT / "docs" / "gallery"),
    "filename_pattern": r"/\d",  # every tutorial is run
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "remove_config_comments": True,
    "show_signature": False,
    "write_computation_times": False,
}

html_theme = "furo"
html_title = f"metalearn {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
