"""``compresslab course``: every notebook in order, in one table of seconds, peak memory and headline result."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Run", "notebook_paths", "run_notebook", "run_notebooks"]

# Runs in the kernel after the last cell. Windows counts bytes, Linux kibibytes, macOS bytes.
PEAK = """
import sys
try:
    import resource
    _peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
except ImportError:
    import psutil
    _peak = psutil.Process().memory_info().peak_wset
print(_peak)
"""


@dataclass(frozen=True)
class Run:
    """What running one notebook gave."""

    lesson: str
    seconds: float
    peak_bytes: int
    headline: str  # the text printed by the cell tagged "headline"
    error: str  # the first error, empty when all went well


def notebook_paths() -> list[Path]:
    """The notebooks of the course in order.

    Raises:
        FileNotFoundError: the package was installed without the course beside it.
    """
    folder = Path(__file__).parents[2] / "notebooks"
    found = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise FileNotFoundError(f"no notebooks in {folder}; clone the repository to get the course itself")
    return found


def run_notebook(path: Path, *, timeout: int = 600, threads: int | None = None) -> Run:
    """Run one notebook in a fresh kernel, in memory: nothing is written.

    Args:
        path: of the notebook.
        timeout: seconds that a cell may take.
        threads: at most so many; None leaves it to the notebook.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(PEAK))
    client = NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    )
    start, error = time.perf_counter(), ""
    try:
        client.execute(env=os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {}))
    except Exception as failure:  # a cell's error; or the kernel died, or hangs: then the next notebook still runs
        name = getattr(failure, "ename", type(failure).__name__)
        error = f"{name}: {getattr(failure, 'evalue', failure) or 'the kernel ended'}"
    seconds = time.perf_counter() - start
    last = _text(notebook.cells[-1])
    headline = next((_text(cell) for cell in notebook.cells if "headline" in cell.metadata.get("tags", [])), "")
    return Run(path.stem, seconds, int(last) if last.isdigit() else 0, " ".join(headline.split()), error)


def _text(cell: object) -> str:
    return "".join(output.get("text", "") for output in cell.get("outputs", [])).strip()


def run_notebooks(paths: Iterable[Path], *, jobs: int = 1) -> int:
    """Run notebooks, printing a line for each in order, then the time from start to end; returns how many failed.

    Args:
        paths: of the notebooks.
        jobs: how many run at a time; nearly all of them use one thread.

    Raises:
        ValueError: ``jobs`` is below 1.
    """
    if jobs < 1:
        raise ValueError(f"jobs={jobs} must be 1 or more, the notebooks that run at a time; try 2")
    print(f"{'lesson':<34} {'seconds':>8} {'peak MB':>8}  headline", flush=True)
    runs, start = [], time.perf_counter()
    one = functools.partial(run_notebook, threads=1 if jobs > 1 else None)  # threads that wait for a busy core crawl
    with ThreadPoolExecutor(jobs) as pool:
        for run in pool.map(one, paths):
            runs.append(run)
            result = f"FAILED: {run.error}" if run.error else run.headline
            print(f"{run.lesson:<34} {run.seconds:>8.1f} {run.peak_bytes / 1e6:>8.0f}  {result}", flush=True)
    total, peak = time.perf_counter() - start, max((run.peak_bytes for run in runs), default=0)
    print(f"{len(runs)} notebooks, {jobs} at a time{'':<11} {total:>8.1f} {peak / 1e6:>8.0f}")
    return sum(bool(run.error) for run in runs)
