"""What a teacher hands out, from the one notebook of each lesson: ``compresslab classroom build OUT``

    student/    the notebooks without solutions and without outputs; they run from top to bottom
    solution/   the notebooks with solutions unfolded and outputs
    guide/      for each lesson a plan for 45 and 90 minutes, what to ask, and the mistakes that the checks know
    slides/     one HTML file for each lesson
    homework/   a sheet with its own numbers for each student, and key.csv

Collected notebooks are graded by ``compresslab classroom grade FOLDER`` (grading.py).
"""

from __future__ import annotations

import ast
import copy
import csv
import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresslab.course.exercises import Exercise, exercises
from compresslab.course.homework import LESSONS_WITH_HOMEWORK, problem, sheet
from compresslab.course.quiz import questions
from compresslab.course.runner import notebook_paths
from compresslab.course.slides import slides

if TYPE_CHECKING:
    from nbformat import NotebookNode

__all__ = ["build_classroom", "guide", "messages", "plan_of", "solution_version", "student_version"]


def build_classroom(out: Path, *, students: int = 0, lessons: Sequence[str] = ()) -> list[Path]:
    """Write all that a class needs into a new folder, whole or not at all.

    Args:
        out: the folder to make; it must not exist, or be empty.
        students: how many sheets of homework, 0 or more.
        lessons: "05", ...; all of them by default.

    Returns:
        The files, in order.

    Raises:
        ValueError: the folder holds something, a lesson does not exist, or ``students`` is negative.
    """
    import nbformat

    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out={str(out)!r} must be a new or an empty folder, so that nothing is overwritten")
    if students < 0:
        raise ValueError(f"students={students} must be 0 or more, the number of homework sheets")
    paths = {path.stem[:2]: path for path in notebook_paths()}
    unknown = sorted(set(lessons) - set(paths))
    if unknown:
        raise ValueError(f"lessons={list(lessons)}: there is no lesson {unknown[0]!r}; there are {', '.join(paths)}")
    chosen = {lesson: path for lesson, path in paths.items() if not lessons or lesson in lessons}
    out.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        for name in ("student", "solution", "guide", "slides", "homework"):
            (made / name).mkdir()
        for lesson, path in chosen.items():
            notebook = nbformat.read(path, as_version=4)
            nbformat.write(student_version(notebook), made / "student" / path.name)
            nbformat.write(solution_version(notebook), made / "solution" / path.name)
            _write(made / "guide" / f"{path.stem}.md", guide(lesson))
            _write(made / "slides" / f"{path.stem}.html", slides(notebook))
        _homework(made / "homework", students, [lesson for lesson in LESSONS_WITH_HOMEWORK if lesson in chosen])
        made.chmod(0o777 & ~_umask())
        if out.exists():
            out.rmdir()
        os.replace(made, out)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return sorted(path for path in out.rglob("*") if path.is_file())


def student_version(notebook: NotebookNode) -> NotebookNode:
    """A copy without the solutions and without outputs; it runs from top to bottom."""
    made = copy.deepcopy(notebook)
    made.cells = [cell for cell in made.cells if "solution" not in cell.metadata.get("tags", [])]
    for cell in made.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            cell.metadata.pop("mystnb", None)
    return made


def solution_version(notebook: NotebookNode) -> NotebookNode:
    """A copy with its outputs, in which the solutions are unfolded."""
    made = copy.deepcopy(notebook)
    for cell in made.cells:
        cell.metadata.pop("jupyter", None)
    return made


def plan_of(lesson: str) -> dict[str, Any]:
    """What the course knows about teaching a lesson: ``"45"`` and ``"90"`` (lists of minutes, section, what to do) and ``"ask"``."""
    text = (resources.files("compresslab.course") / "guides" / f"{lesson}.json").read_text(encoding="utf-8")
    return json.loads(text)


def guide(lesson: str) -> str:
    """The instructor's guide of a lesson, in Markdown."""
    path = next(path for path in notebook_paths() if path.stem[:2] == lesson)
    title = json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"]
    plan = plan_of(lesson)
    lines = [
        f"{''.join(title).splitlines()[0]}",
        "",
        "Instructor's guide. Section numbers are the notebook's.",
        "",
        plan["point"],
    ]
    for minutes in ("45", "90"):
        lines += ["", f"## {minutes} minutes", "", "| minutes | section | what to do |", "|---|---|---|"]
        start = 0
        for step in plan[minutes]:
            lines.append(f"| {start} to {start + step['minutes']} | {step['section']} | {step['do']} |")
            start += step["minutes"]
    lines += ["", "## To discuss", ""]
    for item in plan["ask"]:
        lines += [f"- **{item['question']}** {item['listen_for']}"]
    lines += ["", "## Exercises, and the mistakes that `check` knows", ""]
    for name, asked in exercises().items():
        if name.startswith(lesson):
            lines += [f"### {name} {asked.title} ({asked.minutes} minutes, difficulty {asked.difficulty} of 3)", ""]
            lines += [*(f"- {message}" for message in messages(asked)), ""]
    lines += ["## Quiz, with answers", ""]
    for number, item in enumerate(questions(lesson), 1):
        (right,) = (answer for answer in item["answers"] if answer["right"])
        lines.append(f"{number}. {item['question']} **{right['text']}.** {right['why']}")
    return "\n".join(lines) + "\n"


def messages(asked: Exercise) -> list[str]:
    """What the check of an exercise can say to a wrong answer, in the order of its source; values stand as dots."""
    tree = ast.parse(inspect.getsource(asked.verify))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "NotYet":
            found += [(node.lineno, text) for text in map(_words, node.args)]
        elif isinstance(node, ast.Dict):  # of mistakes, by message or with messages
            parts = [part for part in (*node.keys, *node.values) if part is not None]
            found += [(part.lineno, _words(part)) for part in parts]
        elif isinstance(node, ast.Tuple):
            found += [(part.lineno, _words(part)) for part in node.elts]
    return list(dict.fromkeys(text for _, text in sorted(found) if len(text.split()) > 3))


def _words(node: ast.AST) -> str:
    """The text of a string, its values as dots."""
    if isinstance(node, ast.JoinedStr):
        return "".join("..." if isinstance(part, ast.FormattedValue) else str(part.value) for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _homework(folder: Path, students: int, lessons: Sequence[str]) -> None:
    """Sheets for the students 1, 2, ... and the key of all of them."""
    for variant in range(1, students + 1):
        _write(folder / f"sheet_{variant:03d}.md", sheet(variant, lessons))
    with (folder / "key.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sheet", "lesson", "answer", "unit", "relative tolerance"])
        writer.writerows(_key(students, lessons))


def _key(students: int, lessons: Sequence[str]) -> Iterator[list]:
    for variant in range(1, students + 1):
        for lesson in lessons:
            asked = problem(lesson, variant)
            yield [variant, lesson, f"{asked.answer:.6g}", asked.unit, asked.tolerance]


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _umask() -> int:
    """The process's mask for new files; it can be read by setting it only."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
