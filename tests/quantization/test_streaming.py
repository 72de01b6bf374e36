"""A folder of shards, quantized: equal to quantizing in memory, read by safetensors itself, resumed, refused, bounded."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from compresslab.quantization import streaming
from compresslab.quantization.affine import quantize
from compresslab.quantization.packed_linear import PackedLinear, pack_linears
from compresslab.quantization.streaming import load_packed, quantize_folder
from compresslab.quantization.weight_only import quantize_weights
from compresslab.workbench import models

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tensors() -> list[dict[str, torch.Tensor]]:
    return [
        {
            "embed.weight": noise(20, 32).half(),
            "a.weight": noise(37, 48, seed=1),
            "a.bias": noise(37).double(),
            "steps": torch.tensor(7),
        },
        {
            "b.weight": noise(8, 33, seed=2).bfloat16(),
            "experts": noise(5, 16, seed=3).half(),
            "empty": torch.zeros(0, 4),
            "mask": torch.arange(9) > 4,
            "kernel": noise(2, 3, 3, 3),
        },
    ]


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    for file, shard in zip(SHARDS, tensors(), strict=True):
        save_file(shard, folder / file)
    index = {name: file for file, shard in zip(SHARDS, tensors(), strict=True) for name in shard}
    (folder / streaming.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


@pytest.fixture
def target(tmp_path):
    return tmp_path / "target"


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_by_hand(tmp_path, target):
    # Two rows of two: scales 15 / 15 and 30 / 15, zero points 0 and 5; levels 0 15 and 0 15; bytes 15 << 4 = 240.
    (tmp_path / "one").mkdir()
    save_file({"weight": torch.tensor([[0.0, 15.0], [-10.0, 20.0]])}, tmp_path / "one" / "x.safetensors")
    report = quantize_folder(tmp_path / "one", target, group_size=None)
    found = load_file(target / "x.safetensors")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "packed": [240, 240], "scale": [1.0, 2.0], "zero_point": [5 << 4]
    }  # fmt: skip
    assert report.quantized == ("weight",)
    assert report.source_bytes == (tmp_path / "one" / "x.safetensors").stat().st_size
    assert report.nbytes == (target / "x.safetensors").stat().st_size


@pytest.mark.parametrize("block", [1, 256, 2**18])
@pytest.mark.parametrize(
    "options",
    [{}, {"bits": 3, "group_size": 16}, {"bits": 8, "symmetric": True, "group_size": None}, {"bits": 2, "skip": ()}],
    ids=["4 bits", "3 bits", "8 bits by row", "2 bits, all"],
)
def test_equal_to_quantizing_in_memory(source, target, options, block, monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK", max(block, 8))  # a kept tensor of 8 bytes is one block, of 9 two
    before = contents(source)
    report = quantize_folder(source, target, **options)
    monkeypatch.undo()
    assert contents(source) == before
    every = {name: tensor for shard in tensors() for name, tensor in shard.items()}
    assert {*report.quantized} | {*report.kept} == {*every}
    assert not {*report.quantized} & {*report.kept}
    extra = {"embed.weight"} if "skip" in options else set()
    assert {*report.quantized} == {"a.weight", "b.weight", "experts"} | extra
    found = load_packed(target)
    assert {*found.weights} == {*report.quantized}
    assert {*found.others} == {*report.kept}
    assert len(found.weights) == len(report.quantized)
    for name, kept in found.others.items():
        assert kept.dtype == every[name].dtype
        assert torch.equal(kept, every[name])
    choice = {"bits": 4, "group_size": 32, "symmetric": False} | options
    choice.pop("skip", None)
    size = choice.pop("group_size")
    for name, weight in found.weights.items():
        # the divisors of 48, 33, 16 and 32 nearest to 32 and to 16, by ratio
        near = {48: {32: 24, 16: 16}, 33: {32: 33, 16: 11}, 16: {32: 16, 16: 16}, 32: {32: 32, 16: 16}}
        where = {"axis": 0} if size is None else {"group_size": near[every[name].shape[1]][size]}
        wanted = quantize(every[name], **choice, **where)
        assert torch.equal(weight.levels, wanted.levels)
        assert torch.equal(weight.scale, wanted.scale)
        assert torch.equal(weight.zero_point, wanted.zero_point)
        assert (weight.grid.bits, weight.grid.symmetric) == (choice["bits"], choice.get("symmetric", False))
        assert torch.equal(weight.dequantize(), wanted.dequantize())
        assert weight.dtype == every[name].dtype
        assert weight.nbytes == wanted.nbytes
    assert report.nbytes == sum((target / file).stat().st_size for file in SHARDS)


def test_why_a_tensor_is_kept(source, target):
    kept = quantize_folder(source, target, skip=["exp*", "*embed*"]).kept
    assert kept == {
        "embed.weight": "skip: *embed*", "a.bias": "not a matrix", "steps": "not a matrix", "experts": "skip: exp*",
        "empty": "not a matrix", "mask": "not a matrix", "kernel": "not a matrix",
    }  # fmt: skip
    save_file({"a": torch.ones(2, 2), "b": torch.ones(2, 2, dtype=torch.int8)}, source / SHARDS[0])
    (source / streaming.INDEX).unlink()
    (source / SHARDS[1]).unlink()
    report = quantize_folder(source, target.with_name("other"))
    assert report.kept == {"b": "I8: only F32, F16, BF16 are quantized"}


def test_the_shards_are_plain_safetensors(source, target):
    report = quantize_folder(source, target)
    assert report.made == tuple(SHARDS)
    assert {path.name for path in target.iterdir()} == {*SHARDS, streaming.INDEX, streaming.JOURNAL}
    index = json.loads((target / streaming.INDEX).read_text())
    for file in SHARDS:
        data = (target / file).read_bytes()
        head = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + head])
        with safe_open(target / file, framework="pt") as shard:
            for name in header.keys() - {"__metadata__"}:
                assert index["weight_map"][name] == file
                tensor = shard.get_tensor(name)
                assert (8 + head + header[name]["data_offsets"][0]) % tensor.element_size() == 0
    assert sum(map(len, [*load_file(target / SHARDS[0]), *load_file(target / SHARDS[1])])) == sum(
        map(len, index["weight_map"])
    )
    assert index["metadata"]["total_size"] == report.nbytes


def test_a_layer_takes_a_shard_as_its_state(source, target):
    quantize_folder(source, target)
    every = load_file(target / SHARDS[0])
    layer = PackedLinear.empty(48, 37, bits=4, group_size=24)
    layer.load_state_dict({name.removeprefix("a."): every[name] for name in every if name.startswith("a.")})
    expected = quantize(tensors()[0]["a.weight"], bits=4, symmetric=False, group_size=24).dequantize()
    assert torch.equal(layer.weight, expected)


def test_a_model_loads_without_its_float_weights(tmp_path, target):
    model = models.build("gpt", width=32, depth=1)
    (tmp_path / "gpt").mkdir()
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "head.weight"}
    save_file(state, tmp_path / "gpt" / "model.safetensors")
    quantize_folder(tmp_path / "gpt", target)
    found = load_packed(target)
    with torch.device("meta"):
        hollow = models.build("gpt", width=32, depth=1)
    result = pack_linears(hollow, found.weights).model
    result.load_state_dict(dict(found.others), strict=False, assign=True)
    result.head.weight = result.embed.weight
    options = {"bits": 4, "symmetric": False, "group_size": 32}
    whole = quantize_weights(model, **options, skip=["embed", "pos_embed"])
    tokens = torch.arange(10).reshape(1, 10)
    assert torch.equal(result(tokens), whole.model(tokens))


@pytest.mark.parametrize("what", ["shard", "journal"])
def test_a_file_is_on_the_disk_before_it_gets_its_name(source, target, monkeypatch, what):
    # The journal is saved first, then a shard; where the disk turns out to be full the name is not there.
    calls = []

    def full(handle):
        calls.append(handle)
        if len(calls) == {"journal": 1, "shard": 2}[what]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        quantize_folder(source, target)
    assert [path.name for path in target.iterdir()] == ([streaming.JOURNAL] if what == "shard" else [])


def test_progress_counts_the_bytes(source, target):
    seen = []
    report = quantize_folder(source, target, progress=lambda done, total: seen.append((done, total)))
    assert len(seen) == 9
    assert seen == sorted(seen)
    assert seen[-1] == (report.source_bytes, report.source_bytes)


# ---- interrupted and called again


def interrupt_after(tensors_done: int):
    def progress(done, total):
        nonlocal tensors_done
        tensors_done -= 1
        if tensors_done == 0:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("tensors_done", [1, 3, 6, 9])
def test_an_interrupted_call_is_resumed(source, target, tensors_done):
    whole = target.with_name("whole")
    quantize_folder(source, whole)
    with pytest.raises(KeyboardInterrupt):
        quantize_folder(source, target, progress=interrupt_after(tensors_done))
    finished = [] if tensors_done < 5 else SHARDS[:1]
    assert {path.name for path in target.iterdir()} == {streaming.JOURNAL, *finished}
    with pytest.raises(FileNotFoundError, match=r"index\.json is missing; call quantize_folder to its end"):
        load_packed(target)
    times = [(target / file).stat().st_mtime_ns for file in finished]
    report = quantize_folder(source, target)
    assert report.found == tuple(finished)
    assert report.made == tuple(file for file in SHARDS if file not in finished)
    assert times == [(target / file).stat().st_mtime_ns for file in finished]
    assert contents(target) == contents(whole)
    assert quantize_folder(source, target).made == ()


KILLED = """
import os, signal, sys
from compresslab.quantization.streaming import quantize_folder
count = 0
def progress(done, total):
    global count
    count += 1
    if count == 6:
        os.kill(os.getpid(), signal.SIGKILL)
quantize_folder(sys.argv[1], sys.argv[2], progress=progress)
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_killed_process_leaves_whole_shards(source, target):
    run = subprocess.run([sys.executable, "-c", KILLED, str(source), str(target)], check=False)
    assert run.returncode == -signal.SIGKILL
    left = {path.name for path in target.iterdir()}
    assert {SHARDS[0], streaming.JOURNAL} < left
    assert len(left) == 3  # and the temporary file of the second shard
    report = quantize_folder(source, target)
    assert report.found == (SHARDS[0],)
    assert {path.name for path in target.iterdir()} == {*SHARDS, streaming.INDEX, streaming.JOURNAL}
    whole = target.with_name("whole")
    quantize_folder(source, whole)
    assert contents(target) == contents(whole)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "not in the journal"])
def test_a_damaged_shard_is_made_again(source, target, damage):
    quantize_folder(source, target)
    good, path = contents(target), target / SHARDS[0]
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[:-1])
    elif damage == "remove":
        path.unlink()
    else:
        journal = json.loads((target / streaming.JOURNAL).read_text())
        del journal["shards"][SHARDS[0]]
        (target / streaming.JOURNAL).write_text(json.dumps(journal))
    report = quantize_folder(source, target)
    assert report.made == (SHARDS[0],)
    assert report.found == (SHARDS[1],)
    for file in SHARDS:
        assert (target / file).read_bytes() == good[file]


def test_another_source_or_other_options_are_refused(source, target):
    quantize_folder(source, target)
    with pytest.raises(ValueError, match=r"was begun with options .*'bits': 4.* not .*'bits': 3.*give another target"):
        quantize_folder(source, target, bits=3)
    with pytest.raises(ValueError, match="was begun with options"):
        quantize_folder(source, target, skip=["x"])
    before = contents(target)
    for place in ((0, 0), (-1, -1)):  # the same sizes and the same header
        changed = tensors()[0]
        changed["a.weight"][place] += 1
        save_file(changed, source / SHARDS[0])
        with pytest.raises(ValueError, match="was begun with source"):
            quantize_folder(source, target)
    assert contents(target) == before
    with pytest.raises(ValueError, match=r"source holds files and no quantize\.json; give a folder that is new"):
        quantize_folder(source, source)
    (target / streaming.JOURNAL).write_text("{")
    with pytest.raises(ValueError, match=r"quantize\.json must hold JSON with shards, options, source, got JSONDecode"):
        quantize_folder(source, target)


# ---- refused


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_not_finite_are_refused(source, target, dtype, monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK", 64)
    shard = tensors()[1] | {"b.weight": noise(40, 33).to(dtype)}
    shard["b.weight"][[0, 9, 39], 3] = torch.tensor([float("nan"), float("inf"), float("nan")], dtype=dtype)
    save_file(shard, source / SHARDS[1])
    with pytest.raises(
        ValueError, match=r"b\.weight must be finite, got 2 NaN and 1 infinite of 1320; mend it or name"
    ):
        quantize_folder(source, target)
    assert {path.name for path in target.iterdir()} == {SHARDS[0], streaming.JOURNAL}
    assert quantize_folder(source, target.with_name("other"), skip=["b.*", "e*"]).quantized == ("a.weight",)


def test_options_that_are_refused(source, target):
    for bits in (0, 17, 4.0):
        with pytest.raises(ValueError, match=f"bits={bits} must be an integer in 1..16"):
            quantize_folder(source, target, bits=bits)
    with pytest.raises(ValueError, match=r"bits=9 must be in 1\.\.8, group_size=32"):
        quantize_folder(source, target, bits=9)
    with pytest.raises(ValueError, match="group_size=0 at least 1 or None"):
        quantize_folder(source, target, group_size=0)
    with pytest.raises(ValueError, match=r"source holds no weight to quantize: .*'embed.weight': 'skip: \*'"):
        quantize_folder(source, target, skip=["*"])
    assert not target.exists()


def test_folders_that_are_refused(source, target, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing holds no \*\.safetensors file; give the folder"):
        quantize_folder(tmp_path / "nothing", target)
    index = json.loads((source / streaming.INDEX).read_text())
    index["weight_map"]["lost"] = SHARDS[0]
    (source / streaming.INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"\['lost'\] are in model.safetensors.index.json, but not in their shards"):
        quantize_folder(source, target)
    for file in ("lost.safetensors", "../out.safetensors"):
        shutil.copy(source / SHARDS[0], tmp_path / "out.safetensors")
        (source / streaming.INDEX).write_text(json.dumps({"weight_map": {"a": file}}))
        with pytest.raises(FileNotFoundError, match=f"'{file}', named in .*, is no file of"):
            quantize_folder(source, target)
    (source / streaming.INDEX).write_text("[]")
    with pytest.raises(ValueError, match=r"index\.json must hold JSON with weight_map, got TypeError"):
        quantize_folder(source, target)
    (source / streaming.INDEX).unlink()
    shutil.copy(source / SHARDS[0], source / "copy.safetensors")
    with pytest.raises(ValueError, match=r"'a.packed', 'a.scale', 'a.zero_point'.* would be written twice; rename"):
        quantize_folder(source, target)
    (source / "copy.safetensors").unlink()
    save_file({"a.weight": torch.ones(2, 2), "a.packed": torch.ones(2)}, source / SHARDS[0])
    with pytest.raises(ValueError, match=r"\['a.packed'\] would be written twice"):
        quantize_folder(source, target)
    data = (source / SHARDS[1]).read_bytes()
    for wrong in (data[:-1], data[:20], b"", b"<html>not found</html>", (2**60).to_bytes(8, "little") + data[8:]):
        (source / SHARDS[1]).write_bytes(wrong)
        with pytest.raises(ValueError, match=r"00002\.safetensors is no whole safetensors file \(.*download it again"):
            quantize_folder(source, target)
    assert not target.exists()


def test_a_source_that_shrinks_while_it_is_read(source, target):
    def cut(done, total):
        with open(source / SHARDS[1], "r+b") as file:
            file.truncate(900)

    with pytest.raises(ValueError, match=r"00002\.safetensors ended before byte \d+; it changed while it was read"):
        quantize_folder(source, target, progress=cut)
    assert {path.name for path in target.iterdir()} == {SHARDS[0], streaming.JOURNAL}


def test_too_little_room_is_seen_before_a_shard_is_begun(source, target, monkeypatch):
    usage = shutil.disk_usage(source)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"needs \d+ bytes for model-00001.* and has 1000; make room and call again"):
        quantize_folder(source, target)
    assert {path.name for path in target.iterdir()} == {streaming.JOURNAL}


@pytest.mark.skipif(os.name != "posix", reason="limits of the system")
def test_a_full_disk_leaves_no_half_shard(source, target):
    import resource

    save_file({"a.weight": noise(64, 512)}, source / SHARDS[1])  # 16 KiB packed
    (source / streaming.INDEX).unlink()
    old, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    (source / SHARDS[0]).rename(source / "0.safetensors")
    save_file({"b.weight": noise(8, 32)}, source / "0.safetensors")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, limits[1]))
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            quantize_folder(source, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert {path.name for path in target.iterdir()} == {"0.safetensors", streaming.JOURNAL}
    assert quantize_folder(source, target).found == ("0.safetensors",)


MEASURED = """
import sys
import torch
from compresslab.quantization.streaming import quantize_folder
torch.set_num_threads(1)
small, large, target = sys.argv[1:]
quantize_folder(small, target + "1")  # whatever is loaded on first use
def peak():  # ru_maxrss would start at what the parent holds
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))
before = peak()
quantize_folder(large, target + "2")
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
def test_memory_does_not_grow_with_the_model(tmp_path):
    for name, count, rows in (("small", 1, 1024), ("large", 3, 8192)):
        (tmp_path / name).mkdir()
        shard = {f"{i}.weight": torch.ones(rows, 1024, dtype=torch.bfloat16) for i in range(count)}
        save_file(shard, tmp_path / name / "model.safetensors")
    # Three tensors of 16 MiB in one shard. A tensor's scales take 1 MiB, its zero points a quarter; the rest is slack
    # of the allocator. The tensor as float32 would take 32 MiB, the shard 48.
    command = [sys.executable, "-c", MEASURED, *(str(tmp_path / name) for name in ("small", "large", "out"))]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 32 * 2**20


def test_layers_made_from_a_folder_take_what_it_takes(source, target):
    report = quantize_folder(source, target)
    layers = {name: PackedLinear(weight) for name, weight in load_packed(target).weights.items()}
    assert {*layers} == {*report.quantized}
    assert all(isinstance(layer, nn.Module) for layer in layers.values())
    for name, weight in load_packed(target).weights.items():
        assert layers[name].nbytes == weight.nbytes
