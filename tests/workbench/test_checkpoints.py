"""The checkpoints: whole, as good as their manifest says, and refused when they are not what it says."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file

from compresslab.workbench import checkpoints, data, make_checkpoints, models
from compresslab.workbench.files import CorruptArtifact, DataUnavailable, load_tensors, save_tensors
from compresslab.workbench.train import evaluate

NAMES = ["gpt", "lstm", "mlp", "moe_gpt", "resnet", "separable", "vgg", "vit"]
LIMIT = 8_000_000  # bytes: small enough for the repository


@pytest.fixture(scope="module")
def validation():
    return {name: data.load(name).val for name in ("glyphs", "python-docs")}


@pytest.mark.parametrize("name", NAMES)
def test_it_reaches_what_the_manifest_says(name, validation):
    model, entry = checkpoints.load(name), checkpoints.manifest(name)
    assert not any(module.training for module in model.modules())
    assert model.config == entry["config"]
    assert entry["parameters"] == sum(p.numel() for p in model.parameters())
    assert entry["bytes"] == (checkpoints.folder() / f"{name}.safetensors").stat().st_size
    split = validation[entry["data"]["name"]]
    measured, known = evaluate(model, split), entry["metrics"]
    # Other fonts or another Python's docs are other samples of the same data: the numbers are near, not equal.
    identical = make_checkpoints.fingerprint(split) == entry["data"]["val_sha256"]
    if identical:
        assert measured.n == known["val_n"]
    if measured.accuracy is not None:
        assert measured.accuracy == pytest.approx(known["val_accuracy"], abs=0.005 if identical else 0.03)
    else:
        assert measured.perplexity == pytest.approx(known["val_perplexity"], rel=0.01 if identical else 0.1)


def test_the_names_are_those_of_the_recipes():
    assert set(NAMES) == set(make_checkpoints.RECIPES)
    assert set(NAMES) <= set(checkpoints.names())  # lessons add more
    for name, recipe in make_checkpoints.RECIPES.items():
        entry = checkpoints.manifest(name)
        assert entry["config"] == models.build(recipe.architecture, **recipe.model).config
        assert entry["fit"] == recipe.named()
        assert entry["data"]["name"] == recipe.data
        assert entry["command"] == f"python -m compresslab.workbench.make_checkpoints {name}"


def test_they_fit_into_the_repository():
    files = sorted(checkpoints.folder().glob("*.safetensors"))
    assert [file.stem for file in files] == checkpoints.names()
    assert sum(file.stat().st_size for file in files) < LIMIT


# ------------------------------------------------------------------------------------------------ save and load


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSLAB_CHECKPOINTS", str(tmp_path))
    return tmp_path


KNOWN = {"data": {"name": "none"}, "metrics": {"val_accuracy": 0.5, "val_n": 10}, "command": "make"}


def small(name: str = "vgg", seed: int = 0):
    options = {"width": 8, "depth": 1} if name != "gpt" else {"width": 8, "depth": 1, "heads": 2}
    return models.build(name, generator=torch.Generator().manual_seed(seed), **options)


@pytest.mark.parametrize("name", ["vgg", "gpt"])
def test_what_is_saved_is_loaded(folder, name):
    model = small(name)
    path = checkpoints.save("it", model, seed=3, note="mine", **KNOWN)
    assert path == folder / "it.safetensors"
    loaded = checkpoints.load("it")
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    assert loaded.config == model.config
    assert model.training
    assert not loaded.training
    assert checkpoints.names() == ["it"]
    entry = checkpoints.manifest("it")
    assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (entry["seed"], entry["note"], entry["data"], entry["metrics"]) == (3, "mine", *list(KNOWN.values())[:2])


def test_saving_replaces_and_keeps_the_others(folder):
    checkpoints.save("a", small(), **KNOWN)
    checkpoints.save("b", small(), **KNOWN)
    checkpoints.save("a", small(seed=1), **KNOWN)
    assert checkpoints.names() == ["a", "b"]
    assert torch.equal(checkpoints.load("a").classifier.weight, small(seed=1).classifier.weight)
    assert torch.equal(checkpoints.load("b").classifier.weight, small().classifier.weight)
    left = {path.name for path in folder.iterdir()}
    assert left <= {"a.safetensors", "b.safetensors", "manifest.json", "manifest.lock"}


def test_a_save_that_fails_leaves_the_manifest(folder):
    checkpoints.save("a", small(), **KNOWN)
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(TypeError):
        checkpoints.save("b", small(), note=object(), **KNOWN)
    assert (folder / "manifest.json").read_bytes() == before
    assert checkpoints.load("a").config["width"] == 8


@pytest.mark.parametrize("name", ["", "A", "../a", "a.b", "a b"])
def test_a_bad_name_is_refused(folder, name):
    with pytest.raises(ValueError, match="must be lower-case letters, digits, '-' and '_'"):
        checkpoints.save(name, small(), **KNOWN)


def test_a_model_that_is_not_as_its_config_says_is_refused(folder):
    with pytest.raises(ValueError, match=r"a Linear without a config cannot be made again; use models\.build"):
        checkpoints.save("a", torch.nn.Linear(2, 2), **KNOWN)
    model = small()
    model.classifier = torch.nn.Linear(512, 5)
    with pytest.raises(
        ValueError, match=r"its config says: 'classifier.weight' is \(\(5, 512\), 'torch.float32'\) where"
    ):
        checkpoints.save("a", model, **KNOWN)
    with pytest.raises(ValueError, match=r"'features.0.weight' is .*torch.float16"):
        checkpoints.save("a", small().half(), **KNOWN)
    assert list(folder.glob("*.safetensors")) == []


def test_no_folder_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("COMPRESSLAB_CHECKPOINTS", str(tmp_path / "nowhere"))
    for call in (checkpoints.names, lambda: checkpoints.manifest("resnet"), lambda: checkpoints.load("resnet")):
        with pytest.raises(DataUnavailable, match=r"nowhere.manifest.json is missing; run `python -m compresslab"):
            call()
    assert not (tmp_path / "nowhere").exists()


def test_without_the_variable_it_is_the_repository_s(monkeypatch):
    monkeypatch.delenv("COMPRESSLAB_CHECKPOINTS", raising=False)
    assert checkpoints.folder().parts[-2:] == ("data", "checkpoints")


def test_an_unknown_name_lists_the_known(folder):
    checkpoints.save("a", small(), **KNOWN)
    checkpoints.save("b", small(), **KNOWN)
    with pytest.raises(ValueError, match=r"there is no checkpoint 'c' in .*; the names are a, b"):
        checkpoints.load("c")


def test_a_missing_file_says_what_to_do(folder):
    checkpoints.save("a", small(), **KNOWN).unlink()
    with pytest.raises(DataUnavailable, match=r"a.safetensors is missing; run `python -m .*make_checkpoints a`"):
        checkpoints.load("a")


@pytest.mark.parametrize("where", [0, 40, 1000, -1])
def test_one_flipped_bit_is_refused(folder, where):
    path = checkpoints.save("a", small(), **KNOWN)
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptArtifact, match=r"a.safetensors is not the file of the manifest \(sha256 differs\)"):
        checkpoints.load("a")


def replace(folder, tensors, **changes):
    """Put other tensors in, with a manifest that agrees: only their content is wrong."""
    path = folder / "a.safetensors"
    save_tensors(path, tensors)
    entries = json.loads((folder / "manifest.json").read_text())
    entries["a"] |= {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), **changes}
    (folder / "manifest.json").write_text(json.dumps(entries))


def test_tensors_that_do_not_fit_are_refused(folder):
    checkpoints.save("a", small(), **KNOWN)
    state = small().state_dict()
    key = "classifier.bias"
    codes = state | {key: state[key].to(torch.int8)}
    cut = state | {key: state[key][:5]}
    missing = {name: tensor for name, tensor in state.items() if name != key}
    for tensors, message in [
        (codes, r"'classifier.bias' is \(\(62,\), 'torch.int8'\) where \(\(62,\), 'torch.float32'\) is wanted"),
        (cut, r"'classifier.bias' is \(\(5,\), 'torch.float32'\) where"),
        (missing, "'classifier.bias' is missing"),
        (state | {"more": torch.zeros(1)}, "'more' is too many"),
        (state | {key: state[key].clone().fill_(float("nan"))}, "62 of 62 values of 'classifier.bias' are not finite"),
    ]:
        replace(folder, tensors)
        with pytest.raises(CorruptArtifact, match=message):
            checkpoints.load("a")


@pytest.mark.parametrize("config", [{"architecture": "alexnet"}, {"architecture": "vgg", "width": -1}, {"width": 8}, 5])
def test_a_config_that_makes_no_model_is_refused(folder, config):
    checkpoints.save("a", small(), **KNOWN)
    replace(folder, small().state_dict(), config=config)
    with pytest.raises(CorruptArtifact, match="the manifest's config of 'a' makes no model"):
        checkpoints.load("a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "manifest.json is not JSON"),
        ("<html>", "manifest.json is not JSON"),
        ("[]", "manifest.json lacks some of bytes, config, parameters, sha256"),
        ('{"a": {"config": {}}}', "manifest.json lacks some of"),
    ],
)
def test_a_broken_manifest_is_refused(folder, text, message):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(CorruptArtifact, match=message):
        checkpoints.names()


def test_a_file_without_our_digest_is_still_checked_by_the_manifest(folder):
    path = checkpoints.save("a", small(), **KNOWN)
    save_file(small(seed=1).state_dict(), path)
    with pytest.raises(CorruptArtifact, match="sha256 differs"):
        checkpoints.load("a")


# ------------------------------------------------------------------------------------------------ the command


def test_the_list(capsys, folder):
    make_checkpoints.main(["--list"])
    assert capsys.readouterr().out.count("not made yet") == len(NAMES)


def test_an_unknown_recipe(capsys):
    with pytest.raises(SystemExit):
        make_checkpoints.main(["alexnet"])
    assert "'alexnet' is not a checkpoint; the names are mlp" in capsys.readouterr().err


def test_the_command_trains_saves_and_restores_the_threads(capsys, folder, monkeypatch):
    model = {"size": 8, "width": 8, "classes": 10}
    recipe = make_checkpoints.Recipe("mlp", model, data="digits", fit={"epochs": 1})
    monkeypatch.setitem(make_checkpoints.RECIPES, "mlp", recipe)
    threads = torch.get_num_threads()
    make_checkpoints.main(["mlp"])
    assert torch.get_num_threads() == threads
    first, _ = load_tensors(folder / "mlp.safetensors")  # safetensors writes its metadata in no fixed order
    assert "mlp: 682 parameters" in capsys.readouterr().out  # 64*8+8 + 8*8+8 + 8*10+10
    make_checkpoints.main(["mlp"])
    again, _ = load_tensors(folder / "mlp.safetensors")
    assert list(again) == list(first)
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())
    make_checkpoints.main(["--list"])
    assert "    682 parameters" in capsys.readouterr().out
