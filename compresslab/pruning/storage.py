"""What zeros are worth in a file: a sparse tensor has to say where its values are, and that takes bytes too.

``encodings.py`` says how. The files are safetensors, with a header that says how each tensor is stored and a sha256 of
the content: one flipped bit is an error. They are written to a temporary name and renamed, so that whoever reads finds
a whole file or none. What counts is the size of the file, not a sum of values with their places left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from compresslab.pruning.encodings import FORMATS, decode, encode, raw_bytes

__all__ = ["Stored", "load_sparse", "save_sparse", "sizes"]


@dataclass(frozen=True)
class Stored:
    """A file of tensors."""

    path: Path
    nbytes: int  # of the file
    formats: dict[str, str]  # by tensor: how it is stored


def save_sparse(state: Mapping[str, Tensor], path: str | os.PathLike, *, format: str = "bitmask") -> Stored:
    """A file of tensors, those of two axes and more in the given format, all others dense.

    Args:
        state: such as ``model.state_dict()``; tensors that share their memory are stored once.
        path: of the file; it is whole or absent.
        format: one of ``FORMATS``. With ``"2:4"``, what does not hold the pattern is dense.

    Raises:
        ValueError: the format is unknown. TypeError: as ``encode``.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     stored = save_sparse({"w": torch.eye(64)}, f"{folder}/w", format="bitmask")
        ...     torch.equal(load_sparse(stored.path)["w"], torch.eye(64)), stored.nbytes < 64 * 64 * 4 / 10
        (True, True)
    """
    if format not in FORMATS:
        raise ValueError(f"format={format!r} must be one of {', '.join(FORMATS)}")
    manifest, files, seen = {}, {}, {}
    for name, x in state.items():
        place = (x.data_ptr(), x.shape, x.stride(), x.dtype) if x.numel() else name
        if place in seen:
            manifest[name] = {"same_as": seen[place]}
            continue
        seen[place], used = name, format if x.dim() > 1 else "dense"
        try:
            parts = encode(x, used)
        except ValueError:  # it is not 2:4
            used, parts = "dense", encode(x, "dense")
        manifest[name] = {"format": used, "shape": list(x.shape), "dtype": str(x.dtype).removeprefix("torch.")}
        files |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    text = json.dumps(manifest, separators=(",", ":"))
    content, path = save(files, {"sparse": text, "sha256": _digest(files, text)}), Path(path)
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
    formats = {name: manifest[entry.get("same_as", name)]["format"] for name, entry in manifest.items()}
    return Stored(path, len(content), formats)


def load_sparse(path: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors of a file that ``save_sparse`` wrote, bit for bit; those that were one are one again.

    Raises:
        ValueError: the file is damaged, or something else. FileNotFoundError: it is not there.
    """
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
            files = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if metadata.get("sha256") != _digest(files, metadata["sparse"]):
            raise ValueError("its sha256 is not that of its content")
        state: dict[str, Tensor] = {}
        for name, entry in json.loads(metadata["sparse"]).items():
            if "same_as" in entry:
                state[name] = state[entry["same_as"]]
                continue
            parts = {key.rpartition(".")[2]: part for key, part in files.items() if key.rpartition(".")[0] == name}
            dtype = getattr(torch, entry["dtype"])
            state[name] = decode(parts, format=entry["format"], shape=tuple(entry["shape"]), dtype=dtype)
        return state
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no whole file of save_sparse: {error}; write it again") from error


def sizes(state: Tensor | Mapping[str, Tensor]) -> dict[str, int]:
    """Bytes of the file in each format; ``"2:4"`` only where at least one tensor holds the pattern.

    Args:
        state: one tensor, or several by name, such as ``model.state_dict()``. The files are written, and removed.

    Example:
        >>> found = sizes(torch.eye(64))  # 16,384 bytes of dense zeros and ones
        >>> found["bitmask"] - found["dense"] < -15000, list(found)
        (True, ['dense', 'bitmask', 'csr', 'coo', 'run_length', '2:4', 'gzip'])
    """
    state, found = {"tensor": state} if isinstance(state, Tensor) else state, {}
    with tempfile.TemporaryDirectory() as folder:
        for format in FORMATS:
            stored = save_sparse(state, Path(folder) / "file", format=format)
            if format != "2:4" or format in stored.formats.values():
                found[format] = stored.nbytes
    return found


def _digest(files: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name, part in sorted(files.items()):
        digest.update(f"{name} {part.dtype} {tuple(part.shape)}".encode())
        digest.update(raw_bytes(part))
    return digest.hexdigest()
