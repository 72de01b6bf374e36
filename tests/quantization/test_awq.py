"""AWQ: searches by hand and by brute force on the inputs themselves, and never worse than round-to-nearest."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compresslab.quantization.affine import quantize
from compresslab.quantization.awq import awq_model, search_clip, search_scales
from compresslab.quantization.joints import visit_inputs
from compresslab.quantization.weight_only import quantize_weights
from compresslab.testing import check_compressor
from compresslab.workbench import checkpoints, data, models


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def correlated(n: int, width: int, seed: int = 0) -> Tensor:
    """Inputs with a few loud channels and few directions, as real ones."""
    x = noise(n, width // 4, seed=seed) @ noise(width // 4, width, seed=99) + 0.1 * noise(n, width, seed=seed + 1)
    return (x * noise(width, seed=98).exp()).double()


def hessian(x: Tensor) -> Tensor:
    return x.T @ x / len(x)


def loss(x: Tensor, weight: Tensor, rounded: Tensor) -> float:
    """The definition: squared errors of the outputs, summed over outputs, mean over inputs."""
    return (x @ (rounded - weight).double().T).square().sum(1).mean().item()


def test_scales_by_hand():
    # One bit, symmetric: both weights become their mean, 0.725, an error of 0.275; the second counts 81 times:
    # 82 * 0.275^2 = 6.20. With m = (1, 9) and alpha = 0.35, s = (1, 2.158) / 1.469: the mean of 1 and 0.971 is 0.9855,
    # so 0.9855 and 0.9855 / 2.158 = 0.4567 are left: 0.0145^2 + 81 * 0.0067^2 = 0.0039. For 0.3 and 0.4 it is more.
    weight, m = torch.tensor([[1.0, 0.45]]), torch.tensor([1.0, 9.0])
    found = search_scales([weight], m, torch.diag(m.square()), bits=1, group_size=2, symmetric=True)
    assert found.alpha == 0.35
    assert found.nearest_error == pytest.approx(82 * 0.275**2, rel=1e-5)
    assert found.error == pytest.approx(0.003882, rel=1e-3)
    assert torch.allclose(found.scales, torch.tensor([1.0, 9**0.35]) / 9**0.175)


def test_clip_by_hand():
    # Two bits: -s, 0 and s; all four go to +-s, so the best s is their mean, 1.15. Tried: 1.6, 1.52, ... 1.2, 1.12.
    weight = torch.tensor([[0.9, -1.1, 1.0, 1.6]])
    options = {"bits": 2, "group_size": 4, "symmetric": True}
    grid = search_clip(weight, torch.eye(4), **options)
    assert grid.scale.item() == pytest.approx(1.12)
    assert grid.quantize(weight).levels.tolist() == [[1, -1, 1, 1]]
    # Only the last counts, or the last and the one before: 1.6 and the mean of 1.0 and 1.6, 1.28 beside 1.36.
    assert search_clip(weight, torch.diag(torch.tensor([0.0, 0, 0, 1])), **options).scale.item() == pytest.approx(1.6)
    assert search_clip(weight, torch.diag(torch.tensor([0.0, 0, 1, 1])), **options).scale.item() == pytest.approx(1.28)
    # The narrowest is 0.55 of the range: seven weights of 0.5 beside 1.0, the mean is 0.5625.
    weight = torch.tensor([[0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 1.0]])
    assert search_clip(weight, torch.eye(8), bits=2, group_size=8, symmetric=True).scale.item() == pytest.approx(0.55)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_scales_by_brute_force(bits, symmetric):
    """All 20 exponents on the inputs themselves, for two layers that share them."""
    x = correlated(200, 16, seed=bits)
    weights = [noise(6, 16), noise(3, 16, seed=1)]
    options = {"bits": bits, "group_size": 8, "symmetric": symmetric}
    losses = {}
    for place in range(20):
        s = x.abs().mean(0).float() ** (place / 20)
        s = s / (s.max() * s.min()).sqrt()
        losses[place / 20] = sum(loss(x, w, quantize(w * s, **options).dequantize() / s) for w in weights)
    found = search_scales(weights, x.abs().mean(0), hessian(x), **options)
    assert found.error == pytest.approx(min(losses.values()), rel=1e-4)
    assert losses[found.alpha] == pytest.approx(min(losses.values()), rel=1e-4)
    assert found.nearest_error == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("symmetric", [True, False])
def test_clip_by_brute_force(symmetric):
    """Row by row and group by group on the inputs themselves; groups do not correlate, so no row is turned down."""
    x = torch.block_diag(correlated(50, 8), correlated(50, 8, seed=5))
    weight, options = noise(4, 16), {"bits": 3, "symmetric": symmetric}
    grid = search_clip(weight, hessian(x), group_size=8, **options)
    for row in range(4):
        for group, part in enumerate((slice(0, 8), slice(8, 16))):
            w, losses = weight[row : row + 1, part], []
            for place in range(10):
                limit = w.abs().max() * (1 - place / 20)
                one = quantize(w.clamp(-limit, limit), group_size=8, **options).grid
                losses.append((loss(x[:, part], w, one.quantize(w).dequantize()), one.scale.item()))
            assert grid.scale[row, group].item() == pytest.approx(min(losses)[1])


@settings(derandomize=True, deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), bits=st.integers(1, 5), symmetric=st.booleans(), size=st.sampled_from([2, 4, 16]))
def test_never_worse_than_the_nearest_on_the_same_data(seed, bits, symmetric, size):
    x, weight = correlated(40, 16, seed=seed), noise(5, 16, seed=seed) * noise(5, 16, seed=seed + 1).exp()
    options = {"bits": bits, "group_size": size, "symmetric": symmetric}
    found = search_scales([weight], x.abs().mean(0), hessian(x), **options)
    nearest = loss(x, weight, quantize(weight, **options).dequantize())
    assert found.nearest_error == pytest.approx(nearest, rel=1e-4)
    assert found.error <= found.nearest_error
    # With clipping: each row, whatever the groups do to each other.
    w, y = weight * found.scales, x / found.scales.double()
    full, clipped = (quantize(w, **options), search_clip(w, hessian(y), **options).quantize(w))
    for row in range(5):
        errors = [loss(y, w[row : row + 1], each.dequantize()[row : row + 1]) for each in (clipped, full)]
        assert errors[0] <= errors[1] * (1 + 1e-5) + 1e-12


def test_less_error_on_data_that_were_not_seen():
    x, new, weight = correlated(400, 64), correlated(400, 64, seed=50), noise(32, 64)
    for bits in (2, 3, 4):
        options = {"bits": bits, "group_size": 32}
        s = search_scales([weight], x.abs().mean(0), hessian(x), **options).scales
        y, w = x / s, weight * s
        clipped = search_clip(w, hessian(y.double()), **options).quantize(w).dequantize() / s
        scaled = quantize(w, symmetric=False, **options).dequantize() / s
        nearest = quantize(weight, symmetric=False, **options).dequantize()
        errors = [loss(new, weight, each) for each in (clipped, scaled, nearest)]
        assert errors[0] < 0.9 * errors[2]
        assert errors[1] < 0.9 * errors[2]


def test_a_silent_channel_keeps_a_scale_like_the_others():
    m = torch.tensor([0.0, 1.0, 100.0])
    weight = torch.tensor([[1.0, 0.3, 0.21]])
    found = search_scales([weight], m, torch.diag(m.square()), bits=2, group_size=3)
    assert found.alpha > 0
    assert found.scales.min() == found.scales[1]
    assert search_scales([weight], 0 * m, torch.zeros(3, 3), bits=2, group_size=3).scales.tolist() == [1, 1, 1]


def small(seed: int = 0) -> tuple[nn.Module, list]:
    model = models.build("gpt", width=16, depth=2, heads=2, context=12).eval()
    for place, parameter in enumerate(model.parameters()):
        parameter.data += 0.3 * noise(*parameter.shape, seed=seed + place)
    tokens = torch.randint(0, 256, (8, 12), generator=torch.Generator().manual_seed(seed))
    return model, [(tokens[:5], None), (tokens[5:], None)]


def test_a_model():
    model, batches = small()
    before = copy.deepcopy(model.state_dict())
    result = awq_model(model.train(), batches, bits=3, group_size=8, clip=False)
    assert [key[0].removeprefix("blocks.") for key in result.searched] == [
        "1.mlp.fc1", "1.attn.proj", "1.attn.qkv", "0.mlp.fc1", "0.attn.proj", "0.attn.qkv",
    ]  # fmt: skip
    assert {*result.unscaled} == {"blocks.0.mlp.fc2", "blocks.1.mlp.fc2", "head"}
    assert result.model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert result.model.head.weight is result.model.embed.weight
    nearest = quantize_weights(model, bits=3, symmetric=False, group_size=8)
    assert result.nbytes == nearest.nbytes
    assert result.skipped == nearest.skipped

    # What the result is made of: columns times s, rows of values divided by those of proj, the norm divided.
    s = result.searched[("blocks.0.attn.qkv",)].scales
    rows = model.blocks[0].attn.qkv.weight.detach() * s
    rows[32:] /= result.searched[("blocks.0.attn.proj",)].scales.unsqueeze(1)
    wanted = quantize(rows, bits=3, symmetric=False, group_size=8).dequantize()
    assert torch.allclose(result.model.blocks[0].attn.qkv.weight, wanted, atol=1e-5)
    assert torch.allclose(result.model.blocks[0].norm1.weight, model.blocks[0].norm1.weight / s)
    assert torch.allclose(result.model.blocks[0].norm1.bias, model.blocks[0].norm1.bias / s)
    fc2 = "blocks.0.mlp.fc2.weight"
    assert torch.equal(result.model.get_parameter(fc2), nearest.model.get_parameter(fc2))


def test_errors_of_the_layers_are_those_of_their_outputs():
    """For a layer whose rows nothing is divided into: measured at its outputs, from the inputs of the float model."""
    model, batches = small(3)
    options = {"bits": 3, "group_size": 8}
    plain, clipped = (awq_model(model, batches, **options, clip=each) for each in (False, True))
    nearest = quantize_weights(model, symmetric=False, **options)
    rows: dict[str, list] = {}
    visit_inputs(
        model, ["blocks.1.mlp.fc1"], [x for x, _ in batches], lambda name, x: rows.setdefault(name, []).append(x)
    )
    (name, parts), found = *rows.items(), plain.searched[("blocks.1.mlp.fc1",)]
    x, weight = torch.cat(parts).double(), model.get_parameter(f"{name}.weight").detach()
    errors = [
        loss(x, weight, each.model.get_parameter(f"{name}.weight").detach() / (1 if each is nearest else found.scales))
        for each in (clipped, plain, nearest)
    ]
    assert errors[1] == pytest.approx(found.error, rel=1e-4)
    assert errors[2] == pytest.approx(found.nearest_error, rel=1e-4)
    assert errors[0] < errors[1] <= errors[2]
    # The ranges were searched for the scaled weights and the divided inputs.
    w, y = weight * found.scales, x / found.scales
    wanted = search_clip(w, hessian(y), **options).quantize(w).dequantize()
    assert (clipped.model.get_parameter(f"{name}.weight") - wanted).abs().lt(1e-5).float().mean() > 0.98


def test_many_bits_change_nothing():
    model, batches = small(5)
    result = awq_model(model.double(), batches, bits=16, group_size=4)
    x = batches[0][0]
    with torch.no_grad():
        assert (result.model(x) - model(x)).abs().max() < 1e-3 * model(x).abs().max()


def test_the_gpt_of_the_course():
    splits, gpt = data.load("python-docs"), checkpoints.load("gpt")
    batches = list(splits.train.batches(16, context=128))[:2]
    inputs, targets = next(iter(splits.val.batches(32, context=128)))

    @torch.no_grad()
    def lost(model: nn.Module) -> float:
        return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).item()

    result = awq_model(gpt, batches, bits=3, group_size=32)
    assert len(result.searched) == 12
    for found in result.searched.values():
        assert found.error <= found.nearest_error
    assert sum(found.error for found in result.searched.values()) < sum(
        found.nearest_error for found in result.searched.values()
    )
    plain = lost(gpt)
    nearest = quantize_weights(gpt, bits=3, symmetric=False, group_size=32).model
    assert plain < lost(result.model) < plain + 0.9 * (lost(nearest) - plain)


def test_experts_share_the_scales_of_their_router():
    model = models.build("moe_gpt", width=16, depth=1, heads=2, context=12, hidden=8, experts=4).eval()
    tokens = torch.randint(0, 256, (4, 12), generator=torch.Generator().manual_seed(0))
    result = awq_model(model, [(tokens, None)], bits=4, group_size=8)
    experts = {f"blocks.0.moe.experts.{place}.fc1" for place in range(4)}
    assert {"blocks.0.moe.router", *experts} in [{*layers} for layers in result.searched]


def test_an_expert_that_is_never_chosen_is_rounded_to_the_nearest():
    model = models.build("moe_gpt", width=16, depth=1, heads=2, context=12, hidden=8, experts=6).eval()
    tokens = torch.tensor([[1, 2]])  # two experts each
    result = awq_model(model, [(tokens, None)], bits=3, group_size=8)
    assert "gets no input from the batch" in result.unscaled["blocks.0.moe.router"]
    assert all(parameter.isfinite().all() for parameter in result.model.parameters())


class Some(nn.Module):
    """Two layers behind one norm, the second for some samples only, as a router and an expert."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(8), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        chosen = x[:, 0] > 0.5
        return self.a(y).index_add(0, chosen.nonzero()[:, 0], self.b(y[chosen]))


def test_statistics_are_over_all_that_the_layers_get():
    model, x = Some(), noise(200, 8)
    for place, parameter in enumerate(model.parameters()):
        parameter.data = noise(*parameter.shape, seed=place)
    result = awq_model(model, [(x[:90], None), (x[90:], None)], bits=2, group_size=4)
    y = model.norm(x).detach()
    rows = torch.cat([y, y[x[:, 0] > 0.5]]).double()
    found = search_scales([model.a.weight, model.b.weight], rows.abs().mean(0), hessian(rows), bits=2, group_size=4)
    assert result.searched[("a", "b")].alpha == found.alpha
    assert torch.allclose(result.searched[("a", "b")].scales, found.scales)
    assert result.searched[("a", "b")].error == pytest.approx(found.error, rel=1e-4)


class Never(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_a_layer_that_is_not_reached_is_rounded_to_the_nearest():
    model = Never()
    result = awq_model(model, [(noise(6, 4), None)], bits=2)
    nearest = quantize_weights(model, bits=2, symmetric=False, group_size=128)
    assert "unused gets no input from the batch" in result.unscaled["unused"]
    assert torch.equal(result.model.unused.weight, nearest.model.unused.weight)


def test_errors():
    weight, m, h = torch.ones(2, 4), torch.ones(4), torch.eye(4)
    with pytest.raises(ValueError, match=r"must fit I=4 and a hessian \(I, I\), got \[\(2, 3\)\] \(4, 4\)"):
        search_scales([weight[:, :3]], m, h, group_size=4)
    with pytest.raises(ValueError, match=r"got \[\(2, 4\)\] \(3, 4\)"):
        search_scales([weight], m, h[:3], group_size=4)
    with pytest.raises(ValueError, match="magnitude must be finite, got 4 NaN"):
        search_scales([weight], m * float("nan"), h, group_size=4)
    with pytest.raises(ValueError, match="hessian must be finite, got 16 NaN"):
        search_scales([weight], m, h * float("nan"), group_size=4)
    with pytest.raises(ValueError, match=r"group_size=3 must divide the last axis \(4\)"):
        search_scales([weight], m, h, group_size=3)
    with pytest.raises(ValueError, match=r"hessian must be \(I, I\), got \(3, 3\) for a weight \(2, 4\)"):
        search_clip(weight, torch.eye(3), group_size=4)
    with pytest.raises(ValueError, match="hessian must be finite, got 0 NaN and 4 infinite"):
        search_clip(weight, torch.diag(m / 0).nan_to_num(0.0, float("inf")), group_size=4)
    with pytest.raises(ValueError, match="batches holds no batch"):
        awq_model(nn.Linear(4, 2), [])
    with pytest.raises(ValueError, match="Conv2d has no Linear layer"):
        awq_model(nn.Conv2d(3, 4, 1), [(noise(2, 3, 4, 4), None)])
    with pytest.raises(ValueError, match="bits=0 must be an integer"):
        awq_model(nn.Linear(4, 2), [(noise(2, 4), None)], bits=0)


def test_the_common_checks():
    check_compressor(lambda model, batches: awq_model(model, batches, group_size=8).model)
