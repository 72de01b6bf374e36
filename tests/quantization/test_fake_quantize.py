"""Fake quantization: by hand, torch's own to the last bit, and observers that stand still when they should."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compresslab.quantization.affine import choose_grid, quantize
from compresslab.quantization.fake_quantize import Dequantize, FakeQuantize, FakeQuantizeWeight, fake_quantize


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_by_hand():
    # scale 0.5, zero point 1, levels 0..3: the grid is -0.5, 0, 0.5, 1.
    # -0.9 / 0.5 = -1.8 -> -2 + 1 = -1, clipped to 0 (-0.5). 0.3 / 0.5 = 0.6 -> 1 + 1 = 2 (0.5).
    # 1.2 / 0.5 = 2.4 -> 2 + 1 = 3 (1.0), the last level and not clipped. 1.3 / 0.5 = 2.6 -> 3 + 1 = 4, clipped to 3.
    x = torch.tensor([-0.9, 0.3, 1.2, 1.3], requires_grad=True)
    y = fake_quantize(x, torch.tensor(0.5), torch.tensor(1), quant_min=0, quant_max=3)
    assert y.tolist() == [-0.5, 0.5, 1.0, 1.0]
    (y * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert x.grad.tolist() == [0.0, 2.0, 3.0, 0.0]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.integers(2, 10), st.booleans(), st.sampled_from([None, 0, 1, -1]), st.floats(-6, 6), st.integers(0, 99)
)  # fmt: skip
def test_equal_to_torch_to_the_last_bit(bits, symmetric, axis, exponent, seed):
    x = (noise(3, 4, 5, seed=seed) * 10.0**exponent).requires_grad_()
    twin = x.detach().clone().requires_grad_()
    rows = x.detach().flatten() if axis is None else x.detach().movedim(axis, 0).flatten(1)
    grid = choose_grid(*(0.4 * end for end in rows.aminmax(dim=-1)), bits=bits, symmetric=symmetric, axis=axis)
    ends = grid.quant_min, grid.quant_max
    ours = fake_quantize(x, grid.scale, grid.zero_point, quant_min=ends[0], quant_max=ends[1], axis=axis)
    if axis is None:
        theirs = torch.fake_quantize_per_tensor_affine(twin, grid.scale, grid.zero_point, *ends)
    else:
        theirs = torch.fake_quantize_per_channel_affine(twin, grid.scale, grid.zero_point, axis % 3, *ends)
    assert torch.equal(ours, theirs)
    weights = noise(3, 4, 5, seed=seed + 1)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    assert torch.equal(x.grad, twin.grad)
    assert 0 < (x.grad == 0).sum() < x.numel()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    x = noise(4, 6).to(dtype).requires_grad_()
    y = FakeQuantizeWeight(bits=4, axis=0)(x)
    assert y.dtype == dtype
    assert torch.equal(y, quantize(x, bits=4, axis=0).dequantize())
    y.sum().backward()
    assert x.grad.dtype == dtype
    assert torch.equal(x.grad, torch.ones_like(x))  # nothing lies outside a min-max range


def test_nan_does_not_become_a_number():
    x = torch.tensor([float("nan"), 1.0])
    y = fake_quantize(x, torch.tensor(0.5), torch.tensor(0), quant_min=-7, quant_max=7)
    assert y.isnan().tolist() == [True, False]


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_a_weight_on_its_own_grid(axis):
    weight = noise(3, 4, 2)
    quantizer = FakeQuantizeWeight(bits=3, axis=axis)
    wanted = quantize(weight, bits=3, axis=axis)
    assert torch.equal(quantizer(weight), wanted.dequantize())
    assert torch.equal(quantizer.grid(weight).scale, wanted.scale)
    assert torch.equal(quantizer.grid(2 * weight).scale, 2 * wanted.scale)  # of the weight as it is now
    assert not list(quantizer.buffers())


def test_the_moving_average_by_hand():
    # 0..3, then a batch from -1 to 7: with momentum 0.5 the range becomes -0.5..5, and the scale 5.5 / 3.
    quantizer = FakeQuantize(0.0, 3.0, bits=2, momentum=0.5)
    assert (quantizer.scale.item(), quantizer.zero_point.item()) == (1.0, 0)
    quantizer(torch.tensor([-1.0, 7.0]))
    assert (quantizer.minimum.item(), quantizer.maximum.item()) == (-0.5, 5.0)
    assert quantizer.scale.item() == pytest.approx(5.5 / 3)
    assert quantizer.zero_point.item() == 0  # 0.5 / (5.5 / 3) = 0.27
    assert quantizer.grid().bits == 2
    assert not quantizer.grid().symmetric
    assert torch.equal(quantizer.grid().scale, quantizer.scale)


def test_the_batch_that_moves_the_range_is_quantized_with_the_new_one():
    x = torch.tensor([0.0, 30.0])
    assert FakeQuantize(0.0, 3.0, bits=8, momentum=1.0)(x).tolist() == [0.0, 30.0]


@pytest.mark.parametrize("stand_still", ["eval", "frozen", "no elements"])
def test_when_the_range_stands_still(stand_still):
    quantizer = FakeQuantize(0.0, 3.0, bits=4)
    quantizer.eval() if stand_still == "eval" else None
    quantizer.freeze() if stand_still == "frozen" else None
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(100 * noise(0 if stand_still == "no elements" else 50))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())
    moving = FakeQuantize(0.0, 3.0, bits=4)
    moving(100 * noise(50))
    assert moving.maximum > 10 * quantizer.maximum / 3


def test_its_state_says_all():
    quantizer = FakeQuantize(-1.0, 3.0, bits=4)
    quantizer(5 * noise(50))
    fresh = FakeQuantize(0.0, 1.0, bits=4).eval()
    fresh.load_state_dict(quantizer.state_dict())
    assert torch.equal(fresh(noise(9, seed=1)), quantizer.eval()(noise(9, seed=1)))


def test_the_gradient_passes_through_the_module():
    x = torch.tensor([-1.0, 1.2, 9.0], requires_grad=True)
    FakeQuantize(0.0, 3.0, bits=2).eval()(x).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize(("symmetric", "axis"), [(True, None), (False, 1)])
def test_dequantize(symmetric, axis):
    quantized = quantize(noise(3, 4), bits=4, symmetric=symmetric, axis=axis)
    module = Dequantize(quantized)
    assert torch.equal(module(quantized.levels), quantized.dequantize())
    assert set(module.state_dict()) == {"scale", "zero_point"}
    assert module.double()(quantized.levels).dtype == torch.float64


@pytest.mark.parametrize("quantizer", [FakeQuantize(-1.0, 1.0, bits=4), Dequantize(quantize(noise(2, 6)))])
def test_it_exports_with_any_batch_size(quantizer):
    example = quantize(noise(3, 6)).levels if isinstance(quantizer, Dequantize) else noise(3, 6)
    model = nn.Sequential(quantizer).eval()
    if isinstance(quantizer, Dequantize):  # one scale, so any number of rows
        model = nn.Sequential(Dequantize(quantize(noise(2, 6)))).eval()
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(model, (example,), dynamic_shapes=shapes).module()
    other = torch.cat([example, example, example])
    assert torch.equal(program(other), model(other))


def test_errors():
    x = torch.ones(2)
    with pytest.raises(ValueError, match="quant_min=7 must be below quant_max=-7"):
        fake_quantize(x, x[0], x[0], quant_min=7, quant_max=-7)
    with pytest.raises(ValueError, match=r"momentum=2 must be in 0\.\.1"):
        FakeQuantize(0.0, 1.0, momentum=2)
    with pytest.raises(ValueError, match="bits=1 must be at least 2"):
        FakeQuantizeWeight(bits=1)
    with pytest.raises(ValueError, match=r"bits=17 must be an integer in 1\.\.16"):
        FakeQuantize(0.0, 1.0, bits=17)
    with pytest.raises(ValueError, match=r"finite and ordered, got 1\.\.0"):
        FakeQuantize(1.0, 0.0)
    quantizer = FakeQuantize(0.0, 1.0)
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="an activation must be finite, got"):
            quantizer(torch.tensor([1.0, value]))
    assert quantizer.maximum == 1
