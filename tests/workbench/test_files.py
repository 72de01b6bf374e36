"""Files that are whole or absent, and tensors that are what was saved: also after damage, attack, kill and a full disk."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from compresslab.workbench import files
from compresslab.workbench.files import CorruptArtifact, atomic_write, cache_dir, load_tensors, offline, save_tensors

POSIX = pytest.mark.skipif(os.name != "posix", reason="needs fork and signals")


def sample() -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    tensors = {
        "weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
        "levels": torch.tensor([-8, 7], dtype=torch.int8),
        "mask": torch.tensor([True, False]),
        "half": torch.tensor(1.5, dtype=torch.bfloat16),
        "none": torch.zeros(0, 3),
    }
    return tensors, {"architecture": "mlp", "note": "grün"}


def assert_same(loaded: dict[str, torch.Tensor], saved: dict[str, torch.Tensor]) -> None:
    assert set(loaded) == set(saved)
    for name, tensor in saved.items():
        assert loaded[name].dtype is tensor.dtype
        assert torch.equal(loaded[name], tensor), name


def python(script: str, *arguments: object) -> subprocess.CompletedProcess:
    head = "import os, random, signal, sys, time, torch\nfrom pathlib import Path\n"
    head += "from compresslab.workbench.files import load_tensors, save_tensors\npath = Path(sys.argv[1])\n"
    return subprocess.run(
        [sys.executable, "-c", head + script, *map(str, arguments)], capture_output=True, text=True, timeout=120
    )


# What is loaded is what was saved


def test_round_trip(tmp_path):
    tensors, metadata = sample()
    path = save_tensors(tmp_path / "grüne Äpfel" / ("x" * 150 + ".safetensors"), tensors, metadata)
    loaded, found = load_tensors(path)
    assert_same(loaded, tensors)
    assert found == metadata
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_no_tensor_and_no_metadata_is_fine(tmp_path):
    assert load_tensors(save_tensors(tmp_path / "a", {})) == ({}, {})


def test_the_digest_does_not_depend_on_the_order(tmp_path):
    tensors, metadata = sample()
    first = files._digest(tensors, metadata)
    assert first == files._digest(dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert first != files._digest({**tensors, "mask": ~tensors["mask"]}, metadata)
    assert first != files._digest({**tensors, "none": torch.zeros(3, 0)}, metadata)
    assert first != files._digest(tensors, {**metadata, "note": "grun"})


def test_a_tie_is_written_once_and_comes_back_tied(tmp_path):
    weight = torch.rand(1000)
    loaded, metadata = load_tensors(save_tensors(tmp_path / "a", {"embedding": weight, "head": weight}))
    assert loaded["embedding"] is loaded["head"]
    assert torch.equal(loaded["head"], weight)
    assert metadata == {}
    assert (tmp_path / "a").stat().st_size < 4000 + 1000


def test_a_view_is_written_as_what_it_shows(tmp_path):
    big = torch.arange(100_000.0)
    views = {"part": big[5:15], "column": big.reshape(100, 1000)[:, 3], "spread": torch.ones(1).expand(4)}
    assert_same(load_tensors(save_tensors(tmp_path / "a", views))[0], views)
    assert (tmp_path / "a").stat().st_size < 2000


def test_other_views_of_one_memory_are_written_apart(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    views = {"a": base, "flat": base.view(-1), "row": base[0], "turned": base.t(), "bits": base.view(torch.int32)}
    assert_same(load_tensors(save_tensors(tmp_path / "a", views))[0], views)


def test_lazy_conjugates_and_negatives_are_resolved(tmp_path):
    values = torch.complex(torch.arange(6.0), torch.ones(6)).reshape(2, 3)
    lazy = {"conjugate": values.conj(), "turned": values.t().conj(), "negative": values.conj().imag, "plain": values}
    assert_same(load_tensors(save_tensors(tmp_path / "a", lazy))[0], lazy)


def test_parameters_are_saved_and_left_alone(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(3))
    save_tensors(tmp_path / "a", {"p": parameter})
    assert parameter.requires_grad
    assert torch.equal(load_tensors(tmp_path / "a")[0]["p"], torch.ones(3))


@pytest.mark.parametrize(
    ("tensors", "metadata", "error", "message"),
    [
        ({"a": [1.0]}, None, TypeError, r"tensors\['a'\] must be a Tensor, got list"),
        ({"a": torch.eye(3).to_sparse()}, None, ValueError, r"tensors\['a'\] is of layout torch.sparse_coo"),
        ({"a": torch.empty(3, device="meta")}, None, ValueError, r"tensors\['a'\] is on the meta device"),
        ({}, {"epochs": 3}, TypeError, r"metadata\['epochs'\] must be text, got int; use json.dumps"),
        ({}, {"compresslab.ties": "x"}, ValueError, r"metadata\['compresslab.ties'\] is a name that save_tensors"),
        ({}, {"compresslab.sha256": "x"}, ValueError, r"metadata\['compresslab.sha256'\] is a name"),
        ({}, {"compresslab.format": "1"}, ValueError, r"metadata\['compresslab.format'\] is a name"),
    ],
)
def test_what_cannot_be_saved_is_refused(tmp_path, tensors, metadata, error, message):
    with pytest.raises(error, match=message):
        save_tensors(tmp_path / "a", tensors, metadata)
    assert list(tmp_path.iterdir()) == []


def test_files_of_others_load_without_a_digest(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "a", metadata={"format": "pt"})
    assert load_tensors(tmp_path / "a")[1] == {"format": "pt"}


def test_a_changed_file_loads_only_unchecked(tmp_path):
    path = save_tensors(tmp_path / "a", {"a": torch.zeros(8, dtype=torch.uint8)})
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CorruptArtifact, match="does not match its digest; make it again"):
        load_tensors(path)
    assert load_tensors(path, check=False)[0]["a"].tolist() == [0] * 7 + [1]


def mutant(content: bytes, chance: random.Random) -> bytes:
    kind, where = chance.randrange(5), chance.randrange(len(content))
    if kind == 0:
        return content[:where]
    if kind == 1:
        return content[:where] + content[where + 1 :]
    if kind == 2:
        return content + content[where:]
    changed = bytearray(content)
    changed[where] = changed[where] ^ (1 << chance.randrange(8)) if kind == 3 else chance.randrange(256)
    return bytes(changed)


def test_no_mutant_is_taken_for_what_was_saved(tmp_path):
    tensors, metadata = sample()
    tensors["tied"] = tensors["weight"]
    content = save_tensors(tmp_path / "a", tensors, metadata).read_bytes()
    chance, path = random.Random(0), tmp_path / "mutant"
    refused = 0
    for _ in range(5000):
        path.unlink(missing_ok=True)  # to write over a file can take ten times as long
        path.write_bytes(mutant(content, chance))
        try:
            loaded, found = load_tensors(path)
        except CorruptArtifact:
            refused += 1
            continue
        assert_same(loaded, tensors)
        assert found == metadata
    assert refused > 4500


# Attacks


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def safetensors_bytes(header: str | bytes, data: bytes = b"") -> bytes:
    header = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(header)) + header + data


ENTRY = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'


def attacks(marker: Path) -> dict[str, bytes]:
    torch_file, zipped = io.BytesIO(), io.BytesIO()
    torch.save(Payload(marker), torch_file)
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(10_000_000))
    meta = '{"__metadata__":%s,"a":' + ENTRY + "}"
    eight = bytes(8)
    return {
        "pickle": pickle.dumps(Payload(marker)),
        "torch pickle": torch_file.getvalue(),
        "zip bomb": zipped.getvalue(),
        "web page": b"\n<!DOCTYPE html><title>Log in</title>" + bytes(100),
        "empty": b"",
        "seven bytes": bytes(7),
        "huge header": struct.pack("<Q", 1 << 62) + b"{}",
        "header longer than the file": struct.pack("<Q", 90_000_000) + b"{}",
        "no JSON": safetensors_bytes("import os"),
        "deep JSON": safetensors_bytes("[" * 100_000),
        "not UTF-8": safetensors_bytes(b'{"\xff":1}'),
        "null": safetensors_bytes("null"),
        "tensor twice": safetensors_bytes(f'{{"a":{ENTRY},"a":{ENTRY}}}', eight),
        "metadata twice": safetensors_bytes(meta % '{"x":"1","x":"2"}', eight),
        "overlap": safetensors_bytes(f'{{"a":{ENTRY},"b":{ENTRY}}}', eight),
        "hole": safetensors_bytes(f'{{"a":{ENTRY}}}', bytes(16)),
        "too short": safetensors_bytes(f'{{"a":{ENTRY}}}', bytes(7)),
        "overflow": safetensors_bytes(f'{{"a":{ENTRY}}}'.replace("[2]", f"[{2**63 - 1},{2**63 - 1}]"), eight),
        "negative": safetensors_bytes(f'{{"a":{ENTRY}}}'.replace("[2]", "[-2]"), eight),
        "unknown dtype": safetensors_bytes(f'{{"a":{ENTRY}}}'.replace("F32", "X99"), eight),
        "ties are a list": safetensors_bytes(meta % '{"compresslab.ties":"[1]"}', eight),
        "ties lead nowhere": safetensors_bytes(meta % json.dumps({"compresslab.ties": '{"b":"c"}'}), eight),
        "ties are deep": safetensors_bytes(meta % json.dumps({"compresslab.ties": "[" * 100_000}), eight),
        "ties to a list": safetensors_bytes(meta % json.dumps({"compresslab.ties": '{"b":[]}'}), eight),
        "digest without format": safetensors_bytes(meta % '{"compresslab.sha256":"0"}', eight),
        "format without digest": safetensors_bytes(meta % '{"compresslab.format":"1"}', eight),
    }


@pytest.mark.parametrize("name", attacks(Path()))
def test_an_attack_is_refused_and_runs_nothing(tmp_path, name):
    marker, path = tmp_path / "marker", tmp_path / "model.safetensors"
    path.write_bytes(attacks(marker)[name])
    with pytest.raises(CorruptArtifact, match=r"model\.safetensors"):
        load_tensors(path)
    assert not marker.exists()


def test_the_payload_is_live(tmp_path):
    """The attack would run if the file were unpickled: else the test above proves nothing."""
    pickle.loads(attacks(tmp_path / "marker")["pickle"]).close()
    assert (tmp_path / "marker").exists()


def test_messages_say_what_it_is(tmp_path):
    for name, words in {"web page": "a login or proxy page", "tensor twice": "'a' stands twice"}.items():
        (tmp_path / "a").write_bytes(attacks(tmp_path)[name])
        with pytest.raises(CorruptArtifact, match=words):
            load_tensors(tmp_path / "a")


def test_a_folder_or_nothing_is_not_found(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match="is not a file"):
            load_tensors(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    path = save_tensors(tmp_path / "a", {})

    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files, "safe_open", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(CorruptArtifact, match="Permission denied"):
        load_tensors(path)


# All or nothing


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError, ValueError])
def test_after_an_error_the_old_file_stands(tmp_path, stop):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half of the n")
            raise stop

    with pytest.raises(stop):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_an_oserror_and_the_old_file_stands(tmp_path, monkeypatch):
    import safetensors.torch

    path = save_tensors(tmp_path / "a", {"a": torch.ones(3)})

    def full(tensors, target, metadata):
        Path(target).write_bytes(b"half")
        raise files.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match=r"a cannot be written: .*No space left on device.*untouched"):
        save_tensors(path, {"a": torch.zeros(3)})
    assert torch.equal(load_tensors(path)[0]["a"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]


@POSIX
def test_a_file_size_limit_leaves_the_old_file(tmp_path):
    path = save_tensors(tmp_path / "a", {"a": torch.ones(3)})
    script = (
        "import resource; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try: save_tensors(path, {'a': torch.zeros(100_000)})\n"
        "except OSError as error: print(error)\n"
    )
    done = python(script, path)
    assert "a cannot be written" in done.stdout, done.stderr
    assert torch.equal(load_tensors(path)[0]["a"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]


@POSIX
def test_killed_at_any_moment_the_file_is_whole(tmp_path):
    script = """
def save_forever(first):
    for k in range(first, 10**9):
        save_tensors(path, {"a": torch.full((20_000,), k)}, {"k": str(k)})
save_tensors(path, {"a": torch.full((20_000,), 0)}, {"k": "0"})
chance, last = random.Random(0), 0
for _ in range(30):
    child = os.fork()
    if child == 0:
        save_forever(last + 1)
    time.sleep(chance.uniform(0.01, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    tensors, metadata = load_tensors(path)
    k = int(metadata["k"])
    assert k >= last and torch.equal(tensors["a"], torch.full((20_000,), k))
    last = k
print(last)
"""
    done = python(script, tmp_path / "a")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30


@POSIX
def test_two_writers_and_a_reader(tmp_path):
    script = """
save_tensors(path, {"a": torch.zeros(20_000), "b": torch.zeros(5)}, {"k": "0"})
children = []
for k in (1, 2):
    child = os.fork()
    if child == 0:
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            save_tensors(path, {"a": torch.full((20_000,), float(k)), "b": torch.full((5,), float(k))}, {"k": str(k)})
        os._exit(0)
    children.append(child)
seen, reads = set(), 0
while children:
    tensors, metadata = load_tensors(path)
    k = float(metadata["k"])
    assert tensors["a"].eq(k).all() and tensors["b"].eq(k).all()
    seen.add(k)
    reads += 1
    children = [child for child in children if os.waitpid(child, os.WNOHANG) == (0, 0)]
print(reads, len(seen))
"""
    done = python(script, tmp_path / "a")
    assert done.returncode == 0, done.stderr
    reads, seen = map(int, done.stdout.split())
    assert reads > 20
    assert seen >= 2
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_a_killed_save_left_is_swept_once_it_is_old(tmp_path):
    old, new, other = (tmp_path / name for name in (".a[1].x1.tmp", ".a[1].x2.tmp", ".b.x3.tmp"))
    for path in (old, new, other):
        path.write_text("half")
    for path in (old, other):
        os.utime(path, (time.time() - 2 * files.STALE_S,) * 2)
    save_tensors(tmp_path / "a[1]", {})
    assert {path.name for path in tmp_path.iterdir()} == {"a[1]", new.name, other.name}


@POSIX
def test_a_saved_file_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        save_tensors(tmp_path / "a", {})
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_file_that_never_stands_still_is_an_error(tmp_path, monkeypatch):
    path = save_tensors(tmp_path / "a", {})
    numbers = iter(range(1000))
    monkeypatch.setattr(files, "_identity", lambda path: next(numbers))
    with pytest.raises(CorruptArtifact, match=r"a is replaced faster than it can be read"):
        load_tensors(path)


# Folders


@pytest.fixture
def no_home(tmp_path, monkeypatch):
    """A home below a regular file: nobody can make it, not even root."""
    (tmp_path / "file").write_text("")
    for name in ("HOME", "USERPROFILE", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "file" / "home"))
    for name in ("COMPRESSLAB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path


def test_the_cache_is_where_the_variable_says(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSLAB_CACHE", str(tmp_path / "été 1"))
    assert cache_dir() == tmp_path / "été 1"
    assert list(cache_dir().iterdir()) == []


def test_a_cache_that_cannot_be_made_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COMPRESSLAB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OSError, match=r"COMPRESSLAB_CACHE=.*file.cache' cannot be made or written; point it"):
        cache_dir()


@pytest.mark.skipif(sys.platform == "win32", reason="the home is no environment variable there")
def test_without_a_home_the_cache_is_temporary_with_a_notice(no_home):
    with pytest.warns(UserWarning, match=r"cannot be written; caching in .*\(set COMPRESSLAB_CACHE to choose\)"):
        folder = cache_dir()
    assert folder.parent == no_home / "temporary"


@pytest.mark.skipif(sys.platform == "win32", reason="the home is no environment variable there")
def test_with_nowhere_to_write_the_error_names_both(no_home, monkeypatch):
    monkeypatch.setattr(files.tempfile, "tempdir", str(no_home / "file" / "temporary"))
    with pytest.raises(OSError, match=r"neither .* nor .* can be written; set COMPRESSLAB_CACHE"):
        cache_dir()


@pytest.mark.parametrize(("value", "expected"), [(None, False), ("", False), ("0", False), ("1", True), ("yes", True)])
def test_offline(monkeypatch, value, expected):
    monkeypatch.delenv("COMPRESSLAB_OFFLINE", raising=False)
    if value is not None:
        monkeypatch.setenv("COMPRESSLAB_OFFLINE", value)
    assert offline() is expected


def test_sha256_of(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")  # the example of FIPS 180-2, appendix B.1
    assert files.sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
