"""The Pareto front: the candidates that no other one beats in everything, and the two figures of a compression in steps.

a dominates b where it is no worse in any respect and better in one. What is dominated need not be discussed; what is on
the front is a matter of taste, that is, of the budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["pareto_front", "plot_pareto", "plot_waterfall"]

MARKERS = "os^DvPX<>hp"


def pareto_front(table: pd.DataFrame, *, lower: Sequence[str] = (), higher: Sequence[str] = ()) -> pd.Series:
    """Which rows of a table no other row dominates, as a series of bools with the table's index; equal rows stay both.

    Args:
        table: one row for each candidate.
        lower: columns in which less is better.
        higher: columns in which more is better.

    Raises:
        ValueError: no column is named, one is not there, or a value is NaN (which nothing can be compared with).

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"bytes": [9, 4, 5], "accuracy": [0.9, 0.8, 0.7]}, index=["a", "b", "c"])
        >>> pareto_front(table, lower=["bytes"], higher=["accuracy"]).to_dict()  # c is larger and worse than b
        {'a': True, 'b': True, 'c': False}
    """
    import pandas as pd

    names = [*lower, *higher]
    missing = [name for name in names if name not in table]
    if not names or missing:
        raise ValueError(f"lower={list(lower)} and higher={list(higher)} must name columns of {list(table.columns)}")
    values = np.column_stack([*(table[name] for name in lower), *(-table[name] for name in higher)]).astype(float)
    if np.isnan(values).any():
        row, column = np.argwhere(np.isnan(values))[0]
        raise ValueError(f"{names[column]} of {table.index[row]!r} is NaN; leave the row out")
    front = np.ones(len(values), dtype=bool)
    for place, value in enumerate(values):
        front[place] = not ((values <= value).all(1) & (values < value).any(1)).any()
    return pd.Series(front, index=table.index)


def plot_pareto(table: pd.DataFrame, x: str, y: str, *, kind: str | None = None, ax: Axes | None = None) -> Axes:
    """Every candidate as a point, the front (less of ``x``, more of ``y``) as a line of steps.

    Args:
        table: one row for each candidate.
        x: column of the cost.
        y: column of the quality.
        kind: column whose values get a marker and a color each.
        ax: where to draw; None makes a figure.
    """
    import matplotlib
    import matplotlib.pyplot as plt

    ax = plt.subplots(figsize=(7, 4), layout="constrained")[1] if ax is None else ax
    colors = matplotlib.color_sequences["petroff10"]
    groups = [("candidates", table)] if kind is None else list(table.groupby(kind, sort=False))
    for place, (name, rows) in enumerate(groups):
        style = {"marker": MARKERS[place % len(MARKERS)], "color": colors[place % len(colors)], "s": 28, "alpha": 0.8}
        ax.scatter(rows[x], rows[y], label=str(name), **style)
    front = table[pareto_front(table, lower=[x], higher=[y])].sort_values(x)
    ax.step(front[x], front[y], where="post", color="black", linewidth=1, label="Pareto front", zorder=0)
    if table[x].min() > 0 and table[x].max() >= 10 * table[x].min():
        ax.set_xscale("log")
    ax.set(xlabel=x, ylabel=y)
    ax.grid(alpha=0.3)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def plot_waterfall(
    figures: Mapping[str, float], *, label: str, undone: Sequence[str] = (), ax: Axes | None = None
) -> Axes:
    """What each step added or took, as bars that hang where the one before ended.

    Args:
        figures: value after each step, in order; the first is the start.
        label: of the axis, with the unit.
        undone: steps that were taken back: drawn hatched, and the next bar begins where they began.
        ax: where to draw; None makes a figure.

    Raises:
        ValueError: fewer than two figures, or a step is named that is not there.

    Example:
        >>> plot_waterfall({"start": 8.0, "prune": 5.0, "8 bits": 2.0}, label="KB").get_ylabel()
        'KB'
    """
    import matplotlib
    import matplotlib.pyplot as plt

    if len(figures) < 2 or set(undone) - set(figures):
        raise ValueError(f"figures must hold a start and a step, undone={list(undone)} must be among {list(figures)}")
    ax = plt.subplots(figsize=(7, 3), layout="constrained")[1] if ax is None else ax
    blue, orange, *_ = matplotlib.color_sequences["petroff10"]
    names, level = list(figures), figures[next(iter(figures))]
    ax.bar(0, level, color="lightgray", edgecolor="black")
    ax.annotate(f"{level:.3g}", (0, level), ha="center", va="bottom")
    for place, name in enumerate(names[1:], 1):
        value, gone = figures[name], name in undone
        style = {"hatch": "///" if gone else "", "facecolor": "white" if gone else blue if value < level else orange}
        ax.bar(place, value - level, bottom=level, edgecolor="black", **style)
        ax.annotate(f"{value:.3g}", (place, max(value, level)), ha="center", va="bottom")
        ax.plot([place - 1, place], [level, level], color="black", linewidth=0.7)
        level = level if gone else value
    ax.set(
        xticks=range(len(names)),
        xticklabels=[f"{name}\n(undone)" if name in undone else name for name in names],
        ylabel=label,
    )
    low, high = ax.get_ylim()
    ax.set_ylim(top=high + 0.15 * (high - low))  # the bars stand on the axis, their numbers need room above
    return ax
