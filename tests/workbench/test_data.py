"""Images in splits: normalization, batches, and every source that ``load`` knows."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import stat
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from compresslab.workbench import data, glyphs
from compresslab.workbench.data import Split, Splits, load, names
from compresslab.workbench.files import CorruptArtifact, DataUnavailable, cache_dir
from compresslab.workbench.vision import torchvision

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
SMALL = {"train": 124, "val": 62, "test": 62}


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COMPRESSLAB_OFFLINE", "1")
    monkeypatch.delenv("COMPRESSLAB_DATA", raising=False)


def split_of(count: int = 10, **fields: object) -> Split:
    """Image i is 1 x 1 and gray i, its label is i modulo 2."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1)
    return Split(**{"images": images, "labels": torch.arange(count) % 2, "mean": (0.0,), "std": (1 / 255,), **fields})


def assert_equal(first: Splits, second: Splits) -> None:
    for name in ("train", "val", "test"):
        one, two = getattr(first, name), getattr(second, name)
        assert (one.mean, one.std) == (two.mean, two.std)
        for field in ("images", "labels", "groups"):
            left, right = getattr(one, field), getattr(two, field)
            assert left is right is None or torch.equal(left, right), (name, field)
    assert (first.class_names, first.group_names) == (second.class_names, second.group_names)


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# Splits


def test_inputs_by_hand():
    # (51 / 255 - 0.2) / 0.5 = 0; (255 / 255 - 0.2) / 0.5 = 1.6; second channel: (0 - 0.5) / 0.25 = -2; (1 - 0.5) / 0.25 = 2
    images = torch.tensor([[[[51, 255]], [[0, 255]]]], dtype=torch.uint8)  # (1, 2, 1, 2)
    split = Split(images, torch.tensor([0]), (0.2, 0.5), (0.5, 0.25))
    assert torch.allclose(split.inputs(), torch.tensor([[[[0.0, 1.6]], [[-2.0, 2.0]]]]), atol=1e-6)
    assert split.inputs().dtype is torch.float32
    assert images.flatten().tolist() == [51, 255, 0, 255]


def test_inputs_of_some():
    split = split_of()
    assert split.inputs(torch.tensor([3, 1])).flatten().tolist() == pytest.approx([3, 1])
    assert split.inputs(slice(2, 4)).flatten().tolist() == pytest.approx([2, 3])


def test_take():
    split = split_of(groups=torch.arange(10))
    for part, expected in ((split.take(3), [0, 1, 2]), (split.take(torch.tensor([7, 0])), [7, 0])):
        assert part.images.flatten().tolist() == part.groups.tolist() == expected
        assert part.labels.tolist() == [i % 2 for i in expected]
        assert (part.mean, part.std) == (split.mean, split.std)
    assert split.take(split.labels == 1).groups.tolist() == [1, 3, 5, 7, 9]


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (0, r"take\(0\) must be in 1\.\.10"),
        (11, r"take\(11\) must be in 1\.\.10, the number of images"),
        (torch.tensor([1, 10]), r"index 10 must be in 0\.\.9"),
        (torch.tensor([-1]), r"index -1 must be in 0\.\.9"),
        (torch.tensor([], dtype=torch.int64), r"images \(0, 1, 1, 1\) must be .* with at least one image"),
    ],
)
def test_take_checks(which, message):
    with pytest.raises(ValueError, match=message):
        split_of().take(which)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        (
            {"images": torch.rand(10, 1, 1, 1)},
            TypeError,
            r"images must be uint8, in 0..255, got torch.float32; for images in 0",
        ),
        (
            {"images": torch.zeros(10, 1, 1, dtype=torch.uint8)},
            ValueError,
            r"images \(10, 1, 1\) must be \(N, C, H, W\)",
        ),
        ({"images": torch.zeros(0, 1, 1, 1, dtype=torch.uint8)}, ValueError, "with at least one image"),
        ({"labels": torch.zeros(10)}, TypeError, r"labels must be int64, got torch.float32; pass labels.long\(\)"),
        ({"groups": torch.zeros(10).int()}, TypeError, "groups must be int64, got torch.int32"),
        ({"labels": torch.zeros(9).long()}, ValueError, r"labels \(9,\) must be one for each of 10 images"),
        ({"mean": (0.0, 0.0)}, ValueError, r"mean=\(0.0, 0.0\) and std=.* must be one for each of 1 channels"),
        ({"std": (0.0,)}, ValueError, r"std=\(0.0,\) must be .* std > 0"),
    ],
)
def test_a_split_checks_itself(fields, error, message):
    with pytest.raises(error, match=message):
        split_of(**fields)


def splits_of(**fields: object) -> Splits:
    return Splits(
        **{"name": "x", **dict.fromkeys(("train", "val", "test"), split_of()), "class_names": ("a", "b"), **fields}
    )


def test_splits_know_their_shape():
    assert (splits_of().input_shape, splits_of().num_classes) == ((1, 1, 1), 2)


def test_splits_check_themselves():
    bad = torch.tensor([0, 1, 2, 0, -1, 0, 0, 0, 0, 0])
    with pytest.raises(ValueError, match=r"x: val must have labels in 0\.\.1, got label 2 at index 2 \(2 in all\)"):
        splits_of(val=split_of(labels=bad))
    with pytest.raises(ValueError, match=r"x: test must have labels in 0\.\.1, got label -1 at index 0 \(1 in all\)"):
        splits_of(test=split_of(3, labels=torch.tensor([-1, 0, 1])))
    with pytest.raises(ValueError, match=r"x: train must have groups in 0\.\.0, got group 1 at index 1"):
        splits_of(train=split_of(3, groups=torch.tensor([0, 1, 0])), group_names=("g",))
    with pytest.raises(ValueError, match=r"x: class_names=\('a',\) must be at least two"):
        splits_of(class_names=("a",))
    other = split_of(images=torch.zeros(10, 1, 2, 1, dtype=torch.uint8))
    with pytest.raises(
        ValueError, match=r"x: images of val and train must have one shape, got \(1, 2, 1\) and \(1, 1, 1\)"
    ):
        splits_of(val=other)


# Batches


@given(count=st.integers(1, 60), size=st.integers(1, 70), shuffle=st.booleans(), drop_last=st.booleans())
@settings(derandomize=True, deadline=None, max_examples=80)
def test_batches_hold_each_image_once(count, size, shuffle, drop_last):
    if drop_last and size > count:
        return
    batches = split_of(count).batches(size, shuffle=shuffle, drop_last=drop_last)
    for _ in range(2):
        found = list(batches)
        assert len(found) == len(batches)
        assert all(len(inputs) == size for inputs, _ in found[: None if drop_last else -1])
        values = [round(value) for inputs, _ in found for value in inputs.flatten().tolist()]
        assert len(set(values)) == len(values) == (count // size * size if drop_last else count)
        assert [value % 2 for value in values] == [label for _, labels in found for label in labels.tolist()]
        if not shuffle:
            assert values == sorted(values)


def order(batches: data.Batches) -> list[int]:
    return [round(value) for inputs, _ in batches for value in inputs.flatten().tolist()]


def test_shuffle_draws_a_new_order_from_the_generator():
    def seeded() -> data.Batches:
        return split_of(50).batches(7, shuffle=True, generator=torch.Generator().manual_seed(5))

    batches, state = seeded(), torch.get_rng_state()
    first, second = order(batches), order(batches)
    assert first != second != list(range(50))
    assert [first, second] == [order(again) for again in [seeded()] for _ in range(2)]
    split = split_of(50)
    assert order(split.batches(7, shuffle=True)) == order(split.batches(7, shuffle=True))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [0, -1, 2.5, None])
def test_a_batch_size_is_a_whole_number(size):
    with pytest.raises(ValueError, match=f"batch_size={size} must be a whole number of at least 1; try 64"):
        split_of().batches(size)


def test_dropping_the_only_batch_is_an_error():
    assert len(split_of(10).batches(10, drop_last=True)) == 1
    with pytest.raises(ValueError, match="batch_size=11 with drop_last leaves no batch of 10 samples; make it smaller"):
        split_of(10).batches(11, drop_last=True)


# Names, paths, options


def test_names():
    expected = {"glyphs", "digits", "cifar10", "fashion-mnist", "python-docs", "tiny-shakespeare", "wikitext-2"}
    assert set(names()) == expected


def test_a_wrong_name_is_corrected():
    with pytest.raises(
        ValueError, match=r"'digts' must be one of glyphs, digits, .*, or a path that exists; did you mean 'digits'"
    ):
        load("digts")
    with pytest.raises(ValueError, match=r"'no/such/folder' must be one of .*; check the path"):
        load("no/such/folder")


@pytest.mark.parametrize("option", ["colour", "root", "progress"])
def test_a_wrong_option_is_named(option):
    message = f"digits has no option {option!r}; its options: train, val, test"
    if option in ("root", "progress"):  # known to load, without use for digits
        assert len(load("digits", **{option: None}).train) == 1259
    else:
        with pytest.raises(TypeError, match=message):
            load("digits", **{option: 1})


# Glyphs


def test_glyphs_are_as_asked_and_kept():
    splits = load("glyphs", **SMALL, fonts=["cmr10", "DejaVuSerif"], characters="ABC1", size=20, seed=3)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [124, 62, 62]
    assert (splits.name, splits.input_shape, splits.class_names) == ("glyphs", (1, 20, 20), tuple("ABC1"))
    assert splits.group_names == ("cmr10", "DejaVuSerif")
    pixels = splits.train.images.double() / 255
    assert splits.train.mean == pytest.approx([pixels.mean().item()], abs=1e-12)
    assert splits.train.std == pytest.approx([pixels.std(correction=0).item()], abs=1e-12)
    assert splits.test.mean == splits.train.mean
    normalized = splits.train.inputs()
    assert normalized.mean().item() == pytest.approx(0, abs=1e-4)
    assert normalized.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    again = load("glyphs", **SMALL, fonts=["cmr10", "DejaVuSerif"], characters="ABC1", size=20, seed=3)
    assert_equal(splits, again)
    assert len([file for file in files_below(cache_dir()) if file.endswith(".safetensors")]) == 1


def test_the_defaults_of_glyphs(monkeypatch):
    counts = []

    def render(count, *, characters, fonts, size, generator):
        counts.append((count, characters, fonts, size))
        return glyphs.Glyphs(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4).long(), torch.zeros(4).long())

    monkeypatch.setattr(glyphs, "render", render)
    splits = load()
    assert counts == [(count, glyphs.CHARACTERS, glyphs.fonts(), 32) for count in (16000, 2000, 4000)]
    assert (splits.num_classes, len(splits.group_names)) == (62, 21)


def test_the_splits_of_glyphs_are_independent_draws():
    splits, other = (load("glyphs", train=200, val=200, test=200, seed=seed) for seed in (0, 1))
    images = [part.images.flatten(1) for one in (splits, other) for part in (one.train, one.val, one.test)]
    assert len(torch.cat(images).unique(dim=0)) == 1200


def test_held_out_fonts_are_other_groups():
    inside = load("glyphs", **SMALL, fonts=glyphs.fonts()[:-2])
    outside = load("glyphs", **SMALL, fonts=glyphs.fonts()[-2:])
    assert not set(inside.group_names) & set(outside.group_names)
    assert outside.test.groups.unique().tolist() == [0, 1]


@pytest.mark.parametrize(
    "changed", [{"seed": 1}, {"size": 33}, {"test": 63}, {"fonts": ["cmr10"]}, {"characters": "ab"}, "version"]
)
def test_whatever_decides_the_glyphs_decides_the_file(changed, monkeypatch):
    load("glyphs", **SMALL)
    if changed == "version":
        monkeypatch.setattr(glyphs, "RENDERER", glyphs.RENDERER + 1)
        changed = {}
    load("glyphs", **{**SMALL, **changed})
    assert len([file for file in files_below(cache_dir()) if file.endswith(".safetensors")]) == 2


def test_broken_and_unwritable_caches_give_the_same_glyphs(tmp_path, monkeypatch):
    splits = load("glyphs", **SMALL)
    (path,) = (cache_dir() / file for file in files_below(cache_dir()) if file.endswith(".safetensors"))
    content = path.read_bytes()
    path.unlink()  # not written over: the tensors above are mapped from it
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.warns(UserWarning, match="made again now"):
        assert_equal(load("glyphs", **SMALL), splits)
    with warnings.catch_warnings(action="error"):
        assert_equal(load("glyphs", **SMALL), splits)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COMPRESSLAB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="cannot be kept"):
        assert_equal(load("glyphs", **SMALL), splits)


def test_processes_that_start_at_once_get_the_same_glyphs(tmp_path):
    script = (
        "import hashlib, torch; torch.set_num_threads(1); from compresslab.workbench.data import load\n"
        "splits = load('glyphs', train=2000, val=62, test=62)\n"
        "print(hashlib.sha256(splits.train.images.numpy().tobytes()).hexdigest())"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    outputs = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    assert len({output for output, _ in outputs}) == 1
    assert len([file for file in files_below(cache_dir()) if file.endswith(".safetensors")]) == 1


# Digits


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    splits = load("digits")
    parts = (splits.train, splits.val, splits.test)
    assert [len(part) for part in parts] == [1259, 179, 359]
    assert (splits.input_shape, splits.class_names) == ((1, 8, 8), tuple("0123456789"))
    bunch = load_digits()
    ours = sorted(
        (bytes(image), label)
        for part in parts
        for image, label in zip(part.images.flatten(1).numpy(), part.labels.tolist(), strict=True)
    )
    # 16 levels of ink: level k is k * 255 / 16, rounded; 8 is 127.5 and goes to the even 128.
    levels = np.array([0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255], dtype=np.uint8)
    theirs = sorted(
        (bytes(levels[image.astype(int)]), int(label)) for image, label in zip(bunch.data, bunch.target, strict=True)
    )
    assert ours == theirs
    for part in parts:
        share = torch.bincount(part.labels).double() / len(part)
        assert (share - 0.1).abs().max() < 0.006
    assert_equal(load("digits"), splits)


def test_fewer_of_each():
    splits = load("digits", train=20, val=5, test=7)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [20, 5, 7]
    assert torch.equal(splits.train.images, load("digits").train.images[:20])
    for wrong in (0, 360):
        with pytest.raises(ValueError, match=rf"test={wrong} must be in 1\.\.359, the number of images there are"):
            load("digits", test=wrong)


# torchvision's, on small imitations of their files


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def cifar_archive(monkeypatch, count: int = 20) -> tuple[bytes, np.ndarray, list[int]]:
    """cifar-10-python.tar.gz with five train batches and a test batch of ``count`` images, checksums to match."""
    cifar = torchvision().datasets.CIFAR10
    chance = np.random.default_rng(0)
    pixels = chance.integers(0, 256, (6 * count, 3 * 32 * 32), dtype=np.uint8)
    labels = [i % 10 for i in range(6 * count)]
    members = {}
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        part = slice(i * count, (i + 1) * count)
        members[name] = pickle.dumps({"data": pixels[part], "labels": labels[part]})
    class_names = [f"class {i}" for i in range(10)]
    members["batches.meta"] = pickle.dumps({"label_names": class_names})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    monkeypatch.setattr(cifar, "train_list", [[name, md5(members[name])] for name in list(members)[:5]])
    monkeypatch.setattr(cifar, "test_list", [["test_batch", md5(members["test_batch"])]])
    monkeypatch.setattr(cifar, "meta", {**cifar.meta, "md5": md5(members["batches.meta"])})
    monkeypatch.setattr(cifar, "tgz_md5", md5(buffer.getvalue()))
    return buffer.getvalue(), pixels.reshape(-1, 3, 32, 32), labels


def test_cifar10(tmp_path, monkeypatch):
    archive, pixels, labels = cifar_archive(monkeypatch)
    root = tmp_path / "my data"
    root.mkdir()
    (root / "cifar-10-python.tar.gz").write_bytes(archive)
    splits = load("cifar10", root=root)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [90, 10, 20]
    assert splits.class_names == tuple(f"class {i}" for i in range(10))
    assert torch.equal(splits.test.images, torch.from_numpy(pixels[100:]))
    assert splits.test.labels.tolist() == labels[100:]
    ours = sorted(
        (bytes(image), label)
        for part in (splits.train, splits.val)
        for image, label in zip(part.images.flatten(1).numpy(), part.labels.tolist(), strict=True)
    )
    assert ours == sorted(zip(map(bytes, pixels[:100].reshape(100, -1)), labels[:100], strict=True))
    assert splits.val.labels.bincount().tolist() == [1] * 10
    assert files_below(root) == ["cifar-10-python.tar.gz"]
    (root / "cifar-10-python.tar.gz").unlink()
    assert_equal(load("cifar10"), splits)  # from the compact copy in the cache
    few = load("cifar10", train=5, val=2, test=1)
    assert torch.equal(few.train.images, splits.train.images[:5])


def test_fashion_mnist(tmp_path, monkeypatch):
    fashion = torchvision().datasets.FashionMNIST
    chance = np.random.default_rng(0)
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    resources, pixels = [], {}
    for prefix, count in (("train", 40), ("t10k", 10)):
        pixels[prefix] = chance.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        images = struct.pack(">IIII", 2051, count, 28, 28) + pixels[prefix].tobytes()
        labels = struct.pack(">II", 2049, count) + bytes(i % 10 for i in range(count))
        for name, content in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            (raw / f"{name}.gz").write_bytes(gzip.compress(content))
            resources.append((f"{name}.gz", md5((raw / f"{name}.gz").read_bytes())))
    monkeypatch.setattr(fashion, "resources", resources)
    splits = load("fashion-mnist", root=tmp_path)
    assert (splits.input_shape, splits.class_names[9]) == ((1, 28, 28), "Ankle boot")
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [30, 10, 10]
    assert torch.equal(splits.test.images[:, 0], torch.from_numpy(pixels["t10k"]))
    assert splits.test.labels.tolist() == list(range(10))


@pytest.mark.parametrize(
    ("name", "file"),
    [("cifar10", "cifar-10-python.tar.gz"), ("fashion-mnist", "FashionMNIST/raw/train-images-idx3-ubyte.gz")],
)
def test_without_a_network_the_archive_is_named(tmp_path, name, file):
    with pytest.raises(DataUnavailable, match=rf"{file} is not on this machine .*COMPRESSLAB_OFFLINE is set") as caught:
        load(name, root=tmp_path / "root")
    assert str(tmp_path / "root" / file) in str(caught.value)
    assert "with md5 " in str(caught.value)
    assert not (tmp_path / "root").exists()


# Folders and zip files of images


def picture(
    color: int | tuple[int, ...], mode: str = "RGB", size: tuple[int, int] = (4, 4), kind: str = "PNG"
) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, kind)
    return buffer.getvalue()


Write = Callable[[dict[str, bytes]], Path]


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    root.mkdir(exist_ok=True)
    for name, content in files.items():
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(content)
    return root


def write_zip(root: Path, files: dict[str, bytes]) -> Path:
    path = root.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.fixture(params=[write_folder, write_zip])
def write(request, tmp_path) -> Write:
    """Write files as a folder or as a zip file, below a path with spaces and other letters."""
    (tmp_path / "Bilder für alle").mkdir()
    return lambda files: request.param(tmp_path / "Bilder für alle" / "Sätze", files)


def tree(**counts: int) -> dict[str, bytes]:
    """train/red/00.png ...: images of class c of split s are of the color (class, i, split)."""
    files = {}
    for s, (split, count) in enumerate(counts.items()):
        for c, label in enumerate(("blau und rot", "grün")):
            for i in range(count):
                files[f"{split}/{label}/{i:02}.png".removeprefix("all/")] = picture((50 * c, i, 100 * s))
    return files


def found(split: Split) -> list[tuple[int, ...]]:
    """Sorted (red, green, blue, label) of images of one color."""
    assert (split.images == split.images[:, :, :1, :1]).all()
    return sorted(
        (*image, label) for image, label in zip(split.images[:, :, 0, 0].tolist(), split.labels.tolist(), strict=True)
    )


def expected(count: int, s: int) -> list[tuple[int, ...]]:
    return sorted((50 * c, i, 100 * s, c) for c in (0, 1) for i in range(count))


def test_three_splits(write):
    splits = load(write(tree(train=5, val=2, test=3)), size=4)
    for s, (part, count) in enumerate(((splits.train, 5), (splits.val, 2), (splits.test, 3))):
        assert found(part) == expected(count, s)
    assert (splits.input_shape, splits.class_names) == ((3, 4, 4), ("blau und rot", "grün"))
    # By hand: train's red is 0 or 50, equally often: mean 25 / 255, deviation 25 / 255. Green is 0..4: 2 and sqrt(2).
    # Blue is 0 throughout: it is not scaled.
    assert splits.train.mean == pytest.approx((25 / 255, 2 / 255, 0))
    assert splits.train.std == pytest.approx((25 / 255, 2**0.5 / 255, 1))


def test_without_val_a_tenth_of_train_is_kept_apart(write):
    splits = load(write(tree(train=20, test=3)), size=4)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [36, 4, 6]
    assert sorted(found(splits.train) + found(splits.val)) == expected(20, 0)
    assert splits.val.labels.bincount().tolist() == [2, 2]
    assert found(splits.test) == expected(3, 1)


def test_class_folders_alone_are_split(write):
    path = write(tree(all=20))
    splits = load(path, size=4)
    parts = (splits.train, splits.val, splits.test)
    assert [part.labels.bincount().tolist() for part in parts] == [[16, 16], [2, 2], [2, 2]]
    assert 4 < splits.train.labels[:16].sum() < 12, "classes are mixed"
    assert sorted(found(splits.train) + found(splits.val) + found(splits.test)) == expected(20, 0)
    assert_equal(load(path, size=4), splits)
    assert found(load(path, size=4, seed=1).test) != found(splits.test)


def test_the_order_is_a_fixed_shuffle(write):
    path = write(tree(train=30, val=30, test=30))
    splits = load(path, size=4)
    for part in (splits.train, splits.val, splits.test):
        assert 5 < part.labels[:30].sum() < 25
    few = load(path, size=4, train=7, val=3, test=2)
    assert torch.equal(few.train.images, splits.train.images[:7])
    assert [len(part) for part in (few.train, few.val, few.test)] == [7, 3, 2]
    with pytest.raises(ValueError, match=r"train=61 must be in 1\.\.60"):
        load(path, train=61)


def test_an_outer_folder_hidden_files_and_other_files_are_passed_over(write):
    files = {f"data/set 1/{name}": content for name, content in tree(train=3, test=2).items()}
    extra = {
        "README.txt": b"",
        "data/set 1/train/labels.csv": b"",
        "data/docs/more/a.txt": b"",
        "data/set 1/train/grün/Thumbs.db": b"",
    }
    hidden = {
        "__MACOSX/data/._00.png": b"",
        "data/set 1/train/.cache/a.png": b"",
        ".git/a.png": b"",
        "data/set 1/.DS_Store": b"",
    }
    splits = load(write({**files, **extra, **hidden}), size=4)
    assert sorted(found(splits.train) + found(splits.val)) == expected(3, 0)


def test_images_in_folders_of_a_class_count(write):
    files = {
        name.replace("grün/", "grün/more/and more/"): content for name, content in tree(train=3, val=1, test=2).items()
    }
    assert found(load(write(files), size=4).train) == expected(3, 0)


def test_gray_stays_gray_and_one_color_makes_all_color(write):
    files = {
        f"{split}/{label}/{i}.png": picture(40 * i, "L")
        for split in ("train", "val", "test")
        for label in "ab"
        for i in (1, 2)
    }
    gray = load(write(files), size=4)
    assert gray.input_shape == (1, 4, 4)
    assert sorted(gray.train.images[:, 0, 0, 0].tolist()) == [40, 40, 80, 80]
    files["test/b/2.png"] = picture((80, 0, 0))
    color = load(write(files), size=4)
    assert color.input_shape == (3, 4, 4)
    assert sorted(color.train.images[:, :, 0, 0].tolist()) == [[40] * 3] * 2 + [[80] * 3] * 2


def test_the_shorter_side_is_scaled_and_the_middle_kept(write):
    # 12 x 4: two columns black, eight white, two black. The middle 4 x 4 and what it is mixed with is white. Tall alike.
    wide = np.repeat(np.array([[0] * 2 + [255] * 8 + [0] * 2], dtype=np.uint8), 4, axis=0)
    files = {name: picture(0, "L") for name in ("train/b/0.png", "val/a/0.png", "test/a/0.png")}
    for name, pixels in (("train/a/wide.png", wide), ("train/a/tall.png", wide.T)):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        files[name] = buffer.getvalue()
    for size in (2, 4):
        train = load(write(files), size=size).train
        assert train.images[train.labels == 0].flatten().tolist() == [255] * (2 * size * size)


def test_a_turned_photo_is_set_upright(write):
    image = Image.fromarray(np.array([[0, 0], [255, 255]], dtype=np.uint8))
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 3  # orientation: upside down
    image.save(buffer, "PNG", exif=exif)
    files = {name: picture(0, "L") for name in ("train/b/0.png", "val/a/0.png", "test/a/0.png")}
    train = load(write({**files, "train/a/0.png": buffer.getvalue()}), size=2).train
    assert train.images[train.labels == 0].flatten().tolist() == [255, 255, 0, 0]


@pytest.mark.parametrize(("mode", "color"), [("RGBA", (10, 20, 30, 255)), ("P", 3), ("1", 1), ("CMYK", (0, 0, 0, 0))])
def test_other_modes_become_color(write, mode, color):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    files = {**tree(train=2, val=1, test=1), "train/grün/x.tiff": picture(color, mode, kind=kind)}
    assert load(write(files), size=4).input_shape == (3, 4, 4)


def test_a_changed_folder_is_read_again(write):
    files = tree(train=3, val=1, test=1)
    path = write(files)
    before = load(path, size=4)
    files["train/grün/00.png"] = picture((9, 9, 9))
    if path.is_file():
        path.unlink()
    path = write(files)
    after = load(path, size=4)
    assert (9, 9, 9, 1) in found(after.train)
    assert (9, 9, 9, 1) not in found(before.train)


def test_a_large_set_passes_through_the_disk(write, monkeypatch):
    path = write(tree(train=10, test=5))
    splits = load(path, size=4)
    (kept,) = (cache_dir() / file for file in files_below(cache_dir()) if file.endswith(".safetensors"))
    kept.unlink()
    monkeypatch.setattr(data, "IN_MEMORY", 90)
    mapped, memmap = [], np.memmap
    monkeypatch.setattr(np, "memmap", lambda *one, **more: mapped.append(more["shape"]) or memmap(*one, **more))
    assert_equal(load(path, size=4), splits)
    assert sorted(mapped) == [(2, 3, 4, 4), (10, 3, 4, 4), (18, 3, 4, 4)]
    kept.unlink()
    monkeypatch.setattr(data, "cached", lambda name, make: make())
    assert_equal(load(path, size=4), splits)
    assert [file for file in files_below(cache_dir()) if not file.endswith(".lock")] == []


def test_a_large_set_without_a_cache(write, monkeypatch, tmp_path):
    path = write(tree(train=10, test=5))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COMPRESSLAB_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(data, "IN_MEMORY", 100)
    with pytest.warns(UserWarning, match="cannot be kept"):
        assert found(load(path, size=4).test) == expected(5, 1)


def test_progress_is_shown_only_when_asked(write, capfd):
    path = write(tree(train=3, val=1, test=1))
    load(path, size=4)
    assert capfd.readouterr() == ("", "")
    load(path, size=5, progress=True)
    assert "decoding" in capfd.readouterr().err


def without(files: dict[str, bytes], start: str) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if not name.startswith(start)}


WHOLE = tree(train=3, val=2, test=2)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"must have at least two folders of images, one for each class, got \(\)"),
        ({"a.txt": b""}, "must have at least two folders of images"),
        ({"a.png": picture(0)}, "a.png must lie in a folder that names its class; move it to one"),
        ({**tree(all=5), "a.png": picture(0)}, "a.png must lie in a folder that names its class"),
        ({**WHOLE, "train/a.png": picture(0)}, "train/a.png must lie in a folder that names its class"),
        ({"cats/1.png": picture(0), "cats/2.png": picture(0)}, r"at least two folders of images, .* got \('cats',\)"),
        (without(without(WHOLE, "train/g"), "test/g"), r"at least two folders of images, .* got \('blau und rot',\)"),
        (without(WHOLE, "test"), r"with train/ there must be test/, perhaps val/, and no other folder, got \['train', 'val'\]"),
        (tree(train=5), r"with train/ there must be test/, .* got \['train'\]"),
        ({**WHOLE, "extra/a/1.png": picture(0)}, r"no other folder, got \['extra', 'test', 'train', 'val'\]"),
        ({**WHOLE, "test/gelb/1.png": picture(0)}, r"class 'gelb' of test must be a class of train: \('blau und rot', 'grün'\)"),
        ({**WHOLE, "train/gelb/": b""}, "class folder train/gelb must have at least one image, got none; remove or fill it"),
        ({**WHOLE, "test/gelb/a.txt": b""}, None),
        ({**tree(all=5), "gelb/": b""}, "class folder gelb must have at least one image, got none"),
        ({**tree(all=5), "gelb/1.png": picture(0), "gelb/2.png": picture(0)}, "class 'gelb' must have at least 3 images to be split, got 2; add"),
        ({**without(WHOLE, "val"), "train/gelb/1.png": picture(0)}, "class 'gelb' must have at least 2 images to be split, got 1"),
    ],
)  # fmt: skip
def test_another_layout_is_refused(write, files, message):
    with pytest.raises(ValueError, match=message or "class folder test/gelb|class 'gelb' of test"):
        load(write(files), size=4)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot identify image"),
        (b"<html>", "cannot identify image"),
        (picture((1, 2, 3), size=(64, 64))[:-30], ""),
        (picture(300, "I;16"), "mode I;16 is not 8 bits per channel"),
        (picture(0.5, "F", kind="TIFF"), "mode F is not 8 bits per channel"),
    ],
)
def test_an_unreadable_image_is_named(write, content, reason):
    with pytest.raises(
        CorruptArtifact, match=f"Sätze.*train/grün/bad.png cannot be read as an image .*{reason}.*; repair or remove it"
    ):
        load(write({**WHOLE, "train/grün/bad.png": content}), size=4)


def test_a_picture_of_too_many_pixels_is_refused(write, monkeypatch):
    monkeypatch.setattr(data, "LARGEST", 20)
    with pytest.raises(CorruptArtifact, match=r"train/grün/bad.png .*\(7 x 3 is more than 20 pixels\)"):
        load(write({**WHOLE, "train/grün/bad.png": picture(0, size=(7, 3))}), size=4)


def test_a_size_below_one(write):
    with pytest.raises(ValueError, match="size=0 must be at least 1 pixel; try 32"):
        load(write(WHOLE), size=0)


def test_a_folder_below_the_shared_one(write, tmp_path, monkeypatch):
    path = write(WHOLE)
    monkeypatch.setenv("COMPRESSLAB_DATA", str(path.parent))
    assert found(load(path.name, size=4).test) == expected(2, 2)


def test_a_folder_that_has_the_name_of_a_data_set(tmp_path, monkeypatch):
    write_folder(tmp_path / "digits", WHOLE)
    monkeypatch.chdir(tmp_path)
    assert load("digits").input_shape == (1, 8, 8)
    assert load("./digits", size=4).input_shape == load(Path("digits"), size=4).input_shape == (3, 4, 4)


# Links and names that lead elsewhere


@pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
def test_links_out_of_the_folder_are_refused(tmp_path):
    root = write_folder(tmp_path / "set", WHOLE)
    (tmp_path / "secret.png").write_bytes(picture((9, 9, 9)))
    (tmp_path / "elsewhere").mkdir()
    for name, target in (
        ("x.png", tmp_path / "secret.png"),
        ("gone.png", tmp_path / "gone"),
        ("more", tmp_path / "elsewhere"),
    ):
        link = root / "train" / "grün" / name
        link.symlink_to(target)
        with pytest.raises(
            ValueError, match=f"train/grün/{name} must not be a link to a folder or out of set; copy it there"
        ):
            load(root, size=4)
        link.unlink()
    (root / "train" / "grün" / "loop").symlink_to(root)
    with pytest.raises(ValueError, match="train/grün/loop must not be a link to a folder"):
        load(root, size=4)


@pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
def test_links_inside_and_a_link_to_the_folder_are_fine(tmp_path):
    root = write_folder(tmp_path / "set", WHOLE)
    (root / "train" / "grün" / "x.png").symlink_to(root / "train" / "grün" / "00.png")
    (tmp_path / "link").symlink_to(root)
    assert len(load(tmp_path / "link", size=4).train) == 7


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_not_opened(tmp_path):
    root = write_folder(tmp_path / "set", WHOLE)
    os.mkfifo(root / "train" / "grün" / "x.png")
    assert len(load(root, size=4).train) == 6


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    root = write_folder(tmp_path / "set", WHOLE)
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("grün"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="grün"):
        load(root, size=4)


@pytest.mark.parametrize("name", ["../x.png", "/etc/x.png", "train/../../x.png", "train\\..\\x.png", "C:/x.png"])
def test_names_that_lead_out_of_a_zip_are_refused(tmp_path, name):
    path = write_zip(tmp_path / "set", {**WHOLE, name: picture(0)})
    with pytest.raises(ValueError, match=r"set\.zip: .* must not lead out of the archive"):
        load(path, size=4)
    assert files_below(tmp_path) == ["set.zip"]


def test_links_in_a_zip_are_refused(tmp_path):
    path = write_zip(tmp_path / "set", WHOLE)
    with zipfile.ZipFile(path, "a") as archive:
        entry = zipfile.ZipInfo("train/grün/x.png")
        entry.create_system = 3
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(ValueError, match=r"'train/grün/x\.png' must not be a link"):
        load(path, size=4)


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x05\x06" + bytes(10)])
def test_a_broken_zip_is_named(tmp_path, content):
    (tmp_path / "set.zip").write_bytes(content)
    with pytest.raises(CorruptArtifact, match=r"set\.zip is not a whole zip file .*; fetch or make it again"):
        load(tmp_path / "set.zip")


def test_a_flipped_bit_in_a_zip_is_seen(tmp_path):
    path = write_zip(tmp_path / "set", WHOLE)
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("train/grün/00.png")
    content = bytearray(path.read_bytes())
    content[entry.header_offset + 30 + len(entry.filename.encode()) + entry.file_size - 14] ^= (
        1  # within the CRC of IEND
    )
    path.write_bytes(content)
    with pytest.raises(CorruptArtifact, match=r"train/grün/00\.png cannot be read as an image"):
        load(path, size=4)


# Real data, where they are


def test_the_cifar10_jpegs():
    path = SHARED / "cifar10-jpeg.zip"
    if not path.is_file():
        pytest.skip("needs cifar10-jpeg.zip in the folder shared/data beside the checkout")
    with data._zip_files(path) as (files, _):
        class_names, parts = data._arrange(path, files, 0)
    assert {split: len(samples) for split, samples in parts.items()} == {"train": 45000, "val": 5000, "test": 10000}
    assert class_names[3] == "cat"
    splits = load(path, train=200, val=50, test=50)
    assert splits.input_shape == (3, 32, 32)
    assert all(0.3 < mean < 0.6 for mean in splits.train.mean)
    assert splits.train.labels.unique().tolist() == list(range(10))
