"""The README tells the truth: its table, its links, its commands and its code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from compresslab.course.progress import LESSONS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
TABLE = [
    [cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if re.match(r"\| \d\d ", line)
]


def test_the_table_has_every_lesson_and_every_notebook():
    assert [row[0] for row in TABLE] == [f"{number} {title}" for number, title in LESSONS.items()]
    on_disk = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    for lesson, _, notebook, package, tests in TABLE:
        match = re.fullmatch(r"\[(.+)\]\(notebooks/(.+)\.ipynb\)", notebook)
        if match is None:
            assert notebook == "planned"
            assert not [stem for stem in on_disk if stem.startswith(lesson[:2])]
            continue
        assert match[1] == match[2]
        on_disk.remove(match[1])
        assert (ROOT / package.strip("`").replace(".", "/")).is_dir()
        assert all((ROOT / path.strip("` ")).is_dir() for path in tests.split(","))
    assert not on_disk


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "data/README.md"], ids=str)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert "://" in target or (path.parent / target).exists(), target


def test_commands_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for text in (TEXT, (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")):
        for target in re.findall(r"`?make ([a-z]+)", text):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"
    cli = (ROOT / "compresslab/cli.py").read_text(encoding="utf-8")
    for command in re.findall(r"compresslab (doctor|progress|course|data|copy|advise|classroom)\b", TEXT):
        assert f'"{command}"' in cli
    assert "make test" in (ROOT / ".ci/run").read_text(encoding="utf-8")


def test_the_folders_of_the_house_exist():
    house = TEXT.split("## The house")[1].split("```")[1]
    folders = re.findall(r"^( *)([a-z]+)/", house, re.MULTILINE)
    for indent, name in folders:
        assert (ROOT / "compresslab" / name if indent else ROOT / name).is_dir(), name
    in_package = {path.name for path in (ROOT / "compresslab").iterdir() if path.is_dir() and path.name[0] not in "_."}
    assert in_package == {name for indent, name in folders if indent}


def test_the_quick_start_runs(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert "separable" in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "separable" in page
    assert "<script" not in page
