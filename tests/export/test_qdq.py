"""QDQ graphs: the integers of the simulation, in the kernels of ONNX Runtime, and the same answers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from compresslab.export.low_bits import BlockLinear
from compresslab.export.operators import count_operators
from compresslab.export.parity import check_parity
from compresslab.export.qdq import QDQ, with_integers
from compresslab.export.sessions import OnnxModule
from compresslab.export.to_onnx import export_onnx
from compresslab.quantization import pack_linears, quantize_dynamic, quantize_static, quantize_weights
from compresslab.quantization.affine import choose_grid, quantize
from compresslab.quantization.packed_linear import KernelLinear, PackedLinear
from compresslab.quantization.static import Quantizer
from compresslab.workbench import checkpoints, data, models


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def initializers(path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def test_every_layer_of_the_resnet_is_an_integer_kernel(integers):
    """15 convolutions, 6 additions and the classifier; every ReLU is in the grid that follows it."""
    found = count_operators(integers.path)
    assert {kind: found.get(kind, 0) for kind in ("QLinearConv", "QLinearAdd", "QGemm", "Conv", "Add", "Gemm", "Relu")} == {
        "QLinearConv": 15, "QLinearAdd": 6, "QGemm": 1, "Conv": 0, "Add": 0, "Gemm": 0, "Relu": 0
    }  # fmt: skip


def test_the_kernels_predict_what_the_simulation_predicted(integers):
    """Stated: the same class for at least 99 % of the images, logits within 2 % of the largest.

    They differ where a sum falls on a tie between two levels, which float32 and the kernels' rounding break differently.
    """
    parity = check_parity(integers.model, OnnxModule(integers.path), integers.images, batch_sizes=(1, 2, 5, 200))
    assert parity.agreement >= 0.99 and parity.largest < 0.02
    with torch.no_grad():
        gaps = (integers.model(integers.images) - OnnxModule(integers.path)(integers.images)).abs().amax(1)
    assert (gaps < 1e-4).float().mean() > 0.5  # most images: not one level apart


def test_the_same_file_in_floats(integers):
    """A runtime without integer kernels gets the same numbers from the same file."""
    found = count_operators(integers.path, optimization="none")
    assert found["Conv"] == 15 and "QLinearConv" not in found
    parity = check_parity(integers.model, OnnxModule(integers.path, optimization="none"), integers.images[:50])
    assert parity.agreement == 1 and parity.largest < 0.02


def test_the_file_holds_the_integers(integers, resnet):
    """Weights int8, biases int32 in steps of both scales, activations uint8: bit for bit the simulation's."""
    held, layer = initializers(integers.path), integers.model.get_submodule("layer1.0.conv1")
    assert np.array_equal(held["layer1.0.conv1.levels"], layer.levels.numpy())
    assert held["layer1.0.conv1.levels"].dtype == np.int8
    assert np.array_equal(held["layer1.0.conv1.bias"], layer.bias.numpy())
    assert held["layer1.0.conv1.bias"].dtype == np.int32
    assert np.array_equal(held["layer1.0.conv1.scale"], layer.scale.numpy()) and held["layer1.0.conv1.scale"].ndim == 1
    floats = [name for name, array in held.items() if array.dtype == np.float32 and not name.endswith("scale")]
    assert floats == []
    assert integers.path.stat().st_size < 0.32 * resnet.path.stat().st_size


def test_a_layer_by_hand(tmp_path):
    """Weight 1.27 on 127 levels of 0.01; input 2.55 on 255 of 0.01: 100 is level 100 of both; 100 * 100 * 1e-4 = 1."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU())
    nn.init.constant_(model[0].weight, 1.27)
    simulation = quantize_static(model.eval(), [(torch.tensor([[2.55], [1.0]]), None)], method="minmax", refine=False)
    path = export_onnx(simulation, torch.ones(2, 1), tmp_path / "one.onnx")
    held = initializers(path)
    assert held["0.levels"].tolist() == [[127]] and held["0.scale"] == pytest.approx(0.01)
    assert held["grids.input_1.scale"] == pytest.approx(0.01) and held["grids.input_1.zero_point"].dtype == np.uint8
    output_scale = 1.27 * 2.55 / 255
    found = OnnxModule(path)(torch.tensor([[1.0], [-3.0], [9.0]]))
    wanted = [round(1.27 / output_scale) * output_scale, 0.0, 255 * output_scale]  # below 0 and above 2.55 is clipped
    assert found.flatten().tolist() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("per_channel", [False, True])
def test_per_tensor_and_per_channel(per_channel, images, tmp_path):
    model = checkpoints.load("vgg")
    simulation = quantize_static(model, [(images[:50], None)], per_channel=per_channel, refine=False)
    path = export_onnx(simulation, images[:2], tmp_path / "vgg.onnx")
    scale = next(array for name, array in initializers(path).items() if name.endswith("levels"))
    scales = [a.ndim for name, a in initializers(path).items() if name.endswith(".scale") and "grids" not in name]
    assert scale.dtype == np.int8 and set(scales) == {int(per_channel)}
    found = count_operators(path)
    assert found["QLinearConv"] == 6 and found["QGemm"] == 1 and "Conv" not in found
    parity = check_parity(simulation, OnnxModule(path), images[:50], batch_sizes=(1, 50))
    assert parity.agreement == 1 and parity.largest < 0.02


def test_attention_between_integer_layers(images, tmp_path):
    """All linear layers of a transformer as QGemm although their inputs have three axes: 4 in its block and the head."""
    model = models.build("vit", depth=1, width=32).eval()
    simulation = quantize_static(model, [(images[:20], None)], refine=False)
    path = export_onnx(simulation, images[:2], tmp_path / "vit.onnx")
    found = count_operators(path)
    assert found["QGemm"] == 5 and found["QLinearConv"] == 1 and "Gemm" not in found
    assert check_parity(simulation, OnnxModule(path), images, batch_sizes=(3, 100)).largest < 0.05


class Every(nn.Module):
    """One of each kind of layer that carries integers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.conv1 = nn.Embedding(7, 4), nn.Conv1d(4, 6, 3, padding=1, groups=2)
        self.up, self.conv3 = nn.ConvTranspose1d(6, 4, 2, stride=2, groups=2), nn.Conv3d(1, 2, 3, padding="same")
        self.head = nn.Linear(4, 3, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.up(self.conv1(self.embed(tokens).transpose(1, 2)).relu())  # (B, 4, 2 L)
        x = self.conv3(x.unflatten(2, (2, 2, -1)).flatten(0, 1).unsqueeze(1)).sum(1)
        return self.head(x.flatten(1).unflatten(1, (-1, 4)).mean(1))


@pytest.mark.parametrize("bits", [(8, 8), (8, 4), (6, 8), (12, 12)])
def test_other_layers_and_other_bits(bits, tmp_path):
    tokens = torch.arange(24).reshape(3, 8) % 7
    torch.manual_seed(0)
    simulation = quantize_static(Every().eval(), [(tokens, None)], bits=bits[0], weight_bits=bits[1], refine=False)
    path = export_onnx(simulation, tokens, tmp_path / "every.onnx")
    parity = check_parity(simulation, OnnxModule(path), tokens, batch_sizes=(1, 3, 4))
    assert parity.largest < 2.5 / 2 ** bits[0] and parity.agreement == 1
    kinds = Counter(array.dtype.name for array in initializers(path).values())
    assert kinds["int16" if bits[1] > 8 else "int8"] >= 4 and kinds["uint16" if bits[0] > 8 else "uint8"] > 0


def test_a_layer_left_in_floats_stays_in_floats(images, tmp_path):
    """ONNX Runtime on its own would quantize it, with a scale for the tensor: its grids stand on both sides."""
    model = checkpoints.load("mlp")
    simulation = quantize_static(model, [(images[:50], None)], skip=["layers.2"])
    path = export_onnx(simulation, images[:2], tmp_path / "mixed.onnx")
    found = count_operators(path)
    assert found["QGemm"] == 2 and found.get("Gemm", 0) + found.get("FusedGemm", 0) == 1
    assert check_parity(simulation, OnnxModule(path), images, batch_sizes=(100,)).largest < 2e-3
    alone = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (theirs,) = alone.run(None, {"images": images[:100].numpy()})
    with torch.no_grad():
        assert (simulation(images[:100]) - torch.from_numpy(theirs)).abs().max() > 0.05


@pytest.mark.parametrize(
    ("bits", "group_size", "symmetric", "stored"),
    [
        (4, 32, True, "int4"),
        (4, 64, False, "uint4"),
        (3, None, True, "int4"),
        (8, None, True, "int8"),
        (8, 16, False, "uint8"),
    ],
)
def test_packed_layers_are_read_in_blocks(bits, group_size, symmetric, stored, tmp_path):
    """The levels are the packed layer's, a kernel of few bits takes them, and the file is as small as the packed model."""
    model = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 64, bias=False)).eval()
    for place, layer in ((0, model[0]), (1, model[2])):
        layer.weight.data = noise(*layer.weight.shape, seed=place)
    found = quantize_weights(model, bits=bits, group_size=group_size, symmetric=symmetric)
    packed = pack_linears(found.model, found.weights)
    x = noise(5, 256, seed=3)
    path = export_onnx(packed.model, x, tmp_path / "packed.onnx")
    held = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
    levels = held[f"0.levels_{stored}"]
    assert onnx.TensorProto.DataType.Name(levels.data_type).lower() == stored
    assert np.array_equal(numpy_helper.to_array(levels).astype(int), packed.model[0].quantized.levels.T.numpy())
    assert count_operators(path)["MatMulNBits"] == 2 and "DequantizeLinear" not in count_operators(path)
    assert path.stat().st_size < packed.nbytes * (8 if bits > 4 else 4) / bits + 6000
    exact = OnnxModule(path, optimization="basic")  # dequantized and multiplied in floats
    assert check_parity(packed.model, exact, x, batch_sizes=(1, 5)).largest < 2e-6
    fused = check_parity(packed.model, OnnxModule(path), x, batch_sizes=(1, 5))  # its activations go through 8 bits
    assert fused.largest < 0.03


def test_packed_layers_between_three_axes_and_odd_groups(tmp_path):
    """Groups of 24 are read as they are, by the float route alone; groups of 48 as three blocks of 16 each."""
    x = noise(3, 7, 96)
    for group_size, axis, block in ((24, None, 24), (48, None, 16), (None, None, 32)):
        weight = quantize(noise(8, 96), bits=4, symmetric=False, group_size=group_size, axis=axis)
        layer = PackedLinear(weight, torch.ones(8)).eval()
        assert BlockLinear(layer).block == block
        path = export_onnx(nn.Sequential(layer).eval(), x[:2, :5], tmp_path / "odd.onnx", dynamic_sequence=True)
        assert check_parity(layer, OnnxModule(path, optimization="basic"), x).largest < 2e-6
        assert check_parity(layer, OnnxModule(path), x).largest < 0.03


@pytest.mark.parametrize("per_token", [True, False])
def test_dynamic_layers_multiply_integers(per_token, tmp_path):
    """Rows of very different size: each keeps its own scale, which a fused kernel of the runtime would not."""
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8, bias=False)).eval()
    dynamic = quantize_dynamic(model, per_token=per_token).model
    x = noise(6, 64) * torch.logspace(-3, 3, 6)[:, None]
    path = export_onnx(dynamic, x, tmp_path / "dynamic.onnx")
    assert count_operators(path)["MatMulInteger"] == 2
    assert initializers(path)["0.levels"].dtype == np.int8
    parity = check_parity(dynamic, OnnxModule(path), x, batch_sizes=(1, 6))
    assert parity.largest < 1e-5
    x = torch.cat([x, torch.zeros(1, 64)])  # a row of zeros has scale 1
    with torch.no_grad():
        torch.testing.assert_close(OnnxModule(path)(x), dynamic(x), rtol=1e-5, atol=1e-5)


def test_a_copy_without_side_effects(integers):
    ready = with_integers(integers.model)
    assert ready is not integers.model and isinstance(ready.get_submodule("grids.images"), QDQ)
    assert isinstance(integers.model.get_submodule("grids.images"), Quantizer)
    plain = nn.Linear(1, 1)
    assert with_integers(plain) is plain


def test_what_cannot_be_written():
    with pytest.raises(ValueError, match=r"^0: symmetric=True grids of activations.*symmetric=False"):
        with_integers(nn.Sequential(Quantizer(choose_grid(-1.0, 1.0))))
    layer = PackedLinear(quantize_weights(nn.Linear(32, 16), bits=4, group_size=32).weights["weight"])
    with pytest.raises(ValueError, match=r"0 is laid out for torch's kernels.*packed model"):
        with_integers(nn.Sequential(KernelLinear(layer)))


def test_against_the_float_model(integers, resnet):
    """What quantization costs is in the file: the kernels agree with the float model as often as the simulation does."""
    images, labels = next(iter(data.load("glyphs").test.batches(400)))
    with torch.no_grad():
        plain, simulated = resnet.model(images).argmax(1), integers.model(images).argmax(1)
    kernels = OnnxModule(integers.path)(images).argmax(1)
    assert abs((kernels == labels).float().mean() - (simulated == labels).float().mean()) <= 0.005
    assert (kernels == plain).float().mean() > 0.97
