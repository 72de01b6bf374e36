"""Every check of every lesson: the stub is not attempted, the solution passes, wrong answers get their own reasons.

The answers stand in ``answersNN.py`` beside this file, one for each lesson.
"""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import pytest
import torch

from compresslab.course.exercises import check, exercises

LESSONS = [importlib.import_module(path.stem) for path in sorted(Path(__file__).parent.glob("answers*.py"))]
SOLUTIONS = {name: answer for lesson in LESSONS for name, answer in lesson.SOLUTIONS.items()}
WRONG = {name: answers for lesson in LESSONS for name, answers in lesson.WRONG.items()}


def said(name, answer, capsys) -> str:
    check(name, answer, record=False)
    return capsys.readouterr().out.strip()


def test_every_exercise_is_proven():
    assert set(SOLUTIONS) == set(WRONG) == set(exercises())


@pytest.mark.parametrize("name", SOLUTIONS)
def test_the_solution_passes_and_the_stub_does_not(name, capsys):
    assert said(name, SOLUTIONS[name], capsys).startswith(f"{name} passed")
    assert said(name, lambda *_: ..., capsys).startswith(f"{name} not attempted")


@pytest.mark.parametrize("name", WRONG)
def test_typical_mistakes_get_their_own_reason(name, capsys):
    lines = [said(name, answer, capsys) for answer, _ in WRONG[name]]
    for line, (_, words) in zip(lines, WRONG[name], strict=True):
        assert line.startswith(f"{name} not yet: ")
        assert any(word in line for word in words.split("|")), line
    assert len(set(lines)) == len({words for _, words in WRONG[name]}) >= 3


def test_gradients_below_float16_are_what_the_exercise_on_unscaling_is_about():
    assert torch.tensor(2.0**-25).half().item() == 0


def test_making_up_for_a_column_is_what_gptq_does():
    hessian = torch.tensor([[2.0, 1.5], [1.5, 2.0]])
    inverse = hessian.inverse()
    assert math.isclose(-inverse[0, 1] / inverse[0, 0], hessian[0, 1] / hessian[1, 1], rel_tol=1e-6)
