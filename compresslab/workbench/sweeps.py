"""Many independent jobs at once: on the cores of this machine, or on a cluster, by the same line.

    sweep(function, jobs, n_jobs=-1)

    with joblib.parallel_config(backend="dask"):      # after distributed.Client(...)
        sweep(function, jobs, n_jobs=-1)

A job computes with one thread: several processes that each want all cores are slower than one. So it also gives the same
numbers wherever it runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import joblib
import torch
from tqdm.auto import tqdm

__all__ = ["sweep"]

Job = TypeVar("Job")
Result = TypeVar("Result")


def sweep(
    function: Callable[[Job], Result], jobs: Iterable[Job], *, n_jobs: int = 1, progress: bool = False
) -> list[Result]:
    """``[function(job) for job in jobs]``, in that order, run beside one another.

    Args:
        function: of one job; without chance, or with a seed in the job. For other processes it must be picklable, and
            what it changes there is not seen here.
        jobs: its arguments.
        n_jobs: processes; -1 for one on each core, 1 for none beside this one.
        progress: show a bar of the jobs handed out.

    Raises:
        ValueError: ``n_jobs`` is 0.

    Example:
        >>> sweep(abs, [-1, 2, -3])
        [1, 2, 3]
    """
    if n_jobs == 0:
        raise ValueError("n_jobs=0 must be at least 1 process, or -1 for one on each core")
    jobs = list(jobs)
    calls = (joblib.delayed(_alone)(function, job) for job in tqdm(jobs, disable=not progress))
    with _one_thread():
        return joblib.Parallel(n_jobs=n_jobs)(calls)


def _alone(function: Callable[[Job], Result], job: Job) -> Result:
    """In a worker, which has nothing else to do, and where no thread but this one reads the number."""
    with _one_thread():
        return function(job)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    if before == 1:  # also in a thread of a process where it has been set: nothing to put back
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
