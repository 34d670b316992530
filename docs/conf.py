"""The documentation site: `make docs` builds it into out/docs, warnings as errors.

Sphinx with MyST: the pages are Markdown that also reads well on its own, and the reference comes out of the docstrings,
which link to each other. Furo, since it is quiet, readable on a phone, and has a dark mode.
"""

import importlib.metadata

project = "art-defenses-ext"
author = "The art-defenses-ext developers"
release = importlib.metadata.version("art-defenses-ext")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
exclude_patterns = ["results/**/*.json"]

html_theme = "furo"
html_title = project

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_numpy_docstring = False
