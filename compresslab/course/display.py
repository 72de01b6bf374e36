"""What notebooks show: figures with a text for those who do not see them, tables, sources, and predictions met."""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ipywidgets
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["reveal", "show", "show_source", "show_widget", "table"]

SHORTEST_ALT = 20


def show(figure: Figure | Axes, *, alt: str) -> None:
    """Display a figure with its alternative text, and close it.

    Args:
        figure: the figure, or any of its axes.
        alt: what a reader who cannot see the figure must know, in a sentence.

    Raises:
        ValueError: the text is too short to say anything.
    """
    import matplotlib.pyplot as plt
    from IPython.display import display

    if len(alt) < SHORTEST_ALT:
        raise ValueError(f"alt={alt!r} must have at least {SHORTEST_ALT} characters; say what the figure shows")
    drawn = getattr(figure, "figure", figure)
    display(drawn, metadata={"image/png": {"alt": alt}})
    plt.close(drawn)


def show_widget(widget: ipywidgets.Widget, text: str) -> None:
    """Display a widget that is its text where there is no kernel: on GitHub, on a page, in a comparison of outputs."""
    from IPython.display import display

    bundle = widget._repr_mimebundle_()
    bundle = bundle[0] if isinstance(bundle, tuple) else bundle
    display({**bundle, "text/plain": text}, raw=True)


def table(frame: pandas.DataFrame, *, digits: int = 3, index: bool = True) -> None:
    """Display a data frame as a Markdown table: it reads the same in Lab, on a web page and as plain text.

    Args:
        frame: at most a few dozen rows.
        digits: significant digits of floats; integers get thousands separators.
        index: show the index as the first column.
    """
    from IPython.display import Markdown, display

    if index:
        frame = frame.reset_index(names=frame.index.name or "")
    heads = [str(name) for name in frame.columns]
    rows = [[_cell(value, digits) for value in row] for row in frame.itertuples(index=False)]
    right = [all(isinstance(value, int | float) for value in frame[name].tolist()) for name in frame.columns]
    rule = ["---:" if is_right else "---" for is_right in right]
    lines = ["| " + " | ".join(cells) + " |" for cells in (heads, rule, *rows)]
    display(Markdown("\n".join(lines)))


def _cell(value: Any, digits: int) -> str:
    if isinstance(value, float) and not isinstance(value, bool):
        if not math.isfinite(value):
            return str(value)
        return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value).replace("|", "\\|")


def show_source(item: Any, *, docstring: bool = False) -> None:
    """Display the source of a function or class of the package, so that nothing stays a black box.

    Args:
        item: a function or class.
        docstring: keep the whole docstring, not just its first line.
    """
    from IPython.display import Markdown, display

    source = textwrap.dedent(inspect.getsource(item))
    if not docstring:
        source = _shorten_docstring(source)
    place = f"{item.__module__}.{item.__qualname__}"
    display(Markdown(f"```python\n# {place}\n{source.rstrip()}\n```"))


def _shorten_docstring(source: str) -> str:
    body = ast.parse(source).body[0]
    first = body.body[0]
    text = ast.get_docstring(body)
    if text is None or "\n" not in text:
        return source
    lines = source.split("\n")
    indent = " " * first.col_offset
    return "\n".join([*lines[: first.lineno - 1], f'{indent}"""{text.splitlines()[0]}"""', *lines[first.end_lineno :]])


def reveal(guess: float | None, truth: float, *, what: str, unit: str = "") -> None:
    """Print a prediction beside what was measured: how far off, in words. Without a prediction, only the measurement.

    Args:
        guess: what the learner wrote down before, or None.
        truth: what was measured.
        what: what it is a number of.
        unit: printed after both numbers.

    Example:
        >>> reveal(50, 25, what="share of the time", unit="%")
        share of the time: you guessed 50 %, measured ≈ 25 %: 2.0 times too high
        >>> reveal(None, 25, what="share of the time", unit="%")
        share of the time: no guess written down, measured ≈ 25 %
    """
    unit = f" {unit}" if unit else ""
    measured = f"measured ≈ {truth:.3g}{unit}"
    if guess is None:
        print(f"{what}: no guess written down, {measured}")
        return
    if truth > 0 and guess > 0:
        ratio = guess / truth
        direction = "high" if ratio > 1 else "low"
        far = "about right" if 0.8 <= ratio <= 1.25 else f"{max(ratio, 1 / ratio):.1f} times too {direction}"
    else:
        far = f"{guess - truth:+.3g}{unit} off"
    print(f"{what}: you guessed {guess:g}{unit}, {measured}: {far}")
