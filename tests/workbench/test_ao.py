"""torchao's graph flow runs here, and importing it says nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

pytest.importorskip("torchao")


def test_the_import_is_quiet_and_leaves_the_loggers_alone():
    code = (
        "import logging, compresslab.workbench.ao\n"
        "print([logging.getLogger(name).level for name in ('torchao', 'torch.utils._pytree')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split("\n")[0] == "[0, 0]"
    assert run.stderr == ""


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_small_network_is_quantized():
    from compresslab.workbench import ao

    model, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval(), torch.rand(32, 8)
    exported = torch.export.export(model, (x,)).module()
    quantizer = ao.X86InductorQuantizer().set_global(ao.get_default_x86_inductor_quantization_config())
    prepared = ao.prepare_pt2e(exported, quantizer)
    prepared(x)
    result = ao.convert_pt2e(prepared)(x)
    error = (result - model(x)).abs().max()
    assert 0 < error < 0.05 * model(x).abs().max()
