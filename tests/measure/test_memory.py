from __future__ import annotations

import pytest
import torch
from torch import nn

from compresslab.measure import measure_memory, peak_bytes

FLOAT = 4


def test_a_chain_by_hand():
    """4 -> 8 -> ReLU -> 2, one sample. While the ReLU runs 8 + 8 numbers live; in the last layer 8 + 2."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    memory = measure_memory(model, torch.zeros(1, 4))
    assert memory.peak_bytes == 16 * FLOAT
    assert memory.weight_bytes == (4 * 8 + 8 + 8 * 2 + 2) * FLOAT
    assert memory.input_bytes == 4 * FLOAT
    assert memory.total_bytes == memory.peak_bytes + memory.weight_bytes + memory.input_bytes


def test_work_in_place_needs_no_second_copy():
    """The ReLU writes over its 8 numbers: at most 8 + 2 live."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 2))
    assert measure_memory(model, torch.zeros(1, 4)).peak_bytes == 10 * FLOAT


def test_a_residual_keeps_its_start_alive():
    """x itself was there before. y = a(x): 4; b(y): 4 more; their sum: 4 more, while both still live."""

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            y = self.a(x)
            return y + self.b(y)

    assert measure_memory(Residual(), torch.zeros(1, 4)).peak_bytes == 12 * FLOAT


def test_memory_grows_with_the_batch_and_views_are_free():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6))
    assert measure_memory(model, torch.zeros(10, 2, 2)).peak_bytes == 10 * 6 * FLOAT


def test_what_was_there_before_does_not_count():
    class Cached(nn.Module):
        def __init__(self):
            super().__init__()
            self.kept = torch.zeros(1000)

        def forward(self, x):
            self.kept.add_(1)  # an operation that returns what was there
            return x + self.kept[:1]

    assert measure_memory(Cached(), torch.zeros(5)).peak_bytes == 5 * FLOAT


def test_an_address_that_is_used_again_counts_again():
    """Tensors that appear and go, one after the other, take the room of one; the last ones both live."""

    class Sequence(nn.Module):
        def forward(self, x):
            for _ in range(50):
                y = x * 2
                del y
            return torch.cat([x * 2, x * 3])

    assert measure_memory(Sequence(), torch.zeros(1000)).peak_bytes == 4000 * FLOAT


def test_tied_weights_and_inputs_given_twice_count_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    assert measure_memory(model, torch.zeros(1, 4)).weight_bytes == 16 * FLOAT
    attention, x = nn.MultiheadAttention(4, 1), torch.zeros(3, 1, 4)
    assert measure_memory(attention, (x, x, x)).input_bytes == 12 * FLOAT


def test_buffers_are_weights_too():
    assert measure_memory(nn.BatchNorm1d(4), torch.zeros(2, 4)).weight_bytes == 4 * 4 * FLOAT + 8


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"model must be an nn.Module, got function"):
        measure_memory(lambda x: x, torch.zeros(1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_counters_of_a_gpu_see_at_least_the_tensors():
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 2)).cuda()
    memory = measure_memory(model, torch.zeros(64, 256, device="cuda"))
    assert memory.peak_bytes >= 2 * 64 * 512 * FLOAT


def test_the_peak_of_a_function_counts_what_gradients_keep():
    x = torch.ones(1000, requires_grad=True)
    forward = peak_bytes(lambda: x.detach().exp())
    backward = peak_bytes(lambda: x.exp().exp().sum().backward())
    assert forward == 4000
    assert backward >= 3 * 4000  # both results are kept for the way back, where a gradient is made
    kept = []
    assert peak_bytes(lambda: [kept.append(torch.zeros(1000)) for _ in range(5)]) == 5 * 4000
