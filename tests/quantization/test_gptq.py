"""GPTQ: by hand, against column-order OBQ with explicit Schur complements, against known faults of others, on models."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compresslab.quantization.affine import Grid, quantize
from compresslab.quantization.clipping import clipped_grid
from compresslab.quantization.column_rounding import round_columns
from compresslab.quantization.gptq import gptq, gptq_model
from compresslab.quantization.hessian import RunningHessian, count_calls, layer_hessian
from compresslab.quantization.weight_only import quantize_weights
from compresslab.testing import check_compressor, hostile
from compresslab.workbench import checkpoints, data

PAPER = {"method": "minmax", "sweeps": 0}


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def correlated(tokens: int, columns: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Inputs of a quarter of the rank, noise, and columns of different size."""
    shared = noise(tokens, columns // 4, seed=seed, dtype=dtype) @ noise(columns // 4, columns, seed=99, dtype=dtype)
    shared = shared / (columns // 4) ** 0.5 + 0.5 * noise(tokens, columns, seed=seed + 1, dtype=dtype)
    return shared * (0.5 * noise(columns, seed=98, dtype=dtype)).exp()


def mean_square(x: torch.Tensor) -> torch.Tensor:
    return x.T @ x / len(x)


def squares(d: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """By row, in float64."""
    return torch.einsum("oi,ij,oj->o", d.double(), h.double(), d.double())


def unit(columns: int) -> Grid:
    return Grid(torch.ones(1), torch.zeros(1, dtype=torch.int32), bits=4, axis=0)


def levels(weight: list[float], hessian: list[list[float]], **options: object) -> list[float]:
    options = {"damping": 0.0, "sweeps": 0, "act_order": False} | options
    return round_columns(torch.tensor([weight]), torch.tensor(hessian), unit(2), **options).levels[0].tolist()


def test_by_hand():
    # 0.4 becomes 0: an error of 0.4. M_01 = H_01 / H_11 = 1 / 2, so the second is rounded from 0.4 + 0.2: to 1.
    # D = (0.4, -0.6): 2 * 0.16 + 2 * 0.36 - 2 * 0.24 = 0.56. To nearest, D = (0.4, 0.4): 6 * 0.16 = 0.96.
    hessian = torch.tensor([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    weight = torch.tensor([[0.4, 0.4, 7.0]])  # the 7 makes the scale 1, and nothing else
    found = gptq(weight, hessian, symmetric=True, group_size=None, act_order=False, damping=0.0, **PAPER)
    assert found.levels.tolist() == [[0, 1, 7]]
    assert found.scale.tolist() == [1]
    assert found.error == pytest.approx(0.56)
    assert found.nearest_error == pytest.approx(0.96)
    assert (found.damping, found.nearest_rows) == (0, 0)
    assert torch.equal(found.dequantize(), torch.tensor([[0.0, 1.0, 7.0]]))
    assert found.nbytes == 2 + 4  # three levels of 4 bits, one scale


def test_the_factor_is_of_the_columns_that_follow():
    # Three columns. d_0 = 0.4. The best of the two that follow, as real numbers, moves both: M_01 is not H_01 / H_11.
    # H_RR = [[2, 1], [1, 2]], H_R0 = (1, 0): H_RR^-1 H_R0 = (2, -1) / 3. So the second is rounded from 0.3 + 0.8 / 3
    # = 0.567, to 1; with H_01 / H_11 = 1 / 2 it would be 0.5, to 0; d_1 = -0.7.
    # The third: H_22^-1 (H_20 d_0 + H_21 d_1) = (0 - 0.7) / 2 = -0.35: from 0.3 - 0.35, to 0.
    assert levels([0.4, 0.3, 0.3], [[2.0, 1.0, 0.0], [1.0, 2.0, 1.0], [0.0, 1.0, 2.0]]) == [0, 1, 0]


def test_order_damping_and_descent_by_hand():
    # First to last: 0.4 -> 0, then 0.45 + 0.4 / 4 = 0.55 -> 1. Larger diagonal first: 0.45 -> 0, then 0.4 + 0.45 -> 1.
    assert levels([0.4, 0.45], [[1.0, 1.0], [1.0, 4.0]]) == [0, 1]
    assert levels([0.4, 0.45], [[1.0, 1.0], [1.0, 4.0]], act_order=True) == [1, 0]
    # H = 4 everywhere, damping 0.01 of the mean 4: M_01 = 1 / 1.01, 0.25 + 0.396 -> 1. Damping 1: 0.25 + 0.2 -> 0.
    assert levels([0.4, 0.25], [[4.0, 4.0], [4.0, 4.0]], damping=0.01) == [0, 1]
    assert levels([0.4, 0.25], [[4.0, 4.0], [4.0, 4.0]], damping=1.0) == [0, 0]
    # 0.45 -> 0, 0.09 + 0.9 * 0.45 = 0.495 -> 0. Again: 0.45 + 0.9 * 0.09 = 0.531 -> 1, 0.09 - 0.9 * 0.55 -> 0.
    # The error falls from 0.45^2 + 0.09^2 + 1.8 * 0.0405 = 0.2835 to 0.55^2 + 0.09^2 - 1.8 * 0.0495 = 0.2215.
    assert levels([0.45, 0.09], [[1.0, 0.9], [0.9, 1.0]]) == [0, 0]
    assert levels([0.45, 0.09], [[1.0, 0.9], [0.9, 1.0]], sweeps=1) == [1, 0]
    # a level at the end of the grid stays there, and the error that is left is handed on: 0.4 + 2 = 2.4
    assert levels([9.0, 0.4], [[1.0, 1.0], [1.0, 1.0]], damping=0.001) == [7, 2]


def obq(w: torch.Tensor, h: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, top: int) -> torch.Tensor:
    """Optimal Brain Quantization in a fixed order: the inverse of what is left by Schur complements, all others updated."""
    w, inverse, result = w.clone(), torch.linalg.inv(h), torch.zeros_like(w)
    for j in range(w.shape[1]):
        result[:, j] = ((w[:, j] / scale[:, j]).round() + zero_point[:, j]).clamp(0, top)
        error = (w[:, j] - (result[:, j] - zero_point[:, j]) * scale[:, j]) / inverse[j, j]
        w -= torch.outer(error, inverse[j])
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
        inverse[j, j] = 1  # done: never read again, and the next row must not divide 0 by 0
    return result


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(("group_size", "bits"), [(16, 2), (16, 4), (64, 3), (None, 4), (None, 8)])
def test_equal_to_column_order_obq(group_size, bits, act_order):
    """Also with groups smaller than a block: every column is rounded from its corrected weight, none from a stale one."""
    weight, h = noise(24, 64, dtype=torch.float64), mean_square(correlated(200, 64, dtype=torch.float64))
    options = {"bits": bits, "symmetric": False, "group_size": group_size, "axis": 0 if group_size is None else None}
    grid = quantize(weight, **options).grid
    damped = h + 0.01 * h.diagonal().mean() * torch.eye(64)
    order = h.diagonal().argsort(descending=True) if act_order else torch.arange(64)
    scale, zero_point = (grid.spread(part, weight.shape).expand_as(weight) for part in (grid.scale, grid.zero_point))
    expected = torch.empty_like(weight)
    expected[:, order] = obq(
        weight[:, order], damped[order][:, order], scale[:, order], zero_point[:, order].double(), grid.quant_max
    )
    found = round_columns(weight, h, grid, act_order=act_order, sweeps=0)
    assert torch.equal(found.levels, expected)
    assert not torch.equal(found.levels, grid.quantize(weight).levels.double())
    whole = gptq(weight, h, bits=bits, group_size=group_size, act_order=act_order, **PAPER)
    assert torch.equal(whole.levels.double(), expected)
    assert whole.nearest_rows == 0


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    columns=st.sampled_from([1, 8, 24]),
    rows=st.integers(1, 5),
    tokens=st.sampled_from([0, 1, 5, 60]),
    bits=st.integers(2, 8),
    divisor=st.sampled_from([None, 1, 4]),
    symmetric=st.booleans(),
    act_order=st.booleans(),
    method=st.sampled_from(["minmax", "mse"]),
    sweeps=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_never_worse_than_nearest_and_the_block_size_changes_nothing(
    columns, rows, tokens, bits, divisor, symmetric, act_order, method, sweeps, seed
):
    weight, x = noise(rows, columns, seed=seed, dtype=torch.float64), noise(tokens, columns, seed=seed).double()
    x[:, ::3] = 0  # dead inputs
    x[:, 1::2] = x[:, :1] + x[:, -1:]  # and some that are sums of others
    h = x.T @ x  # of no token: 0
    group_size = None if divisor is None else max(columns // divisor, 1)
    options = {"bits": bits, "symmetric": symmetric, "group_size": group_size}
    more = {"act_order": act_order, "method": method, "sweeps": sweeps}
    found = gptq(weight, h, **options, **more)
    nearest = quantize(weight, **options, axis=0 if group_size is None else None)
    ours, theirs = squares(weight - found.dequantize(), h), squares(weight - nearest.dequantize(), h)
    assert (ours <= theirs * (1 + 1e-9) + 1e-12).all()
    assert found.error == pytest.approx(ours.sum().item(), abs=1e-9)
    assert found.nearest_error == pytest.approx(theirs.sum().item(), abs=1e-9)
    assert found.levels.min() >= found.grid.quant_min
    assert found.levels.max() <= found.grid.quant_max
    assert found.levels.dtype == nearest.levels.dtype
    assert found.nbytes == nearest.nbytes
    for block_size in (1, 3, 500):
        again = gptq(weight, h, **options, **more, block_size=block_size)
        assert torch.equal(again.levels, found.levels)


def test_any_positive_factor_of_the_hessian_gives_the_same():
    weight, h = noise(16, 64), mean_square(correlated(500, 64))
    found = gptq(weight, h, group_size=16)
    for factor in (2.0**-40, 2.0, 2.0**40):
        other = gptq(weight, factor * h, group_size=16)
        assert torch.equal(other.levels, found.levels)
        assert torch.equal(other.scale, found.scale)
        assert other.error == pytest.approx(factor * found.error)


def test_the_given_tensors_stay_and_dtypes_follow():
    weight, h = noise(4, 32), mean_square(correlated(100, 32))
    before = weight.clone(), h.clone()
    gptq(weight, h, group_size=8)
    assert torch.equal(weight, before[0])
    assert torch.equal(h, before[1])
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        found = gptq(weight.to(dtype), h, group_size=8)
        assert found.dequantize().dtype == dtype
        assert found.scale.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert gptq(weight, h.half(), group_size=8).error == pytest.approx(gptq(weight, h, group_size=8).error, rel=0.05)


def test_each_step_wins_on_inputs_not_seen():
    """Of 256 columns of a quarter of the rank, held-out error over that of nearest; the numbers are from one run."""
    weight = noise(64, 256)
    h, held = mean_square(correlated(2048, 256)), mean_square(correlated(2048, 256, seed=7))

    def ratio(**options: object) -> float:
        found = gptq(weight, h, group_size=128, **options)
        nearest = quantize(weight, bits=options["bits"], symmetric=False, group_size=128)
        of = [squares(weight - quantized.dequantize(), held).sum() for quantized in (found, nearest)]
        return (of[0] / of[1]).item()

    for bits, limit in ((4, 0.32), (3, 0.29)):
        plain = ratio(bits=bits, act_order=False, **PAPER)  # 0.47, 0.47
        ordered = ratio(bits=bits, **PAPER)  # 0.34, 0.35
        scales = ratio(bits=bits, sweeps=0)
        descent = ratio(bits=bits, method="minmax")
        both = ratio(bits=bits)
        assert ordered < 0.85 * plain < 0.5
        assert scales < 0.95 * ordered
        assert descent < ordered
        assert both < scales
        assert both < limit


def test_the_scale_is_of_the_whole_row():
    # A public package takes the scale of a row from its first 256 columns: with one large column of weights further
    # on, the result is many times worse than rounding to nearest.
    weight, h = noise(8, 1024), mean_square(correlated(2048, 1024))
    for place in (100, 700):
        large = weight.clone()
        large[:, place] *= 50
        found = gptq(large, h, bits=8, symmetric=True, group_size=None, **PAPER)
        assert torch.allclose(found.scale, large.abs().amax(1) / 127)
        assert found.error < 0.7 * found.nearest_error
        assert found.nearest_rows == 0


def test_the_factor_is_not_transposed():
    # A public package reads the columns of a transposed factor: all corrections are 0, the result is that of nearest.
    weight, h = noise(16, 64), mean_square(correlated(500, 64))
    found = gptq(weight, h, group_size=32, act_order=False, **PAPER)
    nearest = quantize(weight, bits=4, symmetric=False, group_size=32)
    assert (found.levels != nearest.levels).double().mean() > 0.1
    assert found.error < 0.7 * found.nearest_error


def test_uncorrelated_inputs_leave_rounding_to_nearest():
    weight = noise(6, 32)
    found = gptq(weight, torch.rand(32, generator=torch.Generator().manual_seed(0)).diag(), group_size=8, **PAPER)
    assert torch.equal(found.levels, quantize(weight, bits=4, symmetric=False, group_size=8).levels)
    assert found.error == found.nearest_error
    assert found.nearest_rows == 0
    # the scales are of groups of neighbours, and clipped to what matters
    h = torch.tensor([1e4] * 4 + [1.0] * 28).diag()
    found = gptq(weight, h, group_size=8, bits=3)
    importance = h.diagonal() / h.diagonal().mean() + 0.01
    grid = clipped_grid(weight, bits=3, symmetric=False, group_size=8, importance=importance, steps=20)
    kept = (found.scale == grid.scale).all(1)
    assert kept.sum() == 6 - found.nearest_rows >= 4


def test_a_row_that_is_better_rounded_to_nearest_is_and_is_counted():
    counted = 0
    for seed in range(6):
        weight, x = noise(24, 6, seed=seed), noise(40, 6, seed=seed + 50)
        h = mean_square(x)
        found = gptq(weight, h, bits=8, group_size=6, act_order=False, method="minmax", sweeps=0, damping=1.0)
        grid = quantize(weight, bits=8, symmetric=False, group_size=6).grid
        free = round_columns(weight, h, grid, act_order=False, sweeps=0, damping=1.0).levels
        free = (free - grid.spread(grid.zero_point, weight.shape)) * grid.spread(grid.scale, weight.shape)
        nearest = grid.quantize(weight)
        worse = squares(weight - free, h) > squares(weight - nearest.dequantize(), h)
        assert found.nearest_rows == worse.sum()
        assert torch.equal(found.levels[worse], nearest.levels[worse])
        assert torch.allclose(found.dequantize()[~worse], free[~worse])
        counted += found.nearest_rows
    assert 0 < counted < 6 * 24 / 2


def test_a_hessian_that_is_not_of_full_rank():
    weight, x = noise(16, 64, dtype=torch.float64), correlated(8, 64, dtype=torch.float64)
    h = mean_square(x)
    found = gptq(weight, h, group_size=None, damping=0.0)
    assert 1e-4 <= found.damping <= 1e-3  # raised, and said
    assert found.error < 0.1 * found.nearest_error
    assert gptq(weight, h, group_size=None).damping == 0.01
    found = gptq(weight, torch.zeros(64, 64), group_size=16)  # no input at all
    assert (found.error, found.nearest_error) == (0, 0)
    # dead inputs keep their weights, rounded to nearest: other data may need them
    h = mean_square(correlated(200, 64))
    h[:, ::2] = h[::2] = 0
    found = gptq(noise(16, 64), h, group_size=16, **PAPER)
    assert torch.equal(
        found.levels[:, ::2], quantize(noise(16, 64), bits=4, symmetric=False, group_size=16).levels[:, ::2]
    )


def test_groups_of_rows_have_their_own_hessian():
    weight, parts = noise(6, 32), [mean_square(correlated(100, 32, seed=seed)) for seed in (0, 5)]
    found = gptq(weight, torch.stack(parts), group_size=8)
    halves = [gptq(rows, part, group_size=8) for rows, part in zip(weight.chunk(2), parts, strict=True)]
    assert torch.equal(found.levels, torch.cat([half.levels for half in halves]))
    assert torch.equal(found.scale, torch.cat([half.scale for half in halves]))
    assert found.error == pytest.approx(sum(half.error for half in halves))
    assert found.nearest_error == pytest.approx(sum(half.nearest_error for half in halves))


def test_running_hessian():
    x = noise(50, 6)
    running = RunningHessian()
    for part in x.split([1, 9, 40]):  # unequal: each token counts once
        running.update(part)
    assert torch.allclose(running.mean, mean_square(x), atol=1e-6)
    assert running.tokens == 50
    running = RunningHessian()
    running.update(torch.full((3, 2), 300.0, dtype=torch.float16))  # 90,000 is more than float16 holds
    assert running.mean.dtype == torch.float32
    assert running.mean.tolist() == [[9e4, 9e4], [9e4, 9e4]]
    running = RunningHessian()
    running.update(noise(5, 2, 3).double())
    assert running.mean.shape == (2, 3, 3)
    assert running.mean.dtype == torch.float64
    with pytest.raises(ValueError, match="the mean over 0 tokens is not defined; update it with at least 1"):
        RunningHessian().mean


LAYERS = {
    "linear": (nn.Linear(6, 4), (5, 6)),
    "sequence": (nn.Linear(6, 4), (2, 5, 6)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2), (3, 4, 9)),
    "padded": (nn.Conv2d(4, 6, 3, padding="same", dilation=2), (3, 4, 8, 8)),
    "circular": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (3, 4, 8, 8)),
    "grouped": (nn.Conv2d(4, 6, (3, 2), groups=2), (3, 4, 8, 8)),
    "depthwise": (nn.Conv2d(6, 12, 3, groups=6, bias=False), (3, 6, 8, 8)),
    "conv3d": (nn.Conv3d(2, 4, 2), (2, 2, 4, 4, 4)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_the_error_is_that_of_the_layers_output(kind, monkeypatch):
    """By the layer's own forward pass: the mean over tokens or positions of the squared error, summed over channels."""
    monkeypatch.setattr("compresslab.quantization.hessian.CHUNK", 40)
    layer, shape = LAYERS[kind]
    batches = [(noise(*shape, seed=1), None), (noise(*shape, seed=2)[:1], None)]
    result = gptq_model(layer, batches, bits=3)
    with torch.no_grad():
        wrong = [layer(x) - result.model(x) for x, _ in batches]
    axis = -1 if isinstance(layer, nn.Linear) else 1
    wrong = torch.cat([part.movedim(axis, -1).flatten(0, -2) for part in wrong])
    found = result.layers["weight"]
    assert found.error == pytest.approx(wrong.square().sum(1).mean().item(), rel=1e-4)
    assert result.tokens == {"weight": len(wrong)}
    plain = quantize_weights(layer, bits=3, symmetric=False, group_size=128).model
    with torch.no_grad():
        wrong = torch.cat([(layer(x) - plain(x)).movedim(axis, -1).flatten(0, -2) for x, _ in batches])
    assert found.nearest_error == pytest.approx(wrong.square().sum(1).mean().item(), rel=1e-4)
    assert found.error <= found.nearest_error
    assert result.weights["weight"] is found


class Backwards(nn.Module):
    """Layers run in another order than they are listed in, one of them twice, and one never."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.first, self.never = nn.Linear(8, 3), nn.Linear(8, 8), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(self.first(input=x).relu()).relu())


def test_in_the_order_in_which_layers_run_with_inputs_from_the_quantized_prefix():
    model, batches = Backwards(), [(correlated(20, 8), None), (correlated(3, 8, seed=3), None)]
    names = ["last", "first", "never"]
    assert count_calls(model, names, [x for x, _ in batches]) == {"first": [2, 2], "last": [1, 1]}
    result = gptq_model(model, batches, bits=2)
    assert list(result.layers) == ["first.weight", "last.weight"]
    assert result.tokens == {"first.weight": 46, "last.weight": 23}
    assert result.nearest == {"never.weight": "no batch runs through it"}
    x = torch.cat([x for x, _ in batches])
    with torch.no_grad():
        hidden = result.model.first(result.model.first(x).relu()).relu()
        d = model.last.weight - result.model.last.weight
    assert result.layers["last.weight"].error == pytest.approx(squares(d, mean_square(hidden)).sum().item(), rel=1e-4)
    assert torch.equal(result.model.last.weight, result.layers["last.weight"].dequantize())
    plain = quantize_weights(model, bits=2, symmetric=False, group_size=128)
    assert torch.equal(result.model.never.weight, plain.model.never.weight)
    assert result.nbytes == plain.nbytes
    assert result.bits_per_weight == plain.bits_per_weight
    hessian = layer_hessian(model, "first", [x], [2])
    assert hessian.tokens == 46


def test_what_is_only_rounded_to_nearest_or_skipped_is_listed():
    tied = gptq_model(hostile("tied").model, hostile("tied").batches)
    assert tied.nearest["embedding.weight"] == "Embedding: only Linear and Conv layers have a Hessian here"
    assert tied.model.head.weight is tied.model.embedding.weight
    attention = gptq_model(hostile("attention").model, hostile("attention").batches)
    assert attention.nearest["attention.in_proj_weight"].startswith("MultiheadAttention: only Linear and Conv")
    assert {*attention.layers, *attention.nearest} == {*attention.weights}
    shared = nn.Linear(3, 3)
    twice = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(3, 2))
    assert gptq_model(twice, [(noise(4, 3), None)]).nearest == {"0.weight": "it is used elsewhere too"}
    one = gptq_model(nn.Sequential(nn.Linear(3, 3)), [(noise(4, 3), None)], bits=1, symmetric=True)
    assert one.nearest == {"0.weight": "there is no level between -1 and 1"}
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    some = gptq_model(model, [(noise(9, 8), None)], bits={"0.weight": 3, "2.weight": 5}, skip=["2"], group_size=4)
    assert {name: (found.bits, found.grid.group_size) for name, found in some.layers.items()} == {"0.weight": (3, 4)}
    assert some.skipped["1.weight"] == some.skipped["2.weight"] == "left out by the caller"
    assert torch.equal(some.model[2].weight, model[2].weight)


def test_options_reach_the_layers():
    model, batches = nn.Sequential(nn.Linear(32, 8)), [(correlated(100, 32), None)]
    base = {"bits": 3, "group_size": 16, "damping": 0.1, "act_order": False, "symmetric": True, **PAPER}
    h = mean_square(batches[0][0])
    for change in ({}, {"damping": 0.5}, {"act_order": True}, {"symmetric": False}, {"method": "mse"}, {"sweeps": 3}):
        options = base | change
        found = gptq_model(model, batches, **options).layers["0.weight"]
        expected = gptq(model[0].weight, h, **options)
        assert torch.equal(found.levels, expected.levels)
        assert (found.damping, found.grid.symmetric) == (options["damping"], options["symmetric"])
    per_row = gptq_model(model, batches, group_size=None).layers["0.weight"]
    assert per_row.scale.shape == (8,)


def test_the_course_gpt():
    """3 bits for each row, 4,096 tokens: what is lost on held-out text is less than half of what nearest loses."""
    model, text = checkpoints.load("gpt"), data.load("python-docs")
    batches = [batch for batch, _ in zip(text.train.batches(16, context=128), range(2), strict=False)]
    held = next(iter(text.val.batches(32, context=128)))
    result = gptq_model(model, batches, bits=3, group_size=None, skip=["embed", "pos_embed"])
    nearest = quantize_weights(model, bits=3, symmetric=False, skip=["embed", "pos_embed"])
    assert len(result.layers) == 16
    assert not result.nearest
    assert all(found.error < 0.7 * found.nearest_error and found.damping == 0.01 for found in result.layers.values())
    ratios = [math.log(found.error / found.nearest_error) for found in result.layers.values()]
    assert math.exp(sum(ratios) / 16) < 0.48
    with torch.no_grad():
        whole, ours, theirs = (
            F.cross_entropy(tested.eval()(held[0]).flatten(0, 1), held[1].flatten()).item()
            for tested in (model, result.model, nearest.model)
        )
    assert whole < ours < whole + 0.5 * (theirs - whole)


def test_errors():
    weight, h = noise(4, 6), mean_square(noise(20, 6))
    with pytest.raises(ValueError, match=r"group_size=128 must divide the last axis \(6\); try \[6, 3, 2\]"):
        gptq(weight, h)
    for wrong in (torch.eye(5), torch.ones(6), torch.eye(6).expand(3, 6, 6), torch.ones(0, 6, 6)):
        with pytest.raises(ValueError, match=r"hessian \(in, in\) or \(groups, in, in\) must fit, got \(4, 6\) and"):
            gptq(weight, wrong, group_size=None)
    with pytest.raises(ValueError, match=r"must fit, got \(0, 6\) and \(6, 6\)"):
        gptq(weight[:0], h, group_size=None)
    with pytest.raises(ValueError, match="weight must be finite, got 1 NaN"):
        gptq(torch.tensor([[float("nan")]]), torch.ones(1, 1))
    with pytest.raises(ValueError, match="hessian must be finite, got 0 NaN and 1 infinite"):
        gptq(torch.ones(1, 1), torch.tensor([[float("inf")]]))
    with pytest.raises(TypeError, match=r"hessian must be floating point, got torch\.int64"):
        gptq(torch.ones(1, 1), torch.ones(1, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"hessian must be a mean of x x\^T, its lowest eigenvalue is -3; use Running"):
        gptq(torch.ones(1, 2), torch.tensor([[1.0, 4.0], [4.0, 1.0]]), group_size=None)
    with pytest.raises(ValueError, match=r"its lowest eigenvalue is -2; use RunningHessian"):
        gptq(torch.ones(1, 2), -2 * torch.eye(2), group_size=None)
    with pytest.raises(ValueError, match=r"hessian must be symmetric, two of its halves differ by 1; use RunningHess"):
        gptq(torch.ones(1, 2), torch.tensor([[2.0, 1.0], [0.0, 2.0]]), group_size=None)
    for damping in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=rf"damping={damping} must be in 0\.\.1, relative to the mean"):
            gptq(weight, h, group_size=None, damping=damping)
    with pytest.raises(ValueError, match="method='hqq' must be 'minmax' or 'mse'"):
        gptq(weight, h, method="hqq")
    with pytest.raises(ValueError, match="sweeps=-1 must be an integer of at least 0; try 1"):
        gptq(weight, h, group_size=None, sweeps=-1)
    with pytest.raises(ValueError, match="block_size=0 must be an integer of at least 1; try 2"):
        gptq(weight, h, group_size=None, block_size=0)
    with pytest.raises(ValueError, match="bits=17 must be an integer in"):
        gptq(weight, h, group_size=None, bits=17)
    with pytest.raises(
        ValueError, match="a symmetric grid of bits=1 has no level between -1 and 1; try symmetric=False"
    ):
        gptq(weight, h, group_size=None, bits=1, symmetric=True)
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="batches holds no batch; pass at least one"):
        gptq_model(model, [])
    model[0].weight.data.fill_(1e30)
    with pytest.raises(ValueError, match=r"the Hessian of 1\.weight must be finite"):
        gptq_model(nn.Sequential(model[0], nn.Linear(2, 2)), [(torch.ones(1, 2), None)])


def test_the_common_checks():
    check_compressor(
        lambda model, batches: gptq_model(model, batches).model,
        must_accept=("mlp", "conv_bn", "depthwise", "residual", "attention", "tied", "float16", "bfloat16"),
    )
