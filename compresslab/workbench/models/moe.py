"""A GPT whose MLPs are mixtures of experts: each token goes through the few that a router chooses.

Shazeer et al., "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer", 2017,
https://arxiv.org/abs/1701.06538 (top-k routing); Fedus, Zoph and Shazeer, "Switch Transformers", 2021,
https://arxiv.org/abs/2101.03961, equation 4 (the loss that keeps the load balanced).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compresslab.workbench.models.gpt import MLP, Attention, init_transformer, positions

__all__ = ["MoE", "MoEBlock", "MoEGPT", "Routing", "load_balance_loss"]


@dataclass(frozen=True, eq=False)
class Routing:
    """What a router decided for T tokens and E experts."""

    probs: Tensor  # (T, E) softmax over the experts, rows sum to 1
    chosen: Tensor  # (T, k) int64: the experts each token goes through, the likeliest first
    weights: Tensor  # (T, k) share of each of them in the result, rows sum to 1

    @property
    def load(self) -> Tensor:
        """(E,) fraction of the T * k assignments that each expert receives; 1 / E is balanced."""
        counts = F.one_hot(self.chosen, self.probs.shape[-1]).sum((0, 1))
        return counts / self.chosen.numel()


def load_balance_loss(routing: Routing) -> Tensor:
    """E * sum_e f_e P_e: 1 when the load is even, E when one expert takes everything.

    f_e is the fraction of assignments that expert e receives, P_e the mean probability that the router gives it. Only
    P has a gradient.

    Args:
        routing: of one layer.

    Returns:
        0-d tensor.

    Example:
        >>> even = torch.full((4, 2), 0.5)
        >>> chosen = torch.tensor([[0], [1], [0], [1]])
        >>> load_balance_loss(Routing(even, chosen, torch.ones(4, 1)))
        tensor(1.)
    """
    return routing.probs.shape[-1] * (routing.load * routing.probs.mean(0)).sum()


class MoE(nn.Module):
    """Experts and the router that sends each token to ``top_k`` of them."""

    def __init__(self, width: int, hidden: int, experts: int, top_k: int):
        super().__init__()
        if top_k > experts:
            raise ValueError(f"top_k={top_k} must be at most experts={experts}")
        self.top_k = top_k
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(MLP(width, hidden) for _ in range(experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:  # (B, L, D)
        tokens = x.flatten(0, -2)  # (T, D)
        probs = self.router(tokens).softmax(-1)  # (T, E)
        weights, chosen = probs.topk(self.top_k)  # (T, k)
        weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros_like(tokens)
        for index, expert in enumerate(self.experts):
            token, slot = torch.where(chosen == index)  # the tokens of this expert, possibly none
            result = expert(tokens.index_select(0, token)) * weights[token, slot, None]
            out = out.index_add(0, token, result.to(out.dtype))
        return out.view_as(x), Routing(probs, chosen, weights)


class MoEBlock(nn.Module):
    """The GPT's block with experts in place of its MLP."""

    def __init__(self, width: int, heads: int, hidden: int, experts: int, top_k: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, causal=True)
        self.norm2 = nn.LayerNorm(width)
        self.moe = MoE(width, hidden, experts, top_k)

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:  # (B, L, D)
        x = x + self.attn(self.norm1(x))
        y, routing = self.moe(self.norm2(x))
        return x + y, routing


class MoEGPT(nn.Module):
    """The GPT with ``experts`` experts of ``hidden`` neurons in each block, ``top_k`` of them at work for a token.

    Example:
        >>> model = MoEGPT(width=16, depth=2, heads=2, hidden=8, experts=4)
        >>> logits, routing = model.route(torch.zeros(2, 10, dtype=torch.int64))
        >>> logits.shape, len(routing), routing[0].chosen.shape
        (torch.Size([2, 10, 256]), 2, torch.Size([20, 2]))
    """

    def __init__(
        self,
        vocab: int = 256,
        context: int = 128,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        hidden: int = 64,
        experts: int = 8,
        top_k: int = 2,
        balance_weight: float = 0.01,
    ):
        super().__init__()
        self.context = context
        self.balance_weight = balance_weight
        self.embed = nn.Embedding(vocab, width)
        self.pos_embed = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(MoEBlock(width, heads, hidden, experts, top_k) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab, bias=False)
        self.head.weight = self.embed.weight
        self.apply(init_transformer)

    def forward(self, tokens: Tensor) -> Tensor:  # (B, L) int64
        return self.route(tokens)[0]  # (B, L, vocab)

    def route(self, tokens: Tensor) -> tuple[Tensor, list[Routing]]:
        """The logits, and what the router of each block decided."""
        x = self.embed(tokens) + positions(self.pos_embed, tokens)  # (B, L, D)
        routings = []
        for block in self.blocks:
            x, routing = block(x)
            routings.append(routing)
        return self.head(self.norm(x)), routings

    def loss(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy plus the weighted mean of the blocks' load-balance losses, and both by name."""
        logits, routings = self.route(tokens)
        cross_entropy = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        balance = torch.stack([load_balance_loss(routing) for routing in routings]).mean()
        total = cross_entropy + self.balance_weight * balance
        return total, {"cross_entropy": cross_entropy, "load_balance": balance}
