"""The first call of every notebook."""

from __future__ import annotations

import matplotlib as mpl
import pytest
import torch

from compresslab.course.session import MOST_THREADS, start


@pytest.mark.parametrize(("allowed", "taken"), [(1, 1), (2, 2), (64, MOST_THREADS)])
def test_no_more_threads_than_allowed(monkeypatch, allowed, taken):
    before, settings = torch.get_num_threads(), dict(mpl.rcParams)
    monkeypatch.setattr("joblib.cpu_count", lambda: allowed)
    try:
        assert start() == taken
        assert torch.get_num_threads() == taken
        assert mpl.rcParams["figure.constrained_layout.use"]
    finally:
        torch.set_num_threads(before)
        mpl.rcParams.update(settings)
