"""Recurrent language models: one cell, used again at every position.

Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997; Cho et al., "Learning Phrase Representations using RNN
Encoder-Decoder for Statistical Machine Translation" (GRU), 2014, https://arxiv.org/abs/1406.1078. torch.export unrolls
the loop over positions: a graph takes any batch, but only sequences as long as its example.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["RecurrentLM", "gru", "lstm"]


class RecurrentLM(nn.Module):
    """An embedding, an LSTM or GRU that starts from zeros, and logits for the token that follows each position."""

    def __init__(self, cell: type[nn.LSTM] | type[nn.GRU], vocab: int, embedding: int, width: int, depth: int):
        super().__init__()
        self.embed = nn.Embedding(vocab, embedding)
        self.rnn = cell(embedding, width, num_layers=depth, batch_first=True)
        self.head = nn.Linear(width, vocab)

    def forward(self, tokens: Tensor) -> Tensor:  # (B, L) int64
        states, _ = self.rnn(self.embed(tokens))  # (B, L, width)
        return self.head(states)  # (B, L, vocab)


def lstm(vocab: int = 256, embedding: int = 64, width: int = 128, depth: int = 1) -> RecurrentLM:
    """A language model of ``depth`` LSTM layers with ``width`` units.

    Example:
        >>> import torch
        >>> lstm(width=16)(torch.zeros(2, 10, dtype=torch.int64)).shape
        torch.Size([2, 10, 256])
    """
    return RecurrentLM(nn.LSTM, vocab, embedding, width, depth)


def gru(vocab: int = 256, embedding: int = 64, width: int = 128, depth: int = 1) -> RecurrentLM:
    """A language model of ``depth`` GRU layers with ``width`` units.

    Example:
        >>> import torch
        >>> gru(width=16)(torch.zeros(2, 10, dtype=torch.int64)).shape
        torch.Size([2, 10, 256])
    """
    return RecurrentLM(nn.GRU, vocab, embedding, width, depth)
