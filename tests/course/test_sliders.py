"""The sliders: the text is right, and moving the slider or typing the number changes both and the text."""

from __future__ import annotations

import pytest
import torch

from compresslab.course.sliders import (
    explain_temperature,
    explain_threshold,
    slider_widget,
    temperature_slider,
    threshold_slider,
)


def test_a_temperature_by_hand():
    # exp(2 / 2), 1, 1: e / (e + 2) = 0.576, and 0.212 twice; all of it at T = 1 is in the docstring
    text = explain_temperature(torch.tensor([0.0, 2.0, 0.0]), ("x", "y", "z"), 2.0, count=3)
    assert text == "T = 2: y 0.576, x 0.212, z 0.212\nentropy 0.98 of 1.10 nats"
    assert "y 1.000, x 0.000" in explain_temperature(torch.tensor([0.0, 2e6, 0.0]), "xyz", 0.5)


def test_a_threshold_by_hand():
    weights = {"a": torch.tensor([0.5, -0.1]), "b": torch.tensor([[0.2], [-3.0]])}
    assert explain_threshold(weights, 0.75) == (
        "75 % of 4 weights: the smallest 3, up to a magnitude of 0.5\na: 100 % gone\nb: 50 % gone"
    )
    assert explain_threshold(weights, 0.0).startswith("0 % of 4 weights: the smallest 0, up to a magnitude of 0\n")


def test_what_they_refuse():
    with pytest.raises(ValueError, match=r"temperature=0 must be above 0, and 2 names must be as many as 2 logits"):
        explain_temperature(torch.zeros(2), "ab", 0)
    with pytest.raises(ValueError, match="3 names must be as many as 2 logits"):
        explain_temperature(torch.zeros(2), "abc", 1.0)
    with pytest.raises(ValueError, match=r"sparsity=1\.5"):
        explain_threshold({"a": torch.ones(2)}, 1.5)


def test_slider_and_number_go_together():
    box = slider_widget("share", lambda value: f"<{value:.2f}>", value=0.5, low=0, high=1, step=0.1)
    (number, slider), text = box.children[0].children, box.children[1]
    assert number.description == "share"
    slider.value = 0.7
    assert number.value == 0.7
    assert "&lt;0.70&gt;" in text.value
    number.value = 0.2
    assert slider.value == 0.2
    assert "&lt;0.20&gt;" in text.value


@pytest.mark.parametrize(
    ("show", "text"),
    [
        (lambda: temperature_slider(torch.tensor([1.0, 0.0]), "ab", 2.0), "T = 2: a 0.622, b 0.378"),
        (lambda: threshold_slider({"a": torch.arange(4.0)}, 0.5), "50 % of 4 weights: the smallest 2"),
    ],
)
def test_the_output_carries_the_text(show, text, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown.append(bundle))
    show()
    assert shown[0]["text/plain"].startswith(text)
    assert "application/vnd.jupyter.widget-view+json" in shown[0]
