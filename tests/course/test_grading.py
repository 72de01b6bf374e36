"""Grading: the solutions of a lesson pass, stubs do not, and an answer that hangs or kills costs only itself."""

from __future__ import annotations

import csv

import nbformat
import pytest

from compresslab.course.grading import Grade, grade, write_grades
from compresslab.course.runner import notebook_paths

LESSON = next(path for path in notebook_paths() if path.stem.startswith("05"))


def submission(folder, student: str, edit=lambda name, source: source):
    """Write a student's notebook of lesson 05, each exercise cell as ``edit`` of its number and source gives it."""
    notebook = nbformat.read(LESSON, as_version=4)
    number = 0
    for cell in notebook.cells:
        if "exercise" in cell.metadata.get("tags", []):
            number += 1
            cell.source = edit(number, cell.source)
    notebook.cells = [cell for cell in notebook.cells if "solution" not in cell.metadata.get("tags", [])]
    (folder / student).mkdir()
    nbformat.write(notebook, folder / student / LESSON.name)


def solved(number: int, _: str) -> str:
    cells = [cell for cell in nbformat.read(LESSON, as_version=4).cells if "solution" in cell.metadata.get("tags", [])]
    return cells[number - 1].source.replace(", record=False", "")


def spoiled(number: int, source: str) -> str:
    """Four ways to go wrong, and one right answer behind them."""
    body = {
        1: "while True: pass",
        2: "import os; os._exit(3)",
        3: "return bytearray(2**36)",
        4: "return (",
    }
    return source.replace("return None", body[number]) if number in body else solved(number, source)


def test_one_run_over_a_class(tmp_path):
    submission(tmp_path, "ada", solved)
    submission(tmp_path, "bob")
    submission(tmp_path, "eve", spoiled)
    (tmp_path / "mallory.ipynb").write_text("{}", encoding="utf-8")
    grades = grade(tmp_path, seconds=4, jobs=2)
    of = {student: [each for each in grades if each.student == student] for student in ("ada", "bob", "eve", "mallory")}
    assert [each.exercise for each in of["ada"]] == [f"05.{number}" for number in range(1, 6)]
    assert [each.reason for each in of["ada"] if not each.passed] == []
    assert all(each.reason.startswith("not attempted") and not each.passed for each in of["bob"])
    hangs, dies, greedy, syntax, right = of["eve"]
    assert hangs.reason == "took more than 4 s" and hangs.seconds >= 4
    assert dies.reason == "ended the process (status 3)"
    assert "MemoryError" in greedy.reason
    assert syntax.reason.startswith("the cell stopped with SyntaxError")
    assert right.passed
    assert [each.passed for each in of["mallory"]] == [False]
    assert of["mallory"][0].reason.startswith("not a notebook: KeyError")


def test_the_last_call_counts_and_definitions_elsewhere_are_known(tmp_path):
    notebook = nbformat.v4.new_notebook()
    cells = (
        "def helper(n): return 4 * n\nraise RuntimeError('never run: no check in this cell')",
        'check("00.1", None)',
        'def bytes_of(elements, bits): return helper(elements) * bits // 32\ncheck("00.1", bytes_of)\ncheck("00.99", 1)',
    )
    notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    nbformat.write(notebook, tmp_path / "carl.ipynb")
    first, unknown = grade(tmp_path)
    assert (first.student, first.exercise, unknown.exercise) == ("carl", "00.1", "00.99")
    assert not first.reason.startswith("not attempted")
    assert unknown.reason == "no such exercise in this version of the course"


def test_a_table_that_no_spreadsheet_runs(tmp_path):
    path = write_grades([Grade("=cmd()", "05.1", True, "passed, all of it", 0.5)], tmp_path / "grades.csv")
    with path.open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row == {
        "student": "'=cmd()", "exercise": "05.1", "passed": "True", "reason": "passed, all of it", "seconds": "0.50",
    }  # fmt: skip


def test_what_cannot_be_graded(tmp_path):
    with pytest.raises(ValueError, match=r"submissions='.*nowhere' must be a folder of student/NN_name.ipynb"):
        grade(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no notebook"):
        grade(tmp_path)
    with pytest.raises(ValueError, match="memory_bytes=5, jobs=1: seconds must be above 0"):
        grade(tmp_path, memory_bytes=5)
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "empty.ipynb")
    (only,) = grade(tmp_path)
    assert only.reason == "no exercise in it: the cells with check(...) are gone"
