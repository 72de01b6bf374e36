"""The teacher's logits, computed once and kept in a file: then a step of distillation costs what a plain one costs.

The file says of which teacher and which inputs its logits are, by a hash of all weights, buffers and inputs, and has a
hash of its own content. One of another teacher, of other data, cut short or with one flipped bit is never used.

Cached logits belong to the inputs as they were. Inputs that are changed on the way (augmentation) want a teacher that
looks at the same changed input (Beyer and others): then do not cache.

    Beyer, Zhai, Royer, Markeeva, Anil and Kolesnikov, "Knowledge distillation: a good teacher is patient and
    consistent", 2022, https://arxiv.org/abs/2106.05237, section 3.1
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from compresslab.distillation.features import evaluating, logits_of

__all__ = ["WithLogits", "cached_logits"]


class WithLogits:
    """Data whose batches have the teacher's logits as their third part, for ``Distillation(None)``.

    Args:
        data: a split (``len``, ``take(indices)`` and ``batches(batch_size)``) that is shuffled anew each epoch, or a
            re-iterable of batches, in its own order.
        logits: (N, ...), of the samples in the order of the data.

    Raises:
        ValueError: there are not as many logits as samples; for batches, when they are gone through.

    Example:
        >>> data = [(torch.zeros(2, 1), torch.tensor([0, 1])), (torch.ones(1, 1), torch.tensor([1]))]
        >>> [logits.tolist() for _, _, logits in WithLogits(data, torch.tensor([[5.0], [6.0], [7.0]]))]
        [[[5.0], [6.0]], [[7.0]]]
    """

    def __init__(self, data: Any, logits: Tensor) -> None:
        self._data, self._logits = data, logits
        if hasattr(data, "take"):
            if len(data) != len(logits):
                raise ValueError(f"logits of {len(logits)} samples must be those of the {len(data)} in data")
            self.batches = self._batches  # only what has one is shuffled by a training loop

    def _batches(
        self, batch_size: int = 256, *, shuffle: bool = False, generator: torch.Generator | None = None
    ) -> _Shuffled:
        return _Shuffled(self._data, self._logits, batch_size, shuffle, generator)

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        start = 0
        for inputs, targets, *_ in self._data:
            logits = self._logits[start : start + len(inputs)]
            start += len(inputs)
            if len(logits) != len(inputs):
                raise ValueError(f"logits of {len(self._logits)} samples end before the data, at sample {start}")
            yield inputs, targets, logits


class _Shuffled:
    """Batches of a split with the logits of the same samples; it draws its order as the split itself would."""

    def __init__(self, data: Any, logits: Tensor, size: int, shuffle: bool, generator: torch.Generator | None) -> None:
        self._data, self._logits, self._size, self._shuffle = data, logits, size, shuffle
        self._generator = torch.Generator().manual_seed(0) if generator is None else generator

    def __len__(self) -> int:
        return -(-len(self._data) // self._size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        count = len(self._data)
        order = torch.randperm(count, generator=self._generator) if self._shuffle else torch.arange(count)
        for index in order.split(self._size):
            inputs, targets, *_ = next(iter(self._data.take(index).batches(len(index))))
            yield inputs, targets, self._logits[index]


@torch.no_grad()
def cached_logits(
    teacher: nn.Module, batches: Iterable[tuple], path: str | os.PathLike, *, limit_bytes: int = 2**30
) -> Tensor:
    """The teacher's logits for all samples: read from the file if they are those of this teacher and data, else
    computed and written.

    Args:
        teacher: is run in eval mode and left as it is.
        batches: re-iterable, of (inputs, ...), in the order of the data.
        path: of a safetensors file; it is replaced as a whole, or not at all.
        limit_bytes: the most that the logits may take.

    Returns:
        (N, ...) in the teacher's dtype.

    Raises:
        ValueError: no batch, or more logits than the limit.

    Example:
        >>> folder = tempfile.TemporaryDirectory()
        >>> path, batches = Path(folder.name) / "logits.safetensors", [(torch.ones(3, 2), None)]
        >>> cached_logits(nn.Linear(2, 5), batches, path).shape, path.exists()
        (torch.Size([3, 5]), True)
    """
    key = hashlib.sha256()
    for name, tensor in teacher.state_dict().items():
        _add(key, tensor, name)
    for inputs, *_ in batches:
        _add(key, inputs, "inputs")
    kept = _read(Path(path), key.hexdigest())
    if kept is not None:
        return kept
    device = next((tensor.device for tensor in teacher.parameters()), torch.device("cpu"))
    found, total = [], 0
    with evaluating(teacher):
        for inputs, *_ in batches:
            found.append(logits_of(teacher(inputs.to(device))).cpu())
            total += found[-1].nbytes
            if total > limit_bytes:
                raise ValueError(
                    f"limit_bytes={limit_bytes} is too little: {sum(map(len, found))} samples take {total}"
                )
    if not found:
        raise ValueError("batches holds no batch; pass a re-iterable of (inputs, ...), such as split.batches()")
    logits = torch.cat(found)
    _write(Path(path), logits, key.hexdigest())
    return logits


def _add(digest: Any, tensor: Tensor, name: str) -> None:
    digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _content(logits: Tensor) -> str:
    digest = hashlib.sha256()
    _add(digest, logits, "logits")
    return digest.hexdigest()


def _read(path: Path, key: str) -> Tensor | None:
    try:
        with safe_open(path, "pt") as file:
            saved = file.metadata() or {}
            logits = file.get_tensor("logits") if saved.get("key") == key else None
    except (OSError, SafetensorError):
        return None
    return logits if logits is not None and saved.get("sha256") == _content(logits) else None


def _write(path: Path, logits: Tensor, key: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save_file({"logits": logits}, temporary, {"key": key, "sha256": _content(logits)})
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
