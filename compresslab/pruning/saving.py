"""A pruned model as one file without pickled code: weights, and which indices of the original they are.

``torch.save(model)`` stores classes by name and runs code when it is read. Here the file (safetensors) holds tensors
and a little JSON; the class comes from the original's own code: a fresh original is cut to the same indices, then the
weights are loaded.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from compresslab.pruning.channels import Pruned
from compresslab.pruning.running import named_tensors
from compresslab.pruning.surgery import cut

__all__ = ["load_pruned", "save_pruned"]

FORMAT, KEPT = "compresslab.pruned", "kept:"  # key of the metadata; prefix of the tensors that hold indices


def save_pruned(pruned: Pruned, path: str | os.PathLike) -> Path:
    """Write weights, buffers and kept indices to one safetensors file, whole or not at all.

    Args:
        pruned: the result of ``prune_channels`` and its like; its model may have been trained since.
        path: of the file; one that is there is replaced.

    Returns:
        The path.
    """
    path = Path(path)
    tensors, ties = _unique(pruned.model.state_dict())
    for name, axes in pruned.kept.items():
        for axis, indices in axes.items():
            tensors[f"{KEPT}{axis}:{name}"] = indices.clone()
    record = {
        "version": 1, "ties": ties, "unprunable": pruned.unprunable, "removed": pruned.removed, "exact": pruned.exact,
    }  # fmt: skip
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    try:
        save_file(tensors, temporary, {FORMAT: json.dumps(record)})
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    return path


def load_pruned(path: str | os.PathLike, fresh_model: nn.Module) -> Pruned:
    """The pruned model of a file, built from the original's code.

    Args:
        path: what ``save_pruned`` wrote.
        fresh_model: the original before pruning, with any weights; is left as it is.

    Returns:
        As ``prune_channels``; the model is in the mode of ``fresh_model``.

    Raises:
        ValueError: the file is not whole or not of ``save_pruned``, or it is of another model.
        FileNotFoundError: there is no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is not there; give the file that save_pruned wrote")
    try:
        with safe_open(path, framework="pt") as file:
            record = (file.metadata() or {}).get(FORMAT)
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file ({error}); save it again") from error
    if record is None:
        raise ValueError(f"{path} has no record of what was pruned; give a file that save_pruned wrote")
    record = json.loads(record)
    kept: dict[str, dict[int, Tensor]] = {}
    for key in [key for key in tensors if key.startswith(KEPT)]:
        axis, _, name = key.removeprefix(KEPT).partition(":")
        kept.setdefault(name, {})[int(axis)] = tensors.pop(key)
    originals = named_tensors(fresh_model)
    for name, axes in kept.items():
        for axis, indices in axes.items():
            shape = originals[name].shape if name in originals else ()
            if axis >= len(shape) or int(indices.max()) >= shape[axis] or len(indices) >= shape[axis]:
                raise ValueError(
                    f"{path} keeps {len(indices)} of axis {axis} of {name}, which does not fit fresh_model"
                    f" ({tuple(shape) or 'no such tensor'}); give the model as it was before pruning"
                )
    model = cut(fresh_model, kept)
    state = tensors | {name: tensors[first] for name, first in record["ties"].items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not fit fresh_model: {error}; give the model as it was before pruning"
        ) from error
    return Pruned(model, kept, record["unprunable"], record["removed"], record["exact"])


def _unique(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor once, and the other names of tied ones."""
    tensors: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    first: dict[tuple, str] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape) if tensor.numel() else (name,)
        if key in first:
            ties[name] = first[key]
        else:
            first[key], tensors[name] = name, tensor.detach().cpu().contiguous()
    return tensors, ties
