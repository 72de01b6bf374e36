"""Product quantization: bytes by hand, a fixed point, and pieces that vary together cost less than apart."""

from __future__ import annotations

import pytest
import torch

from compresslab.factorization import kmeans, product_quantize


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_bytes_and_weight_by_hand():
    weight = torch.tensor([[1.0, 2.0, 9.0, 9.0], [9.0, 9.0, 1.0, 2.0], [1.0, 2.0, 1.0, 2.0]])
    found = product_quantize(weight, 2, block=2)
    assert torch.equal(found.weight(), weight) and found.indices.shape == (3, 2)
    assert found.nbytes == 1 + 2 * 2 * 4  # six indices of a bit, two codewords of two values


def test_one_weight_at_a_time_is_kmeans():
    weight = draw(20, 30)
    errors = [(weight - product_quantize(weight, 8, block=1, iterations=300, generator=torch.Generator().manual_seed(s)).weight()).square().sum() for s in range(5)]  # fmt: skip
    ours = (weight - kmeans(weight, 8, init="density").weight()).square().sum()
    assert float(min(errors)) == pytest.approx(float(ours), rel=0.03)


def test_it_is_a_fixed_point():
    weight = draw(32, 32)
    found = product_quantize(weight, 16, block=4, iterations=500)
    pieces, indices = weight.reshape(-1, 4), found.indices.flatten()
    distances = torch.cdist(pieces.double(), found.codewords.double())
    assert torch.allclose(distances.min(1).values, distances.gather(1, indices.unsqueeze(1)).squeeze(1), atol=1e-5)
    for index in range(16):
        assert torch.allclose(found.codewords[index], pieces[indices == index].mean(0), atol=1e-4)


def test_pieces_that_vary_together_cost_less():
    together = draw(64, 16).repeat_interleave(4, dim=1)  # pieces of four equal weights
    errors = [
        float((together - product_quantize(together, clusters, block=block).weight()).square().mean())
        for clusters, block in ((16, 4), (2, 1))  # one bit a weight each
    ]
    assert errors[0] < 0.3 * errors[1]


def test_enough_codewords_are_exact_and_dtypes_stay():
    weight = draw(4, 8).half()
    found = product_quantize(weight, 16, block=2, iterations=3)
    assert torch.equal(found.weight(), weight) and found.codewords.dtype == torch.float16
    same = product_quantize(torch.ones(4, 4), 3, block=2)  # fewer distinct pieces than codewords
    assert torch.equal(same.weight(), torch.ones(4, 4))


def test_errors():
    weight = torch.ones(2, 6)
    for args, options, message in (
        ((torch.ones(3), 1), {}, r"weight must be a finite matrix, got \(3,\)"),
        ((weight * float("inf"), 1), {}, "weight must be a finite matrix"),
        ((weight, 1), {"block": 4}, "block=4 must divide the rows of 6"),
        ((weight, 1), {"block": 0}, "block=0 must divide"),
        ((weight, 7), {"block": 2}, r"clusters=7 must be a whole number in 1\.\.6"),
        ((weight, 2), {"block": 2, "iterations": 0}, "iterations=0 must be a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            product_quantize(*args, **options)
