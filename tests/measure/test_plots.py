from __future__ import annotations

import pandas as pd
import pytest
import torch
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from torch import nn

from compresslab.measure import Machine, Work, plot_comparison, plot_layers, plot_roofline, profile_layers

MACHINE = Machine(flops_per_s=80e9, bytes_per_s=20e9, threads=1, dtype=torch.float32)


def comparison_table(sizes, values=(0.8, 0.7), latencies=(2e-3, 1e-3), metric="accuracy"):
    rows = {"size_bytes": sizes, metric: values, "latency_s": latencies}
    rows |= {f"{metric}_low": [v - 0.02 for v in values], f"{metric}_high": [v + 0.03 for v in values]}
    return pd.DataFrame(rows, index=["float", "int8"])


def test_a_comparison_shows_quality_size_interval_and_latency():
    axes = plot_comparison(comparison_table([4000, 1000]), "accuracy")
    points = [collection for collection in axes.collections if isinstance(collection, PathCollection)]
    assert [point.get_offsets()[0].tolist() for point in points] == [[4000, 80], [1000, pytest.approx(70)]]
    assert points[0].get_sizes()[0] == 2 * points[1].get_sizes()[0]  # areas as latencies
    bars = [container.lines[2][0].get_segments()[0] for container in axes.containers]
    assert [(bar[0][1], bar[1][1]) for bar in bars] == [pytest.approx((78, 83)), pytest.approx((68, 73))]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["float: 2 ms", "int8: 1 ms"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("size of the saved file (bytes)", "accuracy (%)")
    assert axes.get_xscale() == "linear"
    assert points[0].get_paths()[0].vertices.shape != points[1].get_paths()[0].vertices.shape  # other markers


def test_a_comparison_over_more_than_a_decade_is_logarithmic():
    assert plot_comparison(comparison_table([4000, 400]), "accuracy").get_xscale() == "log"


def test_without_latencies_all_markers_are_alike():
    axes = plot_comparison(comparison_table([4000, 1000]).drop(columns="latency_s"), "accuracy")
    points = [collection for collection in axes.collections if isinstance(collection, PathCollection)]
    assert points[0].get_sizes()[0] == points[1].get_sizes()[0] > 0
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["float", "int8"]
    assert axes.get_legend().get_title().get_text() == ""


def test_perplexity_is_no_percentage():
    axes = plot_comparison(comparison_table([2, 1], (5.0, 6.0), metric="perplexity"), "perplexity")
    assert axes.get_ylabel() == "perplexity"
    assert axes.collections[-1].get_offsets()[0].tolist() == [1, 6]


@pytest.fixture
def table():
    return profile_layers(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 4), repeats=2)


def test_the_plot_has_three_bars_for_each_row(table):
    axes = plot_layers(table)
    assert len(axes.patches) == 3 * len(table)
    assert [text.get_text() for text in axes.get_yticklabels()][1] == "1  ReLU"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["size", "MACs", "latency"]
    hatches = {container.patches[0].get_hatch() for container in axes.containers}
    assert len(hatches) == 3
    widths = [patch.get_width() for patch in axes.containers[1]]
    assert widths == pytest.approx((100 * table["mac_share"]).tolist())


def test_the_plot_shows_roofs_and_points():
    works = {"dense": Work(10**9, 10**7, 0.05), "thin": Work(10**6, 10**7, 0.002)}
    axes = plot_roofline(MACHINE, works)
    roof, _, dense, thin = axes.get_lines()
    assert roof.get_ydata()[1] == roof.get_ydata()[2] == 80e9
    assert roof.get_ydata()[0] == pytest.approx(20e9 * roof.get_xdata()[0])
    assert (dense.get_xdata()[0], dense.get_ydata()[0]) == (200, pytest.approx(4e10))
    assert dense.get_marker() != thin.get_marker()
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_xlim()[0] < thin.get_xdata()[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()][2:] == ["dense", "thin"]


def test_the_plot_uses_the_axes_it_is_given():
    axes = Figure().subplots()
    assert plot_roofline(MACHINE, {}, ax=axes) is axes


def test_work_without_macs_has_no_place():
    with pytest.raises(ValueError, match=r"works\['relu'\] has macs=0"):
        plot_roofline(MACHINE, {"relu": Work(0, 10, 1.0)})
