"""Widgets, each with a plain function that says the same in text: for screen readers, GitHub and pages without a kernel."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from compresslab.course.display import show_widget

if TYPE_CHECKING:
    import ipywidgets

__all__ = ["bit_explorer", "bit_explorer_widget", "explain_bits"]


def explain_bits(value: float, fmt: str) -> str:
    """How a floating point format holds a number: its bits, what they mean, its neighbours and the error.

    Args:
        value: any number.
        fmt: a name from ``compresslab.formats.FLOATS``.

    Raises:
        ValueError: no such format.

    Example:
        >>> print(explain_bits(3.3, "fp8_e4m3"))
        3.3 in fp8_e4m3: bits 0 1000 101
        sign +, exponent 8 - 7 = 1, mantissa 1 + 5/8: value 3.25
        neighbours 3 and 3.5, error -0.05 (1.5 %)
    """
    import torch

    from compresslab.formats import FLOATS, bit_string, decode, encode

    if fmt not in FLOATS:
        raise ValueError(f"fmt={fmt!r} is not a floating point format; choose one of {', '.join(FLOATS)}")
    spec, x = FLOATS[fmt], torch.tensor(float(value), dtype=torch.float64)
    if x.isnan() and spec.special == "none":
        return f"nan in {fmt}: the format has no code for it"
    code = int(encode(x, spec))
    held = float(decode(torch.tensor(code), spec))
    lines = [f"{value:g} in {fmt}: bits {bit_string(code, spec)}"]
    if held != held or held in (float("inf"), -float("inf")):
        lines.append(f"a special code: value {held}")
        return "\n".join(lines)
    stored = code >> spec.mantissa_bits & 2**spec.exponent_bits - 1
    mantissa, whole = code & 2**spec.mantissa_bits - 1, 2**spec.mantissa_bits
    sign = "-" if code >> (spec.bits - 1) else "+"
    if stored:
        exponent, lead = f"{stored} - {spec.bias} = {stored - spec.bias}", "1"
    else:
        exponent, lead = f"0, so subnormal: {spec.min_exponent}", "0"
    lines.append(f"sign {sign}, exponent {exponent}, mantissa {lead} + {mantissa}/{whole}: value {held:.8g}")
    magnitude = code & 2 ** (spec.bits - 1) - 1
    negative = code - magnitude
    near = [negative | other for other in (magnitude - 1, magnitude + 1) if 0 <= other < 2 ** (spec.bits - 1)]
    values = sorted(float(decode(torch.tensor(other), spec)) for other in near)
    error = held - float(value)
    share = f" ({100 * abs(error / value):.2g} %)" if value else ""
    lines.append(f"neighbours {' and '.join(f'{v:.8g}' for v in values)}, error {error:.4g}{share}")
    return "\n".join(lines)


def bit_explorer(value: float = 3.3, fmt: str = "fp8_e4m3") -> None:
    """Show the bit explorer: choose a format, type a number or switch its bits, and read what becomes of it."""
    show_widget(bit_explorer_widget(value, fmt), explain_bits(value, fmt))


def bit_explorer_widget(value: float = 3.3, fmt: str = "fp8_e4m3") -> ipywidgets.Widget:
    """The bit explorer as a widget: a menu of formats, a number field, a toggle button for each bit, and the text."""
    import ipywidgets as widgets
    import torch

    from compresslab.formats import FLOATS, decode, encode

    small = [name for name, spec in FLOATS.items() if spec.bits <= 19]
    menu = widgets.Dropdown(options=small, value=fmt, description="format")
    number = widgets.FloatText(value=value, description="number", step=0.1)
    text = widgets.HTML()
    row = widgets.HBox(layout=widgets.Layout(flex_flow="row wrap"))
    state = {"busy": False}

    def name_of(position: int) -> str:
        spec = FLOATS[menu.value]
        if position == 0:
            return "sign bit"
        if position <= spec.exponent_bits:
            return f"exponent bit {spec.exponent_bits - position}"
        return f"mantissa bit {spec.bits - 1 - position}"

    def show(code: int) -> None:
        """Set the buttons to a code; they are made anew when the number of bits changes."""
        spec = FLOATS[menu.value]
        colors = ["danger"] + ["warning"] * spec.exponent_bits + ["info"] * spec.mantissa_bits
        state["busy"] = True
        if len(row.children) != spec.bits or state.get("format") != menu.value:
            layout = widgets.Layout(width="2.2em", padding="0")
            buttons = [
                widgets.ToggleButton(button_style=color, tooltip=name_of(i), layout=layout)
                for i, color in enumerate(colors)
            ]
            for button in buttons:
                button.observe(switched, names="value")
            row.children, state["format"] = buttons, menu.value
        for button, bit in zip(row.children, f"{code:0{spec.bits}b}", strict=True):
            button.value, button.description = bit == "1", bit
        state["busy"] = False

    def switched(_: dict) -> None:
        if state["busy"]:
            return
        code = int("".join("1" if button.value else "0" for button in row.children), 2)
        state["busy"] = True
        number.value = float(decode(torch.tensor(code), FLOATS[menu.value]))
        state["busy"] = False
        refresh()

    def refresh(_: dict | None = None) -> None:
        if state["busy"]:
            return
        spec, x = FLOATS[menu.value], torch.tensor(number.value, dtype=torch.float64)
        if not (x.isnan() and spec.special == "none"):
            show(int(encode(x, spec)))
        words = html.escape(explain_bits(number.value, menu.value))
        text.value = f'<pre role="status" aria-live="polite">{words}</pre>'

    menu.observe(refresh, names="value")
    number.observe(refresh, names="value")
    refresh()
    return widgets.VBox([widgets.HBox([menu, number]), row, text])
