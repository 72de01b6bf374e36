"""Encodings of a tensor with many zeros: where its values are, and the values, as plain tensors and back bit for bit.

Bytes for N numbers of b bytes, of which a part d is not zero, and a tensor of shape (O, I):

    dense         N b
    bitmask       N / 8 + d N b                    one bit for each place
    csr           d N (2 + b) + 4 O                the column of each value (4 bytes where I > 32,768), where rows begin
    coo           d N (4 + b)                      row and column of each value
    run_length    d N (1 + b) and more             how many zeros come before; a run over 255 costs another value
    2:4           N / 8 + N b / 2                  for two of every four inputs, which two; no less than a bitmask
    gzip          whatever it finds, in dense zeros

At four bytes a bitmask saves from 3 % zeros on, CSR from 33 % (from 50 % with 4-byte columns), COO from 50 %. A value
is what has a bit set: -0.0 and NaN come back as they were. (So ``weight * mask``, which leaves -0.0 for each negative
weight, saves nothing there: fill the mask in, as ``apply_masks`` does.) What does not fit together is an error.

    Han, Mao and Dally, "Deep compression", 2016, https://arxiv.org/abs/1510.00149, section 2 (runs of zeros)
    Mishra and others, "Accelerating sparse deep neural networks", 2021, https://arxiv.org/abs/2104.08378 (2:4)
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Mapping

import torch
from safetensors.torch import save
from torch import Tensor

__all__ = ["FORMATS", "decode", "encode", "raw_bytes"]

FORMATS = ("dense", "bitmask", "csr", "coo", "run_length", "2:4", "gzip")
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
LONGEST_RUN = 256  # places that one byte of a run-length code can step over


def encode(x: Tensor, format: str) -> dict[str, Tensor]:
    """The tensors that a format stores for ``x``.

    Args:
        x: any shape, up to 8 bytes an element. For ``"2:4"`` axis 1 is the inputs, and each four hold at most two values.
        format: one of ``FORMATS``.

    Raises:
        ValueError: the format is unknown, ``"2:4"`` does not fit, or ``x`` holds no values. TypeError: elements are larger than 8 bytes.

    Example:
        >>> {name: part.tolist() for name, part in encode(torch.tensor([[0.0, 5.0], [0.0, 7.0]]), "csr").items()}
        {'values': [5.0, 7.0], 'columns': [1, 1], 'starts': [0, 1, 2]}
    """
    if x.is_meta:
        raise ValueError("x is on the meta device and holds no values; load the weights first")
    x = x.detach().cpu().contiguous()
    if x.element_size() not in INTEGERS:
        raise TypeError(f"x must have elements of 1, 2, 4 or 8 bytes, got {x.dtype}; try float32")
    flat, columns = x.reshape(-1), _columns(x.shape)
    set_ = flat.view(INTEGERS[x.element_size()]) != 0
    if format == "dense":
        return {"dense": x.clone()}
    if format == "gzip":
        return {"gzip": torch.frombuffer(bytearray(gzip.compress(raw_bytes(x), mtime=0)), dtype=torch.uint8)}
    if format == "bitmask":
        return {"values": flat[set_], "bits": _pack(set_, 1)}
    if format == "2:4":
        return _encode_2_4(x)
    places, values = set_.nonzero().squeeze(1), flat[set_]
    rows, inside = places // columns, places % columns
    if format == "coo":
        return {"values": values, "rows": _narrow(rows, x.numel() // columns), "columns": _narrow(inside, columns)}
    if format == "csr":
        starts = torch.bincount(rows + 1, minlength=x.numel() // columns + 1).cumsum(0)
        return {"values": values, "columns": _narrow(inside, columns), "starts": _narrow(starts, len(places) + 1)}
    if format == "run_length":
        gaps = places.diff(prepend=torch.tensor([-1])) - 1
        ends = (gaps // LONGEST_RUN + 1).cumsum(0)
        codes = torch.full((int(ends[-1]) if len(ends) else 0,), LONGEST_RUN - 1, dtype=torch.uint8)
        stored = torch.zeros(len(codes), dtype=x.dtype)
        codes[ends - 1], stored[ends - 1] = (gaps % LONGEST_RUN).to(torch.uint8), values
        return {"values": stored, "gaps": codes}
    raise ValueError(f"format={format!r} must be one of {', '.join(FORMATS)}")


def decode(parts: Mapping[str, Tensor], *, format: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor that ``encode`` was given, bit for bit.

    Args:
        parts: from ``encode``.
        format: the same.
        shape, dtype: of the tensor.

    Raises:
        ValueError: the parts do not belong to such a tensor: some are missing, too short, or point outside of it.

    Example:
        >>> x = torch.tensor([[0.0, 5.0], [0.0, 7.0]])
        >>> torch.equal(decode(encode(x, "csr"), format="csr", shape=(2, 2), dtype=x.dtype), x)
        True
    """
    try:
        return _decode(parts, format, torch.Size(shape), dtype)
    except (KeyError, IndexError, RuntimeError, ValueError, OverflowError, zlib.error) as error:
        raise ValueError(
            f"the parts are no {format} of {tuple(shape)} {dtype}: {error}; encode the tensor anew"
        ) from error


def raw_bytes(x: Tensor) -> bytes:
    """The bytes of a tensor in memory, first element first.

    Example:
        >>> raw_bytes(torch.tensor([1, 258], dtype=torch.int16))
        b'\\x01\\x00\\x02\\x01'
    """
    content = save({"x": x})
    return content[8 + int.from_bytes(content[:8], "little") :]


def _decode(parts: Mapping[str, Tensor], format: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    flat, columns = torch.zeros(shape.numel(), dtype=dtype), _columns(shape)
    if format == "dense":
        return _expect(parts["dense"].shape == shape and parts["dense"].dtype == dtype, parts["dense"])
    if format == "gzip":
        inflate = zlib.decompressobj(wbits=31)
        content = inflate.decompress(raw_bytes(parts["gzip"]), flat.nbytes + 1)
        _expect(len(content) == flat.nbytes and (inflate.eof or not content))
        return torch.frombuffer(bytearray(content), dtype=dtype).reshape(shape) if content else flat.reshape(shape)
    values = _expect(parts["values"].dtype == dtype, parts["values"])
    if format == "bitmask":
        places = _unpack(parts["bits"], 1, flat.numel()).nonzero().squeeze(1)
    elif format == "2:4":
        inputs_last = flat.reshape(shape).movedim(1, -1).unflatten(-1, (-1, 4))
        pairs = _unpack(parts["indices"], 2, flat.numel() // 2).reshape(*inputs_last.shape[:-1], 2).long()
        _expect(bool((pairs[..., 0] != pairs[..., 1]).all()))
        return inputs_last.scatter(-1, pairs, values.reshape(pairs.shape)).flatten(-2).movedim(-1, 1).contiguous()
    elif format == "csr":
        starts = parts["starts"].long()
        _expect(len(starts) == flat.numel() // columns + 1 and starts[0] == 0 and starts[-1] == len(values))
        rows = torch.arange(len(starts) - 1).repeat_interleave(starts.diff())
        places = _places(rows, parts["columns"], columns)
    elif format == "coo":
        places = _places(parts["rows"].long(), parts["columns"], columns)
    elif format == "run_length":
        places = (parts["gaps"].long() + 1).cumsum(0) - 1
    else:
        raise ValueError(f"the format must be one of {', '.join(FORMATS)}")
    _expect(len(places) == len(values) and bool((places.diff() > 0).all()))
    flat[places] = values
    return flat.reshape(shape)


def _encode_2_4(x: Tensor) -> dict[str, Tensor]:
    if x.dim() < 2 or x.shape[1] % 4:
        raise ValueError(f"format='2:4' needs inputs (axis 1) that 4 divides, got {tuple(x.shape)}; try 'bitmask'")
    groups = x.movedim(1, -1).contiguous().unflatten(-1, (-1, 4))
    empty = groups.view(INTEGERS[x.element_size()]) == 0
    if x.numel() and (most := int((~empty).sum(-1).max())) > 2:
        raise ValueError(
            f"format='2:4' needs at most 2 values in every 4 inputs (-0.0 is one), got {most}; try prune_n_m"
        )
    pairs = empty.byte().argsort(dim=-1, stable=True)[..., :2]
    return {"values": groups.gather(-1, pairs).flatten(), "indices": _pack(pairs.flatten(), 2)}


def _columns(shape: torch.Size) -> int:
    """Elements of a row, where the first axis is the rows."""
    return max(math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape), 1)


def _places(rows: Tensor, inside: Tensor, columns: int) -> Tensor:
    inside = inside.long()
    _expect(bool(((inside >= 0) & (inside < columns) & (rows >= 0)).all()))
    return rows * columns + inside


def _expect(right: bool, value: Tensor | None = None) -> Tensor | None:
    if not right:
        raise ValueError("they do not fit each other or the shape")
    return value


def _narrow(indices: Tensor, limit: int) -> Tensor:
    """In the smallest integers that hold everything below ``limit``."""
    fits = [dtype for dtype in (torch.int16, torch.int32) if limit - 1 <= torch.iinfo(dtype).max]
    return indices.to([*fits, torch.int64][0])


def _pack(levels: Tensor, bits: int) -> Tensor:
    """Integers of 1 or 2 bits, 8 or 4 to a byte, the first lowest."""
    levels = torch.nn.functional.pad(levels.byte(), (0, -len(levels) % (8 // bits))).reshape(-1, 8 // bits)
    return (levels << torch.arange(0, 8, bits, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def _unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    levels = (packed.unsqueeze(1) >> torch.arange(0, 8, bits, dtype=torch.uint8)) & (2**bits - 1)
    levels = levels.flatten()
    _expect(len(packed) == -(-count * bits // 8) and not levels[count:].any())
    return levels[:count]
