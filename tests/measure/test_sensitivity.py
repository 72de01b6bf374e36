"""The scan on models small enough to work by hand, what it leaves alone, and its answer in an allocation of bits."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from compresslab.measure.sensitivity import Sensitivity, plot_sensitivity, scan_sensitivity
from compresslab.quantization.bit_allocation import allocate_bits


def chain() -> nn.Module:
    """y = 2 (3 x), then dropout, which must not run."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False), nn.Dropout(0.9))
    model[0].weight.data.fill_(3.0)
    model[1].weight.data.fill_(2.0)
    return model.train()


def add(model: nn.Module, layer: str, amount: float) -> nn.Module:
    changed = copy.deepcopy(model)
    changed.get_submodule(layer).weight.data += amount
    return changed


def output(model: nn.Module) -> float:
    return model(torch.ones(1, 1))


def test_by_hand():
    # As it is 6. The first layer alone: (3 + 1) 2 = 8 and (3 - 2) 2 = 2; the second alone: 3 (2 + 1) = 9, 3 (2 - 2) = 0.
    model = chain()
    before = copy.deepcopy(model.state_dict())
    scan = scan_sensitivity(model, add, output, layers=["0", "1"], settings=[1, -2])
    assert scan.baseline == 6
    assert list(scan.table.index) == ["0", "1"]
    assert list(scan.table.columns) == [1, -2]
    assert scan.table.to_numpy().tolist() == [[2, -4], [3, -6]]
    assert scan.errors == {"0": {1: 2, -2: 0}, "1": {1: 3, -2: 0}}
    assert model.training and model[2].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_it_finds_can_be_allocated():
    scan = scan_sensitivity(
        chain(), lambda model, layer, bits: add(model, layer, 2.0**-bits), output, layers=["0", "1"], settings=[2, 4]
    )
    # 2 bits add 2/4 and 3/4, 4 bits 2/16 and 3/16: of three bytes the third goes to the layer that minds more
    sizes = {"0": {2: 1, 4: 2}, "1": {2: 1, 4: 2}}
    found = allocate_bits(scan.errors, sizes, 3)
    assert found.bits == {"0": 2, "1": 4}
    assert found.error == pytest.approx(2 / 4 + 3 / 16)


def test_the_figure_shows_the_table():
    scan = scan_sensitivity(chain(), add, output, layers=["0", "1"], settings=[1, 2])
    ax = scan.plot()
    assert [text.get_text() for text in ax.get_yticklabels()] == ["0", "1"]
    assert [line.get_xdata().tolist() for line in ax.lines] == [[2, 3], [4, 6]]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["1", "2"]
    assert len({(line.get_marker(), line.get_color()) for line in ax.lines}) == 2
    assert ax.yaxis_inverted()
    assert plot_sensitivity(scan.table, ax=ax) is ax


def test_errors():
    model = chain()
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got str"):
        scan_sensitivity("model", add, output, layers=["0"], settings=[1])
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got NoneType"):
        scan_sensitivity(model, lambda *_: None, output, layers=["0"], settings=[1])
    with pytest.raises(ValueError, match=r"layers=\[\] and settings=\[1\] must hold at least one each"):
        scan_sensitivity(model, add, output, layers=[], settings=[1])
    with pytest.raises(ValueError, match=r"layers=\['0'\] and settings=\[\] must hold"):
        scan_sensitivity(model, add, output, layers=["0"], settings=[])
    with pytest.raises(ValueError, match=r"a finite number, got inf for '1' changed to inf"):
        scan_sensitivity(model, add, output, layers=["0", "1"][1:], settings=[float("inf")])

    def in_place(model: nn.Module, layer: str, amount: float) -> nn.Module:
        model.get_submodule(layer).weight.data += amount
        return model

    with pytest.raises(ValueError, match="own harm was 6 before and 8 after the scan; let change return a new model"):
        scan_sensitivity(chain(), in_place, output, layers=["0"], settings=[1])


def test_flags_come_back_after_an_error():
    model = chain()

    def fail(model: nn.Module) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan_sensitivity(model, add, fail, layers=["0"], settings=[1])
    assert model.training and model[2].training


def test_it_is_plain_data():
    scan = scan_sensitivity(chain(), add, output, layers=["0"], settings=[1])
    assert isinstance(scan, Sensitivity)
    with pytest.raises(AttributeError):
        scan.baseline = 0.0
