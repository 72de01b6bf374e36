"""Checks of lesson 04, "Quantizing language models"."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from compresslab.course.exercises import NotYet, call, exercise, expect_number

__all__: list[str] = []


@exercise("04.1", title="What a language model takes", minutes=10, difficulty=1)
def model_bytes(answer: Callable) -> str:
    """``answer(parameters, bits, group_size)``: bytes, a 16-bit scale and a zero point of ``bits`` for each group."""
    mistakes = {
        3.5e9: "scales and zero points are missing: 20 bits for each 128 weights",
        28e9: "that is in bits: divide by 8",
        29.09375e9: "that is in bits: divide by 8",
        3.609375e9: "the zero point is missing: 4 bits more for each group",
        3.52734375e9: "the scale is missing: 16 bits more for each group",
        17.5e9: "a scale is shared by the whole group: divide its bits by the group size",
    }
    expect_number(
        call(answer, 7_000_000_000, 4, 128), 7e9 * (4 + 20 / 128) / 8, what="bytes of 7 billion weights", wrong=mistakes
    )
    expect_number(call(answer, 1_000_000, 3, 32), 1e6 * (3 + 19 / 32) / 8, what="bytes of a million 3-bit weights")
    return "4 bits in groups of 128 are 4.16 bits per weight"


@exercise("04.2", title="Two columns of GPTQ", minutes=20, difficulty=3)
def two_columns(answer: Callable) -> str:
    """``answer(w, hessian)``: a row of two weights rounded to whole numbers, the second making up for the first."""
    w, hessian = torch.tensor([0.4, 0.4]), torch.tensor([[2.0, 1.5], [1.5, 2.0]])
    result = call(answer, w.clone(), hessian.clone())
    if not isinstance(result, Tensor) or result.shape != (2,):
        raise NotYet("return a tensor with the two rounded weights")
    if not torch.equal(result, result.round()):
        raise NotYet(f"both must be whole numbers, got {result.tolist()}")
    values = result.tolist()
    if values == [0.0, 0.0]:
        raise NotYet(
            "each was rounded by itself; but the inputs go up and down together, so the second should make up "
            "for the 0.4 that the first lost"
        )
    if values != [0.0, 1.0]:
        raise NotYet(
            f"expected [0, 1], got {values}: round the first, then move the second by the error, then round it"
        )
    w, hessian = torch.tensor([0.4, 0.4]), torch.tensor([[2.0, -1.5], [-1.5, 2.0]])
    values = call(answer, w, hessian).tolist()
    if values == [0.0, 1.0]:
        raise NotYet("with inputs that go against each other the second must move the other way: mind the sign of H")
    if values != [0.0, 0.0]:
        raise NotYet(f"with the off-diagonal negative it should be [0, 0], got {values}")
    w, hessian = torch.tensor([0.4, 0.3]), torch.tensor([[8.0, 1.5], [1.5, 2.0]])
    values = call(answer, w, hessian).tolist()
    if values == [0.0, 0.0]:
        raise NotYet("divide by the diagonal entry of the column that moves, H[1, 1], not of the one that was rounded")
    if values != [0.0, 1.0]:
        raise NotYet(f"0.3 + 0.4 * 1.5 / 2 = 0.6 rounds to 1; got {values}")
    return "a column makes up for those before it"


@exercise("04.3", title="A scale that moves from one layer to the next", minutes=15, difficulty=2)
def move_scale(answer: Callable) -> str:
    """``answer(gamma, beta, weight, s)``: norm and Linear (out, in) of the same function, the activations divided by s."""
    generator = torch.Generator().manual_seed(0)
    gamma, beta, s = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.5, -1.0, 1.0]), torch.tensor([2.0, 4.0, 0.5])
    weight, x = torch.randn(3, 3, generator=generator), torch.randn(5, 3, generator=generator)
    result = call(answer, gamma.clone(), beta.clone(), weight.clone(), s.clone())
    if not isinstance(result, tuple | list) or len(result) != 3:
        raise NotYet("return three tensors: the new gamma, beta and weight")
    new_gamma, new_beta, new_weight = result
    if torch.allclose(new_gamma, gamma * s):
        raise NotYet("the activations are divided by s: so is what the norm multiplies them by")
    if not torch.allclose(new_gamma, gamma / s):
        raise NotYet(f"gamma should be gamma / s, got {new_gamma.tolist()}")
    if torch.allclose(new_beta, beta):
        raise NotYet("the norm adds beta after it scales: beta has to be divided too")
    if not torch.allclose(new_beta, beta / s):
        raise NotYet(f"beta should be beta / s, got {new_beta.tolist()}")
    if torch.allclose(new_weight, weight / s):
        raise NotYet("the weight makes up for the division: multiply it")
    if torch.allclose(new_weight, weight * s[:, None]):
        raise NotYet("the weight is (out, in), and s belongs to the inputs: scale its columns, not its rows")
    wanted = (x * gamma + beta) @ weight.T
    if not torch.allclose((x * new_gamma + new_beta) @ new_weight.T, wanted, atol=1e-5):
        raise NotYet("norm and Linear together must give what they gave before")
    return "the function is the same, the outlier is gone"


@exercise("04.4", title="Perplexity", minutes=5, difficulty=1)
def perplexity(answer: Callable) -> str:
    """``answer(log_probabilities)``: of the tokens that really came, natural logarithms; a float."""
    logs = torch.tensor([0.5, 0.125, 0.25]).log()
    mistakes = {
        (2 + 8 + 4) / 3: "that is the mean of 1 / p; perplexity is the exponential of the mean",
        1 / 4: "the sign: perplexity is exp(-mean log p), at least 1",
        math.log(4): "that is the mean loss; take its exponential",
        2 ** math.log(4): "these are natural logarithms: use exp, not 2 to the power",
        64.0: "take the mean over the tokens, not the sum",
    }
    expect_number(call(answer, logs), 4.0, what="the perplexity of 1/2, 1/8, 1/4", wrong=mistakes, tolerance=1e-5)
    expect_number(call(answer, torch.zeros(3)), 1.0, what="the perplexity of certainty")
    return "as unsure as a fair choice among so many"


@exercise("04.5", title="How fast can it write?", minutes=10, difficulty=2)
def tokens_a_second(answer: Callable) -> str:
    """``answer(weight_bytes, cache_bytes_per_token, context, bandwidth)``: tokens a second, bound by memory traffic."""
    mistakes = {
        50e9 / 3.5e9: "the cache is missing: all of it is read for each token as well",
        50e9 / (3.5e9 + 5e5): "the cache holds one entry for each token of the context",
        (3.5e9 + 2e9) / 50e9: "that is seconds for a token: turn it round",
    }
    found = call(answer, 3.5e9, 5e5, 4000, 50e9)
    expect_number(found, 50e9 / 5.5e9, what="tokens a second of a 4-bit 7B model at 50 GB/s", wrong=mistakes)
    expect_number(call(answer, 14e9, 0, 1, 28e9), 2.0, what="tokens a second without a cache")
    return "at long contexts the cache is worth quantizing too"
