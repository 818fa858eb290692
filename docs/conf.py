"""How Sphinx builds the site. `./build_docs.sh` lays the pages out and calls it.

The pages lie in the site as in the repository, so that every relative link leads to the same place
in both. Notebooks are shown as they were committed: none is executed.
"""

from __future__ import annotations

import re

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

project = "unlearn-utils"
author = "The unlearn-utils authors"
root_doc = "docs/index"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

# ------------------------------------------------------------------------------------------- pages

nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# What stands below a page in the site's navigation. It is added here, and not in the pages, which
# are also read on GitHub.
BELOW = {
    "docs/index": (
        "Overview </README>",
        "Running </docs/running>",
        "Results </docs/results>",
        "Notebooks </docs/notebooks>",
        "Code </docs/design>",
    ),
    "docs/running": (
        "/docs/own_data",
        "/docs/measuring_models",
        "/docs/tuning",
        "/docs/attacks",
        "/docs/published_models",
        "/docs/several_gpus",
        "/docs/troubleshooting",
    ),
    "docs/results": (
        "/docs/after_the_paper",
        "/docs/measurement",
        "/docs/deviations",
        "/docs/hardware",
        "/docs/speed",
        "/docs/glossary",
    ),
    "docs/notebooks": ("/notebooks/*",),
    "docs/design": ("/CONTRIBUTING", "/CHANGELOG", "/api/*"),
}


def add_contents(app: Sphinx, page: str, source: list[str]) -> None:
    """Add to a page the table of contents of what stands below it."""
    if page in BELOW:
        entries = "\n".join(BELOW[page])
        source[0] += f"\n```{{toctree}}\n:hidden:\n:glob:\n\n{entries}\n```\n"


# -------------------------------------------------------------------------------------- docstrings

autodoc_member_order = "bysource"
add_module_names = False
python_maximum_signature_line_length = 80
napoleon_use_ivar = True
default_role = "code"  # `name` is code in a docstring, as in Markdown


def escape_stars(app: Sphinx, what: str, name: str, obj: object, options, lines: list[str]) -> None:
    """Show * and | of a docstring as they are: they are products and bars in a formula."""
    for number, line in enumerate(lines):
        lines[number] = re.sub(r"([*|])", r"\\\1", line)


# --------------------------------------------------------------------------------------- formulas


html_math_renderer = "mathml"
SPELLINGS = (  # what LaTeX and the converter to MathML read differently
    (r"\\tilde (\w)", r"\\tilde{\1}{}"),  # else the index goes below the letter
    (r"\\big\b", ""),
    (r"\\\|", r"\\parallel "),
)


def inline_formula(translator: HTML5Translator, node: nodes.math) -> None:
    """Write a formula in a line of text."""
    translator.body.append(mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def block_formula(translator: HTML5Translator, node: nodes.math_block) -> None:
    """Write a formula that stands by itself."""
    translator.body.append(f'<div class="formula">{mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def mathml(formula: str, as_block: bool) -> str:
    """Return a formula as MathML, which a browser shows without a script from another site."""
    for pattern, replacement in SPELLINGS:
        formula = re.sub(pattern, replacement, formula)
    return latex2mathml.tex2mathml(formula, as_block=as_block)


# ------------------------------------------------------------------------------------------- theme

html_theme = "pydata_sphinx_theme"
html_title = "unlearn-utils"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_sidebars = {"README": []}  # nothing stands below it
html_theme_options = {
    "show_prev_next": False,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
}
html_show_sourcelink = False
html_copy_source = False


def setup(app: Sphinx) -> None:
    """Connect what is above."""
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-docstring", escape_stars)
    app.add_html_math_renderer("mathml", (inline_formula, None), (block_formula, None))
