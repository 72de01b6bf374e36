"""LSQ: the paper's formulas by hand, and autograd through its own pseudo-code as the oracle."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compresslab.quantization.lsq import LSQ, initial_step, lsq


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pseudo_code(v, s, low, high, g):
    """Appendix of the paper, with ``detach`` as it is written there."""

    def grad_scale(x, scale):
        return (x - x * scale).detach() + x * scale

    def round_pass(x):
        return (x.round() - x).detach() + x

    s = grad_scale(s, g)
    return round_pass((v / s).clamp(low, high)) * s


def test_by_hand():
    # s = 0.5, levels -2..1: -1.6 / 0.5 = -3.2, below: slope -2. 0.4 / 0.5 = 0.8 -> 1: slope 1 - 0.8 = 0.2.
    # -0.6 / 0.5 = -1.2 -> -1: slope -1 + 1.2 = 0.2. 2.0 / 0.5 = 4, above: slope 1.
    v = torch.tensor([-1.6, 0.4, -0.6, 2.0], requires_grad=True)
    s = torch.tensor(0.5, requires_grad=True)
    y = lsq(v, s, quant_min=-2, quant_max=1, gradient_factor=0.1)
    assert y.tolist() == [-1.0, 0.5, -0.5, 0.5]
    (y * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert v.grad.tolist() == [0.0, 2.0, 3.0, 0.0]
    assert s.grad.item() == pytest.approx(0.1 * (1 * -2 + 2 * 0.2 + 3 * 0.2 + 4 * 1))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.integers(2, 8), st.booleans(), st.sampled_from([None, 0, 1, -1]), st.floats(0.01, 3), st.integers(0, 99)
)  # fmt: skip
def test_equal_to_the_pseudo_code(bits, signed, axis, step, seed):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    v = noise(3, 4, 5, seed=seed).double()
    shape = () if axis is None else (v.shape[axis],)
    s = torch.full(shape, step).double() * (1 + 0.1 * noise(*shape, seed=seed + 1).double().abs())
    weights, g = noise(3, 4, 5, seed=seed + 2).double(), 0.037
    v1, s1, v2, s2 = (part.clone().requires_grad_() for part in (v, s, v, s))
    ours = lsq(v1, s1, quant_min=low, quant_max=high, axis=axis, gradient_factor=g)
    wide = s2 if axis is None else s2.reshape([-1 if i == axis % 3 else 1 for i in range(3)])
    theirs = pseudo_code(v2, wide, low, high, g)
    assert torch.allclose(ours, theirs, atol=1e-12)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    assert torch.allclose(v1.grad, v2.grad, rtol=1e-12)
    assert (s1.grad - s2.grad).abs().max() < 1e-9
    # and the closed formula, equation 3
    ratio = v / wide.detach()
    slope = torch.where(ratio <= low, low, torch.where(ratio >= high, high, ratio.round() - ratio))
    closed = (weights * slope * g).sum() if axis is None else (weights * slope * g).movedim(axis, 0).flatten(1).sum(1)
    assert (s1.grad - closed).abs().max() < 1e-9


def test_the_gradient_is_not_that_of_a_difference():
    # Straight-through ignores the steps of the staircase; a finite difference inside one step sees round(v / s).
    v, s = torch.tensor(0.8), torch.tensor(0.5, requires_grad=True)
    lsq(v, s, quant_min=-4, quant_max=3).backward()
    difference = (lsq(v, s + 1e-3, quant_min=-4, quant_max=3) - lsq(v, s, quant_min=-4, quant_max=3)) / 1e-3
    assert difference.item() == pytest.approx(2.0, abs=1e-3)
    assert s.grad.item() == pytest.approx(2 - 1.6)


def test_the_first_step_by_hand():
    # 2 * mean(1, 3) / sqrt(4) = 2
    assert initial_step(torch.tensor([2.0, 0.0]), 4).tolist() == [2.0, 1.0]
    # 3 bits: Q_P = 3. Row means of |v| 2 and 0.5: 4 / sqrt(3) and 1 / sqrt(3).
    weight = torch.tensor([[1.0, -3.0], [0.5, 0.5]])
    assert torch.allclose(LSQ.for_weight(weight, bits=3, axis=0).step(), torch.tensor([4.0, 1.0]) / math.sqrt(3))
    assert torch.allclose(LSQ.for_weight(weight, bits=3, axis=1).step(), torch.tensor([1.5, 3.5]) / math.sqrt(3))
    assert LSQ.for_weight(weight, bits=3).step().item() == pytest.approx(2 * 1.25 / math.sqrt(3))


def test_levels():
    quantizer = LSQ.for_weight(noise(3, 4), bits=3)
    assert (quantizer.quant_min, quantizer.quant_max) == (-4, 3)
    unsigned = LSQ.for_input(0.0, 5.0, 1.0, bits=4)
    assert (unsigned.quant_min, unsigned.quant_max) == (0, 15)
    assert unsigned.step().item() == pytest.approx(2 / math.sqrt(15))
    # -1..3 in 15 steps: 0 lies 3.75 steps up, so 4 levels are below it and 11 above.
    mixed = LSQ.for_input(-1.0, 3.0, 1.0, bits=4)
    assert (mixed.quant_min, mixed.quant_max) == (-4, 11)
    assert mixed.step().item() == pytest.approx(2 / math.sqrt(11))
    assert LSQ.for_input(-3.0, 0.0, 1.0, bits=2).quant_max == 0
    assert LSQ.for_input(0.0, 0.0, 0.0, bits=2).step() == 1


def test_the_batch_does_not_count_and_the_channels_share():
    def step_gradient(quantizer, x):
        quantizer.zero_grad()
        quantizer(x).sum().backward()
        return quantizer.scale.grad.clone()

    # Everything above: slope Q_P = 3 for each of (batch) x 10 values, times g = 1 / sqrt(10 * 3).
    x = torch.full((2, 5, 2), 100.0)
    quantizer = LSQ(torch.tensor(1.0), zero_point=0, bits=2, batched=True)
    assert step_gradient(quantizer, x).item() == pytest.approx(2 * 10 * 3 / math.sqrt(10 * 3))
    assert step_gradient(quantizer, x.repeat(4, 1, 1)).item() == pytest.approx(8 * 10 * 3 / math.sqrt(10 * 3))
    # A weight of 5 channels with 4 values each and Q_P = 1: N is 4; with one step for all, N is 20.
    weight = LSQ(torch.ones(5), zero_point=2, bits=2, axis=1)
    assert torch.allclose(step_gradient(weight, x), torch.full((5,), 4 * 1 / math.sqrt(4 * 2)))
    assert step_gradient(LSQ(torch.tensor(1.0), zero_point=2, bits=2), x).item() == pytest.approx(
        20 / math.sqrt(20 * 2)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_the_grid_gives_the_same_values_to_the_bit(dtype, axis):
    x = noise(4, 6).to(dtype)
    quantizer = LSQ.for_weight(x, bits=3, axis=axis)
    quantized = quantizer.grid().quantize(x)
    assert torch.equal(quantizer(x), quantized.dequantize())
    assert quantizer(x).dtype == dtype
    assert quantized.levels.min() >= 0
    assert quantized.levels.max() <= 7
    mixed = LSQ.for_input(-1.0, 3.0, 0.5, bits=4)
    assert torch.equal(mixed(x), mixed.grid().quantize(x).dequantize())


def test_nan_does_not_become_a_number():
    assert LSQ(torch.tensor(1.0), zero_point=0)(torch.tensor([float("nan"), 1.0])).isnan().tolist() == [True, False]


def test_a_step_that_is_pushed_through_zero_stays_positive():
    quantizer = LSQ(torch.tensor([0.5, 0.5]), zero_point=2, bits=2, axis=0)
    with torch.no_grad():
        quantizer.scale.copy_(torch.tensor([-0.25, 0.0]))
    assert (quantizer.step() > 0).all()
    assert quantizer.step()[0] == 0.25
    x = torch.tensor([[0.3], [0.3]])
    quantizer(x).sum().backward()
    assert quantizer(x).isfinite().all()
    assert quantizer.scale.grad.isfinite().all()
    # 0.3 / 0.25 -> 1, clipped (Q_P = 1): a larger step gives a larger output; on the other side of 0 the sign turns.
    assert quantizer.scale.grad[0] < 0


def test_frozen_steps_are_not_trained():
    quantizer = LSQ(torch.tensor(0.5), zero_point=0)
    quantizer.freeze()
    x = noise(4).requires_grad_()
    quantizer(x).sum().backward()
    assert quantizer.scale.grad is None
    assert x.grad is not None


def test_a_step_finds_its_best_size():
    # From ten times too large, gradient descent on the squared error gets within 5 % of the best step of a grid search.
    v = noise(2000)
    quantizer = LSQ(torch.tensor(10.0), zero_point=4, bits=3)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        (quantizer(v) - v).square().mean().backward()
        optimizer.step()
    candidates = torch.linspace(0.1, 2, 200)
    errors = [(lsq(v, s, quant_min=-4, quant_max=3) - v).square().mean().item() for s in candidates]
    assert (quantizer(v) - v).square().mean().item() < 1.05 * min(errors)


def test_it_exports_with_any_batch_size():
    model = nn.Sequential(LSQ.for_input(-1.0, 1.0, 0.5, bits=4)).eval()
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(model, (noise(3, 4),), dynamic_shapes=shapes).module()
    assert torch.equal(program(noise(7, 4)), model(noise(7, 4)))


def test_errors():
    v, s = torch.ones(2), torch.tensor(1.0)
    for low, high in ((1, 3), (-3, -1), (0, 0)):
        with pytest.raises(ValueError, match=rf"0 must be one of several levels, got {low}\.\.{high}"):
            lsq(v, s, quant_min=low, quant_max=high)
    for bits in (1, 17, 4.0):
        with pytest.raises(ValueError, match=f"bits={bits!r} must be an integer in 2..16"):
            LSQ(s, zero_point=0, bits=bits)
    with pytest.raises(ValueError, match="scale must be greater than 0, got -1; see initial_step"):
        LSQ(torch.tensor([1.0, -1.0]), zero_point=0, axis=0)
    with pytest.raises(ValueError, match="scale must be finite, got 1 NaN"):
        LSQ(torch.tensor(float("nan")), zero_point=0)
