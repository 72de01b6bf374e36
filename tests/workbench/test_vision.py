"""torchvision beside a torch that its compiled operators fit, and beside one that they do not."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from compresslab.workbench import vision


@pytest.fixture
def imported(monkeypatch):
    """As if torchvision had not been imported: what is imported and whether the schemas are defined, in order."""
    events = []
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(vision.importlib, "import_module", lambda name: events.append(f"import {name}"))
    monkeypatch.setattr(vision, "_define_missing_schemas", lambda: events.append("schemas"))
    return events


def test_schemas_come_first_where_the_library_does_not_load(imported, monkeypatch):
    monkeypatch.setattr(vision, "_own_library_loads", lambda folder: False)
    vision.torchvision()
    assert imported == ["schemas", "import torchvision"]


def test_nothing_is_done_where_the_library_loads(imported, monkeypatch):
    monkeypatch.setattr(vision, "_own_library_loads", lambda folder: True)
    vision.torchvision()
    assert imported == ["import torchvision"]


def test_nothing_is_done_where_it_is_imported_already(imported, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", object())
    monkeypatch.setattr(vision, "_own_library_loads", lambda folder: pytest.fail("looked for the library"))
    vision.torchvision()
    assert imported == ["import torchvision"]


def test_a_missing_torchvision_is_named(imported, monkeypatch):
    monkeypatch.setattr(vision.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="torchvision is not installed; pip install torchvision"):
        vision.torchvision()


def test_a_library_that_cannot_be_loaded_is_seen(tmp_path):
    vision.torchvision()  # so that the operators exist, and only the library can be what is missed
    (tmp_path / "_C.so").write_bytes(b"no library")
    assert not vision._own_library_loads(tmp_path)


def test_schemas_are_defined_once():
    vision.torchvision()
    before = len(vision._kept)
    vision._define_missing_schemas()
    assert len(vision._kept) == before
    assert hasattr(torch.ops.torchvision, "nms")


def test_models_work_and_the_import_is_quiet(tmp_path):
    script = (
        "import torch; from compresslab.workbench.vision import torchvision; tv = torchvision(); "
        "model = tv.models.squeezenet1_1(num_classes=3).eval(); "
        "assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3); assert torchvision() is tv"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
