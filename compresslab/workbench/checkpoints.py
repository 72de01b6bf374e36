"""The trained models that the course starts from: one safetensors file each, and a manifest that says what they are.

The manifest holds, by name, the architecture's options, the data and the command that trained it, what it reached, and
the sha256 of the file. ``python -m compresslab.workbench.make_checkpoints`` makes them all again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock
from torch import Tensor, nn

from compresslab.workbench import models
from compresslab.workbench.files import (
    CorruptArtifact,
    DataUnavailable,
    atomic_write,
    load_tensors,
    save_tensors,
    sha256_of,
)

__all__ = ["folder", "load", "manifest", "names", "save"]

_FIELDS = {"config", "sha256", "bytes", "parameters"}


def folder() -> Path:
    """Where the checkpoints are: ``COMPRESSLAB_CHECKPOINTS``, or data/checkpoints beside the package."""
    chosen = os.environ.get("COMPRESSLAB_CHECKPOINTS")
    return Path(chosen).expanduser() if chosen else Path(__file__).resolve().parents[2] / "data" / "checkpoints"


def names() -> list[str]:
    """The names of the checkpoints there are, sorted.

    Raises:
        DataUnavailable: there is no manifest.
        CorruptArtifact: the manifest is not what ``save`` writes.
    """
    return sorted(_read())


def manifest(name: str) -> dict:
    """What is known about one checkpoint: config, data, seed, command, metrics, parameters, bytes, sha256.

    Args:
        name: one of ``names()``.

    Raises:
        ValueError: there is no such checkpoint.
        DataUnavailable: there is no manifest.
        CorruptArtifact: the manifest is not what ``save`` writes.

    Example:
        >>> manifest("resnet")["config"]["architecture"]
        'resnet'
    """
    entries = _read()
    if name not in entries:
        raise ValueError(f"there is no checkpoint {name!r} in {folder()}; the names are {', '.join(sorted(entries))}")
    return entries[name]


def load(name: str) -> nn.Module:
    """A trained model in eval mode, checked against the manifest.

    Args:
        name: one of ``names()``.

    Raises:
        ValueError: there is no such checkpoint.
        DataUnavailable: there is no manifest, or the file is missing.
        CorruptArtifact: the file is not the one of the manifest, does not fit the architecture, or is not finite.

    Example:
        >>> model = load("resnet")
        >>> model.training, model.config["classes"]
        (False, 62)
    """
    entry = manifest(name)
    path = _path(name)
    if not path.is_file():
        raise DataUnavailable(f"{path} is missing; {_advice(name)}")
    if sha256_of(path) != entry["sha256"]:
        raise CorruptArtifact(f"{path} is not the file of the manifest (sha256 differs); {_advice(name)}")
    tensors, _ = load_tensors(path)
    try:
        model = models.build(**entry["config"])
    except (TypeError, ValueError) as error:
        raise CorruptArtifact(f"the manifest's config of {name!r} makes no model ({error}); {_advice(name)}") from error
    problem = _difference(tensors, model.state_dict())
    if problem:
        raise CorruptArtifact(f"{path} does not fit its architecture: {problem}; {_advice(name)}")
    for key, tensor in tensors.items():
        bad = tensor.numel() - int(tensor.isfinite().sum())
        if bad:
            raise CorruptArtifact(
                f"{path}: {bad} of {tensor.numel()} values of {key!r} are not finite; {_advice(name)}"
            )
    model.load_state_dict(tensors)
    return model.eval()


def save(
    name: str,
    model: nn.Module,
    *,
    data: Mapping,
    metrics: Mapping[str, float],
    command: str,
    seed: int = 0,
    **more: object,
) -> Path:
    """Write a model and its entry in the manifest; an older one of this name is replaced. Both writes are atomic.

    Args:
        name: lower-case letters, digits, ``-`` and ``_``.
        model: made by ``models.build``, of the shapes that its ``config`` says.
        data: what it was trained on, its name and options.
        metrics: what it reached, and on how many samples.
        command: what makes it again.
        seed: of the training.
        **more: further entries that JSON can hold.

    Returns:
        The path of the weights.

    Raises:
        ValueError: a name with other characters, or a model that is not as its config says.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise ValueError(f"name={name!r} must be lower-case letters, digits, '-' and '_'; try 'resnet-half'")
    config = getattr(model, "config", None)
    if config is None:
        raise ValueError(f"a {type(model).__name__} without a config cannot be made again; use models.build")
    problem = _difference(model.state_dict(), models.build(**config).state_dict())
    if problem:
        raise ValueError(f"the model is not what its config says: {problem}; build one of its shapes and copy into it")
    path = _path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.parent / "manifest.lock"):
        entries = _read() if _manifest_path().is_file() else {}
        save_tensors(path, model.state_dict(), {"config": json.dumps(config)})
        entries[name] = {
            **{"config": config, "data": dict(data), "seed": seed, "command": command, "metrics": dict(metrics)},
            **{"parameters": sum(p.numel() for p in model.parameters()), "bytes": path.stat().st_size},
            **{"sha256": sha256_of(path), **more},
        }
        with atomic_write(_manifest_path()) as temporary:
            text = json.dumps(dict(sorted(entries.items())), indent=2, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")
    return path


def _manifest_path() -> Path:
    return folder() / "manifest.json"


def _path(name: str) -> Path:
    return folder() / f"{name}.safetensors"


def _advice(name: str = "") -> str:
    command = f"python -m compresslab.workbench.make_checkpoints {name}".rstrip()
    return f"run `{command}`, restore it with git, or set COMPRESSLAB_CHECKPOINTS to the folder that has it"


def _read() -> dict[str, dict]:
    path = _manifest_path()
    if not path.is_file():
        raise DataUnavailable(f"there are no checkpoints: {path} is missing; {_advice()}")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptArtifact(f"{path} is not JSON ({error}); {_advice()}") from error
    whole = isinstance(entries, dict) and all(isinstance(e, dict) and e.keys() >= _FIELDS for e in entries.values())
    if not whole:
        raise CorruptArtifact(f"{path} lacks some of {', '.join(sorted(_FIELDS))}; {_advice()}")
    return entries


def _difference(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """The first difference in names, shapes or dtypes, in words; empty when there is none."""
    for name in [*wanted, *found]:
        if name not in found or name not in wanted:
            return f"{name!r} is {'missing' if name in wanted else 'too many'}"
        found_as, wanted_as = ((tuple(t.shape), str(t.dtype)) for t in (found[name], wanted[name]))
        if found_as != wanted_as:
            return f"{name!r} is {found_as} where {wanted_as} is wanted"
    return ""
