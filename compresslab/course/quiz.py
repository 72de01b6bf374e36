"""Multiple-choice quizzes: questions are data (``quizzes/00.json``), answers explain themselves, nothing needs a mouse.

Radio buttons are native inputs: Tab reaches them, the space bar chooses. Beside the widget the same output carries the
questions as plain text, which is what a page without a kernel (GitHub, the book) shows.
"""

from __future__ import annotations

import html
import json
from importlib import resources
from typing import TYPE_CHECKING, Any

from compresslab.course import progress
from compresslab.course.display import show_widget

if TYPE_CHECKING:
    import ipywidgets

__all__ = ["as_text", "questions", "quiz", "quiz_widget", "quizzes"]


def quizzes() -> list[str]:
    """The lessons that have a quiz."""
    folder = resources.files("compresslab.course") / "quizzes"
    return sorted(file.name.removesuffix(".json") for file in folder.iterdir() if file.name.endswith(".json"))


def questions(lesson: str) -> list[dict[str, Any]]:
    """The questions of a lesson's quiz: each has a "question" and "answers" with "text", "right" and "why".

    Raises:
        ValueError: the lesson has no quiz.
    """
    if lesson not in quizzes():
        raise ValueError(f"lesson={lesson!r} has no quiz; those that have one: {', '.join(quizzes())}")
    text = (resources.files("compresslab.course") / "quizzes" / f"{lesson}.json").read_text(encoding="utf-8")
    return json.loads(text)


def as_text(lesson: str) -> str:
    """The quiz as plain text, without its answers."""
    lines = []
    for number, item in enumerate(questions(lesson), 1):
        lines.append(f"{number}. {item['question']}")
        lines += [f"   ( ) {answer['text']}" for answer in item["answers"]]
    return "\n".join(lines)


def quiz(lesson: str) -> None:
    """Show the quiz of a lesson: choose an answer and read at once why it is right or wrong."""
    show_widget(quiz_widget(lesson), as_text(lesson))


def quiz_widget(lesson: str) -> ipywidgets.Widget:
    """The quiz as a widget: a box of questions, each with radio buttons and a line of feedback."""
    import ipywidgets as widgets

    boxes = [_question(lesson, number, item) for number, item in enumerate(questions(lesson), 1)]
    return widgets.VBox(boxes)


def _question(lesson: str, number: int, item: dict[str, Any]) -> ipywidgets.Widget:
    import ipywidgets as widgets

    texts = [answer["text"] for answer in item["answers"]]
    choice = widgets.RadioButtons(options=texts, value=None, layout=widgets.Layout(width="auto"))
    feedback = widgets.HTML(value=_feedback(""))

    def answered(change: dict[str, Any]) -> None:
        answer = next(answer for answer in item["answers"] if answer["text"] == change["new"])
        verdict = "Right" if answer["right"] else "Not this one"
        feedback.value = _feedback(f"<b>{verdict}.</b> {html.escape(answer['why'])}")
        if answer["right"]:
            progress.passed(f"{lesson} quiz {number}")

    choice.observe(answered, names="value")
    heading = widgets.HTML(f"<b>{number}. {html.escape(item['question'])}</b>")
    return widgets.VBox([heading, choice, feedback], layout=widgets.Layout(margin="0 0 12px 0"))


def _feedback(text: str) -> str:
    """A live region: screen readers say what changes in it."""
    return f'<div role="status" aria-live="polite" style="min-height: 1.4em; max-width: 60em">{text}</div>'
