"""Notebooks from their sources: ``python -m compresslab.course.notebooks notebooks/src/00_measure_first.py``

The source of a lesson is one Python file in percent format (jupytext), which is what a person edits and reviews. The
notebook beside it is built from it: executed from top to bottom, with the outputs that nbval then compares, stable cell
ids, no execution times, no HTML or scripts in its outputs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compresslab.workbench.files import atomic_write

if TYPE_CHECKING:
    from nbformat import NotebookNode

__all__ = ["build", "execute", "read_source"]

KEPT_METADATA = ("tags", "jupyter", "mystnb")
ACTIVE_OUTPUTS = ("text/html", "application/javascript", "image/svg+xml")


def read_source(source: Path) -> NotebookNode:
    """The notebook that a source describes, without outputs, with ids "00_measure_first-007" and its tags."""
    import jupytext
    import nbformat

    notebook = jupytext.read(source, fmt="py:percent")
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"{source.stem}-{number:03d}"
        cell["metadata"] = {key: cell["metadata"][key] for key in KEPT_METADATA if key in cell["metadata"]}
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    notebook["metadata"] = {"kernelspec": kernel, "language_info": {"name": "python"}}
    notebook["nbformat"], notebook["nbformat_minor"] = 4, 5
    nbformat.validate(notebook)
    return notebook


def execute(notebook: NotebookNode, folder: Path, *, timeout: int = 300) -> NotebookNode:
    """Run every cell, as a fresh kernel in ``folder`` would, and clean what it left.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed that is not tagged ``raises-exception``.
    """
    from nbclient import NotebookClient

    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=timeout, kernel_name="python3", record_timing=False, resources=resources).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            _clean(cell)
    notebook["metadata"].pop("widgets", None)
    notebook["metadata"]["language_info"] = {"name": "python"}
    return notebook


def _clean(cell: NotebookNode) -> None:
    """Drop what only a browser may run, and move a figure's text to where the book looks for it."""
    for output in cell.outputs:
        for kind in ACTIVE_OUTPUTS:
            output.get("data", {}).pop(kind, None)
        alt = output.get("metadata", {}).get("image/png", {}).get("alt")
        if alt:
            cell["metadata"]["mystnb"] = {"image": {"alt": alt}}


def build(source: Path, *, timeout: int = 300) -> Path:
    """Execute a source and write the notebook to the folder above it; returns the notebook's path."""
    import nbformat

    target = source.resolve().parents[1] / f"{source.stem}.ipynb"
    notebook = execute(read_source(source), target.parent, timeout=timeout)
    with atomic_write(target) as temporary:
        nbformat.write(notebook, temporary)
    return target


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the notebooks named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m compresslab.course.notebooks", description=main.__doc__)
    parser.add_argument("sources", nargs="+", type=Path)
    for source in parser.parse_args(arguments).sources:
        start = time.perf_counter()
        print(f"building {source} ...", flush=True)
        print(f"  wrote {build(source)} in {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
