"""The command ``compresslab``: doctor, progress, course, data."""

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

    return int(run_notebooks(options.notebooks or notebook_paths()) > 0)


def _data(options: argparse.Namespace) -> int:
    from compresslab.workbench.data import load

    for name in options.names:
        print(f"loading {name} ...", flush=True)
        splits = load(name, progress=True)
        print(f"  ready: {len(splits.train):,} train, {len(splits.val):,} validation, {len(splits.test):,} test")
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
    course.set_defaults(run=_course)
    data = commands.add_parser("data", help="fetch and prepare data sets, for later without a network")
    data.add_argument(
        "names", nargs="+", help="glyphs, digits, cifar10, fashion-mnist, python-docs, tiny-shakespeare, ..."
    )
    data.set_defaults(run=_data)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except (OSError, ValueError) as error:
        print(f"compresslab: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
