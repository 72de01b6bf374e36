"""data/coverage.csv: every item of the source documents and every topic of the syllabus has its place.

The course grew out of five short texts on compression (D0 a skill sheet, D1 a tutorial, D2 an expert's notes, D3 a
documentation page, D4 a learning site). Each numbered item of theirs, and each topic of our syllabus (S00 to S12), is
done, planned for a lesson, or page furniture that teaches nothing.
"""

from __future__ import annotations

import csv
import importlib
import re
from collections import Counter
from pathlib import Path

import pytest

from compresslab.course.exercises import exercises
from compresslab.course.progress import LESSONS

ROOT = Path(__file__).parents[1]
with open(ROOT / "data" / "coverage.csv", encoding="utf-8", newline="") as file:
    ROWS = list(csv.DictReader(file))
ON_DISK = {path.stem[:2] for path in (ROOT / "notebooks").glob("*.ipynb")}


def numbers(text: str) -> list[int]:
    """ "1-3, 5" is 1, 2, 3, 5."""
    ends = [part.split("-") for part in text.split(",")]
    return [number for end in ends for number in range(int(end[0]), int(end[-1]) + 1)]


# The numbers that the documents use; where an item has parts, they are listed beside it.
DOCUMENTS = {
    "D0": "1-19",
    "D1": "1-15",
    "D2": "1-2, 4-8, 13-15, 19-21, 23-25, 27-28",
    "D3": "1-9, 12-16, 18-23, 27-28, 30-31, 33-34, 36-47",
    "D4": "1-4, 7-8, 12-17, 19-26, 28-31, 34",
}
PARTS = {
    "D0-4": "abcdef", "D0-5": "abcde", "D2-3": "abcde", "D2-26": "abc", "D2-29": "abcd", "D2-30": "abcde",
    "D3-35": "abcd", "D3-45": "abc", "D3-48": "abc", "D4-32": "abcde", "D4-33": "abcde",
}  # fmt: skip
TOPICS = dict(zip(LESSONS, (16, 9, 12, 9, 15, 12, 11, 11, 12, 9, 7, 11, 8), strict=True))


def test_no_item_is_missing_and_none_is_there_twice():
    expected = {f"{document}-{number}" for document, text in DOCUMENTS.items() for number in numbers(text)}
    expected |= {f"{item}{part}" for item, parts in PARTS.items() for part in parts}
    expected |= {f"S{lesson}-{number}" for lesson, count in TOPICS.items() for number in range(1, count + 1)}
    found = Counter(row["item"] for row in ROWS)
    assert set(found) == expected
    assert set(found.values()) == {1}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["item"])
def test_a_row_tells_the_truth(row):
    assert row["status"] in ("done", "planned", "furniture")
    assert len(row["topic"].split()) >= 1
    if row["status"] == "furniture":
        assert row["item"].startswith("D")
        return
    assert row["lesson"] in {*LESSONS, "course"}
    if row["status"] == "planned":
        assert row["lesson"] not in ON_DISK, "its lesson is there: say where it is taught"
        return
    assert row["where"]
    assert (ROOT / row["test"]).is_file(), row["test"]
    if row["exercise"]:
        assert row["exercise"] in exercises()
    if row["where"].startswith("compresslab."):
        module, _, name = row["where"].rpartition(".")
        assert hasattr(importlib.import_module(module), name), row["where"]
    else:
        lesson, section = re.fullmatch(r"notebook (\d\d), (.+)", row["where"]).groups()
        assert lesson in ON_DISK
        assert section


def test_the_readme_counts_what_the_table_holds():
    done = sum(row["status"] == "done" for row in ROWS)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{done} of {sum(row['status'] != 'furniture' for row in ROWS)}" in text
