"""A learner's progress: one small local JSON file, written whole, never sent anywhere.

It lies at ``compresslab.workbench.files.cache_dir() / "progress.json"``; ``COMPRESSLAB_PROGRESS`` names another file,
or turns it off with the value ``off``.
"""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path

from filelock import FileLock, Timeout

from compresslab.workbench.files import atomic_write, cache_dir

__all__ = ["passed", "path", "read", "states", "summary"]

LESSONS = {
    "00": "Measure first",
    "01": "Precision formats",
    "02": "Post-training quantization",
    "03": "Quantization-aware training",
    "04": "Quantizing language models",
    "05": "Pruning",
    "06": "Structured pruning",
    "07": "Importance",
    "08": "Distillation",
    "09": "Low rank and shared weights",
    "10": "Mixture of experts",
    "11": "Export and deployment",
    "12": "Capstone",
}


def path() -> Path | None:
    """The file that keeps the progress, or None where it is turned off."""
    wanted = os.environ.get("COMPRESSLAB_PROGRESS", "")
    if wanted.lower() == "off":
        return None
    return Path(wanted).expanduser() if wanted else cache_dir() / "progress.json"


def read() -> dict[str, str]:
    """What was passed, and when: exercise or quiz question to ISO date. A broken file reads as empty."""
    file = path()
    try:
        data = json.loads(file.read_text(encoding="utf-8")) if file else {}
        return {str(name): str(when) for name, when in data.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def passed(name: str) -> None:
    """Note that an exercise or a quiz question was passed; a progress that cannot be written stops nobody."""
    file = path()
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock", timeout=5):
            done = read()
            done.setdefault(name, datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
            with atomic_write(file) as temporary:
                temporary.write_text(json.dumps(done, indent=1, sort_keys=True), encoding="utf-8")
    except (OSError, Timeout):
        return


def states() -> dict[str, tuple[int, int, str]]:
    """For each lesson that exists: tasks done, tasks in all, and "not started", "in progress" or "completed"."""
    from compresslab.course.exercises import exercises
    from compresslab.course.quiz import questions, quizzes

    tasks: dict[str, list[str]] = {}
    for name in exercises():
        tasks.setdefault(name[:2], []).append(name)
    for lesson in quizzes():
        tasks.setdefault(lesson, []).extend(f"{lesson} quiz {i + 1}" for i in range(len(questions(lesson))))
    done = read()
    result = {}
    for lesson in sorted(tasks):
        count, total = sum(name in done for name in tasks[lesson]), len(tasks[lesson])
        state = "completed" if count == total else "in progress" if count else "not started"
        result[lesson] = (count, total, state)
    return result


def summary() -> str:
    """One line for each lesson, as ``compresslab progress`` prints it."""
    width = max(len(title) for title in LESSONS.values())
    known = states()
    lines = []
    for lesson, title in LESSONS.items():
        if lesson in known:
            count, total, state = known[lesson]
            bar = "#" * round(10 * count / total)
            lines.append(f"{lesson}  {title:<{width}}  [{bar:<10}] {count:>2} of {total:<2}  {state}")
        else:
            lines.append(f"{lesson}  {title:<{width}}  planned")
    return "\n".join(lines)
