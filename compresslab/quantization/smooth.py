"""SmoothQuant: a few loud activation channels are turned down, and the weights that read them up, before both are rounded.

With one scale for a token or for the whole tensor, one channel sixty times as loud as the others leaves those two or
three levels. A scale for each channel cannot be taken out of the sum over channels, but it can be moved into the weights
(W diag(s)) (diag(s)^-1 x), and there rounding has room to spare:

    s_j = max |x_j|^alpha / max_i |W_ij|^(1 - alpha)                                                     (equation 4)

with the largest weight of all layers that read the input. alpha = 1 makes all activation channels equally loud and
leaves the weights with the trouble, alpha = 0 all columns of the weights, without looking at the activations: worse
than nothing. The function of the model stays. Then quantize weights and activations, with ``quantize_dynamic`` say;
calibrate after smoothing, not before.

    Xiao, Lin, Seznec, Wu, Demouth and Han, "SmoothQuant: accurate and efficient post-training quantization for large
    language models", 2022, https://arxiv.org/abs/2211.10438, section 4
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compresslab.quantization.affine import check_finite
from compresslab.quantization.joints import find_joints, move_scales, visit_inputs
from compresslab.quantization.layer_samples import inputs_of

__all__ = ["Smoothed", "smooth_model", "smoothing_scales"]


@dataclass(frozen=True, eq=False)
class Smoothed:
    """A model of the same function, still in floating point, whose activations are easier to round."""

    model: nn.Module  # a new model
    scales: dict[tuple[str, ...], Tensor]  # by the layers that share an input, (I,): what it was divided by
    unsmoothed: dict[str, str]  # Linear layer: why its input stayed as it was


def smoothing_scales(weights: Sequence[Tensor], largest: Tensor, *, alpha: float = 0.5) -> Tensor:
    """What to divide each channel of an input by, 1 where it is always 0 or no weight reads it.

    Args:
        weights: (O, I) each, of all layers that read the input.
        largest: (I,) maximum of |x_j|.
        alpha: 0..1, how much of the difficulty goes into the weights; 0.5, and more where activations are worse.

    Returns:
        (I,), greater than 0, float32 or wider.

    Raises:
        ValueError: ``alpha`` is out of range, ``largest`` is not finite or negative, or shapes do not fit.

    Example:
        >>> smoothing_scales([torch.tensor([[4.0, -1.0], [1.0, 0.0]])], torch.tensor([1.0, 16.0])).tolist()
        [0.5, 4.0]
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} must be in 0..1; try 0.5")
    check_finite(largest, "largest")
    if (largest < 0).any():
        raise ValueError(f"largest must be at least 0, got {largest.min():g}; pass maxima of magnitudes")
    if not weights or any(weight.shape[1:] != largest.shape for weight in weights):
        shapes = [tuple(weight.shape) for weight in weights]
        raise ValueError(f"weights (O, I) must fit the channels {tuple(largest.shape)}, got {shapes}")
    columns = torch.stack([weight.detach().abs().amax(0) for weight in weights]).amax(0)
    dtype = torch.promote_types(columns.dtype, torch.float32)
    scales = largest.to(dtype) ** alpha / columns.to(dtype) ** (1 - alpha)
    return torch.where((largest > 0) & (columns > 0), scales, 1)


def smooth_model(model: nn.Module, batches: Iterable, *, alpha: float = 0.5) -> Smoothed:
    """A new model of the same function in eval mode, smoothed wherever a layer before can take the scales.

    Args:
        model: any module, run in eval mode.
        batches: of (inputs, labels), the labels are not used. The largest value counts, so one odd sample decides.
        alpha: as in ``smoothing_scales``.

    Raises:
        ValueError: ``alpha`` is out of range, a weight or input is not finite, there is no batch, no Linear layer, or
            none whose input can be scaled.

    Example:
        >>> model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 2))
        >>> result = smooth_model(model, [(torch.rand(64, 8), None)])
        >>> list(result.scales), list(result.unsmoothed)
        ([('1',)], ['3'])
    """
    for name, parameter in model.named_parameters():
        check_finite(parameter, name)
    batches = inputs_of(batches)
    joints = find_joints(model, batches[0])
    if not joints.found:
        raise ValueError(f"{type(model).__name__} has no Linear layer whose input can be scaled: {joints.unjoined}")
    result, largest = copy.deepcopy(model).eval(), {}

    def keep(name: str, rows: Tensor) -> None:
        found = torch.cat([rows.abs(), rows.new_zeros(1, rows.shape[1])]).amax(0)  # a layer may get no row at all
        largest[name] = torch.maximum(found, largest.get(name, found))

    visit_inputs(result, [name for joint in joints.found for name in joint.layers], batches, keep)
    scales = {}
    for joint in reversed(joints.found):  # what is divided into the rows of a layer comes before its own columns
        weights = [result.get_submodule(name).weight for name in joint.layers]
        loudest = torch.stack([largest[name] for name in joint.layers]).amax(0)
        scales[joint.layers] = smoothing_scales(weights, loudest, alpha=alpha)
        move_scales(result, joint, scales[joint.layers])
    for name, module in model.named_modules():
        result.get_submodule(name).training = module.training
    return Smoothed(result, scales, joints.unjoined)
