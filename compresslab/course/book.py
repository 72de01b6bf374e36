"""The course as a web site that needs no network: ``make book``, or ``python -m compresslab.course.book OUT``

The pages are the executed notebooks as they are committed, with solutions folded and the quiz's answers below it, and
pages made from what the project says elsewhere: the API from the docstrings, the glossary from the table of words, the
references from the sources of all lessons, the teacher's guides. Sphinx and myst-nb render them (extra ``[book]``).
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import pkgutil
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import compresslab
from compresslab.course.quiz import questions
from compresslab.course.runner import notebook_paths

if TYPE_CHECKING:
    from nbformat import NotebookNode

__all__ = ["api_page", "build_book", "glossary_page", "lesson_page", "references_page"]

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "measure", "formats", "quantization", "pruning", "importance", "distillation", "factorization", "export", "workbench",
    "testing", "course",
)  # fmt: skip
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
DOI = re.compile(r"doi:(10\.\d{4,}/[^\s,;)]*[\w])")
WIDGET = "application/vnd.jupyter.widget-view+json"


def build_book(out: Path) -> Path:
    """Write the site into a new folder, whole or not at all; returns its ``index.html``.

    Raises:
        ValueError: the folder holds something.
        RuntimeError: Sphinx has something to complain about; the message holds it.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out={str(out)!r} must be a new or an empty folder, so that nothing is overwritten")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        pages, made, told = Path(folder) / "pages", Path(folder) / "html", Path(folder) / "warnings.txt"
        write_pages(pages)
        command = [sys.executable, "-m", "sphinx", "-q", "--no-color", "-w", told, "-c", ROOT / "book", pages, made]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        told = told.read_text(encoding="utf-8") if done.returncode == 0 else done.stderr
        if told:
            raise RuntimeError(f"the book has faults:\n{told}")
        shutil.copytree(made, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".buildinfo*", "objects.inv"))
    return out / "index.html"


def write_pages(folder: Path) -> None:
    """Write every page's source, and what the pages show, into a new folder."""
    import nbformat

    from compresslab.course.classroom import guide

    (folder / "figures").mkdir(parents=True)
    for path in sorted((ROOT / "notebooks" / "figures").iterdir()):
        shutil.copy(path, folder / "figures")
    lessons = notebook_paths()
    for path in lessons:
        nbformat.write(lesson_page(nbformat.read(path, as_version=4), path.stem[:2]), folder / path.name)
        (folder / f"guide_{path.stem}.md").write_text(guide(path.stem[:2]), encoding="utf-8")
    packages = [name for name in PACKAGES if (ROOT / "compresslab" / name).is_dir()]
    for name in packages:
        (folder / f"api_{name}.md").write_text(api_page(name), encoding="utf-8")
    (folder / "glossary.md").write_text(glossary_page(), encoding="utf-8")
    (folder / "references.md").write_text(references_page(), encoding="utf-8")
    trees = {
        "Lessons": [path.stem for path in lessons],
        "Look up": ["glossary", "references"],
        "For teachers": [f"guide_{path.stem}" for path in lessons],
        "The package": [f"api_{name}" for name in packages],
    }
    (folder / "index.md").write_text(_index(trees), encoding="utf-8")


def lesson_page(notebook: NotebookNode, lesson: str) -> NotebookNode:
    """A lesson as a page reads it: solutions folded, no dead widgets, the quiz's answers below its questions."""
    import nbformat

    cells = []
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        cells.append(cell)
        if cell.cell_type == "code":
            cell.metadata.pop("jupyter", None)
            for output in cell.outputs:
                output.get("data", {}).pop(WIDGET, None)
        if "solution" in tags:
            cell.metadata["tags"] = [*tags, "hide-input"]
        if "quiz" in tags:
            cells.append(nbformat.v4.new_markdown_cell(_answers(lesson), id=f"{cell.id}-answers"))
    notebook.cells = cells
    return notebook


def _answers(lesson: str) -> str:
    """The answers of a quiz, folded."""
    lines = []
    for number, item in enumerate(questions(lesson), 1):
        (right,) = (answer for answer in item["answers"] if answer["right"])
        lines.append(
            f"<details><summary>Answer to {number}</summary>\n\n**{right['text']}.** {right['why']}\n\n</details>\n"
        )
    return "\n".join(lines)


def api_page(package: str) -> str:
    """Every public name of a package with its signature and docstring, in Markdown."""
    loaded = importlib.import_module(f"compresslab.{package}")
    lines = [f"# {package}", "", f"`compresslab.{package}`", "", *_literal(loaded), ""]
    for found in sorted(pkgutil.iter_modules(loaded.__path__), key=lambda each: each.name):
        if not found.ispkg:
            lines += _module(importlib.import_module(f"{loaded.__name__}.{found.name}"))
    return "\n".join(lines) + "\n"


def _module(module: object) -> Iterator[str]:
    yield from (f"## {module.__name__.split('.', 2)[2]}", "", *_literal(module), "")
    for name in getattr(module, "__all__", ()):
        item = getattr(module, name)
        if getattr(item, "__module__", None) == module.__name__ and callable(item):
            yield from (f"### {name}", "", "```python", f"{name}{_signature(item)}", "```", "", *_literal(item), "")


def _signature(item: object) -> str:
    try:
        return str(inspect.signature(item)).replace("'", "")
    except (TypeError, ValueError):  # an enumeration, a protocol
        return ""


def _literal(item: object) -> list[str]:
    """A docstring as it is written."""
    text = inspect.getdoc(item) or ""
    return ["````text", text, "````"] if text else []


def glossary_page() -> str:
    """The course's words, from the table in CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.split("## Words")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines() if line.startswith("| ")
    ][1:]
    lines = ["# Glossary", "", "One word for each concept, in code, prose and figures.", "", "```{glossary}"]
    for concept, words, meaning in sorted(rows, key=lambda row: row[1].lower()):
        lines += [
            *(word.strip(" `") for word in words.split(",")),
            f"  {concept.capitalize()}{f': {meaning}' if meaning else ''}",
            "",
        ]
    return "\n".join([*lines, "```"]) + "\n"


def references_page() -> str:
    """The sources of every lesson, with the DOI of each paper on arXiv."""
    import nbformat

    lines = ["# References", "", "What each lesson is built on. A preprint's DOI leads to all of its versions."]
    for path in notebook_paths():
        cells = nbformat.read(path, as_version=4).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        sources = text.split("## Sources")[1].split("\n## ")[0]
        listed = [line for line in sources.splitlines() if line.startswith("- ")]
        lines += ["", f"## Lesson {path.stem[:2]}", "", *(with_doi(line) for line in listed)]
    return "\n".join(lines) + "\n"


def with_doi(line: str) -> str:
    """Each arXiv number of a line with a link to its DOI.

    Example:
        >>> with_doi("SparseGPT, arXiv:2301.00774")
        'SparseGPT, [arXiv:2301.00774](https://doi.org/10.48550/arXiv.2301.00774)'
    """
    line = DOI.sub(r"[doi:\1](https://doi.org/\1)", line)
    return ARXIV.sub(r"[arXiv:\1](https://doi.org/10.48550/arXiv.\1)", line)


def _index(trees: dict[str, Sequence[str]]) -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    opening = text.split("\n## ")[0].split("![")[0].split("\n", 1)[1].strip()
    lines = [f"# compresslab {compresslab.__version__}", "", opening, ""]
    lines += [
        "These pages are the notebooks as they ran: sliders stand still here, and everything can be searched. To try, clone the course and call `make lab`.",
        "",
    ]
    for caption, names in trees.items():
        lines += ["```{toctree}", f":caption: {caption}", ":maxdepth: 1", "", *names, "```", ""]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: build the book into a folder."""
    parser = argparse.ArgumentParser(prog="python -m compresslab.course.book", description=__doc__)
    parser.add_argument("out", type=Path, help="a new folder")
    print(f"open {build_book(parser.parse_args(arguments).out)}")


if __name__ == "__main__":
    main()
