"""Blocks that do nothing go first; a model without a block is the block replaced by nothing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compresslab.pruning.depth import angular_distances, block_influences, prune_depth, remove_blocks
from compresslab.testing import check_compressor
from compresslab.workbench import models
from compresslab.workbench.hf import random_transformer

TOKENS = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(0))


def turn(angle: float) -> nn.Linear:
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return layer


BATCHES = [(torch.tensor([[1.0, 0.0], [3.0, 4.0]]), None), (torch.tensor([[0.0, 2.0]]), None)]


def test_by_hand():
    """Turns by 60, 0 and 90 degrees: 1 - cos is 1/2, 0 and 1; runs of two turn by 60 and 90 of 180 degrees."""
    model = nn.Sequential(turn(math.pi / 3), turn(0.0), turn(math.pi / 2))
    expected = torch.tensor([0.5, 0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(block_influences(model, BATCHES, ""), expected, atol=1e-6, rtol=0)
    expected = torch.tensor([1 / 3, 0.5], dtype=torch.float64)
    torch.testing.assert_close(angular_distances(model, BATCHES, "", count=2), expected, atol=1e-6, rtol=0)
    assert prune_depth(model, BATCHES, "", count=1).kept == [0, 2]
    assert prune_depth(model, BATCHES, "", count=2, method="angle").kept == [2]


@settings(derandomize=True, deadline=None, max_examples=20)
@given(st.lists(st.floats(0, 3), min_size=2, max_size=5), st.floats(0.1, 10))
def test_neither_lengths_nor_batches_count(angles, scale):
    model = nn.Sequential(*map(turn, angles))
    x = torch.cat([x for x, _ in BATCHES])
    first = block_influences(model, BATCHES, "")
    torch.testing.assert_close(first, block_influences(model, [(scale * x, None)], ""), atol=1e-5, rtol=0)
    torch.testing.assert_close(first, 1 - torch.tensor(angles, dtype=torch.float64).cos(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["gpt", "vit"])
def test_a_model_without_blocks_skips_them(name):
    model = models.build(name, depth=3, width=32, heads=4).eval()
    x = TOKENS if name == "gpt" else torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    short = remove_blocks(model, "blocks", [1])
    model.blocks[1] = nn.Identity()
    assert torch.equal(short(x), model(x))


def test_transformers_know_their_new_depth():
    model = random_transformer("llama")
    short = prune_depth(model, [(TOKENS, None)], "model.layers", count=1).model
    assert (short.config.num_hidden_layers, model.config.num_hidden_layers) == (1, 2)
    assert [layer.self_attn.layer_idx for layer in short.model.layers] == [0]
    with torch.no_grad():  # with a cache of the right depth
        assert torch.allclose(short(TOKENS).logits, short(TOKENS, use_cache=False).logits)


def test_blocks_that_change_the_shape_stay():
    model = models.build("resnet", depth=2, width=8).eval()
    batches = [(torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)), None)]
    scores = block_influences(model, batches, "layer2")
    assert scores[0] == math.inf
    assert 0 < scores[1] < 1
    found = prune_depth(model, batches, "layer2", count=1)
    assert found.kept == [0]
    assert found.model(batches[0][0]).shape == (2, 62)
    assert prune_depth(model, batches, "layer2", count=1, method="angle").kept == [0]
    mixed = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"count=2 is too many: some of these blocks change the shape; \[.*inf, inf\]"):
        prune_depth(mixed, BATCHES, "", count=2)


def test_what_is_refused():
    model = nn.Sequential(turn(0.0), turn(1.0))
    with pytest.raises(ValueError, match=r"'layers' is no nn.Sequential or nn.ModuleList of the model; those are ''"):
        block_influences(model, BATCHES, "layers")
    with pytest.raises(ValueError, match="count=2 must be at least 1 and below the number of blocks"):
        angular_distances(model, BATCHES, "", count=2)
    with pytest.raises(ValueError, match="count=0 must be at least 1"):
        prune_depth(model, BATCHES, "", count=0)
    with pytest.raises(ValueError, match="method='cosine' must be 'influence' or 'angle'"):
        prune_depth(model, BATCHES, "", count=1, method="cosine")
    with pytest.raises(ValueError, match=r"blocks \[2\] are not there; the model has 0..1"):
        remove_blocks(model, "", [2])
    with pytest.raises(ValueError, match=r"numbers=\[0, 1\] are all blocks; keep one"):
        remove_blocks(model, "", [0, 1])
    with pytest.raises(ValueError, match="batches holds no batch"):
        block_influences(model, [], "")


def test_hostile_models():
    """Two blocks in front of each model; one goes. The wrapper is the compressed model's own."""

    class Front(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.blocks, self.model = nn.ModuleList([nn.Identity(), nn.Identity()]), model

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x)
            return self.model(x)

    def compress(model: nn.Module, batches) -> nn.Module:
        for name, parameter in model.named_parameters():
            if parameter.is_meta or not parameter.isfinite().all():
                raise ValueError(f"{name} holds values that are not finite or not there; load the weights")
        if not any(True for _ in model.parameters()):
            raise ValueError("the model has no parameters; there is nothing to prune in it")
        front = Front(model)
        front.training = model.training
        if next(iter(batches := list(batches)), (torch.zeros(1),))[0].dtype == torch.int64:
            raise ValueError("tokens pass through no block in this test; there is nothing to measure")
        return prune_depth(front, batches, "blocks", count=1).model

    assert any(verdict.outcome == "right" for verdict in check_compressor(compress))
