"""Widgets driven without a browser: what is set is what is said."""

from __future__ import annotations

import pytest

from compresslab.course.widgets import bit_explorer, bit_explorer_widget, explain_bits


@pytest.mark.parametrize(
    ("value", "fmt", "words"),
    [
        (1.0, "fp16", ["0 01111 0000000000", "15 - 15 = 0", "error 0"]),
        (-0.0625, "fp4_e2m1", ["bits 1 00 0", "value -0"]),
        (0.4, "fp4_e2m1", ["subnormal", "mantissa 0 + 1/2: value 0.5", "neighbours 0 and 1", "25 %"]),
        (1e9, "fp16", ["a special code: value inf"]),
        (1e9, "fp8_e4m3", ["value 448"]),
        (float("nan"), "fp4_e2m1", ["no code for it"]),
        (float("nan"), "bf16", ["special code: value nan"]),
        (0.0, "bf16", ["value 0", "error 0"]),
    ],
)
def test_explain(value, fmt, words):
    text = explain_bits(value, fmt)
    assert all(word in text for word in words), text


def test_explain_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="fmt='int8' is not a floating point format; choose one of fp32"):
        explain_bits(1.0, "int8")


def test_switching_bits_changes_the_number_and_back():
    box = bit_explorer_widget(1.0, "fp8_e4m3")
    (menu, number), row, text = box.children[0].children, box.children[1], box.children[2]
    assert [button.value for button in row.children] == [bit == "1" for bit in "00111000"]
    row.children[0].value = True
    assert number.value == -1.0
    assert "sign -" in text.value
    row.children[-1].value = True
    assert number.value == -1.125
    number.value = 3.3
    assert "".join(button.description for button in row.children) == "01000101"
    menu.value = "bf16"
    assert len(row.children) == 16
    assert "bf16" in text.value
    row.children[0].value = True
    assert number.value < 0
    assert [button.tooltip for button in row.children][:2] == ["sign bit", "exponent bit 7"]


def test_the_output_carries_the_text(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown.append(bundle))
    bit_explorer(2.0, "fp6_e3m2")
    assert shown[0]["text/plain"] == explain_bits(2.0, "fp6_e3m2")
