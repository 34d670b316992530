"""The documentation site: `make docs` builds it into out/docs, warnings as errors.

Sphinx with MyST: the pages are Markdown that also reads well on its own, and the reference comes out of the docstrings,
which link to each other. Furo, since it is quiet, readable on a phone, and has a dark mode.
"""

import importlib.metadata
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # generated.py

project = "art-defenses-ext"
author = project_copyright = "The art-defenses-ext developers"
release = importlib.metadata.version("art-defenses-ext")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generated"]
myst_heading_anchors = 3
exclude_patterns = ["results/**/*.json"]

smartquotes_action = "qe"  # options begin with two hyphens

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_numpy_docstring = False
