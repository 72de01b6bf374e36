"""Sweeps: in order, one thread for each job, the same in this process, in others, in threads and on a cluster."""

from __future__ import annotations

import os

import joblib
import pytest
import torch

from compresslab.workbench.sweeps import sweep


def work(seed: int) -> tuple[int, int, float]:
    """What a job of the course does: torch, with its own generator."""
    matrix = torch.randn(40, 40, generator=torch.Generator().manual_seed(seed))
    return seed, torch.get_num_threads(), float((matrix @ matrix).sum())


def fail(job: int) -> int:
    if job == 2:
        raise ValueError(f"job {job} cannot be done")
    return job


@pytest.fixture(scope="module")
def here() -> list:
    return sweep(work, range(7))


def test_in_order_with_one_thread_each_and_nothing_left_behind():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = sweep(work, iter(range(5)))
        assert [seed for seed, _, _ in found] == [0, 1, 2, 3, 4]
        assert {count for _, count, _ in found} == {1}
        assert torch.get_num_threads() == 2
        with pytest.raises(ValueError, match="job 2 cannot be done"):
            sweep(fail, [1, 2])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_other_processes_and_threads_give_the_same(here):
    assert sweep(work, range(7), n_jobs=2) == here
    with joblib.parallel_config(backend="threading"):
        assert sweep(work, range(7), n_jobs=3) == here
    pids = sweep(lambda _: os.getpid(), range(4), n_jobs=2)
    assert os.getpid() not in pids


def test_an_error_comes_back_from_another_process():
    with pytest.raises(ValueError, match="job 2 cannot be done"):
        sweep(fail, range(4), n_jobs=2)


def test_edges(capsys):
    assert sweep(work, []) == []
    with pytest.raises(ValueError, match="n_jobs=0 must be at least 1 process"):
        sweep(work, [1], n_jobs=0)
    assert capsys.readouterr().err == ""
    assert sweep(abs, [-1, -2], progress=True) == [1, 2]
    assert "2/2" in capsys.readouterr().err


def test_a_cluster_gives_the_same(here):
    distributed = pytest.importorskip("distributed", reason="needs Dask: pip install distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with (
        distributed.LocalCluster(**options) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        assert sweep(work, range(7), n_jobs=-1) == here
