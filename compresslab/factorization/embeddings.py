"""Factorized embeddings: a table of V x D numbers as V codes of r numbers and one basis of r x D.

ALBERT's first half: what a token means without its context needs fewer dimensions than the stream in which contexts
meet. Unlike a linear layer an embedding multiplies nothing when it looks up a row; its factors do, so here fewer
parameters cost more arithmetic. A head that is tied to the table (GPT-2, the course's GPT) gets the same two factors
the other way round, h E^T = (h B^T) C^T, and for it the arithmetic gets less.

    Lan and others, "ALBERT: a lite BERT", 2020, https://arxiv.org/abs/1909.11942, section 3.1
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from compresslab.factorization.low_rank import decompose
from compresslab.factorization.ranks import break_even_rank
from compresslab.factorization.replacing import Factorized, check_rank, find_layers, replace_layers

__all__ = ["FactorizedEmbedding", "FactorizedHead", "factorize_embeddings"]


class FactorizedEmbedding(nn.Module):
    """A table as codes (V, r) times basis (r, D)."""

    def __init__(self, codes: Tensor, basis: Tensor, padding_idx: int | None = None) -> None:
        super().__init__()
        self.codes, self.basis, self.padding_idx = nn.Parameter(codes), nn.Parameter(basis), padding_idx

    @property
    def weight(self) -> Tensor:
        """The whole table, (V, D), for code that reads an embedding's weight."""
        return self.codes @ self.basis

    @property
    def num_embeddings(self) -> int:
        """V."""
        return len(self.codes)

    def forward(self, tokens: Tensor) -> Tensor:  # (...) int64 -> (..., D)
        return F.embedding(tokens, self.codes, self.padding_idx) @ self.basis


class FactorizedHead(nn.Module):
    """Logits from the same codes and basis as an embedding's: first to r numbers, then to V."""

    def __init__(self, embedding: FactorizedEmbedding, bias: Tensor | None = None) -> None:
        super().__init__()
        self.codes, self.basis = embedding.codes, embedding.basis  # one parameter each, two names
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    @property
    def weight(self) -> Tensor:
        """The whole matrix, (V, D)."""
        return self.codes @ self.basis

    def forward(self, x: Tensor) -> Tensor:  # (..., D) -> (..., V)
        return F.linear(F.linear(x, self.basis), self.codes, self.bias)


def factorize_embeddings(model: nn.Module, rank: int) -> Factorized:
    """A new model whose embeddings are codes times a basis, and with them the heads that are tied to them.

    Args:
        model: any module. Only ``nn.Embedding`` without ``max_norm`` and sparse gradients, tied to ``nn.Linear`` or not.
        rank: at least 1.

    Raises:
        ValueError: the rank is no whole number of at least 1, a weight is not finite, or nothing was replaced.

    Example:
        >>> result = factorize_embeddings(nn.Sequential(nn.Embedding(100, 8), nn.Linear(8, 2)), 2)
        >>> result.ranks, result.parameters  # 100 * 2 + 2 * 8 in place of 100 * 8, and the layer's 18
        ({'0': (2,)}, 234)
    """
    check_rank(rank, 2**31)
    _, skipped = find_layers(model, [nn.Embedding])
    users: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(id(parameter), []).append((name, module))
    new = {}
    for name, table in model.named_modules():
        if type(table) is not nn.Embedding or name in new:
            continue
        others = [user for user in users[id(table.weight)] if user[1] is not table]
        if reason := _refusal(table, [other for _, other in others], rank):
            skipped[name] = reason
            continue
        codes, basis = decompose(table.weight).factors(rank)
        for other_name, other in [(name, table), *others]:
            first = new.get(name, (None,))[0]
            if other is table:
                made = FactorizedEmbedding(codes, basis, table.padding_idx)
            elif isinstance(other, nn.Linear):
                made = FactorizedHead(first, other.bias)
            else:
                made = FactorizedEmbedding(codes, basis, other.padding_idx)
                made.codes, made.basis = first.codes, first.basis
            new[other_name] = (made, (rank,))
            skipped.pop(other_name, None)
    return replace_layers(model, new, skipped)


def _refusal(table: nn.Embedding, others: list[nn.Module], rank: int) -> str:
    if table.max_norm is not None or table.sparse or table.scale_grad_by_freq:
        return "max_norm, sparse and scale_grad_by_freq change how rows are looked up"
    if any(type(other) not in (nn.Linear, nn.Embedding) for other in others):
        return f"it is tied to {', '.join(type(other).__name__ for other in others)}"
    if any(module._forward_hooks or module._forward_pre_hooks for module in (table, *others)):
        return "it has hooks, which would be lost"
    most = break_even_rank(*table.weight.shape)
    return f"rank {rank} saves nothing: {tuple(table.weight.shape)} breaks even below {most + 1}" if rank > most else ""
