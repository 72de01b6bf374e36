"""Files that are whole or absent, and tensors that are what was saved.

A save is written to a temporary name in the same folder, flushed to the disk and renamed: whoever reads sees the old
file or the new one, never half of one. Tensors are safetensors with a sha256 of their content in the header, checked
when they are loaded: one flipped bit is an error, and nothing that is loaded can run code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:  # torch is imported where tensors are: paths and atomic writes work without it, and at once
    from torch import Tensor

__all__ = [
    "CorruptArtifact",
    "DataUnavailable",
    "atomic_write",
    "cache_dir",
    "load_tensors",
    "offline",
    "save_tensors",
    "sha256_of",
]

DIGEST_KEY = "compresslab.sha256"


class CorruptArtifact(ValueError):
    """A file is not what was saved: truncated, altered, or something else altogether."""


class DataUnavailable(OSError):
    """Data is not on this machine and cannot be fetched; the message says what to put where."""


def cache_dir() -> Path:
    """The one folder the course writes to by itself, made on first use.

    ``COMPRESSLAB_CACHE`` moves it. Without it, the platform's usual cache folder; where that cannot be written (no
    home, a read-only home), a folder of this user in the system's temporary directory, with a notice.

    Raises:
        OSError: ``COMPRESSLAB_CACHE`` is set to a folder that cannot be made or written.
    """
    wanted = os.environ.get("COMPRESSLAB_CACHE")
    if wanted:
        folder = Path(wanted).expanduser()
        if not _writable(folder):
            raise OSError(
                f"COMPRESSLAB_CACHE={wanted!r} cannot be made or written; point it to a folder that can, or unset it"
            )
        return folder
    import platformdirs

    folder = Path(platformdirs.user_cache_dir("compresslab", appauthor=False))
    if _writable(folder):
        return folder
    user = str(os.getuid()) if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    fallback = Path(tempfile.gettempdir()) / f"compresslab-{user}"
    if not _writable(fallback):
        raise OSError(f"neither {folder} nor {fallback} can be written; set COMPRESSLAB_CACHE to a folder that can")
    warnings.warn(f"{folder} cannot be written; caching in {fallback} (set COMPRESSLAB_CACHE to choose)", stacklevel=2)
    return fallback


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def offline() -> bool:
    """Whether ``COMPRESSLAB_OFFLINE`` forbids downloads (any value but empty and 0)."""
    return os.environ.get("COMPRESSLAB_OFFLINE", "0") not in ("", "0")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` when the block ends without an error.

    After an error, an interrupt or a full disk the temporary file is removed and what stood at ``path`` is untouched.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with atomic_write(folder / "note.txt") as temporary:
        ...     _ = temporary.write_text("whole")
        >>> (folder / "note.txt").read_text()
        'whole'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:60]}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        _as_umask_says(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _as_umask_says(path: Path) -> None:
    """mkstemp makes files that only their owner reads; a saved file follows the umask like any other."""
    if os.name == "posix":
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(path, 0o666 & ~mask)


def sha256_of(path: str | os.PathLike) -> str:
    """The sha256 of a file's bytes, as 64 hexadecimal digits; the file is streamed."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """sha256 over names, dtypes, shapes, bytes and metadata, independent of the order in the file."""
    import torch

    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def save_tensors(
    path: str | os.PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Save tensors as one safetensors file, all or nothing, with a digest that ``load_tensors`` checks.

    Args:
        path: the file to write; its folder is made. What stands there stays until the new file is whole.
        tensors: name to tensor of any shape and dtype that safetensors knows. A tensor that shares its memory with
            an earlier one (a tied weight) is written once and noted in the header; a view is written as the elements
            it shows, not as the storage behind it.
        metadata: name to text, kept in the header.

    Returns:
        The path written.

    Raises:
        ValueError: a tensor is not dense, or lies on the meta device.
        TypeError: a value is not a tensor, or metadata is not text.
    """
    import torch
    from safetensors.torch import save_file

    metadata = dict(metadata or {})
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise TypeError(f"metadata[{key!r}] must be text, got {type(value).__name__}; use json.dumps")
    unique, ties, seen = {}, {}, {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"tensors[{name!r}] must be a Tensor, got {type(tensor).__name__}")
        if tensor.layout is not torch.strided or tensor.is_meta:
            kind = "on the meta device" if tensor.is_meta else f"of layout {tensor.layout}"
            raise ValueError(f"tensors[{name!r}] is {kind}; save a dense tensor with data")
        same = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and same in seen:
            ties[name] = seen[same]
            continue
        seen[same] = name
        whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
        unique[name] = tensor.detach() if whole else tensor.detach().clone(memory_format=torch.contiguous_format)
    if ties:
        metadata["compresslab.ties"] = json.dumps(ties, sort_keys=True)
    metadata[DIGEST_KEY] = _digest(unique, metadata)
    with atomic_write(path) as temporary:
        save_file(unique, temporary, metadata=metadata)
    return Path(path)


def load_tensors(path: str | os.PathLike, *, check: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Load what ``save_tensors`` wrote: the tensors and their metadata. Loading never runs code.

    Args:
        path: a safetensors file. Files that others wrote carry no digest of ours: for them the structure alone is
            checked, unless their sha256 is known (``sha256_of``).
        check: compare the content with the digest in the header.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptArtifact: the file is not safetensors, is truncated, or its content is not what was saved.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, UnicodeDecodeError, OSError, ValueError, RuntimeError) as error:
        start = path.read_bytes()[:64].lstrip().lower()
        web = start.startswith((b"<!doctype", b"<html"))
        hint = "it looks like a web page: a login or proxy page was saved in its place" if web else str(error)
        raise CorruptArtifact(f"{path} is not a whole safetensors file ({hint}); fetch or make it again") from error
    digest = metadata.pop(DIGEST_KEY, None)
    if check and digest is not None and _digest(tensors, metadata) != digest:
        raise CorruptArtifact(f"{path} is not what was saved: its content does not match its digest; make it again")
    for name, source in json.loads(metadata.pop("compresslab.ties", "{}")).items():
        tensors[name] = tensors[source]
    return tensors, metadata
