"""HQQ: a step by hand, a transcription in float64, and never worse than the nearest on its own objective."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compresslab.quantization.affine import quantize
from compresslab.quantization.hqq import hqq_model, quantize_hqq
from compresslab.testing import check_compressor


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def objective(x: Tensor, y: Tensor, group_size: int, scale: Tensor, p: float) -> Tensor:
    """By group: sum of |error in steps|^p."""
    return ((x - y).double().unflatten(-1, (-1, group_size)) / scale.double().unsqueeze(-1)).abs().pow(p).sum(-1)


def test_one_step_by_hand():
    # Two bits over 0..3: scale 1, zero point 0, levels 0 1 1 2 2 3, errors d of 0.3 four times.
    # p = 1: e = 0.3 - 1/10 = 0.2. z = mean(level - (x - e)) = 4 (-0.3 + 0.2) / 6 = -1/15.
    # The errors are then 4 times 0.3 - 1/15 and twice 1/15: 16/15 in all, before 18/15: better, so it is kept.
    x = torch.tensor([0.0, 1.3, 1.3, 2.3, 2.3, 3.0])
    result = quantize_hqq(x, bits=2, group_size=6, p=1, steps=1)
    assert result.zero_point.item() == pytest.approx(-1 / 15, abs=1e-6)
    assert result.levels.tolist() == [0, 1, 1, 2, 2, 3]
    assert torch.allclose(result.dequantize(), result.levels + 1 / 15)
    # With p = 0.7 an error of 0.3 shrinks by 0.3^-0.3 / 10: z = 4 (-0.1435) / 6.
    result = quantize_hqq(x, bits=2, group_size=6, steps=1)
    assert result.zero_point.item() == pytest.approx(-4 * 0.3**-0.3 / 10 / 6, abs=1e-6)


def test_no_step_is_the_nearest():
    x = noise(8, 32)
    result, nearest = (
        quantize_hqq(x, bits=3, group_size=16, steps=0),
        quantize(x, bits=3, symmetric=False, group_size=16),
    )
    assert torch.equal(result.zero_point, nearest.zero_point.float())
    assert torch.allclose(result.dequantize(), nearest.dequantize(), atol=1e-6)


def reference(w: Tensor, bits: int, p: float, steps: int) -> tuple[Tensor, Tensor]:
    """One group in float64, written as the authors' code is (reciprocal scale, loops), the least objective kept."""
    start = quantize(w, bits=bits, symmetric=False)
    scale, zero = 1 / start.scale.item(), float(start.zero_point)
    beta, best = 10.0, None
    for _ in range(steps + 1):
        q = [min(max(round(v * scale + zero), 0), 2**bits - 1) for v in w.tolist()]
        r = [(level - zero) / scale for level in q]
        errors = [(v - y) * scale for v, y in zip(w.tolist(), r, strict=True)]
        loss = sum(abs(e) ** p for e in errors)
        if best is None or loss < best[0]:
            best = loss, r
        shrunk = [max(abs(e) - abs(e) ** (p - 1) / beta, 0) * (1 if e > 0 else -1) if e else 0.0 for e in errors]
        moved = [level - (v * scale - e) for level, v, e in zip(q, w.tolist(), shrunk, strict=True)]
        zero = sum(moved) / len(moved)
        beta *= 1.01
    return torch.tensor(best[1], dtype=torch.float64)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("p", [0.5, 0.7, 1.0])
def test_a_transcription(bits, p):
    x = noise(6, 32, seed=bits).double()
    result = quantize_hqq(x, bits=bits, group_size=16, p=p)
    wanted = torch.stack([reference(group, bits, p, 20) for group in x.reshape(-1, 16)]).reshape(x.shape)
    if p < 1:  # with p = 1 many zero points are equally good
        assert torch.allclose(result.dequantize(), wanted, atol=1e-9)
    errors = [objective(x, each, 16, result.scale, p) for each in (result.dequantize(), wanted)]
    assert torch.allclose(*errors, atol=1e-6)  # rounding near 0, to the power of p


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6), bits=st.integers(1, 8), p=st.sampled_from([0.3, 0.7, 1.0]),
    size=st.sampled_from([1, 4, 16]),
)  # fmt: skip
def test_never_worse_than_the_nearest_on_its_own_objective(seed, bits, p, size):
    x = noise(6, 16, seed=seed) * noise(6, 16, seed=seed + 1).exp()
    result, nearest = (
        quantize_hqq(x, bits=bits, group_size=size, p=p), quantize(x, bits=bits, symmetric=False, group_size=size)
    )  # fmt: skip
    assert torch.equal(result.scale, nearest.scale)
    assert result.levels.dtype == torch.uint8
    assert int(result.levels.max()) < 2**bits
    errors = [objective(x, each.dequantize(), size, result.scale, p) for each in (result, nearest)]
    assert (errors[0] <= errors[1] + 1e-3).all()


def test_weights_with_outliers_gain_most():
    x = noise(64, 64)
    x[:, ::16] *= 4
    result, nearest = quantize_hqq(x, bits=3), quantize(x, bits=3, symmetric=False, group_size=64)
    errors = [objective(x, each.dequantize(), 64, result.scale, 0.7).sum() for each in (result, nearest)]
    assert errors[0] < 0.97 * errors[1]


def test_bytes_by_hand():
    # 3 bits: 96 levels in 36 bytes; three groups with a scale and a zero point of four bytes.
    result = quantize_hqq(noise(3, 32), bits=3, group_size=32)
    assert result.nbytes == 36 + 3 * 8
    assert result.bits_per_weight == 5
    assert quantize_hqq(torch.zeros(0), group_size=1).bits_per_weight == float("inf")
    assert quantize_hqq(torch.zeros(2, 4), group_size=4).dequantize().tolist() == [[0] * 4] * 2
    assert quantize_hqq(noise(2, 8).bfloat16(), group_size=4).dequantize().dtype == torch.bfloat16


def test_a_model():
    model = nn.Sequential(nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 4))
    result = hqq_model(model, bits=3, group_size=32, skip=["2"])
    rows = model[0].weight.detach()
    assert torch.equal(result.model[0].weight, quantize_hqq(rows, bits=3, group_size=24).dequantize())  # 24 divides 48
    assert result.skipped["2.weight"] == "left out by the caller"
    assert result.nbytes == 384 * 3 // 8 + 16 * 8 + 4 * (8 + 32 + 4)


def test_errors():
    x = torch.ones(4)
    with pytest.raises(ValueError, match=r"p=0 must be above 0 and at most 1; try 0\.7"):
        quantize_hqq(x, group_size=4, p=0)
    with pytest.raises(ValueError, match="p=2 must be above 0"):
        quantize_hqq(x, group_size=4, p=2)
    with pytest.raises(ValueError, match="steps=-1 must be an integer of at least 0; try 20"):
        quantize_hqq(x, group_size=4, steps=-1)
    with pytest.raises(ValueError, match=r"group_size=3 must divide the last axis \(4\)"):
        quantize_hqq(x, group_size=3)
    with pytest.raises(ValueError, match="bits=0 must be an integer"):
        quantize_hqq(x, bits=0, group_size=4)
    with pytest.raises(ValueError, match="x must be finite, got 1 NaN"):
        quantize_hqq(torch.tensor([float("nan")]), group_size=1)


def test_the_common_checks():
    check_compressor(lambda model, batches: hqq_model(model).model)
