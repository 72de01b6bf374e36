"""Files from the network, each with its checksum, and the folders in which data are looked for first.

``COMPRESSLAB_DATA`` names a folder that many users share and none needs to write, laid out like the cache folder: make
it by one run with ``COMPRESSLAB_CACHE`` set to it. What lies there is neither downloaded nor rendered again.
``COMPRESSLAB_OFFLINE=1`` forbids downloads. Nothing is ever replaced by other data: what cannot be had is an error that
says which file to put where.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from compresslab.workbench.files import (
    CorruptArtifact,
    DataUnavailable,
    as_umask_says,
    cache_dir,
    load_tensors,
    offline,
    save_tensors,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["cached", "fetch", "shared_folder"]

RETRIES = 4
TIMEOUT_S = 20


def shared_folder() -> Path | None:
    """The folder that ``COMPRESSLAB_DATA`` names, or None; a warning if it is set and no folder is there."""
    wanted = os.environ.get("COMPRESSLAB_DATA")
    if not wanted:
        return None
    folder = Path(wanted).expanduser()
    if folder.is_dir():
        return folder
    warnings.warn(f"COMPRESSLAB_DATA={wanted!r} is not a folder; going on without it", stacklevel=2)
    return None


def fetch(name: str, url: str, checksum: str, *, root: str | os.PathLike | None = None, progress: bool = False) -> Path:
    """The path of a file that has this checksum: found, or downloaded once however many processes ask for it.

    Looked for in ``COMPRESSLAB_DATA``, then in ``root``; downloaded to ``root``.

    Args:
        name: where the file lies below ``root``, with slashes: ``"wikitext-2/train.txt"``.
        url: where it comes from.
        checksum: kind and hexadecimal digits: ``"sha256:86c4..."``.
        root: the folder of downloaded data; ``cache_dir() / "data"`` if None.
        progress: show a bar.

    Raises:
        DataUnavailable: the file is not on this machine and cannot be downloaded, or what came is something else.
    """
    shared = shared_folder()
    if shared is not None and _holds(shared / "data" / name, checksum):
        return shared / "data" / name
    target = (cache_dir() / "data" if root is None else Path(root).expanduser()) / name
    if _holds(target, checksum):
        return target
    if offline():
        raise DataUnavailable(_advice(name, url, checksum, target, "COMPRESSLAB_OFFLINE is set"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            _download(url, target, checksum, progress)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; pooch's for a wrong checksum, a ValueError
        reason = f"{type(error).__name__}: {error}"
        raise DataUnavailable(_advice(name, url, checksum, target, reason)) from error
    return target


def _holds(path: Path, checksum: str) -> bool:
    """Whether the file is there with this checksum; a warning if it is there with another."""
    import pooch

    if not path.is_file():
        return False
    kind, digest = checksum.split(":")
    if pooch.file_hash(str(path), alg=kind) == digest:
        return True
    warnings.warn(f"{path} does not have {kind} {digest}: it is damaged or another version, and not used", stacklevel=3)
    return False


def _download(url: str, target: Path, checksum: str, progress: bool) -> None:
    import pooch

    keeper = pooch.create(
        target.parent, base_url="", registry={target.name: checksum}, urls={target.name: url}, retry_if_failed=RETRIES
    )
    with _only_warnings(pooch.get_logger()):
        keeper.fetch(target.name, downloader=pooch.HTTPDownloader(timeout=TIMEOUT_S, progressbar=progress))
    as_umask_says(target)  # pooch leaves it readable by its owner alone


@contextlib.contextmanager
def _only_warnings(logger: logging.Logger) -> Iterator[None]:
    """A filter, as a new level is not seen by this logger: it caches the old one where ``setLevel`` does not look."""

    def heard(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING

    logger.addFilter(heard)
    try:
        yield
    finally:
        logger.removeFilter(heard)


def _advice(name: str, url: str, checksum: str, target: Path, reason: str) -> str:
    return (
        f"{name} is not on this machine and cannot be downloaded from {url} ({reason}).\n"
        f"Put the file with {checksum.replace(':', ' ')} to {target}, or below COMPRESSLAB_DATA as data/{name}.\n"
        "A network may replace files by a login page, or ask for a proxy: log in, or set HTTPS_PROXY, and try again."
    )


def cached(
    name: str, make: Callable[[], tuple[Mapping[str, Tensor], Mapping[str, str]]]
) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
    """What ``make`` returns, made once and kept: the tensors, memory-mapped, and their metadata.

    Looked for in ``COMPRESSLAB_DATA``, then in the cache folder. A file that is broken is made again, with a warning;
    where nothing can be written, the result is returned all the same, with a warning. Processes that ask at the same
    time wait for the first of them.

    Args:
        name: the file below the cache folder, with slashes. It must hold everything that decides the content: a hash
            of all arguments and versions.
        make: returns tensors by name, and metadata.
    """
    shared = shared_folder()
    if shared is not None and (found := _load(shared / name)) is not None:
        return found
    try:
        path = cache_dir() / name
        if (found := _load(path)) is not None:
            return found
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock").acquire()
    except OSError as error:
        warnings.warn(f"{name} is made again each time, as it cannot be kept: {error}", stacklevel=2)
        return make()
    with lock:
        if (found := _load(path)) is not None:
            return found
        made = make()
        try:
            save_tensors(path, *made)
        except OSError as error:
            warnings.warn(f"{name} is made again each time, as it cannot be kept: {error}", stacklevel=2)
            return made
    return load_tensors(path)


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    try:
        return load_tensors(path)
    except FileNotFoundError:
        return None
    except CorruptArtifact as error:
        warnings.warn(f"{error} (made again now)", stacklevel=3)
        return None
