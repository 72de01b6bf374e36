"""A checkpoint larger than memory, quantized shard by shard, block of rows by block of rows.

Rounding to nearest needs of a weight no more than the rows that share no scale with others. So the shards are read and
written in blocks: a safetensors file is the length of its header (8 bytes, little-endian), the header (JSON: dtype,
shape and place of each tensor) and the bytes, and all that the header of a new shard says is known before the first
weight is read. Memory holds a block, and the scales of one tensor.

A new shard gets its name when it is whole, and a line with its digest in ``quantize.json``; a later call finds the line,
checks the file and goes on with the rest. The tensors of ``layer.weight`` are ``layer.packed``, ``layer.scale`` and
``layer.zero_point``: the names in the state dict of a ``PackedLinear``.

Longer than other files: the file format, the journal and the way back are read together.

    The safetensors format, https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from compresslab.quantization.affine import Grid, Quantized, integer_levels, quantize
from compresslab.quantization.packing import pack, unpack

__all__ = ["EMBEDDINGS", "PackedFolder", "StreamReport", "load_packed", "quantize_folder"]

EMBEDDINGS = ("*embed*", "*wte*", "*wpe*")  # names that they have in public checkpoints
INDEX, JOURNAL, KEY = "model.safetensors.index.json", "quantize.json", "compresslab.packed"
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # that are quantized
BLOCK = 2**18  # elements that are quantized at a time
SAMPLE = 4096  # bytes at both ends of each tensor that tell one source from another


@dataclass(frozen=True)
class StreamReport:
    """What was made of a folder of shards."""

    folder: Path
    quantized: tuple[str, ...]  # weights that are packed now
    kept: dict[str, str]  # tensors that were copied as they are: why
    made: tuple[str, ...]  # shards written by this call
    found: tuple[str, ...]  # shards that an earlier call had finished, checked
    source_bytes: int  # of the shards read
    nbytes: int  # of the shards written, headers included


@dataclass(frozen=True, eq=False)
class PackedFolder:
    """A folder of packed shards; a tensor is read when it is asked for."""

    weights: Mapping[str, Quantized]  # by the name of the weight
    others: Mapping[str, Tensor]  # what was kept, by name


def quantize_folder(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    bits: int = 4,
    group_size: int | None = 32,
    symmetric: bool = False,
    skip: Collection[str] = EMBEDDINGS,
    progress: Callable[[int, int], None] | None = None,
) -> StreamReport:
    """A new folder of safetensors shards whose matrices are packed levels with scales and zero points.

    Peak memory does not depend on the size of the model or of a shard: it is a block, and the scales of one tensor.
    An interrupted call leaves whole shards; the same call again goes on after them.

    Args:
        source: a folder of ``*.safetensors``, with or without ``model.safetensors.index.json``.
        target: a folder that is new or empty, or that the same call has begun.
        bits: 1..8.
        group_size: weights of a row that share a scale; None is the whole row. A row that it does not divide gets the
            divisor that is nearest by ratio, as in ``quantize_weights``.
        symmetric: as in ``quantize``.
        skip: patterns (``fnmatch``) of names to keep as they are. What is no matrix of 16 or 32-bit floats is kept too.
        progress: called after each tensor with the bytes read so far and the bytes of all.

    Raises:
        ValueError: an option is out of range, a weight is not finite, there is nothing to quantize, a shard is not
            whole, the index does not fit, or the target was begun from another source (told by sizes, headers and the
            ends of each tensor) or with other options. OSError: the disk is full. FileNotFoundError: there is no shard.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import save_file
        >>> folder = Path(tempfile.mkdtemp())
        >>> save_file({"up.weight": torch.ones(64, 64), "up.bias": torch.ones(64)}, folder / "model.safetensors")
        >>> quantize_folder(folder, folder / "packed").kept
        {'up.bias': 'not a matrix'}
        >>> load_packed(folder / "packed").weights["up.weight"].dequantize()[0, 0].item()
        1.0
    """
    source, target = Path(source), Path(target)
    integer_levels(bits, symmetric=symmetric)  # refuses what is no number of bits
    if bits > 8 or (group_size is not None and group_size < 1):
        raise ValueError(f"bits={bits} must be in 1..8, group_size={group_size} at least 1 or None; try 4 and 32")
    headers = _headers(source)
    options = {"bits": bits, "group_size": group_size, "symmetric": symmetric, "skip": sorted(skip)}
    plans = {file: _Plan(header, **options) for file, (header, _) in headers.items()}
    kept = {name: why for plan in plans.values() for name, why in plan.kept.items()}
    quantized = tuple(name for plan in plans.values() for name in plan.packed)
    if not quantized:
        raise ValueError(f"{source} holds no weight to quantize: {kept or 'it holds no tensor'}")
    names = Counter(name for plan in plans.values() for name in plan.names)
    if twice := [name for name, times in names.items() if times > 1]:
        raise ValueError(f"{twice} would be written twice; rename these tensors or leave them out of the source")
    prints = {file: _fingerprint(source / file, *headers[file]) for file in headers}
    journal = _journal(target, {"options": options, "source": prints})
    made, found = [], []
    total, done = sum((source / file).stat().st_size for file in headers), 0
    for file, plan in plans.items():
        if file in journal["shards"] and journal["shards"][file] == _state(target / file):
            found.append(file)
        else:
            if (free := shutil.disk_usage(target).free) < plan.size:
                raise OSError(f"{target} needs {plan.size} bytes for {file} and has {free}; make room and call again")
            with _whole(target / file) as new, open(source / file, "rb") as old:
                for read in plan.write(old, *headers[file], new):
                    if progress is not None:
                        progress(done + read, total)
            journal["shards"][file] = _state(target / file)
            _save(target / JOURNAL, journal)
            made.append(file)
        done += (source / file).stat().st_size
    sizes = [journal["shards"][file]["size"] for file in plans]
    index = {name: file for file, plan in plans.items() for name in plan.places}
    _save(target / INDEX, {"metadata": {"total_size": sum(sizes)}, "weight_map": index})
    return StreamReport(target, quantized, kept, tuple(made), tuple(found), total, sum(sizes))


def load_packed(folder: str | os.PathLike) -> PackedFolder:
    """The packed weights and the other tensors of a folder, read when they are asked for, one by one.

    A model loads without its float weights: make it on the meta device, ``pack_linears(model, found.weights)``, then
    ``load_state_dict(dict(found.others), strict=False, assign=True)``.

    Raises:
        FileNotFoundError: ``quantize_folder`` has not finished the folder. ValueError: a shard is not whole.
    """
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(f"{folder / INDEX} is missing; call quantize_folder to its end")
    weights, others = {}, {}
    for file, (header, _) in _headers(folder).items():
        with safe_open(folder / file, framework="pt") as shard:
            packed = json.loads((shard.metadata() or {}).get(KEY, "{}"))
        weights |= {name: (folder / file, name, what) for name, what in packed.items()}
        parts = {_root(name) + part for name in packed for part in ("packed", "scale", "zero_point")}
        others |= {name: (folder / file, name) for name in header if name not in parts}
    return PackedFolder(_Lazy(weights, _read_weight), _Lazy(others, _read_tensor))


class _Lazy(Mapping):
    """A mapping whose values are read when they are asked for."""

    def __init__(self, places: dict[str, tuple], read: Callable) -> None:
        self.places, self.read = places, read

    def __getitem__(self, name: str) -> Tensor | Quantized:
        return self.read(*self.places[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def _read_tensor(path: Path, name: str) -> Tensor:
    with safe_open(path, framework="pt") as shard:
        return shard.get_tensor(name).clone()  # its own memory: the file may go


def _read_weight(path: Path, name: str, what: dict) -> Quantized:
    bits, symmetric, (rows, columns) = what["bits"], what["symmetric"], what["shape"]
    packed, scale = (_read_tensor(path, _root(name) + part) for part in ("packed", "scale"))
    levels = torch.empty(rows * columns, dtype=torch.int8 if symmetric else torch.uint8)
    for part, block in zip(levels.split(BLOCK), packed.split(BLOCK * bits // 8), strict=True):
        part.copy_(unpack(block, len(part), bits=bits, signed=symmetric))
    zero_point = torch.zeros_like(scale)
    if not symmetric:
        zero_point = unpack(_read_tensor(path, _root(name) + "zero_point"), scale.shape, bits=bits, signed=False)
    axis = 0 if what["group_size"] is None else None
    grid = Grid(scale, zero_point.to(torch.int32), bits, symmetric, axis, what["group_size"])
    return Quantized(levels.reshape(rows, columns), grid, DTYPES[what["dtype"]])


class _Plan:
    """What becomes of the tensors of one shard, and where it stands in the new one."""

    def __init__(self, header: dict, bits: int, group_size: int | None, symmetric: bool, skip: Collection[str]) -> None:
        self.packed, self.kept, new = {}, {}, []  # new: (name, dtype, shape, bytes)
        for name, spec in header.items():
            if why := _why_kept(name, spec, skip):
                self.kept[name] = why
                new.append((name, spec["dtype"], spec["shape"], spec["data_offsets"][1] - spec["data_offsets"][0]))
                continue
            rows, columns = spec["shape"]
            size = None if group_size is None else _divisor(columns, group_size)
            self.packed[name] = {
                "shape": [rows, columns], "dtype": spec["dtype"], "bits": bits, "symmetric": symmetric, "group_size": size
            }  # fmt: skip
            scales = [rows] if size is None else [rows, columns // size]
            sizes = [-(-rows * columns * bits // 8), -(-math.prod(scales) * bits // 8)]
            new.append((_root(name) + "packed", "U8", sizes[:1], sizes[0]))
            new.append((_root(name) + "scale", "F32", scales, 4 * math.prod(scales)))
            if not symmetric:
                new.append((_root(name) + "zero_point", "U8", sizes[1:], sizes[1]))
        self.names, self.places, place = [name for name, *_ in new], {}, 0
        head = {"__metadata__": {"format": "pt", KEY: json.dumps(self.packed)}}
        for name, dtype, shape, size in sorted(new, key=lambda part: -_width(part[1])):  # so that all are aligned
            head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [place, place + size]}
            self.places[name], place = place, place + size
        text = json.dumps(head).encode()
        text += b" " * (-len(text) % 8)
        self.head = len(text).to_bytes(8, "little") + text
        self.size = len(self.head) + place

    def write(self, old: BinaryIO, header: dict, start: int, new: BinaryIO) -> Iterator[int]:
        """Write the new shard, yielding how many bytes of the old one are done after each tensor."""
        new.write(self.head)
        for name, spec in header.items():
            begin, end = (start + offset for offset in spec["data_offsets"])
            if name in self.kept:
                self._seek(new, name)
                for place in range(begin, end, BLOCK):
                    new.write(_bytes_at(old, place, min(BLOCK, end - place)))
            else:
                self._write_packed(name, old, begin, new)
            yield end

    def _seek(self, new: BinaryIO, name: str) -> None:
        new.seek(len(self.head) + self.places[name])

    def _write_packed(self, name: str, old: BinaryIO, begin: int, new: BinaryIO) -> None:
        what, scales, zeros = self.packed[name], [], []
        bits, symmetric, size = what["bits"], what["symmetric"], what["group_size"]
        self._seek(new, _root(name) + "packed")
        for block in _blocks(old, begin, what):
            try:
                part = quantize(block, bits=bits, symmetric=symmetric, axis=None if size else 0, group_size=size)
            except ValueError as error:
                bad = sum(torch.stack([b.isnan().sum(), b.isinf().sum()]) for b in _blocks(old, begin, what)).tolist()
                of = f"{bad[0]} NaN and {bad[1]} infinite of {math.prod(what['shape'])}"
                raise ValueError(f"{name} must be finite, got {of}; mend it or name it in skip") from error
            new.write(pack(part.levels, bits=bits, signed=symmetric).numpy())
            scales.append(part.scale)
            zeros.append(part.zero_point.to(torch.uint8))
        self._seek(new, _root(name) + "scale")
        for part in scales:
            new.write(part.numpy())
        if not symmetric:
            self._seek(new, _root(name) + "zero_point")
            for part in torch.cat(zeros).reshape(-1).split(BLOCK):
                new.write(pack(part, bits=bits, signed=False).numpy())


def _blocks(file: BinaryIO, begin: int, what: dict) -> Iterator[Tensor]:
    """Some rows of a matrix at a time: a multiple of 8, so that their levels end where a byte ends."""
    (rows, columns), dtype = what["shape"], DTYPES[what["dtype"]]
    step, width = max(8, BLOCK // columns // 8 * 8), columns * dtype.itemsize
    for first in range(0, rows, step):
        count = min(step, rows - first)
        block = torch.frombuffer(_bytes_at(file, begin + first * width, count * width), dtype=dtype)
        yield block.reshape(count, columns).to(torch.float32)  # exact, and quicker to compute with


def _bytes_at(file: BinaryIO, place: int, size: int) -> bytearray:
    file.seek(place)
    found = bytearray(size)
    if file.readinto(found) != size:
        raise ValueError(f"{file.name} ended before byte {place + size}; it changed while it was read, so call again")
    return found


def _why_kept(name: str, spec: dict, skip: Collection[str]) -> str:
    if len(spec["shape"]) != 2 or 0 in spec["shape"]:
        return "not a matrix"
    if spec["dtype"] not in DTYPES:
        return f"{spec['dtype']}: only {', '.join(DTYPES)} are quantized"
    return next((f"skip: {pattern}" for pattern in skip if fnmatchcase(name, pattern)), "")


def _root(name: str) -> str:
    return name.removesuffix("weight") if f".{name}".endswith(".weight") else f"{name}."


def _width(dtype: str) -> int:
    return int("".join(filter(str.isdigit, dtype.partition("_")[0])) or 8)


def _divisor(length: int, wanted: int) -> int:
    divisors = [size for size in range(1, length + 1) if length % size == 0]
    return min(divisors, key=lambda size: abs(math.log(size / wanted)))


def _headers(folder: Path) -> dict[str, tuple[dict, int]]:
    """Of each shard: the header, and the byte after it."""
    index = {}
    if (folder / INDEX).is_file():
        index = _load(folder / INDEX, "weight_map")[0]
    files = sorted({*index.values()} or {path.name for path in folder.glob("*.safetensors")})
    if not files:
        raise FileNotFoundError(f"{folder} holds no *.safetensors file; give the folder that holds the shards")
    headers = {}
    for file in files:
        if Path(file).name != file or not (folder / file).is_file():
            raise FileNotFoundError(f"{file!r}, named in {INDEX}, is no file of {folder}; download it again")
        try:
            with safe_open(folder / file, framework="pt"), open(folder / file, "rb") as shard:  # the library checks it
                size = int.from_bytes(shard.read(8), "little")
                header = json.loads(shard.read(size))
        except SafetensorError as error:
            raise ValueError(f"{folder / file} is no whole safetensors file ({error}); download it again") from error
        header.pop("__metadata__", None)
        headers[file] = (header, 8 + size)
    if lost := [name for name, file in index.items() if name not in headers[file][0]]:
        raise ValueError(f"{lost[:3]} are in {INDEX}, but not in their shards; download the folder again")
    return headers


def _fingerprint(path: Path, header: dict, start: int) -> str:
    digest = hashlib.sha256(json.dumps([path.stat().st_size, header]).encode())
    with open(path, "rb") as file:
        for spec in header.values():
            begin, end = (start + offset for offset in spec["data_offsets"])
            for place in (begin, max(begin, end - SAMPLE)):
                digest.update(_bytes_at(file, place, min(SAMPLE, end - place)))
    return digest.hexdigest()


def _state(path: Path) -> dict | None:
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _journal(target: Path, wanted: dict) -> dict:
    if not (target / JOURNAL).is_file():
        if target.exists() and any(not path.name.startswith(".") for path in target.iterdir()):
            raise ValueError(f"{target} holds files and no {JOURNAL}; give a folder that is new or empty")
        target.mkdir(parents=True, exist_ok=True)
        _save(target / JOURNAL, wanted | {"shards": {}})
    shards, *begun = _load(target / JOURNAL, "shards", *wanted)
    for (part, value), old in zip(wanted.items(), begun, strict=True):
        if old != value:
            raise ValueError(
                f"{target} was begun with {part} {old}, not {value}; give another target, or empty this one"
            )
    return wanted | {"shards": shards}


def _load(path: Path, *keys: str) -> list[dict]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [content[key] for key in keys]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{path} must hold JSON with {', '.join(keys)}, got {error!r}; make its folder again"
        ) from error


def _save(path: Path, content: dict) -> None:
    with _whole(path) as file:
        file.write(json.dumps(content, indent=1).encode())


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when it is whole; what a killed process left of it is removed."""
    for stray in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        stray.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
