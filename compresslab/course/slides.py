"""Slides of a lesson from the cells that are tagged ``slide``: one HTML file with its pictures inside, for a browser offline.

A slide is the claim of its section's heading, and below it what the tagged cell shows; before them the title with what
one can do afterwards, behind them the quiz. Arrow keys turn pages; printed, each slide is a page.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import TYPE_CHECKING

from compresslab.course.quiz import questions

if TYPE_CHECKING:
    from nbformat import NotebookNode

__all__ = ["slides"]

STYLE = """
html { scroll-snap-type: y mandatory; font: 22px/1.45 system-ui, sans-serif; color: #1b1b1b; background: #fff; }
body { margin: 0; }
section { box-sizing: border-box; min-height: 100vh; padding: 5vh 8vw; scroll-snap-align: start; page-break-after: always; }
h1 { font-size: 1.9em; } h2 { font-size: 1.5em; } img { max-width: 100%; max-height: 68vh; }
table { border-collapse: collapse; } td, th { padding: .2em .7em; border-bottom: 1px solid #bbb; }
pre { font-size: .8em; white-space: pre-wrap; } small { color: #555; } .anchor-link { display: none; }
"""
KEYS = """
const all = [...document.querySelectorAll('section')];
const here = () => all.findIndex(s => s.getBoundingClientRect().bottom > innerHeight / 2);
addEventListener('keydown', e => {
  const step = {ArrowRight: 1, ArrowDown: 1, PageDown: 1, ' ': 1, ArrowLeft: -1, ArrowUp: -1, PageUp: -1}[e.key];
  if (!step) return;
  e.preventDefault();
  const next = all[here() + step];
  if (next) { next.scrollIntoView(); next.focus(); }
});
"""


def slides(notebook: NotebookNode) -> str:
    """One self-contained HTML page of an executed notebook's slides.

    Args:
        notebook: of the course, with outputs, as ``nbformat.read`` gives it.

    Raises:
        ValueError: no cell is tagged ``slide``, or one shows nothing.
    """
    first = notebook.cells[0].source
    title, lesson = first.splitlines()[0].lstrip("# "), first.split()[1]
    parts = [_markdown(_opening(first)), *_shown(notebook), *_quiz(lesson)]
    body = "\n".join(
        f'<section tabindex="-1">\n{part}\n<small>{n} / {len(parts)}</small></section>'
        for n, part in enumerate(parts, 1)
    )
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n<script>{KEYS}</script></body></html>\n'
    )


def _opening(source: str) -> str:
    """The title and the list of what one can do afterwards."""
    title, rest = source.split("\n", 1)
    goals = [line for line in rest.splitlines() if line.startswith("- ")]
    return "\n".join([title, "", "Afterwards you can", "", *goals])


def _shown(notebook: NotebookNode) -> Iterator[str]:
    """A slide for each tagged cell, under the heading of its section."""
    heading, found = "", False
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            heading = next((line for line in cell.source.splitlines() if line.startswith("## ")), heading)
        elif "slide" in cell.metadata.get("tags", []):
            outputs = [text for output in cell.outputs for text in _output(output)]
            if not outputs:
                raise ValueError(
                    f"cell {number} is tagged slide but shows nothing; run the notebook, or take the tag away"
                )
            found = True
            yield _markdown(heading) + "\n".join(outputs)
    if not found:
        raise ValueError("no cell of this notebook is tagged slide; tag those whose figure or table belongs on one")


def _output(output: NotebookNode) -> Iterator[str]:
    """One output as HTML: a picture with its text, a table, or what was printed."""
    data = output.get("data", {})
    if "image/png" in data:
        alt = output.get("metadata", {}).get("image/png", {}).get("alt", "")
        yield f'<img alt="{html.escape(alt, quote=True)}" src="data:image/png;base64,{data["image/png"].strip()}">'
    elif "text/markdown" in data:
        yield _markdown(data["text/markdown"])
    elif output.output_type == "stream":
        yield f"<pre>{html.escape(output.text)}</pre>"


def _quiz(lesson: str) -> Iterator[str]:
    """A slide for each question, with its answers folded."""
    for item in questions(lesson):
        answers = "".join(f"<li>{html.escape(each['text'])}</li>" for each in item["answers"])
        (right,) = (each for each in item["answers"] if each["right"])
        told = f"<b>{html.escape(right['text'])}</b> {html.escape(right['why'])}"
        yield f"<h2>{html.escape(item['question'])}</h2><ul>{answers}</ul><details><summary>Answer</summary>{told}</details>"


def _markdown(text: str) -> str:
    from nbconvert.filters import markdown2html

    return markdown2html(text)
