"""torchao, imported without the noise that its import makes beside a CPU build of torch.

Its graph flow for post-training quantization (PT2E) and its QAT for linear layers: ``ao.prepare_pt2e(...)``,
``ao.quantize_(model, ao.QATConfig(...))``; what they do is described in torchao's documentation. torchao looks for CUDA extensions and for an old
registry of torch, and logs a warning for each that is not there; none is needed here.
"""

from __future__ import annotations

import logging

__all__ = [
    "Int8WeightOnlyConfig", "IntxWeightOnlyConfig", "PerGroup", "QATConfig", "X86InductorQuantizer", "convert_pt2e",
    "get_default_x86_inductor_quantization_config", "gptq", "prepare_pt2e", "quantize_",
]  # fmt: skip

_noisy = {name: logging.getLogger(name).level for name in ("torchao", "torch.utils._pytree")}
try:
    for _name in _noisy:
        logging.getLogger(_name).setLevel(logging.ERROR)
    from torchao.prototype.gptq import api as gptq
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup, quantize_
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )
    from torchao.quantization.qat import QATConfig
finally:
    for _name, _level in _noisy.items():
        logging.getLogger(_name).setLevel(_level)
