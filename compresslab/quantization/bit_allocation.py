"""Bits for each layer under a budget of bytes: the exact answer by dynamic programming, and the greedy one.

Every layer may take one of some widths; each costs bytes and leaves an error. Where errors add up (the loss changes
little, and layers do not interact), the best choice is a multiple-choice knapsack. Costs are whole bytes, so it is
solved exactly: layer by layer, for each total cost keep the smallest total error, and drop what costs more without
being better.

    Dong and others, "HAWQ-V2", 2019, https://arxiv.org/abs/1911.03852, section 3 (a sum of sensitivities, minimized)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Allocation", "allocate_bits", "allocate_bits_greedy"]


@dataclass(frozen=True)
class Allocation:
    """A width for each layer, what they take together and what they leave."""

    bits: dict[str, int]
    size_bytes: int
    error: float


Errors = Mapping[str, Mapping[int, float]]
Sizes = Mapping[str, Mapping[int, int]]


def allocate_bits(errors: Errors, sizes: Sizes, budget_bytes: int) -> Allocation:
    """The widths of least total error that fit into the budget; of equal ones the smallest.

    Args:
        errors: by layer, by width: the error, at least 0.
        sizes: by layer, by width: bytes, scales included (``Quantized.nbytes``).
        budget_bytes: of all layers together.

    Raises:
        ValueError: the layers or widths differ, an error is not a finite number of at least 0, or the budget is below
            the smallest choice.

    Example:
        >>> errors = {"a": {2: 9.0, 4: 1.0}, "b": {2: 4.0, 4: 1.0}}
        >>> sizes = {"a": {2: 2, 4: 4}, "b": {2: 1, 4: 2}}
        >>> allocate_bits(errors, sizes, 5)
        Allocation(bits={'a': 4, 'b': 2}, size_bytes=5, error=5.0)
    """
    _check(errors, sizes, budget_bytes)
    best: list[tuple[int, float, tuple[int, ...]]] = [(0, 0.0, ())]  # bytes, error, widths so far
    for layer, choices in errors.items():
        longer = sorted(
            (size + sizes[layer][bits], error + choices[bits], (*widths, bits))
            for size, error, widths in best
            for bits in choices
        )
        best = []
        for candidate in longer:
            if candidate[0] <= budget_bytes and (not best or candidate[1] < best[-1][1]):
                best.append(candidate)
    size, error, widths = best[-1]
    return Allocation(dict(zip(errors, widths, strict=True)), size, error)


def allocate_bits_greedy(errors: Errors, sizes: Sizes, budget_bytes: int) -> Allocation:
    """Widths that fit: from the smallest choices up, always the step that takes off most error for each byte.

    Args and Raises: as in ``allocate_bits``.

    Example:
        >>> errors = {"a": {2: 9.0, 4: 1.0}, "b": {2: 4.0, 4: 1.0}}
        >>> sizes = {"a": {2: 2, 4: 4}, "b": {2: 1, 4: 2}}
        >>> allocate_bits_greedy(errors, sizes, 5).bits
        {'a': 4, 'b': 2}
    """
    _check(errors, sizes, budget_bytes)
    bits = {layer: min(choices, key=lambda width: (sizes[layer][width], errors[layer][width])) for layer, choices in errors.items()}  # fmt: skip
    while True:
        used = sum(sizes[layer][width] for layer, width in bits.items())
        steps = []
        for layer, now in bits.items():
            for width, error in errors[layer].items():
                more, less = sizes[layer][width] - sizes[layer][now], errors[layer][now] - error
                if less > 0 and used + more <= budget_bytes:
                    steps.append((less / more if more > 0 else float("inf"), layer, width))
        if not steps:
            return Allocation(bits, used, sum(errors[layer][width] for layer, width in bits.items()))
        _, layer, width = max(steps)
        bits[layer] = width


def _check(errors: Errors, sizes: Sizes, budget_bytes: int) -> None:
    if {layer: {*widths} for layer, widths in errors.items()} != {layer: {*widths} for layer, widths in sizes.items()}:
        raise ValueError("errors and sizes must have the same layers and widths; measure both for the same choices")
    if not errors or not all(errors.values()):
        raise ValueError(f"errors must hold a layer, and a width for each, got {dict(errors)}; try widths 2, 4 and 8")
    for layer, choices in errors.items():
        for width, error in choices.items():
            if not 0 <= error < float("inf"):
                raise ValueError(f"the error of {layer!r} at {width} bits must be finite and at least 0, got {error}")
    smallest = sum(min(choices.values()) for choices in sizes.values())
    if smallest > budget_bytes:
        raise ValueError(f"budget_bytes={budget_bytes} is below the smallest choice; give at least {smallest}")
