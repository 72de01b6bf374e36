"""Factorized embeddings: what a lookup gives, heads that are tied, and who is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compresslab.factorization import FactorizedEmbedding, decompose, factorize_embeddings
from compresslab.testing import check_compressor, hostile
from compresslab.workbench import models


def test_lookup_by_hand():
    table = FactorizedEmbedding(torch.tensor([[1.0], [2.0], [0.0]]), torch.tensor([[3.0, -1.0]]))
    assert table(torch.tensor([[1, 0]])).tolist() == [[[6.0, -2.0], [3.0, -1.0]]]
    assert table.weight.tolist() == [[3.0, -1.0], [6.0, -2.0], [0.0, 0.0]] and table.num_embeddings == 3


def test_a_tied_head_gets_the_same_factors():
    model = models.build("gpt", width=32, depth=1)
    result = factorize_embeddings(model, 8)
    new = result.model
    assert result.ranks == {"embed": (8,), "pos_embed": (8,), "head": (8,)}
    assert new.head.codes is new.embed.codes and new.head.basis is new.embed.basis
    assert result.parameters_before - result.parameters == (256 * 32 - 8 * 288) + (128 * 32 - 8 * 160)
    left, right = decompose(model.embed.weight).factors(8)
    reference = models.build("gpt", width=32, depth=1)
    reference.load_state_dict(model.state_dict())
    with torch.no_grad():
        reference.embed.weight.copy_(left @ right)
        reference.pos_embed.weight.copy_(torch.mm(*decompose(model.pos_embed.weight).factors(8)))
        tokens = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(0))
        assert torch.allclose(new(tokens), reference(tokens), atol=1e-4)
    new(tokens).sum().backward()
    assert new.embed.codes.grad is not None and new.pos_embed.basis.grad is not None


def test_padding_bias_and_two_tables_that_are_one():
    first, second = nn.Embedding(50, 8, padding_idx=3), nn.Embedding(50, 8)
    second.weight = first.weight
    head = nn.Linear(8, 50)
    head.weight = first.weight
    model = nn.ModuleList([first, second, head])
    new = factorize_embeddings(model, 2).model
    assert new[0].codes is new[1].codes is new[2].codes
    assert new[0].padding_idx == 3 and new[1].padding_idx is None
    assert torch.equal(new[2].bias, head.bias) and new[2].bias is not head.bias
    x = torch.randn(4, 8)
    assert torch.allclose(new[2](x), x @ new[2].weight.T + head.bias, atol=1e-5)
    new[0](torch.tensor([3, 4])).sum().backward()
    assert not new[0].codes.grad[3].any() and new[0].codes.grad[4].any()


def test_who_is_left_alone():
    odd = nn.Embedding(50, 8)
    odd.weight = nn.Parameter(torch.ones(50, 8))
    bag = nn.EmbeddingBag(50, 8)
    bag.weight = odd.weight
    hooked = nn.Embedding(50, 8)
    hooked.register_forward_hook(lambda *args: None)
    tables = [nn.Embedding(50, 8), nn.Embedding(50, 8, max_norm=1.0), nn.Embedding(4, 8), odd, bag, hooked]
    result = factorize_embeddings(nn.ModuleList(tables), 4)
    assert list(result.ranks) == ["0"]
    assert result.skipped == {
        "1": "max_norm, sparse and scale_grad_by_freq change how rows are looked up",
        "2": "rank 4 saves nothing: (4, 8) breaks even below 3",
        "3": "it is tied to EmbeddingBag",
        "4": "EmbeddingBag: only Embedding is replaced",
        "5": "it has hooks, which would be lost",
    }
    with pytest.raises(ValueError, match="rank=0 must be a whole number"):
        factorize_embeddings(nn.Embedding(50, 8), 0)


def test_the_common_checks():
    verdicts = check_compressor(lambda model, batches: factorize_embeddings(model, 2).model, must_accept=["tied"])
    assert {verdict.model for verdict in verdicts if verdict.outcome == "right"} == {"embedding", "tied"}
    assert hostile("tied").model.head.weight is not None
