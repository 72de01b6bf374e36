"""Two sliders with a number field beside each, and the text that both stand for: temperature and threshold."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from compresslab.course.display import show_widget

if TYPE_CHECKING:
    import ipywidgets
    from torch import Tensor

__all__ = [
    "explain_temperature",
    "explain_threshold",
    "slider_widget",
    "temperature_slider",
    "threshold_slider",
]


def explain_temperature(logits: Tensor, names: Sequence[str], temperature: float, *, count: int = 6) -> str:
    """The likeliest classes at a temperature, and how much the rest gets.

    Args:
        logits: (classes,).
        names: of the classes.
        temperature: above 0.
        count: how many classes are named.

    Raises:
        ValueError: the temperature is not above 0, or names and logits differ in number.

    Example:
        >>> import torch
        >>> print(explain_temperature(torch.tensor([2.0, 0.0, 0.0]), "abc", 1.0, count=2))
        T = 1: a 0.787, b 0.107, the other 1 together 0.107
        entropy 0.67 of 1.10 nats
    """
    if not temperature > 0 or len(names) != len(logits):
        raise ValueError(
            f"temperature={temperature} must be above 0, and {len(names)} names must be as many as {len(logits)} logits"
        )
    probabilities = (logits.double() / temperature).softmax(-1)
    values, places = probabilities.sort(descending=True, stable=True)
    named = [
        f"{names[place]} {value:.3f}" for place, value in zip(places[:count].tolist(), values.tolist(), strict=False)
    ]
    rest = len(names) - len(named)
    named += [f"the other {rest} together {values[count:].sum().item():.3f}"] if rest else []
    entropy = -(values * values.clamp_min(1e-300).log()).sum().item()
    most = values.new_tensor(float(len(names))).log().item()
    return f"T = {temperature:g}: {', '.join(named)}\nentropy {entropy:.2f} of {most:.2f} nats"


def explain_threshold(weights: Mapping[str, Tensor], sparsity: float) -> str:
    """Where the threshold lies when a share of all weights goes by size, and what that takes from each layer.

    Args:
        weights: by name, of any shapes.
        sparsity: share that goes, 0..1.

    Raises:
        ValueError: the sparsity is out of range.

    Example:
        >>> import torch
        >>> print(explain_threshold({"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([1.0, -2.0])}, 0.5))
        50 % of 4 weights: the smallest 2, up to a magnitude of 2
        a: 0 % gone
        b: 100 % gone
    """
    import torch

    from compresslab.pruning import global_masks

    masks = global_masks({name: weight.detach().abs() for name, weight in weights.items()}, sparsity)
    gone = [weight.detach().abs()[~masks[name]] for name, weight in weights.items()]
    count, largest = (
        sum(each.numel() for each in gone),
        max((each.max().item() for each in gone if len(each)), default=0.0),
    )
    total = sum(weight.numel() for weight in weights.values())
    lines = [
        f"{sparsity:.0%} of {total:,} weights: the smallest {count:,}, up to a magnitude of {largest:.3g}".replace(
            "%", " %", 1
        )
    ]
    lines += [f"{name}: {100 * (~mask).to(torch.float64).mean().item():.0f} % gone" for name, mask in masks.items()]
    return "\n".join(lines)


def temperature_slider(logits: Tensor, names: Sequence[str], temperature: float = 4.0) -> None:
    """Show a slider for the temperature of a softmax."""
    say = lambda value: explain_temperature(logits, names, value)  # noqa: E731
    show_widget(slider_widget("temperature", say, value=temperature, low=0.5, high=20.0, step=0.5), say(temperature))


def threshold_slider(weights: Mapping[str, Tensor], sparsity: float = 0.5) -> None:
    """Show a slider for the share of the weights that goes, and what it takes from each layer."""
    say = lambda value: explain_threshold(weights, value)  # noqa: E731
    show_widget(slider_widget("sparsity", say, value=sparsity, low=0.0, high=0.99, step=0.01), say(sparsity))


def slider_widget(
    label: str, say: Callable[[float], str], *, value: float, low: float, high: float, step: float
) -> ipywidgets.Widget:
    """A slider, a number field that goes with it (sliders have no name for a screen reader), and the text of ``say``."""
    import ipywidgets as widgets

    slider = widgets.FloatSlider(value=value, min=low, max=high, step=step, readout=False)
    number = widgets.BoundedFloatText(value=value, min=low, max=high, step=step, description=label)
    widgets.link((slider, "value"), (number, "value"))
    text = widgets.HTML()

    def changed(_: dict | None = None) -> None:
        text.value = f'<pre role="status" aria-live="polite">{html.escape(say(number.value))}</pre>'

    number.observe(changed, names="value")
    changed()
    return widgets.VBox([widgets.HBox([number, slider]), text])
