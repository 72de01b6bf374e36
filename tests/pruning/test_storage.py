"""Files: whole or absent, bit for bit, ties kept, every flipped byte found, and sizes that are those on the disk."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from compresslab.pruning.encodings import FORMATS, raw_bytes
from compresslab.pruning.n_m import prune_n_m
from compresslab.pruning.storage import _digest, load_sparse, save_sparse, sizes
from compresslab.pruning.unstructured import prune_magnitude
from compresslab.testing import hostile
from compresslab.workbench import checkpoints


def same(state: dict[str, torch.Tensor], loaded: dict[str, torch.Tensor]) -> bool:
    return list(state) == list(loaded) and all(
        (state[name].dtype, state[name].shape) == (loaded[name].dtype, loaded[name].shape)
        and raw_bytes(state[name].contiguous()) == raw_bytes(loaded[name])
        for name in state
    )


@pytest.mark.parametrize("format", FORMATS)
def test_a_models_state_comes_back(format, tmp_path):
    for name in ("conv_bn", "extras", "float16", "bfloat16", "non_contiguous", "recurrent"):
        model = hostile(name).model
        model = prune_n_m(model, n=1, m=2).model if name != "recurrent" else model
        state = model.state_dict()
        stored = save_sparse(state, tmp_path / name, format=format)
        assert same(state, load_sparse(stored.path))
        assert stored.nbytes == os.path.getsize(tmp_path / name)
        assert set(stored.formats) == set(state)
        assert all(used == "dense" for key, used in stored.formats.items() if state[key].dim() < 2)
        assert not list(tmp_path.glob(".*"))


def test_what_is_not_two_of_four_is_dense_and_said(tmp_path):
    model = prune_n_m(hostile("conv_bn").model).model
    stored = save_sparse(model.state_dict(), tmp_path / "file", format="2:4")
    assert stored.formats["0.weight"] == "dense"  # 3 channels
    assert stored.formats["3.weight"] == stored.formats["6.weight"] == "2:4"
    assert "2:4" not in sizes(torch.ones(4, 4))
    assert "2:4" in sizes(torch.eye(4))


def test_tied_tensors_are_stored_once_and_are_one_again(tmp_path):
    state = hostile("tied").model.state_dict()
    stored = save_sparse(state, tmp_path / "file")
    loaded = load_sparse(stored.path)
    assert loaded["head.weight"] is loaded["embedding.weight"]
    assert same(state, loaded)
    assert stored.formats["head.weight"] == "bitmask"
    x = torch.arange(12.0).reshape(3, 4)
    views = {"whole": x, "part": x[:2], "turned": x.T, "names.values": x + 1, "names": x + 2}
    assert same(views, load_sparse(save_sparse(views, tmp_path / "views", format="csr").path))


def test_the_order_of_sizes_at_each_sparsity():
    model = checkpoints.load("resnet")
    dense = sizes(model.state_dict())
    assert dense["csr"] > 1.3 * dense["dense"]
    assert dense["bitmask"] > dense["dense"]
    half = sizes(prune_magnitude(model, 0.5).model.state_dict())
    assert half["dense"] == dense["dense"]  # zeros save nothing
    assert half["bitmask"] < half["run_length"] < half["csr"] < half["dense"]
    assert 1.6 < half["dense"] / half["bitmask"] < 1.9
    assert half["coo"] == pytest.approx(half["dense"], rel=0.05)
    most = sizes(prune_magnitude(model, 0.95).model.state_dict())
    assert most["run_length"] < most["bitmask"]  # a byte for each value costs less than a bit for each place
    pattern = sizes(prune_n_m(model).model.state_dict())
    assert pattern["2:4"] == pytest.approx(pattern["bitmask"], rel=0.01)  # regular places, and as many bits for them


@pytest.mark.parametrize("format", FORMATS)
def test_every_flipped_byte_and_every_cut_is_found(format, tmp_path):
    x = torch.eye(8)[:4] * torch.arange(1.0, 9.0)
    path = save_sparse({"w": x, "b": torch.ones(2)}, tmp_path / "file", format=format).path
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ValueError, match="is no whole file of save_sparse"):
            load_sparse(path)
    for length in (0, 4, 8, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"file is no whole file of save_sparse: .*; write it again"):
            load_sparse(path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_sparse({"w": torch.eye(4)}, tmp_path / "file").path
    before = path.read_bytes()

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                save_sparse({"w": torch.ones(4, 4)}, path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]


def test_a_loaded_state_fits_its_model(tmp_path):
    model = prune_magnitude(hostile("conv_bn").model, 0.8).model
    path = save_sparse(model.state_dict(), tmp_path / "file", format="csr").path
    fresh = hostile("conv_bn", seed=1).model
    fresh.load_state_dict(load_sparse(path))
    x = hostile("conv_bn").batches[0][0]
    assert torch.equal(fresh.eval()(x), model.eval()(x))


def test_a_header_of_somebody_else_is_refused(tmp_path):
    """The sha256 tells damage, not intent: what the header asks for is checked as well."""
    content = {"w.dense": torch.ones(2)}
    for entry in ({"format": "dense", "shape": [2], "dtype": dtype} for dtype in ("load", "nothing", "float64")):
        text = json.dumps({"w": entry})
        save_file(content, tmp_path / "file", {"sparse": text, "sha256": _digest(content, text)})
        with pytest.raises(ValueError, match="is no whole file of save_sparse"):
            load_sparse(tmp_path / "file")


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="format='zip' must be one of dense, bitmask"):
        save_sparse({"w": torch.ones(2, 2)}, tmp_path / "file", format="zip")
    assert not (tmp_path / "file").exists()
    with pytest.raises(TypeError, match="x must have elements of 1, 2, 4 or 8 bytes"):
        save_sparse({"w": torch.ones(2, 2, dtype=torch.complex128)}, tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        load_sparse(tmp_path / "nothing")
    save_file({"w": torch.ones(2)}, tmp_path / "other")
    with pytest.raises(ValueError, match=r"other is no whole file of save_sparse: 'sparse'; write it again"):
        load_sparse(tmp_path / "other")
    layer = nn.Linear(2, 2, device="meta")
    with pytest.raises(ValueError, match="x is on the meta device and holds no values; load the weights first"):
        save_sparse(layer.state_dict(), tmp_path / "file")
