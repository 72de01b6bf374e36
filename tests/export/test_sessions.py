"""ONNX Runtime: sessions as modules, operators counted and timed, and files that no session may see."""

from __future__ import annotations

import copy
import os
import struct

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from compresslab import measure
from compresslab.export.checking import check_file
from compresslab.export.operators import count_operators, profile_operators
from compresslab.export.sessions import OnnxModule, bind_tensors, open_session
from compresslab.export.to_onnx import export_onnx
from compresslab.workbench import checkpoints, data


@pytest.fixture
def good(tmp_path) -> onnx.ModelProto:
    """y = x + weight."""
    weight = numpy_helper.from_array(np.ones(3, np.float32), "weight")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "weight"], ["y"])], "g", values[:1], values[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def outside(model: onnx.ModelProto, location: str) -> onnx.ModelProto:
    """The model with its weight in another file."""
    model = copy.deepcopy(model)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "12")):
        tensor.external_data.add(key=key, value=value)
    return model


def save(model: onnx.ModelProto, path) -> object:
    path.write_bytes(model.SerializeToString())
    return path


def test_a_session_is_a_module(resnet):
    """What measures a model of PyTorch measures a session; inputs need not be contiguous, outputs are the caller's."""
    found, images = OnnxModule(resnet.path), resnet.images
    assert not found.training and not list(found.parameters())
    batches = list(data.load("glyphs").test.take(100).batches(50))
    theirs, ours = measure.predict(found, batches), measure.predict(resnet.model, batches)
    assert measure.accuracy(theirs).value == measure.accuracy(ours).value
    first = found(images[:2])
    kept = first.clone()
    found(images[2:4])
    assert torch.equal(first, kept)
    torch.testing.assert_close(found(images[:4].mT.contiguous().mT), found(images[:4]))
    with pytest.raises(ValueError, match=r"wants 1 inputs, \['images'\], got 2"):
        found(images, images)
    with pytest.raises(ValueError, match=r"takes .*images.*got .*\(2, 1, 32, 32\), 'torch.float64'"):
        found(images[:2].double())


def test_several_inputs_and_outputs(tmp_path):
    class Two(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x + y, x - y

    x, y = torch.tensor([[3.0], [5.0]]), torch.tensor([[1.0], [2.0]])
    total, gap = OnnxModule(export_onnx(Two().eval(), (x, y), tmp_path / "two.onnx"))(x, y)
    assert total.tolist() == [[4.0], [7.0]] and gap.tolist() == [[2.0], [3.0]]


def test_bound_tensors_are_read_and_written_in_place(tmp_path):
    model = nn.Linear(3, 2).eval()
    x, session = torch.ones(4, 3), open_session(export_onnx(model, torch.ones(2, 3), tmp_path / "a.onnx"))
    run = bind_tensors(session, x)
    (first,) = run()
    for seed in range(3):
        x.copy_(torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)))
        (found,) = run()
        assert found.data_ptr() == first.data_ptr()
        torch.testing.assert_close(found, model(x).detach())
    run, wanted = bind_tensors(session, torch.full((4, 3), 2.0)), model(torch.full((1, 3), 2.0)).detach()
    assert all(torch.empty(4, 3).fill_(9) is not None for _ in range(50))  # nobody else is given the input's memory
    torch.testing.assert_close(run()[0][:1], wanted)
    with pytest.raises(ValueError, match=r"inputs \[0\] must be contiguous"):
        bind_tensors(session, torch.ones(3, 4).T)


def test_options(resnet, tmp_path):
    session = open_session(resnet.path, threads=2, optimization="basic", optimized_path=tmp_path / "basic.onnx")
    assert session.get_session_options().intra_op_num_threads == 2
    assert session.get_session_options().inter_op_num_threads == 1
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert (tmp_path / "basic.onnx").is_file()
    with pytest.raises(ValueError, match="threads=0 must be 1 or more"):
        open_session(resnet.path, threads=0)
    with pytest.raises(ValueError, match="optimization='fast' must be one of none, basic, extended, all"):
        open_session(resnet.path, optimization="fast")


def test_the_optimizer_fuses(resnet, capfd):
    """15 convolutions, 13 of them followed by a ReLU: in the file apart, at run time one operator."""
    assert count_operators(resnet.path, optimization="none")["Relu"] == 13
    found = count_operators(resnet.path)
    assert found["Conv"] == 15 and "Relu" not in found and "BatchNormalization" not in found
    assert capfd.readouterr() == ("", "")


def test_the_profile_is_of_a_run(resnet):
    times = profile_operators(resnet.path, resnet.images[:4], runs=3)
    assert {time.operator: time.calls for time in times} == count_operators(resnet.path)
    assert times[0].operator == "Conv" and times[0].share > 0.5
    assert sum(time.share for time in times) == pytest.approx(1) and all(time.seconds >= 0 for time in times)
    assert [time.seconds for time in times] == sorted((time.seconds for time in times), reverse=True)
    with pytest.raises(ValueError, match="runs=0 must be 1 or more"):
        profile_operators(resnet.path, resnet.images[:4], runs=0)


def test_what_the_processor_cannot_run(tmp_path):
    """A 16-bit LSTM takes ONNX Runtime's process down, so it is refused before."""
    model, tokens = checkpoints.load("lstm").half(), torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"cannot run lstm.onnx on this processor: LSTM of 16 bits"):
        open_session(export_onnx(model, tokens, tmp_path / "lstm.onnx"))
    values = [helper.make_tensor_value_info(name, TensorProto.BFLOAT16, [2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "g", values[:1], values[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    with pytest.raises(ValueError, match=r"ONNX Runtime cannot run add.onnx.*NOT_IMPLEMENTED"):
        open_session(save(made, tmp_path / "add.onnx"))


def test_a_good_file_and_its_data(good, tmp_path):
    assert check_file(save(good, tmp_path / "a.onnx")) == tmp_path / "a.onnx"
    (tmp_path / "weights").write_bytes(struct.pack("<3f", 1, 2, 3))
    path = save(outside(good, "weights"), tmp_path / "b.onnx")
    assert OnnxModule(path)(torch.zeros(1, 3)).tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "inside/../../secret", "..\\secret"])
def test_data_outside_the_folder(location, good, tmp_path):
    """ONNX's documentation allows names below the model's folder only."""
    (tmp_path / "secret").write_bytes(struct.pack("<3f", 1, 2, 3))
    folder = tmp_path / "model"
    (folder / "inside").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"a.onnx wants to read .*outside its folder; do not trust"):
        open_session(save(outside(good, location), folder / "a.onnx"))


def test_links_and_missing_data(good, tmp_path):
    (tmp_path / "secret").write_bytes(struct.pack("<3f", 1, 2, 3))
    folder = tmp_path / "model"
    folder.mkdir()
    path = save(outside(good, "weights"), folder / "a.onnx")
    with pytest.raises(ValueError, match=r"needs 'weights' beside it, which is missing"):
        check_file(path)
    (folder / "weights").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=r"outside its folder"):
        check_file(path)
    (folder / "weights").unlink()
    os.link(tmp_path / "secret", folder / "weights")
    with pytest.raises(ValueError, match=r"'weights', a hard link"):
        check_file(path)


def test_data_outside_in_a_subgraph(good, tmp_path):
    """A tensor inside the branch of an If, where a check of the graph's own tensors does not look."""
    inner = outside(good, "../secret").graph
    branch = helper.make_graph([helper.make_node("Identity", ["weight"], ["z"])], "b", [], [
        helper.make_tensor_value_info("z", TensorProto.FLOAT, [3])], [inner.initializer[0]])  # fmt: skip
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    node = helper.make_node("If", ["flag"], ["out"], then_branch=branch, else_branch=branch)
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [3])
    model = helper.make_model(
        helper.make_graph([node], "g", [flag], [out]), opset_imports=[helper.make_opsetid("", 21)]
    )
    with pytest.raises(ValueError, match=r"'../secret', outside its folder"):
        check_file(save(model, tmp_path / "a.onnx"))


def test_files_that_are_no_model(good, tmp_path):
    content, path = good.SerializeToString(), tmp_path / "a.onnx"
    wrong = {
        b"": "holds no graph \\(0 bytes\\)",
        content[:-20]: "not an ONNX model, or ends too early|not a valid ONNX",
        b"\x00" * 100: "not an ONNX model",
        b"\x80\x04\x95pickle": "not an ONNX model",
        b"  <!DOCTYPE html><html>": "is a web page",
    }
    for bad, reason in wrong.items():
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=rf"a.onnx .*({reason})"):
            check_file(path)
    good.graph.node[0].op_type = "Addd"
    with pytest.raises(ValueError, match=r"a.onnx is not a valid ONNX model: .*Addd"):
        check_file(save(good, path))
    with pytest.raises(FileNotFoundError, match=r"there is no file .*b.onnx"):
        check_file(tmp_path / "b.onnx")


def test_damaged_files_never_take_the_process_down(good, tmp_path):
    """Every byte of the file turned over and every end cut off: refused with a ValueError, or a session."""
    content, path, outcomes = good.SerializeToString(), tmp_path / "a.onnx", set()
    for place in range(len(content)):
        for bad in (content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :], content[:place]):
            path.write_bytes(bad)
            try:
                open_session(path)
                outcomes.add("opened")
            except ValueError as error:
                outcomes.add("refused" if "a.onnx" in str(error) else str(error))
    assert outcomes == {"opened", "refused"}
    assert onnxruntime.get_available_providers()
