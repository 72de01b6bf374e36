"""Masks: counts exact to the element, by hand, against a stable sort, against torch.nn.utils.prune, through training."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.utils.prune
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compresslab.pruning import masks as module
from compresslab.pruning.masks import apply_masks, check_finite, check_sparsity, enforce, global_masks, layer_masks
from compresslab.testing import hostile
from compresslab.workbench import train

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def removed(masks: dict[str, torch.Tensor]) -> int:
    return sum(int((~mask).sum()) for mask in masks.values())


def by_sorting(scores: dict[str, torch.Tensor], sparsity: float) -> dict[str, torch.Tensor]:
    """The definition: the first of a stable sort of everything go."""
    flat = torch.cat([score.double().flatten() for score in scores.values()])
    keep = torch.ones(len(flat), dtype=torch.bool)
    keep[flat.argsort(stable=True)[: round(sparsity * len(flat))]] = False
    parts = keep.split([score.numel() for score in scores.values()])
    return {name: part.reshape(scores[name].shape) for name, part in zip(scores, parts, strict=True)}


def test_by_hand():
    # 1 1 2 3 4 5: of six, half go: the two 1s and the 2. Each tensor by itself: of three, round(1.5) = 2 go.
    scores = {"a": torch.tensor([5.0, 1.0, 3.0]), "b": torch.tensor([[2.0, 1.0, 4.0]])}
    found = global_masks(scores, 0.5)
    assert found["a"].tolist() == [True, False, True]
    assert found["b"].tolist() == [[False, False, True]]
    found = layer_masks(scores, 0.5)
    assert found["a"].tolist() == [True, False, False]
    assert found["b"].tolist() == [[False, False, True]]
    found = layer_masks(scores, {"a": 0.0, "b": 1.0})
    assert found["a"].all()
    assert not found["b"].any()


def test_ties_go_in_order_and_counts_are_exact():
    # A threshold removes all of a constant tensor, or nothing.
    scores = {"a": torch.ones(3), "b": torch.ones(2, 2)}
    found = global_masks(scores, 0.6)  # round(4.2) = 4
    assert found["a"].tolist() == [False, False, False]
    assert found["b"].tolist() == [[False, True], [True, True]]
    # -0.0 is 0.0, and lies above what is negative
    found = global_masks({"a": torch.tensor([0.0, -0.0, -1.0, 1e-45])}, 0.5)
    assert found["a"].tolist() == [False, True, False, True]
    assert global_masks({"a": torch.tensor([math.inf, -math.inf, 0.0, 3e38])}, 0.75)["a"].tolist() == [
        True,
        *3 * [False],
    ]
    # halves round to even, as torch.nn.utils.prune does
    assert [removed(global_masks({"a": torch.arange(5.0)}, s)) for s in (0.1, 0.3, 0.5)] == [0, 2, 2]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    sparsity=st.one_of(st.sampled_from([0.0, 1.0, 0.5]), st.floats(0, 1)),
    levels=st.sampled_from([1, 3, 1000]),
    dtype=st.sampled_from(DTYPES),
    chunk=st.sampled_from([1, 7, 64]),
    seed=st.integers(0, 99),
)
def test_equal_to_a_stable_sort(sizes, sparsity, levels, dtype, chunk, seed):
    scores = {str(i): (noise(size, seed=seed + i) * levels).round().to(dtype) for i, size in enumerate(sizes)}
    if levels == 1000:
        scores = {name: score / 8 for name, score in scores.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        found, expected = global_masks(scores, sparsity), by_sorting(scores, sparsity)
        for name, score in scores.items():
            assert torch.equal(found[name], expected[name])
            alone = layer_masks(scores, sparsity)[name]
            assert torch.equal(alone, by_sorting({name: score}, sparsity)[name])


def test_all_of_a_floats_range_is_in_order():
    """Every float16 number, and neighbours in float32 and float64 that differ in the last bit only."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    every = every[~every.isnan()]
    for sparsity in (0.1, 0.5, 0.77):
        assert torch.equal(global_masks({"a": every}, sparsity)["a"], by_sorting({"a": every}, sparsity)["a"])
    for dtype, integers in ((torch.float32, torch.int32), (torch.float64, torch.int64)):
        for value in (1.0, -1.0, 1e-30):
            close = torch.tensor([value], dtype=dtype).view(integers) + torch.arange(9)[
                torch.randperm(9, generator=torch.Generator().manual_seed(0))
            ].to(integers)
            close = close.view(dtype)
            found = global_masks({"a": close}, 4 / 9)["a"]
            assert close[found].min() > close[~found].max()
    mixed = {
        "a": torch.tensor([1.0, 2.0], dtype=torch.float64),
        "b": torch.tensor([1 + 2**-7, 0.5], dtype=torch.bfloat16),
    }
    assert global_masks(mixed, 0.5)["b"].tolist() == [True, False]


def test_equal_to_torch():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 5))
    scores = {f"{i}.weight": model[i].weight.detach().abs() for i in (0, 2)}
    found = global_masks(scores, 0.37)
    theirs = copy.deepcopy(model)
    torch.nn.utils.prune.global_unstructured(
        [(theirs[0], "weight"), (theirs[2], "weight")], torch.nn.utils.prune.L1Unstructured, amount=0.37
    )
    for i in (0, 2):
        assert torch.equal(found[f"{i}.weight"], theirs[i].weight_mask.bool())
        alone = torch.nn.utils.prune.L1Unstructured(amount=0.37).compute_mask(
            model[i].weight, torch.ones_like(model[i].weight)
        )
        assert torch.equal(layer_masks(scores, 0.37)[f"{i}.weight"], alone.bool())


def test_more_than_torch_quantile_takes():
    n = 2**24 + 5  # where torch.quantile fails up to 2.13
    scores = {"a": torch.arange(n, dtype=torch.float32).remainder_(1000.0), "b": noise(10).abs()}
    found = global_masks(scores, 0.9)
    assert removed(found) == round(0.9 * (n + 10))
    assert scores["a"][found["a"]].min() >= scores["a"][~found["a"]].max()


def test_what_is_pruned_does_not_compound():
    scores = {"a": noise(50).abs(), "b": noise(7, seed=1).abs()}
    first = global_masks(scores, 0.8)
    again = {"a": noise(50, seed=2).abs(), "b": noise(7, seed=3).abs()}  # scores that know nothing of the masks
    for sparsity in (0.8, 0.9):
        found = global_masks(again, sparsity, within=first)
        assert removed(found) == round(sparsity * 57)
        assert not any((found[name] & ~first[name]).any() for name in found)
    more = layer_masks(again, 0.9, within=first)
    assert all(int((~more[name]).sum()) == round(0.9 * len(more[name])) for name in more)
    assert global_masks({"a": torch.tensor([1.0, 2.0])}, 0.5, within={"a": torch.tensor([True, False])})[
        "a"
    ].tolist() == [
        True,
        False,
    ]


def test_the_given_scores_stay():
    scores = {"a": torch.tensor([-0.0, 1.0, -2.0]), "b": noise(4, 4).T}
    before = {name: score.clone() for name, score in scores.items()}
    global_masks(
        scores, 0.5, within={name: torch.zeros_like(score, dtype=torch.bool) for name, score in scores.items()}
    )
    assert all(torch.equal(scores[name], before[name]) for name in scores)
    assert torch.signbit(scores["a"][0])


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_masks_survive_training(optimizer):
    """Momentum from before pruning, weight decay and dense gradients: nothing that is gone comes back."""
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5))
    make = {
        "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    }[optimizer]
    optimizer, x, y = make(model.parameters()), noise(32, 6), torch.arange(32) % 5

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    for _ in range(3):
        step()
    masks = layer_masks({"0.weight": model[0].weight.detach().abs(), "2.weight": model[2].weight.detach().abs()}, 0.7)
    put_back = enforce(masks)
    put_back(model)
    start = model[0].weight.detach().clone()
    step()
    assert model[0].weight[~masks["0.weight"]].count_nonzero() > 0  # without the masks they come back at once
    for _ in range(5):
        put_back(model)
        step()
    put_back(model)
    for name, mask in masks.items():
        assert not model.get_parameter(name)[~mask].any()
        assert model.get_parameter(name)[mask].all()
    assert not torch.equal(start, model[0].weight)


def test_with_the_courses_training_loop():
    case = hostile("mlp")
    masks = layer_masks({"0.weight": case.model[0].weight.detach().abs()}, 0.75)
    fitted = train.fit(apply_masks(case.model, masks), case.batches, epochs=3, lr=0.1, after_step=enforce(masks))
    assert not fitted.model[0].weight[~masks["0.weight"]].any()
    assert fitted.model[0].weight[masks["0.weight"]].all()
    loose = train.fit(apply_masks(case.model, masks), case.batches, epochs=3, lr=0.1)
    assert loose.model[0].weight[~masks["0.weight"]].any()


def test_apply_masks():
    case = hostile("tied")
    mask = noise(11, 8) > 0
    result = apply_masks(case.model, {"head.weight": mask})  # under its second name
    assert result.head.weight is result.embedding.weight
    assert torch.equal(result.head.weight, case.model.head.weight * mask)
    assert case.model.head.weight.all()
    copy.deepcopy(result)(case.batches[0][0])
    half = apply_masks(nn.Linear(2, 2).half(), {"weight": torch.eye(2).bool()})
    assert half.weight.dtype == torch.float16
    assert half.weight[0, 1] == 0


def test_errors():
    scores = {"a": torch.ones(4)}
    for wrong in (-0.1, 1.5, math.nan):
        for function in (global_masks, layer_masks):
            with pytest.raises(
                ValueError, match=rf"sparsity={wrong} must be the fraction removed, in 0\.\.1; try 0\.9"
            ):
                function(scores, wrong)
        with pytest.raises(ValueError, match=f"sparsity={wrong} must be"):
            check_sparsity(wrong)
    with pytest.raises(ValueError, match="scores of a must not be NaN, got 2; mend them first"):
        global_masks({"a": torch.tensor([1.0, math.nan, math.nan])}, 0.5)
    with pytest.raises(TypeError, match=r"scores of a must be floating point, got torch\.int64"):
        global_masks({"a": torch.arange(3)}, 0.5)
    with pytest.raises(ValueError, match="scores of a is on the meta device and holds no values"):
        global_masks({"a": torch.ones(3, device="meta")}, 0.5)
    for wrong in ({}, {"a": torch.ones(3, dtype=torch.bool)}):
        with pytest.raises(ValueError, match=r"within must have a mask of shape \(4,\) for a; take all from one call"):
            global_masks(scores, 0.5, within=wrong)
    with pytest.raises(ValueError, match=r"sparsity must have the names of the scores, \['a'\], got \['b'\]"):
        layer_masks(scores, {"b": 0.5})
    layer = nn.Linear(2, 1)
    with pytest.raises(
        ValueError, match=r"mask bias2 must be bool and fit the model, one of \['weight', 'bias'\]; got"
    ):
        apply_masks(layer, {"bias2": torch.ones(1, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"mask weight must be bool .* \(1, 2\); got torch\.float32 \(1, 2\)"):
        apply_masks(layer, {"weight": torch.ones(1, 2)})
    with pytest.raises(ValueError, match=r"mask weight must be bool .* \(1, 2\); got torch\.bool \(2, 1\)"):
        enforce({"weight": torch.ones(2, 1, dtype=torch.bool)})(layer)
    with pytest.raises(ValueError, match="x must be finite, got 1 NaN and 1 infinite of 3"):
        check_finite(torch.tensor([math.nan, math.inf, 0]))
    with pytest.raises(TypeError, match=r"x must be floating point, got torch\.int64; call \.float\(\) first"):
        check_finite(torch.arange(2))
    with pytest.raises(ValueError, match="w is on the meta device and holds no values"):
        check_finite(torch.ones(2, device="meta"), "w")
