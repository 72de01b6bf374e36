"""What a class gets: versions of the notebooks, guides, slides, homework with its key; all or nothing."""

from __future__ import annotations

import csv
import re

import nbformat
import pytest

from compresslab.course import classroom
from compresslab.course.classroom import build_classroom, guide, messages, plan_of, solution_version, student_version
from compresslab.course.exercises import exercises
from compresslab.course.homework import LESSONS_WITH_HOMEWORK, problem, sheet
from compresslab.course.progress import LESSONS
from compresslab.course.runner import notebook_paths
from compresslab.course.slides import slides

PATHS = {path.stem[:2]: path for path in notebook_paths()}
READ = {lesson: nbformat.read(path, as_version=4) for lesson, path in PATHS.items()}


def tags(notebook) -> list[str]:
    return [tag for cell in notebook.cells for tag in cell.metadata.get("tags", [])]


@pytest.mark.parametrize("lesson", PATHS)
def test_students_get_stubs_and_no_solutions(lesson):
    given = nbformat.writes(READ[lesson])
    made = student_version(READ[lesson])
    assert nbformat.writes(READ[lesson]) == given
    nbformat.validate(made)
    assert "solution" not in tags(made) and tags(made).count("exercise") == tags(READ[lesson]).count("exercise") >= 4
    source = "\n".join(cell.source for cell in made.cells if cell.cell_type == "code")
    assert "record=False" not in source and not re.search(r"def \w+_solution", source)
    assert all(not cell.outputs and cell.execution_count is None for cell in made.cells if cell.cell_type == "code")


@pytest.mark.parametrize("lesson", PATHS)
def test_students_notebooks_use_nothing_that_a_solution_defined(lesson):
    solutions = "\n".join(cell.source for cell in READ[lesson].cells if "solution" in cell.metadata.get("tags", []))
    rest = "\n".join(cell.source for cell in student_version(READ[lesson]).cells if cell.cell_type == "code")
    for name in re.findall(r"^def (\w+)|^(\w+) =", solutions, re.MULTILINE):
        assert not re.search(rf"\b{''.join(name)}\b", rest), name


def test_solutions_are_unfolded_and_keep_their_outputs():
    made = solution_version(READ["05"])
    shown = [cell for cell in made.cells if "solution" in cell.metadata.get("tags", [])]
    assert (
        len(shown) == 5
        and not any("jupyter" in cell.metadata for cell in shown)
        and all(cell.outputs for cell in shown)
    )


@pytest.mark.parametrize("lesson", PATHS)
def test_plans_fit_their_minutes_and_the_notebook(lesson):
    plan = plan_of(lesson)
    headings = [
        line for cell in READ[lesson].cells if cell.cell_type == "markdown" for line in cell.source.splitlines()
    ]
    numbered = {match[1] for line in headings if (match := re.match(r"## (\d+)\. ", line))}
    for minutes in ("45", "90"):
        assert sum(step["minutes"] for step in plan[minutes]) == int(minutes)
        for step in plan[minutes]:
            assert set(re.findall(r"\d+", step["section"])) <= numbered | {name.split(".")[1] for name in exercises()}
            assert len(step["do"].split()) >= 4
    assert len(plan["ask"]) >= 4 and all(item["question"].endswith("?") for item in plan["ask"])
    assert all(len(item["listen_for"].split()) >= 8 for item in plan["ask"])


@pytest.mark.parametrize("lesson", PATHS)
def test_a_guide_holds_what_a_teacher_needs(lesson):
    text = guide(lesson)
    own = {name: asked for name, asked in exercises().items() if name.startswith(lesson)}
    for name, asked in own.items():
        assert f"### {name} {asked.title}" in text
        assert len(messages(asked)) >= 2, name
    assert "## 45 minutes" in text and "## 90 minutes" in text and "## Quiz, with answers" in text


def test_messages_are_those_that_the_check_prints():
    found = messages(exercises()["05.1"])
    assert "True means stays: the highest scores must be True" in found
    assert any("..." in message for message in found)


@pytest.mark.parametrize("lesson", PATHS)
def test_slides_are_one_file_with_every_tagged_figure(lesson):
    page = slides(READ[lesson])
    tagged = sum("slide" in cell.metadata.get("tags", []) for cell in READ[lesson].cells)
    assert page.count("<section") == 1 + tagged + tags(READ[lesson]).count("quiz") * page.count("<details>")
    assert tagged >= 3 and "http://" not in page and 'src="data:image/png' in page
    assert not re.search(r"<(script|link)[^>]+(src|href)=", page)


def test_slides_of_what_shows_nothing():
    bare = student_version(READ["05"])
    with pytest.raises(ValueError, match="is tagged slide but shows nothing; run the notebook"):
        slides(bare)
    bare.cells = [cell for cell in bare.cells if "slide" not in cell.metadata.get("tags", [])]
    with pytest.raises(ValueError, match="no cell of this notebook is tagged slide"):
        slides(bare)


def test_homework_differs_and_its_key_answers_it():
    assert set(LESSONS_WITH_HOMEWORK) == set(LESSONS)
    for lesson in LESSONS_WITH_HOMEWORK:
        texts = {problem(lesson, variant).text for variant in range(1, 41)}
        assert len(texts) >= 12, lesson
        assert problem(lesson, 3) == problem(lesson, 3)
    # 24 channels of 48 x 48, and so on: worked by hand from the text of each sheet
    assert problem("09", 1).answer == 341  # 384 * 3072 / 3456 = 341.33
    assert problem("05", 1).answer == pytest.approx(0.9 * (1 - 0.7**3))  # step 240 of 800
    assert problem("02", 1).answer == 43  # 255 * 1.6 / 9.5 = 42.9
    assert problem("07", 1).answer == pytest.approx(0.5 * (3 * 2.25 + 0.25) / 4 * 0.25)
    assert sheet(1).count("Answer:") == len(LESSONS_WITH_HOMEWORK)
    with pytest.raises(ValueError, match="lesson='99', variant=1: variant must be at least 1"):
        problem("99", 1)


def test_a_classroom_is_written_whole(tmp_path):
    files = build_classroom(tmp_path / "class", students=2, lessons=["00", "05"])
    names = [path.relative_to(tmp_path / "class").as_posix() for path in files]
    assert names == [
        "guide/00_measure_first.md", "guide/05_pruning.md", "homework/key.csv", "homework/sheet_001.md",
        "homework/sheet_002.md", "slides/00_measure_first.html", "slides/05_pruning.html",
        "solution/00_measure_first.ipynb", "solution/05_pruning.ipynb", "student/00_measure_first.ipynb",
        "student/05_pruning.ipynb",
    ]  # fmt: skip
    with (tmp_path / "class/homework/key.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["sheet"], row["lesson"]) for row in rows] == [("1", "00"), ("1", "05"), ("2", "00"), ("2", "05")]
    with pytest.raises(ValueError, match="must be a new or an empty folder, so that nothing is overwritten"):
        build_classroom(tmp_path / "class")
    with pytest.raises(ValueError, match="there is no lesson '77'"):
        build_classroom(tmp_path / "other", lessons=["77"])
    with pytest.raises(ValueError, match="students=-1 must be 0 or more"):
        build_classroom(tmp_path / "other", students=-1)


def test_nothing_is_left_of_a_classroom_that_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(classroom, "slides", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build_classroom(tmp_path / "class", lessons=["05"])
    assert list(tmp_path.iterdir()) == []
