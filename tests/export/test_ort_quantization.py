"""ONNX Runtime's own quantization: which integers a processor wants, and which kernels it then takes."""

from __future__ import annotations

import onnx
import pytest

from compresslab.export.operators import count_operators
from compresslab.export.ort_quantization import quantize_onnx_dynamic, quantize_onnx_static
from compresslab.export.parity import check_parity
from compresslab.export.sessions import OnnxModule
from compresslab.export.to_onnx import export_onnx
from compresslab.workbench import checkpoints, data


@pytest.fixture(scope="module")
def batches() -> list:
    return list(data.load("glyphs").train.take(100).batches(50))


def kinds(path, name: str) -> set[str]:
    """Types of the initializers whose name ends so."""
    tensors = onnx.load(path).graph.initializer
    return {onnx.TensorProto.DataType.Name(t.data_type) for t in tensors if t.name.endswith(name)}


def test_unsigned_activations_make_every_convolution_an_integer(resnet, batches, tmp_path, capfd):
    path = quantize_onnx_static(resnet.path, tmp_path / "u8s8.onnx", batches)
    found = count_operators(path)
    assert found["QLinearConv"] == 15 and found["QGemm"] == 1 and "Conv" not in found
    assert {"UINT8"} <= kinds(path, "zero_point") and "INT8" in kinds(path, "_quantized")
    assert check_parity(resnet.model, OnnxModule(path), resnet.images, batch_sizes=(1, 200)).agreement > 0.95
    assert capfd.readouterr() == ("", "") and [file.name for file in tmp_path.iterdir()] == ["u8s8.onnx"]


def test_signed_activations_leave_convolutions_in_floats(resnet, batches, tmp_path):
    """A ReLU before a signed grid is no part of it: nine convolutions with a ReLU of their own stay floats."""
    path = quantize_onnx_static(resnet.path, tmp_path / "s8s8.onnx", batches, activations="int8")
    found = count_operators(path)
    assert found["Conv"] > 0 and found["QLinearConv"] + found["Conv"] == 15


def test_per_tensor_and_methods(batches, images, tmp_path):
    source = export_onnx(checkpoints.load("mlp"), images[:2], tmp_path / "mlp.onnx")
    for per_channel, dims in ((True, 1), (False, 0)):
        path = quantize_onnx_static(source, tmp_path / "q.onnx", batches, per_channel=per_channel, method="percentile")
        scales = [t.dims for t in onnx.load(path).graph.initializer if t.name.endswith("weight_scale")]
        assert [len(shape) for shape in scales] == [dims] * 3


def test_dynamic_is_for_matrix_products(batches, images, tmp_path):
    source = export_onnx(checkpoints.load("mlp"), images[:2], tmp_path / "mlp.onnx")
    path = quantize_onnx_dynamic(source, tmp_path / "dynamic.onnx")
    found = count_operators(path)
    assert not {"Gemm", "FusedGemm", "MatMul"} & set(found) and any("MatMul" in name for name in found)
    assert check_parity(checkpoints.load("mlp"), OnnxModule(path), images, batch_sizes=(200,)).agreement > 0.95
    quantize_onnx_dynamic(source, path, weights="uint8", per_channel=True)
    assert path.stat().st_size < 0.35 * source.stat().st_size


def test_dynamic_convolutions_have_no_fast_kernel(resnet, tmp_path):
    assert count_operators(quantize_onnx_dynamic(resnet.path, tmp_path / "a.onnx"))["ConvInteger"] == 15


def test_refused(resnet, tmp_path):
    target = tmp_path / "a.onnx"
    with pytest.raises(ValueError, match="activations='int4' must be one of uint8, int8"):
        quantize_onnx_static(resnet.path, target, [], activations="int4")
    with pytest.raises(ValueError, match="method='mse' must be one of minmax, percentile, entropy"):
        quantize_onnx_static(resnet.path, target, [], method="mse")
    with pytest.raises(ValueError, match="weights='int4' must be one of uint8, int8"):
        quantize_onnx_dynamic(resnet.path, target, weights="int4")
    with pytest.raises(ValueError, match="batches are empty"):
        quantize_onnx_static(resnet.path, target, [])
    (tmp_path / "broken.onnx").write_bytes(b"\x00" * 9)
    with pytest.raises(ValueError, match=r"broken.onnx is not an ONNX model"):
        quantize_onnx_dynamic(tmp_path / "broken.onnx", target)
    assert [file.name for file in tmp_path.iterdir()] == ["broken.onnx"]
