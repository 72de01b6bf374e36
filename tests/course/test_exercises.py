"""Checks print one line, name the first reason in words, and never raise."""

from __future__ import annotations

import json

import pytest

from compresslab.course import exercises as module
from compresslab.course import progress
from compresslab.course.exercises import NotAttempted, NotYet, call, check, exercise, exercises, expect_number


@pytest.fixture
def own_progress(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSLAB_PROGRESS", str(tmp_path / "mine.json"))
    return tmp_path / "mine.json"


@pytest.fixture
def doubled(monkeypatch):
    monkeypatch.setattr(module, "_registry", dict(exercises()))

    @exercise("00.99", title="Double it", minutes=1, difficulty=1)
    def verify(answer):
        expect_number(call(answer, 4), 8, what="twice 4", wrong={16: "that is the square"})
        return "doubled"


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (None, "00.99 not attempted: fill in the stub, then run its cell again"),
        (..., "00.99 not attempted: fill in the stub, then run its cell again"),
        (lambda x: None, "00.99 not attempted: fill in the stub, then run its cell again"),
        (lambda x: 2 * x, "00.99 passed: doubled"),
        (lambda x: x * x, "00.99 not yet: that is the square"),
        (lambda x: x, "00.99 not yet: twice 4 is 4, which is too small"),
        (lambda x: 9, "00.99 not yet: twice 4 is 9, which is too large"),
        (lambda x: float("nan"), "00.99 not yet: twice 4 is nan; it should be finite"),
        (lambda x: "8 or so", "00.99 not yet: twice 4 should be a number, this is a str"),
        (lambda x: x / 0, "00.99 not yet: your function stopped with ZeroDivisionError: division by zero"),
        (7, "00.99 not yet: your function must be a function, this is a int"),
    ],
)
def test_check_says_one_line(doubled, own_progress, capsys, answer, line):
    check("00.99", answer)
    assert capsys.readouterr().out == f"{line}\n"
    assert own_progress.exists() == ("passed" in line)


def test_a_stub_that_raises_is_not_attempted(doubled, capsys):
    def stub(x):
        raise NotImplementedError

    check("00.99", stub)
    assert "not attempted" in capsys.readouterr().out


def test_an_answer_that_breaks_the_check_is_not_yet(monkeypatch, capsys):
    monkeypatch.setattr(module, "_registry", dict(exercises()))
    exercise("00.98", title="", minutes=1, difficulty=1)(lambda answer: answer.missing)
    check("00.98", 3)
    assert "00.98 not yet: your answer cannot be used here (AttributeError" in capsys.readouterr().out


def test_an_unknown_name_lists_the_names(capsys):
    check("99.1", 1)
    assert "99.1 is not an exercise of this course; the names are 00.1" in capsys.readouterr().out


def test_progress_is_kept_once_and_whole(doubled, own_progress):
    check("00.99", lambda x: 2 * x)
    first = json.loads(own_progress.read_text())
    check("00.99", lambda x: 2 * x)
    assert json.loads(own_progress.read_text()) == first
    assert list(first) == ["00.99"]


def test_a_solution_is_not_recorded(doubled, own_progress):
    check("00.99", lambda x: 2 * x, record=False)
    assert not own_progress.exists()


def test_a_broken_progress_file_reads_as_empty(own_progress):
    own_progress.write_text("{half a")
    assert progress.read() == {}
    progress.passed("00.1")
    assert list(progress.read()) == ["00.1"]


def test_progress_that_cannot_be_written_stops_nobody(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COMPRESSLAB_PROGRESS", str(tmp_path / "file" / "below.json"))
    progress.passed("00.1")
    assert progress.read() == {}


def test_states_count_exercises_and_questions(own_progress):
    done, total, state = progress.states()["00"]
    assert (done, state) == (0, "not started")
    progress.passed("00.1")
    assert progress.states()["00"] == (1, total, "in progress")
    for number in range(1, 30):
        progress.passed(f"00.{number}")
        progress.passed(f"00 quiz {number}")
    assert progress.states()["00"] == (total, total, "completed")
    lines = progress.summary().splitlines()
    assert lines[0].startswith("00  Measure first") and lines[0].endswith("completed")
    assert len(lines) == 13


def test_call_and_expect_number_raise_for_checks():
    with pytest.raises(NotAttempted):
        call(lambda: ...)
    with pytest.raises(NotYet, match="the size is 3, which is too small"):
        expect_number(3, 4, what="the size")
