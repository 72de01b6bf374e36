"""Packed layers: bytes by hand, the dequantized Linear layer to the bit, models, files, export, torch's kernels."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import nn
from torch.nn import functional as F

from compresslab.quantization.affine import Quantized, quantize
from compresslab.quantization.gptq import gptq_model
from compresslab.quantization.packed_linear import KernelLinear, PackedLinear, pack_linears, use_kernels
from compresslab.quantization.packing import pack
from compresslab.quantization.weight_only import quantize_weights
from compresslab.testing import check_compressor, hostile
from compresslab.workbench import models


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_by_hand():
    # Group [0, 15]: scale 1, zero point 0. Group [-5, 10]: scale 1, zero point 5, levels 0 and 15.
    # Bytes: 0 | 15 << 4 = 240 and 0 | 15 << 4 = 240; zero points 0 | 5 << 4 = 80.
    layer = PackedLinear(quantize(torch.tensor([[0.0, 15.0, -5.0, 10.0]]), bits=4, symmetric=False, group_size=2))
    assert layer.packed.tolist() == [240, 240]
    assert layer.zero_point.tolist() == [80]
    assert layer.scale.tolist() == [[1.0, 1.0]]
    assert layer(torch.tensor([[1.0, 2.0, 3.0, 4.0]])).item() == 30 - 15 + 40
    assert layer.nbytes == 2 + 8 + 1
    assert layer.bits_per_weight == 8 * 11 / 4
    # Symmetric: levels 7, -7, 1, -1 of 2^4: nibbles 7, 9, 1, 15.
    layer = PackedLinear(quantize(torch.tensor([[7.0, -7.0], [1.0, -1.0]]), bits=4), torch.tensor([0.5, 0.0]))
    assert layer.packed.tolist() == [7 + 9 * 16, 1 + 15 * 16]
    assert layer(torch.tensor([[1.0, 0.0]])).tolist() == [[7.5, 1.0]]
    assert layer.zero_point is None
    assert layer.nbytes == 2 + 4


@settings(derandomize=True, deadline=None, max_examples=80)
@given(
    bits=st.integers(1, 8),
    symmetric=st.booleans(),
    kind=st.sampled_from(["tensor", "row", "group"]),
    rows=st.integers(1, 9),
    groups=st.integers(1, 4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    bias=st.booleans(),
)
def test_equal_to_the_dequantized_layer_to_the_bit(bits, symmetric, kind, rows, groups, dtype, bias):
    linear = nn.Linear(5 * groups, rows, bias=bias, dtype=dtype)
    linear.weight.data = noise(rows, 5 * groups).to(dtype)
    where = {"tensor": {}, "row": {"axis": 0}, "group": {"group_size": 5}}[kind]
    quantized = quantize(linear.weight, bits=bits, symmetric=symmetric, **where)
    layer = PackedLinear(quantized, linear.bias)
    linear.weight.data = quantized.dequantize()
    assert torch.equal(layer.quantized.levels, quantized.levels)
    assert layer.quantized.levels.dtype == quantized.levels.dtype
    assert torch.equal(layer.quantized.zero_point, quantized.zero_point)
    assert torch.equal(layer.weight, linear.weight)
    assert layer.weight.dtype == dtype
    for shape in ((5 * groups,), (3, 5 * groups), (2, 3, 5 * groups)):
        x = noise(*shape, seed=1).to(dtype)
        assert torch.equal(layer(x), linear(x))
    assert layer.nbytes == quantized.nbytes
    assert layer.bits_per_weight == quantized.bits_per_weight
    other = (layer.scale.dim() == 2 and 5) or None
    if kind != "tensor":  # a layer made without the weights takes the state and is the same
        fresh = PackedLinear.empty(
            5 * groups, rows, bits=bits, symmetric=symmetric, group_size=other, bias=bias, dtype=dtype
        )
        state = load(save(layer.state_dict()))
        fresh.load_state_dict(state)
        assert torch.equal(fresh(x), layer(x))
        assert all(t.is_contiguous() and t.dtype in (torch.uint8, torch.float32, dtype) for t in state.values())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_layers_of_several_blocks(bits, symmetric, monkeypatch):
    monkeypatch.setattr("compresslab.quantization.packed_linear.BLOCK", 64)
    quantized = quantize(noise(33, 15), bits=bits, symmetric=symmetric, axis=0)  # 495 levels: 7 blocks and 47
    layer = PackedLinear(quantized)
    assert torch.equal(layer.packed, pack(quantized.levels, bits=bits, signed=symmetric))
    assert torch.equal(layer.weight, quantized.dequantize())


def test_inputs_of_another_dtype():
    weight = quantize(noise(8, 32), bits=4, group_size=16)
    layer, x = PackedLinear(weight, torch.ones(8)), noise(4, 32, seed=1)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        expected = F.linear(x.to(dtype), weight.dequantize().to(dtype), torch.ones(8, dtype=dtype))
        assert torch.equal(layer(x.to(dtype)), expected)
    half = PackedLinear(weight).half()  # 16-bit scales: half a part in 1024, in fewer bytes
    assert half.nbytes == layer.nbytes - 2 * 16
    assert torch.allclose(
        half(x), PackedLinear(weight)(x), rtol=0, atol=(weight.dequantize().abs() @ x.abs().T).max() / 2048
    )


def test_gradients_flow_through_to_the_input_and_the_bias():
    layer, x = PackedLinear(quantize(noise(3, 4), axis=0), torch.zeros(3)), noise(2, 4).requires_grad_()
    layer(x).sum().backward()
    assert torch.equal(x.grad, layer.weight.sum(0).expand(2, 4))
    assert layer.bias.grad.tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("where", [{}, {"axis": 0}, {"group_size": 4}])
def test_a_layer_without_outputs(bits, where):
    layer = PackedLinear(quantize(torch.empty(0, 4), bits=bits, **where))
    assert layer(noise(3, 4)).shape == (3, 0)
    assert layer.bits_per_weight == float("inf")


@pytest.mark.parametrize(("bits", "symmetric"), [(4, False), (3, True), (2, True), (8, True)])
def test_export_with_a_dynamic_batch(bits, symmetric):
    model = nn.Sequential(
        PackedLinear(quantize(noise(6, 32), bits=bits, symmetric=symmetric, group_size=16)), nn.ReLU()
    )
    program = torch.export.export(model, (noise(2, 32),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    for rows in (1, 5):
        assert torch.equal(program.module()(noise(rows, 32)), model(noise(rows, 32)))
    assert not any(t.is_floating_point() and t.numel() == 6 * 32 for t in program.state_dict.values())


def test_a_model_becomes_small():
    model = models.build("gpt", width=64, depth=2)
    options = {"bits": 4, "symmetric": False, "group_size": 32}
    found = quantize_weights(model, **options, skip=["embed", "pos_embed"])
    result = pack_linears(found.model, found.weights)
    tokens = torch.arange(20).reshape(2, 10)
    assert torch.equal(result.model(tokens), found.model(tokens))
    assert len(result.packed) == 8
    assert all(module.training for module in result.model.modules())
    hollow = pack_linears(found.model.eval(), found.weights).model
    assert not any(module.training for module in hollow.modules())
    assert set(found.weights) == {f"{name}.weight" for name in result.packed}
    assert result.nbytes == found.nbytes  # what quantize_weights promised is what is there
    state = {name: tensor for name, tensor in result.model.state_dict().items() if name != "head.weight"}
    assert len(save(state)) < found.nbytes + 8000
    assert result.model.head.weight is result.model.embed.weight
    assert result.skipped["blocks.0.norm1.weight"] == "LayerNorm: only the weights of Linear layers are packed"
    assert result.skipped["head.weight"] == "no levels were given"
    assert {f"{name}.weight" for name in result.packed} | {*result.skipped} == {
        name for name, _ in model.named_parameters(remove_duplicate=False)
    }


def test_gptq_becomes_small():
    case = hostile("mlp")
    found = gptq_model(case.model, case.batches, bits=4, group_size=4)
    result = pack_linears(found.model, found.weights)
    assert torch.equal(result.model(case.batches[0][0]), found.model(case.batches[0][0]))
    assert result.nbytes == found.nbytes


def test_what_is_not_packed_is_said():
    tied = quantize_weights(hostile("tied").model)
    result = pack_linears(tied.model, tied.weights)
    assert result.packed == ("mix",)
    assert result.skipped["head.weight"] == "its weight is shared with another layer; packing it would break the tie"
    assert result.skipped["embedding.weight"] == "Embedding: only the weights of Linear layers are packed"
    assert result.model.head.weight is result.model.embedding.weight
    shared = quantize_weights(hostile("shared").model)
    result = pack_linears(shared.model, shared.weights)
    assert result.packed == ("first", "again", "head")
    assert result.model.first is result.model.again
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].register_forward_hook(lambda *_: None)
    found = quantize_weights(model, bits={"0.weight": 8, "1.weight": 12, "2.weight": 8})
    result = pack_linears(found.model, found.weights)
    assert result.skipped["0.weight"] == "its layer has hooks, which a packed layer would lose"
    assert result.skipped["1.weight"] == "12 bits: at most 8 are packed"
    assert result.packed == ("2",)


def test_the_float_weights_are_not_needed():
    model = models.build("gpt", width=32, depth=1)
    found = quantize_weights(model, skip=["embed"])
    with torch.device("meta"):
        hollow = models.build("gpt", width=32, depth=1)
    packed = pack_linears(hollow, found.weights).model
    state = {name: tensor for name, tensor in found.model.state_dict().items() if "embed" in name or "norm" in name}
    state |= {name: tensor for name, tensor in found.model.state_dict().items() if name.endswith("bias")}
    packed.load_state_dict(state, strict=False, assign=True)
    packed.head.weight = packed.embed.weight
    tokens = torch.arange(10).reshape(1, 10)
    assert torch.equal(packed(tokens), found.model(tokens))
    assert all(parameter.is_meta for parameter in hollow.parameters())


def test_weights_are_not_copied_as_floats():
    model, copied = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), []

    class Watched(nn.Parameter):
        def __deepcopy__(self, memo):
            copied.append(self)
            return super().__deepcopy__(memo)

    found = quantize_weights(model)
    for layer in found.model:
        layer.weight = Watched(layer.weight.detach())
    pack_linears(found.model, found.weights)
    assert not copied


def test_code_that_reads_the_weight_still_works():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    found = quantize_weights(model)
    result, x = pack_linears(found.model, found.weights), noise(2, 3, 8)
    assert result.packed == ("linear1", "linear2")
    with torch.no_grad():  # the fast path takes linear1.weight
        assert torch.allclose(result.model(x), found.model(x), atol=1e-6)


def test_errors_of_a_layer():
    weight = noise(4, 8)
    with pytest.raises(ValueError, match=r"must be \(out, in\), of 1 to 8 bits.*got shape \(8,\), bits=4"):
        PackedLinear(quantize(weight[0], bits=4))
    with pytest.raises(ValueError, match=r"got shape .*bits=12"):
        PackedLinear(quantize(weight, bits=12))
    with pytest.raises(ValueError, match="axis=1"):
        PackedLinear(quantize(weight, axis=1))
    with pytest.raises(ValueError, match="group_size=3 must divide in_features=8"):
        PackedLinear.empty(8, 4, group_size=3)
    with pytest.raises(ValueError, match="group_size=0 must divide in_features=8"):
        PackedLinear.empty(8, 4, group_size=0)
    with pytest.raises(ValueError, match="bits=9"):
        PackedLinear.empty(8, 4, bits=9, group_size=4)
    with pytest.raises(RuntimeError, match="size mismatch for packed"):
        PackedLinear.empty(8, 4, group_size=4).load_state_dict(PackedLinear.empty(8, 5, group_size=4).state_dict())
    assert repr(PackedLinear.empty(64, 2)) == (
        "PackedLinear(in_features=64, out_features=2, bias=True, bits=4, symmetric=False, 5.125 bits per weight)"
    )


def test_errors_of_a_model():
    model = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
    found = quantize_weights(model)
    with pytest.raises(ValueError, match=r"\['7.weight'\] must be parameters of the model; choose from \['0.weight'"):
        pack_linears(model, {"7.weight": found.weights["0.weight"]})
    with pytest.raises(ValueError, match=r"levels of 0.weight have shape \(3, 3\), the weight \(2, 4\)"):
        pack_linears(model, {"0.weight": quantize(noise(3, 3))})
    with pytest.raises(ValueError, match=r"Sequential has no Linear layer to pack: \{'0.weight': 'no levels"):
        pack_linears(model, {})
    with pytest.raises(ValueError, match="ReLU has no Linear layer to pack: it has no parameters"):
        pack_linears(nn.ReLU(), {})


def reach(weight: Quantized, x: torch.Tensor) -> torch.Tensor:
    """The tolerance that KernelLinear states, for inputs x and no bias."""
    width = weight.scale * (weight.grid.quant_max - weight.grid.quant_min)
    width = (
        width[:, None].expand(weight.levels.shape)
        if width.dim() == 1
        else weight.grid.spread(width, weight.levels.shape)
    )
    return 2**-6 * x.double().abs() @ width.double().T


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {"bits": 4, "symmetric": False, "group_size": 32},
        {"bits": 4, "symmetric": True, "group_size": 64},
        {"bits": 8, "symmetric": True, "axis": 0},
    ],
    ids=["int4", "symmetric int4", "int8"],
)
def test_kernels_are_within_the_tolerance(dtype, options):
    layer = PackedLinear(quantize(noise(48, 128) + 0.3, **options))
    for seed, shape in enumerate([(1, 128), (2, 5, 128), (128,)]):
        x = noise(*shape, seed=seed).to(dtype)
        y, wanted = KernelLinear(layer)(x), F.linear(x.double(), layer.quantized.dequantize().double())
        assert y.dtype == dtype
        assert y.shape == wanted.shape
        assert ((y - wanted).abs() <= reach(layer.quantized, x)).all()
        assert (y - wanted).norm() < 0.01 * wanted.norm()


def test_a_model_with_kernels():
    found = quantize_weights(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 7)), bits=4, group_size=32)
    packed = pack_linears(found.model, found.weights).model.eval()
    before = copy.deepcopy(packed.state_dict())
    fast, x = use_kernels(packed), noise(3, 64)
    assert isinstance(fast[0], KernelLinear)
    assert isinstance(fast[2], PackedLinear)  # seven outputs are no sixteens
    assert (fast(x) - packed(x)).norm() < 0.02 * packed(x).norm()
    assert not fast.training
    assert fast[0].bias is not packed[0].bias
    assert all(torch.equal(tensor, before[name]) for name, tensor in packed.state_dict().items())
    with pytest.raises(ValueError, match="no kernel for in_features=32, out_features=7"):
        use_kernels(packed[2])
    with pytest.raises(ValueError, match=r"no kernel for .*bits=8, symmetric=False"):
        KernelLinear(PackedLinear(quantize(noise(16, 32), symmetric=False, axis=0)))
    with pytest.raises(ValueError, match="ReLU holds no PackedLinear layer; pack_linears makes them"):
        use_kernels(nn.ReLU())


@pytest.mark.parametrize("options", [{}, {"bits": 4, "symmetric": False, "group_size": 4}], ids=["8 bits", "groups"])
def test_the_common_checks(options):
    def compress(model, batches):
        found = quantize_weights(model, **options)
        return pack_linears(found.model, found.weights).model

    refused = {verdict.model for verdict in check_compressor(compress) if verdict.outcome == "refused"}
    assert refused == {"no_layers", "nan", "infinity", "meta"}
