"""Deep compression from end to end: pruned, clustered weights in one file that is as small as it says.

The three stages are zeros (masks), few values (``codebook.py``) and short words for frequent ones (``huffman.py``). The
file needs to be told of none of them: it codes whatever is repeated, tensor by tensor (``coding.py``), and gives back
every bit. So it can be used on any state dict, and what it saves is a property of the weights.

    6 bytes      CLHUF1
    32 bytes     sha256 of all that follows
    4 bytes      length of the next part, little-endian
    ...          zlib: a JSON list of the tensors, then their tables of code lengths and chunk sizes
    ...          values and bits, tensor by tensor

Nothing in it is executed. A reader that is given a damaged or made-up file raises ``ValueError``, and allocates no more
than ``max_bytes`` for what the file says that it holds.

    Han, Mao and Dally, "Deep compression", 2016, https://arxiv.org/abs/1510.00149
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from compresslab.factorization.coding import INTEGERS, STREAMS, Coded, bound_bytes, decode_tensor, encode_tensor
from compresslab.factorization.files import Cursor, raw_bytes, write_whole
from compresslab.factorization.huffman import CHUNK, MOST_SYMBOLS, Encoded

__all__ = ["Compressed", "load_compressed", "save_compressed"]

MAGIC = b"CLHUF1"
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2,
)}  # fmt: skip
MOST_HEADER = 1 << 24  # bytes


@dataclass(frozen=True)
class Compressed:
    """A file of tensors, and what else it could have been."""

    path: Path
    nbytes: int  # of the file
    dense_bytes: int  # of the tensors as they are, those that share memory once
    gzip_bytes: int  # of the same, compressed by zlib
    bound_bytes: float  # entropy of values and zeros, tables, and what is stored raw
    kinds: dict[str, str]  # by tensor: "raw", "sparse", "symbols", "gaps" or "same"

    @property
    def ratio(self) -> float:
        """How many times smaller than the tensors as they are."""
        return self.dense_bytes / self.nbytes


def save_compressed(state: Mapping[str, Tensor], path: str | os.PathLike) -> Compressed:
    """One file of tensors, each in its shortest code.

    Args:
        state: such as ``model.state_dict()``. Tensors that are one (tied) are stored once.
        path: of the file; it is whole or absent.

    Raises:
        ValueError: a tensor is on the meta device, or there is too much for one file. TypeError: its dtype is not known.

    Example:
        >>> import tempfile
        >>> weight = torch.randint(0, 4, (100, 100)) / 4
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = save_compressed({"weight": weight}, Path(folder) / "w")
        ...     torch.equal(load_compressed(file.path)["weight"], weight), file.ratio > 14  # 2 bits in place of 32
        (True, True)
    """
    entries, side, body, dense = [], [], [], []
    seen: dict[tuple, str] = {}
    bound = 0.0
    for name, x in state.items():
        kind = str(x.dtype).removeprefix("torch.")
        if kind not in DTYPES:
            raise TypeError(f"{name} has dtype {x.dtype}, which is not one of {', '.join(DTYPES)}; convert it")
        place = (x.data_ptr(), x.shape, x.stride(), x.dtype)
        if x.numel() and not x.is_meta and place in seen:
            entries.append([name, "same", seen[place]])
            continue
        seen[place] = name
        coded = encode_tensor(x)
        bound += bound_bytes(x, coded)
        dense.append(raw_bytes(x.detach().cpu().contiguous().flatten().view(INTEGERS[x.element_size()])))
        streams = [[stream.count, len(stream.lengths), len(stream.bits)] for stream in coded.streams]
        entries.append([name, coded.kind, kind, list(x.shape), len(coded.values), streams])
        for stream in coded.streams:
            side += [raw_bytes(stream.lengths), raw_bytes(stream.chunks)]
        body += [raw_bytes(coded.values), *(raw_bytes(stream.bits) for stream in coded.streams)]
    listed = json.dumps(entries, separators=(",", ":")).encode()
    if (size := 4 + len(listed) + sum(map(len, side))) > MOST_HEADER:
        raise ValueError(f"the header would have {size} bytes, at most {MOST_HEADER} are read; write several files")
    header = zlib.compress(len(listed).to_bytes(4, "little") + listed + b"".join(side), 9)
    content = len(header).to_bytes(4, "little") + header + b"".join(body)
    content = MAGIC + hashlib.sha256(content).digest() + content
    write_whole(Path(path), content)
    size, kinds = sum(map(len, dense)), {entry[0]: entry[1] for entry in entries}
    return Compressed(Path(path), len(content), size, len(zlib.compress(b"".join(dense))), bound, kinds)


def load_compressed(path: str | os.PathLike, *, max_bytes: int = 2**32) -> dict[str, Tensor]:
    """The tensors of a file that ``save_compressed`` wrote, bit for bit; those that were one are one again.

    Args:
        path: of the file.
        max_bytes: of all tensors together; a file that says it holds more is refused before anything is allocated.

    Raises:
        ValueError: the file is damaged, is something else, or holds too much. FileNotFoundError: it is not there.
    """
    content = Path(path).read_bytes()
    try:
        if content[:6] != MAGIC or hashlib.sha256(content[38:]).digest() != content[6:38]:
            raise ValueError("its first bytes or its sha256 are wrong")
        return _read(content[38:], max_bytes)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, zlib.error) as error:
        raise ValueError(f"{path} is no whole file of save_compressed: {error}; write it again") from error


def _read(content: bytes, max_bytes: int) -> dict[str, Tensor]:
    size = int.from_bytes(content[:4], "little")
    inflate = zlib.decompressobj()
    header = inflate.decompress(content[4 : 4 + size], MOST_HEADER)
    if not inflate.eof or inflate.unused_data:
        raise ValueError(f"its header of {size} bytes is cut, or too long")
    listed = int.from_bytes(header[:4], "little")
    side, body = Cursor(header[4 + listed :]), Cursor(content[4 + size :])
    state: dict[str, Tensor] = {}
    for name, kind, *rest in json.loads(header[4 : 4 + listed]):
        if not isinstance(name, str) or name in state or kind not in (*STREAMS, "same"):
            raise ValueError(f"tensor {name!r} of kind {kind!r} is not known, or there twice")
        if kind == "same":
            state[name] = state[rest[0]]
            continue
        dtype, shape, count, streams = DTYPES[rest[0]], rest[1], rest[2], rest[3]
        if not all(isinstance(length, int) and length >= 0 for length in shape):
            raise ValueError(f"shape {shape} is not one")
        max_bytes -= math.prod(shape) * dtype.itemsize
        if max_bytes < 0 or len(streams) != STREAMS[kind]:
            raise ValueError(f"{name} of shape {shape} is larger than max_bytes allows, or lacks a stream")
        values, found = body.take(count, INTEGERS[dtype.itemsize]), []
        for symbols, alphabet, nbytes in streams:
            if not 0 <= alphabet <= MOST_SYMBOLS or not isinstance(symbols, int):
                raise ValueError(f"{name} has {symbols} symbols of an alphabet of {alphabet}")
            lengths, chunks = side.take(alphabet), side.take(-(-symbols // CHUNK), torch.int16)
            found.append(Encoded(body.take(nbytes), lengths, chunks, symbols))
        state[name] = decode_tensor(Coded(kind, values, tuple(found)), tuple(shape), dtype)
    if len(body.left) or len(side.left):
        raise ValueError(f"{len(body.left) + len(side.left)} bytes are left over")
    return state
