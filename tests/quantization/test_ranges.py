"""Calibration: ranges by hand, numpy, scipy and brute force as oracles, and the same range however data are batched."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslab.quantization.ranges import HALF, OBSERVERS, Entropy, Histogram, Range, _divergence, calibrate

steady = settings(derandomize=True, deadline=None, max_examples=40)
STREAMING = ["minmax", "percentile", "mse", "entropy"]  # a moving average depends on the order by its nature


def noise(count: int = 20000, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def squared_error(x: torch.Tensor, found: Range, bits: int, symmetric: bool) -> float:
    return (found.grid(bits=bits, symmetric=symmetric).quantize(x).dequantize() - x).square().mean().item()


def test_minmax_and_average_by_hand():
    batches = [torch.tensor([-1.0, 2.0]), torch.tensor([[0.5], [4.0]]), torch.tensor([-3.0])]
    assert calibrate(batches) == Range(-3.0, 4.0)
    # minimum: -1, then -1 + 0.1 * (0.5 + 1) = -0.85, then -0.85 + 0.1 * (-3 + 0.85) = -1.065
    # maximum: 2, then 2 + 0.1 * (4 - 2) = 2.2, then 2.2 + 0.1 * (-3 - 2.2) = 1.68
    found = calibrate(batches, method="average")
    assert found.minimum == pytest.approx(-1.065)
    assert found.maximum == pytest.approx(1.68)


def test_a_histogram_widens_by_hand():
    # 0.75 < 2^0: bins of 1/4096, 0.75 in bin 3072, -0.25 in bin -1024. Then 5 < 2^3: bins of 8/4096,
    # 0.75 in 384, -0.25 in -128, 5 in 2560.
    observer = Histogram()
    observer.update(torch.tensor([0.75, -0.25]))
    assert observer.width == 1 / HALF
    assert (observer.counts.nonzero()[:, 0] - HALF).tolist() == [-1024, 3072]
    observer.update(torch.tensor([5.0]))
    assert observer.width == 8 / HALF
    assert (observer.counts.nonzero()[:, 0] - HALF).tolist() == [-128, 384, 2560]


# Not so small that a product with 1 / width is subnormal: a processor set to flush those moves them across 0.
ORDINARY = st.floats(-(2.0**60), 2.0**60, width=32).filter(lambda value: value == 0 or abs(value) > 1e-10)


@steady
@given(st.lists(ORDINARY, min_size=1, max_size=30), st.data())
def test_the_histogram_is_that_of_all_data_at_once(numbers, data):
    x = torch.tensor(numbers)
    sizes = data.draw(st.lists(st.integers(0, 5), max_size=8))
    parts, rest = [], x[torch.randperm(len(x), generator=torch.Generator().manual_seed(len(x)))]
    for size in sizes:
        parts.append(rest[:size])
        rest = rest[size:]
    whole, streamed = Histogram(), Histogram()
    whole.update(x)
    for part in [*parts, rest]:
        streamed.update(part)
    if x.abs().max() > 0:
        assert streamed.width == whole.width
        assert torch.equal(streamed.counts, whole.counts)
        expected, _ = np.histogram(
            np.array(numbers, dtype=np.float64), bins=(np.arange(2 * HALF + 1) - HALF) * whole.width
        )
        assert whole.counts.tolist() == expected.tolist()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("method", STREAMING)
def test_batch_size_and_order_do_not_matter(method, symmetric):
    x = noise(3000) * torch.linspace(0.01, 3, 3000)  # later batches are wider
    whole = calibrate([x], method=method, symmetric=symmetric)
    for batches in (x.split(61), x.flip(0).split(1000)):
        assert calibrate(batches, method=method, symmetric=symmetric) == whole
    assert calibrate([torch.zeros(2), 1e-9 * x, torch.zeros(2)]) == calibrate([1e-9 * x])


def test_zeros_first_do_not_coarsen_the_histogram():
    observer = Histogram()
    observer.update(torch.zeros(3))
    observer.update(torch.tensor([1e-20]))
    assert observer.width < 1e-23
    assert observer.counts.sum() == 4


def test_memory_does_not_grow():
    observer = Entropy()
    for seed in range(30):
        observer.update(noise(500, seed))
    held = [value for value in vars(observer).values() if isinstance(value, torch.Tensor)]
    assert sum(tensor.numel() for tensor in held) == 2 * HALF


def test_percentile_by_numpy():
    x = noise()
    found = calibrate(x.split(100), method="percentile")
    width = 2 * x.abs().max().item() / HALF
    assert found.maximum == pytest.approx(np.percentile(x.abs().numpy(), 99.99), abs=width + 0.2)
    observer = OBSERVERS["percentile"](symmetric=True)
    observer.percent = 90.0
    observer.update(x)
    assert observer.range().maximum == pytest.approx(np.percentile(x.abs().numpy(), 90), abs=width)
    assert observer.range().minimum == -observer.range().maximum
    observer = OBSERVERS["percentile"](symmetric=False)
    observer.percent = 90.0
    observer.update(x)
    low, high = np.percentile(x.numpy(), [5, 95])
    assert observer.range().minimum == pytest.approx(low, abs=width)
    assert observer.range().maximum == pytest.approx(high, abs=width)


def test_percentile_by_hand():
    # |x| = 1, 2, .., 10 (+ a quarter, away from edges). 80 % of the ten lie below the end of 8.25's bin.
    # 10.25 < 16, so a bin is 16 / 4096 = 1/256 wide; 8.25 = 2112 / 256, its bin ends at 2113 / 256.
    observer = OBSERVERS["percentile"]()
    observer.percent = 80.0
    observer.update(torch.arange(1, 11) + 0.25)
    assert observer.range() == Range(0.0, 2113 / 256)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_mse_by_brute_force(bits, symmetric):
    for x in (noise(2000), noise(2000).relu(), -noise(2000).exp()):
        found = calibrate(x.split(512), method="mse", bits=bits, symmetric=symmetric)
        low, high = min(x.min().item(), 0), max(x.max().item(), 0)
        if symmetric:
            largest = max(-low, high)
            tried = [Range(max(low, -s * largest), min(high, s * largest)) for s in np.arange(1, 101) / 100]
        else:
            ends = np.arange(0, 101, 5) / 100
            tried = [Range(a * low, b * high) for a in ends for b in ends]
        best = min(squared_error(x, candidate, bits, symmetric) for candidate in tried)
        assert squared_error(x, found, bits, symmetric) <= 1.05 * best


def test_four_bits_of_a_normal_and_a_laplace_tensor():
    # Published for INT4: the best threshold of normal data leaves about a third of min-max's error, of Laplace a fifth.
    normal = noise(100000)
    laplace = (torch.rand(100000, generator=torch.Generator().manual_seed(1)) - 0.5) * 2
    laplace = -laplace.sign() * torch.log1p(-laplace.abs())
    for x, low, high in ((normal, 0.25, 0.45), (laplace, 0.1, 0.3)):
        found, widest = (calibrate([x], method=method, bits=4) for method in ("mse", "minmax"))
        assert low < squared_error(x, found, 4, True) / squared_error(x, widest, 4, True) < high


def brute_divergence(counts: np.ndarray, size: int, levels: int) -> float:
    """TensorRT's description in plain loops, with scipy's own divergence."""
    from scipy.stats import entropy

    p = counts[:size].astype(float).copy()
    p[-1] += counts[size:].sum()
    q = np.zeros(size)
    for level in range(levels):
        bins = [place for place in range(size) if place * levels // size == level]
        filled = [place for place in bins if counts[place] > 0]
        for place in filled:
            q[place] = counts[bins].sum() / len(filled)
    q = 0.9999 * q / q.sum() + 0.0001 / size
    return float(entropy(p, q))


@pytest.mark.parametrize(("size", "levels"), [(8, 4), (17, 4), (40, 16), (40, 40), (33, 8)])
def test_divergence_by_brute_force(size, levels):
    counts = np.random.default_rng(size).integers(0, 5, 40)
    counts[size - 1] = 0  # outliers fall into a bin of P that is empty in Q
    ours = _divergence(torch.tensor(counts, dtype=torch.float64), size, levels)
    assert ours == pytest.approx(brute_divergence(counts, size, levels), rel=1e-9)


def test_divergence_by_hand():
    # counts 1 3 | 2 2 and 2 beyond. P = 1 3 2 4 of 10; merged into two levels Q = 2 2 2 2 of 8.
    p, q = [0.1, 0.3, 0.2, 0.4], 0.9999 * 0.25 + 0.0001 / 4
    expected = sum(part * math.log(part / q) for part in p)
    assert _divergence(torch.tensor([1.0, 3, 2, 2, 2], dtype=torch.float64), 4, 2) == pytest.approx(expected)


def test_entropy_is_the_best_of_its_candidates():
    x = noise(3000) ** 3
    found = calibrate([x], method="entropy", bits=5)
    width = 2.0 ** math.frexp(x.abs().max().item())[1] / HALF
    counts, _ = np.histogram(x.abs().double().numpy(), bins=np.arange(HALF + 1) * width)
    counts[0] = counts[1]
    used = int(x.abs().max().item() / width) + 1
    sizes = [*range(16, used, 16), used]
    best = min(sizes, key=lambda size: _divergence(torch.tensor(counts[:used], dtype=torch.float64), size, 16))
    assert found.maximum == pytest.approx(min((best + 0.5) * width, x.max().item()))


def test_the_zero_bin_does_not_decide():
    # Half the values of a ReLU are 0. Without the rule the threshold falls to less than half of the largest value, and
    # the error is two orders of magnitude worse than min-max.
    x = noise(200000).relu()
    found = calibrate(x.split(5000), method="entropy", symmetric=False)
    widest = calibrate([x])
    assert found.maximum > 0.7 * widest.maximum
    assert squared_error(x, found, 8, False) < 3 * squared_error(x, widest, 8, False)


def test_entropy_clips_outliers_harder_than_the_squared_error():
    x = noise(200000)
    x[:100] *= 20
    entropy, least = (calibrate([x], method=method).maximum for method in ("entropy", "mse"))
    assert entropy < 0.5 * least < 0.5 * x.abs().max()


@pytest.mark.parametrize("method", OBSERVERS)
@pytest.mark.parametrize("bits", [1, 2, 8, 16])
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_method_stays_inside_what_was_seen(method, bits, symmetric):
    for x in (noise(300), noise(300).abs() + 1, -noise(300).abs() - 1, torch.tensor([2.5]), noise(50).bfloat16()):
        found = calibrate(x.split(40), method=method, bits=bits, symmetric=symmetric)
        assert min(0, x.min()) <= found.minimum <= found.maximum <= max(0, x.max())
        assert found.minimum < 0 or found.maximum > 0


@pytest.mark.parametrize("method", OBSERVERS)
def test_errors(method):
    with pytest.raises(ValueError, match="activations of 'conv1': no value in 0 batches; pass at least one"):
        calibrate([], method=method, name="conv1")
    with pytest.raises(ValueError, match="activations: no value in 2 batches"):
        calibrate([torch.zeros(0)] * 2, method=method)
    bad = torch.tensor([1.0, math.nan, math.inf, -math.inf])
    with pytest.raises(ValueError, match="batch 1 of activations of 'head' must be finite, got 1 NaN and 2 infinite"):
        calibrate([torch.ones(3), bad], method=method, name="head")
    with pytest.raises(ValueError, match="activations of 'dead' never left 0 in 3 batches"):
        calibrate([torch.zeros(4)] * 3, method=method, name="dead")
    with pytest.raises(TypeError, match=r"must be floating point, got torch\.int64"):
        calibrate([torch.ones(3, dtype=torch.int64)], method=method)
    with pytest.raises(ValueError, match="bits=0 must be"):
        calibrate([torch.ones(3)], method=method, bits=0)


def test_an_unknown_method():
    with pytest.raises(ValueError, match="method='max' must be one of minmax, average, percentile, mse, entropy"):
        calibrate([torch.ones(3)], method="max")
