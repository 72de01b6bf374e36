from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from compresslab.measure import Candidate, compare, count_macs, measure_size

COLUMNS = [
    "size_bytes", "compression", "parameters", "macs", "latency_s", "latency_p90_s", "speedup", "speedup_low",
    "speedup_high", "throughput", "accuracy", "accuracy_low", "accuracy_high", "difference", "difference_low",
    "difference_high", "p_value", "agreement",
]  # fmt: skip


def labeled(count: int = 60, batch: int = 16):
    """Images of one class each, 4 x 4 with one bright row, and noise; a model can learn them by hand."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 4
    images = 0.3 * torch.rand(count, 1, 4, 4, generator=generator)
    images[torch.arange(count), 0, labels] += 1
    return [(images[start : start + batch], labels[start : start + batch]) for start in range(0, count, batch)]


def row_sums() -> nn.Module:
    """A perfect model: the logit of a class is the sum of its row."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(4).repeat_interleave(4, dim=1))
    return model


def blind(model: nn.Module) -> nn.Module:
    """The same, but class 3 is never predicted."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        model[1].weight[3] = -1
    return model


@pytest.fixture
def comparison():
    perfect = row_sums()
    runtime = Candidate(lambda x: blind(perfect)(x), size_bytes=100, macs=64)
    return compare({"perfect": perfect, "blind": blind(perfect), "runtime": runtime}, labeled())


def test_the_table_by_hand(comparison):
    """Of 60 samples 15 are of class 3: accuracy 1 and 0.75; none won and 15 lost: p = 2 / 2^15."""
    table = comparison.table
    assert list(table.columns) == COLUMNS
    assert list(table.index) == ["perfect", "blind", "runtime"]
    assert table["accuracy"].tolist() == [1, 0.75, 0.75]
    assert table["difference"].tolist() == [0, -0.25, -0.25]
    assert table["p_value"].tolist() == [1, 2 / 2**15, 2 / 2**15]
    assert table["agreement"].tolist() == [1, 0.75, 0.75]
    assert (table["difference_high"] < 0).tolist() == [False, True, True]
    size = measure_size(row_sums()).size_bytes
    assert table["size_bytes"].tolist() == [size, size, 100]
    assert table["compression"].tolist() == [1, 1, size / 100]
    assert table["macs"].tolist() == [64, 64, 64]
    assert table["parameters"].tolist()[:2] == [64, 64]
    assert table["parameters"].isna().tolist() == [False, False, True]
    assert (comparison.metric, comparison.reference, comparison.samples) == ("accuracy", "perfect", 60)


def test_times_are_positive_and_fit_together(comparison):
    table = comparison.table
    assert (table["latency_s"] > 0).all()
    assert (table["latency_p90_s"] >= table["latency_s"]).all()
    assert table["throughput"].tolist() == pytest.approx((1 / table["latency_s"]).tolist())
    assert table.loc["perfect", ["speedup", "speedup_low", "speedup_high"]].tolist() == [1, 1, 1]
    assert comparison.batch_size == 1


def test_the_reference_can_be_chosen():
    perfect = row_sums()
    table = compare({"perfect": perfect, "blind": blind(perfect)}, labeled(), reference="blind").table
    assert table["difference"].tolist() == [0.25, 0]
    assert table["agreement"].tolist() == [0.75, 1]
    assert table.loc["blind", "speedup"] == 1


def test_latency_inputs_set_the_batch_and_macs_stay_per_sample():
    comparison = compare({"a": row_sums()}, labeled(), latency_inputs=torch.zeros(8, 1, 4, 4))
    assert comparison.batch_size == 8
    assert comparison.table["macs"].tolist() == [64]
    assert comparison.table.loc["a", "throughput"] == pytest.approx(8 / comparison.table.loc["a", "latency_s"])


def test_data_may_make_its_own_batches():
    class Data:
        def batches(self, batch_size):
            self.asked = batch_size
            return labeled(batch=batch_size)

    data = Data()
    assert compare({"a": row_sums()}, data, batch_size=30).samples == 60
    assert data.asked == 30


def test_language_models_are_compared_by_perplexity():
    torch.manual_seed(0)
    batches = [(torch.randint(5, (4, 6)), torch.randint(5, (4, 6))) for _ in range(3)]
    even = nn.Embedding(5, 5)
    nn.init.zeros_(even.weight)
    comparison = compare({"even": even, "random": nn.Embedding(5, 5)}, batches)
    table = comparison.table
    assert comparison.metric == "perplexity"
    assert comparison.samples == 12
    assert table.loc["even", "perplexity"] == pytest.approx(5)
    assert table.loc["random", "difference"] == pytest.approx(table.loc["random", "perplexity"] - 5)
    assert "≈ 5.00" in comparison.to_markdown()
    assert comparison.plot().get_ylabel() == "perplexity"


def test_models_of_several_inputs_are_measured_on_one_sample():
    class Two(nn.Linear):
        def forward(self, a, b):
            return super().forward(a + b)

    batches = [((torch.ones(6, 3), torch.ones(6, 3)), torch.zeros(6).long())]
    comparison = compare({"two": Two(3, 2)}, batches)
    assert (comparison.batch_size, comparison.table.loc["two", "macs"]) == (1, 6)

    class Named(Two):
        def forward(self, *, a, b=None):
            return nn.Linear.forward(self, a)

    batches = [({"a": torch.ones(6, 3), "b": None}, torch.zeros(6).long())]
    assert compare({"named": Named(3, 2)}, batches).batch_size == 1


def test_text_is_the_same_on_every_machine(comparison):
    again = compare({"perfect": row_sums()}, labeled())
    assert repr(again) == again.to_markdown() == compare({"perfect": row_sums()}, labeled()).to_markdown()
    assert comparison.to_markdown().splitlines()[2:] == [
        "| perfect | 336 | 1.00x | 64 | 64 | ≈ 100.0 % | ≈ 100.0 % |",
        "| blind | 336 | 1.00x | 64 | 64 | ≈ 75.0 % | ≈ 75.0 % |",
        "| runtime | 100 | 3.36x | not known | 64 | ≈ 75.0 % | ≈ 75.0 % |",
    ]


def test_the_same_call_gives_the_same_quality():
    one, two = (compare({"a": row_sums()}, labeled()).table for _ in range(2))
    columns = [name for name in COLUMNS if not name.startswith(("latency", "speedup", "throughput"))]
    assert one[columns].equals(two[columns])


def test_macs_are_counted_on_the_latency_inputs():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    inputs = torch.zeros(2, 1, 8, 8)
    comparison = compare({"a": model}, labeled(), latency_inputs=inputs)
    assert comparison.table.loc["a", "macs"] == count_macs(model, inputs).per_sample == 64 * 36


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="candidates is empty"):
        compare({}, labeled())
    with pytest.raises(TypeError, match=r"candidates\['a'\] must be a module or a Candidate, got function"):
        compare({"a": lambda x: x}, labeled())
    with pytest.raises(ValueError, match=r"reference='b' must be one of the candidates \['a'\]"):
        compare({"a": row_sums()}, labeled(), reference="b")
    with pytest.raises(TypeError, match="data is a list_iterator that can be read only once; pass list"):
        compare({"a": row_sums()}, iter(labeled()))
    with pytest.raises(ValueError, match="batches is empty"):
        compare({"a": row_sums()}, [])
    with pytest.raises(ValueError, match="threads=0"):
        compare({"a": row_sums()}, labeled(), threads=0)


def test_shuffled_data_is_noticed():
    class Shuffled:
        def __init__(self):
            self.passes = 0

        def __iter__(self):
            self.passes += 1
            return iter(labeled(batch=15)[:: 1 if self.passes % 2 else -1])

    with pytest.raises(ValueError, match="differ between two passes"):
        compare({"a": row_sums(), "b": row_sums()}, Shuffled())
