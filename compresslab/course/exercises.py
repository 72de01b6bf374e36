"""Exercises that answer at once: ``check("00.1", answer)`` prints one line and never raises.

The line says "not attempted", "not yet" with the first reason in words, or "passed". A check is a function that takes
the learner's answer and raises ``NotYet(reason)``; the modules of ``compresslab.course.lessons`` hold them.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from compresslab.course import lessons, progress

__all__ = ["Exercise", "NotAttempted", "NotYet", "call", "check", "exercise", "exercises", "expect_number", "verdict"]


class NotYet(Exception):
    """The answer is not right yet; the text is the first reason, in words."""


class NotAttempted(Exception):
    """The stub is as it was."""


@dataclass(frozen=True)
class Exercise:
    """One exercise of one lesson."""

    name: str  # "00.1": lesson, then number
    title: str
    minutes: int
    difficulty: int  # 1 to 3
    verify: Callable[[Any], str | None]  # raises NotYet; may return a remark for those who passed


_registry: dict[str, Exercise] = {}


def exercise(name: str, *, title: str, minutes: int, difficulty: int) -> Callable:
    """Register the decorated function as the check of an exercise."""

    def register(verify: Callable[[Any], str | None]) -> Callable[[Any], str | None]:
        _registry[name] = Exercise(name, title, minutes, difficulty, verify)
        return verify

    return register


def exercises() -> dict[str, Exercise]:
    """Every exercise of the course by name, in the order of the lessons."""
    for module in pkgutil.iter_modules(lessons.__path__):
        importlib.import_module(f"{lessons.__name__}.{module.name}")
    return dict(sorted(_registry.items()))


def check(name: str, answer: Any, *, record: bool = True) -> None:
    """Print whether ``answer`` solves the exercise; never raises, whatever the answer does.

    Args:
        name: of the exercise, as its heading gives it: "00.1".
        answer: what the exercise asks for, a value or a function.
        record: note a pass in the learner's progress (the folded solutions do not).

    Example:
        >>> check("00.1", None)
        00.1 not attempted: fill in the stub, then run its cell again
    """
    found = exercises().get(name)
    if found is None:
        print(f"{name} is not an exercise of this course; the names are {', '.join(exercises())}")
        return
    passed, said = verdict(found, answer)
    print(f"{name} {said}")
    if passed and record:
        progress.passed(name)


def verdict(asked: Exercise, answer: Any) -> tuple[bool, str]:
    """Whether ``answer`` solves an exercise, and the line that says so; never raises, whatever the answer does."""
    try:
        if answer is None or answer is Ellipsis:
            raise NotAttempted
        remark = asked.verify(answer)
    except NotAttempted:
        return False, "not attempted: fill in the stub, then run its cell again"
    except NotYet as reason:
        return False, f"not yet: {reason}"
    except Exception as error:
        return False, f"not yet: your answer cannot be used here ({type(error).__name__}: {error})"
    return True, f"passed{f': {remark}' if remark else ''}"


def call(function: Any, *arguments: Any, what: str = "your function") -> Any:
    """Call the learner's function; a stub is ``NotAttempted``, an error in it ``NotYet`` with the error in words.

    Raises:
        NotAttempted: the function returned None or Ellipsis, or raised NotImplementedError.
        NotYet: it is not callable, or raised something else.
    """
    if not callable(function):
        raise NotYet(f"{what} must be a function, this is a {type(function).__name__}")
    try:
        result = function(*arguments)
    except NotImplementedError as error:
        raise NotAttempted from error
    except Exception as error:
        raise NotYet(f"{what} stopped with {type(error).__name__}: {error}") from error
    if result is None or result is Ellipsis:
        raise NotAttempted
    return result


def expect_number(
    value: Any, wanted: float, *, what: str, tolerance: float = 1e-6, wrong: Mapping[float, str] | None = None
) -> None:
    """Pass if ``value`` is ``wanted`` within a relative tolerance; otherwise say why not.

    Args:
        value: the learner's number (an int, a float, or a tensor or array with one element).
        wanted: the right number.
        what: what the number is, for the message: "the share of the time".
        tolerance: relative.
        wrong: numbers that a typical mistake gives, with the reason to print for each.

    Raises:
        NotYet: the number is not right; known mistakes get their own message.

    Example:
        >>> expect_number(8, 32, what="the size", wrong={8: "that is the number of weights; each takes 4 bytes"})
        Traceback (most recent call last):
        ...
        compresslab.course.exercises.NotYet: that is the number of weights; each takes 4 bytes
    """
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise NotYet(f"{what} should be a number, this is a {type(value).__name__}") from error
    if math.isclose(number, wanted, rel_tol=tolerance, abs_tol=tolerance * 1e-6):
        return
    for mistake, reason in (wrong or {}).items():
        if math.isclose(number, mistake, rel_tol=tolerance, abs_tol=tolerance * 1e-6):
            raise NotYet(reason)
    if not math.isfinite(number):
        raise NotYet(f"{what} is {number}; it should be finite")
    size = "large" if number > wanted else "small"
    raise NotYet(f"{what} is {number:.6g}, which is too {size}")
