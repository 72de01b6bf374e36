"""The notebooks as files: all of them are run, nothing is skipped, outputs are fresh, cells short, figures described."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from compresslab.course.exercises import exercises
from compresslab.course.notebooks import ACTIVE_OUTPUTS, read_source
from compresslab.course.progress import LESSONS
from compresslab.course.quiz import as_text

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
LONGEST_CELL = 12
ALLOWED_TAGS = {
    "exercise",
    "solution",
    "headline",
    "trap",
    "raises-exception",
    "nbval-ignore-output",
    "quiz",
    "setup",
    "slide",
}
SKIPS = ("nbval-skip", "skip-execution", "NBVAL_SKIP")
THOUSANDS_OF_WORDS = (1500, 4000)
MACHINE_PLACES = ("site-packages", str(ROOT), "/tmp/", "/home/")


def load(path: Path):
    return nbformat.read(path, as_version=4)


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def faults(notebook) -> list[str]:
    """Everything that is countably wrong with a notebook."""
    found = []
    cells = code(notebook)
    for number, cell in enumerate(cells, 1):
        where, tags = f"code cell {number}", set(cell.metadata.get("tags", []))
        lines = [line for line in cell.source.splitlines() if line.strip()]
        if not lines:
            found.append(f"{where}: empty")
        if len(lines) > LONGEST_CELL and not tags & {"solution", "setup"}:
            found.append(f"{where}: {len(lines)} lines, at most {LONGEST_CELL}")
        if cell.execution_count != number:
            found.append(f"{where}: execution count {cell.execution_count}, so the outputs are stale")
        if any(skip in tags or skip in cell.source for skip in SKIPS):
            found.append(f"{where}: skipped")
        if tags - ALLOWED_TAGS:
            found.append(f"{where}: unknown tags {sorted(tags - ALLOWED_TAGS)}")
        if any(line.lstrip().startswith(("%", "!")) for line in lines):
            found.append(f"{where}: a magic or a shell line, whose failure nobody sees")
        if set(cell.metadata) - {"tags", "jupyter", "mystnb"}:
            found.append(f"{where}: metadata {sorted(cell.metadata)}")
        found += [f"{where}: {fault}" for output in cell.outputs for fault in output_faults(output, tags)]
        if "solution" in tags and not cell.metadata.get("jupyter", {}).get("source_hidden"):
            found.append(f"{where}: a solution that is not folded")
    if cells and not lines_import_only_first(cells):
        found.append("imports outside the first code cell")
    if cells and cells[-1].source != "lesson_done = True":
        found.append("the last cell does not set lesson_done, which shows that the whole notebook ran")
    if "widgets" in notebook.metadata:
        found.append("widget state stored in the metadata")
    return found


def output_faults(output, tags) -> list[str]:
    found = []
    data = output.get("data", {})
    if output.output_type == "error" and "raises-exception" not in tags:
        found.append(f"an error in the output: {output.ename}")
    if output.get("name") == "stderr":
        found.append("something on stderr")
    found += [f"{kind} in the output" for kind in ACTIVE_OUTPUTS if kind in data]
    text = f"{output.get('text', '')}{data.get('text/plain', '')}"
    if "nbval-ignore-output" not in tags and any(place in text for place in MACHINE_PLACES):
        found.append("a path of the machine in an output that is compared")
    if "image/png" in data and len(output.metadata.get("image/png", {}).get("alt", "")) < 20:
        found.append("a figure without alternative text")
    return found


def lines_import_only_first(cells) -> bool:
    """Imports stand in the first cell; exercises and solutions may bring their own."""
    for cell in cells[1:]:
        if set(cell.metadata.get("tags", [])) & {"exercise", "solution"}:
            continue
        if any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(ast.parse(cell.source))):
            return False
    return True


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_notebook_is_sound(path):
    assert not faults(load(path))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_notebook_equals_its_source(path):
    source = read_source(FOLDER / "src" / f"{path.stem}.py")
    strip = lambda cell: (cell.id, cell.cell_type, cell.source, cell.metadata.get("tags", []))  # noqa: E731
    assert [strip(cell) for cell in load(path).cells] == [strip(cell) for cell in source.cells], "run make notebooks"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_prose(path):
    notebook = load(path)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    words = len(re.findall(r"\w+", re.sub(r"\$[^$]*\$|`[^`]*`|\([^)]*\)", " ", prose)))
    low, high = THOUSANDS_OF_WORDS
    assert low <= words <= high, f"{words} words"
    assert prose.startswith(f"# {path.stem[:2]} ")
    for image in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", prose):
        assert len(image[0]) >= 20, f"{image[1]} has no alternative text"
        assert (FOLDER / image[1]).is_file(), image[1]
    for target in re.findall(r"(?<!!)\[[^\]]+\]\(([^)#]+)\)", prose):
        assert "://" in target or (FOLDER / target).exists(), target


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_exercises_stand_unsolved_and_their_solutions_pass(path):
    """Each exercise: a stub that is not attempted, a folded solution that passes, both shown by the check's own words."""
    notebook = load(path)
    lesson = path.stem[:2]
    printed = "\n".join(
        output.get("text", "") for cell in code(notebook) for output in cell.outputs if output.output_type == "stream"
    )
    names = [name for name in exercises() if name.startswith(lesson)]
    assert len(names) >= 4
    for name in names:
        assert f"{name} not attempted" in printed, f"{name}: the stub should be unsolved"
        assert f"{name} passed" in printed, f"{name}: the solution should pass"
        assert f"{name} not yet" not in printed
    tags = [tag for cell in code(notebook) for tag in cell.metadata.get("tags", [])]
    assert tags.count("exercise") == tags.count("solution") == len(names)
    assert tags.count("headline") == 1
    (asked,) = (cell for cell in code(notebook) if "quiz" in cell.metadata.get("tags", []))
    assert [output["data"]["text/plain"] for output in asked.outputs] == [as_text(lesson)], "build the notebook again"


def test_the_default_run_collects_every_code_cell():
    """What ``make test`` runs is what is on disk: nbval makes one item of each code cell."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    collected = [line for line in run.stdout.splitlines() if ".ipynb" in line]
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    for path in PATHS:
        cells = sum(line.split("::")[0].endswith(path.name) for line in collected)
        assert cells == len(code(load(path))), path.name
    assert {line.split("::")[0] for line in collected} == {path.relative_to(ROOT).as_posix() for path in PATHS}


def test_lessons_are_numbered_in_order():
    assert [path.stem[:2] for path in PATHS] == list(LESSONS)[: len(PATHS)]
    assert {path.stem for path in (FOLDER / "src").glob("*.py")} == {path.stem for path in PATHS}


def test_each_fault_is_seen():
    cell = nbformat.v4.new_code_cell
    text = lambda name, words: nbformat.v4.new_output("stream", name=name, text=words)  # noqa: E731
    picture = nbformat.v4.new_output("display_data", data={"image/png": "", "text/html": ""})
    cells = [
        cell("x = 1\n" * 13, execution_count=1),
        cell("import os", execution_count=None),
        cell("%time x", execution_count=3, metadata={"tags": ["nbval-skip"], "execution": {}}, outputs=[picture]),
        cell("x", execution_count=4, metadata={"tags": ["solution"]}, outputs=[text("stderr", "Warning")]),
        cell("x", execution_count=5, outputs=[text("stdout", "written to /tmp/x")]),
        cell(
            "", execution_count=6, outputs=[nbformat.v4.new_output("error", ename="KeyError", evalue="", traceback=[])]
        ),
    ]
    cells[2].source = "x = 2\n!ls"
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"widgets": {}})
    for cell_with_shell in notebook.cells:
        if "!ls" in cell_with_shell.source:
            cell_with_shell.source = "x = '''\n!ls'''"
    found = "\n".join(faults(notebook))
    for word in (
        "13 lines", "execution count None", "skipped", "unknown tags", "shell line", "metadata ['execution'",
        "text/html in the output", "alternative text", "stderr", "not folded", "KeyError", "empty", "imports outside",
        "lesson_done", "widget state", "a path of the machine",
    ):  # fmt: skip
        assert word in found, word
