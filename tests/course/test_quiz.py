"""Quizzes: sound data, feedback for every answer, and a widget that works without a mouse or a browser."""

from __future__ import annotations

import pytest

from compresslab.course import progress
from compresslab.course.quiz import as_text, questions, quiz, quiz_widget, quizzes


@pytest.mark.parametrize("lesson", quizzes())
def test_each_question_has_one_right_answer_and_a_reason_for_each(lesson):
    items = questions(lesson)
    assert len(items) >= 5
    for item in items:
        assert set(item) == {"question", "answers"}
        assert len(item["answers"]) >= 3
        assert sum(answer["right"] for answer in item["answers"]) == 1
        texts = [answer["text"] for answer in item["answers"]]
        reasons = [answer["why"] for answer in item["answers"]]
        assert len(set(texts)) == len(texts) and len(set(reasons)) == len(reasons)
        assert all(len(reason.split()) >= 5 for reason in reasons), item["question"]


@pytest.mark.parametrize("lesson", quizzes())
def test_the_right_answer_is_not_always_in_the_same_place_nor_the_longest(lesson):
    places = [[answer["right"] for answer in item["answers"]].index(True) for item in questions(lesson)]
    assert len(set(places)) > 1
    longest = [max(item["answers"], key=lambda answer: len(answer["text"]))["right"] for item in questions(lesson)]
    assert not all(longest)


def test_choosing_an_answer_explains_it_and_keeps_the_progress(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSLAB_PROGRESS", str(tmp_path / "progress.json"))
    box = quiz_widget("00")
    item = questions("00")[0]
    _, choice, feedback = box.children[0].children
    assert choice.value is None
    wrong = next(answer for answer in item["answers"] if not answer["right"])
    choice.value = wrong["text"]
    assert "Not this one" in feedback.value
    assert progress.read() == {}
    right = next(answer for answer in item["answers"] if answer["right"])
    choice.value = right["text"]
    assert "Right." in feedback.value and 'aria-live="polite"' in feedback.value
    assert list(progress.read()) == ["00 quiz 1"]


def test_the_output_carries_a_plain_text_twin(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown.append(bundle))
    quiz("00")
    assert shown[0]["text/plain"] == as_text("00")
    assert "application/vnd.jupyter.widget-view+json" in shown[0]
    assert as_text("00").startswith("1. ")
    assert "text/html" not in shown[0]


def test_unknown_lesson():
    with pytest.raises(ValueError, match="lesson='77' has no quiz; those that have one: 00"):
        questions("77")
