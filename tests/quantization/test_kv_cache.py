"""The KV cache: axes and bytes by hand, every split of a text alike, and the course's GPT writing with it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compresslab.quantization.affine import quantize
from compresslab.quantization.kv_cache import KVCache, quantize_keys, quantize_values
from compresslab.workbench import checkpoints, data, models


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_axes_by_hand():
    # Keys: for each channel the tokens 0 and 1, then 2 and 3: 0..3 in steps of 1, 0..30 in steps of 10.
    keys = torch.tensor([[3.0, 0.0], [0.9, 30.0], [0.0, 12.0], [6.0, 30.0]])
    result = quantize_keys(keys, bits=2, group_size=2)
    assert result.scale.tolist() == [[1, 2], [10, 10]]
    assert result.dequantize().T.tolist() == [[3, 0], [1, 30], [0, 10], [6, 30]]
    # Values: for each token two channels, then the other two.
    values = torch.tensor([[3.0, 0.9, 0.0, 6.0], [0.0, 30.0, 12.0, 30.0]])
    result = quantize_values(values, bits=2, group_size=2)
    assert result.scale.tolist() == [[1, 2], [10, 10]]
    assert result.dequantize().tolist() == [[3, 1, 0, 6], [0, 30, 10, 30]]
    assert quantize_values(noise(5, 24), group_size=32).scale.shape == (5, 1)
    assert quantize_values(noise(5, 24), group_size=16).scale.shape == (5, 2)


def test_a_loud_channel_wants_a_scale_of_its_own():
    keys = noise(64, 16)
    keys[:, 3] *= 50
    error, wrong = (
        (quantize_keys(keys, bits=4).dequantize().T - keys)[:, :3].square().mean(),
        (quantize_values(keys, bits=4).dequantize() - keys)[:, :3].square().mean(),
    )
    assert error < wrong / 30


def test_a_cache_by_hand():
    # Groups of 2, 1 token stays: of 2 tokens none goes, of 3 the first two, of 6 the first four.
    x = noise(2, 3, 6, 8)
    cache = KVCache(bits=4, group_size=2, residual=1)
    assert (cache.length, cache.quantized_length, cache.nbytes) == (0, 0, 0)
    lengths = []
    for token in range(6):
        keys, values = cache.update(x[..., token : token + 1, :], -x[..., token : token + 1, :])
        lengths.append((cache.length, cache.quantized_length))
    assert lengths == [(1, 0), (2, 0), (3, 2), (4, 2), (5, 4), (6, 4)]
    assert keys.shape == values.shape == x.shape
    # The newest are as they came, the old ones are rounded in pairs.
    assert torch.equal(keys[..., 4:, :], x[..., 4:, :])
    assert torch.equal(values[..., 4:, :], -x[..., 4:, :])
    pairs = x[..., :4, :].transpose(-1, -2)
    assert torch.equal(
        keys[..., :4, :], quantize(pairs, bits=4, symmetric=False, group_size=2).dequantize().transpose(-1, -2)
    )
    assert torch.equal(values[..., :4, :], quantize(-x[..., :4, :], bits=4, symmetric=False, group_size=2).dequantize())
    # For 6 pairs of batch and head, 4 old tokens of 8 channels: 16 bytes of levels and 16 groups of a scale (4 bytes)
    # and a zero point (half a byte) for the keys, the same for the values; 2 new tokens of 8 floats, twice.
    assert cache.nbytes == 6 * (2 * (16 + 16 * 4.5) + 2 * 2 * 8 * 4)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=8), group_size=st.integers(1, 5), residual=st.integers(0, 6),
    seed=st.integers(0, 100),
)  # fmt: skip
def test_what_is_stored_does_not_depend_on_how_tokens_come(cuts, group_size, residual, seed):
    x = noise(1, 2, sum(cuts), 4, seed=seed)
    parts, whole = (KVCache(bits=3, group_size=group_size, residual=residual) for _ in range(2))
    for part in x.split(cuts, -2):
        keys, _ = parts.update(part, part + 1)
        assert torch.equal(keys[..., -part.shape[-2] :, :], part)  # what has just come is not rounded yet
    whole.update(x, x + 1)
    assert parts.length == whole.length == x.shape[-2]
    assert parts.quantized_length == whole.quantized_length
    assert residual <= parts.length - parts.quantized_length < residual + group_size or parts.quantized_length == 0
    assert parts.nbytes == whole.nbytes
    empty = x[..., :0, :]
    assert all(torch.equal(a, b) for a, b in zip(parts.update(empty, empty), whole.update(empty, empty), strict=True))


def small() -> torch.nn.Module:
    return models.build("gpt", width=16, depth=2, heads=2, context=24).eval()


@pytest.mark.parametrize("cuts", [[24], [1] * 24, [5, 1, 1, 10, 7], [1, 23]])
def test_a_float_cache_changes_nothing(cuts):
    model = small()
    tokens = torch.randint(0, 256, (3, 24), generator=torch.Generator().manual_seed(0))
    caches = [KVCache(bits=None) for _ in model.blocks]
    with torch.no_grad():
        logits = torch.cat([model(part, caches) for part in tokens.split(cuts, 1)], 1)
        assert torch.allclose(logits, model(tokens), atol=1e-5)
    assert caches[0].length == 24
    assert caches[0].nbytes == 3 * 24 * 16 * 2 * 4  # sequences, tokens, width, keys and values, bytes


def test_the_gpt_of_the_course_on_real_text():
    model = checkpoints.load("gpt")
    (inputs, targets), *_ = data.load("python-docs").val.batches(8, context=128)

    @torch.no_grad()
    def perplexity(bits: int | None, residual: int = 0) -> tuple[float, float]:
        caches = [KVCache(bits=bits, residual=residual) for _ in model.blocks]
        logits = torch.cat([model(inputs[:, place : place + 1], caches) for place in range(128)], 1)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).item()
        return math.exp(loss), sum(cache.nbytes for cache in caches) / inputs.numel()

    plain, size = perplexity(None)
    assert size == 4 * 96 * 2 * 4  # layers, width, keys and values, bytes
    found = {bits: perplexity(bits) for bits in (8, 4, 2)}
    assert found[8][0] == pytest.approx(plain, rel=2e-3)
    assert found[4][0] == pytest.approx(plain, rel=1e-2)
    assert plain * 1.005 < found[2][0] < plain * 1.1
    assert perplexity(2, residual=32)[0] < found[2][0]
    # Of 32 elements: 4 bytes of scale and 4 bits of zero point; of a value's 24 channels in a head the same.
    assert found[4][1] == 4 * (96 * (4 + 4.5 * 8 / 32) + 96 * (4 + 4.5 * 8 / 24)) / 8


def test_the_caches_must_fit_the_model():
    model, tokens = small(), torch.zeros(1, 20, dtype=torch.int64)
    with pytest.raises(ValueError, match="caches must be one for each of 2 blocks, got 1"):
        model(tokens, [KVCache()])
    caches = [KVCache(), KVCache()]
    model(tokens, caches)
    with pytest.raises(ValueError, match="tokens of length 40 are longer than the context of 24; cut them"):
        model(tokens, caches)


def test_errors():
    with pytest.raises(ValueError, match="bits=0 must be an integer"):
        KVCache(bits=0)
    with pytest.raises(ValueError, match="group_size=0 must be at least 1; try 32"):
        KVCache(group_size=0)
    with pytest.raises(ValueError, match="residual=-1 must be at least 0; try 32"):
        KVCache(residual=-1)
    with pytest.raises(ValueError, match="group_size=0 must be at least 1; try 32"):
        quantize_values(noise(2, 4), group_size=0)
    with pytest.raises(ValueError, match=r"group_size=3 must divide the last axis \(4\)"):
        quantize_keys(noise(4, 2), group_size=3)
    cache, x = KVCache(bits=4, group_size=2, residual=0), noise(1, 2, 3, 4)
    with pytest.raises(
        ValueError, match=r"must fit each other and the 0 tokens before, got \(1, 2, 3, 4\) and \(1, 2, 2"
    ):
        cache.update(x, x[..., :2, :])
    cache.update(x, x)
    with pytest.raises(ValueError, match=r"and the 3 tokens before, got \(1, 1, 3, 4\) and \(1, 1, 3, 4\)"):
        cache.update(x[:, :1], x[:, :1])
    with pytest.raises(ValueError, match="x must be finite, got 24 NaN"):
        cache.update(x / 0 * 0, x)
