"""What layers get: against the layer's own convolution, whatever the batches, and the model left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compresslab.pruning import layer_inputs
from compresslab.pruning.layer_inputs import InputStatistics, evaluating, in_order, input_statistics, inputs_of, patches
from compresslab.testing import hostile

LAYERS = [
    nn.Linear(6, 4), nn.Conv1d(4, 6, 3, stride=2), nn.Conv1d(4, 6, 3, padding="same", dilation=2),
    nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, (3, 1), groups=2, stride=(1, 2)), nn.Conv2d(4, 4, 3, groups=4),
    nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), nn.Conv2d(4, 6, 3, padding=(0, 2), padding_mode="reflect"),
    nn.Conv3d(2, 3, 2, stride=2),
]  # fmt: skip


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sample(layer: nn.Module, n: int = 3) -> torch.Tensor:
    axes = layer.weight.dim() - 2
    return noise(n, 5, 6) if axes == 0 else noise(n, layer.in_channels, *[7] * axes)


def test_by_hand():
    # three tokens (1, 0), (1, 2), (1, 1): squares 3 and 5, sums 3 and 3, products 0 + 2 + 1
    for rows in ([[1.0, 0.0], [1.0, 2.0], [1.0, 1.0]],):
        for cut in (1, 2):
            seen = InputStatistics()
            seen.update(torch.tensor(rows[:cut]))
            seen.update(torch.tensor(rows[cut:]))
            assert seen.tokens == 3
            assert seen.squares.tolist() == [[3, 5]]
            assert seen.mean.tolist() == [[1, 1]]
            assert torch.allclose(seen.gram, torch.tensor([[[3.0, 3.0], [3.0, 5.0]]]) / 3)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_patches_times_the_weight_is_the_output(layer):
    """The oracle is the layer: its output without bias is its weight, as a matrix, times what was seen."""
    x, groups = sample(layer), getattr(layer, "groups", 1)
    weight = layer.weight.detach().reshape(groups, layer.weight.shape[0] // groups, -1)  # (groups, O, I)
    rows = patches(layer, x).reshape(-1, groups, weight.shape[-1])  # (n, groups, I)
    bias, layer = layer.bias.detach(), layer
    y = layer(x).detach()
    y = y.flatten(0, -2) if isinstance(layer, nn.Linear) else y.movedim(1, -1).flatten(0, -2)
    assert torch.allclose(torch.einsum("ngi,goi->ngo", rows, weight).flatten(1), y - bias, atol=1e-5)
    seen = input_statistics(nn.Sequential(layer), [(x, None)])["0"]
    assert seen.tokens == len(rows)
    assert torch.allclose(seen.squares, rows.square().sum(0), rtol=1e-4)
    assert torch.allclose(seen.mean, rows.mean(0), atol=1e-5)
    assert torch.allclose(seen.gram, torch.einsum("ngi,ngj->gij", rows, rows) / len(rows), atol=1e-5)
    # so the mean square of an output is w^T gram w
    power = torch.einsum("goi,gij,goj->go", weight, seen.gram, weight).flatten()
    assert torch.allclose(power, (y - bias).square().mean(0), rtol=1e-4)


def test_every_token_counts_once_however_batched(monkeypatch):
    model, x = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2)), noise(7, 2, 5, 5)
    whole = input_statistics(model, [(x, None)])
    monkeypatch.setattr(layer_inputs, "CHUNK", 10)
    parts = input_statistics(model, [(part, None) for part in x.split([1, 4, 2])])
    assert list(whole) == list(parts) == ["0", "3"]
    for name in whole:
        assert whole[name].tokens == parts[name].tokens == {"0": 63, "3": 7}[name]
        for field in ("squares", "mean", "gram"):
            assert torch.allclose(getattr(whole[name], field), getattr(parts[name], field), rtol=1e-4, atol=1e-6)


def test_wide_sums_of_narrow_numbers():
    for dtype, wide in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
    ):
        model = nn.Sequential(nn.Linear(1, 1)).to(dtype)
        seen = input_statistics(model, [(torch.full((3000, 1), 100.0, dtype=dtype), None)])["0"]
        assert seen.squares.dtype == seen.gram.dtype == wide
        assert seen.squares.item() == 3000 * 100**2  # above the largest float16


class Backwards(nn.Module):
    """Layers run in another order than they are listed in, one of them twice, and one never."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.first, self.never = nn.Linear(8, 3), nn.Linear(8, 8), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(self.first(input=x).relu()).relu())


def test_the_order_is_that_in_which_layers_run():
    model, x = Backwards(), noise(5, 8)
    found = input_statistics(model, [(x, None)])
    assert {name: seen.tokens for name, seen in found.items()} == {"first": 10, "last": 5}
    with torch.no_grad():
        both = torch.cat([x, model.first(x).relu()])
    assert torch.allclose(found["first"].squares[0], both.square().sum(0), rtol=1e-4)
    assert list(input_statistics(model, [(x, None)], ["last"])) == ["last"]


def test_in_order_sees_what_was_changed():
    model, x = Backwards(), noise(5, 8)
    seen = {}
    for name, statistics in in_order(model, [x], ["never", "last", "first"]):
        seen[name] = statistics
        model.get_submodule(name).weight.data.zero_()
        model.get_submodule(name).bias.data.fill_(3.0)
    assert list(seen) == ["first", "last"]
    assert torch.equal(seen["last"].gram, torch.full((1, 8, 8), 9.0))


def test_shared_and_subclassed_layers():
    case = hostile("shared")
    found = input_statistics(case.model, case.batches)
    assert {name: seen.tokens for name, seen in found.items()} == {"first": 24, "head": 12}
    assert input_statistics(case.model, case.batches, ["again"])["again"].tokens == 24
    attention = input_statistics(hostile("attention").model, hostile("attention").batches)
    assert list(attention) == ["head"]  # the output projection is no layer that is called


def test_the_model_is_left_as_it_was():
    case = hostile("train_mode")
    case.model[0].eval()
    flags, running = [m.training for m in case.model.modules()], case.model[1].running_mean.clone()
    input_statistics(case.model, case.batches)

    def interrupted():
        yield case.batches[0]
        raise KeyboardInterrupt

    def broken(*args: object) -> None:
        raise RuntimeError("broken")

    with pytest.raises(KeyboardInterrupt):
        input_statistics(case.model, interrupted())
    with case.model[4].register_forward_hook(broken), pytest.raises(RuntimeError, match="broken"):
        input_statistics(case.model, case.batches)
    assert [m.training for m in case.model.modules()] == flags
    assert torch.equal(case.model[1].running_mean, running)
    assert not any(m._forward_pre_hooks for m in case.model.modules())
    with evaluating(case.model):
        assert not case.model[3].training
        assert not torch.is_grad_enabled()
    assert case.model[3].training


def test_errors():
    seen = InputStatistics(gram=False)
    for field in ("squares", "mean"):
        with pytest.raises(ValueError, match="statistics over 0 tokens are not defined; update them with at least 1"):
            getattr(seen, field)
    with pytest.raises(ValueError, match="gram=False keeps no Gram matrix; make the statistics with gram=True"):
        _ = seen.gram
    model = hostile("mlp").model
    for wrong in ("1", "nothing"):
        with pytest.raises(
            ValueError, match=rf"\['{wrong}'\] must be Linear or Conv layers of the model; choose from \['0"
        ):
            input_statistics(model, [(noise(2, 6), None)], [wrong])
    with pytest.raises(ValueError, match="batches holds no batch; pass at least one of"):
        input_statistics(model, [])
    with pytest.raises(ValueError, match="inputs of batch 1 must be finite, got 1 NaN"):
        inputs_of([(torch.ones(1), None), (torch.tensor([float("nan")]), None)])
    with pytest.raises(ValueError, match="the sum of squares of what '0' gets must be finite"):
        input_statistics(nn.Sequential(nn.Linear(1, 1)), [(torch.full((2, 1), 1e30), None)])
