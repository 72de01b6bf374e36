from __future__ import annotations

import pytest
import torch

from compresslab.measure import Machine, Work, measure_machine
from compresslab.measure import roofline as module

MACHINE = Machine(flops_per_s=80e9, bytes_per_s=20e9, threads=1, dtype=torch.float32)


def test_work_by_hand():
    """500 MACs are 1,000 FLOPs; on 250 bytes 4 per byte; in 1 us 1 GFLOP/s and 0.25 GB/s."""
    work = Work(macs=500, bytes_moved=250, latency_s=1e-6)
    assert work.intensity == 4
    assert work.flops_per_s == pytest.approx(1e9)
    assert work.bytes_per_s == pytest.approx(0.25e9)


def test_the_two_roofs():
    assert MACHINE.ridge == 4
    assert MACHINE.attainable(1) == 20e9
    assert MACHINE.attainable(4) == 80e9
    assert MACHINE.attainable(400) == 80e9
    assert MACHINE.bandwidth_utilization(Work(1, 250, 2.5e-8)) == pytest.approx(0.5)


def test_the_machine_is_the_best_of_its_repeats(monkeypatch):
    """Three copies of 1,000 bytes, read and written, the best in 2 s; three products of 10 x 10, the best in 4 s."""
    seconds = iter([3, 2, 5, 4, 6, 7])
    monkeypatch.setattr(module, "time_once", lambda run: (run(), next(seconds))[1])
    before = torch.get_num_threads()
    machine = measure_machine(matrix_size=10, buffer_bytes=1000, repeats=3, threads=2)
    assert machine == Machine(flops_per_s=2 * 1000 / 4, bytes_per_s=2 * 1000 / 2, threads=2, dtype=torch.float32)
    assert torch.get_num_threads() == before


def test_a_real_measurement_is_positive_in_every_float_type():
    for dtype in (torch.float32, torch.bfloat16):
        machine = measure_machine(dtype=dtype, matrix_size=32, buffer_bytes=4096, repeats=2)
        assert machine.dtype is dtype
        assert machine.flops_per_s > 0 < machine.bytes_per_s


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"dtype=torch.int8 must be a floating point type"):
        measure_machine(dtype=torch.int8)
    with pytest.raises(ValueError, match=r"matrix_size=0, .* must be at least 1"):
        measure_machine(matrix_size=0)
    with pytest.raises(ValueError, match="threads=0"):
        measure_machine(threads=0)
