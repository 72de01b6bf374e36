"""NF4: levels by their definition, blocks and bytes by hand, and against this course's formats and torchao."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compresslab.formats.blocks import round_nf4
from compresslab.quantization.affine import quantize
from compresslab.quantization.nf4 import LEVELS, nf4_model, quantize_nf4
from compresslab.testing import check_compressor


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_levels_by_their_definition():
    """Appendix E: quantiles of the normal curve, 8 from the left of it, 9 from the right, one 0 dropped, over the last."""
    normal = torch.distributions.Normal(torch.tensor(0.0).double(), 1)
    offset = (1 - 1 / 32 + 1 - 1 / 30) / 2
    right = normal.icdf(torch.linspace(offset, 0.5, 9).double())[:-1]
    left = -normal.icdf(torch.linspace(offset, 0.5, 8).double())[:-1]
    wanted = torch.cat([left, torch.zeros(1).double(), right.flip(0)]) / right[0]
    assert torch.allclose(torch.tensor(LEVELS).double(), wanted, atol=1e-6)


def test_by_hand():
    # The first block of two: 4 and -1, scale 4: 1.0 is level 15, -0.25 lies between -0.284 (4) and -0.185 (5): 4.
    # The second: 0.5 and 0.25, scale 0.5: level 15, and 0.5 lies between 0.441 (12) and 0.563 (13): 12 by 0.0593.
    # The third is short: 0, and nothing to divide by.
    result = quantize_nf4(torch.tensor([[4.0, -1.0, 0.5, 0.25, 0.0]]), block_size=2, double=False)
    assert result.levels.tolist() == [[15, 4, 15, 12, 7]]
    assert result.scales.tolist() == [4, 0.5, 0]
    wanted = [4.0, 4 * LEVELS[4], 0.5, 0.5 * LEVELS[12], 0.0]
    assert torch.allclose(result.dequantize(), torch.tensor([wanted]))
    assert result.nbytes == 3 + 3 * 4  # five levels in three bytes


def test_double_quantization_by_hand():
    # Scales 1, 3 and 5, mean 3. Off the mean -2, 0 and 2: with one step of 2 / 127 they are -127, 0 and 127, exactly.
    result = quantize_nf4(torch.tensor([1.0, 0.0, 3.0, 0.0, 5.0, 0.0]), block_size=2)
    assert result.mean.item() == 3
    assert result.scales.levels[0, :4].tolist() == [-127, 0, 127, 0]
    assert result.scales.scale.tolist() == pytest.approx([2 / 127])
    assert torch.allclose(result.dequantize(), torch.tensor([1.0, 0, 3, 0, 5, 0]))
    assert result.nbytes == 3 + 3 + 4 + 4  # levels, a byte a block, one c_1, the mean


def test_bits_per_weight():
    blocks = 256 * 40
    result = quantize_nf4(noise(blocks, 64))
    assert result.bits_per_weight == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-4)
    assert round(result.bits_per_weight, 3) == 4.127
    assert quantize_nf4(noise(blocks, 64), double=False).bits_per_weight == 4.5
    assert quantize_nf4(torch.zeros(0)).bits_per_weight == float("inf")
    assert quantize_nf4(torch.zeros(0)).dequantize().shape == (0,)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    shape=st.sampled_from([(7,), (3, 50), (2, 3, 64), (130,), ()]), block=st.sampled_from([1, 4, 64]),
    seed=st.integers(0, 10**6), dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)  # fmt: skip
def test_the_values_are_those_of_the_format(shape, block, seed, dtype):
    x = (noise(*shape, seed=seed) * noise(*shape, seed=seed + 1).exp()).to(dtype)
    result = quantize_nf4(x, block_size=block, double=False)
    y = result.dequantize()
    assert y.shape == x.shape
    assert y.dtype == dtype
    wanted = round_nf4(x.flatten(), block=block).reshape(x.shape).to(dtype)
    assert torch.allclose(y.double(), wanted.double(), rtol=1e-6 if dtype != torch.bfloat16 else 1e-2)


def test_torchao_agrees():
    tensor = pytest.importorskip("torchao.quantization.quantize_.workflows.nf4.nf4_tensor")
    x = noise(512, 64)  # two rows of 256 scales
    theirs = tensor.to_nf4(x, 64, 256).get_original_weight()
    ours = quantize_nf4(x).dequantize()
    # Their levels have four digits, so a weight on a border may go the other way; their 8 bits divide by 128 where we
    # divide by 127, so a scale may be off by a step.
    scales = x.abs().amax(1)
    step = (scales - scales.mean()).abs().max() / 127
    assert ((ours - theirs).abs() > 1.5 * step).float().mean() < 1e-3
    assert (theirs - x).square().mean().item() == pytest.approx((ours - x).square().mean().item(), rel=1e-3)


def test_a_second_quantization_costs_little():
    x = noise(512, 64)
    once, twice = (quantize_nf4(x, double=each) for each in (False, True))
    errors = [(each.dequantize() - x).square().mean() for each in (once, twice)]
    assert errors[1] < 1.01 * errors[0]
    assert torch.equal(once.levels, twice.levels)
    rows = twice.scales.dequantize().flatten() + twice.mean
    assert (rows - once.scales).abs().max() <= 0.5001 * twice.scales.scale.max()


def test_each_256_blocks_have_a_scale_of_their_own():
    x = noise(512, 64)
    x[256:] *= 1000
    scale = quantize_nf4(x).scales.scale
    assert scale.shape == (2,)
    shares = x.abs().amax(1) - x.abs().amax(1).mean()
    assert torch.allclose(scale, shares.reshape(2, 256).abs().amax(1) / 127)


def test_normal_weights_like_it():
    x = noise(512, 64)
    nearest = quantize(x, bits=4, group_size=64).dequantize()
    assert (quantize_nf4(x).dequantize() - x).square().mean() < 0.9 * (nearest - x).square().mean()


def test_a_model():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4), nn.LayerNorm(4))
    result = nf4_model(model, skip=["3"])
    assert list(result.weights) == ["0.weight"]
    assert result.skipped["3.weight"] == "left out by the caller"
    assert "only matrices and kernels" in result.skipped["4.weight"]
    rows = model[0].weight.detach().flatten(1)
    assert torch.equal(result.model[0].weight.flatten(1), quantize_nf4(rows).dequantize())
    # 216 levels in 108 bytes, 4 blocks of a byte, one c_1 and the mean; biases 8 + 4, a weight of 32, the norm's 8.
    assert result.nbytes == 108 + 4 + 4 + 4 + 4 * (8 + 4 + 32 + 8)
    assert torch.equal(result.model[3].weight, model[3].weight)


def test_errors():
    with pytest.raises(ValueError, match="x must be finite, got 1 NaN"):
        quantize_nf4(torch.tensor([float("nan")]))
    with pytest.raises(TypeError, match=r"x must be floating point, got torch\.int64"):
        quantize_nf4(torch.tensor([1]))
    with pytest.raises(ValueError, match="block_size=0 must be an integer of at least 1; try 64"):
        quantize_nf4(torch.ones(2), block_size=0)
    with pytest.raises(ValueError, match=r"\['body'\] must be weights of the model"):
        nf4_model(nn.Linear(2, 2), skip=["body"])


def test_the_common_checks():
    check_compressor(lambda model, batches: nf4_model(model).model)
