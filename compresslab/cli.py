"""The command ``compresslab``: doctor, progress, course, data, copy, advise, classroom."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import compresslab

__all__ = ["main"]


def _doctor(options: argparse.Namespace) -> int:
    from compresslab.course.doctor import examine, report

    findings = examine()
    print(report(findings, brief=options.brief))
    return int(any(finding.level == "FAIL" for finding in findings))


def _progress(options: argparse.Namespace) -> int:
    from compresslab.course import progress

    print(progress.summary())
    print(f"kept in {progress.path() or 'no file: COMPRESSLAB_PROGRESS=off'}")
    return 0


def _course(options: argparse.Namespace) -> int:
    from compresslab.course.runner import notebook_paths, run_notebooks

    return int(run_notebooks(options.notebooks or notebook_paths(), jobs=options.jobs) > 0)


def _data(options: argparse.Namespace) -> int:
    from compresslab.workbench.data import load

    for name in options.names:
        print(f"loading {name} ...", flush=True)
        splits = load(name, progress=True)
        print(f"  ready: {len(splits.train):,} train, {len(splits.val):,} validation, {len(splits.test):,} test")
    return 0


def _copy(options: argparse.Namespace) -> int:
    from compresslab.course.copying import algorithms, copy_algorithm

    if options.name is None:
        for lesson, names in algorithms().items():
            print(f"{lesson}: {' '.join(names)}")
        return 0
    copied = copy_algorithm(options.name, options.into)
    files = sorted(path.name for path in copied.iterdir()) if copied.is_dir() else [copied.name]
    print(f"copied to {copied}: {', '.join(files)}")
    return 0


def _advise(options: argparse.Namespace) -> int:
    from compresslab.course.advisor import explain_advice

    names = ("smaller", "faster", "hardware", "data", "time", "architecture")
    print(explain_advice(**{name: getattr(options, name) for name in names}))
    return 0


def _classroom_build(options: argparse.Namespace) -> int:
    from compresslab.course.classroom import build_classroom

    files = build_classroom(options.out, students=options.students, lessons=options.lessons)
    print(f"{len(files)} files in {options.out}: student, solution, guide, slides, homework")
    return 0


def _classroom_grade(options: argparse.Namespace) -> int:
    from compresslab.course.grading import grade, write_grades

    grades = grade(
        options.submissions, seconds=options.seconds, memory_bytes=options.memory * 1024**3, jobs=options.jobs
    )
    write_grades(grades, options.out)
    students = {each.student for each in grades}
    print(
        f"{sum(each.passed for each in grades)} of {len(grades)} exercises of {len(students)} students passed: {options.out}"
    )
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="compresslab", description=__doc__)
    parser.add_argument("--version", action="version", version=f"compresslab {compresslab.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    doctor = commands.add_parser("doctor", help="what this machine can do, and what to mend")
    doctor.add_argument("--brief", action="store_true", help="warnings and failures only")
    doctor.set_defaults(run=_doctor)
    commands.add_parser("progress", help="which exercises and quiz questions you passed").set_defaults(run=_progress)
    course = commands.add_parser("course", help="run the notebooks without a browser and print a table")
    course.add_argument("notebooks", nargs="*", type=Path, help="paths; all of them by default")
    course.add_argument("--jobs", type=int, default=1, help="how many at a time, 1 or more (1)")
    course.set_defaults(run=_course)
    data = commands.add_parser("data", help="fetch and prepare data sets, for later without a network")
    data.add_argument(
        "names", nargs="+", help="glyphs, digits, cifar10, fashion-mnist, python-docs, tiny-shakespeare, ..."
    )
    data.set_defaults(run=_data)
    copy = commands.add_parser("copy", help="an algorithm of a lesson as files of its own, for another project")
    copy.add_argument("name", nargs="?", help="gptq, quantization.gptq, ...; without a name, all there are")
    copy.add_argument("--into", type=Path, default=Path(), metavar="FOLDER", help="an existing folder; here by default")
    copy.set_defaults(run=_copy)
    advise = commands.add_parser("advise", help="which techniques fit your constraints, with what was measured")
    advise.add_argument("--smaller", type=float, default=4.0, metavar="X", help="times smaller the file shall be")
    advise.add_argument("--faster", type=float, default=1.0, metavar="X", help="above 1 if it shall be faster")
    advise.add_argument("--hardware", default="cpu", help="cpu, gpu, npu or microcontroller")
    advise.add_argument("--data", default="few", help="none, few or all of the training data")
    advise.add_argument("--time", default="hours", help="minutes, hours or days")
    advise.add_argument("--architecture", default="cnn", help="cnn, transformer, llm, rnn or moe")
    advise.set_defaults(run=_advise)
    room = commands.add_parser("classroom", help="notebooks, guides, slides and homework for a class; grading")
    rooms = room.add_subparsers(required=True, metavar="what")
    build = rooms.add_parser("build", help="write all that a class needs into a new folder")
    build.add_argument("out", type=Path)
    build.add_argument("--students", type=int, default=0, help="sheets of homework, each with its own numbers")
    build.add_argument("--lessons", nargs="*", default=(), metavar="NN", help="all by default")
    build.set_defaults(run=_classroom_build)
    grade = rooms.add_parser("grade", help="grade a folder of student/NN_name.ipynb into a CSV")
    grade.add_argument("submissions", type=Path)
    grade.add_argument("-o", "--out", type=Path, default=Path("grades.csv"))
    grade.add_argument("--seconds", type=float, default=30.0, help="limit for one exercise")
    grade.add_argument("--memory", type=int, default=4, help="limit for one notebook, GiB")
    grade.add_argument("--jobs", type=int, default=1, help="notebooks at the same time")
    grade.set_defaults(run=_classroom_grade)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except (OSError, ValueError) as error:
        print(f"compresslab: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
