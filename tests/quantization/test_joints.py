"""Joints: which layers they join, what is turned down and why, and that the function stays."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compresslab.quantization.joints import Joint, find_joints, move_scales, visit_inputs
from compresslab.workbench import models


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(model: nn.Module, seed: int = 0) -> nn.Module:
    """With a normal number in every parameter: a fresh norm's ones and zeros would hide mistakes."""
    for place, parameter in enumerate(model.parameters()):
        parameter.data = noise(*parameter.shape, seed=seed + place).to(parameter.dtype)
    return model.eval()


class RMSNorm(nn.Module):
    """By hand, as language models have it; ``plus`` is added to the weight, as Gemma has it."""

    def __init__(self, width: int, plus: float = 0.0) -> None:
        super().__init__()
        self.weight, self.plus = nn.Parameter(torch.ones(width)), plus

    def forward(self, x: Tensor) -> Tensor:
        return x * x.square().mean(-1, keepdim=True).add(1e-6).rsqrt() * (self.plus + self.weight)


class Llama(nn.Module):
    """A block with q, k and v apart, ``kv_heads`` for two heads, and a gated MLP; its output is a dictionary."""

    def __init__(self, kv_heads: int = 2, plus: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(8, plus), RMSNorm(8)
        self.q, self.o = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.k, self.v = (nn.Linear(8, 4 * kv_heads, bias=False) for _ in "kv")
        self.gate, self.up, self.down = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> dict:  # (B, L, 8)
        h = self.norm1(x)
        q, k, v = (part(h).unflatten(-1, (-1, 4)).transpose(1, 2) for part in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(input=y.transpose(1, 2).flatten(2))
        h = self.norm2(x)
        return {"hidden": (x, x + self.down(F.silu(self.gate(h)) * self.up(h)))}


def test_a_block_of_llama():
    joints = find_joints(filled(Llama()), noise(3, 5, 8))
    assert joints.found == (
        Joint("norm1", 0, ("q", "k", "v")), Joint("v", 0, ("o",)), Joint("norm2", 0, ("gate", "up")),
        Joint("up", 0, ("down",)),
    )  # fmt: skip
    assert joints.unjoined == {}


def test_a_value_head_for_two_query_heads_is_no_joint():
    joints = find_joints(filled(Llama(kv_heads=1)), noise(3, 5, 8))
    assert [joint.source for joint in joints.found] == ["norm1", "norm2", "up"]
    assert joints.unjoined == {"o": "no layer before it passes a scale for each channel on to it"}


def test_a_weight_that_is_not_a_plain_factor_is_no_joint():
    joints = find_joints(filled(Llama(plus=1.0)), noise(3, 5, 8))
    assert "norm1" not in [joint.source for joint in joints.found]
    assert {*joints.unjoined} == {"q", "k", "v"}


class Skip(nn.Module):
    """The residual is taken after the norm, so it reads the norm too."""

    def __init__(self, after: bool) -> None:
        super().__init__()
        self.first, self.norm, self.linear, self.after = nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 6), after

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.norm(x)
        return self.linear(y) + (y if self.after else x)


def test_a_residual_that_also_reads_the_norm_is_turned_down():
    assert find_joints(filled(Skip(after=False)), noise(4, 6)).found == (Joint("norm", 0, ("linear",)),)
    joints = find_joints(filled(Skip(after=True)), noise(4, 6))
    assert joints.found == ()
    assert joints.unjoined == {
        "first": "no layer before it passes a scale for each channel on to it",
        "linear": "norm writes its input, but something else reads it too",
    }


@pytest.mark.parametrize(
    ("between", "joined"),
    [
        (nn.ReLU(), True), (nn.Identity(), True), (nn.LeakyReLU(0.1), True), (nn.Dropout(0.5), True),
        (nn.GELU(), False), (nn.Sigmoid(), False), (nn.Softmax(-1), False), (nn.LayerNorm(5, elementwise_affine=False), False),
    ],
)  # fmt: skip
def test_what_may_stand_between(between, joined):
    model = filled(nn.Sequential(nn.Linear(4, 5), between, nn.Linear(5, 3)))
    assert find_joints(model, noise(8, 4)).found == ((Joint("0", 0, ("2",)),) if joined else ())


def test_a_convolution_writes_channels_too():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))
    model, x = filled(model.double()), noise(2, 3, 8, 8).double()
    (joint,) = find_joints(model, x).found
    assert joint == Joint("0", 0, ("4",))
    moved = copy.deepcopy(model)
    move_scales(moved, joint, torch.arange(1.0, 7).double())
    assert torch.allclose(moved(x), model(x), atol=1e-12)
    assert not torch.equal(moved[0].weight, model[0].weight)


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def test_a_layer_is_in_one_joint_only():
    model = filled(nn.Sequential(nn.Linear(4, 5), LayerScale(5), nn.Linear(5, 3)))
    assert find_joints(model, noise(8, 4)).found == (Joint("0", 0, ("2",)),)


class Flipped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).flip(-1))


def test_channels_in_another_order_are_no_joint():
    assert find_joints(filled(Flipped()), noise(4, 4)).found == ()


class Sometimes(nn.Module):
    """The second layer runs for sums above 0 only; the third gets zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.first, self.second, self.third = (nn.Linear(4, 4, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        some = self.second(y[x.sum(-1) > 0]).sum() if (x.sum(-1) > 0).any() else 0
        return self.first(y) + some + self.third(torch.zeros_like(x))


def test_samples_are_added_until_all_layers_are_reached():
    x = -torch.ones(9, 4) * torch.arange(1.0, 5)
    x[7] = torch.tensor([4.0, 1.0, 2.0, 1.0])
    joints = find_joints(filled(Sometimes()), x)
    assert joints.found == (Joint("norm", 0, ("second", "first")),)
    assert joints.unjoined == {"third": "no layer before it passes a scale for each channel on to it"}


def test_while_a_layer_is_silent_its_width_is_left_alone():
    x = -torch.ones(9, 4) * torch.arange(1.0, 5)
    joints = find_joints(filled(Sometimes()), x)
    reason = "second gets no input from the batch, so it may read the same channels; pass more"
    assert joints.found == ()
    assert joints.unjoined == dict.fromkeys(["first", "second", "third"], reason)


def test_a_branch_that_two_samples_do_not_show_is_seen_in_the_whole_batch():
    """relu(a) is 0 but for the last sample, so the second layer seems to get the norm alone."""

    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.a, self.b = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            return self.b(y + torch.relu(self.a(y) - 100 * (x[..., :1] < 5)))

    x = noise(300, 4)
    x[-1] = 10 + noise(4)
    assert find_joints(filled(Late()), x[:-1]).found == (Joint("norm", 0, ("a", "b")),)
    assert find_joints(filled(Late()), x).found == ()


def test_the_models_of_the_course():
    gpt = models.build("gpt", width=16, depth=2, heads=2, context=12).eval()
    tokens = torch.randint(0, 256, (3, 12), generator=torch.Generator().manual_seed(0))
    joints = find_joints(gpt, tokens)
    wanted = []
    for block in ("blocks.0", "blocks.1"):
        wanted += [
            Joint(f"{block}.norm1", 0, (f"{block}.attn.qkv",)),
            Joint(f"{block}.attn.qkv", 32, (f"{block}.attn.proj",)),  # the values' rows
            Joint(f"{block}.norm2", 0, (f"{block}.mlp.fc1",)),
        ]
    assert joints.found == tuple(wanted)
    assert {*joints.unjoined} == {"blocks.0.mlp.fc2", "blocks.1.mlp.fc2", "head"}
    assert "something else reads it too" in joints.unjoined["head"]  # its weight is the embedding's, and writes too

    moe = models.build("moe_gpt", width=16, depth=1, heads=2, context=12, hidden=8, experts=4).eval()
    readers = find_joints(moe, tokens).found[-1]
    assert readers.source == "blocks.0.norm2"
    assert {*readers.layers} == {"blocks.0.moe.router", *(f"blocks.0.moe.experts.{i}.fc1" for i in range(4))}

    separable = filled(models.build("separable", width=8))
    (joint,) = find_joints(separable, noise(2, 1, 32, 32)).found  # batch norm, ReLU, mean, Linear
    assert (joint.source, joint.layers) == ("blocks.5.bn2", ("linear",))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_dtype(dtype):
    model = filled(Llama()).to(dtype)
    model.norm1.weight.data *= 1e-4  # near the smallest numbers of float16
    joints = find_joints(model, noise(20, 5, 8).to(dtype))
    assert [joint.source for joint in joints.found] == ["norm1", "v", "norm2", "up"]
    move_scales(model, joints.found[0], torch.full((8,), 2.0))
    assert model.q.weight.dtype == model.norm1.weight.dtype == dtype


def test_moved_by_hand():
    # 1 (x) + 2 and 3 x + 4, then 5 y0 + 6 y1: s = (2, 4) gives 0.5 x + 1, 0.75 x + 1, then 10 y0 + 24 y1.
    model = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1))
    model[0].weight.data, model[0].bias.data = torch.tensor([[1.0], [3.0]]), torch.tensor([2.0, 4.0])
    model[1].weight.data = torch.tensor([[5.0, 6.0]])
    before = model[1].bias.item()
    move_scales(model, Joint("0", 0, ("1",)), torch.tensor([2.0, 4.0]))
    assert model[0].weight.tolist() == [[0.5], [0.75]]
    assert model[0].bias.tolist() == [1.0, 1.0]
    assert model[1].weight.tolist() == [[10.0, 24.0]]
    assert model[1].bias.item() == before


@settings(derandomize=True, deadline=None, max_examples=15)
@given(kind=st.sampled_from(["llama", "gpt", "relu"]), seed=st.integers(0, 1000))
def test_the_function_stays_in_float64(kind, seed):
    if kind == "gpt":
        model = models.build("gpt", vocab=16, width=8, depth=1, heads=2, context=6)
        x = torch.randint(0, 16, (2, 6), generator=torch.Generator().manual_seed(seed))
    else:
        layers = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        model, x = (Llama() if kind == "llama" else layers), noise(2, 5, 8, seed=seed).double()
    model = filled(model.double(), seed)
    joints, moved = find_joints(model, x).found, copy.deepcopy(model)
    assert joints
    for place, joint in enumerate(joints):
        width = moved.get_submodule(joint.layers[0]).in_features
        move_scales(moved, joint, noise(width, seed=seed + place).double().exp())
    outputs = [each(x) for each in (model, moved)]
    first, second = (output["hidden"][1] if kind == "llama" else output for output in outputs)
    assert (first - second).abs().max() <= 1e-12 * first.abs().max()


def test_the_model_given_stays():
    model = filled(Llama()).train()
    model.q.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    find_joints(model, noise(3, 5, 8))
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_inputs_are_visited_as_rows():
    model, seen = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)), []
    x = [noise(2, 4, 3), noise(5, 3)]
    visit_inputs(model, ["0"], x, lambda name, rows: seen.append((name, rows)))
    assert [name for name, _ in seen] == ["0", "0"]
    assert torch.equal(torch.cat([rows for _, rows in seen]), torch.cat([x[0].flatten(0, 1), x[1]]))
    assert not model[0]._forward_pre_hooks


def test_errors():
    with pytest.raises(ValueError, match="Conv2d has no Linear layer, so no input to scale; use quantize_weights"):
        find_joints(nn.Conv2d(3, 4, 1), noise(2, 3, 8, 8))
