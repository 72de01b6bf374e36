"""Checks of lesson 08, "Distillation"."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compresslab.course.exercises import NotYet, call, exercise

__all__: list[str] = []


def close(found: object, wanted: Tensor, what: str, mistakes: dict[str, Tensor]) -> None:
    """Raise unless a tensor has the right shape and values; known mistakes are told their reason."""
    found = torch.tensor(found) if isinstance(found, float) else found
    if not isinstance(found, Tensor) or found.shape != wanted.shape:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise NotYet(f"{what} should be a tensor of shape {tuple(wanted.shape)}, got {got}")
    for reason, other in mistakes.items():
        if torch.allclose(found.to(other.dtype), other, rtol=1e-4, atol=1e-6):
            raise NotYet(reason)
    if not torch.allclose(found.to(wanted.dtype), wanted, rtol=1e-4, atol=1e-5):
        raise NotYet(f"{what} should be {wanted.tolist()}, got {found.tolist()}")


def kl(p: Tensor, q: Tensor) -> Tensor:
    """By sample or token."""
    return (p * (p / q).log()).sum(-1)


@exercise("08.1", title="Soft targets", minutes=10, difficulty=1)
def soft_targets(answer: Callable) -> str:
    """``answer(student_logits, teacher_logits, temperature)``: T^2 KL(teacher || student), mean over the samples."""
    student = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0]])
    teacher = torch.tensor([[4.0, 0.0, 2.0], [0.0, 3.0, -3.0]])
    p, q = (teacher / 2).softmax(-1), (student / 2).softmax(-1)
    wanted = 4 * kl(p, q).mean()
    hot, cold = teacher.softmax(-1), student.softmax(-1)
    mistakes = {
        "the T squared is missing: at T = 2 the loss is 4 times too small": wanted / 4,
        "one factor T is not enough: the gradient loses two of them": wanted / 2,
        "that is the mean over samples and classes: 3 classes make it 3 times too small": wanted / 3,
        "that is the sum over the samples: take their mean": 2 * wanted,
        "that is KL(student || teacher): the teacher's probabilities weigh the logarithms": 4 * kl(q, p).mean(),
        "the temperature divides the logits of both before the softmax; it is not there": 4 * kl(hot, cold).mean(),
        "the temperature must divide the student's logits as well": 4 * kl(p, cold).mean(),
    }
    close(call(answer, student, teacher, 2.0), wanted, "the loss of two samples", mistakes)
    same = call(answer, teacher, teacher, 3.0)
    close(same, torch.tensor(0.0), "the loss of a student that agrees with its teacher", {})
    return "and for 62 classes torch needs reduction='batchmean' to say the same"


@exercise("08.2", title="Tokens and padding", minutes=15, difficulty=2)
def tokens(answer: Callable) -> str:
    """``answer(student_logits, teacher_logits, mask)``: KL at T = 1, mean over the tokens where the mask is True."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 4, generator=generator) for _ in range(2))
    mask = torch.tensor([[True, True, False], [True, False, False]])
    each = kl(teacher.softmax(-1), student.softmax(-1))  # (2, 3)
    wanted = each[mask].mean()
    over_time = kl(teacher.softmax(1), student.softmax(1))
    mistakes = {
        "padding counts as well: the mask is not used": each.mean(),
        "divide by the number of tokens that count, not by all tokens": each[mask].sum() / 6,
        "divide by the number of tokens that count, not by the batch": each[mask].sum() / 2,
        "batchmean divides by the first axis only: flatten to (tokens, vocabulary), or divide yourself": each.sum() / 2,
        "that is a sum: take the mean over the tokens that count": each[mask].sum(),
        "the softmax must run over the vocabulary, the last axis, not over time": over_time[mask].mean(),
        "first the mean over all counted tokens, not of each text by itself: long texts have more to say": (
            torch.stack([each[0, :2].mean(), each[1, 0]]).mean()
        ),
    }
    close(call(answer, student, teacher, mask), wanted, "the loss of three tokens", mistakes)
    return "one token, one vote"


@exercise("08.3", title="What the teacher thinks of the others", minutes=15, difficulty=2)
def others(answer: Callable) -> str:
    """``answer(student_logits, teacher_logits, targets)``: NCKD of each sample at T = 1."""
    student = torch.tensor([[1.0, 0.0, 0.0, 2.0], [0.0, 1.0, 2.0, 0.0]])
    teacher = torch.tensor([[5.0, 1.0, 0.0, 0.0], [0.0, 0.0, 6.0, 2.0]])
    targets = torch.tensor([0, 2])
    keep = torch.ones(2, 4, dtype=torch.bool)
    keep[torch.arange(2), targets] = False
    p, q = (logits[keep].view(2, 3).softmax(-1) for logits in (teacher, student))
    wanted = kl(p, q)
    whole = kl(teacher.softmax(-1), student.softmax(-1))
    part_p, part_q = (logits.softmax(-1)[keep].view(2, 3) for logits in (teacher, student))
    unsure = part_p.sum(-1)
    zeroed = kl(*((logits * keep).softmax(-1) for logits in (teacher, student)))
    mistakes = {
        "the right class is still in: take it out of both": whole,
        "the others must add up to 1 again: divide by what is left, or take the softmax without the right class": (
            kl(part_p, part_q)
        ),
        "that is weighted by 1 - p of the teacher, as in plain distillation: here the others count in full": (
            unsure * wanted
        ),
        "a logit of 0 is not a probability of 0: take the right class out": zeroed,
        "that is KL(student || teacher)": kl(q, p),
    }
    found = call(answer, student, teacher, targets)
    if isinstance(found, Tensor) and found.shape == () and torch.allclose(found, wanted.mean(), rtol=1e-4):
        raise NotYet("give one number for each sample, not their mean")
    if isinstance(found, Tensor) and not found.isfinite().all():
        raise NotYet("minus infinity times zero is not a number: gather the other classes instead of masking them")
    close(found, wanted, "the divergence of the others, for two samples", mistakes)
    return "a sure teacher is heard as well"


@exercise("08.4", title="Where the teacher looks", minutes=10, difficulty=1)
def attention(answer: Callable) -> str:
    """``answer(features)``: (B, C, H, W) -> (B, H * W), the mean square over channels, of length 1 for each sample."""
    features = torch.tensor([[[[1.0, 2.0], [0.0, 1.0]], [[1.0, -2.0], [2.0, 1.0]]], [[[3.0, 0.0], [0.0, 0.0]]] * 2])
    flat = features.square().mean(1).flatten(1)
    wanted = flat / flat.norm(dim=1, keepdim=True)
    plain, absolute = features.mean(1).flatten(1), features.abs().mean(1).flatten(1)
    shares = flat / flat.sum(1, keepdim=True)
    mistakes = {
        "scale each sample's map to length 1": flat,
        "square before the mean over the channels: activations of both signs cancel": (
            plain / plain.norm(dim=1, keepdim=True)
        ),
        "the squares are missing: that is the mean of the absolute values": (
            absolute / absolute.norm(dim=1, keepdim=True)
        ),
        "length 1 means that the squares add up to 1, here the values do": shares,
        "each sample has a map of its own: scale them one by one": flat / flat.norm(),
    }
    close(call(answer, features), wanted, "the maps of two samples", mistakes)
    return "no channels left, so the widths may differ"


@exercise("08.5", title="Which block learns from which", minutes=10, difficulty=2)
def match(answer: Callable) -> str:
    """``answer(student_blocks, teacher_blocks)``: for each block of the student the teacher's, evenly, last with last."""
    for student, teacher in ((2, 4), (3, 12), (6, 12), (4, 4), (3, 5)):
        found = call(answer, student, teacher)
        found = found.tolist() if isinstance(found, Tensor) else found
        found = list(found) if isinstance(found, list | tuple | range) else found
        wanted = [(i + 1) * teacher // student - 1 for i in range(student)]
        what = f"{student} blocks of {teacher}"
        if not isinstance(found, list) or len(found) != student:
            raise NotYet(f"{what}: give a list of {student} numbers, one for each block of the student")
        if any(not isinstance(number, int) for number in found):
            raise NotYet(f"{what}: numbers of blocks are whole, got {found}")
        if found == wanted:
            continue
        if found == list(range(student)):
            raise NotYet(f"{what}: that is what zip does: {found} are the first ones, and the top teaches nobody")
        if found == [i * teacher // student for i in range(student)]:
            raise NotYet(f"{what}: {found} starts with the first block; the last of both should meet")
        if found == [number + 1 for number in wanted]:
            raise NotYet(f"{what}: {found} counts from 1; blocks count from 0")
        raise NotYet(f"{what} should be {wanted}, got {found}")
    return "the last block knows most, so it teaches the last"
