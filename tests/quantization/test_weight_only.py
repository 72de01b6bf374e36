"""Weight-only quantization of models: bytes by hand, torch's fake quantization as the oracle, nothing left unsaid."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compresslab.quantization.packing import pack, unpack
from compresslab.quantization.qat import convert, prepare_qat
from compresslab.quantization.weight_only import from_rows, packed_state, quantize_weights, rows_of, weights_of
from compresslab.testing import check_compressor, hostile
from compresslab.workbench import models


def test_by_hand():
    layer = nn.Linear(2, 2)
    layer.weight.data = torch.tensor([[7.0, 1.4], [0.7, -0.33]])
    result = quantize_weights(layer, bits=4)  # scales 1 and 0.1
    assert result.weights["weight"].levels.tolist() == [[7, 1], [7, -3]]
    assert torch.allclose(result.model.weight, torch.tensor([[7.0, 1.0], [0.7, -0.3]]))
    assert result.nbytes == 2 + 2 * 4 + 2 * 4  # four 4-bit levels, two scales, two biases
    assert result.bits_per_weight == 8 * 10 / 4
    assert torch.equal(result.model.bias, layer.bias)
    assert layer.weight[0, 1].item() == pytest.approx(1.4)


KINDS = [
    nn.Linear(6, 4), nn.Conv1d(4, 6, 3), nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(4, 4, 3, groups=4),
    nn.Conv3d(2, 3, 2), nn.ConvTranspose1d(4, 6, 3), nn.ConvTranspose2d(4, 6, 3, groups=2),
    nn.ConvTranspose3d(2, 3, 2), nn.Embedding(7, 6), nn.EmbeddingBag(7, 6),
]  # fmt: skip


@pytest.mark.parametrize("layer", KINDS, ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize("per_channel", [True, False])
def test_equal_to_torch(layer, per_channel):
    result = quantize_weights(layer, bits=5, per_channel=per_channel)
    quantized = result.weights["weight"]
    axis = 1 if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d) else 0
    if per_channel:
        others = [other for other in range(layer.weight.dim()) if other != axis]
        assert torch.allclose(quantized.scale, layer.weight.abs().amax(others) / 15)
        theirs = torch.fake_quantize_per_channel_affine(
            layer.weight, quantized.scale, quantized.zero_point, axis, -15, 15
        )
    else:
        theirs = torch.fake_quantize_per_tensor_affine(layer.weight, quantized.scale, quantized.zero_point, -15, 15)
    assert torch.equal(result.model.weight, theirs)
    assert torch.equal(from_rows(rows_of(layer.weight, layer), layer.weight, layer), layer.weight)


def test_groups_that_do_not_divide_get_the_nearest_divisor_and_say_so():
    # rows of 3 * 9 = 27: 27 is nearer to 32 than 9; of 16 * 9 = 144: 36 (ratio 1.125) before 24 (1.333).
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 3), nn.Conv2d(4, 8, 1))
    result = quantize_weights(model, bits=4, group_size=32)
    sizes = [weight.grid.group_size for weight in result.weights.values()]
    assert sizes == [27, 36, 4]
    assert result.weights["1.weight"].scale.shape == (4, 4)
    # rows of 44: 11 is nearer to 7 by ratio (1.57) than 4 (1.75), though not by difference
    assert quantize_weights(nn.Linear(44, 2), group_size=7).weights["weight"].grid.group_size == 11
    assert result.weights["1.weight"].bits_per_weight == 4 + 32 / 36


def test_nothing_is_left_unsaid():
    for name in ("attention", "recurrent", "extras", "tied", "shared", "conv_bn"):
        model = hostile(name).model
        result = quantize_weights(model)
        assert {*result.weights, *result.skipped} == {
            *dict(model.named_parameters()), *dict(model.named_buffers())
        }  # fmt: skip
        assert not {*result.weights} & {*result.skipped}
    assert "attention.in_proj_weight" in quantize_weights(hostile("attention").model).weights
    assert "lstm.weight_hh_l0" in quantize_weights(hostile("recurrent").model).weights
    moe = quantize_weights(models.build("moe_gpt"))
    assert {*moe.weights, *moe.skipped} == {*dict(moe.model.named_parameters()), *dict(moe.model.named_buffers())}


def test_bytes_are_those_of_the_packed_artefact():
    model = hostile("conv_bn").model
    result = quantize_weights(model, bits=3, symmetric=False)
    total = 0
    for weight in result.weights.values():
        total += pack(weight.levels, bits=3, signed=False).nbytes + weight.scale.nbytes
        total += pack(weight.zero_point, bits=3, signed=False).nbytes
    state = model.state_dict()
    total += sum(state[name].nbytes for name in result.skipped)
    assert result.nbytes == total


def test_tied_weights_stay_tied_and_count_once():
    model = hostile("tied").model
    result = quantize_weights(model, bits=4)
    assert result.model.head.weight is result.model.embedding.weight
    assert list(result.weights) == ["embedding.weight", "mix.weight"]
    both = quantize_weights(model, skip=["head"])  # the same tensor under its other name
    assert both.skipped["embedding.weight"] == "left out by the caller"


def test_bits_for_each_weight():
    model = hostile("prime_sizes").model
    result = quantize_weights(model, bits={"0.weight": 8, "4.weight": 2})
    assert {name: weight.bits for name, weight in result.weights.items()} == {"0.weight": 8, "4.weight": 2}
    assert result.skipped["2.weight"] == "left out by the caller"
    assert torch.equal(result.model[2].weight, model[2].weight)
    assert list(quantize_weights(model, skip=["0", "2.weight"]).weights) == ["4.weight"]
    assert [name for name, _, _ in weights_of(model)] == ["0.weight", "2.weight", "4.weight"]


@pytest.mark.parametrize("group_size", [None, 8])
def test_more_bits_are_never_worse(group_size):
    model = models.build("mlp")
    errors = []
    for bits in (2, 3, 4, 6, 8, 12):
        result = quantize_weights(model, bits=bits, group_size=group_size)
        errors.append(
            sum((a - b).square().sum() for a, b in zip(model.parameters(), result.model.parameters(), strict=True))
        )
    assert errors == sorted(errors, reverse=True)


def test_errors():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    with pytest.raises(ValueError, match=r"\['7.weight'\] must be weights of the model; choose from \['0.weight'\]"):
        quantize_weights(model, bits={"7.weight": 4})
    with pytest.raises(ValueError, match=r"\['1.weight'\] must be weights"):
        quantize_weights(model, bits={"1.weight": 4})
    with pytest.raises(ValueError, match=r"\['conv'\] must be weights of the model"):
        quantize_weights(model, skip=["conv"])
    with pytest.raises(ValueError, match="group_size=0 must be at least 1"):
        quantize_weights(model, group_size=0)
    with pytest.raises(ValueError, match="bits=20 must be an integer"):
        quantize_weights(model, bits=20)
    with pytest.raises(ValueError, match=r"LayerNorm has no weight to quantize: \{'weight': 'LayerNorm: only matrices"):
        quantize_weights(model[1])
    with pytest.raises(ValueError, match="ReLU has no weight to quantize: it has no parameters"):
        quantize_weights(nn.ReLU())
    model[0].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"0\.weight must be finite, got 1 NaN and 0 infinite of 4"):
        quantize_weights(model)


@pytest.mark.parametrize("options", [{}, {"bits": 4, "symmetric": False, "group_size": 4}], ids=["8 bits", "groups"])
def test_the_common_checks(options):
    verdicts = check_compressor(lambda model, batches: quantize_weights(model, **options).model)
    refused = {verdict.model for verdict in verdicts if verdict.outcome == "refused"}
    assert refused == {"no_layers", "nan", "infinity", "meta"}


def test_a_packed_state_by_hand():
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([[7.0, 1.4], [0.7, -0.33]])
    result = quantize_weights(layer, bits=4)
    state = packed_state(result.model, result.weights)
    assert state["weight.packed"].tolist() == [0x17, 0xD7]  # 7 and 1; 7 and -3, which is 1101
    assert sorted(state) == ["weight.packed", "weight.scale"]
    state = packed_state(result.model, quantize_weights(layer, bits=4, symmetric=False).weights)
    assert sorted(state) == ["weight.packed", "weight.scale", "weight.zero_point"]
    with pytest.raises(ValueError, match=r"bits=9 must be an integer in 1\.\.8"):
        packed_state(result.model, quantize_weights(layer, bits=9).weights)


def test_a_packed_state_holds_tied_weights_once_and_all_that_was_skipped():
    model = models.build("gpt", width=16, depth=1, heads=2, context=8)
    result = quantize_weights(model, bits=3, group_size=8, symmetric=False, skip=["pos_embed"])
    state = packed_state(result.model, result.weights)
    assert "embed.weight.packed" in state
    assert not {"embed.weight", "head.weight", "head.weight.packed"} & set(state)
    kept = set(model.state_dict()) - {"head.weight", *result.weights}
    assert all(torch.equal(state[name], model.state_dict()[name]) for name in kept)
    assert sum(tensor.nbytes for tensor in state.values()) == result.nbytes
    for name, weight in result.weights.items():
        levels = unpack(state[f"{name}.packed"], weight.levels.shape, bits=3, signed=False)
        assert torch.equal(levels, weight.levels)


def test_the_packed_state_of_a_converted_model():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    converted = convert(prepare_qat(model, [(torch.rand(8, 4), None)], weight_bits=4).model)
    state = packed_state(converted.model, converted.weights)
    assert not [name for name in state if "parametrizations" in name]
    assert sum(tensor.nbytes for tensor in state.values()) == converted.nbytes
