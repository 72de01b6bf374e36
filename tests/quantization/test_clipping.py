"""Clipped ranges: by hand, against a brute-force search in float64, and never worse than min-max."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compresslab.quantization.affine import choose_grid, quantize
from compresslab.quantization.clipping import clipped_grid
from compresslab.quantization.weight_only import quantize_weights
from compresslab.testing import check_compressor


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(x: torch.Tensor, grid, importance=1.0) -> float:
    return ((grid.quantize(x).dequantize().double() - x.double()).square() * importance).sum().item()


def test_by_hand():
    # 2 bits: -s, 0, s. All four go to +-s as long as s < 1.8, so the best s is the mean of |x|, 4.6 / 4 = 1.15.
    # Tried are multiples of 1.6 / 100 = 0.016; 71 and 72 of them are 1.136 and 1.152: the second is nearer.
    x = torch.tensor([0.9, -1.1, 1.0, 1.6])
    grid = clipped_grid(x, bits=2)
    assert grid.scale.item() == pytest.approx(1.152)
    assert grid.quantize(x).levels.tolist() == [1, -1, 1, 1]
    # Of four tries 0.4, 0.8, 1.2, 1.6 the third: errors 2.07, 0.86, 0.30, 1.10 (0.49 + 0.25 + 0.36 + 0).
    assert clipped_grid(x, bits=2, steps=4).scale.item() == pytest.approx(1.2)
    assert error(x, choose_grid(-1.6, 1.6, bits=2)) == pytest.approx(1.10)


def test_the_narrowest_try_by_hand():
    # s = 1: 0.5 lies half way and goes to 0, four times 0.25. s = 0.5, the narrower of two: 1.0 is clipped, once 0.25.
    assert clipped_grid(torch.tensor([0.5, 0.5, 0.5, 0.5, 1.0]), bits=2, steps=2).scale.item() == 0.5


def test_importance_by_hand():
    # Only the last element counts, and the widest range hits it exactly.
    x = torch.tensor([0.9, -1.1, 1.0, 1.6])
    assert clipped_grid(x, bits=2, importance=torch.tensor([0.0, 0.0, 0.0, 1.0])).scale.item() == pytest.approx(1.6)
    # 1.0 and 1.6 count alike: their mean is 1.3; of the multiples 1.296 and 1.312 the first is nearer.
    found = clipped_grid(x, bits=2, importance=torch.tensor([0.0, 0.0, 1.0, 1.0]))
    assert found.scale.item() == pytest.approx(1.296)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_brute_force(bits, symmetric):
    """For each row, each of 20 ranges, quantized by torch's own fake quantization."""
    rows, steps = noise(5, 40, seed=bits), 20
    weight = noise(40).square()
    grid = clipped_grid(rows, bits=bits, symmetric=symmetric, axis=0, importance=weight, steps=steps)
    for place, row in enumerate(rows):
        widest = quantize(row, bits=bits, symmetric=symmetric).grid
        ends = [(end - widest.zero_point.item()) * widest.scale.item() for end in (widest.quant_min, widest.quant_max)]
        errors = []
        for step in range(1, steps + 1):
            one = choose_grid(*(end * step / steps for end in ends), bits=bits, symmetric=symmetric)
            if bits == 1 and symmetric:
                theirs = row.sign() * one.scale
            else:
                theirs = torch.fake_quantize_per_tensor_affine(
                    row, one.scale.item(), one.zero_point.item(), one.quant_min, one.quant_max
                )
            errors.append(((theirs - row).double().square() * weight).sum().item())
        found = error(row, choose_grid_of(grid, place), weight)
        assert found == pytest.approx(min(errors), rel=1e-4)


def choose_grid_of(grid, place: int):
    return type(grid)(grid.scale[place], grid.zero_point[place], grid.bits, grid.symmetric)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6), bits=st.integers(1, 6), symmetric=st.booleans(),
    kind=st.sampled_from([{}, {"axis": 0}, {"axis": 1}, {"group_size": 4}]),
)  # fmt: skip
def test_never_worse_than_minmax(seed, bits, symmetric, kind):
    x = noise(6, 8, seed=seed) * noise(6, 8, seed=seed + 1).exp()
    options = {"bits": bits, "symmetric": symmetric, **kind}
    widest, clipped = quantize(x, **options).grid, clipped_grid(x, **options)
    assert clipped.scale.shape == widest.scale.shape
    assert clipped.zero_point.dtype is widest.zero_point.dtype
    assert (clipped.axis, clipped.group_size, clipped.bits) == (widest.axis, widest.group_size, bits)
    assert error(x, clipped) <= error(x, widest) * (1 + 1e-6)
    assert (clipped.scale <= widest.scale * (1 + 1e-6)).all()


def test_normal_weights_at_four_bits():
    """Clipped at about half the maximum, about a third of the error is left (a published search: 0.522 and 0.344)."""
    x = noise(50_000)
    grid = clipped_grid(x, bits=4)
    assert 0.25 < error(x, grid) / error(x, quantize(x, bits=4).grid) < 0.45
    assert 0.45 < (7 * grid.scale / x.abs().max()).item() < 0.7


def test_each_scale_by_itself():
    x = noise(3, 32)
    x[1] *= 100
    whole = clipped_grid(x, bits=3, axis=0).scale
    for place in range(3):
        assert whole[place] == clipped_grid(x[place], bits=3).scale
    groups = clipped_grid(x, bits=3, group_size=8).scale
    assert torch.equal(groups[1, 2:3], clipped_grid(x[1:2, 16:24], bits=3, axis=0).scale)


def test_zeros_halves_and_empty():
    assert clipped_grid(torch.zeros(3), bits=4).scale.item() == 1
    assert clipped_grid(torch.tensor(2.0), bits=4).quantize(torch.tensor(2.0)).dequantize().item() == pytest.approx(2)
    half = clipped_grid(noise(2, 64).bfloat16(), bits=4, axis=0)
    assert half.scale.dtype is torch.float32
    assert clipped_grid(torch.zeros(0, 4), bits=4, axis=0).scale.shape == (0,)


def test_a_model():
    model = nn.Sequential(nn.Linear(64, 8), nn.Conv1d(8, 4, 3))
    result = quantize_weights(model, bits=3, method="mse")
    for name, weight in result.weights.items():
        rows = model.get_parameter(name).detach().flatten(1)
        assert torch.equal(weight.scale, clipped_grid(rows, bits=3, axis=0).scale)
    assert result.nbytes == quantize_weights(model, bits=3).nbytes
    check_compressor(
        lambda model, batches: quantize_weights(model, bits=4, method="mse").model,
        models=("mlp", "conv_bn", "tied", "float16", "nan"),
    )


def test_errors():
    x = torch.tensor([1.0, 2.0])
    with pytest.raises(ValueError, match="steps=0 must be an integer of at least 1; try 100"):
        clipped_grid(x, steps=0)
    with pytest.raises(ValueError, match=r"steps=1\.5 must be an integer"):
        clipped_grid(x, steps=1.5)
    with pytest.raises(ValueError, match="bits=0 must be an integer"):
        clipped_grid(x, bits=0)
    with pytest.raises(ValueError, match="x must be finite, got 1 NaN"):
        clipped_grid(torch.tensor([float("nan")]))
    with pytest.raises(ValueError, match="importance must be finite, got 0 NaN and 1 infinite"):
        clipped_grid(x, importance=torch.tensor([1.0, float("inf")]))
    with pytest.raises(ValueError, match="importance must be at least 0, got -1; pass mean squares"):
        clipped_grid(x, importance=torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="method='kl' must be 'minmax' or 'mse'"):
        quantize_weights(nn.Linear(2, 2), method="kl")
