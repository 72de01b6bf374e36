"""Files that are whole or absent, and tensors that are what was saved.

A save is written to a temporary name in the same folder, flushed to the disk and renamed: whoever reads sees the old
file or the new one, never half of one. Tensors are safetensors with a sha256 of their content in the header, checked
when they are loaded: one flipped bit is an error, and nothing that is loaded can run code.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import tempfile
import time
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

# Two marks of our own files: a file that has lost one of them (a flipped bit in its name) has not lost the other.
FORMAT_KEY, FORMAT = "compresslab.format", "1"
DIGEST_KEY = "compresslab.sha256"
TIES_KEY = "compresslab.ties"

STALE_S = 3600  # temporary files older than this were left by a process that was killed


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
    What a killed process left behind is removed by a later save to the same path, once it is an hour old.

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
    prefix = f".{path.name[:60]}."
    _sweep(path.parent, prefix)
    handle, name = tempfile.mkstemp(prefix=prefix, suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        as_umask_says(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sweep(folder: Path, prefix: str) -> None:
    for stray in folder.glob(f"{glob.escape(prefix)}*.tmp"):
        with contextlib.suppress(OSError):  # another process may be sweeping too
            if time.time() - stray.stat().st_mtime > STALE_S:
                stray.unlink()


def as_umask_says(path: Path) -> None:
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
        ValueError: a tensor is not dense, or lies on the meta device; or metadata uses a name that is ours.
        TypeError: a value is not a tensor, or metadata is not text.
        OSError: the file cannot be written, say because the disk is full.
    """
    import torch
    from safetensors.torch import save_file

    metadata = dict(metadata or {})
    for key, value in metadata.items():
        if key in (FORMAT_KEY, DIGEST_KEY, TIES_KEY):
            raise ValueError(f"metadata[{key!r}] is a name that save_tensors writes itself; choose another")
        if not isinstance(value, str):
            raise TypeError(f"metadata[{key!r}] must be text, got {type(value).__name__}; use json.dumps")
    unique, ties, seen, storages = {}, {}, {}, set()
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"tensors[{name!r}] must be a Tensor, got {type(tensor).__name__}")
        if tensor.layout is not torch.strided or tensor.is_meta:
            kind = "on the meta device" if tensor.is_meta else f"of layout {tensor.layout}"
            raise ValueError(f"tensors[{name!r}] is {kind}; save a dense tensor with data")
        tensor = tensor.detach().resolve_conj().resolve_neg()
        same = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and same in seen:
            ties[name], _ = seen[same]
            continue
        seen[same] = name, tensor  # a tensor resolved just now must live on, or the next one could get its address
        storage = tensor.untyped_storage()
        whole = tensor.is_contiguous() and storage.nbytes() == tensor.nbytes and storage.data_ptr() not in storages
        storages.add(storage.data_ptr())
        unique[name] = tensor if whole else tensor.clone(memory_format=torch.contiguous_format)
    metadata[FORMAT_KEY] = FORMAT
    if ties:
        metadata[TIES_KEY] = json.dumps(ties, sort_keys=True)
    metadata[DIGEST_KEY] = _digest(unique, metadata)
    with atomic_write(path) as temporary:
        try:
            save_file(unique, temporary, metadata=metadata)
        except SafetensorError as error:  # a full disk, and it is no OSError
            raise OSError(f"{path} cannot be written: {error}; what stood there is untouched") from error
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
    for _ in range(100):
        before = _identity(path)
        try:
            loaded = _load(path, check)
        except CorruptArtifact:
            if _identity(path) == before:
                raise
        else:
            if _identity(path) == before:
                return loaded
        # Replaced in between: safetensors opens the file once for its header and again for its content.
    raise CorruptArtifact(f"{path} is replaced faster than it can be read; stop what writes it")


def _identity(path: Path) -> tuple[int, int, int]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _load(path: Path, check: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        _refuse_names_twice(path)
    except (SafetensorError, UnicodeDecodeError, OSError, ValueError, RuntimeError) as error:
        start = _start(path)
        web = start.startswith((b"<!doctype", b"<html"))
        hint = "it looks like a web page: a login or proxy page was saved in its place" if web else str(error)
        raise CorruptArtifact(f"{path} is not a whole safetensors file ({hint}); fetch or make it again") from error
    digest = metadata.pop(DIGEST_KEY, None)
    ours = digest is not None or FORMAT_KEY in metadata
    if check and ours and (FORMAT_KEY not in metadata or _digest(tensors, metadata) != digest):
        raise CorruptArtifact(f"{path} is not what was saved: its content does not match its digest; make it again")
    metadata.pop(FORMAT_KEY, None)
    try:
        for name, source in json.loads(metadata.pop(TIES_KEY, "{}")).items():
            tensors[name] = tensors[source]
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise CorruptArtifact(f"{path} names tied tensors that it does not hold; make it again") from error
    return tensors, metadata


def _start(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(64).lstrip().lower()
    except OSError:
        return b""


def _refuse_names_twice(path: Path) -> None:
    """safetensors keeps the last of two entries of the same name; which one was meant?"""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            raise ValueError(f"{max(names, key=names.count)!r} stands twice in its header")
        return dict(pairs)

    with open(path, "rb") as file:
        json.loads(file.read(int.from_bytes(file.read(8), "little")), object_pairs_hook=unique)
