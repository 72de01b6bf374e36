"""The rules of the house, as far as they can be counted: who imports whom, length, names, annotations, forbidden calls."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "compresslab"
LESSONS = ("formats", "quantization", "pruning", "importance", "distillation", "factorization", "export", "measure")
# What a lesson's file may import beside torch, the standard library and its own package.
ALSO_ALLOWED = {
    "measure": {"numpy", "pandas", "matplotlib", "safetensors"},
    "quantization": {"safetensors"},
    "pruning": {"safetensors"},
    "distillation": {"safetensors"},
    "export": {  # each runtime in its own function
        "numpy",
        "onnx",
        "onnxscript",
        "onnxruntime",
        "openvino",
        "executorch",
        "litert_torch",
        "ai_edge_litert",
        "tensorrt",
    },
}
LONGEST = 120  # lines of code, without docstrings, comments and blank lines
LONGER = {  # file: why it may be longer
    "compresslab/quantization/qat.py": "goes through a whole model three times: prepare, freeze, convert",
    "compresslab/quantization/static.py": "reads the data flow of any model and says of each operation how it runs",
    "compresslab/quantization/ranges.py": "five observers that are read side by side",
    "compresslab/quantization/packed_linear.py": "a layer and the way into it: state, kernels, empty layers, a whole model",
    "compresslab/quantization/streaming.py": "reads, plans, writes and resumes files of a public format, piece by piece",
    "compresslab/quantization/integer_only.py": "one integer kernel for each kind of operation of a CNN",
    "compresslab/pruning/rules.py": "the list of operations that are understood",
    "compresslab/pruning/trace.py": "one mode that sees every operation of a model",
}
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
MODULES = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in FILES]
LESSON_FILES = [path for path in FILES if path.relative_to(PACKAGE).parts[0] in LESSONS]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> set[str]:
    """Full names of what a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative import"
            found.add(node.module)
    return found


def forbidden_imports(path: Path) -> list[str]:
    floor = path.relative_to(PACKAGE).parts[0]
    wrong = []
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "compresslab" and rest:
            other = rest[0]
            if floor in LESSONS and other != floor:
                wrong.append(f"{name}: a lesson's package imports only its own")
            if floor in ("workbench", "testing") and (other == "course" or other in LESSONS):
                wrong.append(f"{name}: imports go down only")
        elif floor in LESSONS and top not in {"torch", *sys.stdlib_module_names, *ALSO_ALLOWED.get(floor, set())}:
            wrong.append(f"{name}: a lesson's file imports torch and the standard library")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down(path):
    assert not forbidden_imports(path)


def test_a_forbidden_import_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "measure").mkdir()
    path = tmp_path / "measure" / "bad.py"
    path.write_text("import torch, numpy, requests\ndef f():\n    from compresslab.workbench import data\n")
    assert len(forbidden_imports(path)) == 2


def code_lines(path: Path) -> int:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lines = {node.lineno for node in ast.walk(tree) if hasattr(node, "lineno")}
    lines |= {node.end_lineno for node in ast.walk(tree) if hasattr(node, "end_lineno")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


@pytest.mark.parametrize("path", LESSON_FILES, ids=name_of)
def test_a_lessons_file_is_short(path):
    assert code_lines(path) <= LONGEST or name_of(path) in LONGER


def test_what_may_be_longer_is_there_and_is_longer():
    assert all(code_lines(ROOT / name) > LONGEST for name in LONGER)


@pytest.mark.parametrize("package", [f"compresslab.{name}" for name in LESSONS if (PACKAGE / name).is_dir()])
def test_no_name_hides_a_module(package):
    loaded = importlib.import_module(package)
    for name in getattr(loaded, "__all__", ()):
        hides = importlib.util.find_spec(f"{package}.{name}") is not None and not inspect.ismodule(
            getattr(loaded, name)
        )
        assert not hides, f"{package}.{name} hides the module of that name"


@pytest.mark.parametrize("module", MODULES)
def test_public_names_are_listed_documented_and_annotated(module):
    loaded = importlib.import_module(module)
    assert loaded.__doc__, f"{module} has no docstring"
    assert hasattr(loaded, "__all__") or module.endswith(("__main__", "cli")), f"{module} has no __all__"
    for name in getattr(loaded, "__all__", ()):
        item = getattr(loaded, name)
        if not callable(item) or getattr(item, "__module__", None) != module:
            continue
        assert item.__doc__, f"{module}.{name} has no docstring"
        functions = [item] if inspect.isfunction(item) else [m for n, m in vars(item).items() if inspect.isfunction(m)]
        for function in functions:
            if function.__name__.startswith("_") and function.__name__ != "__init__":
                continue
            if function.__module__ != module:  # made by dataclass
                continue
            for parameter in list(inspect.signature(function).parameters.values()):
                known = parameter.annotation is not inspect.Parameter.empty or parameter.name in ("self", "cls")
                assert known, f"{module}.{name}: {function.__name__}({parameter.name}) has no annotation"


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings(module):
    results = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0


# Loading must never run code, nothing may change global state, and nothing stands on what is going away.
FORBIDDEN_NAMES = {
    "pickle", "marshal", "shelve", "dill", "cloudpickle",
    "torch.jit", "torch.ao", "torch.quantization", "torch.hub",
}  # fmt: skip
FORBIDDEN_CALLS = {
    "eval": "runs code", "exec": "runs code", "torch.load": "use safetensors",
    "torch.manual_seed": "use a generator", "np.random.seed": "use a generator", "numpy.random.seed": "use a generator",
    "random.seed": "use a generator", "torch.set_default_dtype": "pass dtype",
    "torch.quantize_per_tensor": "deprecated", "torch.quantize_per_channel": "deprecated",
    "torch.jit.trace": "deprecated", "torch.jit.script": "deprecated", "torch.set_num_threads": "use a context manager",
}  # fmt: skip
ALLOWED_CALLS = {
    # inside torch.random.fork_rng: the global state is restored
    ("compresslab/testing/hostile.py", "torch.manual_seed"),
    ("compresslab/workbench/models/__init__.py", "torch.manual_seed"),
    # context managers that restore
    ("compresslab/measure/running.py", "torch.set_num_threads"),
    ("compresslab/workbench/make_checkpoints.py", "torch.set_num_threads"),
    ("compresslab/workbench/sweeps.py", "torch.set_num_threads"),
    # what it is for: answers run in a process of their own, with limits
    ("compresslab/course/grading.py", "exec"),
    ("compresslab/course/grading.py", "eval"),
    # what a notebook asks for by name, for its own process
    ("compresslab/course/session.py", "torch.set_num_threads"),
}
FORBIDDEN_ARGUMENTS = {"allow_pickle": True, "trust_remote_code": True, "weights_only": False, "trust_repo": True}


def offences(path: Path, name: str) -> list[str]:
    found = [
        f"imports {module}" for module in imports(path) for bad in FORBIDDEN_NAMES if f"{module}.".startswith(f"{bad}.")
    ]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            if call in FORBIDDEN_CALLS and (name, call) not in ALLOWED_CALLS:
                found.append(f"line {node.lineno}: {call}: {FORBIDDEN_CALLS[call]}")
            for keyword in node.keywords:
                bad = FORBIDDEN_ARGUMENTS.get(keyword.arg)
                if bad is not None and isinstance(keyword.value, ast.Constant) and keyword.value.value is bad:
                    found.append(f"line {node.lineno}: {keyword.arg}={bad}")
        if isinstance(node, ast.Assert):
            found.append(f"line {node.lineno}: bare assert; raise an error that says what to do")
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_forbidden_is_called(path):
    assert not offences(path, name_of(path))


def test_forbidden_calls_are_seen(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text(
        "import pickle, torch\nfrom torch.ao import quantization\nimport numpy as np\n"
        "torch.load('x', weights_only=False)\nnp.load('x', allow_pickle=True)\ntorch.manual_seed(0)\nassert path\n"
    )
    assert len(offences(path, "bad.py")) == 7


def test_importing_the_package_is_light_and_quiet():
    code = "import sys, compresslab; print('torch' in sys.modules, len([m for m in sys.modules if m.startswith('compresslab')]))"
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "1"]
    assert run.stderr == ""


def test_no_module_opens_a_socket_when_imported():
    code = (
        "import socket, importlib\n"
        "def refuse(*a, **k): raise SystemExit('network at import')\n"
        "socket.socket.connect = refuse; socket.create_connection = refuse; socket.getaddrinfo = refuse\n"
        f"[importlib.import_module(m) for m in {MODULES!r}]\n"
        "print('quiet')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "quiet", run.stderr[-2000:]
