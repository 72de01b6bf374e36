"""The small models of the course. Each file is one architecture, written to be read.

    mlp         matrices alone                  vit         image patches through transformer blocks
    vgg         plain convolutions              gpt         decoder that predicts the next byte
    resnet      residual, the baseline          moe_gpt     the same with routed experts
    separable   depthwise and pointwise         lstm, gru   recurrent

``build`` makes one by name and leaves in ``model.config`` what makes it again.
"""

from __future__ import annotations

import inspect

import torch
from torch import nn

from compresslab.workbench.models.gpt import GPT
from compresslab.workbench.models.mlp import MLP
from compresslab.workbench.models.moe import MoEGPT
from compresslab.workbench.models.resnet import ResNet
from compresslab.workbench.models.rnn import gru, lstm
from compresslab.workbench.models.separable import SeparableNet
from compresslab.workbench.models.vgg import VGG
from compresslab.workbench.models.vit import ViT

__all__ = ["ARCHITECTURES", "build"]

ARCHITECTURES = {
    "mlp": MLP,
    "vgg": VGG,
    "resnet": ResNet,
    "separable": SeparableNet,
    "vit": ViT,
    "gpt": GPT,
    "moe_gpt": MoEGPT,
    "lstm": lstm,
    "gru": gru,
}


def build(architecture: str, *, generator: torch.Generator | None = None, **config: int | float | str) -> nn.Module:
    """A new model with fresh weights, in train mode; ``build(**model.config)`` makes the same one again.

    Args:
        architecture: one of ``ARCHITECTURES``.
        generator: where the weights come from; the same state gives the same weights, and the global random state is
            left alone. Without one, those of seed 0.
        **config: options of the architecture (``help(ResNet)`` names them). Whole numbers are at least 1.

    Returns:
        The model on the CPU. Its ``config`` is a dict that JSON can hold, with every option.

    Raises:
        ValueError: no such architecture or option, or a value that does not fit it.

    Example:
        >>> model = build("resnet", width=8, depth=1)
        >>> model.config["architecture"], model.config["width"], model.config["classes"]
        ('resnet', 8, 62)
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture={architecture!r} is not known; the names are {', '.join(ARCHITECTURES)}")
    make = ARCHITECTURES[architecture]
    options = {name: parameter.default for name, parameter in inspect.signature(make).parameters.items()}
    for name, value in config.items():
        if name not in options:
            raise ValueError(f"{architecture} has no option {name}={value!r}; its options are {', '.join(options)}")
        _check(architecture, name, value, type(options[name]))
    options |= config
    seed = 0 if generator is None else int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = make(**options)
    model.config = {"architecture": architecture, **options}
    return model


def _check(architecture: str, name: str, value: object, kind: type) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int and not (number and isinstance(value, int) and value >= 1):
        raise ValueError(f"{architecture}: {name}={value!r} must be a whole number, at least 1")
    if kind is float and not (number and 0 <= value < float("inf")):
        raise ValueError(f"{architecture}: {name}={value!r} must be a finite number, at least 0")
