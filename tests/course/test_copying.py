"""``compresslab copy``: every algorithm of every lesson is copied and runs where there is no compresslab."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import compresslab
from compresslab import cli
from compresslab.course import copying
from compresslab.course.copying import algorithms, copy_algorithm

ROOT = Path(__file__).parents[2]
EVERY = [f"{lesson}.{stem}" for lesson, stems in algorithms().items() for stem in stems]
# One process for all: imports each copy and runs the examples of its docstrings. compresslab cannot be imported there.
RUN = """
import doctest, importlib, io, contextlib, json, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "compresslab":
            raise ImportError("compresslab is not here")

sys.meta_path.insert(0, Refuse())
sys.path.insert(0, sys.argv[1])
results = {}
for name in sys.argv[2:]:
    stem = name.split(".")[-1]
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            module = importlib.import_module(name)
            if hasattr(module, "__path__"):
                exported = set(module.__all__)
                module = importlib.import_module(f"{name}.{stem}")
                assert exported == set(module.__all__), "__all__"
            failed = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE).failed
        results[name] = said.getvalue() if failed else ""
    except Exception as error:
        results[name] = f"{type(error).__name__}: {error}"
results["compresslab"] = str([name for name in sys.modules if name.split(".")[0] == "compresslab"])
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copies")
    for name in EVERY:
        (folder / name.split(".")[0]).mkdir(exist_ok=True)
        copy_algorithm(name, folder / name.split(".")[0])
    names = [name for name in EVERY if not optional(folder, name)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-I", "-c", RUN, str(folder), *names],
        capture_output=True, text=True, check=False, cwd=folder, env=environment,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout) | {name: "optional" for name in EVERY if name not in names}


def optional(folder: Path, name: str) -> bool:
    """Whether a copy, or a file that it brought, needs at import what the export extra installs, and that is missing."""
    lesson, stem = name.split(".")
    place = folder / lesson / stem
    for path in [place.with_suffix(".py")] if not place.is_dir() else place.glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                tops = [alias.name.split(".")[0] for alias in node.names] if isinstance(node, ast.Import) else []
                tops += [node.module.split(".")[0]] if isinstance(node, ast.ImportFrom) and not node.level else []
                for top in set(tops) & {"onnx", "onnxruntime", "onnxscript", "onnx_ir", "openvino", "executorch"}:
                    try:
                        __import__(top)
                    except ImportError:
                        return True
    return False


@pytest.mark.parametrize("name", EVERY)
def test_the_copy_runs_where_there_is_no_compresslab(name, outcomes):
    if outcomes[name] == "optional":
        pytest.skip("needs the export extra: pip install compresslab[export]")
    assert outcomes[name] == ""


def test_that_process_had_no_compresslab(outcomes):
    assert outcomes["compresslab"] == "[]"


@pytest.mark.parametrize("lesson", algorithms())
def test_every_file_of_the_lessons_can_be_copied(lesson):
    on_disk = {path.stem for path in (ROOT / "compresslab" / lesson).glob("*.py")} - {"__init__"}
    assert set(algorithms()[lesson]) == on_disk


def test_one_file_where_one_is_enough_and_a_folder_where_not(tmp_path):
    single = copy_algorithm("floats", tmp_path)
    assert single == tmp_path / "floats.py" and sorted(os.listdir(tmp_path)) == ["floats.py"]
    original = (ROOT / "compresslab/formats/floats.py").read_text(encoding="utf-8")
    assert single.read_text(encoding="utf-8").endswith(original)
    several = copy_algorithm("formats.codes", tmp_path)
    assert sorted(os.listdir(several)) == ["__init__.py", "codes.py", "floats.py"]
    assert "from .floats import FloatFormat, round_float" in (several / "codes.py").read_text(encoding="utf-8")
    assert ">>> from .floats import FLOATS" in (several / "codes.py").read_text(encoding="utf-8")
    assert sorted(os.listdir(tmp_path)) == ["codes", "floats.py"]  # nothing temporary is left


def test_every_file_says_where_it_comes_from_its_licence_and_how_to_cite(tmp_path):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    for path in copy_algorithm("gptq", tmp_path).glob("[!_]*.py"):
        head = path.read_text(encoding="utf-8").split('"""')[0]
        assert head.startswith(f"# {path.name} of compresslab {compresslab.__version__} (compresslab/quantization/")
        assert f"SPDX-License-Identifier: {citation['license']}" in head
        assert citation["title"] in head.replace("\n# ", " ") and citation["authors"][0]["name"] in head
        assert f"version {citation['version']}" in head and str(citation["date-released"])[:4] in head
        changed = "from ." in path.read_text(encoding="utf-8")
        assert (", imports rewritten" in head) == changed
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_no_copy_names_compresslab_in_an_import(tmp_path):
    for name in EVERY:
        folder = tmp_path / name.split(".")[0]
        folder.mkdir(exist_ok=True)
        copied = copy_algorithm(name, folder)
        for path in [copied] if copied.is_file() else copied.glob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert "from compresslab" not in text and "import compresslab" not in text, path
            ast.parse(text)


def test_names(tmp_path):
    with pytest.raises(ValueError, match=r"name='wanda' is a file of several lessons; say pruning.wanda or importance"):
        copy_algorithm("wanda", tmp_path)
    with pytest.raises(ValueError, match=r"name='gqtp' is no algorithm of the lessons; did you mean gptq"):
        copy_algorithm("gqtp", tmp_path)
    with pytest.raises(ValueError, match=r"name='pruning.gptq' is no algorithm"):
        copy_algorithm("pruning.gptq", tmp_path)
    with pytest.raises(ValueError, match=r"name='../cli' is no algorithm"):
        copy_algorithm("../cli", tmp_path)
    assert copy_algorithm("compresslab.pruning.wanda", tmp_path).name == "wanda"
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize("taken", ["gptq", "gptq.py"])
def test_nothing_is_overwritten(tmp_path, taken):
    (tmp_path / taken).write_text("mine")
    with pytest.raises(FileExistsError, match=f"{taken} exists already and is left as it is"):
        copy_algorithm("gptq", tmp_path)
    assert (tmp_path / taken).read_text() == "mine" and os.listdir(tmp_path) == [taken]
    (tmp_path / taken).unlink()
    (tmp_path / "gptq").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="exists already"):
        copy_algorithm("gptq", tmp_path)


def test_a_folder_that_is_not_there_or_cannot_be_written(tmp_path, monkeypatch):
    with pytest.raises(NotADirectoryError, match="must be an existing folder; make it first"):
        copy_algorithm("gptq", tmp_path / "nowhere")

    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(copying.tempfile, "mkdtemp", refuse)
    with pytest.raises(OSError, match=r"cannot be written \(Permission denied\); choose another folder"):
        copy_algorithm("gptq", tmp_path)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    written = []

    def full(self, text, **options):
        written.append(self)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        return open(self, "w").write(text)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        copy_algorithm("gptq", tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_file_that_reaches_out_of_its_lesson_is_refused(tmp_path, monkeypatch):
    (tmp_path / "formats").mkdir()
    (tmp_path / "formats" / "bad.py").write_text("from compresslab.workbench.data import load\n")
    monkeypatch.setattr(copying, "ROOT", tmp_path)
    with pytest.raises(ValueError, match=r"compresslab/formats/bad.py imports load of workbench, which no copy holds"):
        copy_algorithm("bad", tmp_path)


def test_the_command(tmp_path, capsys):
    assert cli.main(["copy", "codes", "--into", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip().endswith("codes: __init__.py, codes.py, floats.py")
    assert cli.main(["copy", "codes", "--into", str(tmp_path)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert cli.main(["copy"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "formats: blocks codes floats model rounding"
