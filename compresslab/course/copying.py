"""A lesson's algorithm as files of its own, to put into another project: ``compresslab copy gptq``.

A lesson's file imports torch and, of this package, at most some files of its own lesson. So a copy is that file alone
(``gptq.py``), or a folder (``gptq/``) with the files that it imports, where ``from compresslab.quantization.affine``
has become ``from .affine``. Each begins with where it comes from, the licence, and how to cite.
"""

from __future__ import annotations

import ast
import difflib
import os
import re
import shutil
import tempfile
from pathlib import Path

import compresslab

__all__ = ["algorithms", "copy_algorithm"]

LESSONS = ("formats", "quantization", "pruning", "importance", "distillation", "factorization", "export", "measure")
ROOT = Path(compresslab.__file__).parent
# In code and in the examples of docstrings: "from compresslab.formats.floats import FLOATS", "from compresslab.x import y"
SIBLING = re.compile(r"^((?: *>>> | *\.\.\. | *))from compresslab\.(\w+)(?:\.(\w+))? import (\(?[^\n]*)", re.MULTILINE)
HEADER = """\
# {file} of compresslab {version} (compresslab/{lesson}/{file}){changed}
# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The compresslab authors. Licensed under the Apache License, Version 2.0:
# https://www.apache.org/licenses/LICENSE-2.0. Keep these lines; say so if you change the file.
# To cite: The compresslab authors, "compresslab: neural-network compression, learned by measuring", version {version},
# 2026; and the papers named below.
"""
CHANGED = ", imports rewritten"


def algorithms() -> dict[str, tuple[str, ...]]:
    """Every file of the lessons that can be copied, by lesson.

    Example:
        >>> algorithms()["formats"]
        ('blocks', 'codes', 'floats', 'model', 'rounding')
    """
    found = {lesson: sorted((ROOT / lesson).glob("*.py")) for lesson in LESSONS}
    names = {lesson: tuple(path.stem for path in paths if path.stem[0] != "_") for lesson, paths in found.items()}
    return {lesson: stems for lesson, stems in names.items() if stems}


def copy_algorithm(name: str, into: str | os.PathLike = ".") -> Path:
    """Copy an algorithm, with the files that it needs, and return the new file or folder.

    Args:
        name: ``"gptq"``, or ``"quantization.gptq"`` where several lessons have a file of that name.
        into: an existing folder.

    Returns:
        ``into/gptq.py``, or the folder ``into/gptq`` if the algorithm is several files: ``from gptq import gptq``.

    Raises:
        ValueError: no algorithm has that name, or several have.
        FileExistsError: there is a file or a folder of that name already.
        OSError: ``into`` is no folder or cannot be written; then nothing is left behind.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     copied = copy_algorithm("floats", folder)
        ...     copied.name, copied.read_text(encoding="utf-8").splitlines()[1]
        ('floats.py', '# SPDX-License-Identifier: Apache-2.0')
    """
    lesson, stem = _find(name)
    into = Path(into)
    if not into.is_dir():
        raise NotADirectoryError(f"{into} must be an existing folder; make it first")
    files = _files(lesson, stem)
    target = into / (f"{stem}.py" if len(files) == 1 else stem)
    if taken := next((path for path in (into / f"{stem}.py", into / stem) if os.path.lexists(path)), None):
        raise FileExistsError(f"{taken} exists already and is left as it is; move it, or copy into another folder")
    try:
        temporary = Path(tempfile.mkdtemp(dir=into, prefix=f".{stem}-"))
    except OSError as error:
        raise OSError(f"{into} cannot be written ({error.strerror}); choose another folder") from error
    try:
        folder = temporary / stem
        folder.mkdir()
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8", newline="\n")
        os.rename(folder if len(files) > 1 else folder / f"{stem}.py", target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _find(name: str) -> tuple[str, str]:
    """The lesson and the file that a name stands for."""
    *lesson, stem = name.removeprefix("compresslab.").removesuffix(".py").split(".")
    known = algorithms()
    places = [place for place, stems in known.items() if stem in stems and lesson in ([], [place])]
    if len(places) == 1:
        return places[0], stem
    if places:
        choice = " or ".join(f"{place}.{stem}" for place in places)
        raise ValueError(f"name={name!r} is a file of several lessons; say {choice}")
    every = sorted({word for place, stems in known.items() for file in stems for word in (file, f"{place}.{file}")})
    close = difflib.get_close_matches(name, every, n=3) or ["gptq"]
    raise ValueError(
        f"name={name!r} is no algorithm of the lessons; did you mean {' or '.join(close)}? All: compresslab copy"
    )


def _exports(lesson: str) -> dict[str, str]:
    """Which file of a lesson each name comes from that its ``__init__`` gives out."""
    tree = ast.parse((ROOT / lesson / "__init__.py").read_text(encoding="utf-8"))
    found = (node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module)
    return {alias.name: node.module.split(".")[-1] for node in found for alias in node.names}


def _files(lesson: str, stem: str) -> dict[str, str]:
    """Text by file name: the algorithm first, and whatever it imports of its lesson."""
    texts: dict[str, str] = {}
    waiting = [stem]
    while waiting:
        this = waiting.pop(0)
        text = (ROOT / lesson / f"{this}.py").read_text(encoding="utf-8")
        needed: list[str] = []

        def relative(match: re.Match[str], file: str = this, needed: list[str] = needed) -> str:
            before, place, module, names = match.groups()
            module = module or _exports(lesson).get(names)  # "from compresslab.measure import compare" in an example
            if place != lesson or not module:
                raise ValueError(f"compresslab/{lesson}/{file}.py imports {names} of {place}, which no copy holds")
            needed.append(module)
            return f"{before}from .{module} import {names}"

        body = SIBLING.sub(relative, text)
        changed = CHANGED if needed else ""
        header = HEADER.format(file=f"{this}.py", lesson=lesson, version=compresslab.__version__, changed=changed)
        texts[f"{this}.py"] = header + body
        waiting += [module for module in dict.fromkeys(needed) if f"{module}.py" not in texts and module not in waiting]
    if len(texts) > 1:
        first = f'"""{stem} of compresslab.{lesson}: what it is, and its licence, stand in {stem}.py."""\n\nfrom .{stem} import *\n'
        texts["__init__.py"] = first + f"from .{stem} import __all__ as __all__\n"
    return texts
