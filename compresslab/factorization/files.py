"""Bytes in and out of files: written whole or not at all, read with every length checked."""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["Cursor", "raw_bytes", "write_whole"]


class Cursor:
    """Bytes that are taken from the front, and never more than there are."""

    def __init__(self, content: bytes) -> None:
        self.left = memoryview(content)

    def take(self, count: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        """The next ``count`` elements, as a tensor of their own.

        Raises:
            ValueError: there are not so many.
        """
        size = count * dtype.itemsize
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= size <= len(self.left):
            raise ValueError(f"{count} elements of {dtype} where {len(self.left)} bytes are left")
        part, self.left = bytearray(self.left[:size]), self.left[size:]
        return torch.frombuffer(part, dtype=dtype) if count else torch.empty(0, dtype=dtype)


def raw_bytes(x: Tensor) -> bytes:
    """The bytes of a tensor in memory, first element first.

    Example:
        >>> raw_bytes(torch.tensor([1, 258], dtype=torch.int16))
        b'\\x01\\x00\\x02\\x01'
    """
    x = x.detach().cpu().contiguous()
    return ctypes.string_at(x.data_ptr(), x.nbytes) if x.numel() else b""  # bytes(storage) goes one by one


def write_whole(path: Path, content: bytes) -> None:
    """Write a file to a temporary name and rename it: whoever reads finds all of it or nothing.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_whole(Path(folder) / "a", b"abc")
        ...     [path.name for path in Path(folder).iterdir()]
        ['a']
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
