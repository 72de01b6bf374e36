from __future__ import annotations

import pytest
import torch
from torch import nn

from compresslab.measure import profile_layers, works


class Small(nn.Module):
    """Everything that needs care: a parameter of its own, a shared layer, a layer that is not called, a function."""

    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.zeros(6, 8))
        self.tokens = nn.Embedding(10, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.unused = nn.Linear(8, 8)
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids):
        x = self.tokens(ids) + self.position
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = self.block(self.block(self.norm(x)))
        return self.head(x @ torch.eye(8))


@pytest.fixture
def table():
    return profile_layers(Small(), torch.zeros(3, 6, dtype=torch.long), repeats=3, warmup=1)


def row(table, name):
    return table.set_index("layer").loc[name]


def test_layers_are_what_runs_and_calls_no_other(table):
    names = ["tokens", "attention", "norm", "block.0", "block.1", "head", "(between layers)"]
    assert table["layer"].tolist() == names
    assert row(table, "attention")["type"] == "MultiheadAttention"
    assert row(table, "attention")["output_shape"] == (3, 6, 8)


def test_macs_by_hand(table):
    """18 tokens. A layer used twice counts twice, and the product between layers stands in the last row."""
    assert row(table, "tokens")["macs"] == 0
    assert row(table, "attention")["macs"] == 18 * 4 * 64 + 3 * 2 * 36 * 8
    assert row(table, "block.0")["macs"] == 2 * 18 * 64
    assert row(table, "head")["macs"] == 18 * 80
    assert row(table, "(between layers)")["macs"] == 18 * 64


def test_parameters_count_once_and_none_is_lost(table):
    model = Small()
    assert row(table, "tokens")["parameters"] == 80
    assert row(table, "attention")["parameters"] == 4 * 64 + 4 * 8
    assert row(table, "head")["parameters"] == 0  # tied to the tokens
    assert row(table, "(between layers)")["parameters"] == 48 + 72  # position, and the layer that is not used
    assert table["parameters"].sum() == sum(parameter.numel() for parameter in model.parameters())
    assert row(table, "norm")["size_bytes"] == 2 * 8 * 4


def test_bytes_moved_by_hand(table):
    """In and out 18 * 8 floats each; weights beside them. Of an embedding only the 18 rows that it copies are read."""
    numbers = 18 * 8 * 4
    assert row(table, "norm")["bytes_moved"] == 2 * numbers + 16 * 4
    assert row(table, "block.1")["bytes_moved"] == 2 * 2 * numbers
    assert row(table, "block.0")["bytes_moved"] == 2 * (2 * numbers + 72 * 4)
    assert row(table, "tokens")["bytes_moved"] == 18 * 8 + numbers + numbers  # int64 ids, rows read, rows written
    assert row(table, "block.0")["intensity"] == pytest.approx(2 * 2304 / (2 * (2 * numbers + 288)))
    assert row(table, "(between layers)")["bytes_moved"] == 0


def test_shares_add_up(table):
    for column in ("size_share", "mac_share", "latency_share"):
        assert table[column].sum() == pytest.approx(1)
        assert (table[column] >= 0).all()
    assert table["latency_s"].gt(0).sum() >= 6
    assert set(table.attrs) == {"latency_s", "hook_overhead_s"}


def test_batch_norm_buffers_are_part_of_the_size():
    table = profile_layers(nn.Sequential(nn.BatchNorm1d(4)), torch.zeros(2, 4), repeats=1)
    assert row(table, "0")["size_bytes"] == 4 * 4 * 4 + 8
    assert row(table, "0")["parameters"] == 8


def test_times_are_medians_over_passes(monkeypatch):
    """Two layers on a clock of our own: 1, 2, 9 s and 3, 3, 3 s; between them nothing passes."""
    import time

    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    class Taking(nn.Module):
        def __init__(self, seconds):
            super().__init__()
            self.seconds, self.calls = seconds, 0

        def forward(self, x):
            now[0] += self.seconds[max(0, self.calls - 5) % 3]  # after counting, tracing and three passes without hooks
            self.calls += 1
            return x

    model = nn.Sequential(Taking([1, 2, 9]), Taking([3, 3, 3]))
    table = profile_layers(model, torch.zeros(1), repeats=3, warmup=0)
    assert table["latency_s"].tolist() == [2, 3, 0]
    assert table["latency_share"].tolist() == [0.4, 0.6, 0]


def test_a_layer_that_runs_twice_takes_twice_its_time(monkeypatch):
    import time

    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    class Taking(nn.Module):
        def forward(self, x):
            now[0] += 3
            return x

    layer = Taking()
    table = profile_layers(nn.Sequential(layer, nn.ReLU(), layer), torch.zeros(1), repeats=2)
    assert table["latency_s"].tolist() == [6, 0, 0]


def test_a_single_layer_is_a_model_too():
    table = profile_layers(nn.Linear(4, 2), torch.zeros(1, 4), repeats=2)
    assert table["layer"].tolist() == ["(model)", "(between layers)"]
    assert row(table, "(model)")["macs"] == 8


def test_works_are_the_rows_that_multiply(table):
    points = works(table)
    assert list(points) == ["attention", "block.0", "head", "(whole model)"]
    assert points["head"].macs == 18 * 80
    assert points["(whole model)"].macs == table["macs"].sum()
    assert points["(whole model)"].latency_s == table.attrs["latency_s"]


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match=r"must be an nn.Module, got int"):
        profile_layers(3, torch.zeros(1))
    with pytest.raises(ValueError, match="repeats=0"):
        profile_layers(nn.Linear(1, 1), torch.zeros(1, 1), repeats=0)
