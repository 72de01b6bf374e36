"""The first call of every notebook."""

from __future__ import annotations

import matplotlib as mpl
import pytest
import torch

from compresslab.course.session import MOST_THREADS, start


@pytest.mark.parametrize(
    ("allowed", "asked", "taken"),
    [(1, None, 1), (2, None, 2), (64, None, MOST_THREADS), (64, "1", 1), (2, "3", 2), (2, "0", 2), (2, "1,2", 2)],
)
def test_no_more_threads_than_allowed(monkeypatch, allowed, asked, taken):
    before, settings = torch.get_num_threads(), dict(mpl.rcParams)
    monkeypatch.setattr("joblib.cpu_count", lambda: allowed)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    try:
        assert start() == taken
        assert torch.get_num_threads() == taken
        assert mpl.rcParams["figure.constrained_layout.use"]
    finally:
        torch.set_num_threads(before)
        mpl.rcParams.update(settings)
