"""Grade a folder of submitted notebooks: ``compresslab classroom grade SUBMISSIONS -o grades.csv``

Of a submission only what defines the answers is run: the course's own imports of the lesson, the submission's functions,
classes and imports, and the cells that call ``check``. Each notebook has a process of its own with a limit of memory, each
exercise a limit of time; an answer that hangs or takes the memory costs that answer, and the next ones are graded.

The process protects the other marks and the machine, not against somebody who attacks the grader: for strangers' code run
it in a container without a network.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import csv
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from compresslab.workbench.files import atomic_write

__all__ = ["Grade", "grade", "write_grades"]

CHECK = re.compile(r"^\s*check\(\s*[\"'](\d\d\.\d+)[\"']", re.MULTILINE)
DEFINITIONS = (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
STARTING = 120.0  # seconds that a process may take to import torch on a busy machine


@dataclass(frozen=True)
class Grade:
    """What one student got for one exercise."""

    student: str  # name of the folder, or of the file where submissions are not in folders
    exercise: str  # "05.1"
    passed: bool
    reason: str  # what ``check`` says, "not attempted", or what went wrong
    seconds: float  # for this exercise; the start of the process not included


def grade(submissions: Path, *, seconds: float = 30.0, memory_bytes: int = 4 * 1024**3, jobs: int = 1) -> list[Grade]:
    """Grades of every notebook below a folder, by student and exercise.

    Args:
        submissions: a folder of ``student/05_pruning.ipynb``, or of ``student.ipynb``; folders may be nested.
        seconds: that one exercise may take.
        memory_bytes: that one notebook's process may take (Linux; other systems have no such limit).
        jobs: notebooks at the same time.

    Raises:
        ValueError: no folder, no notebook in it, or a limit out of range.
    """
    submissions = Path(submissions)
    if not submissions.is_dir():
        raise ValueError(f"submissions={str(submissions)!r} must be a folder of student/NN_name.ipynb")
    if not seconds > 0 or memory_bytes < 1024**3 or jobs < 1:
        raise ValueError(
            f"seconds={seconds}, memory_bytes={memory_bytes}, jobs={jobs}: seconds must be above 0, memory at least "
            f"{1024**3} (torch alone takes most of it), jobs at least 1"
        )
    paths = sorted(path for path in submissions.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
    if not paths:
        raise ValueError(f"submissions={str(submissions)!r} holds no notebook; it must have student/NN_name.ipynb")
    names = [path.relative_to(submissions) for path in paths]
    students = [str(name.parent if len(name.parts) > 1 else name.stem) for name in names]
    with ThreadPoolExecutor(jobs) as pool:
        found = pool.map(lambda path, student: _grade_one(path, student, seconds, memory_bytes), paths, students)
    return [each for grades in found for each in grades]


def write_grades(grades: Iterable[Grade], path: Path) -> Path:
    """Write grades as CSV, one row for each student and exercise; text that a spreadsheet would run is quoted."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Grade)])
    writer.writeheader()
    for each in grades:
        row = asdict(each) | {"seconds": f"{each.seconds:.2f}"}
        writer.writerow(
            {key: f"'{value}" if str(value).startswith(("=", "+", "-", "@")) else value for key, value in row.items()}
        )
    with atomic_write(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    return path


def _grade_one(path: Path, student: str, seconds: float, memory_bytes: int) -> list[Grade]:
    """Grades of one notebook: a process is started anew behind each exercise that took too long or killed it."""
    try:
        cells = _code_cells(path)
    except (ValueError, OSError) as error:
        return [Grade(student, path.stem, False, f"not a notebook: {error}", 0.0)]
    calls = [name for cell in cells for name in CHECK.findall(cell)]
    wanted = list(dict.fromkeys(reversed(calls)))[::-1]  # who calls check twice is judged by the last call
    if not wanted:
        return [Grade(student, path.stem, False, "no exercise in it: the cells with check(...) are gone", 0.0)]
    grades: list[Grade] = []
    with tempfile.TemporaryDirectory() as folder:
        while len(grades) < len(wanted):
            rest = wanted[len(grades) :]
            told, fault, took = _run(Path(folder), cells, rest, seconds, memory_bytes)
            grades += [Grade(student, **each) for each in told]
            if len(told) < len(rest):
                grades.append(Grade(student, rest[len(told)], False, fault, took))
    return grades


def _run(
    folder: Path, cells: list[str], names: list[str], seconds: float, memory_bytes: int
) -> tuple[list[dict[str, Any]], str, float]:
    """What a process said of the exercises in turn until it ended, why it ended, and how long the last one took."""
    job, results = folder / "job.json", folder / "results.jsonl"
    job.write_text(json.dumps({"cells": cells, "names": names, "memory_bytes": memory_bytes}), encoding="utf-8")
    results.write_text("", encoding="utf-8")
    settings = {"COMPRESSLAB_PROGRESS": "off", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "compresslab.course.grading", str(job), str(results)]
    process = subprocess.Popen(
        command, cwd=folder, env=os.environ | settings, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    seen, since, fault = 0, time.monotonic(), ""
    while process.poll() is None and not fault:
        time.sleep(0.05)
        lines = results.read_text(encoding="utf-8").count("\n")
        if lines > seen:
            seen, since = lines, time.monotonic()
        elif time.monotonic() - since > (seconds if seen else STARTING):
            fault = f"took more than {seconds:g} s" if seen else f"did not start within {STARTING:g} s"
    took = time.monotonic() - since
    _end(process)
    ready, *told = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()] or [None]
    return told, fault or f"ended the process (status {process.returncode})", took if ready else 0.0


def _end(process: subprocess.Popen) -> None:
    """Kill a process and what it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, 9)
        else:
            process.kill()
    process.wait()


def _code_cells(path: Path) -> list[str]:
    """The sources of a notebook's code cells."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _imports_of(lesson: str) -> dict[str, Any]:
    """What the setup cell of the course's own notebook of a lesson defines."""
    from compresslab.course.runner import notebook_paths

    space: dict[str, Any] = {"__name__": "__main__"}
    for path in notebook_paths():
        if path.stem[:2] == lesson:
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            (setup,) = ("".join(cell["source"]) for cell in cells if "setup" in cell["metadata"].get("tags", []))
            exec(compile(setup, "setup", "exec"), space)
    return space


def _answers(cells: list[str], names: list[str], space: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The exercises in turn with the answers that the cells define; an error in a cell is the answer's.

    Cells run one by one, as far as the answer that is asked for next; those of exercises that are not among ``names``
    give their definitions only, so one that hangs is left behind.
    """
    last = {name: number for number, cell in enumerate(cells) for name in CHECK.findall(cell)}
    for number, cell in enumerate(cells):
        asked = [name for name in dict.fromkeys(CHECK.findall(cell)) if name in names and last[name] == number]
        answers: dict[str, Any] = dict.fromkeys(asked)
        try:
            statements = ast.parse(cell).body
            runs = [each for each in statements if (asked and not _checked(each)) or isinstance(each, DEFINITIONS)]
            exec(compile(ast.Module(runs, []), f"cell {number + 1}", "exec"), space)
            for each in filter(_checked, statements):
                name, answer = each.value.args
                answers[name.value] = eval(compile(ast.Expression(answer), f"cell {number + 1}", "eval"), space)
        except Exception as error:
            answers = dict.fromkeys(asked, error)
        yield from ((name, answers[name]) for name in asked)


def _checked(statement: ast.stmt) -> bool:
    """Whether a statement is ``check("05.1", answer)``, not the solution's."""
    call = getattr(statement, "value", None)
    named = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "check"
    return isinstance(statement, ast.Expr) and named and len(call.args) == 2 and isinstance(call.args[0], ast.Constant)


def main(arguments: list[str]) -> None:
    """The process that runs one notebook's answers: job file in, one line of JSON for each exercise out."""
    job, results = map(Path, arguments)
    asked = json.loads(job.read_text(encoding="utf-8"))
    job.unlink()

    def say(line: dict[str, Any]) -> None:
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    from compresslab.course.exercises import exercises, verdict

    known = exercises()
    with contextlib.suppress(ImportError, ValueError):  # no such limit on Windows; macOS knows it and ignores it
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (asked["memory_bytes"], asked["memory_bytes"]))
    space = _imports_of(asked["names"][0].split(".")[0])
    say({"ready": True})
    start = time.monotonic()
    for name, answer in _answers(asked["cells"], asked["names"], space):
        if name not in known:
            passed, reason = False, "no such exercise in this version of the course"
        elif isinstance(answer, Exception):
            passed, reason = False, f"the cell stopped with {type(answer).__name__}: {answer}"
        else:
            passed, reason = verdict(known[name], answer)
        say({"exercise": name, "passed": passed, "reason": reason, "seconds": time.monotonic() - start})
        start = time.monotonic()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("files", nargs=2)
    main(parser.parse_args().files)
