from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslab.measure import (
    Predictions,
    accuracy,
    accuracy_by_group,
    compare_groups,
    mcnemar,
    predict,
    scan_corruptions,
    wilson,
)
from compresslab.measure.corruptions import CORRUPTIONS, corrupt


def answers(predicted, labels, classes=4) -> Predictions:
    return Predictions(torch.eye(classes)[torch.tensor(predicted)], torch.tensor(labels))


def test_accuracy_by_group_by_hand():
    """Group 2 has two of three right, group 0 one of two; group 1 has no sample."""
    found = accuracy_by_group(answers([0, 1, 2, 3, 3], [0, 1, 2, 2, 2]), torch.tensor([0, 2, 2, 2, 0]), names="abc")
    assert found == {"a": wilson(1, 2), "c": wilson(2, 3)}


@settings(derandomize=True, deadline=None, max_examples=30)
@given(rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=60))
def test_groups_add_up_to_the_whole(rows):
    predicted, labels, groups = (list(column) for column in zip(*rows, strict=True))
    given_answers = answers(predicted, labels)
    found = accuracy_by_group(given_answers, torch.tensor(groups))
    assert sum(one.count for one in found.values()) == len(rows)
    whole = sum(one.value * one.count for one in found.values()) / len(rows)
    assert whole == pytest.approx(accuracy(given_answers).value)


def test_what_the_average_hides():
    """Both have 50 %; class 0 fell from 1 to 0 (10 lost: p = 2 / 2^10), class 1 rose from 0 to 1. Holm: twice each."""
    labels = [0] * 10 + [1] * 10
    before, after = answers([0] * 20, labels), answers([1] * 20, labels)
    assert accuracy(before) == accuracy(after)
    changes = compare_groups(before, after, before.labels)
    assert list(changes) == ["0", "1"]  # the greatest loss first
    assert [group.change.difference.value for group in changes.values()] == [-1, 1]
    assert [group.change.p_value for group in changes.values()] == [2 * 2 / 2**10] * 2
    assert (changes["0"].reference, changes["0"].other) == (wilson(10, 10), wilson(0, 10))


def test_holms_rule_by_hand():
    """Raw p of three groups: 6 lost 2/64 = 0.03125; 5 lost 0.0625; none lost 1. Holm: 3 * 0.03125 = 0.09375,
    2 * 0.0625 = 0.125, and 1. Where the second would come out below the first it is raised to it."""
    lost = [6, 5, 0]
    groups = torch.tensor([g for g, n in enumerate(lost) for _ in range(n + 1)])
    labels = [0] * len(groups)
    after = [1 if i < n else 0 for n in lost for i in range(n + 1)]
    changes = compare_groups(answers(labels, labels), answers(after, labels), groups)
    assert {name: group.change.p_value for name, group in changes.items()} == {"0": 0.09375, "1": 0.125, "2": 1.0}
    lost = [6, 6]
    groups, labels = torch.tensor([0] * 6 + [1] * 6), [0] * 12
    changes = compare_groups(answers(labels, labels), answers([1] * 12, labels), groups)
    assert [group.change.p_value for group in changes.values()] == [0.0625, 0.0625]


def test_one_group_is_mcnemar_of_all():
    generator = torch.Generator().manual_seed(0)
    labels, one, two = torch.randint(3, (3, 50), generator=generator).tolist()
    before, after = answers(one, labels), answers(two, labels)
    (group,) = compare_groups(before, after, torch.zeros(50).long()).values()
    assert group.change == mcnemar(before.correct, after.correct)


def test_groups_that_do_not_fit():
    given_answers = answers([0, 1], [0, 1])
    with pytest.raises(ValueError, match=r"groups, torch.int64 \(3,\), must be integers \(N,\), one for each of 2"):
        accuracy_by_group(given_answers, torch.zeros(3).long())
    with pytest.raises(ValueError, match=r"groups, torch.float32 \(2,\)"):
        accuracy_by_group(given_answers, torch.zeros(2))
    with pytest.raises(ValueError, match="group 2 must be at least 0 and have one of the 2 names"):
        accuracy_by_group(given_answers, torch.tensor([0, 2]), names="ab")
    with pytest.raises(ValueError, match="group -1 must be at least 0"):
        accuracy_by_group(given_answers, torch.tensor([0, -1]))
    with pytest.raises(ValueError, match="must be the same: predict both models on the same samples"):
        compare_groups(given_answers, answers([0, 1], [0, 0]), torch.tensor([0, 1]))


# Corruptions


def picture(*shape: int) -> torch.Tensor:
    """A gradient with an edge, in 0..1."""
    rows, columns = torch.linspace(0, 1, shape[2])[:, None], torch.linspace(0, 1, shape[3])
    return ((rows + columns) / 2 * 0.6 + 0.4 * (columns > 0.5)).expand(shape).clone()


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(3, 1, 32, 32), (2, 3, 20, 31), (1, 1, 1, 1), (1, 3, 2, 9)])
def test_any_size_grey_and_colour_and_both_dtypes(kind, shape):
    images = picture(*shape)
    for given_images in (images, (images * 255).round().to(torch.uint8)):
        before = given_images.clone()
        for strength in (1, 5):
            changed = corrupt(given_images, kind, strength)
            assert (changed.shape, changed.dtype) == (given_images.shape, given_images.dtype)
            assert changed.float().isfinite().all() and changed.min() >= 0 and changed.float().max() <= 255
        assert torch.equal(given_images, before)
    assert corrupt(images, kind, 5).max() <= 1
    assert corrupt(images.double(), kind, 3).dtype is torch.float64


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_greater_strength_is_more_damage_and_the_generator_decides(kind):
    rough = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(rough, (32, 32), mode="bilinear")
    damage = [(corrupt(images, kind, strength) - images).square().mean().item() for strength in (1, 2, 3, 4, 5)]
    assert damage == sorted(damage) and damage[0] > 0 and damage[4] > 1.5 * damage[0]
    assert torch.equal(corrupt(images, kind, 3), corrupt(images, kind, 3))
    other = corrupt(images, kind, 3, generator=torch.Generator().manual_seed(1))
    drawn = kind in ("noise", "dots", "occlusion", "shift")
    assert torch.equal(corrupt(images, kind, 3), other) != drawn


def test_corruptions_by_hand():
    x = torch.tensor([[0.0, 1.0], [0.5, 0.5]]).view(1, 1, 2, 2)
    assert corrupt(x, "contrast", 2).flatten().tolist() == [0.25, 0.75, 0.5, 0.5]  # 0.5 + 0.5 (x - 0.5)
    assert corrupt(x, "pixelate", 5).flatten().tolist() == [0.5] * 4  # one pixel, the mean
    row = torch.arange(10.0).div(10).expand(1, 1, 10, 10)
    shifted = corrupt(row, "shift", 2)[0, 0, 0]  # by a tenth of the side: one pixel, the edge repeated
    left, right = torch.cat([row[0, 0, 0, 1:], row[0, 0, 0, -1:]]), torch.cat([row[0, 0, 0, :1], row[0, 0, 0, :-1]])
    assert torch.equal(shifted, left) or torch.equal(shifted, right)
    both = corrupt(row.expand(50, 1, 10, 10), "shift", 2)[:, 0, 0]
    assert {tuple(one.tolist()) for one in both} == {tuple(left.tolist()), tuple(right.tolist())}
    square = corrupt(torch.zeros(40, 1, 10, 10), "occlusion", 3)  # 3 x 3 pixels of 0.5
    assert square.sum((1, 2, 3)).tolist() == [4.5] * 40
    assert len({tuple(one.flatten().tolist()) for one in square}) > 20
    dots = corrupt(torch.full((4, 3, 100, 100), 0.5), "dots", 3)
    assert (dots != 0.5).float().mean().item() == pytest.approx(0.06, abs=0.005)
    assert torch.equal(dots[:, 0], dots[:, 2])  # a pixel in all its colours
    assert (dots == 0).float().mean().item() == pytest.approx(0.03, abs=0.004)  # as many black as white
    black = torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
    assert corrupt(black, "brightness", 1).flatten().tolist() == [26] * 4  # 0.1 * 255 = 25.5, rounded and not cut
    grey = corrupt(torch.full((4, 1, 100, 100), 0.5), "noise", 1)
    assert grey.std().item() == pytest.approx(0.04, rel=0.02) and grey.mean().item() == pytest.approx(0.5, abs=0.001)


def test_blur_is_what_scipy_does():
    from scipy.ndimage import gaussian_filter

    images = torch.rand(1, 1, 40, 24, generator=torch.Generator().manual_seed(0))
    sigma = 0.04 * 24
    expected = gaussian_filter(images[0, 0].numpy(), sigma, mode="nearest", radius=int(np.ceil(3 * sigma)))
    assert np.allclose(corrupt(images, "blur", 3)[0, 0].numpy(), expected, atol=1e-6)


def test_jpeg_is_cosines_of_blocks_as_scipy_computes_them():
    from scipy.fft import dctn, idctn

    images = torch.rand(1, 1, 16, 8, generator=torch.Generator().manual_seed(0))
    steps = 0.07 * (1 + np.arange(8)[:, None] + np.arange(8))
    blocks = [images[0, 0, at : at + 8].double().numpy() for at in (0, 8)]
    decoded = [idctn(np.round(dctn(b, norm="ortho") / steps) * steps, norm="ortho") for b in blocks]
    expected = np.clip(np.concatenate(decoded), 0, 1)
    assert np.allclose(corrupt(images, "jpeg", 3)[0, 0].numpy(), expected, atol=1e-5)


def test_what_cannot_be_corrupted():
    x = torch.zeros(1, 1, 4, 4)
    with pytest.raises(ValueError, match="kind='fog' must be one of noise, dots"):
        corrupt(x, "fog", 1)
    with pytest.raises(ValueError, match="strength=6 must be one of 1, 2, 3, 4, 5"):
        corrupt(x, "noise", 6)
    with pytest.raises(ValueError, match=r"images \(4, 4\) must be \(N, C, H, W\)"):
        corrupt(x[0, 0], "noise", 1)
    with pytest.raises(TypeError, match=r"must be uint8 in 0..255 or floats in 0..1, got torch.int64"):
        corrupt(x.long(), "noise", 1)
    with pytest.raises(ValueError, match=r"images in -2..0 must be floats in 0..1: corrupt them before"):
        corrupt(x - torch.eye(4) * 2, "noise", 1)
    with pytest.raises(ValueError, match="nan"):
        corrupt(x * torch.nan, "noise", 1)


def test_scan_is_predicting_corrupted_images():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (30, 1, 8, 8), generator=generator).to(torch.uint8)
    labels = torch.randint(3, (30,), generator=generator)
    models = {"a": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)), "b": lambda x: x[:, 0, 0, :3]}

    def normalize(pixels):
        return pixels.float() / 255 - 0.5

    options = {"normalize": normalize, "kinds": ["noise", "blur"], "strengths": [1, 4], "batch_size": 7}
    table = scan_corruptions(models, images, labels, **options)
    assert table.index.tolist() == [("none", 0), ("noise", 1), ("noise", 4), ("blur", 1), ("blur", 4)]
    for name, model in models.items():
        for kind, strength in table.index:
            changed = corrupt(images, kind, strength) if strength else images
            expected = accuracy(predict(model, [(normalize(changed), labels)])).value
            assert table.loc[(kind, strength), name] == pytest.approx(expected)
    with pytest.raises(ValueError, match="models is empty"):
        scan_corruptions({}, images, labels, normalize=normalize)
