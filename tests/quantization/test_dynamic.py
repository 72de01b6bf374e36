"""Dynamic quantization: integers by hand, exact sums, and what is replaced and what is not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compresslab.quantization.affine import quantize
from compresslab.quantization.dynamic import DynamicLinear, integer_matmul, quantize_dynamic
from compresslab.testing import check_compressor, hostile


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_by_hand():
    # Weights [127, 63.6] and [-1.27, 0.5]: scales 1 and 0.01, levels [127, 64] and [-127, 50].
    # Token [12.7, -0.26]: scale 0.1, levels [127, -3]. Sums 127^2 - 192 = 15937 and -127^2 - 150 = -16279.
    linear = nn.Linear(2, 2)
    linear.weight.data = torch.tensor([[127.0, 63.6], [-1.27, 0.5]])
    linear.bias.data = torch.tensor([1.0, 0.0])
    y = DynamicLinear(linear)(torch.tensor([[12.7, -0.26]]))
    assert torch.allclose(y, torch.tensor([[1593.7 + 1, -16.279]]))


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(0, 20), st.integers(1, 40), st.integers(1, 20), st.integers(0, 9))
def test_sums_are_exact(m, k, n, seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randint(-128, 128, shape, generator=generator) for shape in ((m, k), (k, n)))
    product = integer_matmul(a.to(torch.int8), b.to(torch.int8))
    assert product.dtype == torch.int32
    assert torch.equal(product.long(), a @ b)


def test_a_long_sum_does_not_wrap():
    a = torch.full((1, 100_000), 127, dtype=torch.int8)
    assert integer_matmul(a, a.T).item() == 127 * 127 * 100_000


@pytest.mark.parametrize("per_token", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_is_the_product_of_the_dequantized(per_token, dtype):
    linear, x = nn.Linear(9, 5).to(dtype), noise(2, 3, 9).to(dtype)
    x[0] *= 30
    y = DynamicLinear(linear, per_token=per_token)(x)
    rows = quantize(x.reshape(6, 9).double(), axis=0 if per_token else None).dequantize().reshape(x.shape)
    expected = rows @ quantize(linear.weight.double(), axis=0).dequantize().T + linear.bias.double()
    assert y.dtype == dtype
    parts = 2 * torch.finfo(torch.float32).eps * expected.abs().max().item()  # a sum may be near 0 where they are not
    assert torch.allclose(y.double(), expected, atol=1e-5 + parts, rtol=2 * torch.finfo(dtype).eps)


def test_a_scale_for_each_token_survives_one_loud_token():
    linear, x = nn.Linear(32, 16), noise(64, 32)
    x[0] *= 1000
    with torch.no_grad():
        errors = [(DynamicLinear(linear, per_token=each)(x) - linear(x))[1:].square().mean() for each in (True, False)]
    assert errors[0] < errors[1] / 100


def test_what_is_replaced_and_what_is_not():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4, 6), nn.Linear(6, 2)).eval()
    result = quantize_dynamic(model, skip=["3"])
    assert result.replaced == ("2",)
    assert result.skipped == {"0": "Conv2d: only Linear layers are replaced", "3": "left out by the caller"}
    assert isinstance(result.model[2], DynamicLinear)
    assert not result.model[2].training
    assert isinstance(model[2], nn.Linear)
    shared = quantize_dynamic(hostile("shared").model)
    assert shared.replaced == ("first", "again", "head")
    assert shared.model.first is shared.model.again
    assert isinstance(quantize_dynamic(nn.Linear(2, 2)).model, DynamicLinear)
    tied = quantize_dynamic(hostile("tied").model)
    assert tied.replaced == ("mix",)
    assert "its weight is shared" in tied.skipped["head"]
    assert tied.model.head.weight is tied.model.embedding.weight


def test_errors():
    with pytest.raises(ValueError, match=r"Sequential has no Linear layer to replace: \{'0': 'Conv2d: only"):
        quantize_dynamic(nn.Sequential(nn.Conv2d(3, 4, 1)))
    with pytest.raises(ValueError, match="ReLU has no Linear layer to replace: it has no weights"):
        quantize_dynamic(nn.ReLU())
    with pytest.raises(ValueError, match=r"skip=\['body'\] must be layers of the model; choose from \['0'\]"):
        quantize_dynamic(nn.Sequential(nn.Linear(2, 2)), skip=["body"])
    with pytest.raises(ValueError, match="x must be finite, got 1 NaN"):
        DynamicLinear(nn.Linear(2, 2))(torch.tensor([[1.0, float("nan")]]))


def test_the_common_checks():
    check_compressor(lambda model, batches: quantize_dynamic(model).model)
