"""Sphinx settings of the book; ``make book`` calls it through ``compresslab.course.book``, which prepares the pages."""

from __future__ import annotations

from docutils import nodes
from latex2mathml.converter import convert

import compresslab

project, author = "compresslab", "the compresslab contributors"
release = compresslab.__version__
extensions = ["myst_nb"]
exclude_patterns = ["_build", "conf.py"]
nb_execution_mode = "off"  # the committed outputs are those that the tests compare
nb_render_markdown_format = "myst"
myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "attrs_inline"]
myst_heading_anchors = 3
myst_url_schemes = ("http", "https", "mailto")
html_theme = "sphinx_book_theme"
html_title = "compresslab"
html_theme_options = {
    "show_toc_level": 2,
    "home_page_in_toc": True,
    "use_download_button": False,
    "use_fullscreen_button": False,
}
html_copy_source = False
html_show_sourcelink = False
html_static_path = ["static"]
html_css_files = ["book.css"]
html_math_renderer = "mathml"


def _inline(self: object, node: nodes.math) -> None:
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block(self: object, node: nodes.math_block) -> None:
    self.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: object) -> None:
    """Formulas become MathML, which browsers draw by themselves: no script, no network."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
