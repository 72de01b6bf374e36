"""A smaller copy of a model: parameters and buffers keep some indices of some axes, and layers learn their new sizes.

Layers store their sizes twice, in their weights and as plain numbers. The numbers of torch's layers are set from the
new weights; a layer of another library with the usual names for its numbers is treated alike.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compresslab.pruning.copying import copied, shadow
from compresslab.pruning.running import named_tensors

__all__ = ["Kept", "SlimAttention", "cut"]

Kept = Mapping[str, Mapping[int, Tensor]]  # parameter or buffer: axis: indices that stay, ascending

# Numbers that repeat the size of an axis of the layer's own tensors.
SIZES = {
    ("weight", 0): ("out_features", "num_features", "num_parameters", "nx"),
    ("weight", 1): ("in_features", "embedding_dim", "nf"),
    ("running_mean", 0): ("num_features",),
}


def cut(model: nn.Module, kept: Kept, *, values: bool = True) -> nn.Module:
    """A new model whose tensors hold only what is kept.

    Args:
        model: is left as it is.
        kept: indices that stay, by name and axis; other tensors are copied whole.
        values: False for a model to be run for its sizes: matrices and kernels that were cut are zeros that take no
            memory, and other parameters have those of the given model.

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> cut(layer, {"weight": {0: torch.tensor([0, 2])}, "bias": {0: torch.tensor([0, 2])}})
        Linear(in_features=2, out_features=2, bias=True)
    """
    smaller: dict[int, Tensor] = {}
    for name, tensor in named_tensors(model).items():
        if name in kept and id(tensor) not in smaller:
            smaller[id(tensor)] = _part(tensor, kept[name], values or tensor.dim() < 2)
    # What is in the memo is taken from there, under every name it has.
    result = copied(model, smaller) if values else shadow(model, smaller)
    before = dict(model.named_modules())
    for name, module in result.named_modules():
        own = {local: kept.get(f"{name}.{local}".removeprefix("."), {}) for local, _ in _own(module)}
        if any(own.values()):
            _resize(module, before[name], own)
        # transformers' attention: sizes of query, key and value, written down beside the layers
        if hasattr(module, "split_size") and hasattr(module, "c_attn"):
            module.split_size = module.c_attn.weight.shape[1] // 3
        if hasattr(module, "num_heads") and hasattr(module, "head_dim") and hasattr(module, "q_proj"):
            module.num_heads = module.q_proj.weight.shape[0] // module.head_dim
    return result


def _part(tensor: Tensor, kept: Mapping[int, Tensor], values: bool) -> Tensor:
    part = tensor.detach()
    if values or not part.is_floating_point():
        for axis, indices in kept.items():
            part = part.index_select(axis, indices.to(part.device))
    else:
        part = part.new_zeros(()).expand([len(kept.get(axis, range(size))) for axis, size in enumerate(part.shape)])
    return nn.Parameter(part, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else part


def _own(module: nn.Module) -> list[tuple[str, Tensor]]:
    tensors = [*module.named_parameters(recurse=False, remove_duplicate=False),
               *module.named_buffers(recurse=False, remove_duplicate=False)]  # fmt: skip
    if isinstance(module, nn.MultiheadAttention):  # it passes this layer's weight on, past its forward
        tensors += [(f"out_proj.{name}", parameter) for name, parameter in module.out_proj.named_parameters()]
    return tensors


def _resize(module: nn.Module, before: nn.Module, kept: Kept) -> None:
    """Set the sizes that a module stores; ``kept`` is of its own tensors."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.modules.conv._ConvNd):
        module.groups = _groups_left(before.groups, len(before.weight), kept["weight"].get(0))
        if module.transposed:
            module.in_channels, module.out_channels = weight.shape[0], weight.shape[1] * module.groups
        else:
            module.in_channels, module.out_channels = weight.shape[1] * module.groups, weight.shape[0]
    elif isinstance(module, nn.GroupNorm):
        module.num_groups = _groups_left(before.num_groups, before.num_channels, kept["weight"].get(0))
        module.num_channels = len(weight)
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.MultiheadAttention):
        _resize_attention(module, before)
    elif isinstance(module, nn.RNNBase):
        module.hidden_size, module.input_size = module.weight_hh_l0.shape[1], module.weight_ih_l0.shape[1]
    else:
        old = dict(_own(before))
        for local, tensor in _own(module):
            for axis, size in enumerate(old[local].shape):
                for attribute in SIZES.get((local, axis), ()):
                    if getattr(module, attribute, None) == size:
                        setattr(module, attribute, tensor.shape[axis])


def _groups_left(groups: int, channels: int, kept: Tensor | None) -> int:
    """How many groups are left: those kept whole, or all if each has lost the same."""
    if kept is None:
        return groups
    left = (kept // (channels // groups)).bincount(minlength=groups)
    whole = left == channels // groups
    return int(whole.sum()) if bool((whole | (left == 0)).all()) else groups


class SlimAttention(nn.MultiheadAttention):
    """Multi-head attention whose heads together need not be as wide as its input.

    ``nn.MultiheadAttention`` takes the width of a head to be ``embed_dim / num_heads``, so heads cannot go from it.
    Its names and its call stay; self-attention and cross-attention of one width.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As the class it stands for."""
        flip = not self.batch_first and query.dim() == 3
        inputs = [x.transpose(0, 1) if flip else x for x in (query, key, value)]  # (B, L, D) or (L, D)
        biases = self.in_proj_bias.chunk(3) if self.in_proj_bias is not None else (None,) * 3
        projected = (F.linear(*part) for part in zip(inputs, self.in_proj_weight.chunk(3), biases, strict=True))
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)).transpose(-2, -3) for x in projected)  # (B, H, L, head_dim)
        mask = _as_bias(attn_mask, q)
        if mask is not None and mask.dim() == 3 and q.dim() == 4:
            mask = mask.unflatten(0, (q.shape[0], -1))  # (B * H, L, S) was for all heads
        padding = _as_bias(key_padding_mask, q)
        if padding is not None:
            padding = padding[..., None, None, :]  # (B, 1, 1, S)
            mask = padding if mask is None else mask + padding
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.mT / self.head_dim**0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            y = F.dropout(weights, dropout, self.training) @ v
            weights = weights.mean(-3) if average_attn_weights else weights
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal and mask is None)
        y = self.out_proj(y.transpose(-2, -3).flatten(-2))
        return (y.transpose(0, 1) if flip else y), weights


def _as_bias(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """A mask as numbers to add: -inf where a bool mask is True."""
    if mask is None or mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -torch.inf)


def _resize_attention(module: nn.MultiheadAttention, before: nn.MultiheadAttention) -> None:
    rows, width = module.in_proj_weight.shape
    module.embed_dim = module.kdim = module.vdim = width
    module.num_heads = rows // 3 // before.head_dim
    if module.num_heads != before.num_heads or width != before.embed_dim:
        module.__class__ = SlimAttention
        module._qkv_same_embed_dim = False  # keeps nn.TransformerEncoderLayer off its fused path, which wants all heads
    module.out_proj.in_features, module.out_proj.out_features = rows // 3, width
