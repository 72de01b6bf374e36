"""In rounds and while training: the sparsities by hand, exact at the end, nothing comes back, nothing compounds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compresslab.pruning.iterative import GradualPruner, prune_iteratively, round_sparsity
from compresslab.pruning.masks import enforce
from compresslab.pruning.schedule import cubic_sparsity
from compresslab.pruning.unstructured import prune_magnitude
from compresslab.pruning.weights import sparsity_of
from compresslab.testing import check_compressor, hostile
from compresslab.workbench import train


def test_rounds_by_hand():
    # 0.488 = 1 - 0.8^3: each round a fifth of what is left goes
    assert [round_sparsity(0.488, number, 3) for number in (1, 2, 3)] == pytest.approx([0.2, 0.36, 0.488])
    assert round_sparsity(1.0, 1, 2) == 1
    seen = []

    def fine_tune(model: nn.Module, masks: dict[str, torch.Tensor]) -> nn.Module:
        seen.append((int((model.weight == 0).sum()), int((~masks["weight"]).sum())))
        return model

    layer = nn.Linear(10, 10)
    result = prune_iteratively(layer, fine_tune, sparsity=0.75, rounds=2)
    assert seen == [(50, 50), (75, 75)]
    assert result.history == (0.5, 0.75)
    assert torch.equal(result.masks["weight"], prune_magnitude(layer, 0.75).masks["weight"])  # nothing was learned
    assert layer.weight.all()


def test_what_is_gone_stays_gone_and_training_decides_the_rest():
    """Training that turns magnitudes around: the second round removes what is small by then, of what is left."""
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, 2.0, 3.0, 4.0]])

    def turn(model: nn.Module, masks: dict[str, torch.Tensor]) -> nn.Module:
        model.weight.data = 10 - model.weight.data  # also revives what is gone: it is put back
        return model

    # round 1 removes 1 and 2; 10 - 3 = 7 and 10 - 4 = 6 are left, of which 6 goes; then 10 - 7
    result = prune_iteratively(layer, turn, sparsity=0.75, rounds=2)
    assert result.model.weight.tolist() == [[0, 0, 3, 0]]
    assert result.masks["weight"].tolist() == [[False, False, True, False]]


def test_with_the_courses_training_loop():
    case = hostile("mlp")

    def fine_tune(model: nn.Module, masks: dict[str, torch.Tensor]) -> nn.Module:
        return train.fit(model, case.batches, epochs=2, lr=0.05, after_step=enforce(masks)).model

    result = prune_iteratively(case.model, fine_tune, sparsity=0.8, rounds=3, scope="layer")
    assert sparsity_of(result.model).zeros == {"0.weight": round(0.8 * 96), "2.weight": 64}
    assert not torch.equal(result.model[0].bias, case.model[0].bias)
    assert result.model.training == case.model.training


def test_gradual_follows_the_schedule_to_the_element():
    case, asked = hostile("mlp"), []

    def schedule(step: int) -> float:
        asked.append(step)
        return cubic_sparsity(step, end=7, final=0.9, every=3)

    pruner, zeros = GradualPruner(schedule), []

    def after_step(model: nn.Module) -> None:
        pruner(model)
        zeros.append(sum(sparsity_of(model).zeros.values()))

    fitted = train.fit(case.model, case.batches, epochs=3, lr=0.05, after_step=after_step)
    assert asked == list(range(1, 10))
    total = 96 + 80
    # changes after 3, 6 and, though 3 does not divide it, 7 steps
    expected = [0.9 * (1 - (1 - p) ** 3) for p in (0, 0, 3 / 7, 3 / 7, 3 / 7, 6 / 7, 1, 1, 1)]
    assert zeros == [round(s * total) for s in expected]
    assert pruner.sparsity == 0.9
    assert zeros[-1] == round(0.9 * total)
    assert all(not fitted.model.get_parameter(name)[~mask].any() for name, mask in pruner.masks.items())
    assert case.model[0].weight.all()


def test_gradual_masks_only_grow_and_can_be_taken_up_again():
    layer, generator = nn.Linear(8, 8), torch.Generator().manual_seed(0)
    pruner, gone = GradualPruner(lambda step: min(step / 10, 0.5), scope="layer", names=["weight"]), None
    for _ in range(7):
        layer.weight.data.add_(torch.randn(8, 8, generator=generator))  # moves what is gone as well
        pruner(layer)
        now = ~pruner.masks["weight"]
        assert gone is None or not (gone & ~now).any()
        gone = now
        assert torch.equal(layer.weight == 0, now)
    assert int(gone.sum()) == 32
    later = GradualPruner(lambda step: min(step / 10, 0.5), step=3)
    later(layer)
    assert (later.step, later.sparsity) == (4, 0.4)
    assert not layer.bias.eq(0).any()


def test_errors():
    layer = nn.Linear(2, 2)
    for wrong in (0, -1, 2.0):
        with pytest.raises(ValueError, match=rf"rounds={wrong} must be an integer of at least 1; try 5"):
            prune_iteratively(layer, lambda model, masks: model, rounds=wrong)
    with pytest.raises(TypeError, match=r"must return the trained nn\.Module, got NoneType; try fit\(\.\.\.\)\.model"):
        prune_iteratively(layer, lambda model, masks: None)
    with pytest.raises(ValueError, match=r"sparsity=2 must be the fraction removed"):
        prune_iteratively(layer, lambda model, masks: model, sparsity=2)
    with pytest.raises(ValueError, match=r"sparsity=1\.5 must be the fraction removed"):
        GradualPruner(lambda step: 1.5)(layer)
    with pytest.raises(ValueError, match="scope='x' must be"):
        GradualPruner(lambda step: 0.5, scope="x")(layer)


def test_the_common_checks():
    check_compressor(lambda model, batches: prune_iteratively(model, lambda model, masks: model, sparsity=0.5).model)
