"""Heads: against zeroed columns of the output projection, in torch's layer, transformers and the course's models."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from compresslab.pruning.heads import attention_heads, prune_heads
from compresslab.pruning.proof import assert_same_function
from compresslab.pruning.surgery import SlimAttention
from compresslab.workbench import models
from compresslab.workbench.hf import random_transformer

TOKENS = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(0))
WIDTH = 8  # of a head, in all models here


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# model, attention layer, output projection, is its weight stored (in, out), query heads that share a key-value head
CASES = {
    "vit": ("blocks.1.attn", "proj", False, 1), "gpt": ("blocks.1.attn", "proj", False, 1),
    "bert": ("encoder.layer.1.attention", "output.dense", False, 1),
    "gpt2": ("transformer.h.1.attn", "c_proj", True, 1), "opt": ("model.decoder.layers.1.self_attn", "out_proj", False, 1),
    "llama": ("model.layers.1.self_attn", "o_proj", False, 2), "qwen2": ("model.layers.1.self_attn", "o_proj", False, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_equal_to_zeroed_columns_of_the_output_projection(name):
    layer, projection, stored_by_input, shared = CASES[name]
    if name in ("vit", "gpt"):
        model = models.build(name, width=4 * WIDTH, heads=4, depth=2).eval()
        inputs = noise(2, 1, 32, 32) if name == "vit" else TOKENS
    else:
        model, inputs = random_transformer(name), {"input_ids": TOKENS}
    count = 4 // shared
    assert attention_heads(model, inputs)[layer] == count
    gone = [0] if count == 2 else [1, 2]
    pruned = prune_heads(model, inputs, {layer: gone})
    masked = copy.deepcopy(model)
    weight = masked.get_parameter(f"{layer}.{projection}.weight").data
    weight = weight if stored_by_input else weight.T
    for head in gone:
        weight[head * shared * WIDTH : (head + 1) * shared * WIDTH] = 0
    with torch.no_grad():
        wanted, found = (
            (m.double()(**inputs)[0] if isinstance(inputs, dict) else m.double()(inputs.double() if name == "vit" else inputs))
            for m in (masked, copy.deepcopy(pruned.model))
        )  # fmt: skip
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)
    assert assert_same_function(model, pruned, inputs).moved > 1e-3
    assert attention_heads(pruned.model, inputs).get(layer, 1) == count - len(gone)  # a single one cannot go


class Wrapped(nn.Module):
    """torch's layer with all that its call takes."""

    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 4, **options)
        self.options: dict = {}

    def forward(self, x):
        return self.attention(x, x.flip(0), x + 1, **self.options)


FLOATS = noise(5, 5)
PADDING = torch.tensor([[False] * 5, [False, False, False, True, True]])
CALLS = {
    "weights of each head": ({"batch_first": True}, {"average_attn_weights": False}, (2, 5, 12)),
    "without bias": ({"batch_first": True, "bias": False}, {"need_weights": False}, (2, 5, 12)),
    "sequence first": ({}, {}, (5, 2, 12)),
    "no batch": ({}, {"need_weights": False}, (5, 12)),
    "a mask of floats": ({"batch_first": True}, {"attn_mask": FLOATS, "need_weights": False}, (2, 5, 12)),
    "a bool mask and padding": (
        {"batch_first": True},
        {"attn_mask": torch.ones(5, 5).triu(1).bool(), "key_padding_mask": PADDING},
        (2, 5, 12),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_slim_layer_does_what_torchs_layer_does(name):
    """With all heads it is equal to it, so that without some it is equal to it with their columns zeroed."""
    made, options, shape = CALLS[name]
    model, x = Wrapped(**made).eval(), noise(*shape)
    model.options = options
    slim = copy.deepcopy(model)
    slim.attention.__class__ = SlimAttention
    wanted, found = model(x), slim(x)
    torch.testing.assert_close(found[0], wanted[0])
    assert (found[1] is None) == (wanted[1] is None)
    if wanted[1] is not None:
        torch.testing.assert_close(found[1], wanted[1])
    if "average_attn_weights" not in options and "attn_mask" not in options:
        model.options = options | {"need_weights": False}
        pruned = prune_heads(model, x, {"attention": [1]})
        assert (pruned.model.attention.num_heads, type(pruned.model.attention)) == (3, SlimAttention)
        assert_same_function(model, pruned, x)


def test_torchs_encoder_layer_loses_heads():
    """Its fused path wants all heads; the slim layer keeps it off."""
    model = nn.TransformerEncoderLayer(12, 4, 16, batch_first=True).eval()
    x = noise(2, 5, 12)
    pruned = prune_heads(model, x, {"self_attn": [0, 3]})
    assert_same_function(model, pruned, x)
    with torch.inference_mode():
        torch.testing.assert_close(pruned.model(x), pruned.model.requires_grad_(True)(x))


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        (
            {"blocks.9.attn": [0]},
            "'blocks.9.attn' is no layer whose heads can go; those are blocks.0.attn, blocks.1.attn",
        ),
        ({"blocks.0.attn": [4]}, r"heads \[4\] of blocks.0.attn must be among 0..3"),
        ({"blocks.0.attn": [0, 1, 2, 3]}, r"heads \[0, 1, 2, 3\] of blocks.0.attn are all it has; keep one"),
        ({}, "nothing is left to remove"),
    ],
)
def test_what_is_refused(heads, message):
    with pytest.raises(ValueError, match=message):
        prune_heads(models.build("vit", width=32, heads=4, depth=2), noise(1, 1, 32, 32), heads)
