"""The decision advisor: constraints in, ranked techniques out, each with what the course measured and what it will not do.

    compresslab advise --smaller 4 --faster 2 --hardware cpu --data few --time hours --architecture cnn

It is a table (``techniques.json``) and an order, no oracle: what does not fit the architecture, the data, the time or the
hardware is listed last with its reason; among the rest those come first that reach what is asked for, or most of it, with
the least work.
"""

from __future__ import annotations

import functools
import html
import json
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from compresslab.course.display import show_widget

if TYPE_CHECKING:
    import ipywidgets

__all__ = ["CHOICES", "Advice", "advise", "advisor", "advisor_widget", "explain_advice", "techniques"]

CHOICES = {
    "hardware": ("cpu", "gpu", "npu", "microcontroller"),
    "data": ("none", "few", "all"),
    "time": ("minutes", "hours", "days"),
    "architecture": ("cnn", "transformer", "llm", "rnn", "moe"),
}


@dataclass(frozen=True)
class Advice:
    """One technique, seen from a set of constraints."""

    technique: str
    lesson: str  # "02"
    fits: bool  # within architecture, data and time
    reaches: bool  # by itself, what is asked for in size and speed
    reasons: tuple[str, ...]  # what bars it; if nothing does, what it does not reach
    accuracy: str  # what it costs, in words
    will_not: str  # what it would not do
    evidence: tuple[str, ...]  # measured rows of benchmarks/results.md


@functools.cache
def techniques() -> tuple[dict[str, Any], ...]:
    """What the advisor knows of each technique."""
    text = (resources.files("compresslab.course") / "techniques.json").read_text(encoding="utf-8")
    return tuple(json.loads(text))


def advise(
    *,
    smaller: float = 4.0,
    faster: float = 1.0,
    hardware: str = "cpu",
    data: str = "few",
    time: str = "hours",
    architecture: str = "cnn",
) -> list[Advice]:
    """The techniques, the most fitting first.

    Args:
        smaller: how many times smaller the file shall be, at least 1.
        faster: above 1 if it shall be faster than now; how much is for you to measure.
        hardware: where it runs, as the other choices one of ``CHOICES``.
        data: none, a few hundred samples, or all of the training data.
        time: that may be spent.
        architecture: of the network.

    Raises:
        ValueError: a choice is unknown, or a factor is below 1.

    Example:
        >>> advise(smaller=4, faster=2, hardware="cpu", data="few", time="minutes", architecture="cnn")[0].technique
        'static 8-bit quantization (weights and activations)'
    """
    asked = {"hardware": hardware, "data": data, "time": time, "architecture": architecture}
    for name, value in asked.items():
        if value not in CHOICES[name]:
            raise ValueError(f"{name}={value!r} must be one of {', '.join(CHOICES[name])}")
    if not smaller >= 1 or not faster >= 1:
        raise ValueError(f"smaller={smaller} and faster={faster} must be at least 1, which is as it is now")
    ranked = []
    for place, known in enumerate(techniques()):
        barred, short = _barred(known, asked), _short(known, smaller, faster, hardware)
        work = CHOICES["time"].index(known["time"]), CHOICES["data"].index(known["data"])
        advice = Advice(
            known["name"], known["lesson"], not barred, not barred and not short, barred or short, known["accuracy"],
            known["not"], tuple(_told(each) for each in known["evidence"]),
        )  # fmt: skip
        ranked.append(
            ((bool(barred), len(barred), len(short), -min(known["size"] / smaller, 1.0), work, place), advice)
        )
    return [advice for _, advice in sorted(ranked, key=lambda each: each[0])]


def _barred(known: dict[str, Any], asked: dict[str, str]) -> tuple[str, ...]:
    """Why a technique cannot be used at all."""
    reasons = []
    if asked["architecture"] not in known["architectures"]:
        reasons.append(f"made for {', '.join(known['architectures'])}")
    for name, unit in (("data", "training data"), ("time", "of work")):
        if CHOICES[name].index(asked[name]) < CHOICES[name].index(known[name]):
            reasons.append(f"needs {known[name]} {unit}")
    return tuple(reasons)


def _short(known: dict[str, Any], smaller: float, faster: float, hardware: str) -> tuple[str, ...]:
    """What a technique does not reach by itself."""
    reasons = []
    if known["size"] < smaller:
        reasons.append(f"about {known['size']:g} times smaller: combine it")
    if faster > 1 and hardware not in known["faster_on"]:
        reasons.append(f"not faster on a {hardware}")
    return tuple(reasons)


def _told(evidence: dict[str, str]) -> str:
    return f"{evidence['what']}: {evidence['ours']} ({evidence['against']})"


def explain_advice(*, most: int = 4, **constraints: Any) -> str:
    """``advise`` in words: the best with their evidence, then what is barred and why."""
    found = advise(**constraints)
    fitting = [each for each in found if each.fits]
    lines = [] if fitting else ["Nothing fits: allow more data or time."]
    for number, each in enumerate(fitting[:most], 1):
        verdict = "reaches it" if each.reaches else "; ".join(each.reasons)
        lines += [f"{number}. {each.technique} (lesson {each.lesson}): {verdict}"]
        lines += [f"   accuracy: {each.accuracy}", *(f"   measured: {told}" for told in each.evidence)]
        lines += [f"   but: {each.will_not}"]
    if fitting and not fitting[0].reaches:
        lines.append(
            "No single one reaches it. Combine them in this order: structure, then training, then bits (lesson 12)."
        )
    barred = [f"   {each.technique}: {'; '.join(each.reasons)}" for each in found if not each.fits]
    lines += ["not here:", *barred] if barred else []
    return "\n".join(lines)


def advisor(**constraints: Any) -> None:
    """Show the advisor: menus for the constraints, and the advice below."""
    show_widget(advisor_widget(**constraints), explain_advice(**constraints))


def advisor_widget(**constraints: Any) -> ipywidgets.Widget:
    """The advisor as a widget."""
    import ipywidgets as widgets

    set_ = {"smaller": 4.0, "faster": 1.0, "hardware": "cpu", "data": "few", "time": "hours", "architecture": "cnn"}
    set_ |= constraints
    style = {"description_width": "7em"}
    fields: dict[str, Any] = {
        name: widgets.BoundedFloatText(
            value=set_[name], min=1, max=1000, step=0.5, description=f"{name}, x", style=style
        )
        for name in ("smaller", "faster")
    }
    fields |= {
        name: widgets.Dropdown(options=values, value=set_[name], description=name, style=style)
        for name, values in CHOICES.items()
    }
    text = widgets.HTML()

    def changed(_: dict | None = None) -> None:
        words = explain_advice(**{name: field.value for name, field in fields.items()})
        text.value = f'<pre role="status" aria-live="polite" style="white-space: pre-wrap; word-break: normal">{html.escape(words)}</pre>'

    for field in fields.values():
        field.observe(changed, names="value")
    changed()
    layout = widgets.Layout(grid_template_columns="21em 21em")
    return widgets.VBox([widgets.GridBox(list(fields.values()), layout=layout), text])
