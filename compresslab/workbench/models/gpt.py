"""A small GPT: a decoder of transformer blocks that predicts the next byte.

Radford et al., "Language Models are Unsupervised Multitask Learners" (GPT-2), 2019: layer norm before each part, GELU,
learned positions, and one matrix that both embeds the tokens and gives the logits. The vocabulary is the 256 bytes, so
any text is input without a tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["GPT", "MLP", "Attention", "Block", "Cache", "init_transformer"]


class Cache(Protocol):
    """What one attention layer has seen, so that a next token need not be computed with all before it again."""

    length: int  # tokens seen

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Take in new keys and values, (B, heads, L, head_dim) each, and give those of all tokens."""


class Attention(nn.Module):
    """Multi-head self-attention; query, key and value come from one matrix, in this order.

    The number of heads follows from the matrix: a pruned layer has fewer rows, the heads keep their size.
    """

    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        if width % heads:
            raise ValueError(f"heads={heads} must divide width={width}; try {_divisors(width)}")
        self.head_dim = width // heads
        self.causal = causal
        # No bias: softmax drops a key's, a value's only adds to that of proj, and a query's is not missed.
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:  # (B, L, D)
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # (B, L, D) each
        q, k, v = self._heads(q), self._heads(k), self._heads(v)  # (B, heads, L, head_dim) each
        if cache is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        else:
            k, v = cache.update(k, v)
            # is_causal would let the first new token see the first old one only; it has to see them all.
            new, seen = q.shape[2], k.shape[2]
            mask = torch.ones(new, seen, dtype=torch.bool, device=x.device).tril(seen - new)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask if self.causal else None)
        return self.proj(y.transpose(1, 2).flatten(2))  # (B, L, D)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, heads, L, head_dim)


class MLP(nn.Module):
    """Up, GELU, down."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:  # (..., D)
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Attention, then an MLP of four times the width; each sees a normalized input and adds to the stream."""

    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, causal)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, 4 * width)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:  # (B, L, D)
        x = x + self.attn(self.norm1(x), cache)
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Token and position embeddings, ``depth`` blocks, and logits for the token that follows each position.

    Args:
        vocab: number of tokens.
        context: longest sequence.
        width: size of the stream (D).
        depth: number of blocks.
        heads: attention heads in each block.

    Example:
        >>> import torch
        >>> GPT(width=32, depth=1, heads=2)(torch.zeros(2, 10, dtype=torch.int64)).shape
        torch.Size([2, 10, 256])
    """

    def __init__(self, vocab: int = 256, context: int = 128, width: int = 96, depth: int = 4, heads: int = 4):
        super().__init__()
        self.context = context
        self.embed = nn.Embedding(vocab, width)
        self.pos_embed = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, causal=True) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab, bias=False)
        self.head.weight = self.embed.weight  # tied: one matrix, two names in the state dict
        self.apply(init_transformer)

    def forward(self, tokens: Tensor, caches: Sequence[Cache] | None = None) -> Tensor:  # (B, L) int64
        """Logits of the tokens given; with caches, one for each block, they follow those that the caches have seen."""
        if caches is not None and len(caches) != len(self.blocks):
            raise ValueError(f"caches must be one for each of {len(self.blocks)} blocks, got {len(caches)}")
        start = caches[0].length if caches else 0
        x = self.embed(tokens) + positions(self.pos_embed, tokens, start)  # (B, L, D)
        for place, block in enumerate(self.blocks):
            x = block(x, caches[place]) if caches else block(x)
        return self.head(self.norm(x))  # (B, L, vocab)


def positions(embedding: nn.Embedding, tokens: Tensor, start: int = 0) -> Tensor:
    """L rows of a learned position embedding from ``start`` on, for tokens of shape (B, L)."""
    end = start + tokens.shape[1]
    if end > embedding.num_embeddings:
        raise ValueError(f"tokens of length {end} are longer than the context of {embedding.num_embeddings}; cut them")
    return embedding.weight[start:end]  # (L, D)


def init_transformer(module: nn.Module) -> None:
    """A fresh start for one module: weights of deviation 1 / sqrt(inputs), biases zero.

    GPT-2's fixed 0.02 fits a width of some thousand; at the widths here it learns several times slower.
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=module.weight.shape[1] ** -0.5)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)
