"""ONNX files: equal to the model at every batch size, whole or not there, from every model of the course."""

from __future__ import annotations

import copy
import errno

import onnx
import pytest
import torch
from torch import nn

from compresslab.export.files import whole_file
from compresslab.export.operators import count_operators
from compresslab.export.parity import check_parity
from compresslab.export.program import as_inputs, export_program
from compresslab.export.sessions import OnnxModule
from compresslab.export.to_onnx import export_onnx
from compresslab.factorization import factorize_linears
from compresslab.pruning import prune_channels
from compresslab.quantization import convert, prepare_qat
from compresslab.workbench import checkpoints


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


class Frozen(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, -1)


def shape_of(value: onnx.ValueInfoProto) -> list:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_the_file_is_the_model_at_every_batch_size(resnet):
    parity = check_parity(resnet.model, OnnxModule(resnet.path), resnet.images, batch_sizes=(1, 2, 5, 33))
    assert parity.holds and parity.largest < 2e-6 and parity.agreement == 1
    assert list(parity.differences) == [1, 2, 5, 33]


def test_the_file_is_one_checked_whole_and_says_nothing_about_where_it_was_made(resnet):
    assert [file.name for file in resnet.path.parent.iterdir()] == ["model.onnx"]
    model = onnx.load(resnet.path)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 21)]
    assert shape_of(model.graph.input[0]) == ["batch", 1, 32, 32] and shape_of(model.graph.output[0]) == ["batch", 62]
    content = resnet.path.read_bytes()
    assert not any(text in content for text in (b"compresslab", b"site-packages", b"pkg.torch", b"forward"))
    weights = sum(p.numel() for p in resnet.model.parameters()) * 4
    assert weights * 0.97 < len(content) < weights * 1.03  # batch norms are folded into the convolutions
    assert all(value.type.tensor_type.HasField("shape") for value in model.graph.value_info)
    assert len(model.graph.value_info) >= len(model.graph.node) - 1  # every shape was inferred


def test_nothing_is_said_and_the_model_stays(capfd, tmp_path):
    model = checkpoints.load("mlp")
    model.head.register_forward_hook(lambda *_: None)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_onnx(model, torch.zeros(2, 1, 32, 32), tmp_path / "mlp.onnx")
    assert capfd.readouterr() == ("", "")
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any(module.training for module in model.modules()) and len(model.head._forward_hooks) == 1
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_names_and_a_frozen_batch(tmp_path):
    path = export_onnx(
        nn.Linear(3, 2).eval(), torch.ones(4, 3), tmp_path / "new" / "a.onnx", dynamic_batch=False,
        input_names=["x"], output_names=["y"],
    )  # fmt: skip
    graph = onnx.load(path).graph
    assert (graph.input[0].name, shape_of(graph.input[0])) == ("x", [4, 3])
    assert (graph.output[0].name, shape_of(graph.output[0])) == ("y", [4, 2])
    with pytest.raises(ValueError, match=r"the file takes .*4, 3.*got .*5, 3.*Got: 5 Expected: 4"):
        OnnxModule(path)(torch.ones(5, 3))


@pytest.mark.parametrize("name", ["separable", "vit"])
def test_models_for_images(name, images, tmp_path):
    """The MLP is in test_runtimes, the ResNet above, the VGG with integers in test_qdq."""
    model = checkpoints.load(name)
    found = OnnxModule(export_onnx(model, images[:2], tmp_path / "model.onnx"))
    assert check_parity(model, found, images).largest < 1e-5


@pytest.mark.parametrize("name", ["gpt", "lstm", "moe_gpt"])
def test_language_models(name, tmp_path):
    """At other lengths than the example's too; the LSTM's length is what it was exported with."""
    model, tokens = checkpoints.load(name), torch.arange(64).reshape(2, 32) % 60
    path = export_onnx(model, tokens[:, :16], tmp_path / "model.onnx", dynamic_sequence=name == "gpt")
    assert shape_of(onnx.load(path).graph.input[0]) == ["batch", "sequence" if name == "gpt" else 16]
    found = OnnxModule(path)
    assert check_parity(model, found, tokens[:, :16]).largest < 1e-5
    if name == "gpt":
        assert check_parity(model, found, tokens, batch_sizes=(3,)).largest < 1e-5


def test_smaller_models_stay_smaller(resnet, tmp_path):
    """Pruned by half of the channels, and factorized: the file shrinks as the model does."""
    x = resnet.images[:2]
    small = prune_channels(resnet.model, x, ratio=0.5).model.eval()
    thin = factorize_linears(checkpoints.load("mlp"), energy=0.5).model.eval()
    for name, model, other in (("small", small, resnet.model), ("thin", thin, checkpoints.load("mlp"))):
        path = export_onnx(model, x, tmp_path / f"{name}.onnx")
        ratio = sum(p.numel() for p in model.parameters()) / sum(p.numel() for p in other.parameters())
        full = sum(p.numel() for p in other.parameters()) * 4
        assert path.stat().st_size == pytest.approx(ratio * full, rel=0.15)
        assert check_parity(model, OnnxModule(path), resnet.images).largest < 1e-5


def test_sixteen_bits(images, tmp_path):
    """FP16 computes in 16 bits; BF16 is stored in 16 bits and computed in 32, which every runtime can."""
    model = checkpoints.load("mlp")
    plain, sizes = model(images).detach(), {}
    for dtype in (torch.float16, torch.bfloat16):
        small = copy.deepcopy(model).to(dtype)
        path = export_onnx(small, images[:2].to(dtype), tmp_path / "small.onnx")
        found = OnnxModule(path)(images.half() if dtype == torch.float16 else images)
        sizes[dtype] = path.stat().st_size
        assert found.dtype == (torch.float16 if dtype == torch.float16 else torch.float32)
        limit = {torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]  # 11 and 8 bits of mantissa
        assert 1e-6 < (found.float() - plain).abs().max() / plain.abs().max() < limit
        assert small.head.weight.dtype == dtype
    assert all(size < 0.52 * sum(p.numel() for p in model.parameters()) * 4 for size in sizes.values())
    assert count_operators(tmp_path / "small.onnx", optimization="none")["Cast"] == 3  # a cast for each matrix
    assert "Cast" not in count_operators(tmp_path / "small.onnx")


def test_trained_for_few_bits(images, tmp_path):
    prepared = prepare_qat(checkpoints.load("mlp"), [(images[:50], None)]).model
    model = convert(prepared.eval()).model.eval()
    found = OnnxModule(export_onnx(model, images[:2], tmp_path / "qat.onnx"))
    assert check_parity(model, found, images).agreement == 1


def test_in_train_mode():
    with pytest.raises(ValueError, match=r"Linear is in train mode.*model.eval"):
        export_program(nn.Linear(1, 1), torch.ones(2, 1))
    model = nn.Sequential(nn.Linear(1, 1), nn.Dropout()).eval()
    model[1].train()
    with pytest.raises(ValueError, match=r"^1 is in train mode"):
        export_program(model, torch.ones(2, 1))
    with pytest.raises(ValueError, match="Sequential and 2 more modules are in train mode"):
        export_program(model.train(), torch.ones(2, 1))


def test_what_cannot_be_exported(tmp_path):
    x = torch.ones(2, 4)
    with pytest.raises(ValueError, match=r"Branches decides something by a value.*torch.where"):
        export_onnx(Branches().eval(), x, tmp_path / "a.onnx")
    with pytest.raises(ValueError, match=r"Frozen fixes the size of an axis.*dynamic_batch=False"):
        export_onnx(Frozen().eval(), x, tmp_path / "a.onnx")
    assert export_onnx(Frozen().eval(), x, tmp_path / "b.onnx", dynamic_batch=False).is_file()
    with pytest.raises(
        ValueError, match=r"Linear cannot be exported from inputs of shapes \[\(2, 4\)\].*reduction dim"
    ):
        export_onnx(nn.Linear(3, 1).eval(), x, tmp_path / "a.onnx")
    with pytest.raises(ValueError, match=r"shapes \[\(1, 4\)\].*at least 2"):
        export_onnx(nn.Linear(4, 1).eval(), x[:1], tmp_path / "a.onnx")
    with pytest.raises(TypeError, match=r"tensor or a tuple of tensors, got \['str'\]"):
        as_inputs(("x",))
    with pytest.raises(TypeError, match=r"got \[\]"):
        as_inputs(())
    with pytest.raises(ValueError, match=r"model.bin.* must end in .onnx"):
        export_onnx(nn.Linear(4, 1).eval(), x, tmp_path / "model.bin")
    assert [file.name for file in tmp_path.iterdir()] == ["b.onnx"]  # nothing half-written, no folder left


class Eigenvalues(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvals(x @ x.T).real


def test_an_operation_that_onnx_lacks(tmp_path):
    with pytest.raises(ValueError, match=r"Eigenvalues cannot be written as ONNX: aten.linalg_eig has no"):
        export_onnx(Eigenvalues().eval(), torch.ones(2, 2), tmp_path / "a.onnx", dynamic_batch=False)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file.* cannot be written to \(.*choose another folder"):
        export_onnx(nn.Linear(1, 1).eval(), torch.ones(2, 1), tmp_path / "file" / "a.onnx")


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    (tmp_path / "a.onnx").write_text("before")

    def full(self, destination, **_):
        destination.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", full)
    with pytest.raises(OSError, match="No space left"):
        export_onnx(nn.Linear(1, 1).eval(), torch.ones(2, 1), tmp_path / "a.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["a.onnx"]
    assert (tmp_path / "a.onnx").read_text() == "before"


def test_an_interrupt_leaves_nothing(tmp_path):
    def interrupted():
        with whole_file(tmp_path / "a.onnx") as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_large_weights_lie_beside_and_move_together(tmp_path, monkeypatch):
    """The limit is lowered: above it, weights go to a second file in the same folder, which the runtime finds."""
    monkeypatch.setattr("compresslab.export.to_onnx.ONE_FILE", 1000)
    model = nn.Linear(64, 64).eval()
    path = export_onnx(model, torch.ones(2, 64), tmp_path / "a.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.onnx", "a.onnx.data"]
    assert check_parity(model, OnnxModule(path), torch.ones(2, 64)).holds


def test_parity_by_hand():
    """|y| is at most 2 at batch 1 and 3 at batch 2 (rows 1 2 and 2 3): a shift by 0.3 is 0.15 and 0.1."""
    x = torch.tensor([[1.0, 2.0], [2.0, 3.0]])
    parity = check_parity(nn.Identity(), lambda x: x + 0.3, x, batch_sizes=(1, 2), tolerance=0.12)
    assert parity.differences == pytest.approx({1: 0.15, 2: 0.1}) and not parity.holds and parity.agreement == 1
    assert check_parity(nn.Identity(), lambda x: -x, x, batch_sizes=(2,)).agreement == 0
    assert check_parity(nn.Identity(), lambda x: x + 1, torch.zeros(1, 2)).largest == 1  # in its own units: all are 0
    assert check_parity(nn.Identity(), lambda x: x.flip(0), x[:1], batch_sizes=(2,)).largest == 0.5  # 1 2 and 2 1
    with pytest.raises(ValueError, match=r"at batch 1 have shapes \[\(1, 1\)\], the model's \[\(1, 2\)\]"):
        check_parity(nn.Identity(), lambda x: x[:, :1], x)
    with pytest.raises(ValueError, match=r"at batch 1 are not finite"):
        check_parity(nn.Identity(), lambda x: x / 0, x)
