"""Saving: what is loaded is what was saved, in another process's sense: a fresh model with other weights."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from compresslab.pruning.channels import prune_channels
from compresslab.pruning.proof import assert_same_function
from compresslab.pruning.saving import load_pruned, save_pruned
from compresslab.workbench import models
from compresslab.workbench.vision import torchvision

TOKENS = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(0))


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def vit() -> nn.Module:
    return torchvision().models.VisionTransformer(16, 8, 1, 4, 32, 64, num_classes=7).eval()


CASES = {
    "resnet": (lambda: models.build("resnet").eval(), noise(2, 1, 32, 32)),
    "tied weights": (lambda: models.build("gpt", depth=1).eval(), TOKENS),
    "torch's attention": (vit, noise(2, 3, 16, 16)),
    "lstm": (lambda: models.build("lstm", width=16).eval(), TOKENS),
    "depthwise": (lambda: models.build("separable").eval(), noise(2, 1, 32, 32)),
}


@pytest.mark.parametrize("name", CASES)
def test_round_trip(name, tmp_path):
    make, x = CASES[name]
    model = make()
    for parameter in model.parameters():
        parameter.data.add_(0.01)
    pruned = prune_channels(model, x)
    path = save_pruned(pruned, tmp_path / "small.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["small.safetensors"]  # nothing is left beside it
    loaded = load_pruned(path, make())
    assert torch.equal(loaded.model(x), pruned.model(x))
    assert type(loaded.model) is type(model)
    assert (loaded.removed, loaded.unprunable, loaded.exact) == (pruned.removed, pruned.unprunable, True)
    assert loaded.kept.keys() == pruned.kept.keys()
    if name != "torch's attention":  # its head is zero
        assert_same_function(model, loaded, x)


def test_ties_are_still_ties(tmp_path):
    model = models.build("gpt", depth=1).eval()
    loaded = load_pruned(save_pruned(prune_channels(model, TOKENS), tmp_path / "a"), models.build("gpt", depth=1))
    assert loaded.model.head.weight is loaded.model.embed.weight


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    pruned = prune_channels(models.build("mlp"), noise(2, 1, 32, 32))
    path = save_pruned(pruned, tmp_path / "small.safetensors")
    before = path.read_bytes()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("compresslab.pruning.saving.save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_pruned(pruned, path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_refused(tmp_path):
    pruned = prune_channels(models.build("mlp"), noise(2, 1, 32, 32))
    path = save_pruned(pruned, tmp_path / "small.safetensors")
    with pytest.raises(ValueError, match=r"keeps 44 of axis 0 of layers.0.bias, which does not fit .*no such tensor"):
        load_pruned(path, nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"keeps 44 of axis 0 of layers.0.bias, which does not fit .*\(40,\)"):
        load_pruned(path, models.build("mlp", width=40))
    with pytest.raises(ValueError, match=r"(?s)does not fit fresh_model: .*give the model as it was before pruning"):
        load_pruned(path, models.build("mlp", depth=3))
    (tmp_path / "cut").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is no whole safetensors file"):
        load_pruned(tmp_path / "cut", models.build("mlp"))
    save_file({"x": torch.ones(1)}, tmp_path / "other")
    with pytest.raises(ValueError, match="has no record of what was pruned"):
        load_pruned(tmp_path / "other", models.build("mlp"))
    with pytest.raises(FileNotFoundError, match="is not there; give the file that save_pruned wrote"):
        load_pruned(tmp_path / "none", models.build("mlp"))
