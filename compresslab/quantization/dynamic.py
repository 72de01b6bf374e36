"""Dynamic quantization: weights stored as 8-bit integers, activations measured and quantized while the model runs.

No calibration data: each forward takes the range of what it is given, of the whole tensor or of each token (row). The
product is then one of integers,

    y_to = s_t s_o sum_i a_ti w_oi + b_o        a, w: 8-bit levels; the sum: 32 bits, exact

Beside ``weight_only.py`` the activations are rounded too; beside static quantization nothing is known in advance, so
every layer pays for a pass over its input. Only Linear layers are worth it, and only they are replaced.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compresslab.quantization.affine import check_finite, quantize

__all__ = ["Dynamic", "DynamicLinear", "integer_matmul", "quantize_dynamic"]


@dataclass(frozen=True, eq=False)
class Dynamic:
    """A model whose Linear layers compute with integers."""

    model: nn.Module  # a new model
    replaced: tuple[str, ...]  # layers that are DynamicLinear now
    skipped: dict[str, str]  # layers with weights that were left: why


def integer_matmul(a: Tensor, b: Tensor) -> Tensor:
    """The product of two int8 matrices, summed in 32 bits, exactly.

    Args:
        a: (M, K) int8.
        b: (K, N) int8. K at most 131,000, or a sum may not fit into 32 bits.

    Returns:
        (M, N) int32.

    Example:
        >>> a = torch.tensor([[100, 100]], dtype=torch.int8)
        >>> integer_matmul(a, a.T).tolist()
        [[20000]]
    """
    if a.is_cpu and a.numel() and b.numel():
        return torch._int_mm(a, b)
    return (a.double() @ b.double()).to(torch.int32)  # float64 holds every such sum exactly


class DynamicLinear(nn.Module):
    """A Linear layer with 8-bit weights, one scale for each output, that quantizes its input as it comes.

    Args:
        linear: the layer to take the weights from; finite.
        per_token: a scale for each row of the input, or one for all of it.

    Example:
        >>> linear = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.constant_(linear.weight, 1.0)
        >>> DynamicLinear(linear)(torch.tensor([[127.0, 3.4]])).tolist()  # 127 + 3
        [[130.0]]
    """

    def __init__(self, linear: nn.Linear, *, per_token: bool = True) -> None:
        super().__init__()
        quantized = quantize(linear.weight, axis=0)
        self.per_token, self.out_features = per_token, linear.out_features
        self.register_buffer("levels", quantized.levels)  # (O, I) int8
        self.register_buffer("scale", quantized.scale)  # (O,)
        bias = None if linear.bias is None else linear.bias.detach().to(quantized.scale.dtype, copy=True)
        self.register_buffer("bias", bias)
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:  # (..., I) -> (..., O)
        """The layer's output in the dtype of ``x``."""
        rows = quantize(x.reshape(-1, x.shape[-1]), axis=0 if self.per_token else None)
        y = integer_matmul(rows.levels, self.levels.T) * (rows.scale.reshape(-1, 1) * self.scale)
        y = y if self.bias is None else y + self.bias
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)


def quantize_dynamic(model: nn.Module, *, per_token: bool = True, skip: Collection[str] = ()) -> Dynamic:
    """A new model whose Linear layers are ``DynamicLinear``, with a list of the layers that are not.

    Args:
        model: any module; it is not run.
        per_token: a scale for each row of an input, or one for all of it.
        skip: names of Linear layers to leave as they are.

    Raises:
        ValueError: a weight is not finite, a name in ``skip`` is unknown, or there is no Linear layer to replace.

    Example:
        >>> quantize_dynamic(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4, 2))).skipped
        {'0': 'Conv2d: only Linear layers are replaced'}
    """
    for name, parameter in model.named_parameters():
        check_finite(parameter, name)
    result = copy.deepcopy(model)
    layers = {
        name: module
        for name, module in result.named_modules(remove_duplicate=False)
        if any(True for _ in module.parameters(recurse=False))
    }
    if unknown := [name for name in skip if name not in layers]:
        raise ValueError(f"skip={unknown} must be layers of the model; choose from {list(layers)}")
    left = {id(layers[name]) for name in skip}
    owners = Counter(
        id(module.weight) for module in set(layers.values()) if isinstance(getattr(module, "weight", None), Tensor)
    )
    new, replaced, skipped = {}, [], {}
    for name, module in layers.items():
        if type(module) is not nn.Linear:
            skipped[name] = f"{type(module).__name__}: only Linear layers are replaced"
        elif id(module) in left:
            skipped[name] = "left out by the caller"
        elif owners[id(module.weight)] > 1:
            skipped[name] = "its weight is shared with another layer; weight-only quantization keeps the tie"
        else:
            new.setdefault(id(module), DynamicLinear(module, per_token=per_token))
            if name:
                result.set_submodule(name, new[id(module)])
            else:  # the model is one Linear layer
                result = new[id(module)]
            replaced.append(name)
    if not replaced:
        raise ValueError(f"{type(model).__name__} has no Linear layer to replace: {skipped or 'it has no weights'}")
    return Dynamic(result, tuple(replaced), skipped)
