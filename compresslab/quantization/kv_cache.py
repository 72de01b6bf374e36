"""A cache of keys and values in few bits, for models that write one token after another.

Attention looks at the keys and values of all earlier tokens at every step; with long texts and large batches they take
more memory than the weights. A few channels of the keys are loud for all tokens, so keys share a scale along the
tokens, one for each channel; values have no such channels, and each token has its own scale, so that a token's error
stays its own. Tokens come one by one, and a scale along tokens wants a whole group of them: the newest stay in floating
point, which is also where attention looks most.

    Liu, Yuan, Jin, Zhong, Xu, Braverman, Chen and Hu, "KIVI: a tuning-free asymmetric 2bit quantization for KV cache",
    2024, https://arxiv.org/abs/2402.02750, section 3
"""

from __future__ import annotations

import torch
from torch import Tensor

from compresslab.quantization.affine import Quantized, integer_levels, quantize

__all__ = ["KVCache", "quantize_keys", "quantize_values"]


def quantize_keys(keys: Tensor, *, bits: int = 4, group_size: int = 32) -> Quantized:
    """Keys rounded per channel, a scale for each ``group_size`` consecutive tokens; transposed, as scales lie along rows.

    Args:
        keys: (..., tokens, channels), finite, floating point.
        bits: 1..16; the grids are asymmetric.
        group_size: tokens that share a scale; it must divide their number.

    Returns:
        Levels of (..., channels, tokens).

    Raises:
        ValueError: as in ``quantize``. TypeError: ``keys`` is not floating point.

    Example:
        >>> keys = torch.tensor([[0.0, 90.0], [1.0, 30.0], [3.0, 0.0]])  # the second channel is loud
        >>> quantize_keys(keys, bits=2, group_size=3).dequantize().T.tolist()
        [[0.0, 90.0], [1.0, 30.0], [3.0, 0.0]]
    """
    return quantize(keys.transpose(-1, -2), bits=bits, symmetric=False, group_size=group_size)


def quantize_values(values: Tensor, *, bits: int = 4, group_size: int = 32) -> Quantized:
    """Values rounded per token, a scale for each ``group_size`` consecutive channels of a token.

    Args:
        values: (..., tokens, channels), finite, floating point.
        bits: 1..16; the grids are asymmetric.
        group_size: channels that share a scale, or the largest divisor of their number that is less.

    Raises:
        ValueError: ``group_size`` is below 1, or as in ``quantize``. TypeError: ``values`` is not floating point.

    Example:
        >>> values = torch.tensor([[0.0, 1.0, 3.0], [90.0, 30.0, 0.0]])  # the second token is loud
        >>> quantize_values(values, bits=2).dequantize().tolist()
        [[0.0, 1.0, 3.0], [90.0, 30.0, 0.0]]
    """
    if group_size < 1:
        raise ValueError(f"group_size={group_size} must be at least 1; try 32")
    channels = values.shape[-1]
    size = max(size for size in range(1, min(group_size, channels) + 1) if channels % size == 0)
    return quantize(values, bits=bits, symmetric=False, group_size=size)


class KVCache:
    """The keys and values that one attention layer has seen, old ones in ``bits`` bits and new ones as they came.

    Args:
        bits: 1..16, or None: nothing is quantized.
        group_size: of ``quantize_keys`` and ``quantize_values``, and how many tokens are quantized at a time.
        residual: the newest tokens that always stay in floating point, at least 0.

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> cache = KVCache(bits=4, group_size=2, residual=1)
        >>> for token in torch.rand(4, 1, 1, 1, 8):  # (B, heads, tokens, head_dim), one token at a time
        ...     keys, values = cache.update(token, token)
        >>> keys.shape, cache.length, cache.quantized_length
        (torch.Size([1, 1, 4, 8]), 4, 2)
    """

    def __init__(self, *, bits: int | None = 4, group_size: int = 32, residual: int = 32) -> None:
        if bits is not None:
            integer_levels(bits)
        if group_size < 1:
            raise ValueError(f"group_size={group_size} must be at least 1; try 32")
        if residual < 0:
            raise ValueError(f"residual={residual} must be at least 0; try 32")
        self.bits, self.group_size, self.residual = bits, group_size, residual
        self.old: list[tuple[Quantized, Quantized]] = []  # groups of tokens: keys (..., channels, tokens), values
        self.new: tuple[Tensor, Tensor] | None = None  # (..., tokens, channels)

    @property
    def quantized_length(self) -> int:
        """Tokens that are integers."""
        return sum(values.levels.shape[-2] for _, values in self.old)

    @property
    def length(self) -> int:
        """Tokens seen."""
        return self.quantized_length + (0 if self.new is None else self.new[0].shape[-2])

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens: packed levels, scales and zero points of the old ones, the new ones as they are."""
        old = sum(part.nbytes for pair in self.old for part in pair)
        return old + sum(part.nbytes for part in self.new or ())

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Take in new tokens; returns the keys and values of all tokens, those that just came in full precision.

        Args:
            keys, values: (..., tokens, channels), of the shape and dtype of those before but for the number of tokens.

        Raises:
            ValueError: keys and values have different numbers of tokens, or other leading axes than before; or they
                are not finite when their turn comes to be quantized.
        """
        past = None if self.new is None else self.new[0].shape[:-2] + self.new[0].shape[-1:]
        if keys.shape[:-1] != values.shape[:-1] or past not in (None, keys.shape[:-2] + keys.shape[-1:]):
            shapes = f"{tuple(keys.shape)} and {tuple(values.shape)}"
            raise ValueError(f"keys and values must fit each other and the {self.length} tokens before, got {shapes}")
        if self.new is not None:
            keys, values = (torch.cat(pair, -2) for pair in zip(self.new, (keys, values), strict=True))
        old_keys = [keys_.dequantize().transpose(-1, -2) for keys_, _ in self.old]
        every = torch.cat([*old_keys, keys], -2), torch.cat([*(v.dequantize() for _, v in self.old), values], -2)
        count = max(keys.shape[-2] - self.residual, 0) // self.group_size * self.group_size
        if self.bits is not None and count:
            options = {"bits": self.bits, "group_size": self.group_size}
            pair = quantize_keys(keys[..., :count, :], **options), quantize_values(values[..., :count, :], **options)
            self.old.append(pair)
            keys, values = keys[..., count:, :].clone(), values[..., count:, :].clone()  # frees what was
        self.new = keys, values
        return every
