"""Labelled images in three splits, by one call: ``load(name)``.

``glyphs`` (rendered here) and ``digits`` (8 x 8, from scikit-learn) need no download; ``cifar10`` and
``fashion-mnist`` are fetched once, by torchvision's addresses and checksums; any folder or zip of images has its own.
Texts (``python-docs``, ``tiny-shakespeare``, ``wikitext-2``, any text file) come as ``compresslab.workbench.text`` says.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import inspect
import io
import json
import os
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import torch
from torch import Tensor

from compresslab.workbench import glyphs
from compresslab.workbench.download import cached, fetch, shared_folder
from compresslab.workbench.files import CorruptArtifact, cache_dir
from compresslab.workbench.vision import torchvision

if TYPE_CHECKING:
    from PIL.Image import Image

    from compresslab.workbench.text import TextSplits

__all__ = ["Batches", "Split", "Splits", "load", "names"]

IN_MEMORY = 2**28  # bytes of a split that are decoded in memory; a larger one is streamed to the disk
LARGEST = 2**26  # pixels of one image in a folder: a small file can claim to be a huge picture
EXTENSIONS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_T = TypeVar("_T")
LAYOUT = 1  # counted up whenever the same arguments give other splits; part of the names of cached files


class Batches:
    """Batches that can be gone through again and again; ``len`` says how many there are.

    Args:
        take: makes a batch from its indices.
        count: how many samples there are.
        batch_size: samples in a batch; the last may be smaller.
        shuffle: a new order each time.
        drop_last: leave out a last batch that is smaller.
        generator: source of the order; one seeded with 0 if None.

    Raises:
        ValueError: the batch size is below 1, or no batch would be left.
    """

    def __init__(
        self,
        take: Callable[[Tensor], tuple[Tensor, Tensor]],
        count: int,
        *,
        batch_size: int,
        shuffle: bool = False,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r} must be a whole number of at least 1; try 64")
        if drop_last and batch_size > count:
            raise ValueError(
                f"batch_size={batch_size} with drop_last leaves no batch of {count} samples; make it smaller"
            )
        self._take, self._count, self._size = take, count, batch_size
        self._shuffle, self._drop_last = shuffle, drop_last
        self._generator = torch.Generator().manual_seed(0) if generator is None else generator

    def __len__(self) -> int:
        return self._count // self._size if self._drop_last else -(-self._count // self._size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = self._count
        order = torch.randperm(count, generator=self._generator) if self._shuffle else torch.arange(count)
        for batch in order.split(self._size)[: len(self)]:
            yield self._take(batch)


@dataclass(frozen=True, eq=False)
class Split:
    """Images with labels.

    Attributes:
        images: (N, C, H, W) uint8; may be memory-mapped.
        labels: (N,) int64.
        mean, std: per channel, of the train split, for pixels in 0..1.
        groups: (N,) int64, say the font of each glyph, for accuracy by group; or None.

    Raises:
        ValueError: there is no image, or shapes do not fit.
        TypeError: images are not uint8, or labels or groups not int64.
    """

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        images, count = self.images, len(self.images)
        if images.dtype is not torch.uint8:
            way = "for images in 0..1 pass (255 * images).round().to(torch.uint8)"
            raise TypeError(f"images must be uint8, in 0..255, got {images.dtype}; {way}")
        if images.dim() != 4 or 0 in images.shape:
            raise ValueError(f"images {tuple(images.shape)} must be (N, C, H, W) with at least one image")
        for name, values in (("labels", self.labels), ("groups", self.groups)):
            if values is not None and values.dtype is not torch.int64:
                raise TypeError(f"{name} must be int64, got {values.dtype}; pass {name}.long()")
            if values is not None and values.shape != (count,):
                raise ValueError(f"{name} {tuple(values.shape)} must be one for each of {count} images")
        if not len(self.mean) == len(self.std) == images.shape[1] or not all(value > 0 for value in self.std):
            raise ValueError(
                f"mean={self.mean} and std={self.std} must be one for each of {images.shape[1]} channels, std > 0"
            )

    def __len__(self) -> int:
        return len(self.images)

    def inputs(self, index: Tensor | slice | None = None) -> Tensor:
        """The images, or those at ``index``, normalized: (n, C, H, W) float32, ``(pixel / 255 - mean) / std``."""
        pixels = self.images if index is None else self.images[index]
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return pixels.float().div_(255).sub_(mean.to(pixels.device)).div_(std.to(pixels.device))

    def take(self, which: int | Tensor) -> Split:
        """The first so many, or those at the indices (N,) int64; normalized as before.

        Raises:
            ValueError: more than there are, or an index outside.
        """
        if isinstance(which, int):
            if not 1 <= which <= len(self):
                raise ValueError(f"take({which}) must be in 1..{len(self)}, the number of images")
            index = slice(which)
        else:
            index = torch.as_tensor(which)
            outside = index[(index < 0) | (index >= len(self))] if index.dtype is torch.int64 else ()
            if len(outside):
                raise ValueError(f"index {int(outside[0])} must be in 0..{len(self) - 1}")
        groups = None if self.groups is None else self.groups[index]
        return replace(self, images=self.images[index], labels=self.labels[index], groups=groups)

    def batches(
        self,
        batch_size: int = 256,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
    ) -> Batches:
        """Batches of (inputs (B, C, H, W) float32, labels (B,) int64), as ``Batches`` says.

        Example:
            >>> split = load("digits").test
            >>> inputs, labels = next(iter(split.batches(64)))
            >>> tuple(inputs.shape), tuple(labels.shape)
            ((64, 1, 8, 8), (64,))
        """
        return Batches(
            lambda index: (self.inputs(index), self.labels[index]),
            len(self),
            batch_size=batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            generator=generator,
        )


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set: choose on ``val``, report on ``test``.

    Raises:
        ValueError: fewer than two classes, shapes that differ between splits, or a label or group without a name.
    """

    name: str
    train: Split
    val: Split
    test: Split
    class_names: tuple[str, ...]
    group_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise ValueError(f"{self.name}: class_names={self.class_names} must be at least two")
        for split, part in (("train", self.train), ("val", self.val), ("test", self.test)):
            if part.images.shape[1:] != self.train.images.shape[1:]:
                shapes = f"{tuple(part.images.shape[1:])} and {tuple(self.train.images.shape[1:])}"
                raise ValueError(f"{self.name}: images of {split} and train must have one shape, got {shapes}")
            for kind, values, named in (
                ("label", part.labels, self.class_names),
                ("group", part.groups, self.group_names),
            ):
                bad = () if values is None else ((values < 0) | (values >= len(named))).nonzero()
                if len(bad):
                    first = int(bad[0])
                    found = f"{kind} {int(values[first])} at index {first} ({len(bad)} in all)"
                    raise ValueError(f"{self.name}: {split} must have {kind}s in 0..{len(named) - 1}, got {found}")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return tuple(self.train.images.shape[1:])

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)


def names() -> tuple[str, ...]:
    """The data sets that ``load`` knows by name.

    Example:
        >>> names()[:2]
        ('glyphs', 'digits')
    """
    return tuple(_sources())


def load(
    name: str | os.PathLike = "glyphs",
    *,
    root: str | os.PathLike | None = None,
    progress: bool = False,
    **options: object,
) -> Splits | TextSplits:
    """Load a data set in train, val and test splits; the same arguments give the same data.

    ``COMPRESSLAB_DATA`` names a folder to look in first, as ``compresslab.workbench.download`` says.

    Args:
        name: one of ``names()``, or a path to images (a folder or a zip file) or to a text file; a path that is not
            there is also looked for below ``COMPRESSLAB_DATA``. A folder called ``digits`` is ``./digits``.
            Images lie in ``train/<class>/`` and ``test/<class>/``, with ``val/<class>/`` if there is one (else a tenth
            of train is kept apart); or just in ``<class>/``, and are then split 80 : 10 : 10. Either may be in one
            folder more. They are turned to RGB (grey, if all are) and to ``size`` x ``size``, by scaling the shorter
            side and cutting the middle; other files are left alone. They come in a fixed, shuffled order.
        root: the folder of downloaded data, ``cache_dir() / "data"`` if None; torchvision's own layout.
        progress: show progress bars.
        **options: ``train``, ``val``, ``test``: how many images of each (glyphs: 16000, 2000, 4000; else all).
            glyphs also takes ``characters``, ``fonts`` (some of ``glyphs.fonts()``), ``size`` and ``seed``;
            images by path take ``size`` (32) and ``seed`` of the split.

    Raises:
        ValueError: no such name or path, an option out of range, or images laid out otherwise.
        TypeError: an option that this data set does not have.
        CorruptArtifact: an image that cannot be read.
        DataUnavailable: a download is needed and impossible; the message says which file to put where.

    Example:
        >>> splits = load("glyphs", train=620, val=62, test=62, characters="0123456789")
        >>> len(splits.train), splits.input_shape, splits.num_classes
        (620, (1, 32, 32), 10)
    """
    builder = _sources().get(name) if isinstance(name, str) else None
    if builder is None:
        builder = _by_path(name)
    known = inspect.signature(builder).parameters
    for option in options:
        if option not in known or option in ("root", "progress"):
            choice = ", ".join(key for key in known if key not in ("root", "progress")) or "none"
            raise TypeError(f"{name} has no option {option!r}; its options: {choice}")
    places = {key: value for key, value in (("root", root), ("progress", progress)) if key in known}
    return builder(**places, **options)


def _sources() -> dict[str, Callable[..., Splits | TextSplits]]:
    from compresslab.workbench import text

    return {
        "glyphs": _glyphs,
        "digits": _digits,
        "cifar10": functools.partial(_torchvision, "cifar10"),
        "fashion-mnist": functools.partial(_torchvision, "fashion-mnist"),
        "python-docs": text.python_docs,
        "tiny-shakespeare": text.tiny_shakespeare,
        "wikitext-2": text.wikitext_2,
    }


def _by_path(name: str | os.PathLike) -> Callable[..., Splits | TextSplits]:
    from compresslab.workbench import text

    path, shared = Path(name).expanduser(), shared_folder()
    if not path.exists() and shared is not None:
        path = shared / path
    if not path.exists():
        close = difflib.get_close_matches(str(name), names(), n=1)
        way = f"did you mean {close[0]!r}?" if close else "check the path"
        raise ValueError(f"{str(name)!r} must be one of {', '.join(names())}, or a path that exists; {way}")
    if path.is_dir() or path.suffix.lower() == ".zip":
        return functools.partial(_images, path)
    return functools.partial(text.text_file, path)


def _glyphs(
    *,
    train: int = 16000,
    val: int = 2000,
    test: int = 4000,
    characters: str = glyphs.CHARACTERS,
    fonts: Sequence[str] | None = None,
    size: int = 32,
    seed: int = 0,
) -> Splits:
    fonts = glyphs.fonts() if fonts is None else tuple(fonts)
    counts = {"train": train, "val": val, "test": test}

    def make() -> tuple[dict[str, Tensor], dict[str, str]]:
        tensors = {}
        for split, count in counts.items():
            generator = _seeded("glyphs", seed, split)
            made = glyphs.render(count, characters=characters, fonts=fonts, size=size, generator=generator)
            tensors |= {f"{split}.images": made.images, f"{split}.labels": made.labels, f"{split}.groups": made.groups}
        return tensors, _naming(characters, fonts)

    key = _key(glyphs.versions(), counts, characters, fonts, size, seed)
    return _splits("glyphs", *cached(f"glyphs/glyphs-{key}.safetensors", make))


def _digits(*, train: int | None = None, val: int | None = None, test: int | None = None) -> Splits:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images)  # (1797, 8, 8) float64, whole numbers in 0..16
    images = (pixels * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    tensors = {}
    for split, index in zip(("train", "val", "test"), _stratified(labels.tolist(), (0.1, 0.2), 0), strict=True):
        tensors |= {f"{split}.images": images[index], f"{split}.labels": labels[index]}
    return _splits("digits", tensors, _naming(map(str, bunch.target_names)), train=train, val=val, test=test)


def _torchvision(
    name: str,
    *,
    train: int | None = None,
    val: int | None = None,
    test: int | None = None,
    root: str | os.PathLike | None = None,
    progress: bool = False,
) -> Splits:
    """torchvision's data sets from their archives, where torchvision puts them; a tenth of train is kept apart as val."""
    datasets = torchvision().datasets
    if name == "cifar10":
        kind = datasets.CIFAR10
        archives = {kind.filename: (kind.url, kind.tgz_md5)}
    else:
        kind = datasets.FashionMNIST
        archives = {f"FashionMNIST/raw/{file}": (kind.mirrors[0] + file, md5) for file, md5 in kind.resources}

    def make() -> tuple[dict[str, Tensor], dict[str, str]]:
        with tempfile.TemporaryDirectory() as folder:
            for file, (url, md5) in archives.items():
                archive = fetch(file, url, f"md5:{md5}", root=root, progress=progress)
                target = Path(folder, file).parent
                target.mkdir(parents=True, exist_ok=True)
                datasets.utils.extract_archive(str(archive), str(target))
            parts = [kind(folder, train=True), kind(folder, train=False)]
        (images, labels), (test_images, test_labels) = (_channels_first(part) for part in parts)
        chosen, kept, _ = _stratified(labels.tolist(), (0.1, 0.0), 0)
        tensors = {
            **{"train.images": images[chosen], "train.labels": labels[chosen]},
            **{"val.images": images[kept], "val.labels": labels[kept]},
            **{"test.images": test_images, "test.labels": test_labels},
        }
        return tensors, _naming(parts[0].classes)

    tensors, metadata = cached(f"images/{name}-{_key(name, archives)}.safetensors", make)
    return _splits(name, tensors, metadata, train=train, val=val, test=test)


def _channels_first(part: object) -> tuple[Tensor, Tensor]:
    images = torch.as_tensor(part.data)  # (N, H, W) or (N, H, W, C) uint8
    images = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()
    return images, torch.as_tensor(part.targets).long()


def _images(
    source: Path,
    *,
    size: int = 32,
    train: int | None = None,
    val: int | None = None,
    test: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Splits:
    """Images of a folder or a zip file. No more than ``IN_MEMORY`` bytes of a split are decoded in memory."""
    if size < 1:
        raise ValueError(f"size={size} must be at least 1 pixel; try 32")
    limits = {"train": train, "val": val, "test": test}
    with _zip_files(source) if source.is_file() else _tree_files(source) as (files, open_file):
        class_names, parts = _arrange(source, files, seed)
        parts = {split: samples[: _checked(limits[split], samples, split)] for split, samples in parts.items()}

        def make() -> tuple[dict[str, Tensor], dict[str, str]]:
            def read(name: str) -> contextlib.AbstractContextManager[Image]:
                return _opened(source, name, open_file)

            grey = all(_is_grey(read, name) for samples in parts.values() for name, _ in samples)
            tensors = {}
            for split, samples in parts.items():
                names = [name for name, _ in samples]
                tensors[f"{split}.images"] = _decode(read, names, size, 1 if grey else 3, progress)
                tensors[f"{split}.labels"] = torch.tensor([label for _, label in samples])
            return tensors, _naming(class_names)

        key = _key(
            source.resolve(),
            class_names,
            [[(*sample, files[sample[0]]) for sample in part] for part in parts.values()],
            size,
        )
        return _splits(str(source), *cached(f"images/folder-{key}.safetensors", make))


@contextlib.contextmanager
def _tree_files(root: Path) -> Iterator[tuple[dict[str, str], Callable[[str], BinaryIO]]]:
    """Files below a folder, by name relative to it, with a stamp that changes when they do; folders end in a slash."""

    def fail(error: OSError) -> None:
        raise error

    root = root.resolve()
    files = {}
    for folder, folders, names in os.walk(root, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in [*folders, *names]:
            path = Path(folder, name)
            relative = path.relative_to(root).as_posix()
            if path.is_symlink() and (path.is_dir() or not path.resolve().is_relative_to(root)):
                raise ValueError(
                    f"{root}: {relative} must not be a link to a folder or out of {root.name}; copy it there"
                )
            if path.is_dir():
                files[f"{relative}/"] = ""
            elif path.is_file():
                status = path.stat()
                files[relative] = f"{status.st_size}-{status.st_mtime_ns}"
    yield files, lambda name: open(root / name, "rb")  # noqa: SIM115 (closed by whoever asks for it)


@contextlib.contextmanager
def _zip_files(source: Path) -> Iterator[tuple[dict[str, str], Callable[[str], BinaryIO]]]:
    """The same for a zip file. Nothing is extracted; names that lead elsewhere are refused all the same."""
    try:
        archive = zipfile.ZipFile(source)
    except zipfile.BadZipFile as error:
        raise CorruptArtifact(f"{source} is not a whole zip file ({error}); fetch or make it again") from error
    with archive:
        files = {}
        for entry in archive.infolist():
            name = entry.filename
            if name.startswith("/") or "\\" in name or ":" in name.split("/")[0] or ".." in name.split("/"):
                raise ValueError(f"{source}: {name!r} must not lead out of the archive; make the archive again")
            if stat.S_ISLNK(entry.external_attr >> 16):
                raise ValueError(f"{source}: {name!r} must not be a link; make the archive again with the file itself")
            files[name] = f"{entry.file_size}-{entry.CRC:08x}"
        yield files, archive.open


def _arrange(
    source: Path, files: Mapping[str, str], seed: int
) -> tuple[tuple[str, ...], dict[str, list[tuple[str, int]]]]:
    """Class names, and by split the name and label of each image, in a shuffled order that ``seed`` decides."""
    found = _by_class(source, files)
    class_names = tuple(sorted(found["train"]))
    if len(class_names) < 2:
        raise ValueError(f"{source} must have at least two folders of images, one for each class, got {class_names}")
    samples = {}
    for split, classes in found.items():
        if unknown := sorted(set(classes) - set(class_names)):
            raise ValueError(f"{source}: class {unknown[0]!r} of {split} must be a class of train: {class_names}")
        both = [(name, label) for label, kind in enumerate(class_names) for name in classes.get(kind, ())]
        samples[split] = _shuffled(both, seed, split)
    missing = {split: 0.0 if split in found else 0.1 for split in ("val", "test")}
    if any(missing.values()):
        try:
            indices = _stratified([label for _, label in samples["train"]], tuple(missing.values()), seed, class_names)
        except ValueError as error:
            raise ValueError(f"{source}: {error}; add images, or make folders train/, val/ and test/") from error
        pieces = ([samples["train"][i] for i in index] for index in indices)
        samples = {
            **dict(zip(("train", "val", "test"), pieces, strict=True)),
            **{s: samples[s] for s in found if s != "train"},
        }
    return class_names, samples


def _by_class(source: Path, files: Mapping[str, str]) -> dict[str, dict[str, list[str]]]:
    """Names of images by split and class; what has no split folders is all train."""
    paths = {name: tuple(name.rstrip("/").split("/")) for name in sorted(files)}
    paths = {
        name: parts for name, parts in paths.items() if not any(part.startswith((".", "__MACOSX")) for part in parts)
    }
    images = {name for name in paths if os.path.splitext(name)[1].lower() in EXTENSIONS}
    outer = _outer_folder([paths[name] for name in images])
    below = {name: parts[len(outer) :] for name, parts in paths.items() if parts[: len(outer)] == outer}
    folders = {name: parts if name.endswith("/") else parts[:-1] for name, parts in below.items()}
    tops = {parts[0] for parts in folders.values() if parts}
    divided = bool(tops & {"train", "val", "test"})
    if divided and not {"train", "test"} <= tops <= {"train", "val", "test"}:
        rule = "with train/ there must be test/, perhaps val/, and no other folder"
        raise ValueError(f"{source}: {rule}, got {sorted(tops)}; rename or remove folders, or keep only class folders")
    found: dict[str, dict[str, list[str]]] = {split: {} for split in (sorted(tops) if divided else ["train"])}
    for name, parts in folders.items():
        split, *rest = parts if divided and parts else ("train", *parts)
        if rest:
            found[split].setdefault(rest[0], []).extend([name] if name in images else [])
        elif name in images:
            raise ValueError(f"{source}: {name} must lie in a folder that names its class; move it to one")
    for split, classes in found.items():
        for label, members in classes.items():
            if not members:
                where = f"{split}/{label}" if divided else label
                raise ValueError(
                    f"{source}: class folder {where} must have at least one image, got none; remove or fill it"
                )
    return found


def _outer_folder(images: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The folders around all images that name neither a class nor a split."""
    outer = []
    for first, last in zip(min(images, default=())[:-2], max(images, default=())[:-2], strict=False):
        if first != last or first in ("train", "val", "test"):
            break
        outer.append(first)
    return tuple(outer)


@contextlib.contextmanager
def _opened(source: Path, name: str, open_file: Callable[[str], BinaryIO]) -> Iterator[Image]:
    from PIL import Image

    try:
        with open_file(name) as file, Image.open(file) as image:
            if image.width * image.height > LARGEST:
                raise ValueError(f"{image.width} x {image.height} is more than {LARGEST} pixels")
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"mode {image.mode} is not 8 bits per channel")
            yield image
    except Exception as error:  # for a broken file Pillow and zipfile raise errors of a dozen kinds
        raise CorruptArtifact(f"{source}: {name} cannot be read as an image ({error}); repair or remove it") from error


def _is_grey(read: Callable[[str], contextlib.AbstractContextManager[Image]], name: str) -> bool:
    with read(name) as image:
        return image.mode in ("1", "L")


def _decode(
    read: Callable[[str], contextlib.AbstractContextManager[Image]],
    names: Sequence[str],
    size: int,
    channels: int,
    progress: bool,
) -> Tensor:
    """(N, channels, size, size) uint8; mapped from a temporary file where it is larger than ``IN_MEMORY``."""
    import numpy as np
    from PIL import Image, ImageOps
    from tqdm.auto import tqdm

    shape = (len(names), channels, size, size)
    large = len(names) * channels * size * size > IN_MEMORY
    # Written, not mapped while it grows: a full disk is an error here, and a crash there.
    file = tempfile.TemporaryFile(dir=_scratch()) if large else io.BytesIO()  # noqa: SIM115 (lives on in the map)
    for name in tqdm(names, desc="decoding", unit="image", disable=not progress):
        with read(name) as image:
            image = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
            image = ImageOps.fit(image, (size, size), method=Image.Resampling.BILINEAR)
            pixels = np.asarray(image).reshape(size, size, channels)
        file.write(np.ascontiguousarray(pixels.transpose(2, 0, 1)).data)
    if large:
        file.flush()
        return torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="c", shape=shape))
    return torch.frombuffer(file.getbuffer(), dtype=torch.uint8).view(shape)


def _scratch() -> Path | None:
    try:
        return cache_dir()
    except OSError:
        return None  # the system's temporary folder


def _stratified(
    labels: Sequence[int], fractions: tuple[float, float], seed: int, class_names: Sequence[object] = range(1000)
) -> tuple[list[int], ...]:
    """Indices of train, val and test: of each class these fractions (val, test), at least one image if not 0."""
    members: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        members.setdefault(label, []).append(i)
    parts: tuple[list[int], ...] = ([], [], [])
    for label, indices in sorted(members.items()):
        count = len(indices)
        val, test = (max(1, round(fraction * count)) if fraction else 0 for fraction in fractions)
        if val + test >= count:
            needed = val + test + 1
            raise ValueError(
                f"class {class_names[label]!r} must have at least {needed} images to be split, got {count}"
            )
        indices = _shuffled(indices, seed, label)
        for part, piece in zip(parts, (indices[val + test :], indices[:val], indices[val : val + test]), strict=True):
            part.extend(piece)
    return tuple(_shuffled(part, seed, split) for part, split in zip(parts, ("train", "val", "test"), strict=True))


def _shuffled(items: Sequence[_T], *seeds: object) -> list[_T]:
    return [items[i] for i in torch.randperm(len(items), generator=_seeded(*seeds)).tolist()]


def _splits(name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], **limits: int | None) -> Splits:
    """Splits from tensors called train.images, train.labels, perhaps train.groups, and so on."""
    columns = {}
    for split in ("train", "val", "test"):
        limit = _checked(limits.get(split), tensors[f"{split}.images"], split)
        fields = {field: tensors.get(f"{split}.{field}") for field in ("images", "labels", "groups")}
        columns[split] = {field: None if value is None else value[:limit] for field, value in fields.items()}
    mean, std = _statistics(columns["train"]["images"])
    parts = {split: Split(**fields, mean=mean, std=std) for split, fields in columns.items()}
    naming = {field: tuple(json.loads(metadata[field])) for field in ("class_names", "group_names")}
    return Splits(name, **parts, **naming)


def _checked(limit: int | None, available: Sequence[object] | Tensor, split: str) -> int:
    if limit is None:
        return len(available)
    if not 1 <= limit <= len(available):
        raise ValueError(f"{split}={limit} must be in 1..{len(available)}, the number of images there are")
    return limit


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in 0..1 units: exact counts of 256 values, whatever the threads."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.zeros(images.shape[1], 256, dtype=torch.float64)
    for chunk in images.split(max(1, 2**22 // images[0].numel())):  # a few MB at a time, also of mapped images
        for channel in range(images.shape[1]):
            counts[channel] += torch.bincount(chunk[:, channel].flatten(), minlength=256)
    share = counts / counts.sum(1, keepdim=True)
    mean = (share * levels).sum(1)
    std = (share * (levels - mean.unsqueeze(1)).square()).sum(1).sqrt()
    return tuple(mean.tolist()), tuple(value or 1.0 for value in std.tolist())  # a constant channel is not scaled


def _naming(class_names: Sequence[str], group_names: Sequence[str] = ()) -> dict[str, str]:
    return {"class_names": json.dumps(list(class_names)), "group_names": json.dumps(list(group_names))}


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps([LAYOUT, *parts], default=str).encode()).hexdigest()[:20]


def _seeded(*parts: object) -> torch.Generator:
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
