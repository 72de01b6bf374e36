"""torchvision, also beside a build of torch that its compiled operators do not fit.

The registry's torchvision is compiled for one build of torch. Beside another (the CPU build, say) its library does not
load and ``import torchvision`` stops with "operator torchvision::nms does not exist", although models, datasets and
transforms need no compiled operator. Defining the two missing schemas first lets the import pass; calling ``nms``
still fails, as it must. Where torchvision's own library loads, nothing is done.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch

__all__ = ["torchvision"]

_SCHEMAS = ("nms", "qnms")
_kept: list[torch.library.Library] = []  # the schemas live as long as this object does


def torchvision() -> ModuleType:
    """Import and return torchvision.

    Also needed before ``import transformers``, which imports torchvision by itself.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
    """
    if "torchvision" not in sys.modules:
        spec = importlib.util.find_spec("torchvision")
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError("torchvision is not installed; pip install torchvision")
        if not _own_library_loads(Path(spec.origin).parent):
            _define_missing_schemas()
    return importlib.import_module("torchvision")


def _own_library_loads(folder: Path) -> bool:
    """Whether torchvision's compiled operators load beside this torch (as torchvision itself tries to)."""
    for library in [*folder.glob("_C*.so"), *folder.glob("_C*.pyd"), *folder.glob("_C*.dylib")]:
        try:
            torch.ops.load_library(str(library))
        except (OSError, RuntimeError):
            return False
    return hasattr(torch.ops.torchvision, "nms")


def _define_missing_schemas() -> None:
    for name in _SCHEMAS:
        if not hasattr(torch.ops.torchvision, name):
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _kept.append(library)
