"""What is scored, the state it is scored in, sums over channels, ranks, magnitude and gradient."""

from __future__ import annotations

import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compresslab.importance import (
    average_ranks,
    combine_scores,
    gradient_scores,
    magnitude_scores,
    per_channel,
    scored_weights,
    scoring,
    spearman,
)
from compresslab.importance.scored import checked_loss, mean_gradients, read
from compresslab.testing import hostile
from compresslab.workbench import models


def test_which_weights():
    found = {name: list(scored_weights(hostile(name).model)) for name in ("conv_bn", "embedding", "tied", "shared")}
    assert found == {
        "conv_bn": ["0.weight", "3.weight", "6.weight"],  # not the batch norm's
        "embedding": ["mix.weight", "head.weight"],  # not the table
        "tied": ["mix.weight"],  # the head is the table
        "shared": ["first.weight", "head.weight"],  # one layer under two names
    }
    attention = ["attention.in_proj_weight", "attention.out_proj.weight", "head.weight"]
    assert list(scored_weights(hostile("attention").model)) == attention
    assert list(scored_weights(hostile("recurrent").model)) == ["lstm.weight_ih_l0", "lstm.weight_hh_l0", "head.weight"]
    gpt = scored_weights(models.build("gpt", depth=1, width=32, heads=2))
    assert [name for name in gpt if "embed" in name or "norm" in name or "bias" in name] == []


def test_by_name_anything_can_be_scored_and_ties_are_one():
    model = hostile("tied").model
    assert list(scored_weights(model, ["head.weight"])) == ["embedding.weight"]
    assert list(scored_weights(model, ["head.weight", "embedding.weight"])) == ["embedding.weight"]
    model = hostile("conv_bn").model
    assert list(scored_weights(model, ["1.bias", "1.weight"])) == ["1.weight", "1.bias"]


def test_what_cannot_be_scored_is_named():
    with pytest.raises(ValueError, match=r"names=\['0.bias', 'x'\] must be float parameters.*'0.weight'"):
        scored_weights(nn.Sequential(nn.Linear(2, 2, bias=False)), ["x", "0.weight", "0.bias"])
    with pytest.raises(ValueError, match="ReLU has no weight to score"):
        scored_weights(nn.ReLU())
    with pytest.raises(ValueError, match=r"2.weight must be finite"):
        scored_weights(hostile("nan").model)
    with pytest.raises(ValueError, match=r"0.weight is on the meta device"):
        scored_weights(hostile("meta").model)


def test_the_state_is_put_back_and_what_a_forward_replaced_too():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.norm = nn.BatchNorm1d(2)
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen = self.seen + len(x)  # a new tensor
            return self.norm(self.layer(x))

    model = Counting()
    model.norm.eval()
    model.layer.bias.requires_grad_(False)
    seen, mean = model.seen, model.norm.running_mean
    with pytest.raises(KeyboardInterrupt), scoring(model, scored_weights(model), batch_statistics=True):  # noqa: PT012
        assert (model.training, model.norm.training) == (False, True)
        assert [p.requires_grad for p in model.parameters()] == [True, False, False, False]
        assert torch.is_grad_enabled()
        model(torch.randn(5, 2, generator=torch.Generator().manual_seed(0)) + 7)
        raise KeyboardInterrupt
    assert (model.training, model.layer.training, model.norm.training) == (True, True, False)
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]
    assert model.seen is seen
    assert seen.item() == 0
    assert model.norm.running_mean is mean
    assert mean.tolist() == [0, 0]
    with scoring(model):
        assert not torch.is_grad_enabled()
        assert not any(p.requires_grad for p in model.parameters())


def test_batches_and_losses_are_looked_at():
    with pytest.raises(ValueError, match="batches holds no batch"):
        list(read([]))
    with pytest.raises(ValueError, match="inputs of batch 1 must be finite, they hold NaN"):
        list(read([(torch.ones(1), None), (torch.tensor([float("nan")]), None)]))
    with pytest.raises(ValueError, match="inputs of batch 0 must be finite, they have no values"):
        list(read([(torch.ones(1, device="meta"), None)]))
    with pytest.raises(ValueError, match=r"one finite number.*got nan"):
        checked_loss(torch.tensor(float("nan")))
    with pytest.raises(ValueError, match=r"one finite number.*got shape \(2,\)"):
        checked_loss(torch.ones(2))


def test_the_mean_gradient_is_of_all_samples_however_they_are_batched():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    unused = nn.Linear(2, 2).double()
    model.unused = unused
    model.forward = lambda x: model[2](model[1](model[0](x)))
    x = torch.randn(11, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (11,), generator=generator)
    whole = gradient_scores(model, [(x, y)], F.cross_entropy)
    parts = gradient_scores(model, [(x[:8], y[:8]), (x[8:], y[8:])], F.cross_entropy)
    F.cross_entropy(model(x), y).backward()
    for name in ("0.weight", "2.weight"):
        torch.testing.assert_close(whole[name], model.get_parameter(name).grad.abs())
        torch.testing.assert_close(parts[name], whole[name])
    assert whole["unused.weight"].abs().sum() == 0
    weights = scored_weights(model)
    with scoring(model, weights):
        assert mean_gradients(model, [(x, y)], F.cross_entropy, weights=weights)["0.weight"].min() < 0


def test_magnitude_by_hand_and_that_l1_and_l2_differ_for_channels_only():
    # Channel 0: 3 and 3. Channel 1: 0 and 5. L1: 6 and 5. L2 squared: 18 and 25.
    model = nn.Linear(2, 2)
    model.weight.data = torch.tensor([[3.0, -3.0], [0.0, -5.0]])
    l1, l2 = magnitude_scores(model), magnitude_scores(model, power=2)
    assert l1["weight"].tolist() == [[3, 3], [0, 5]]
    assert per_channel(l1)["weight"].tolist() == [6, 5]
    assert per_channel(l2)["weight"].tolist() == [18, 25]
    assert per_channel(l1, reduce="mean")["weight"].tolist() == [3, 2.5]
    assert torch.equal(average_ranks(l1["weight"]), average_ranks(l2["weight"]))
    with pytest.raises(ValueError, match=r"power=3 must be 1 \(L1\) or 2"):
        magnitude_scores(model, power=3)
    with pytest.raises(ValueError, match="reduce='max' must be 'sum' or 'mean'"):
        per_channel(l1, reduce="max")


def test_magnitude_is_kept_in_float32_or_wider():
    scores = magnitude_scores(hostile("float16").model, power=2)
    assert {tensor.dtype for tensor in scores.values()} == {torch.float32}
    assert {t.dtype for t in magnitude_scores(hostile("float64").model).values()} == {torch.float64}


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(-4, 4), st.floats(-2, 2)), min_size=3, max_size=30))
def test_ranks_and_spearman_are_scipys(pairs):
    first, second = (torch.tensor(values, dtype=torch.float64) for values in zip(*pairs, strict=True))
    assert average_ranks(first).tolist() == scipy.stats.rankdata(first.numpy()).tolist()
    if first.unique().numel() > 1 and second.unique().numel() > 1:
        truth = scipy.stats.spearmanr(first.numpy(), second.numpy()).statistic
        assert spearman(first, second) == pytest.approx(truth, abs=1e-12)


def test_ranks_by_hand_and_what_has_none():
    assert average_ranks(torch.tensor([[5, 1], [5, 5]])).tolist() == [[3, 1], [3, 3]]
    assert spearman(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 2.0])) != 0  # NaN: no order
    with pytest.raises(ValueError, match="1 of 2 values are NaN"):
        average_ranks(torch.tensor([float("nan"), 0]))
    with pytest.raises(ValueError, match="3 and 2 values must be as many"):
        spearman(torch.ones(3), torch.ones(2))
    with pytest.raises(ValueError, match="1 and 1 values must be as many, and at least 2"):
        spearman(torch.ones(1), torch.ones(1))


def test_combined_by_hand_over_all_layers():
    # Ranks of a over both layers: 1, 4 | 2, 3; of b: 1.5, 1.5 | 3, 4. Weights 3 : 1, of n = 4.
    a = {"x": torch.tensor([0.1, 9.0]), "y": torch.tensor([0.2, 0.3])}
    b = {"x": torch.tensor([5.0, 5.0]), "y": torch.tensor([6.0, 7.0])}
    found = combine_scores({"a": a, "b": b}, weights={"a": 30, "b": 10})
    assert found["x"].tolist() == pytest.approx([(3 * 1 + 1.5) / 16, (3 * 4 + 1.5) / 16])
    assert found["y"].tolist() == pytest.approx([(3 * 2 + 3) / 16, (3 * 3 + 4) / 16])
    assert combine_scores({"a": a, "b": b})["y"].tolist() == pytest.approx([5 / 8, 7 / 8])


def test_combined_refuses():
    a = {"x": torch.ones(2)}
    with pytest.raises(ValueError, match="scores holds no method"):
        combine_scores({})
    with pytest.raises(ValueError, match=r"exactly the methods \['a', 'b'\]; \['b'\] are in one"):
        combine_scores({"a": a, "b": a}, weights={"a": 1})
    with pytest.raises(ValueError, match=r"exactly the methods \['a'\]; \['c'\] are in one"):
        combine_scores({"a": a}, weights={"a": 1, "c": 1})
    for bad in ({"a": -1.0, "b": 2.0}, {"a": 0.0, "b": 0.0}, {"a": float("nan"), "b": 1.0}):
        with pytest.raises(ValueError, match=r"weights=\{.*must be at least 0, finite, and not all 0"):
            combine_scores({"a": a, "b": a}, weights=bad)
    with pytest.raises(ValueError, match=r"'b' must score the same tensors as 'a': \['x'\], got \['y'\]"):
        combine_scores({"a": a, "b": {"y": torch.ones(2)}})
    with pytest.raises(ValueError, match="'b' must score the same tensors"):
        combine_scores({"a": a, "b": {"x": torch.ones(3)}})


def test_the_fault_of_min_max_one_outlier_silences_a_method():
    # Two methods that see half of the truth each. Scaled to 0..1 both have a say, until one value of one of them is
    # a hundred times its largest: then that method has none, and the combination follows the other one alone.
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 1000, generator=generator)
    truth = first + second

    def min_max(*methods: torch.Tensor) -> torch.Tensor:
        return sum((m - m.min()) / (m.max() - m.min()) for m in methods)

    spiked = first.clone()
    spiked[7] = 100
    ranked = combine_scores({"a": {"w": spiked}, "b": {"w": second}})["w"]
    assert spearman(min_max(first, second), truth) > 0.999
    assert spearman(min_max(spiked, second), second) > 0.99  # the first has no say
    assert spearman(min_max(spiked, second), truth) < 0.75
    assert spearman(ranked, truth) > 0.99


def test_the_fault_of_ranks_within_a_layer():
    # Layer x is worth a hundred times layer y. Ranked within each, the half that goes is half of each.
    scores = {"x": 100 + torch.arange(50.0), "y": torch.arange(50.0)}
    within = {name: average_ranks(tensor) for name, tensor in scores.items()}
    combined = combine_scores({"a": scores})
    assert combined["y"].max() < combined["x"].min()
    assert not within["y"].max() < within["x"].min()


def test_the_fault_of_scoring_batch_norm_as_a_weight_matrix():
    # gamma is about 1 and a kernel's weights about 0.05: in one ranking a batch norm is never pruned, and the same
    # share over all leaves the kernels with fewer weights than were asked for.
    model = models.build("resnet", width=8, depth=1)
    named = [name for name, p in model.named_parameters() if "weight" in name]
    right, wrong = magnitude_scores(model), magnitude_scores(model, names=named)
    norms = [name for name in wrong if name not in right]
    assert len(norms) == 9
    flat = torch.cat([tensor.flatten() for tensor in wrong.values()])
    threshold = flat.sort().values[int(0.9 * len(flat))]
    assert all((wrong[name] > threshold).all() for name in norms)
