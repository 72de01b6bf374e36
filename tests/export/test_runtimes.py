"""One interface: every target that can run here gives the model's answers, every other says what would install it."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from compresslab.export import runtimes
from compresslab.export.parity import check_parity
from compresslab.export.runtimes import available, export
from compresslab.export.targets import TARGETS
from compresslab.quantization.static import quantize_static
from compresslab.workbench import checkpoints

FREE = ("torch.export", "onnxruntime", "openvino")  # the batch may have any size


@pytest.mark.parametrize("target", [*FREE, "executorch", "litert"])
def test_the_models_answers(target, images, tmp_path):
    pytest.importorskip(TARGETS[target].package)
    model, path = checkpoints.load("mlp"), tmp_path / f"model{TARGETS[target].suffix}"
    artifact = export(model, images[:3], target=target, path=path)
    sizes = (1, 3, 7) if target in FREE else (3,)
    assert check_parity(model, artifact.run, images, batch_sizes=sizes, tolerance=1e-5).holds
    assert artifact.path == path and artifact.target == target
    assert artifact.size_bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    weights = sum(p.numel() for p in model.parameters()) * 4
    assert weights < artifact.size_bytes < 1.5 * weights
    assert artifact.difference < 1e-5 and "function" not in repr(artifact)


def test_quantized_models_arrive_as_integers_in_openvino(images, tmp_path):
    pytest.importorskip("openvino")
    model = checkpoints.load("mlp")
    simulation = quantize_static(model, [(images[:50], None)], refine=False)
    artifact = export(simulation, images[:2], target="openvino", path=tmp_path / "model.xml")
    parity = check_parity(simulation, artifact.run, images, batch_sizes=(1, 100))
    assert parity.agreement >= 0.98 and parity.largest < 0.06
    assert artifact.size_bytes < 0.5 * sum(p.numel() for p in model.parameters()) * 4


def test_several_outputs(tmp_path):
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x + 1, x - 1

    for target in FREE:
        if available()[target].can_run:
            path = tmp_path / f"two{TARGETS[target].suffix}"
            more, less = export(Two().eval(), torch.ones(2, 1), target=target, path=path).run(torch.zeros(3, 1))
            assert more.flatten().tolist() == [1, 1, 1] and less.flatten().tolist() == [-1, -1, -1]


def test_what_is_missing_says_what_installs_it(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name))
    found = available()
    assert list(found) == list(TARGETS) and found["torch.export"].can_run and found["onnxruntime"].can_run
    assert found["openvino"].reason == "the package openvino is not installed"
    assert found["openvino"].command == 'pip install "compresslab[edge]"'
    with pytest.raises(ImportError, match=r"openvino cannot run here: .*not installed; pip install"):
        export(nn.Linear(1, 1).eval(), torch.ones(2, 1), target="openvino", path=tmp_path / "a.xml")
    assert not list(tmp_path.iterdir())


def test_a_runtime_that_answers_otherwise_is_refused(tmp_path, monkeypatch):
    """ExecuTorch 1.5 does, of a simulation of 8-bit integers."""
    wrong = dataclasses.replace(TARGETS["torch.export"], load=lambda path, threads: lambda x: x + 0.5)
    monkeypatch.setitem(TARGETS, "torch.export", wrong)
    with pytest.raises(ValueError, match=r"torch.export does not compute what the model does: .* 50% of the largest"):
        export(nn.Identity().eval(), torch.ones(2, 1), target="torch.export", path=tmp_path / "a.pt2")
    assert not list(tmp_path.iterdir())


def test_a_gpu_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(runtimes.torch.cuda, "is_available", lambda: False)
    assert available()["tensorrt"] == runtimes.Available(False, "there is no NVIDIA GPU", "")


def test_refused(tmp_path):
    model, x = nn.Linear(1, 1).eval(), torch.ones(2, 1)
    with pytest.raises(ValueError, match=r"target='coreml' must be one of torch.export, onnxruntime, openvino"):
        export(model, x, target="coreml", path=tmp_path / "a.onnx")
    with pytest.raises(ValueError, match=r"a.onnx.* must end in .pt2 for torch.export"):
        export(model, x, target="torch.export", path=tmp_path / "a.onnx")
    for target in FREE:
        if available()[target].can_run:
            with pytest.raises(ValueError, match="Linear is in train mode"):
                export(nn.Linear(1, 1), x, target=target, path=tmp_path / f"a{TARGETS[target].suffix}")
    assert not list(tmp_path.iterdir())


def test_openvino_reports_to_nobody(tmp_path):
    """Importing it as its documentation says makes a folder in the home and reports the import to Intel."""
    pytest.importorskip("openvino")
    code = (
        "import sys, torch\nfrom compresslab.export.runtimes import export\n"
        "model, x = torch.nn.Linear(2, 2).eval(), torch.ones(2, 2)\n"
        "print(tuple(export(model, x, target='openvino', path=sys.argv[1]).run(x).shape))\n"
        "assert not any(name.startswith('openvino_telemetry.') for name in sys.modules)\n"
    )
    home = tmp_path / "home"
    home.mkdir()
    command = [sys.executable, "-c", code, str(tmp_path / "model.xml")]
    run = subprocess.run(
        command, env=os.environ | {"HOME": str(home), "CI": ""}, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout) == (0, "(2, 2)\n"), run.stderr
    assert not (home / "intel").exists()
