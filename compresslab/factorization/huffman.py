"""Huffman codes: frequent symbols get short words, and a file comes close to the entropy of what it holds.

A symbol of probability p deserves -log2 p bits; whole bits that no other word begins with come within one bit of it, and
for skewed counts much closer. Words are at most 15 bits long (package-merge finds the best lengths under that bound) and
canonical: in order of length, then of symbol, each word is the one before plus one. So the lengths alone are the table.

Decoding looks the next 15 bits up in a table. One symbol after another that is slow here, so every 1,024 symbols the
number of bits is noted (0.016 bits a symbol), and all chunks are decoded side by side, one symbol of each at a time.

    Huffman, "A method for the construction of minimum-redundancy codes", 1952
    Larmore and Hirschberg, "A fast algorithm for optimal length-limited Huffman codes", 1990 (package-merge)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Encoded", "code_lengths", "code_words", "entropy_bits", "huffman_decode", "huffman_encode"]

LONGEST = 15  # bits of a word
CHUNK = 1024  # symbols that are decoded one after another
MOST_SYMBOLS = 4096


@dataclass(frozen=True, eq=False)
class Encoded:
    """Symbols as a string of bits."""

    bits: Tensor  # (bytes,) uint8; the first bit is the highest of the first byte
    lengths: Tensor  # (alphabet,) uint8: bits of each symbol's word, 0 if it does not occur
    chunks: Tensor  # (ceil(count / 1024),) int16: bits of each chunk
    count: int  # of symbols

    @property
    def nbytes(self) -> int:
        """Words, half a byte for each length, and the chunks."""
        return len(self.bits) + -(-len(self.lengths) // 2) + 2 * len(self.chunks)


def code_lengths(counts: Tensor, *, longest: int = LONGEST) -> Tensor:
    """Bits of the word of each symbol, such that the whole is shortest; 0 for what does not occur.

    Args:
        counts: (alphabet,), integers of at least 0; at most 4096 of them.
        longest: 1..15.

    Raises:
        ValueError: a count is negative, there are too many symbols, or ``longest`` is out of range.

    Example:
        >>> code_lengths(torch.tensor([5, 2, 1, 1, 0])).tolist()
        [1, 2, 3, 3, 0]
    """
    if counts.dim() != 1 or len(counts) > MOST_SYMBOLS or counts.is_floating_point() or (counts < 0).any():
        raise ValueError(f"counts must be at most {MOST_SYMBOLS} integers of at least 0, got {tuple(counts.shape)}")
    leaves = sorted((count, (symbol,)) for symbol, count in enumerate(counts.tolist()) if count)
    if not 1 <= longest <= LONGEST or len(leaves) > 2**longest:
        raise ValueError(
            f"longest={longest} must be in 1..{LONGEST} and enough for {len(leaves)} symbols; try {LONGEST}"
        )
    lengths = torch.zeros(len(counts), dtype=torch.uint8)
    if len(leaves) == 1:
        lengths[leaves[0][1][0]] = 1
        return lengths
    packages: list[tuple[int, tuple[int, ...]]] = []
    for _ in range(longest):  # a coin of each symbol for each bit; two coins make one of the next worth
        coins = sorted(leaves + packages, key=lambda coin: coin[0])
        packages = [(a[0] + b[0], a[1] + b[1]) for a, b in zip(coins[::2], coins[1::2], strict=False)]
    spent = [symbol for _, symbols in packages[: max(len(leaves) - 1, 0)] for symbol in symbols]
    return torch.bincount(torch.tensor(spent, dtype=torch.int64), minlength=len(counts)).to(torch.uint8)


def code_words(lengths: Tensor) -> Tensor:
    """The canonical word of each symbol, as a number of that many bits, (alphabet,) int64.

    Args:
        lengths: (alphabet,), 0..15.

    Raises:
        ValueError: a length is out of range, or no such code exists.

    Example:
        >>> [f"{word:0{length}b}" for word, length in zip(code_words(torch.tensor([1, 2, 3, 3])).tolist(), [1, 2, 3, 3])]
        ['0', '10', '110', '111']
    """
    n = lengths.long()
    if n.dim() != 1 or (len(n) and (int(n.min()) < 0 or int(n.max()) > LONGEST)):
        raise ValueError(f"lengths must be in 0..{LONGEST}, got {tuple(lengths.shape)}; they come from code_lengths")
    room = torch.where(n > 0, 2 ** (LONGEST - n), 0)  # of all 2^15 windows, those that begin with the word
    if int(room.sum()) > 2**LONGEST:
        raise ValueError(f"lengths ask for {int(room.sum())} of {2**LONGEST} words; they come from code_lengths")
    order = torch.where(n > 0, n, LONGEST + 1).argsort(stable=True)
    first = torch.zeros_like(n)
    first[order] = room[order].cumsum(0) - room[order]
    return torch.where(n > 0, first >> (LONGEST - n), 0)


def entropy_bits(symbols: Tensor) -> float:
    """The bits below which no code of single symbols can come: sum over symbols of -log2 of its frequency.

    Args:
        symbols: any shape and dtype.

    Example:
        >>> entropy_bits(torch.tensor([0, 0, 1, 1]))
        4.0
    """
    counts = symbols.flatten().unique(return_counts=True)[1].double()
    return float((counts * (counts.sum().log2() - counts.log2())).sum())


def huffman_encode(symbols: Tensor) -> Encoded:
    """The symbols as bits, with all that is needed to read them.

    Args:
        symbols: any shape, integers in 0..4095.

    Raises:
        ValueError: a symbol is out of range.

    Example:
        >>> found = huffman_encode(torch.tensor([0, 0, 1, 0, 2, 0]))  # words 0, 10, 11
        >>> f"{int(found.bits[0]):08b}", found.lengths.tolist(), found.chunks.tolist()
        ('00100110', [1, 2, 2], [8])
    """
    x = symbols.flatten().long()
    if symbols.is_floating_point() or (len(x) and (int(x.min()) < 0 or int(x.max()) >= MOST_SYMBOLS)):
        raise ValueError(
            f"symbols must be integers in 0..{MOST_SYMBOLS - 1}, got {symbols.dtype}; number the values first"
        )
    lengths = code_lengths(torch.bincount(x))
    words, n = code_words(lengths), lengths.int()[x]
    ends = n.cumsum(0)
    total = int(ends[-1]) if len(x) else 0
    begins = ends - n
    placed = words.int()[x] << (24 - n - begins % 8)  # within three bytes
    content = torch.zeros(-(-total // 8) + 2, dtype=torch.int32)
    for byte in range(3):  # words do not overlap: adding is or
        content.index_add_(0, begins // 8 + byte, ((placed >> (16 - 8 * byte)) & 255).int())
    marks = torch.cat([ends[CHUNK - 1 :: CHUNK], ends[-1:]] if len(x) % CHUNK else [ends[CHUNK - 1 :: CHUNK]])
    chunks = marks.diff(prepend=marks.new_zeros(1)).to(torch.int16)
    return Encoded(content[: -(-total // 8)].to(torch.uint8), lengths, chunks, len(x))


def huffman_decode(encoded: Encoded) -> Tensor:
    """The symbols that were encoded, (count,) int16.

    Raises:
        ValueError: the parts do not belong together. Nothing larger than a few times the bits is allocated before.

    Example:
        >>> huffman_decode(huffman_encode(torch.tensor([7, 7, 0, 7]))).tolist()
        [7, 7, 0, 7]
    """
    count, n = encoded.count, encoded.lengths.long()
    code_words(n)  # refuses lengths that no code has
    sizes = encoded.chunks.long()
    total = int(sizes.sum())
    right = 0 <= count <= total and len(sizes) == -(-count // CHUNK) and not (sizes < 0).any()
    if not right or len(encoded.bits) != -(-total // 8) or (count and not (n > 0).any()):
        raise ValueError(
            f"{count} symbols in {len(sizes)} chunks and {len(encoded.bits)} bytes do not fit; damaged bits"
        )
    if not count:
        return torch.zeros(0, dtype=torch.int16)
    longest = int(n.max())
    table = torch.zeros(2**longest, dtype=torch.int32)  # symbol and length; 0: no word begins so
    used = (n > 0).nonzero().squeeze(1)
    used = used[(n[used] * MOST_SYMBOLS + used).argsort()]
    spans = 2 ** (longest - n[used])
    table[: int(spans.sum())] = ((used << 4) | n[used]).int().repeat_interleave(spans)
    padded = torch.nn.functional.pad(encoded.bits, (0, 3)).int()
    window = (padded[:-2] << 16) | (padded[1:-1] << 8) | padded[2:]  # the 24 bits from each byte on
    ends = sizes.cumsum(0)
    kind = torch.int32 if total < 2**31 - 2**15 else torch.int64
    at, last, rest = (ends - sizes).to(kind), len(window) - 1, count - CHUNK * (len(sizes) - 1)
    found = torch.empty(CHUNK, len(sizes), dtype=torch.int32)
    for step in range(min(CHUNK, count)):
        shift = (24 - longest) - (at & 7)
        entry = table.index_select(0, (window.index_select(0, (at >> 3).clamp_(max=last)) >> shift) & (2**longest - 1))
        found[step] = entry
        at += entry & 15
        if step == rest - 1:
            stop = int(at[-1])
    at[-1] = stop
    if not torch.equal(at.long(), ends):
        raise ValueError("the words do not end where their chunks do; damaged bits")
    return (found >> 4).to(torch.int16).T.flatten()[:count]
