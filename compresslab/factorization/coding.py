"""One tensor in as few bits as its values allow, and back bit for bit: what is repeated, and what is zero, costs little.

Four ways, of which the smallest is taken; bytes for N elements of b bytes with k values and a part d not zero:

    raw        N b
    sparse     the Huffman code of the gaps, and the values as they are                N d H(gaps) / 8 + N d b
    symbols    a table of k values, and the Huffman code of N numbers of values        N H(values) / 8 + k b
    gaps       the same for what is not zero, and the Huffman code of the gaps         N d (H(gaps) + H(values)) / 8 + k b

A gap is how many zeros come before a value; 255 stands for 255 zeros and no value yet (the paper's filler weights,
without the weights). A value is a pattern of bits: -0.0 and NaN come back as they were. The bound that is reported is
the entropy of the values and of the mask, N h(d) with h the entropy of one bit, plus the tables: no code of single
symbols comes below.

    Han, Mao and Dally, "Deep compression", 2016, https://arxiv.org/abs/1510.00149, sections 2 and 4
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from compresslab.factorization.huffman import MOST_SYMBOLS, Encoded, entropy_bits, huffman_decode, huffman_encode

__all__ = ["STREAMS", "Coded", "bound_bytes", "decode_gaps", "decode_tensor", "encode_gaps", "encode_tensor"]

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
ESCAPE = 255
STREAMS = {"raw": 0, "symbols": 1, "sparse": 1, "gaps": 2}  # by kind


@dataclass(frozen=True, eq=False)
class Coded:
    """A tensor as a table of values and streams of symbols."""

    kind: str  # one of ``STREAMS``
    values: Tensor  # the table, as integers of the same bits; with "raw" all elements, with "sparse" all but zeros
    streams: tuple[Encoded, ...]  # with "symbols" and "gaps" numbers of values, with "sparse" and "gaps" then the gaps

    @property
    def nbytes(self) -> int:
        """Of the table and the streams."""
        return self.values.nbytes + sum(stream.nbytes for stream in self.streams)


def encode_gaps(mask: Tensor) -> Tensor:
    """Where a mask is True, as gaps of 0..254 and escapes of 255, in the order of the elements.

    Args:
        mask: bool, any shape.

    Example:
        >>> mask = torch.zeros(600, dtype=torch.bool)
        >>> mask[[0, 3, 260]] = True
        >>> encode_gaps(mask).tolist()  # none before the first, two, 256 = 255 + 1; and 339 behind the last
        [0, 2, 255, 1, 255]
    """
    places = mask.flatten().nonzero().squeeze(1)
    gaps = places.diff(prepend=places.new_tensor([-1])) - 1
    ends = (gaps // ESCAPE + 1).cumsum(0)
    used = int(ends[-1]) if len(ends) else 0
    behind = mask.numel() - 1 - (int(places[-1]) if len(places) else -1)
    symbols = gaps.new_full((used + behind // ESCAPE,), ESCAPE)
    symbols[ends - 1] = gaps % ESCAPE
    return symbols.to(torch.int16)


def decode_gaps(gaps: Tensor, count: int) -> Tensor:
    """The places, ascending, that ``encode_gaps`` was given.

    Args:
        gaps: integers in 0..255.
        count: elements of the mask.

    Raises:
        ValueError: a gap is out of range, or they do not lead to the last element: a few gaps cannot ask for a tensor
            without bounds.

    Example:
        >>> decode_gaps(torch.tensor([0, 2, 255, 1, 255]), 600).tolist()
        [0, 3, 260]
    """
    x = gaps.long()
    ends = torch.where(x == ESCAPE, ESCAPE, x + 1).cumsum(0)
    wrong = len(x) and (int(x.min()) < 0 or int(x.max()) > ESCAPE)
    if wrong or not 0 <= count - (int(ends[-1]) if len(x) else 0) < ESCAPE:
        raise ValueError(f"gaps do not lead to {count} elements, or are not in 0..{ESCAPE}; damaged gaps")
    return ends[x != ESCAPE] - 1


def encode_tensor(x: Tensor) -> Coded:
    """The shortest of the four codes of a tensor.

    Args:
        x: any shape, elements of 1, 2, 4 or 8 bytes.

    Raises:
        ValueError: it is on the meta device. TypeError: its elements have another size.

    Example:
        >>> x = torch.zeros(1000)
        >>> x[::10] = 0.5  # 100 gaps of 9 zeros (the first of none) take a bit each; a value takes one more
        >>> encode_tensor(x).kind, encode_tensor(x).nbytes < 50, encode_tensor(torch.rand(1000)).kind
        ('gaps', True, 'raw')
    """
    bits = _bits(x)
    mask = bits != 0
    codes, zeros = [Coded("raw", bits, ())], not mask.all()
    if zeros:
        gaps = huffman_encode(encode_gaps(mask))
        codes.append(Coded("sparse", bits[mask], (gaps,)))
    values, numbers = bits.unique(return_inverse=True)
    if len(values) <= MOST_SYMBOLS and len(bits):
        codes.append(Coded("symbols", values, (huffman_encode(numbers),)))
        if zeros:
            values, numbers = bits[mask].unique(return_inverse=True)
            codes.append(Coded("gaps", values, (huffman_encode(numbers), gaps)))
    return min(codes, key=lambda code: code.nbytes)


def decode_tensor(coded: Coded, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor that ``encode_tensor`` was given, bit for bit.

    Args:
        coded: from ``encode_tensor``.
        shape, dtype: of the tensor.

    Raises:
        ValueError: the parts do not belong to such a tensor.

    Example:
        >>> x = torch.tensor([[0.0, -0.0], [3.0, 3.0]])
        >>> torch.equal(decode_tensor(encode_tensor(x), (2, 2), torch.float32).view(torch.int32), x.view(torch.int32))
        True
    """
    count = math.prod(shape)
    bits = coded.values
    if coded.kind in ("symbols", "gaps"):
        numbers = huffman_decode(coded.streams[0]).long()
        if len(numbers) and int(numbers.max()) >= len(bits):
            raise ValueError(f"a symbol points beyond the table of {len(bits)} values; damaged symbols")
        bits = bits[numbers]
    if coded.kind in ("sparse", "gaps"):
        places = decode_gaps(huffman_decode(coded.streams[-1]), count)
        if len(places) != len(bits):
            raise ValueError(f"{len(bits)} values and {len(places)} places do not fit each other; damaged gaps")
        bits = torch.zeros(count, dtype=bits.dtype).index_copy_(0, places, bits)
    if len(bits) != count:
        raise ValueError(f"{len(bits)} elements do not fit the shape {tuple(shape)}; damaged data")
    return bits.view(dtype).reshape(shape)


def bound_bytes(x: Tensor, coded: Coded) -> float:
    """The bytes that no code of this kind comes below: entropies of values and of the mask, and the table.

    Example:
        >>> x = torch.tensor([0.0, 0.0, 0.0, 1.0]).repeat(200)  # h(1/4) = 0.811 bits, and a table of one value
        >>> round(bound_bytes(x, encode_tensor(x)), 1)  # 800 * 0.811 / 8 + 4
        85.1
    """
    bits = _bits(x)
    if coded.kind == "raw":
        return float(bits.nbytes)
    if coded.kind == "symbols":
        return entropy_bits(bits) / 8 + coded.values.nbytes
    values = 0.0 if coded.kind == "sparse" else entropy_bits(bits[bits != 0])
    return (values + entropy_bits(bits != 0)) / 8 + coded.values.nbytes


def _bits(x: Tensor) -> Tensor:
    if x.is_meta:
        raise ValueError("x is on the meta device and holds no values; load the weights first")
    if x.element_size() not in INTEGERS or x.is_complex():
        raise TypeError(f"x must have real elements of 1, 2, 4 or 8 bytes, got {x.dtype}; try float32")
    return x.detach().cpu().contiguous().flatten().view(INTEGERS[x.element_size()])
