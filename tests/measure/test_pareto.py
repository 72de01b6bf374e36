"""The front against the definition, the figures against their data."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslab.measure import pareto_front, plot_pareto, plot_waterfall


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_the_front_is_the_definition(rows):
    table = pd.DataFrame(rows, columns=["bytes", "time", "accuracy"])

    def beats(a, b) -> bool:
        no_worse = a[0] <= b[0] and a[1] <= b[1] and a[2] >= b[2]
        return no_worse and a != b

    wanted = [not any(beats(other, row) for other in rows) for row in rows]
    assert pareto_front(table, lower=["bytes", "time"], higher=["accuracy"]).tolist() == wanted
    assert any(wanted)


def test_what_the_front_refuses():
    table = pd.DataFrame({"a": [1.0, np.nan]}, index=["x", "y"])
    with pytest.raises(ValueError, match="a of 'y' is NaN; leave the row out"):
        pareto_front(table, lower=["a"])
    with pytest.raises(ValueError, match=r"lower=\['b'\] and higher=\[\] must name columns of \['a'\]"):
        pareto_front(table, lower=["b"])
    with pytest.raises(ValueError, match=r"lower=\[\] and higher=\[\] must name"):
        pareto_front(table)


def test_the_front_is_drawn():
    table = pd.DataFrame({"bytes": [1, 10, 5], "accuracy": [0.5, 0.9, 0.4], "how": ["p", "q", "p"]})
    ax = plot_pareto(table, "bytes", "accuracy", kind="how")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["p", "q", "Pareto front"]
    (line,) = ax.get_lines()
    assert line.get_xydata().tolist() == [[1, 0.5], [10, 0.9]]
    assert ax.get_xscale() == "log"
    assert plot_pareto(table, "bytes", "accuracy").get_xlabel() == "bytes"


def test_bars_hang_where_the_last_one_ended():
    ax = plot_waterfall({"start": 8.0, "cut": 5.0, "spoil": 1.0, "bits": 6.0}, label="KB", undone=["spoil"])
    bars = [(bar.get_y(), bar.get_height()) for bar in ax.patches]
    assert bars == [(0, 8), (8, -3), (5, -4), (5, 1)]
    assert [bar.get_hatch() for bar in ax.patches[1:]] == ["", "///", ""]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["start", "cut", "spoil\n(undone)", "bits"]
    assert len({bar.get_facecolor() for bar in ax.patches}) == 4


def test_what_the_waterfall_refuses():
    with pytest.raises(ValueError, match="figures must hold a start and a step"):
        plot_waterfall({"start": 1.0}, label="KB")
    with pytest.raises(ValueError, match=r"undone=\['x'\] must be among \['a', 'b'\]"):
        plot_waterfall({"a": 1.0, "b": 2.0}, label="KB", undone=["x"])
