"""A model file is data from somebody else: what is refused before a runtime sees it.

An ONNX file may name other files that hold its weights, in any graph inside it. A name that leads out of the folder
would have the runtime read any file of yours, so names with "..", absolute ones and links that lead out are refused. Files that end
too early, web pages saved by mistake and graphs that ONNX's checker turns down are told apart in words.

    https://onnx.ai/onnx/repo-docs/ExternalData.html
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import onnx

__all__ = ["check_file"]


def check_file(path: str | os.PathLike) -> Path:
    """The path of a file that is a whole and valid ONNX model and reads nothing outside its folder.

    Raises:
        ValueError: it is not. FileNotFoundError: there is none.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "page.onnx"
        ...     _ = path.write_text("<!DOCTYPE html><html></html>")
        ...     check_file(path)
        Traceback (most recent call last):
        ...
        ValueError: page.onnx is a web page, not an ONNX model; download the file itself
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; export_onnx writes one")
    with open(path, "rb") as file:
        start = file.read(512).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<head")):
        raise ValueError(f"{path.name} is a web page, not an ONNX model; download the file itself")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise ValueError(f"{path.name} is not an ONNX model, or ends too early; export or download it again") from error
    if not model.graph.node and not model.graph.output:
        raise ValueError(f"{path.name} holds no graph ({path.stat().st_size} bytes); export or download it again")
    folder = path.resolve().parent
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
            found = folder / location
            outside = os.path.isabs(location) or ".." in Path(location.replace("\\", "/")).parts
            if outside or not found.resolve().is_relative_to(folder):
                raise ValueError(f"{path.name} wants to read {location!r}, outside its folder; do not trust this file")
            if not found.is_file():
                raise ValueError(f"{path.name} needs {location!r} beside it, which is missing; copy both files")
            if found.stat().st_nlink > 1:
                raise ValueError(f"{path.name} reads {location!r}, a hard link to some other file; copy it instead")
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{path.name} is not a valid ONNX model: {reason}; export or download it again") from error
    return path


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model, in subgraphs and functions too."""
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            yield from (part for sparse in graph.sparse_initializer for part in (sparse.values, sparse.indices))
            nodes += graph.node
        else:
            for attribute in nodes.pop().attribute:
                yield from [attribute.t, *attribute.tensors]
                graphs += [attribute.g, *attribute.graphs]
