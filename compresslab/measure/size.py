"""The size of a model: the bytes of the file that was really saved.

Formulas promise ("8 bits, so a quarter"); a file also holds what they forget: scales, zero points, batch-norm buffers,
the layers that a method skipped, masks still attached. So the model is saved, loaded again and compared, and the file
is measured. ``size_of`` measures what another tool saved: every file of it.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

__all__ = ["Size", "measure_size", "size_of"]

# In an ONNX file each tensor kept outside says ("location", file name): a protobuf string with a varint length.
_ONNX_LOCATION = re.compile(rb"\x08location\x12([\x80-\xff]*[\x00-\x7f])", re.DOTALL)


@dataclass(frozen=True)
class Size:
    """What a saved model takes, and what it is made of.

    Shared (tied) tensors count once everywhere, and a view counts as the elements that it shows.
    """

    size_bytes: int  # of the safetensors file, header included
    parameters: int  # elements
    buffers: int  # elements of the buffers that are saved
    bytes_by_dtype: dict[str, int]  # of parameters and buffers, without the header

    @property
    def bits_per_parameter(self) -> float:
        """Bits of the file for each parameter; infinite where all weights are buffers (packed integers)."""
        return 8 * self.size_bytes / self.parameters if self.parameters else float("inf")


def measure_size(model: nn.Module | Mapping[str, Tensor]) -> Size:
    """The size of a model, or of a state dict, from a safetensors file that is saved, loaded again and compared.

    Args:
        model: a module, or name to tensor. In a state dict nothing tells parameters from buffers, so every tensor
            counts as a parameter.

    Raises:
        TypeError: ``model`` is neither, or an entry is not a plain dense tensor (packed and quantized types).
        ValueError: an entry lies on the meta device and has no data.

    Example:
        >>> measure_size(nn.Linear(3, 2))  # (3 * 2 + 2) * 4 bytes and the header
        Size(size_bytes=160, parameters=8, buffers=0, bytes_by_dtype={'float32': 32})
    """
    if not isinstance(model, nn.Module | Mapping):
        raise TypeError(f"model must be an nn.Module or a state dict, got {type(model).__name__}; for a file: size_of")
    state = model.state_dict(keep_vars=True) if isinstance(model, nn.Module) else model
    unique = {_place(tensor): (name, tensor) for name, tensor in reversed(_checked(state).items())}
    saved = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in reversed(unique.values())}
    parameters = set(map(_place, model.parameters())) if isinstance(model, nn.Module) else set(unique)
    by_dtype, elements = Counter(), Counter()
    for place, (_, tensor) in unique.items():
        by_dtype[str(tensor.dtype).removeprefix("torch.")] += tensor.nbytes
        elements[place in parameters] += tensor.numel()
    return Size(_bytes_saved(saved), elements[True], elements[False], dict(sorted(by_dtype.items())))


def _place(tensor: Tensor) -> tuple:
    """Equal for two names of the same elements: tied weights."""
    return (tensor.data_ptr() or id(tensor), tensor.shape, tensor.stride(), tensor.dtype)  # empty ones have no address


def _checked(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or tensor.is_quantized:
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            kind = tensor.layout if isinstance(tensor, Tensor) and tensor.layout is not torch.strided else kind
            raise TypeError(
                f"{name!r} must be a dense tensor, got {kind}; save the model your way and use size_of(path)"
            )
        if tensor.is_meta:
            raise ValueError(f"{name!r} is on the meta device and has no data; load the weights first")
    return state


def _bytes_saved(tensors: dict[str, Tensor]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(tensors, path)
        size = path.stat().st_size
        loaded = load_file(path)
        for name, tensor in tensors.items():
            if loaded[name].shape != tensor.shape or not torch.equal(_raw(loaded[name]), _raw(tensor)):
                raise RuntimeError(f"{name!r} is not the same after saving and loading; report this to safetensors")
        del loaded  # the tensors hold the file open, which Windows does not remove
    return size


def _raw(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)  # bits, so that NaN equals NaN


def size_of(path: str | Path) -> int:
    """Bytes on disk of a whole artefact: a file with the files that belong to it, or a folder.

    An ONNX file counts with the external data that it names; an OpenVINO ``.xml`` with its ``.bin``.

    Raises:
        FileNotFoundError: nothing is there, a folder holds no file, or external data is missing.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "model.bin").write_bytes(b"12345")
        5
        >>> size_of(folder), size_of(folder / "model.bin")
        (5, 5)
    """
    path = Path(path)
    files = {file for file in path.rglob("*") if file.is_file()} if path.is_dir() else {path}
    for file in sorted(files):
        if file.suffix == ".onnx" and file.is_file():
            files |= {file.parent / name for name in _external_data(file.read_bytes())}
        elif file.suffix == ".xml" and file.with_suffix(".bin").is_file():
            files.add(file.with_suffix(".bin"))
    missing = sorted(str(file) for file in files if not file.is_file())
    if missing or not files:
        raise FileNotFoundError(f"{', '.join(missing) or f'{path}: a folder without files'} is missing; save it again")
    return sum(file.stat().st_size for file in {file.resolve() for file in files})


def _external_data(content: bytes) -> set[str]:
    names = set()
    for match in _ONNX_LOCATION.finditer(content):
        length = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(match[1]))
        names.add(content[match.end() : match.end() + length].decode())
    return names
