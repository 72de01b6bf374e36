"""Files that are whole or not there: written in a folder beside their place, and renamed at the end.

A runtime that finds half a model may load it. A rename within a disk happens at once, so whoever looks sees what stood
there before or all of the new file; after an error, an interrupt or with a full disk, what stood there before.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["whole_file"]


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """A path to write to, of the same name; what was written beside it comes along when the block ends.

    Args:
        path: where the file shall be; its folder is made.

    Raises:
        OSError: the folder cannot be written to.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with whole_file(Path(folder) / "a.txt") as temporary:
        ...         _ = temporary.write_text("whole")
        ...     [file.name for file in Path(folder).iterdir()]
        ['a.txt']
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name[:60]}."))
    except OSError as error:
        raise OSError(f"{path.parent} cannot be written to ({error.strerror}); choose another folder") from error
    try:
        yield folder / path.name
        for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):  # weights before the graph
            os.replace(file, path.parent / file.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
