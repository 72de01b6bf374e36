"""The first call of every notebook."""

from __future__ import annotations

import os

__all__ = ["MOST_THREADS", "start"]

MOST_THREADS = 4


def start(*, threads: int | None = None) -> int:
    """Make this notebook polite and its figures readable; returns the number of threads it may use.

    Args:
        threads: at most so many. 1 suits notebooks of many small operations: they gain little from more, and where
            processors are shared each operation waits for its slowest thread, which can make them ten times slower.

    torch takes as many threads as the machine has processors, also where a container or a shared hub allows it fewer:
    many times slower, for everybody there. Here it takes those that are allowed, four at most, or as many as the
    environment variable ``OMP_NUM_THREADS`` says if those are fewer. Figures get a palette
    that colour-blind people can read. Meant for notebooks: it changes settings of the whole process.
    """
    import joblib
    import matplotlib.style
    import torch

    asked = os.environ.get("OMP_NUM_THREADS", "")
    most = int(asked) if asked.isdigit() and int(asked) else MOST_THREADS
    threads = min(joblib.cpu_count(), threads or MOST_THREADS, most)
    torch.set_num_threads(threads)
    matplotlib.style.use("petroff10")
    matplotlib.rcParams.update({"figure.figsize": (7.0, 4.0), "figure.dpi": 110, "figure.constrained_layout.use": True})
    return threads
