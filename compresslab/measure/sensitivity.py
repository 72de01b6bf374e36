"""How much each layer minds: one layer at a time is changed, all others stay, and the model is measured.

What a change is (fewer bits, fewer weights) and what is measured (a loss, the error of the logits) are functions that
the caller passes. The answer is a guess for changes made together: they add up only as long as they are small.

    Han, Pool, Tran and Dally, "Learning both weights and connections for efficient neural networks", 2015,
    https://arxiv.org/abs/1506.02626, section 4.1 (the scan, for pruning)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from compresslab.measure.plots import MARKERS
from compresslab.measure.running import evaluating, require_module

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["Sensitivity", "plot_sensitivity", "scan_sensitivity"]


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """The harm that each change does to each layer alone."""

    table: pd.DataFrame  # a row for each layer, a column for each setting: harm with the change, less the baseline
    baseline: float  # harm of the model as it is

    @property
    def errors(self) -> dict[str, dict[Hashable, float]]:
        """By layer, by setting: the harm added, at least 0, as an allocation of bits or sparsities wants it."""
        return {layer: row.clip(lower=0.0).to_dict() for layer, row in self.table.iterrows()}

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Draw a row for each layer, a marker for each setting."""
        return plot_sensitivity(self.table, ax=ax)


def scan_sensitivity(
    model: nn.Module,
    change: Callable[[nn.Module, str, Hashable], nn.Module],
    evaluate: Callable[[nn.Module], float],
    *,
    layers: Sequence[str],
    settings: Sequence[Hashable],
) -> Sensitivity:
    """What each change of each layer alone adds to the harm.

    Args:
        model: measured in eval mode, and left as it was.
        change: called with (model, layer, setting); returns a new model in which that one layer is changed.
        evaluate: the harm, lower is better: a loss, or an error of the logits. The same number for the same model.
        layers: names that ``change`` understands.
        settings: what is tried on each layer: widths, sparsities.

    Raises:
        TypeError: ``model`` or what ``change`` returns is no module.
        ValueError: nothing to try, a harm is not finite, or ``model`` is another one at the end.

    Example:
        >>> import copy, torch
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> def scale(model, layer, factor):
        ...     changed = copy.deepcopy(model)
        ...     changed.get_submodule(layer).weight.data *= factor
        ...     return changed
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> harm = lambda changed: (changed(x) - model(x)).abs().sum().item()
        >>> scan_sensitivity(model, scale, harm, layers=["0", "1"], settings=[1.0, 0.5]).table[1.0].tolist()
        [0.0, 0.0]
    """
    import pandas as pd

    require_module(model)
    if not layers or not settings:
        raise ValueError(f"layers={layers!r} and settings={settings!r} must hold at least one each")

    def harm(candidate: nn.Module, what: str) -> float:
        require_module(candidate)
        with evaluating(candidate):
            value = float(evaluate(candidate))
        if not math.isfinite(value):
            raise ValueError(f"evaluate must give a finite number, got {value} for {what}; look for NaN in its data")
        return value

    baseline = harm(model, "the model as it is")
    rows = {
        layer: {s: harm(change(model, layer, s), f"{layer!r} changed to {s!r}") - baseline for s in settings}
        for layer in layers
    }
    again = harm(model, "the model as it is")
    if again != baseline:
        way = "let change return a new model, and evaluate without chance"
        raise ValueError(f"the model's own harm was {baseline:g} before and {again:g} after the scan; {way}")
    return Sensitivity(
        pd.DataFrame.from_dict(rows, orient="index", columns=list(settings)).rename_axis("layer"), baseline
    )


def plot_sensitivity(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the harm added by each setting, a row for each layer, the first on top.

    Args:
        table: of a ``Sensitivity``.

    Example:
        >>> import pandas as pd
        >>> plot_sensitivity(pd.DataFrame({4: [0.1, 0.2]}, index=["conv1", "head"])).get_xlabel()
        'harm added by changing this layer alone'
    """
    import matplotlib
    import matplotlib.pyplot as plt

    ax = plt.subplots(figsize=(7, 1.2 + 0.25 * len(table)), layout="constrained")[1] if ax is None else ax
    colors = matplotlib.color_sequences["petroff10"]
    for place, setting in enumerate(table.columns):
        style = {"marker": MARKERS[place % len(MARKERS)], "color": colors[place % len(colors)], "linestyle": ""}
        ax.plot(table[setting], range(len(table)), label=str(setting), **style)
    ax.set_yticks(range(len(table)), [str(name) for name in table.index])
    ax.invert_yaxis()
    ax.set_xscale("symlog", linthresh=max(float(table.abs().to_numpy().max()) / 1000, 1e-12))
    ax.set_xlabel("harm added by changing this layer alone")
    ax.grid(alpha=0.3)
    ax.legend(title="setting")
    return ax
