"""One file: every bit back, whole or absent, near the bound, and nothing that a stranger writes into it does harm."""

from __future__ import annotations

import hashlib
import json
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compresslab.factorization import load_compressed, save_compressed, share_weights
from compresslab.factorization.files import Cursor
from compresslab.workbench import models


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def deep(sparsity=0.9, clusters=16):
    model = models.build("vgg", width=8)
    masks = {
        name: p.abs() > p.abs().flatten().kthvalue(max(int(sparsity * p.numel()), 1)).values
        for name, p in model.named_parameters()
        if p.dim() > 1
    }
    return share_weights(model, clusters=clusters, masks=masks).model


def packed(listed, side=b"", body=b""):
    """A file with a right checksum and any content."""
    text = listed if isinstance(listed, bytes) else json.dumps(listed).encode()
    header = zlib.compress(len(text).to_bytes(4, "little") + text + side)
    content = len(header).to_bytes(4, "little") + header + body
    return b"CLHUF1" + hashlib.sha256(content).digest() + content


def test_a_model_comes_back_bit_for_bit(tmp_path):
    model = deep()
    file = save_compressed(model.state_dict(), tmp_path / "model")
    state = load_compressed(file.path)
    assert state.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor) and state[name].dtype == tensor.dtype
    fresh = models.build("vgg", width=8)
    fresh.load_state_dict(state)
    x = draw(2, 1, 32, 32)
    assert torch.equal(fresh.eval()(x), model.eval()(x))
    assert file.kinds["classifier.weight"] == "gaps" and file.kinds["features.1.weight"] in ("raw", "symbols")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_bytes_are_what_they_are_said_to_be(tmp_path):
    model = deep()
    file = save_compressed(model.state_dict(), tmp_path / "model")
    state = model.state_dict()
    assert file.nbytes == (tmp_path / "model").stat().st_size
    assert file.dense_bytes == sum(tensor.nbytes for tensor in state.values())
    content = b"".join(t.contiguous().flatten().view(torch.uint8).numpy().tobytes() for t in state.values() if t.dim())
    assert abs(file.gzip_bytes - len(zlib.compress(content))) < 100  # the 0-d counters apart
    assert file.bound_bytes < file.nbytes < file.gzip_bytes
    assert file.ratio == file.dense_bytes / file.nbytes > 10


def test_near_the_bound_of_a_large_tensor(tmp_path):
    weight = draw(1000, 1000)
    mask = weight.abs() > 1.4
    values = (weight * 4).round() / 4
    file = save_compressed({"w": torch.where(mask, values, 0.0)}, tmp_path / "w")
    assert file.bound_bytes < file.nbytes < 1.05 * file.bound_bytes


def test_tied_tensors_are_stored_once_and_are_one_again(tmp_path):
    model = models.build("gpt", width=16, depth=1)
    file = save_compressed(model.state_dict(), tmp_path / "gpt")
    assert file.kinds["head.weight"] == "same"
    state = load_compressed(file.path)
    assert state["head.weight"] is state["embed.weight"]
    odd = {"": torch.tensor(3), "empty": torch.zeros(0, 3), "other": torch.zeros(0), "b": torch.tensor([True, False])}
    back = load_compressed(save_compressed(odd, tmp_path / "odd").path)
    assert all(torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype for name, tensor in odd.items())
    assert load_compressed(save_compressed({}, tmp_path / "none").path) == {}


def test_parts_of_one_tensor_are_stored_apart(tmp_path):
    whole = draw(4, 6)
    views = {"rows": whole[:2], "columns": whole[:, ::2], "turned": whole.t()}
    back = load_compressed(save_compressed(views, tmp_path / "views").path)
    assert all(torch.equal(back[name], view) for name, view in views.items())


def test_every_flipped_bit_and_every_cut_is_seen(tmp_path):
    path = save_compressed({"w": draw(30, 30).sign(), "b": draw(5)}, tmp_path / "w").path
    content = path.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is no whole file of save_compressed"):
            load_compressed(path)
    for length in (0, 5, 37, 38, 50, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is no whole file"):
            load_compressed(path)
    with pytest.raises(FileNotFoundError):
        load_compressed(tmp_path / "nothing")


GOOD = ["w", "raw", "float32", [2], 2, []]


@pytest.mark.parametrize(
    ("listed", "side", "body", "message"),
    [
        ([["w", "raw", "float32", [10**12], 2, []]], b"", b"\0" * 8, "larger than max_bytes"),
        ([["w", "raw", "float32", [2**61, 8], 2, []]], b"", b"\0" * 8, "larger than max_bytes"),
        ([["w", "raw", "float32", [10**8], 10**8, []]], b"", b"\0" * 8, "100000000 elements of torch.int32 where 8"),
        ([["w", "gaps", "float32", [10**8], 0, [[0, 0, 0], [0, 0, 0]]]], b"", b"", "gaps do not lead to 100000000"),
        ([["w", "symbols", "float32", [10**8], 1, [[10**8, 1, 9]]]], b"\1" + b"\0" * 99, b"\0" * 13, "elements of torch.int16 where"),
        ([["w", "raw", "float32", [-2], 2, []]], b"", b"\0" * 8, r"shape \[-2\] is not one"),
        ([["w", "raw", "float32", [2.0], 2, []]], b"", b"\0" * 8, "is not one"),
        ([["w", "raw", "object", [2], 2, []]], b"", b"\0" * 8, "object"),
        ([["w", "pickle", "float32", [2], 2, []]], b"", b"\0" * 8, "kind 'pickle' is not known"),
        ([["w", "same", "v"]], b"", b"", "'v'"),
        ([GOOD, GOOD], b"", b"\0" * 16, "or there twice"),
        ([GOOD], b"", b"\0" * 9, "1 bytes are left over"),
        ([GOOD], b"\0", b"\0" * 8, "1 bytes are left over"),
        ([["w", "gaps", "float32", [2], 2, []]], b"", b"\0" * 8, "lacks a stream"),
        ([["w", "symbols", "float32", [2], 2, [[2, 9999, 1]]]], b"", b"\0" * 9, "an alphabet of 9999"),
        ([["w", "symbols", "float32", [2], 2, [[-5, 2, 1]]]], b"\0" * 9, b"\0" * 9, "do not fit"),
        ([["w", "raw", "float32", [2], -2, []]], b"", b"\0" * 8, "-2 elements"),
        ([["w", "raw", "float32", [2], True, []]], b"", b"\0" * 8, "True elements"),
        ({"w": 1}, b"", b"", "is no whole file"),
        (b"[[[", b"", b"", "is no whole file"),
        (b"[" * 100_000, b"", b"", "is no whole file"),
        (b"\xff\xfe", b"", b"", "is no whole file"),
    ],
)  # fmt: skip
def test_what_a_stranger_may_write(tmp_path, listed, side, body, message):
    path = tmp_path / "strange"
    path.write_bytes(packed(listed, side, body))
    with pytest.raises(ValueError, match=message):
        load_compressed(path)


def test_what_is_packed_by_hand_is_read(tmp_path):
    path = tmp_path / "good"
    path.write_bytes(packed([GOOD], b"", torch.tensor([1.0, 2.0]).numpy().tobytes()))
    assert load_compressed(path)["w"].tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="larger than max_bytes"):
        load_compressed(path, max_bytes=7)


def test_a_header_that_never_ends_is_cut(tmp_path):
    text = b" " * (1 << 25)
    header = zlib.compress(len(text).to_bytes(4, "little") + text)
    content = len(header).to_bytes(4, "little") + header
    (tmp_path / "bomb").write_bytes(b"CLHUF1" + hashlib.sha256(content).digest() + content)
    with pytest.raises(ValueError, match=r"its header of \d+ bytes is cut, or too long"):
        load_compressed(tmp_path / "bomb")
    with pytest.raises(ValueError, match=r"the header would have .* bytes, at most"):
        save_compressed({"n" * (1 << 24): torch.ones(1)}, tmp_path / "long")


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_compressed({"w": torch.ones(3)}, tmp_path / "w").path
    before = path.read_bytes()

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_compressed({"w": torch.zeros(3)}, path)
    assert path.read_bytes() == before and [item.name for item in tmp_path.iterdir()] == ["w"]


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 30), st.integers(0, 3)), max_size=4), st.integers(0, 10**6)
)
def test_any_state_comes_back(tmp_path_factory, parts, seed):
    state = {}
    for place, (rows, columns, kind) in enumerate(parts):
        x = draw(rows, columns, seed=seed + place)
        state[f"t{place}"] = [x, x.sign(), x.half(), torch.where(x > 1, x.round(), 0.0)][kind]
    path = tmp_path_factory.mktemp("any") / "state"
    back = load_compressed(save_compressed(state, path).path)
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items()) and back.keys() == state.keys()


def test_errors_of_saving(tmp_path):
    with pytest.raises(TypeError, match=r"w has dtype torch\.complex64, which is not one of float64"):
        save_compressed({"w": torch.ones(2, dtype=torch.complex64)}, tmp_path / "w")
    with pytest.raises(ValueError, match="x is on the meta device"):
        save_compressed(nn.Linear(2, 2, device="meta").state_dict(), tmp_path / "w")
    with pytest.raises(ValueError, match=r"3 elements of torch\.int16 where 5 bytes are left"):
        Cursor(b"12345").take(3, torch.int16)
    assert not list(tmp_path.iterdir())
