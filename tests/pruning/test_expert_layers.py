"""Layers of experts: found in the course's model and in transformers', and refused with a reason elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compresslab.pruning.expert_layers import experts_at_work, find_moe_layers, read_router
from compresslab.workbench import models


class Layer(nn.Module):
    """The least that is one."""

    def __init__(self, experts: int = 3, top_k: int | None = 2, width: int = 4):
        super().__init__()
        self.router = nn.Linear(width, experts)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(experts))
        if top_k is not None:
            self.top_k = top_k


def random_moe(name: str, **options: int) -> nn.Module:
    """A tiny model of transformers with experts and random weights."""
    from compresslab.workbench import ao  # noqa: F401
    from compresslab.workbench.vision import torchvision

    torchvision()
    hf = pytest.importorskip("transformers")
    usual = {
        "vocab_size": 32, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 64, "pad_token_id": 0,
    }  # fmt: skip
    config, model = {
        "mixtral": (hf.MixtralConfig, hf.MixtralForCausalLM),
        "qwen2_moe": (hf.Qwen2MoeConfig, hf.Qwen2MoeForCausalLM),
        "gpt_oss": (hf.GptOssConfig, hf.GptOssForCausalLM),
        "deepseek_v3": (hf.DeepseekV3Config, hf.DeepseekV3ForCausalLM),
    }[name]
    if name == "qwen2_moe":
        usual |= {"num_experts": 4, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
    elif name == "deepseek_v3":
        usual |= {"n_routed_experts": 4, "moe_intermediate_size": 8, "first_k_dense_replace": 1, "kv_lora_rank": 4}
        usual |= {"q_lora_rank": 4, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
    else:
        usual |= {"num_local_experts": 4, "head_dim": 8}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        made = model(config(**usual | {"num_experts_per_tok": 2} | options))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return made.eval()


def test_the_courses_model():
    found = find_moe_layers(models.build("moe_gpt", depth=2, experts=5, top_k=3))
    assert list(found.layers) == ["blocks.0.moe", "blocks.1.moe"] and not found.unprunable
    layer = found.layers["blocks.1.moe"]
    assert (layer.router, layer.experts) == ("blocks.1.moe.router", "blocks.1.moe.experts")
    assert (layer.count, layer.top_k, layer.fused) == (5, 3, False)


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_fused_experts_of_transformers(name):
    found = find_moe_layers(random_moe(name))
    assert len(found.layers) == 2 and not found.unprunable
    assert all((layer.count, layer.top_k, layer.fused) == (4, 2, True) for layer in found.layers.values())


def test_groups_of_experts_are_refused():
    with pytest.raises(ValueError, match=r"model.layers.1.mlp.experts: its router chooses groups of experts first"):
        find_moe_layers(random_moe("deepseek_v3", n_group=2, topk_group=1))
    assert list(find_moe_layers(random_moe("deepseek_v3", n_group=1, topk_group=1)).layers) == ["model.layers.1.mlp"]


def test_as_many_blocks_as_classes_are_no_experts():
    model = models.build("vit", classes=3, depth=3)
    with pytest.raises(
        ValueError, match=r"must have a router with experts.*neither the layer nor its router has top_k"
    ):
        find_moe_layers(model)


def test_one_experts_layer_is_still_one():
    assert find_moe_layers(nn.Sequential(Layer(1, 1))).layers["0"].count == 1


def test_k_may_be_the_routers():
    layer = Layer(top_k=None)
    layer.router.num_experts_per_tok = 2
    found = find_moe_layers(layer).layers[""]
    assert found.top_k == 2
    layer.router.num_experts_per_tok = 1
    assert experts_at_work(layer, found) == 1


def second_router(layer):
    layer.other = nn.Linear(4, 3)


def no_router(layer):
    layer.router = nn.Linear(4, 7)


def odd_one(layer):
    layer.experts[1] = nn.Identity()


def large_k(layer):
    layer.top_k = 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (second_router, "0.experts: router, other all have 3 outputs"),
        (no_router, "0.experts: no Linear beside it has 3 outputs"),
        (odd_one, "0.experts: its modules are of several classes"),
        (large_k, r"0.experts: neither .* in 1..3, it has 4"),
        (lambda layer: delattr(layer, "top_k"), r"0.experts: neither .* it has None"),
    ],
)
def test_what_is_not_recognized_has_a_reason(change, reason):
    layer = Layer()
    change(layer)
    with pytest.raises(ValueError, match=reason):
        find_moe_layers(nn.Sequential(layer))
    beside = find_moe_layers(nn.Sequential(layer, Layer()))
    assert list(beside.layers) == ["1"] and list(beside.unprunable) == ["0.experts"]


@pytest.mark.parametrize("part", ["router", "experts"])
def test_shared_parts_are_refused(part):
    first, second = Layer(), Layer()
    setattr(second, part, getattr(first, part))
    found = find_moe_layers(nn.Sequential(first, second))
    assert list(found.layers) == ["0"]
    assert found.unprunable["1.experts"] == f"shares parameters with 0.{part}: what is cut here would be cut there"


def test_an_embedding_is_no_router():
    layer = Layer()
    layer.table = nn.Embedding(3, 4)
    assert find_moe_layers(layer).layers[""].router == "router"


def test_a_plain_model_and_a_broken_one_are_refused():
    with pytest.raises(ValueError, match=r"it has none .no list of experts beside one.; see find_moe_layers"):
        find_moe_layers(nn.Linear(2, 2))
    layer = Layer()
    layer.experts[2].bias.data[1] = torch.nan
    with pytest.raises(ValueError, match=r"experts.2.bias must be finite, got 1 NaN"):
        find_moe_layers(layer)


def test_a_model_without_values_can_be_looked_at():
    with torch.device("meta"):
        assert list(find_moe_layers(Layer()).layers) == [""]


def test_what_a_router_returns():
    logits, gates, chosen = torch.randn(5, 4), torch.rand(5, 2), torch.zeros(5, 2, dtype=torch.int64)
    read = read_router((logits, gates, chosen), 2)
    assert read[0] is not None and torch.equal(read[1], chosen) and torch.equal(read[2], gates) and read[3]
    probs = logits.softmax(-1)
    for shape in ((5, 4), (5, 1, 4)):
        _, found, weights, said = read_router(logits.view(shape), 2)
        assert torch.equal(found, probs.argsort(1, descending=True)[:, :2]) and not said
        assert torch.equal(weights, probs.gather(1, found))
    for wrong in ((logits, gates), {"logits": logits}, (logits, gates[:, :1], chosen), (logits, gates, chosen, chosen)):
        with pytest.raises(ValueError, match=r"a router must return logits, or logits, gates and chosen"):
            read_router(wrong, 2)
