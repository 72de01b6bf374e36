"""Models exported once and looked at by many tests: an export takes seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import Tensor, nn

from compresslab.export.to_onnx import export_onnx
from compresslab.quantization.static import quantize_static
from compresslab.workbench import checkpoints, data


@dataclass
class Exported:
    model: nn.Module
    path: Path
    images: Tensor


@pytest.fixture(scope="session")
def images() -> Tensor:
    return next(iter(data.load("glyphs").test.batches(200)))[0]


@pytest.fixture(scope="session")
def resnet(images, tmp_path_factory) -> Exported:
    model = checkpoints.load("resnet")
    return Exported(model, export_onnx(model, images[:2], tmp_path_factory.mktemp("resnet") / "model.onnx"), images)


@pytest.fixture(scope="session")
def integers(resnet, tmp_path_factory) -> Exported:
    """The simulation of 8-bit integers of lesson 02, and its QDQ graph."""
    model = quantize_static(resnet.model, data.load("glyphs").train.take(64).batches(64))
    path = export_onnx(model, resnet.images[:2], tmp_path_factory.mktemp("integers") / "model.onnx")
    return Exported(model, path, resnet.images)
