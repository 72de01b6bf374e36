"""``compresslab doctor``: is this machine fit for the course, and what can it do? OK, WARN and FAIL with what to do."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Finding", "examine", "report"]

COURSE = ("torch", "torchvision", "numpy", "pandas", "matplotlib", "scikit-learn", "safetensors")
LAB = ("jupyterlab", "ipywidgets", "ipykernel", "nbclient")
RUNTIMES = ("onnxruntime", "onnx", "onnxscript", "openvino", "executorch", "ai-edge-litert", "tensorrt", "torchao")
# name in torch.cpu.get_capabilities(): what it is good for
CPU_FEATURES = {
    "avx2": "fast float32",
    "avx512_f": "faster float32",
    "avx512_vnni": "int8 dot products",
    "avx_vnni": "int8 dot products",
    "avx512_bf16": "bfloat16 dot products",
    "avx512_fp16": "float16 arithmetic",
    "amx_int8": "int8 matrix tiles",
    "amx_bf16": "bfloat16 matrix tiles",
    "neon": "fast float32",
    "dotprod": "int8 dot products",
    "i8mm": "int8 matrix products",
    "bf16": "bfloat16 products",
}


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    level: str  # "OK", "WARN" or "FAIL"
    topic: str
    text: str
    advice: str = ""


def examine() -> list[Finding]:
    """Every finding about this machine, from the interpreter to free disk space; nothing is changed or sent."""
    return [*_interpreter(), *_packages(), *_cpu(), *_accelerator(), *_resources(), *_notebooks()]


def report(findings: list[Finding], *, brief: bool = False) -> str:
    """The findings as text, a line each; ``brief`` keeps WARN and FAIL and ends with a count."""
    shown = [finding for finding in findings if not brief or finding.level != "OK"]
    lines = [f"{f.level:<4}  {f.topic:<12} {f.text}" + (f"\n{'':<19}-> {f.advice}" if f.advice else "") for f in shown]
    counts = [sum(finding.level == level for finding in findings) for level in ("OK", "WARN", "FAIL")]
    return "\n".join([*lines, "{} OK, {} WARN, {} FAIL".format(*counts)])


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _interpreter() -> Iterator[Finding]:
    text = f"{platform.python_implementation()} {platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding("OK", "python", text)


def _packages() -> Iterator[Finding]:
    for name in COURSE:
        version = _version(name)
        if version is None:
            yield Finding("FAIL", name, "missing", f"pip install {name}")
        else:
            yield Finding("OK", name, version)
    try:
        from compresslab.workbench.vision import torchvision

        torchvision()
        yield Finding("OK", "torchvision", "imports beside this torch")
    except Exception as error:
        yield Finding("FAIL", "torchvision", f"does not import: {error}", "install the pair of versions of one release")
    missing = [name for name in LAB if _version(name) is None]
    if missing:
        yield Finding("WARN", "lab", f"missing: {', '.join(missing)}", 'pip install -e ".[lab]"')
    else:
        yield Finding("OK", "lab", ", ".join(f"{name} {_version(name)}" for name in LAB))
    found = [f"{name} {_version(name)}" for name in RUNTIMES if _version(name)]
    if _version("onnxruntime"):
        yield Finding("OK", "runtimes", ", ".join(found))
    else:
        yield Finding("WARN", "runtimes", "no onnxruntime", 'pip install -e ".[export]" (lessons 02, 04, 11, 12)')


def _cpu() -> Iterator[Finding]:
    torch = _torch()
    if torch is None:
        return
    abilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    name = abilities.get("cpu_name") or platform.processor() or platform.machine()
    have = [f"{feature} ({use})" for feature, use in CPU_FEATURES.items() if abilities.get(feature)]
    yield Finding("OK", "cpu", f"{name}, kernels for {torch.backends.cpu.get_cpu_capability()}")
    if have:
        yield Finding("OK", "cpu", ", ".join(have))
    int8 = any(abilities.get(key) for key in ("avx512_vnni", "avx_vnni", "amx_int8", "dotprod", "i8mm"))
    bf16 = any(abilities.get(key) for key in ("avx512_bf16", "amx_bf16", "bf16"))
    fp16 = any(abilities.get(key) for key in ("avx512_fp16", "amx_fp16", "fphp", "fp16_arith"))
    absent = [kind for kind, there in (("int8", int8), ("bfloat16", bf16), ("float16", fp16)) if not there]
    if absent:
        yield Finding("OK", "cpu", f"no instructions for {', '.join(absent)}: expect smaller files there, not speed")


def _torch() -> object | None:
    try:
        return importlib.import_module("torch")
    except Exception:
        return None


def _accelerator() -> Iterator[Finding]:
    torch = _torch()
    if torch is None:
        return
    if torch.cuda.is_available():
        yield Finding("OK", "gpu", f"{torch.cuda.get_device_name(0)} (the course does not need it)")
    elif torch.backends.mps.is_available():
        yield Finding("OK", "gpu", "Apple Metal (the course does not need it)")
    else:
        yield Finding("OK", "gpu", "none, and none is needed")


def _resources() -> Iterator[Finding]:
    import joblib
    import psutil

    torch = _torch()
    allowed = joblib.cpu_count()
    threads = torch.get_num_threads() if torch else 0
    text = f"{allowed} of {os.cpu_count()} processors allowed here, torch would use {threads}"
    if threads > allowed:
        advice = f"set OMP_NUM_THREADS={allowed}; more threads than processors can be many times slower"
        yield Finding("WARN", "threads", text, advice)
    else:
        yield Finding("OK", "threads", text)
    free = psutil.virtual_memory().available / 1e9
    enough = free >= 2
    advice = "" if enough else "close programs; a notebook needs up to 2 GB"
    yield Finding("OK" if enough else "WARN", "memory", f"{free:.1f} GB available", advice)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            from compresslab.workbench.files import cache_dir

            folder = cache_dir()
        except OSError as error:
            yield Finding("FAIL", "cache", str(error))
            return
    space = shutil.disk_usage(folder).free / 1e9
    level = "OK" if space >= 0.5 and not caught else "WARN"
    advice = str(caught[0].message) if caught else "" if space >= 0.5 else "free some space, or set COMPRESSLAB_CACHE"
    yield Finding(level, "cache", f"{_short(folder)}, {space:.0f} GB free", advice)


def _short(folder: Path) -> str:
    """With ~ for the home folder."""
    home = Path.home()
    return f"~/{folder.relative_to(home).as_posix()}" if folder.is_relative_to(home) else str(folder)


def _notebooks() -> Iterator[Finding]:
    folder = Path(__file__).parents[2] / "notebooks"
    count = len(list(folder.glob("[0-9][0-9]_*.ipynb")))
    if count:
        yield Finding("OK", "notebooks", f"{count} lessons beside the package")
    else:
        yield Finding("WARN", "notebooks", "not beside the package", "clone the repository to get the lessons")
    if _version("nbval") and _version("pytest"):
        yield Finding("OK", "nbval", f"{_version('nbval')} with pytest {_version('pytest')}: make test can run")
    else:
        yield Finding("WARN", "nbval", "not installed", 'only for make test: pip install -e ".[dev]"')
