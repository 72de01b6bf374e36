"""Homework whose numbers differ from student to student, one problem for each lesson, answered by the package itself.

``compresslab classroom build`` writes a sheet for each variant and one key. The numbers of a variant come from its number
alone, so a sheet can be written again at any time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["LESSONS_WITH_HOMEWORK", "Problem", "problem", "sheet"]


@dataclass(frozen=True)
class Problem:
    """One question with the number that answers it."""

    lesson: str  # "05"
    text: str  # Markdown
    answer: float
    unit: str
    tolerance: float = 0.01  # relative; 0 for whole numbers


Maker = Callable[[random.Random], Problem]
_makers: dict[str, Maker] = {}


def _for(lesson: str) -> Callable[[Maker], Maker]:
    def register(maker: Maker) -> Maker:
        _makers[lesson] = maker
        return maker

    return register


def problem(lesson: str, variant: int) -> Problem:
    """The problem of a lesson with the numbers of a variant.

    Raises:
        ValueError: the lesson has none, or the variant is below 1.

    Example:
        >>> problem("09", 1).text == problem("09", 1).text != problem("09", 2).text
        True
    """
    if lesson not in _makers or variant < 1:
        raise ValueError(
            f"lesson={lesson!r}, variant={variant}: variant must be at least 1, lesson one of {', '.join(_makers)}"
        )
    return _makers[lesson](random.Random(f"{lesson} {variant}"))


def sheet(variant: int, lessons: Sequence[str] = ()) -> str:
    """The problems of some lessons, or of all, for one student, in Markdown."""
    lines = [
        f"# Homework, sheet {variant}",
        "",
        "Give each answer to three significant digits, or whole where it counts.",
    ]
    for lesson in lessons or LESSONS_WITH_HOMEWORK:
        asked = problem(lesson, variant)
        lines += ["", f"## Lesson {lesson}", "", asked.text, "", f"Answer: ______ {asked.unit}"]
    return "\n".join(lines) + "\n"


@_for("00")
def _macs(draw: random.Random) -> Problem:
    import torch
    from torch import nn

    from compresslab.measure import count_macs

    inputs, outputs, kernel, stride = (
        draw.choice((8, 12, 16, 24)),
        draw.choice((20, 32, 48)),
        draw.choice((3, 5)),
        draw.choice((1, 2)),
    )
    side = draw.choice((16, 24, 32, 40))
    layer = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    macs = count_macs(layer, torch.zeros(1, inputs, side, side)).total
    text = (
        f"A convolution takes {inputs} channels to {outputs}, kernel {kernel} x {kernel}, stride {stride}, padding "
        f"{kernel // 2}, no bias, on an image of {side} x {side}. How many multiply-accumulates is that for one image?"
    )
    return Problem("00", text, macs, "MACs", 0)


@_for("01")
def _rounded(draw: random.Random) -> Problem:
    import torch

    from compresslab.formats import round_to_format

    value = round(draw.uniform(5, 200), 2)
    held = round_to_format(torch.tensor(value), "fp8_e4m3").item()
    text = f"Which number does the format E4M3 (4 exponent bits, 3 mantissa bits, bias 7) hold for {value:g}?"
    return Problem("01", text, held, "", 0)


@_for("02")
def _zero_point(draw: random.Random) -> Problem:
    import torch

    from compresslab.quantization import quantize

    low, high = -draw.randint(2, 40) / 10, draw.randint(45, 90) / 10
    grid = quantize(torch.tensor([low, high]), bits=8, symmetric=False)
    text = (
        f"Activations run from {low} to {high}. An asymmetric 8-bit grid with levels from 0 to 255 shall hold both ends. "
        "Which level stands for 0.0?"
    )
    return Problem("02", text, int(grid.zero_point), "", 0)


@_for("03")
def _step_gradient(draw: random.Random) -> Problem:
    import torch

    from compresslab.quantization.lsq import lsq

    step, level = (
        draw.choice((0.1, 0.2, 0.25, 0.5)),
        draw.randint(-7, 9) + draw.choice((-0.4, -0.3, -0.2, -0.1, 0.1, 0.2, 0.3, 0.4)),
    )
    scale = torch.tensor(step, requires_grad=True)
    lsq(torch.tensor([level * step]), scale, quant_min=-8, quant_max=7).sum().backward()
    text = (
        f"A weight of {level * step:g} is rounded to a signed 4-bit grid (-8 to 7) of step s = {step}. By LSQ, what is the "
        "derivative of the rounded weight by s (without the gradient scale)?"
    )
    return Problem("03", text, scale.grad.item(), "")


@_for("04")
def _bits_per_weight(draw: random.Random) -> Problem:
    bits, group, scale = draw.choice((2, 3, 4, 5)), draw.choice((16, 32, 64, 128, 256)), draw.choice((8, 16, 32))
    text = (
        f"A linear layer of 4096 x 4096 is stored with {bits} bits a weight, in groups of {group}, each with a scale of {scale} "
        f"bits and a zero point of {bits} bits. How many bits is that for one weight, all counted?"
    )
    return Problem("04", text, bits + (scale + bits) / group, "bits", 1e-3)


@_for("05")
def _cubic(draw: random.Random) -> Problem:
    from compresslab.pruning import cubic_sparsity

    end, final = draw.choice((400, 500, 800)), draw.choice((0.8, 0.9, 0.95))
    step = round(end * draw.choice((0.2, 0.3, 0.4, 0.6)))
    text = (
        f"Weights are removed by Zhu and Gupta's cubic schedule, from 0 at step 0 to {final:.0%} at step {end}. Which share "
        f"(0 to 1) is gone at step {step}?"
    )
    return Problem("05", text, cubic_sparsity(step, start=0, end=end, final=final), "")


@_for("06")
def _weights_left(draw: random.Random) -> Problem:
    first, second, third = draw.choice((16, 32)), draw.choice((48, 64)), draw.choice((96, 128))
    cut = draw.choice((0.25, 0.5))
    kept = [round(width * (1 - cut)) for width in (first, second)]
    text = (
        f"Three 3 x 3 convolutions without bias follow one another: 3 to {first}, {first} to {second}, {second} to {third} "
        f"channels. {cut:.0%} of the outputs of the first and of the second are removed, the third keeps its outputs. How "
        "many weights are left?"
    )
    return Problem("06", text, 9 * (3 * kept[0] + kept[0] * kept[1] + kept[1] * third), "weights", 0)


@_for("07")
def _taylor(draw: random.Random) -> Problem:
    weight, slopes = draw.choice((-0.5, 0.4, 0.8)), [draw.choice((-3, -2, -1, 1, 2, 4)) / 2 for _ in range(4)]
    text = (
        f"A weight of {weight} has the gradients {', '.join(f'{each:g}' for each in slopes)} on four samples. By the empirical "
        "Fisher diagonal F, what is 1/2 F w^2, the loss that removing it is expected to cost?"
    )
    return Problem("07", text, 0.5 * sum(each**2 for each in slopes) / 4 * weight**2, "")


@_for("08")
def _softened(draw: random.Random) -> Problem:
    import torch

    logits, temperature = (
        [draw.choice((6.0, 8.0, 9.0)), draw.choice((2.0, 3.0, 4.0)), 0.0],
        draw.choice((2.0, 4.0, 5.0)),
    )
    soft = torch.tensor(logits, dtype=torch.float64).div(temperature).softmax(0)[1].item()
    text = f"A teacher's logits are {logits}. What does it give the second class at temperature {temperature:g}?"
    return Problem("08", text, soft, "")


@_for("09")
def _break_even(draw: random.Random) -> Problem:
    from compresslab.factorization.ranks import break_even_rank

    rows, columns = draw.choice((256, 384, 512, 768)), draw.choice((1000, 1024, 1536, 3072))
    text = (
        f"A linear layer has a weight of {rows} x {columns} and becomes two of rank r. What is the largest whole r at which "
        "the two have fewer weights than the one?"
    )
    return Problem("09", text, break_even_rank(rows, columns), "", 0)


@_for("10")
def _balance(draw: random.Random) -> Problem:
    experts = 4
    counts = [draw.randint(5, 60) for _ in range(experts)]
    shares = [count / sum(counts) for count in counts]
    raised = [share**0.5 for share in shares]
    mean = [round(each / sum(raised), 2) for each in raised[1:]]
    mean.insert(0, round(1 - sum(mean), 2))
    text = (
        f"Of {sum(counts)} tokens, {', '.join(map(str, counts))} went to four experts, and the router's mean probabilities are "
        f"{', '.join(f'{each:.2f}' for each in mean)}. What is the load-balancing loss E times the sum of f P (1 is balanced)?"
    )
    return Problem("10", text, experts * sum(f * p for f, p in zip(shares, mean, strict=True)), "")


@_for("11")
def _discordant(draw: random.Random) -> Problem:
    import torch

    from compresslab.measure import mcnemar

    worse, better = draw.randint(8, 20), draw.randint(1, 7)
    before = torch.tensor([True] * worse + [False] * better)
    text = (
        f"On the same requests the compressed model was wrong {worse} times where the original was right, and right {better} "
        "times where it was wrong. What is the exact two-sided p value of McNemar's test?"
    )
    return Problem("11", text, mcnemar(before, ~before).p_value, "")


@_for("12")
def _together(draw: random.Random) -> Problem:
    ratio, sparsity, bits = (
        draw.choice((0.2, 0.25, 0.4, 0.5)),
        draw.choice((0.5, 0.6, 0.7, 0.8)),
        draw.choice((3, 4, 6, 8)),
    )
    text = (
        f"Of every inner layer's inputs and outputs {ratio:.0%} are removed; of the weights that are left {sparsity:.0%} are zero, "
        f"and a bitmask (one bit for each weight) says which. The others take {bits} bits. How many times smaller than 32-bit "
        "floats is an inner layer?"
    )
    return Problem("12", text, 32 / ((1 - ratio) ** 2 * (1 + (1 - sparsity) * bits)), "times")


LESSONS_WITH_HOMEWORK = tuple(_makers)
