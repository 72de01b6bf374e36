"""Hugging Face's transformers, small and random: every method finds its layers by what they do, not by their names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from compresslab.measure import sqnr_db
from compresslab.quantization import awq_model, gptq_model, quantize_dynamic, quantize_weights, smooth_model
from compresslab.quantization.transposed import use_linear_layers
from compresslab.workbench.hf import NAMES, random_transformer

OPTIONS = {"bits": 3, "group_size": 16, "symmetric": False}


def tokens(seed: int, count: int = 3) -> list[tuple[torch.Tensor, None]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randint(0, 64, (8, 24), generator=generator), None) for _ in range(count)]


def output(model: nn.Module, batches: list) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model(inputs)[0] for inputs, _ in batches])


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    found = random_transformer(request.param)
    return use_linear_layers(found).model if request.param == "gpt2" else found


def linears(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def test_gptq_is_closer_than_rounding_in_every_layer(model):
    result = gptq_model(model, tokens(0), **OPTIONS)
    named = {name.removesuffix(".weight") for name in (*result.layers, *result.nearest)}
    tied = {"lm_head"} if "lm_head" in linears(model) and "lm_head" not in named else set()
    assert set(linears(model)) <= named | tied
    assert not tied or model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert all(layer.error <= layer.nearest_error for layer in result.layers.values())
    nearest = quantize_weights(model, **OPTIONS).model
    wanted, ours, rounded = (output(one, tokens(9)) for one in (model, result.model, nearest))
    assert sqnr_db(wanted, ours) > sqnr_db(wanted, rounded) + 0.5


def test_awq_and_smoothing_move_scales_and_keep_the_function(model):
    smoothed = smooth_model(model, tokens(0))
    before, after = output(model, tokens(9)), output(smoothed.model, tokens(9))
    assert torch.allclose(before, after, atol=1e-4 * before.abs().max())
    assert smoothed.scales
    result = awq_model(model, tokens(0), **OPTIONS)
    assert all(found.error <= found.nearest_error for found in result.searched.values())
    named = {name for layers in result.searched for name in layers} | set(result.unscaled)
    assert set(linears(model)) <= named


def test_eight_bits_are_enough_for_weights_and_activations(model):
    assert sqnr_db(output(model, tokens(9)), output(quantize_dynamic(model).model, tokens(9))) > 25


def test_what_gpt2_stores_transposed_becomes_linear():
    model = random_transformer("gpt2")
    result = use_linear_layers(model)
    assert len(result.replaced) == 8  # qkv, projection and two of the MLP in each of two blocks
    assert result.model.transformer.h[0].attn.c_attn.weight.shape == (96, 32)
    assert torch.allclose(output(model, tokens(0)), output(result.model, tokens(0)), atol=1e-5)
    assert result.model.lm_head.weight is result.model.transformer.wte.weight


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(ValueError, match="Sequential has no layer that computes x W"):
        use_linear_layers(nn.Sequential(nn.Linear(3, 3)))


class Product(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.weight, self.bias, self.scale = nn.Parameter(torch.eye(3)), nn.Parameter(torch.ones(3)), scale

    def forward(self, x):
        return self.scale * (x @ self.weight) + self.bias


def test_only_what_computes_just_that_is_replaced():
    model = nn.Sequential(Product(), Product(scale=2.0), nn.Linear(3, 3))
    result = use_linear_layers(model)
    assert result.replaced == ("0",)
    assert torch.equal(result.model(torch.eye(3)), model(torch.eye(3)))
    shared = Product()
    tied = nn.Sequential(shared, Product())
    tied[1].weight = shared.weight
    with pytest.raises(ValueError, match="no layer that computes"):
        use_linear_layers(tied)


def test_layers_with_hooks_stay_and_the_model_given_is_left_alone():
    model = nn.Sequential(Product(), Product())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    handle = model[0].register_forward_hook(lambda module, inputs, output: output + 1)
    result = use_linear_layers(model)
    assert result.replaced == ("1",)
    assert torch.equal(result.model(torch.eye(3)), model(torch.eye(3)))
    handle.remove()
    assert isinstance(model[1], Product)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
