"""Dependencies: by hand, the kinds of operations, groups that must be refused, and what the try-out catches."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compresslab.pruning import rules, trace
from compresslab.pruning.channels import Pruned, prune_channels, remove_units
from compresslab.pruning.dependency import find_dependencies
from compresslab.pruning.groups import Dependencies
from compresslab.pruning.labels import FIXED, Classes
from compresslab.pruning.proof import assert_same_function
from compresslab.pruning.tryout import find_conflicts
from compresslab.workbench import models

IMAGE = (2, 3, 8, 8)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Run(nn.Module):
    """Layers by name, and a forward given as a function of (self, x)."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            if isinstance(layer, nn.Parameter):
                self.register_parameter(name, layer)
            elif isinstance(layer, Tensor):
                self.register_buffer(name, layer)
            else:
                self.add_module(name, layer)
        self._forward = forward

    def forward(self, *args, **kwargs):
        return self._forward(self, *args, **kwargs)


def conv(inputs: int, outputs: int, size: int = 3, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


def norm(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels).eval()
    layer.running_mean.copy_(0.1 * noise(channels))
    layer.running_var.copy_(1 + 0.5 * noise(channels, seed=1).abs())
    layer.bias.data.copy_(noise(channels, seed=2))
    return layer


def groups(model: nn.Module, x, **options) -> dict[str, tuple[int, set]]:
    found = find_dependencies(model, x, **options)
    return {name: (group.units, set(group.members)) for name, group in found.groups.items()}


def prove(model: nn.Module, x, **options) -> Pruned:
    pruned = prune_channels(model.eval(), x, **options)
    assert_same_function(model, pruned, x)
    return pruned


def test_a_residual_block_by_hand():
    """conv1 and conv2 add up, so channel i of both, of both norms, and input i of conv2 and head are one unit."""
    model = Run(
        lambda m, x: m.head((m.bn2(m.conv2(y := m.bn1(m.conv1(x)).relu())) + y).mean((2, 3))),
        conv1=conv(3, 4), bn1=norm(4), conv2=conv(4, 4, bias=False), bn2=norm(4), head=nn.Linear(4, 5),
    ).eval()  # fmt: skip
    found = find_dependencies(model, noise(*IMAGE))
    statistics = {(f"bn{n}.{part}", 0) for n in (1, 2) for part in ("weight", "bias", "running_mean", "running_var")}
    weights = {("conv1.weight", 0), ("conv1.bias", 0), ("conv2.weight", 0), ("conv2.weight", 1), ("head.weight", 1)}
    assert list(found.groups) == ["conv1.weight"]
    group = found.groups["conv1.weight"]
    assert group.units == 4
    assert set(group.members) == statistics | weights
    assert group.producers == (("conv1.weight", 0), ("conv2.weight", 0))
    assert all(unit.tolist() == index.tolist() == [0, 1, 2, 3] for unit, index in group.members.values())
    assert found.unprunable == {"head.weight": "it is an output of the model"}
    kept = found.kept({"conv1.weight": torch.tensor([1])})
    assert {(name, axis): kept[name][axis].tolist() for name in kept for axis in kept[name]} == {
        key: [0, 2, 3] for key in statistics | weights
    }
    prove(model, noise(*IMAGE))


def test_concatenation_and_flattening_by_hand():
    """Channels 2.. of the concatenation come from b; a channel of 2 x 2 pixels is 4 columns of the head."""
    model = Run(
        lambda m, x: m.head(torch.cat([m.a(x), m.b(x)], 1).flatten(1)),
        a=nn.Conv2d(3, 2, 1), b=nn.Conv2d(3, 3, 1), head=nn.Linear(20, 4),
    )  # fmt: skip
    found = find_dependencies(model, noise(1, 3, 2, 2))
    unit, index = found.groups["b.weight"].members["head.weight", 1]
    assert unit.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert index.tolist() == list(range(8, 20))
    prove(model, noise(1, 3, 2, 2))


CASES = {
    "depthwise": (
        lambda m, x: m.c(m.b(m.a(x)).relu()).mean((2, 3)),
        {"a": conv(3, 6), "b": conv(6, 12, groups=6), "c": conv(12, 4)},
        {"a.weight": 6},
    ),
    "whole groups": (
        lambda m, x: m.c(m.b(m.a(x)).relu()).mean((2, 3)),
        {"a": conv(3, 12), "b": conv(12, 12, groups=6), "c": conv(12, 4)},
        {"a.weight": 6},
    ),
    "same channel of every group": (
        lambda m, x: m.c(m.b(m.a(x)).relu()).mean((2, 3)),
        {"a": conv(3, 12), "b": conv(12, 8, groups=2), "c": conv(8, 4)},
        {"a.weight": 6, "b.weight": 4},
    ),
    "transposed": (
        lambda m, x: m.c(m.b(m.a(x)).relu()).mean((2, 3)),
        {"a": conv(3, 6), "b": nn.ConvTranspose2d(6, 5, 2, stride=2), "c": conv(5, 4)},
        {"a.weight": 6, "b.weight": 5},
    ),
    "transposed in groups": (
        lambda m, x: m.c(m.b(m.a(x)).relu()).mean((2, 3)),
        {"a": conv(3, 8), "b": nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2), "c": conv(6, 4)},
        {"a.weight": 4, "b.weight": 3},
    ),
    "transposed depthwise": (
        lambda m, x: m.c(m.b(m.a(x)).relu()).mean((2, 3)),
        {"a": conv(3, 6), "b": nn.ConvTranspose2d(6, 6, 2, stride=2, groups=6), "c": conv(6, 4)},
        {"a.weight": 6},
    ),
    "squeeze and excitation": (
        lambda m, x: m.c((y := m.a(x)) * m.s(y.mean((2, 3), keepdim=True)).sigmoid()).mean((2, 3)),
        {"a": conv(3, 6), "s": nn.Conv2d(6, 6, 1), "c": conv(6, 4)},
        {"a.weight": 6},
    ),
    "group norm by whole groups": (
        lambda m, x: m.c(m.n(m.a(x)).relu()).mean((2, 3)),
        {"a": conv(3, 8), "n": nn.GroupNorm(4, 8), "c": conv(8, 4)},
        {"a.weight": 4},
    ),
    "instance norm": (
        lambda m, x: m.c(m.n(m.a(x)).relu()).mean((2, 3)),
        {"a": conv(3, 6), "n": nn.InstanceNorm2d(6, affine=True), "c": conv(6, 4)},
        {"a.weight": 6},
    ),
    "gated by halves": (
        lambda m, x: m.b(F.glu(m.a(x), 1)),
        {"a": nn.Linear(5, 12), "b": nn.Linear(6, 4)},
        {"a.weight": 6},
    ),
    "halves to layers of their own": (
        lambda m, x: m.b((y := m.a(x).chunk(2, -1))[0]) + m.c(y[1]),
        {"a": nn.Linear(5, 12), "b": nn.Linear(6, 4), "c": nn.Linear(6, 4)},
        {"a.weight": 6},
    ),
    "scale of each channel": (
        lambda m, x: m.b(m.a(x) * m.scale + m.shift),
        {"a": nn.Linear(5, 6), "scale": nn.Parameter(noise(6)), "shift": noise(6, seed=1), "b": nn.Linear(6, 4)},
        {"a.weight": 6},
    ),
    "prelu": (
        lambda m, x: m.b(m.act(m.a(x))),
        {"a": nn.Linear(5, 6), "act": nn.PReLU(6), "b": nn.Linear(6, 4)},
        {"a.weight": 6},
    ),
    "einsum": (
        lambda m, x: torch.einsum("bi,oi->bo", torch.einsum("bi,oi->bo", x, m.a).relu(), m.b),
        {"a": nn.Parameter(noise(6, 5)), "b": nn.Parameter(noise(4, 6, seed=1))},
        {"a": 6},
    ),
    "matrix on the right": (
        lambda m, x: torch.addmm(m.shift, (x @ m.a).relu(), m.b),
        {"a": nn.Parameter(noise(5, 6)), "shift": nn.Parameter(noise(4)), "b": nn.Parameter(noise(6, 4, seed=1))},
        {"a": 6},
    ),
    "shared layer": (
        lambda m, x: m.b(m.act(m.mid(m.act(m.mid(m.a(x)))))),
        {"a": nn.Linear(5, 6), "mid": nn.Linear(6, 6), "act": nn.Tanh(), "b": nn.Linear(6, 4)},
        {"a.weight": 6},
    ),
    "padded shortcut": (
        lambda m, x: m.c(F.pad(y := m.a(x), (0, 0, 0, 0, 1, 2)).relu() + m.b(y)).mean((2, 3)),
        {"a": conv(3, 4), "b": conv(4, 7), "c": conv(7, 4)},
        {"a.weight": 4},
    ),
    "shuffled channels": (
        lambda m, x: m.c(m.a(x).unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)).mean((2, 3)),
        {"a": conv(3, 8), "c": conv(8, 4)},
        {"a.weight": 4},
    ),
    "lstm of two layers": (
        lambda m, x: m.b(m.a(x)[0][:, -1]),
        {"a": nn.LSTM(5, 6, num_layers=2, batch_first=True), "b": nn.Linear(6, 4)},
        {"a.weight_ih_l0": 6},
    ),
    "gru without bias": (
        lambda m, x: m.b(m.a(x)[0][:, -1]),
        {"a": nn.GRU(5, 6, batch_first=True, bias=False), "b": nn.Linear(6, 4)},
        {"a.weight_ih_l0": 6},
    ),
    "lstm in both directions, two layers": (
        lambda m, x: m.b(m.a(x)[0][:, -1]),
        {"a": nn.LSTM(5, 6, num_layers=2, batch_first=True, bidirectional=True), "b": nn.Linear(12, 4)},
        {"a.weight_ih_l0": 6},
    ),
    "gru in both directions, last states": (
        lambda m, x: m.b(torch.cat(list(m.a(x)[1]), -1)),
        {"a": nn.GRU(5, 6, batch_first=True, bidirectional=True), "b": nn.Linear(12, 4)},
        {"a.weight_ih_l0": 6},
    ),
    "embedding": (
        lambda m, x: m.b(m.a((x[..., 0] > 0).long())),
        {"a": nn.Embedding(2, 6), "b": nn.Linear(6, 4)},
        {"a.weight": 6},
    ),
}  # fmt: skip


def input_of(name: str, layers: dict) -> Tensor:
    if name.startswith(("lstm", "gru", "embedding")):
        return noise(2, 3, 5)
    return noise(*IMAGE) if any(isinstance(m, nn.Conv2d) for m in layers.values()) else noise(3, 5)


@pytest.mark.parametrize("name", CASES)
def test_kinds_of_operations(name):
    forward, layers, expected = CASES[name]
    model, x = Run(forward, **layers).eval(), input_of(name, layers)
    assert {group: units for group, (units, _) in groups(model, x).items()} == expected
    prove(model, x)


REFUSED = {
    "softmax over channels": (lambda m, x: m.b(m.a(x).softmax(-1)), "softmax goes over all of them"),
    "mean over channels": (lambda m, x: m.b(m.a(x) - m.a(x).mean(-1, keepdim=True)), "mean goes over all of them"),
    "sorted": (lambda m, x: m.b(m.a(x).sort(-1)[0]), "sort goes over all of them"),
    "a constant added": (lambda m, x: m.b(m.a(x) + torch.arange(6.0)), "add joins them with values that are no channels"),
    "picked by number": (lambda m, x: m.b(m.a(x)[:, [5, 4, 3, 2, 1, 0]]), "index picks from them by number"),
    "rolled": (lambda m, x: m.b(m.a(x).roll(1, -1)), "the model's code mixes them up"),
    "a size written down": (lambda m, x: m.b(m.a(x).view(-1, 6)), "the model's code does not follow: RuntimeError"),
    "a cut written down": (lambda m, x: m.b(torch.cat([m.a(x)[:, 3:], m.a(x)[:, :3]], 1)), "the model's code mixes them up"),
    "an operation without a rule": (lambda m, x: m.b(torch.special.bessel_j0(m.a(x))), "special_bessel_j0 is not understood"),
    "a cumulative sum": (lambda m, x: m.b(m.a(x).cumsum(-1)), "cumsum goes over all of them"),
    "a product with itself": (lambda m, x: m.b(m.a(x) @ (m.a(x).T @ m.a(x))), "mm goes over all of them|matmul goes"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_must_stay_stays_with_its_reason(name):
    forward, reason = REFUSED[name]
    model = Run(forward, a=nn.Linear(5, 6), b=nn.Linear(6, 4))
    found = find_dependencies(model, noise(3, 5))
    assert not found.groups
    assert re.search(reason, found.unprunable["a.weight"])
    odd_go = {"a": torch.tensor([6.0, 1.0, 5.0, 2.0, 4.0, 3.0])}  # without the last three a cut would be right
    with pytest.raises(ValueError, match=rf"nothing can be pruned, because a.weight: .*({reason})"):
        prune_channels(model, noise(3, 5), scores=odd_go)


def test_what_is_right_for_some_units_is_judged_by_those():
    """Rolled by one: without the last unit the first place is another's, without the second it is still the last's."""
    model, x = Run(lambda m, x: m.b(m.a(x).roll(1, -1)), a=nn.Linear(5, 6), b=nn.Linear(6, 4)), noise(3, 5)
    prove(model, x, scores={"a": torch.tensor([5.0, 1.0, 2.0, 3.0, 4.0, 6.0])})
    with pytest.raises(ValueError, match=r"a.weight: the model's code mixes them up"):
        prune_channels(model, x, scores={"a": torch.arange(6.0, 0.0, -1.0)})


@pytest.mark.parametrize("heads", [4, 2])  # of two one is left, which carries no label: the sizes tell
def test_the_tryout_sees_a_wrong_function_that_runs(heads):
    """Heads counted by a number written down: with half the width the code takes half the tokens for twice the heads."""

    def forward(m, x):
        q, k, v = (layer(x).view(2, -1, heads, 12 // heads).transpose(1, 2) for layer in (m.q, m.k, m.v))
        return m.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, x.shape[1], -1))

    model = Run(forward, q=nn.Linear(5, 12), k=nn.Linear(5, 12), v=nn.Linear(5, 12), out=nn.Linear(12, 4))
    found = find_dependencies(model, noise(2, 6, 5))
    assert not found.groups
    assert found.unprunable["q.weight"] == "the model's code mixes them up when some are removed"


def test_auxiliary_heads_are_followed_in_training_mode():
    def forward(m, x):
        y = m.stem(x).relu()
        return (m.head(y), m.aux(y)) if m.training else m.head(y)

    model = Run(forward, stem=nn.Linear(5, 6), head=nn.Linear(6, 4), aux=nn.Linear(6, 3)).eval()
    assert ("aux.weight", 1) in groups(model, noise(3, 5))["stem.weight"][1]
    assert prove(model, noise(3, 5)).model.train()(noise(3, 5))[1].shape == (3, 3)


def looks(m, x):
    """Which layer is next hangs on values, so zeros in their place would take the other way."""
    size = m.gate(x).abs().max()
    return (m.b if (size.item() if m.way == "item" else size.tolist()) > 0 else m.c)(m.a(x))


@pytest.mark.parametrize("way", ["item", "tolist"])  # the second is no operation
def test_code_that_looks_at_values_is_followed(way):
    model = Run(looks, gate=nn.Linear(5, 1, bias=False), a=nn.Linear(5, 6), b=nn.Linear(6, 4), c=nn.Linear(6, 4))
    model.way = way
    found = find_dependencies(model, noise(3, 5))
    assert ("b.weight", 1) in found.groups["a.weight"].members
    assert found.unprunable["c.weight"] == "it is not used on these inputs"
    prove(model, noise(3, 5))


def test_zeros_in_place_of_products_give_the_same_groups(monkeypatch):
    block = nn.TransformerEncoderLayer(12, 3, 24, batch_first=True)
    model = Run(
        lambda m, x: m.head(m.block(m.up(m.conv(x).relu()).flatten(2).mT).mean(1) @ m.matrix),
        conv=conv(3, 8), up=nn.ConvTranspose2d(8, 12, 2, stride=2), block=block, matrix=nn.Parameter(noise(12, 6)),
        head=nn.Linear(6, 4),
    ).eval()  # fmt: skip
    hollow = find_dependencies(model, noise(*IMAGE))
    monkeypatch.setattr(trace, "_sized", lambda *_: None)
    full = find_dependencies(model, noise(*IMAGE))
    assert len(full.groups) == 4
    assert hollow.unprunable == full.unprunable
    for name, group in full.groups.items():
        assert hollow.groups[name].members.keys() == group.members.keys()
        assert torch.equal(hollow.groups[name].classes, group.classes)


def test_no_arithmetic_of_products_but_their_sizes_are_checked():
    """A product of a million rows would take minutes; a layer that does not fit is refused as ever."""
    wide = nn.Sequential(nn.Linear(2, 3000), nn.ReLU(), nn.Linear(3000, 3000), nn.ReLU(), nn.Linear(3000, 2))
    with FlopCounterMode(display=False) as counter:
        find_dependencies(wide, noise(500, 2))
    assert counter.get_total_flops() < 1e-3 * 2 * 500 * 3000 * 3000
    for layer, x in ((nn.Linear(5, 6), noise(3, 4)), (conv(4, 6), noise(*IMAGE)), (nn.Conv1d(3, 4, 9), noise(1, 3, 8))):
        with pytest.raises(ValueError, match="the model cannot be run on example_inputs"):
            find_dependencies(layer, x)


def test_nothing_is_left_on_the_model_or_its_inputs():
    model, x = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)), noise(3, 5)
    find_dependencies(model, x)
    for tensor in (x, *model.parameters(), *model.buffers()):
        assert vars(tensor) == {}


def test_experts_of_which_each_token_gets_one():
    """The matrices that tokens are sent to are weights, however they are picked."""

    def forward(m, x):
        picked = m.gate(x).argmax(-1)
        hidden = torch.bmm(m.up[picked], x[..., None]).relu()
        return m.head(torch.bmm(m.down[picked], hidden)[..., 0])

    parts = {"up": nn.Parameter(noise(4, 6, 5)), "down": nn.Parameter(noise(4, 7, 6, seed=1))}
    model = Run(forward, gate=nn.Linear(5, 4), head=nn.Linear(7, 3), **parts)
    found = groups(model, noise(9, 5))
    assert found["up"] == (6, {("up", 1), ("down", 2)})
    assert found["down"] == (7, {("down", 1), ("head.weight", 1)})
    prove(model, noise(9, 5))


def test_a_product_of_rows_with_the_matrix_of_their_expert():
    def forward(m, x):
        ends = torch.tensor([4, 16], dtype=torch.int32)
        return m.head(torch._grouped_mm(torch._grouped_mm(x, m.up, offs=ends).relu(), m.down, offs=ends))

    parts = {"up": nn.Parameter(noise(2, 16, 32)), "down": nn.Parameter(noise(2, 32, 16, seed=1))}
    model, x = Run(forward, head=nn.Linear(16, 3), **parts), noise(16, 16)
    assert groups(model, x)["up"] == (32, {("up", 2), ("down", 1)})
    assert_same_function(model, prune_channels(model, x), x, tolerance=1e-5, dtype=torch.float32)


def test_unused_parameters_are_named():
    model = Run(lambda m, x: m.b(m.a(x)), a=nn.Linear(5, 6), b=nn.Linear(6, 4), c=nn.Linear(7, 8))
    assert find_dependencies(model, noise(3, 5)).unprunable["c.weight"] == "it is not used on these inputs"


def test_inputs_may_be_a_tuple_or_a_dict():
    model = Run(lambda m, x, shift=0.0: m.b(m.a(x) + shift), a=nn.Linear(5, 6), b=nn.Linear(6, 4))
    for inputs in (noise(3, 5), (noise(3, 5), 1.0), {"x": noise(3, 5), "shift": 2.0}):
        assert list(groups(model, inputs)) == ["a.weight"]


def test_a_model_that_cannot_run_says_what_to_pass():
    with pytest.raises(ValueError, match=r"the model cannot be run on example_inputs .*pass what its forward takes"):
        find_dependencies(nn.Linear(5, 6), noise(3, 4))


def test_a_rule_that_fails_freezes_what_it_was_given(monkeypatch):
    def fails(trace, a, out):
        raise KeyError("dim")

    monkeypatch.setitem(rules.RULES, "tanh", fails)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4))
    found = find_dependencies(model, noise(3, 5))
    assert list(found.groups) == ["2.weight"]
    assert found.unprunable["0.weight"] == "tanh is not understood in this form (KeyError: 'dim')"


def test_norms_over_channels_on_demand():
    layers = {"a": nn.Linear(5, 6), "n": nn.LayerNorm(6), "b": nn.Linear(6, 4)}
    model = Run(lambda m, x: m.b(m.n(m.a(x))), **layers)
    assert groups(model, noise(3, 5)) == {}
    members = {("a.weight", 0), ("a.bias", 0), ("n.weight", 0), ("n.bias", 0), ("b.weight", 1)}
    assert groups(model, noise(3, 5), through_norms=True) == {"a.weight": (6, members)}
    pruned = prune_channels(model, noise(3, 5), through_norms=True)
    assert pruned.model.n.normalized_shape == (3,)
    for name, parameter in pruned.model.named_parameters():  # the slices are the original's
        part = model.get_parameter(name)
        for axis, indices in pruned.kept.get(name, {}).items():
            part = part.index_select(axis, indices)
        assert torch.equal(parameter, part)
    with pytest.raises(ValueError, match="exact=False: statistics of norms were let to change"):
        assert_same_function(model, pruned, noise(3, 5))


def test_the_width_of_a_whole_transformer_on_demand():
    model, x = models.build("vit", depth=1).eval(), noise(2, 1, 32, 32)
    pruned = prune_channels(model, x, through_norms=True)
    assert pruned.model.norm.normalized_shape == (32,)
    assert pruned.model(x).shape == (2, 62)


def found_without(found: Dependencies, part: str) -> Dependencies:
    """As if a rule had forgotten some member."""
    spoiled = {
        name: replace(group, members={key: value for key, value in group.members.items() if part not in key[0]})
        for name, group in found.groups.items()
    }
    return replace(found, groups=spoiled)


def test_conflicts_name_the_group_that_misses_a_member():
    model = Run(
        lambda m, x: m.head(m.bn(m.a(x)).relu().mean((2, 3))), a=conv(3, 4), bn=norm(4), head=nn.Linear(4, 5)
    ).eval()
    found = find_dependencies(model, noise(*IMAGE))
    removed = {"a.weight": torch.tensor([0, 2])}
    assert find_conflicts(model, found, removed, noise(*IMAGE)) == {}
    blamed = find_conflicts(model, found_without(found, "bn."), removed, noise(*IMAGE))
    assert list(blamed) == ["a.weight"]
    with pytest.raises(ValueError, match=r"nothing can be pruned, because a.weight"):
        remove_units(model, found_without(found, "bn."), removed, noise(*IMAGE))


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 29), st.integers(1, 29)), max_size=40))
def test_classes_are_connected_components(pairs):
    """Against a search through the graph."""
    classes = Classes(30)
    if pairs:
        classes.union(*torch.tensor(pairs).T)
    neighbours = {n: {n} for n in range(30)}
    for a, b in pairs:
        neighbours[a].add(b)
        neighbours[b].add(a)
    for start in range(1, 30):
        seen, todo = set(), {start}
        while todo:
            seen |= todo
            todo = set().union(*(neighbours[n] for n in todo)) - seen
        assert int(classes.find(torch.tensor([start]))) == min(seen)


def test_frozen_classes_stay_frozen_when_they_grow():
    classes = Classes(5)
    classes.freeze(torch.tensor([4]), "first")
    classes.union(torch.tensor([1]), torch.tensor([4]))
    classes.freeze(torch.tensor([1]), "second")
    classes.union(torch.tensor([2]), torch.tensor([FIXED]))
    assert [classes.reasons[n] for n in classes.frozen().tolist()][1:] == [
        "first", "they are added to padding or other values that are no channels", "", "first",
    ]  # fmt: skip
