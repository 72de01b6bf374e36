"""Parity: how far two programs are apart that should compute the same, measured before anybody relies on it.

Two programs that add in another order differ in the last bits, so parity is a tolerance, not equality. We measure the
largest difference in units of the largest output, at several batch sizes: a batch frozen into a Reshape shows at a
size other than the example's. Typical: 1e-6 for floats in another order, 1e-3 for FP16, 1e-2 for integers whose sums
fall on the other side of a tie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compresslab.export.program import as_inputs

__all__ = ["Parity", "check_parity"]

BATCHES = (1, 2, 5)


@dataclass(frozen=True)
class Parity:
    """How far apart two programs are, by batch size."""

    differences: dict[int, float]  # batch size: largest |difference|, in units of the largest |output| of the model
    agreement: float  # share of outputs whose largest entry (along the last axis) is at the same place, 0..1
    tolerance: float

    @property
    def largest(self) -> float:
        """The largest difference of all batch sizes."""
        return max(self.differences.values())

    @property
    def holds(self) -> bool:
        """Whether all are within the tolerance."""
        return self.largest <= self.tolerance


def check_parity(
    model: nn.Module,
    run: Callable[..., object],
    example_inputs: Tensor | tuple[Tensor, ...],
    *,
    batch_sizes: Sequence[int] = BATCHES,
    tolerance: float = 1e-4,
) -> Parity:
    """How far another program is from the model, at several batch sizes; nothing is exported.

    Args:
        model: in eval mode.
        run: the other program, called with the same inputs, such as an ``OnnxModule`` or an artifact's ``run``.
        example_inputs: samples to make batches of; where there are too few, they come again, moved along the last axis.
        batch_sizes: each at least 1.
        tolerance: for ``Parity.holds``. Floats that are summed in another order differ by about 1e-6; 8-bit levels that
            fall the other way at a tie by a step, about 1e-2.

    Raises:
        ValueError: the shapes of the outputs differ, or one is not finite.

    Example:
        >>> check_parity(nn.Identity(), lambda x: x + 1.0, torch.full((1, 2), 2.0)).largest
        0.5
    """
    differences, same, count = {}, 0, 0
    for size in batch_sizes:
        batch = tuple(_resized(x, size) for x in as_inputs(example_inputs))
        with torch.no_grad():
            wanted, found = _tensors(model(*batch)), _tensors(run(*batch))
        shapes = [[tuple(x.shape) for x in outputs] for outputs in (wanted, found)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"outputs at batch {size} have shapes {shapes[1]}, the model's {shapes[0]}; export it anew"
            )
        if not all(x.isfinite().all() for x in wanted + found):
            raise ValueError(
                f"outputs at batch {size} are not finite, so no difference can be measured; pass other inputs"
            )
        largest = max(float(x.abs().max()) for x in wanted)
        gap = max(float((x - y).abs().max()) for x, y in zip(wanted, found, strict=True))
        differences[size] = gap / largest if largest else gap
        same += sum(int((x.argmax(-1) == y.argmax(-1)).sum()) for x, y in zip(wanted, found, strict=True))
        count += sum(x.argmax(-1).numel() for x in wanted)
    return Parity(differences, same / count, tolerance)


def _resized(x: Tensor, size: int) -> Tensor:
    """``size`` samples; those that come again are rolled, so that no two are equal."""
    turns = [torch.roll(x, turn, -1) if x.dim() > 1 else x for turn in range(-(-size // len(x)))]
    return torch.cat(turns)[:size]


def _tensors(output: object) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output.detach().double()]
    parts = output.values() if isinstance(output, dict) else output
    return [tensor for part in parts for tensor in _tensors(part)]
