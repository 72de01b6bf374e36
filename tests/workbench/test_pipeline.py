"""Steps in order: measured, stored, resumed, and undone with what led to them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from compresslab.workbench.pipeline import Step, run_steps


def network() -> nn.Module:
    made = nn.Linear(2, 2, bias=False)
    made.weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    return made


def times(factor: float, calls: list | None = None):
    def run(model: nn.Module) -> nn.Module:
        if calls is not None:
            calls.append(factor)
        made = copy.deepcopy(model)
        made.weight.data *= factor
        return made

    return run


def total(model: nn.Module) -> dict[str, float]:
    return {"total": model.weight.sum().item(), "count": model.weight.numel()}


def said(run) -> list[tuple]:
    return [(record.step, record.figures["total"], record.kept, record.stored) for record in run.records]


def test_a_step_below_the_floor_is_undone():
    run = run_steps(network(), {"half": times(0.5), "tenth": times(0.1), "twice": times(2)}, total, floor={"total": 4})
    assert said(run) == [
        ("as given", 10.0, True, False), ("half", 5.0, True, False), ("tenth", 0.5, False, False),
        ("twice", 10.0, True, False),
    ]  # fmt: skip
    assert torch.equal(run.model.weight, network().weight)


def test_harm_is_judged_after_its_repair_and_goes_with_it():
    steps = {"cut": Step(times(0.1), judged=False), "repair": times(8)}
    run = run_steps(network(), steps, total, floor={"total": 7.9})
    assert said(run)[1:] == [("cut", 1.0, True, False), ("repair", 8.0, True, False)]
    run = run_steps(network(), steps | {"cut again": Step(times(0.1), judged=False), "too little": times(5)}, total, floor={"total": 7.9})  # fmt: skip
    assert [record.kept for record in run.records] == [True, True, True, False, False]
    assert run.model.weight.sum().item() == pytest.approx(8.0)


def test_nan_is_below_every_floor():
    run = run_steps(network(), {"spoil": times(float("nan"))}, total, floor={"total": -1e9})
    assert not run.records[1].kept
    assert torch.equal(run.model.weight, network().weight)


def test_a_stopped_run_goes_on_where_it_was(tmp_path):
    calls: list[float] = []

    def stop(model: nn.Module) -> nn.Module:
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut") as caught:
        run_steps(network(), {"a": times(2, calls), "b": stop}, total, folder=tmp_path)
    assert caught.value.__notes__ == ["in step 'b'"]
    run = run_steps(network(), {"a": times(2, calls), "b": times(3, calls)}, total, folder=tmp_path)
    assert calls == [2, 3]
    assert said(run)[1:] == [("a", 20.0, True, True), ("b", 60.0, True, False)]
    again = run_steps(network(), {"a": times(2, calls), "b": times(3, calls)}, total, folder=tmp_path)
    assert calls == [2, 3]
    assert [record.seconds for record in again.records] == [0.0, run.records[1].seconds, run.records[2].seconds]
    assert torch.equal(again.model.weight, run.model.weight)


def test_what_changes_before_a_step_does_it_anew(tmp_path):
    calls: list[float] = []
    run_steps(network(), {"a": times(2, calls)}, total, folder=tmp_path)
    other = network()
    other.weight.data[0, 0] = 7
    run_steps(other, {"a": times(2, calls)}, total, folder=tmp_path)
    run_steps(network(), {"b": times(2, calls)}, total, folder=tmp_path)
    run_steps(network(), {"a": Step(times(2, calls), version="2")}, total, folder=tmp_path)
    assert len(calls) == 4
    assert len(list(tmp_path.iterdir())) == 4


def test_a_spoiled_file_is_made_again(tmp_path):
    calls: list[float] = []
    run_steps(network(), {"a": times(2, calls)}, total, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-4])
    run = run_steps(network(), {"a": times(2, calls)}, total, folder=tmp_path)
    assert (calls, run.records[1].stored) == ([2, 2], False)
    assert run_steps(network(), {"a": times(2, calls)}, total, folder=tmp_path).records[1].stored


def test_another_network_is_made_again_and_not_stored(tmp_path):
    calls: list[str] = []

    def narrow(model: nn.Module) -> nn.Module:
        calls.append("narrow")
        made = nn.Linear(2, 1, bias=False)
        made.weight.data = model.weight.data[:1].clone()
        return made

    steps = {"narrow": narrow, "twice": times(2, calls)}
    first, second = (run_steps(network(), steps, total, folder=tmp_path) for _ in range(2))
    assert calls == ["narrow", 2, "narrow"]
    assert said(first)[-1][1:] == (6.0, True, False)
    assert said(second)[-1][1:] == (6.0, True, True)
    assert torch.equal(first.model.weight, second.model.weight)


def test_the_given_model_stays(tmp_path):
    model = network()
    before, mode = model.weight.detach().clone(), model.training
    run = run_steps(model, {"twice": times(2)}, total, floor={"total": 1e9}, folder=tmp_path)
    assert torch.equal(model.weight, before)
    assert (model.training, model.weight.grad) == (mode, None)
    assert run.model is not model


@pytest.mark.parametrize(
    ("steps", "floor", "words"),
    [
        ({}, None, "steps must hold at least one step"),
        ({"a": Step(times(2), judged=False)}, None, "the last one must be judged"),
        ({"a": times(2)}, {"accuracy": 1}, "floor has 'accuracy', but measure gives count, total"),
        ({"a": lambda model: 3}, None, "step 'a' gave a int; it must give a model"),
    ],
)
def test_what_it_refuses(steps, floor, words):
    with pytest.raises(ValueError, match=words):
        run_steps(network(), steps, total, floor=floor)
