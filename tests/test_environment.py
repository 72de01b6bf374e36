"""One environment, told three times (pyproject.toml, environment.yml, constraints.txt) and never differently."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IN_CONDA = {
    "torch": "pytorch",
    "matplotlib": "matplotlib-base",
    "playwright": "playwright-python",
}  # the same package under another name
EXTRAS = ("lab", "export", "hf", "book", "dev")  # what make installs


def declared() -> list[Requirement]:
    texts = [*PROJECT["dependencies"], *(text for extra in EXTRAS for text in PROJECT["optional-dependencies"][extra])]
    return [Requirement(text) for text in texts]


def test_environment_yml_equals_pyproject():
    entries = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    conda = {Requirement(entry).name: Requirement(entry).specifier for entry in entries if isinstance(entry, str)}
    assert str(conda.pop("python")) == PROJECT["requires-python"]
    conda.pop("pip")
    assert conda == {IN_CONDA.get(one.name, one.name): one.specifier for one in declared()}
    assert [entry for entry in entries if isinstance(entry, dict)] == [{"pip": ["-e ."]}]


def locked() -> dict[str, set[str]]:
    versions: dict[str, set[str]] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (exact,) = requirement.specifier
            assert exact.operator == "==", line
            versions.setdefault(requirement.name, set()).add(exact.version)
    return versions


@pytest.mark.parametrize("requirement", declared(), ids=str)
def test_bounds_are_open_and_the_lock_keeps_them(requirement):
    assert [one.operator for one in requirement.specifier] == [">="], "pyproject.toml gives lower bounds only"
    versions = locked().get(requirement.name)
    assert versions, f"{requirement.name} is missing from constraints.txt; run make lock"
    assert all(requirement.specifier.contains(Version(version)) for version in versions)


def test_the_lock_names_no_address():
    assert "://" not in (ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_the_workflow_tests_the_oldest_torch_allowed():
    text = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    for name in ("torch", "torchvision"):
        (bound,) = [one.specifier for one in declared() if one.name == name]
        oldest = str(bound).removeprefix(">=")
        assert f'"{name}=={oldest}.*"' in text
    assert str(min(re.findall(r'python: "([\d.]+)"', text))) == PROJECT["requires-python"].removeprefix(">=")
    yaml.safe_load(text)


def test_every_extra_is_known_to_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [extra for extra in PROJECT["optional-dependencies"] if f"`[{extra}]`" not in text]


def test_versions_agree():
    import compresslab

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert compresslab.__version__ == PROJECT["version"] == citation["version"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_container_makes_the_same_environment():
    settings = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text(encoding="utf-8"))
    assert settings["image"].endswith(f":{PROJECT['requires-python'].removeprefix('>=')}")
    command, target, *_ = settings["postCreateCommand"].split()
    assert command == "make"
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert settings["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"] == ".venv/bin/python"


def test_make_the_workflow_and_the_readme_install_the_same_extras():
    extras = ",".join(EXTRAS)
    for name in ("Makefile", ".github/workflows/ci.yml", "README.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert {found for found in re.findall(r"(?:EXTRAS \?= |-e \"\.\[)([a-z,]+)", text) if "," in found} == {extras}
