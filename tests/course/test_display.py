"""What notebooks show."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from compresslab.course.display import reveal, show, show_source, table
from compresslab.course.exercises import call


@pytest.fixture
def shown(monkeypatch):
    items = []
    monkeypatch.setattr("IPython.display.display", lambda item, **options: items.append((item, options)))
    return items


def test_show_carries_the_text_and_closes_the_figure(shown):
    _, ax = plt.subplots()
    show(ax, alt="A line that rises from left to right")
    (figure, options), *_ = shown
    assert figure is ax.figure
    assert options["metadata"]["image/png"]["alt"] == "A line that rises from left to right"
    assert not plt.fignum_exists(figure.number)


def test_show_wants_a_sentence():
    figure = plt.figure()
    with pytest.raises(ValueError, match="alt='plot' must have at least 20 characters"):
        show(figure, alt="plot")
    plt.close(figure)


def test_table_by_hand(shown):
    frame = pd.DataFrame({"bytes": [1234567, 4], "share": [0.123456, 1234.5], "note": ["a|b", "c"]}, index=["x", "y"])
    table(frame)
    lines = shown[0][0].data.splitlines()
    assert lines == [
        "|  | bytes | share | note |",
        "| --- | ---: | ---: | --- |",
        "| x | 1,234,567 | 0.123 | a\\|b |",
        "| y | 4 | 1,234 | c |",
    ]


def test_table_without_index(shown):
    table(pd.DataFrame({"a": [True]}), index=False)
    assert shown[0][0].data.splitlines()[-1] == "| True |"


def test_show_source_is_the_source_with_a_short_docstring(shown):
    show_source(call)
    text = shown[0][0].data
    assert text.startswith("```python\n# compresslab.course.exercises.call\ndef call(")
    assert "NotAttempted: the function returned None" not in text
    assert "stopped with {type(error).__name__}" in text
    show_source(call, docstring=True)
    assert "NotAttempted: the function returned None" in shown[1][0].data


@pytest.mark.parametrize(
    ("guess", "words"),
    [
        (None, "no guess written down, measured ≈ 10 s"),
        (11, "you guessed 11 s, measured ≈ 10 s: about right"),
        (40, "4.0 times too high"),
        (1, "10.0 times too low"),
        (0, "-10 s off"),
    ],
)
def test_reveal(capsys, guess, words):
    reveal(guess, 10.0, what="time", unit="s")
    out = capsys.readouterr().out
    assert out.startswith("time: ") and words in out
