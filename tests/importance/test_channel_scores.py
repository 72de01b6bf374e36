"""Gates: where they stand, that closing one takes the channel out, and that derivatives are sums of g w."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compresslab.importance import (
    Channels,
    activation_scores,
    at_gates,
    batchnorm_scale_scores,
    find_channels,
    gate_gradients,
    gated,
    per_channel,
    taylor_channel_scores,
    taylor_map_scores,
)
from compresslab.importance.fisher import fisher_channel_scores
from compresslab.testing import hostile
from compresslab.workbench import checkpoints, models


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Biases, scales and statistics that are not 0 or 1, which would hide a fault."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return model.eval()


class Branches(nn.Module):
    """Outputs used in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(3, 3, 1) for _ in range(4))
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        x = F.relu(a) + a  # used twice: nothing behind the layer itself is its own
        x = torch.relu(self.norm(self.b(x)))  # two steps
        y = F.gelu(self.c(x))
        x = y * torch.sigmoid(y)  # one step, then used twice
        x = torch.cat([self.d(x).relu_(), x], 1)[:, :3]  # in place, one step
        return self.head(x.mean((2, 3)))


def test_where_the_gates_stand():
    found = find_channels(Branches().eval(), noise(2, 3, 4, 4))
    assert {name: (c.steps, c.norm) for name, c in found.items()} == {
        "a.weight": ((0,), None),
        "b.weight": ((2,), "norm"),
        "c.weight": ((1,), None),
        "d.weight": ((1,), None),
    }
    assert found["b.weight"] == Channels(count=3, axis=1, positions=16, steps=(2,), norm="norm")
    assert "head.weight" in find_channels(Branches(), noise(2, 3, 4, 4), ["head.weight"])


def test_on_the_course_models():
    found = find_channels(models.build("resnet", depth=1), torch.zeros(2, 1, 32, 32))
    assert found["layer1.0.conv1.weight"].steps == (2,)  # batch norm, ReLU
    assert found["layer1.0.conv2.weight"].steps == (1,)  # batch norm; then the sum
    assert found["layer2.0.shortcut.0.weight"].norm == "layer2.0.shortcut.1"
    assert "linear.weight" not in found
    gpt = find_channels(models.build("gpt", depth=1, width=32, heads=2), torch.zeros(2, 5, dtype=torch.int64))
    assert gpt["blocks.0.mlp.fc1.weight"] == Channels(count=128, axis=-1, positions=5, steps=(1,), norm=None)
    assert "head.weight" not in gpt


def test_a_layer_that_runs_twice_has_a_gate_in_each_call():
    case = hostile("shared")
    (x, _), *_ = case.batches
    channels = find_channels(case.model, x)
    assert channels["first.weight"].steps == (1, 1)
    closed = torch.tensor([0.0, 1, 1, 1, 1, 1])
    with gated(case.model, channels, {"first.weight": closed}):
        found = case.model(x)
    inside = torch.relu(case.model.first(torch.relu(case.model.first(x)) * closed)) * closed
    torch.testing.assert_close(found, case.model.head(inside))
    fewer = {"first.weight": Channels(6, -1, 1, (1,), None)}
    with (
        pytest.raises(ValueError, match=r"first.weight is called more often than when"),
        gated(case.model, fewer, {"first.weight": closed}),
    ):
        case.model(x)


@pytest.mark.parametrize("name", ["layer1.0.conv1.weight", "layer2.0.conv2.weight", "layer2.0.shortcut.0.weight"])
def test_a_closed_gate_is_a_channel_taken_out(name):
    # The other way: weights, scale and shift of the batch norm of this channel set to 0 by hand.
    model, x = randomize(models.build("resnet", width=8, depth=1)).double(), noise(3, 1, 32, 32).double()
    channels = find_channels(model, x)
    gate = torch.ones(channels[name].count)
    gate[3] = 0
    model.get_submodule(channels[name].norm).bias.data[3] = 5  # alive
    with torch.no_grad(), gated(model, channels, {name: gate}):
        found = model(x)
    edited = copy.deepcopy(model)
    with torch.no_grad():
        edited.get_parameter(name)[3] = 0
        norm = edited.get_submodule(channels[name].norm)
        norm.weight[3] = norm.bias[3] = 0
        torch.testing.assert_close(found, edited(x))
        assert (found - model(x)).abs().max() > 1e-6
        # Zero weights alone leave relu((0 - mean) / std * gamma + beta): another function.
        norm.weight.copy_(model.get_submodule(channels[name].norm).weight)
        norm.bias.copy_(model.get_submodule(channels[name].norm).bias)
        assert (found - edited(x)).abs().max() > 1e-6


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_derivatives_are_sums_of_gradient_times_weight(kind):
    # For a batch: sum over the channel's weights and bias of g w, or g_gamma gamma + g_beta beta of its batch norm.
    if kind == "conv":
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
        model, x = randomize(model), noise(5, 2, 6, 6)
    else:
        model, x = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), noise(5, 6)
    targets = torch.tensor([0, 1, 2, 0, 1])
    ((_, found),) = gate_gradients(model, [(x, targets)], F.cross_entropy)
    F.cross_entropy(model(x), targets).backward()
    last = model[1] if kind == "conv" else model[0]
    by_hand = last.weight.grad * last.weight
    by_hand = by_hand + last.bias.grad * last.bias if kind == "conv" else by_hand.sum(1) + last.bias.grad * last.bias
    torch.testing.assert_close(found["0.weight"].mean(0), by_hand.detach())
    expected = taylor_channel_scores(model, [(x, targets)], F.cross_entropy)["0.weight"]
    torch.testing.assert_close(expected, by_hand.detach().square())
    # Adding absolute values, or squares, is not adding and then squaring.
    parts = (last.weight.grad * last.weight).detach()
    if kind == "linear":
        assert not torch.allclose(per_channel({"w": parts.square()})["w"], expected, rtol=0.2)
        assert not torch.allclose(per_channel({"w": parts.abs()})["w"].square(), expected, rtol=0.2)


def test_each_sample_by_itself():
    # 2017 and Theis: each sample's derivative, from a batch of one each.
    model, x, targets = hostile("conv_bn").model.eval(), noise(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    alone = [
        next(iter(gate_gradients(model, [(x[i : i + 1], targets[i : i + 1])], F.cross_entropy)))[1] for i in range(4)
    ]
    rows = {name: torch.cat([one[name] for one in alone]) for name in alone[0]}  # (4, C)
    batches = [(x[:3], targets[:3]), (x[3:], targets[3:])]
    maps = taylor_map_scores(model, batches, F.cross_entropy, normalize=False)
    fisher = fisher_channel_scores(model, batches, F.cross_entropy)
    for name, row in rows.items():
        torch.testing.assert_close(maps[name], row.abs().mean(0) / 64)  # 8 x 8 positions
        torch.testing.assert_close(fisher[name], row.square().mean(0) / 2)
    normalized = taylor_map_scores(model, batches, F.cross_entropy)
    for name in rows:
        torch.testing.assert_close(normalized[name], maps[name] / maps[name].norm())


def test_by_hand_signed_parts_cancel():
    # z = 2 x - 2 x = 0 whatever x is, so the channel is worth nothing. |g w| of its weights is large.
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False))
    model[0].weight.data, model[1].weight.data = torch.tensor([[2.0, -2.0]]), torch.tensor([[3.0]])
    batches = [(torch.tensor([[1.0, 1.0], [5.0, 5.0]]), torch.zeros(2))]
    assert taylor_channel_scores(model, batches, lambda y, t: y.mean())["0.weight"].tolist() == [0]
    assert taylor_map_scores(model, batches, lambda y, t: y.mean())["0.weight"].tolist() == [0]


def test_activation_by_hand_and_streamed():
    # Two channels, relu(x) and relu(-x), of 3, -1 and then 2: means 5/3 and 1/3, not zero 2/3 and 1/3.
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1))
    model[0].weight.data = torch.tensor([[1.0], [-1.0]])
    batches = [(torch.tensor([[3.0], [-1.0]]), None), (torch.tensor([[2.0]]), None)]
    assert activation_scores(model, batches)["0.weight"].tolist() == pytest.approx([5 / 3, 1 / 3])
    assert activation_scores(model, batches, statistic="apoz")["0.weight"].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert activation_scores(model, batches, after_activation=False)["0.weight"].tolist() == pytest.approx([2, 2])
    with pytest.raises(ValueError, match="statistic='l1' must be 'mean' or 'apoz'"):
        activation_scores(model, batches, statistic="l1")


@pytest.mark.parametrize("name", ["conv_bn", "conv1d", "embedding", "prime_sizes"])
def test_activation_is_what_the_next_layer_gets(name):
    # Where nothing but an activation lies between two layers, it is the input of the next one.
    case, seen = hostile(name), {}
    case.model.eval()
    layers = [(n, m) for n, m in case.model.named_modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)]
    following = dict(zip([f"{n}.weight" for n, _ in layers], layers[1:], strict=False))
    for producer, (_, layer) in following.items():
        layer.register_forward_pre_hook(lambda m, args, p=producer: seen.setdefault(p, []).append(args[0]))
    scores = activation_scores(case.model, case.batches)
    rest = [seen[key][-len(case.batches) :] for key in scores]
    for score, inputs in zip(scores.values(), rest, strict=True):
        x = torch.cat(inputs)
        x = x.unflatten(1, (len(score), -1)) if x.dim() == 2 and x.shape[1] != len(score) else x  # after Flatten
        x = x.movedim(-1, 1) if name == "embedding" else x
        torch.testing.assert_close(score, x.abs().transpose(0, 1).flatten(1).mean(1))


def test_before_the_activation_is_another_order():
    # Channel 0 is always negative: large, and nothing after the ReLU.
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    model[0].weight.data, model[0].bias.data = torch.tensor([[0.1], [0.1]]), torch.tensor([-9.0, 1.0])
    batches = [(noise(20, 1), None)]
    after, before = (activation_scores(model, batches, after_activation=which)["0.weight"] for which in (True, False))
    assert after[0] == 0 < after[1]
    assert before[0] > before[1]


def test_batch_norm_scale_is_of_the_layer_before_it():
    model = randomize(models.build("resnet", width=8, depth=1))
    model.bn1.weight.data[2] = -3
    scores = batchnorm_scale_scores(model, [(torch.zeros(2, 1, 32, 32), None)])
    assert scores["conv1.weight"][2] == 3
    assert torch.equal(scores["layer1.0.conv2.weight"], model.layer1[0].bn2.weight.detach().abs())
    assert len(scores) == 9
    with pytest.raises(ValueError, match=r"\['0.weight'\] must be followed by a batch norm"):
        batchnorm_scale_scores(hostile("mlp").model, hostile("mlp").batches)
    case = hostile("conv_bn")
    assert list(batchnorm_scale_scores(case.model, case.batches)) == ["0.weight"]
    with pytest.raises(ValueError, match=r"\['3.weight'\] must be followed by a batch norm"):
        batchnorm_scale_scores(case.model, case.batches, names=["0.weight", "3.weight"])


def test_visits_may_replace_or_only_look():
    model, x = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), noise(4, 2)
    channels, shapes = find_channels(model, x), []
    whole = model(x)
    with at_gates(model, channels, lambda name, tensor: shapes.append((name, *tensor.shape))):
        assert torch.equal(model(x), whole)
    assert shapes[0] == ("0.weight", 4, 3)
    with at_gates(model, channels, lambda name, tensor: tensor * 0):
        assert torch.equal(model(x), model[2].bias.expand(4, 1))
    assert torch.equal(model(x), whole)


def test_refusals():
    case = hostile("conv_bn")
    with pytest.raises(ValueError, match=r"\['1.weight'\] must have channels to gate; name weights of Linear"):
        find_channels(case.model, case.batches[0][0], ["1.weight", "0.weight"])
    with pytest.raises(ValueError, match=r"Linear must have channels to gate"):
        find_channels(nn.Linear(2, 2), torch.ones(1, 2))
    with pytest.raises(ValueError, match="Sequential must have channels to gate"):
        next(gate_gradients(nn.Sequential(nn.Linear(2, 2)), [(torch.ones(1, 2), torch.zeros(1))], F.mse_loss))


def test_the_trained_resnet_has_all_its_channels():
    model = checkpoints.load("resnet")
    found = find_channels(model, torch.zeros(1, 1, 32, 32))
    assert {name: c.count for name, c in found.items()} == {
        f"{name}.weight": layer.out_channels for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)
    }
    assert all(c.norm is not None for c in found.values())
