"""The losses of distillation: by hand, against torch and the definition in float64, identities, numbers out of range."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslab.distillation import (
    Projection,
    angle_loss,
    attention_loss,
    attention_map,
    cosine_loss,
    decoupled_loss,
    decoupled_parts,
    distance_loss,
    hard_label_loss,
    hint_loss,
    jensen_shannon_loss,
    relational_loss,
    reverse_kl_loss,
    soft_target_loss,
    triple_loss,
)
from compresslab.distillation.features import check_samples, same_size
from compresslab.distillation.logits import mean_over

DIVERGENCES = (soft_target_loss, reverse_kl_loss, jensen_shannon_loss)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ------------------------------------------------------------------------------------------------------ soft targets


def test_soft_targets_by_hand():
    # Two samples, T = 2. Teacher logits (2 log 3, 0): p = (3/4, 1/4); (0, 0): (1/2, 1/2). Student: (1/2, 1/2) for both.
    # KL = 3/4 log(3/2) + 1/4 log(1/2) and 0; the mean is half of the first, times 4.
    teacher = torch.tensor([[2 * math.log(3), 0.0], [0.0, 0.0]])
    student = torch.zeros(2, 2)
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert soft_target_loss(student, teacher, temperature=2.0).item() == pytest.approx(4 * kl / 2, rel=1e-6)
    reverse = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    assert reverse_kl_loss(student, teacher, temperature=2.0).item() == pytest.approx(4 * reverse / 2, rel=1e-6)
    # m = (5/8, 3/8): KL(p || m) = 3/4 log(6/5) + 1/4 log(2/3); KL(q || m) = 1/2 log(4/5) + 1/2 log(4/3)
    both = 0.75 * math.log(1.2) + 0.25 * math.log(2 / 3) + 0.5 * math.log(0.8) + 0.5 * math.log(4 / 3)
    assert jensen_shannon_loss(student, teacher, temperature=2.0).item() == pytest.approx(4 * both / 2 / 2, rel=1e-5)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    temperature=st.sampled_from([0.5, 1.0, 4.0, 20.0, 100.0]),
    scale=st.sampled_from([0.1, 3.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_soft_targets_equal_torch_in_float64(temperature, scale, seed):
    student, teacher = scale * noise(8, 10, seed=seed), scale * noise(8, 10, seed=seed + 1)
    s, t = student.double() / temperature, teacher.double() / temperature
    kl = F.kl_div(s.log_softmax(-1), t.softmax(-1), reduction="batchmean").item()
    tolerance = {"rel": 1e-4, "abs": 1e-6 * temperature**2}
    assert soft_target_loss(student, teacher, temperature=temperature).item() == pytest.approx(
        temperature**2 * kl, **tolerance
    )
    other = F.kl_div(t.log_softmax(-1), s.softmax(-1), reduction="batchmean").item()
    assert reverse_kl_loss(student, teacher, temperature=temperature).item() == pytest.approx(
        temperature**2 * other, **tolerance
    )
    js = jensen_shannon_loss(student.double(), teacher.double(), temperature=temperature).item() / temperature**2
    p, q = t.softmax(-1), s.softmax(-1)
    m = (p + q) / 2
    entropy = [-(torch.xlogy(part, part)).sum(-1) for part in (m, p, q)]
    assert js == pytest.approx((entropy[0] - (entropy[1] + entropy[2]) / 2).mean().item(), abs=1e-9)
    assert -1e-9 <= js <= math.log(2) + 1e-9


@pytest.mark.parametrize("loss", DIVERGENCES)
def test_nothing_to_learn_from_a_teacher_that_agrees(loss):
    logits = noise(6, 5).requires_grad_()
    value = loss(logits, logits + 3.0, temperature=2.0)  # a constant on all logits changes no probability
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-5)
    assert logits.grad.abs().max() < 1e-6
    assert loss(logits, logits).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 100.0])
def test_the_gradient_is_t_times_the_difference_of_the_probabilities(temperature):
    student, teacher = noise(4, 7, dtype=torch.float64).requires_grad_(), noise(4, 7, seed=1, dtype=torch.float64)
    soft_target_loss(student, teacher, temperature=temperature).backward()
    difference = (student / temperature).softmax(-1) - (teacher / temperature).softmax(-1)
    torch.testing.assert_close(student.grad, temperature * difference.detach() / 4)


def test_t_squared_keeps_the_gradient_and_ends_at_the_squared_distance_of_the_logits():
    student, teacher = noise(16, 10), noise(16, 10, seed=1)
    centred = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    limit = centred / 10 / 16
    errors, norms = [], []
    for temperature in (1.0, 4.0, 16.0, 100.0):
        student.requires_grad_().grad = None
        soft_target_loss(student, teacher, temperature=temperature).backward()
        errors.append(((student.grad - limit).norm() / limit.norm()).item())
        norms.append(student.grad.norm().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02
    assert max(norms) / min(norms) < 1.5  # without T^2 the last would be 10,000 times smaller


def test_no_gradient_goes_to_the_teacher():
    student, teacher = noise(4, 5).requires_grad_(), noise(4, 5, seed=1).requires_grad_()
    for loss in (*DIVERGENCES, hint_loss):
        loss(student, teacher).backward()
    decoupled_loss(student, teacher, torch.tensor([0, 1, 2, 3])).backward()
    relational_loss(student, teacher).backward()
    cosine_loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    maps = noise(2, 3, 4, 4).requires_grad_()
    attention_loss(noise(2, 3, 4, 4, seed=1), maps)
    assert not attention_loss(noise(2, 3, 4, 4, seed=1), maps).requires_grad


def test_tokens_are_averaged_one_by_one_and_padding_counts_for_nothing():
    student, teacher = noise(2, 3, 5), noise(2, 3, 5, seed=1)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    teacher[~mask] = math.nan  # whatever padding computes
    for loss in DIVERGENCES:
        each = [loss(student[b, i : i + 1], teacher[b, i : i + 1]) for b, i in ((0, 0), (0, 1), (1, 0))]
        found = loss(student, teacher, mask=mask)
        assert found.item() == pytest.approx(sum(value.item() for value in each) / 3, rel=1e-5)
        assert loss(student, teacher, mask=torch.zeros(2, 3, dtype=torch.bool)).item() == 0
    student.requires_grad_()
    soft_target_loss(student, teacher.nan_to_num(), mask=mask).backward()
    assert student.grad[~mask].abs().max() == 0


def test_any_axis_of_classes():
    student, teacher = noise(2, 5, 3, 4), noise(2, 5, 3, 4, seed=1)
    for loss in DIVERGENCES:
        moved = loss(student.movedim(1, -1), teacher.movedim(1, -1))
        assert loss(student, teacher, axis=1).item() == pytest.approx(moved.item(), rel=1e-5)
        mask = noise(2, 3, 4, seed=2) > 0
        assert loss(student, teacher, axis=1, mask=mask).item() == pytest.approx(
            loss(student.movedim(1, -1)[mask], teacher.movedim(1, -1)[mask]).item(), rel=1e-5
        )


@pytest.mark.parametrize("temperature", [0.5, 4.0, 100.0])
@pytest.mark.parametrize("size", [1.0, 300.0])
def test_bf16_and_huge_logits_stay_finite(temperature, size):
    student, teacher = size * noise(8, 10), size * noise(8, 10, seed=1)
    low = student.bfloat16().requires_grad_()
    targets = torch.arange(8)
    for loss in (*DIVERGENCES, lambda s, t, temperature: decoupled_loss(s, t, targets, temperature=temperature)):
        low.grad = None
        found = loss(low, teacher.bfloat16(), temperature=temperature)
        wide = loss(low.detach().float(), teacher.bfloat16().float(), temperature=temperature)
        assert found.dtype == torch.float32
        assert found.item() == wide.item()
        found.backward()
        assert low.grad.dtype == torch.bfloat16
        assert low.grad.isfinite().all()
        assert found.item() > 0
    assert soft_target_loss(low.double(), teacher.double()).dtype == torch.float64


@pytest.mark.parametrize("loss", DIVERGENCES)
def test_shapes_dtypes_and_temperatures_that_do_not_fit(loss):
    with pytest.raises(ValueError, match=r"student_logits \(2, 3\) and teacher_logits \(1, 3\) must have one shape"):
        loss(torch.zeros(2, 3), torch.zeros(1, 3))
    with pytest.raises(TypeError, match=r"must be floating point, got torch.int64"):
        loss(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3))
    for temperature in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"temperature=(0.0|-1.0|inf|nan) must be above 0"):
            loss(torch.zeros(2, 3), torch.zeros(2, 3), temperature=temperature)
    with pytest.raises(ValueError, match=r"mask \(3,\) must be one for each of \(2,\)"):
        loss(torch.zeros(2, 3), torch.zeros(2, 3), mask=torch.ones(3, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"mask must be bool, .* got torch.int64"):
        loss(torch.zeros(2, 3), torch.zeros(2, 3), mask=torch.ones(2, dtype=torch.int64))


# --------------------------------------------------------------------------------------------------------- decoupled


def test_decoupled_by_hand():
    # Teacher (1/2, 1/4, 1/4), student (1/4, 1/4, 1/2), target 0, T = 1. b: (1/2, 1/2) and (1/4, 3/4);
    # TCKD = log 2 / 2 + log(2/3) / 2. q: (1/2, 1/2) and (1/3, 2/3): NCKD = log(3/2) / 2 + log(3/4) / 2.
    teacher, student = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.25, 0.25, 0.5]]).log()
    parts = decoupled_parts(student, teacher, torch.tensor([0]), temperature=1.0)
    target, others = math.log(4 / 3) / 2, math.log(9 / 8) / 2
    assert parts.target.item() == pytest.approx(target, rel=1e-5)
    assert parts.others.item() == pytest.approx(others, rel=1e-5)
    assert parts.unsure.item() == pytest.approx(0.5)
    assert parts.counted.tolist() == [True]
    options = {"target_weight": 3.0, "others_weight": 2.0}
    found = decoupled_loss(student, teacher, torch.tensor([0]), temperature=1.0, **options)
    assert found.item() == pytest.approx(3 * target + 2 * others, rel=1e-5)
    # the temperature: logits twice as large at T = 2 give the same probabilities, and T^2 = 4
    hot = decoupled_loss(2 * student, 2 * teacher, torch.tensor([0]), temperature=2.0, **options)
    assert hot.item() == pytest.approx(4 * (3 * target + 2 * others), rel=1e-5)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    classes=st.integers(2, 20),
    temperature=st.sampled_from([0.5, 1.0, 4.0, 50.0]),
    scale=st.sampled_from([0.1, 5.0, 80.0]),
    seed=st.integers(0, 99),
)
def test_the_parts_add_up_to_plain_distillation(classes, temperature, scale, seed):
    """KD = TCKD + (1 - p) NCKD, for each sample; also where the teacher is so sure that p rounds to 1."""
    student, teacher = (scale * noise(6, classes, seed=seed + i, dtype=torch.float64) for i in (0, 1))
    targets = torch.arange(6) % classes
    parts = decoupled_parts(student, teacher, targets, temperature=temperature)
    whole = (parts.target + parts.unsure * parts.others).mean()
    plain = soft_target_loss(student, teacher, temperature=temperature) / temperature**2
    assert whole.item() == pytest.approx(plain.item(), rel=1e-9, abs=1e-12)
    p = (teacher / temperature).softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(parts.unsure, 1 - p, rtol=0, atol=1e-12)


def test_a_teacher_that_is_entirely_sure_still_speaks_of_the_others():
    teacher = torch.tensor([[200.0, 1.0, 0.0]])
    parts = decoupled_parts(torch.zeros(1, 3).requires_grad_(), teacher, torch.tensor([0]), temperature=1.0)
    q = torch.tensor([1.0, 0.0]).softmax(0)
    assert parts.others.item() == pytest.approx((q * (2 * q).log()).sum().item(), rel=1e-5)
    parts.others.sum().backward()


def test_decoupled_tokens_without_a_target():
    student, teacher = noise(2, 3, 6), noise(2, 3, 6, seed=1)
    targets = torch.tensor([[0, -100, 5], [-100, -100, 2]])
    chosen = [(0, 0), (0, 2), (1, 2)]
    each = [decoupled_loss(student[b, i][None], teacher[b, i][None], targets[b, i][None]) for b, i in chosen]
    found = decoupled_loss(student.requires_grad_(), teacher, targets)
    assert found.item() == pytest.approx(sum(value.item() for value in each) / 3, rel=1e-5)
    found.backward()
    assert student.grad[targets == -100].abs().max() == 0
    parts = decoupled_parts(student, teacher, targets)
    assert parts.target[targets == -100].abs().max() == 0
    assert decoupled_loss(student, teacher, torch.full((2, 3), -100)).item() == 0


def test_what_decoupled_refuses():
    logits = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"targets must be classes in 0..2, or -100 for none; got 3"):
        decoupled_loss(logits, logits, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"targets \(3,\) must be one for each of \(2,\) logits"):
        decoupled_loss(logits, logits, torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=r"student_logits \(2, 1\) must have at least two classes"):
        decoupled_loss(logits[:, :1], logits[:, :1], torch.tensor([0, 0]))
    with pytest.raises(ValueError, match=r"must have one shape"):
        decoupled_loss(logits, logits[:1], torch.tensor([0, 0]))


# ---------------------------------------------------------------------------------------------------------- features


def test_hints_by_hand():
    # maps of 4 x 4 against 2 x 2: the mean of each quarter, 2.5, 4.5, 10.5, 12.5, less 0.5
    student, teacher = torch.arange(16.0).view(1, 1, 4, 4), torch.full((1, 1, 2, 2), 0.5)
    assert hint_loss(student, teacher).item() == (4 + 16 + 100 + 144) / 4
    assert hint_loss(teacher, student).item() == (4 + 16 + 100 + 144) / 4
    projection = Projection(2, 1)
    projection.weight.data, projection.bias.data = torch.tensor([[2.0, -1.0]]), torch.tensor([1.0])
    assert projection(torch.tensor([[3.0, 4.0]])).tolist() == [[3.0]]
    maps = torch.tensor([[[[3.0]], [[4.0]]]])
    assert projection(maps).tolist() == [[[[3.0]]]]
    convolution = F.conv2d(noise(2, 5, 3, 3), noise(7, 5, 1, 1, seed=1))
    wide = Projection(5, 7)
    wide.weight.data = noise(7, 5, 1, 1, seed=1)[:, :, 0, 0]
    torch.testing.assert_close(wide(noise(2, 5, 3, 3)), convolution)
    first, second = Projection(4, 3), Projection(4, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first.weight, Projection(4, 3).weight)
    assert not torch.equal(first.weight, second.weight)
    with pytest.raises(ValueError, match=r"channels 0 and 3 must be at least 1"):
        Projection(0, 3)
    with pytest.raises(
        ValueError, match=r"student_features \(2, 3\) and teacher_features \(2, 4\) must have one shape"
    ):
        hint_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    for other in (torch.zeros(3, 3), torch.zeros(2, 3, 1), torch.zeros(3)):
        with pytest.raises(ValueError, match=r"student_features \(2, 3\) and teacher_features .* must be of the same"):
            check_samples(torch.zeros(2, 3), other)
    tokens = torch.zeros(2, 3, 4), torch.zeros(2, 5, 4)
    assert [part.shape for part in same_size(*tokens)] == [part.shape for part in tokens]
    assert hint_loss(noise(2, 3).bfloat16(), noise(2, 3, seed=1).bfloat16()).dtype == torch.float32


def test_attention_by_hand():
    # Student: one channel 3, 4 -> squares 9, 16, of length sqrt(337). Teacher: two channels, 1, 1 and 1, 1 -> (1, 1) / sqrt 2.
    student, teacher = torch.tensor([[[[3.0, 4.0]]]]), torch.ones(1, 2, 1, 2)
    a, b = torch.tensor([9.0, 16.0]) / 337**0.5, torch.tensor([1.0, 1.0]) / 2**0.5
    assert attention_loss(student, teacher).item() == pytest.approx((a - b).square().mean().item(), rel=1e-5)
    assert torch.allclose(attention_map(student), a)
    tokens = attention_map(noise(2, 5, 3))
    torch.testing.assert_close(tokens, attention_map(noise(2, 5, 3).movedim(-1, 1).unsqueeze(-1)))
    torch.testing.assert_close(attention_map(-7 * noise(2, 5, 3)), tokens)  # sign and size do not matter
    dead = torch.zeros(2, 3, 4, 4, requires_grad=True)
    value = attention_loss(dead, torch.ones(2, 1, 4, 4))
    value.backward()
    assert value.item() == pytest.approx(1 / 16)
    assert dead.grad.isfinite().all()
    assert attention_loss(noise(2, 3, 8, 8), noise(2, 5, 4, 4)).item() > 0
    with pytest.raises(ValueError, match=r"features \(2, 3\) must have positions"):
        attention_map(torch.zeros(2, 3))
    with pytest.raises(
        ValueError, match=r"student_features \(2, 3\) and teacher_features \(2, 4\) must have one shape"
    ):
        attention_loss(torch.zeros(2, 3, 5), torch.zeros(2, 4, 5))


def brute_force(student: torch.Tensor, teacher: torch.Tensor) -> tuple[float, float]:
    """The definition of both relational losses, in float64, by loops."""

    def huber(a: float, b: float) -> float:
        d = abs(a - b)
        return d * d / 2 if d < 1 else d - 0.5

    def relations(x: torch.Tensor) -> tuple[list[float], list[float]]:
        n = len(x)
        distances = [(x[i] - x[j]).norm().item() for i in range(n) for j in range(n)]
        above = [d for d in distances if d > 0]
        mean = sum(above) / len(above)
        cosines = []
        for j in range(n):
            for i in range(n):
                for k in range(n):
                    a, b = x[i] - x[j], x[k] - x[j]
                    size = (a.norm() * b.norm()).item()
                    cosines.append((a @ b).item() / size if size else 0.0)
        return [d / mean for d in distances], cosines

    pairs = zip(relations(student.double()), relations(teacher.double()), strict=True)
    return tuple(sum(map(huber, a, b)) / len(a) for a, b in pairs)


def test_relational_equals_the_definition():
    student, teacher = noise(5, 3), noise(5, 7, seed=1)
    student[3] = student[1]  # two samples in one place
    distance, angle = brute_force(student, teacher)
    assert distance_loss(student, teacher).item() == pytest.approx(distance, rel=1e-5)
    assert angle_loss(student, teacher).item() == pytest.approx(angle, rel=1e-5)
    assert relational_loss(student, teacher).item() == pytest.approx(distance + 2 * angle, rel=1e-5)
    options = {"distance_weight": 3.0, "angle_weight": 0.5}
    assert relational_loss(student, teacher, **options).item() == pytest.approx(3 * distance + angle / 2, rel=1e-5)


def test_relational_has_no_slope_of_nan():
    for student in (torch.ones(4, 3), torch.zeros(4, 3), torch.cat([noise(2, 3), noise(2, 3)])):
        student.requires_grad_()
        for loss in (distance_loss, angle_loss):
            student.grad = None
            value = loss(student, noise(4, 6, seed=1))
            value.backward()
            assert value.isfinite()
            assert student.grad.isfinite().all()
    assert distance_loss(torch.ones(1, 3), torch.ones(1, 3)).item() == 0
    assert relational_loss(noise(4, 3).bfloat16(), noise(4, 3).bfloat16()).dtype == torch.float32
    with pytest.raises(
        ValueError, match=r"student_features \(3, 2\) and teacher_features \(4, 2\) must be of the same"
    ):
        distance_loss(torch.zeros(3, 2), torch.zeros(4, 2))


def test_relational_does_not_see_a_turn_or_a_scale():
    x = noise(6, 4, dtype=torch.float64)
    turn, _ = torch.linalg.qr(noise(4, 4, seed=2, dtype=torch.float64))
    assert relational_loss(3 * x @ turn + 5, x).item() == pytest.approx(0, abs=1e-12)
    maps = x.view(6, 1, 2, 2)
    assert relational_loss(maps, x).item() == pytest.approx(0, abs=1e-12)  # maps are flattened


# ------------------------------------------------------------------------------------------------- DistilBERT's three


def test_triple_by_hand():
    # One sequence of three tokens, two words; the last token is padding, the first has a target.
    # Soft, T = 2: teacher (2 log 3, 0) for the first, (0, 0) for the second, student (0, 0): 4 KL / 2 as above.
    # Hard: log 2. Cosine: 1 - 0 and 1 - (-1): mean 1.5.
    student = torch.zeros(1, 3, 2)
    teacher = torch.tensor([[[2 * math.log(3), 0.0], [0.0, 0.0], [50.0, -50.0]]])
    targets, mask = torch.tensor([[1, -100, -100]]), torch.tensor([[True, True, False]])
    hidden = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]]), torch.tensor([[[0.0, 2.0], [-3.0, 0.0], [1.0, 0.0]]])
    found = triple_loss(student, teacher, targets, hidden=hidden, mask=mask)
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert found.soft.item() == pytest.approx(2 * kl, rel=1e-5)
    assert found.hard.item() == pytest.approx(math.log(2), rel=1e-6)
    assert found.cosine.item() == pytest.approx(1.5)
    assert found.total.item() == pytest.approx(5 * 2 * kl + 2 * math.log(2) + 1.5, rel=1e-5)
    other = triple_loss(student, teacher, targets, hidden=hidden, mask=mask, weights=(1.0, 0.0, 4.0), temperature=1.0)
    assert other.total.item() == pytest.approx(other.soft.item() + 6.0, rel=1e-5)
    assert other.soft.item() != pytest.approx(found.soft.item(), rel=0.01)


def test_hard_labels():
    logits, targets = noise(2, 3, 5), torch.tensor([[0, 1, -100], [4, -100, -100]])
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert hard_label_loss(logits, targets).item() == pytest.approx(expected.item(), rel=1e-6)
    assert hard_label_loss(logits, torch.full((2, 3), -100)).item() == 0
    assert hard_label_loss(logits.bfloat16(), targets).dtype == torch.float32
    with pytest.raises(ValueError, match=r"targets \(2,\) must be one for each of \(2, 3\) logits"):
        hard_label_loss(logits, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(
        ValueError, match=r"student_features \(1, 2\) and teacher_features \(1, 3\) must have one shape"
    ):
        cosine_loss(torch.zeros(1, 2), torch.zeros(1, 3))


def test_the_mean_of_nothing_is_nothing():
    values = torch.tensor([1.0, math.nan])
    assert mean_over(values, torch.tensor([True, False])).item() == 1
    assert mean_over(values, torch.tensor([False, False])).item() == 0
