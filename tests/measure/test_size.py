from __future__ import annotations

import json
import os

import pytest
import torch
from torch import nn

from compresslab.measure import size as module
from compresslab.measure import size_of
from compresslab.measure.size import measure_size


def header(**tensors: tuple[str, list[int], list[int]]) -> int:
    """Bytes of a safetensors header written by hand: 8 for its length, then JSON filled up to a multiple of 8."""
    entries = {name: {"dtype": d, "shape": s, "data_offsets": o} for name, (d, s, o) in tensors.items()}
    text = len(json.dumps(entries, separators=(",", ":")))
    return 8 + text + -text % 8


def test_a_linear_layer_by_hand():
    """Weight 2 x 3 and bias 2, four bytes each: 32 bytes after the header."""
    size = measure_size(nn.Linear(3, 2))
    assert size.size_bytes == 32 + header(bias=("F32", [2], [0, 8]), weight=("F32", [2, 3], [8, 32]))
    assert (size.parameters, size.buffers, size.bytes_by_dtype) == (8, 0, {"float32": 32})
    assert size.bits_per_parameter == 8 * size.size_bytes / 8


def test_buffers_count_apart_and_only_when_they_are_saved():
    model = nn.BatchNorm1d(5)  # weight, bias; running mean and variance of 5, and an int64 count of batches
    model.register_buffer("cache", torch.zeros(1000), persistent=False)
    size = measure_size(model)
    assert (size.parameters, size.buffers) == (10, 11)
    assert size.bytes_by_dtype == {"float32": 80, "int64": 8}


def test_packed_weights_are_buffers_but_their_bytes_count():
    """The trap of adding up parameters(): a quantized layer has none, and seems to take nothing."""
    model = nn.Module()
    model.register_buffer("levels", torch.zeros(100, 50, dtype=torch.int8))
    size = measure_size(model)
    assert size.parameters == 0
    assert 5000 < size.size_bytes < 5200
    assert size.bits_per_parameter == float("inf")


@pytest.mark.parametrize("how", ["same parameter", "same memory"])
def test_tied_weights_count_once(how):
    model = nn.Sequential(nn.Embedding(100, 64), nn.Linear(64, 100, bias=False))
    if how == "same parameter":
        model[1].weight = model[0].weight
    else:
        model[1].weight.data = model[0].weight.data
    size = measure_size(model)
    assert size.parameters == 6400
    assert 25600 < size.size_bytes < 25800


def test_a_view_counts_without_its_storage_and_neighbors_are_no_ties():
    storage = torch.arange(100_000.0)
    square = storage[:16].reshape(4, 4)
    size = measure_size({"a": storage[:10], "overlapping": storage[5:15], "square": square, "turned": square.T})
    assert size.bytes_by_dtype == {"float32": 4 * (10 + 10 + 16 + 16)}
    assert size.parameters == 52
    assert size.size_bytes < 500


def test_a_state_dict_weighs_what_its_model_weighs():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    size, state = measure_size(model), measure_size(model.state_dict())
    assert state.size_bytes == size.size_bytes
    assert state.parameters == size.parameters + size.buffers
    assert state.buffers == 0


def test_empty_tensors_and_empty_models():
    size = measure_size({"a": torch.empty(0), "b": torch.empty(0)})  # no address, yet no tie
    assert (size.parameters, size.size_bytes) == (0, header(a=("F32", [0], [0, 0]), b=("F32", [0], [0, 0])))
    assert measure_size(nn.ReLU()).size_bytes < 32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.bool, torch.float64])
def test_every_dtype_weighs_its_itemsize(dtype):
    values = torch.tensor([float("nan"), 1.0, 0.0]).to(dtype) if dtype.is_floating_point else torch.ones(3).to(dtype)
    assert measure_size({"a": values}).bytes_by_dtype == {str(dtype)[6:]: 3 * dtype.itemsize}


def test_a_file_that_comes_back_different_is_not_believed(monkeypatch):
    monkeypatch.setattr(module, "load_file", lambda path: {"a": torch.tensor([1.0, 2.5])})
    with pytest.raises(RuntimeError, match="'a' is not the same after saving and loading"):
        measure_size({"a": torch.tensor([1.0, 2.0])})


def test_what_cannot_be_saved_is_refused():
    with pytest.raises(TypeError, match=r"must be an nn.Module or a state dict, got str"):
        measure_size("model.pt")
    with pytest.raises(TypeError, match=r"'a' must be a dense tensor, got tuple; .* use size_of"):
        measure_size({"a": (torch.ones(2), None)})
    with pytest.raises(TypeError, match=r"'a' must be a dense tensor, got torch.sparse_csr"):
        measure_size({"a": torch.eye(3).to_sparse_csr()})
    with pytest.raises(ValueError, match=r"'0.weight' is on the meta device"):
        measure_size(nn.Sequential(nn.Linear(2, 2, device="meta")))


def test_a_folder_is_all_its_files(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"123")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.bin").write_bytes(b"12345")
    assert size_of(tmp_path) == 8
    assert size_of(tmp_path / "a.bin") == size_of(str(tmp_path / "a.bin")) == 3


@pytest.mark.parametrize("location", ["model.onnx.data", "weights.bin", "w" * 200])
def test_an_onnx_file_counts_with_its_external_data(tmp_path, location):
    onnx = pytest.importorskip("onnx")
    numpy = pytest.importorskip("numpy")
    weight = onnx.numpy_helper.from_array(numpy.ones((64, 64), numpy.float32), "location")
    graph = onnx.helper.make_graph([], "g", [], [], [weight])
    path = tmp_path / "model.onnx"
    onnx.save_model(onnx.helper.make_model(graph), path, save_as_external_data=True, location=location)
    (tmp_path / "model.onnx.bak").write_bytes(b"not of this model")
    assert path.stat().st_size < 1000
    assert size_of(path) == path.stat().st_size + 64 * 64 * 4
    (tmp_path / location).unlink()
    with pytest.raises(FileNotFoundError, match=f"{location} is missing"):
        size_of(path)


def test_an_openvino_file_counts_with_its_weights(tmp_path):
    (tmp_path / "m.xml").write_bytes(b"1")
    assert size_of(tmp_path / "m.xml") == 1
    (tmp_path / "m.bin").write_bytes(b"1234")
    assert size_of(tmp_path / "m.xml") == 5
    assert size_of(tmp_path) == 5  # and once in a folder


def test_a_link_counts_once(tmp_path):
    (tmp_path / "a").write_bytes(b"1234")
    os.symlink(tmp_path / "a", tmp_path / "b")
    assert size_of(tmp_path) == 4


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="a folder without files"):
        size_of(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none.onnx is missing"):
        size_of(tmp_path / "none.onnx")
