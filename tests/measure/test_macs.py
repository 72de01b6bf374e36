"""Every count is worked by hand: MACs of one output number, times the numbers that come out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compresslab.measure import count_macs


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


LAYERS = {
    # name: (module, inputs, MACs worked by hand)
    "linear": (nn.Linear(5, 7), torch.zeros(3, 5), 3 * 5 * 7),
    "linear on one vector": (nn.Linear(5, 7), torch.zeros(5), 5 * 7),
    "linear on sequences": (nn.Linear(5, 7), torch.zeros(3, 4, 5), 3 * 4 * 5 * 7),
    "conv 3x3": (nn.Conv2d(3, 8, 3, padding=1), torch.zeros(2, 3, 6, 5), 2 * (6 * 5) * 8 * (3 * 9)),
    "conv with stride": (nn.Conv2d(3, 8, 3, stride=2), torch.zeros(1, 3, 9, 9), (4 * 4) * 8 * (3 * 9)),
    "conv 1x1": (nn.Conv2d(16, 8, 1), torch.zeros(1, 16, 4, 4), 16 * 8 * 16),
    "grouped": (nn.Conv2d(8, 12, 3, groups=4, padding=1), torch.zeros(1, 8, 5, 5), 25 * 12 * (2 * 9)),
    "depthwise": (nn.Conv2d(8, 8, 3, groups=8, padding=1), torch.zeros(1, 8, 5, 5), 25 * 8 * 9),
    "dilated": (nn.Conv2d(2, 4, 3, dilation=2), torch.zeros(1, 2, 7, 7), 9 * 4 * (2 * 9)),
    "conv 1d": (nn.Conv1d(4, 6, 5), torch.zeros(2, 4, 12), 2 * 8 * 6 * (4 * 5)),
    "conv 3d": (nn.Conv3d(2, 3, 2), torch.zeros(1, 2, 3, 3, 3), 8 * 3 * (2 * 8)),
    # each number that comes in is spread over O * K * K others
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2), torch.zeros(1, 4, 5, 5), 25 * 4 * (6 * 9)),
    "bilinear": (nn.Bilinear(3, 4, 5), (torch.zeros(2, 3), torch.zeros(2, 4)), 2 * 3 * 4 * 5),
    # 4 gates of 5, from 3 inputs and 5 states, at 2 * 7 steps
    "lstm": (nn.LSTM(3, 5), torch.zeros(7, 2, 3), 14 * (20 * 3 + 20 * 5)),
    "lstm batch first": (nn.LSTM(3, 5, batch_first=True), torch.zeros(2, 7, 3), 14 * (20 * 3 + 20 * 5)),
    "lstm, 2 layers, both ways": (
        nn.LSTM(3, 5, num_layers=2, bidirectional=True),
        torch.zeros(7, 2, 3),
        14 * 2 * ((20 * 3 + 20 * 5) + (20 * 10 + 20 * 5)),
    ),
    "gru": (nn.GRU(3, 5), torch.zeros(7, 2, 3), 14 * (15 * 3 + 15 * 5)),
    "rnn": (nn.RNN(3, 5), torch.zeros(7, 2, 3), 14 * (5 * 3 + 5 * 5)),
    "lstm cell": (nn.LSTMCell(3, 5), torch.zeros(2, 3), 2 * (20 * 3 + 20 * 5)),
    # four projections 8 x 8 for 2 * 6 tokens; scores and values: 2 samples, 6 x 6 pairs, 8 numbers, twice
    "attention": (
        nn.MultiheadAttention(8, 2, batch_first=True),
        (torch.zeros(2, 6, 8),) * 3,
        12 * 4 * 64 + 2 * 2 * 36 * 8,
    ),
    "encoder layer": (
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        torch.zeros(2, 6, 8),
        12 * 4 * 64 + 2 * 2 * 36 * 8 + 12 * 2 * (8 * 16),
    ),
    "scaled dot product": (
        Function(F.scaled_dot_product_attention),
        (torch.zeros(2, 3, 4, 8), torch.zeros(2, 3, 6, 8), torch.zeros(2, 3, 6, 8)),
        2 * 3 * (4 * 6) * (8 + 8),
    ),
    "attention by hand": (
        Function(lambda q: (q @ q.transpose(-1, -2)).softmax(-1) @ q),
        torch.zeros(2, 3, 4, 8),
        2 * 3 * (4 * 4) * (8 + 8),
    ),
    "einsum": (Function(lambda x: torch.einsum("bi,oi->bo", x, torch.zeros(7, 5))), torch.zeros(3, 5), 3 * 5 * 7),
    "matrix and vector": (Function(lambda x: x @ torch.zeros(5)), torch.zeros(3, 5), 15),
    "two vectors": (Function(lambda x: x @ x), torch.zeros(5), 5),
    "int8": (
        Function(lambda x: torch._int_mm(x, torch.ones(16, 24, dtype=torch.int8))),
        torch.ones(32, 16, dtype=torch.int8),
        32 * 16 * 24,
    ),
    "nothing to multiply": (nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(4), nn.GELU()), torch.zeros(2, 3).long(), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_each_layer_is_counted_to_the_unit(name):
    model, inputs, expected = LAYERS[name]
    macs = count_macs(model.eval(), inputs)
    assert macs.total == expected
    assert macs.flops == 2 * expected
    assert count_macs(model.train(), inputs).total == expected
    assert macs.uncounted == ()


def test_masks_and_grouped_heads_change_nothing_about_attention():
    query, key = torch.zeros(1, 4, 6, 8), torch.zeros(1, 2, 6, 8)
    grouped = Function(lambda q, k: F.scaled_dot_product_attention(q, k, k, enable_gqa=True))
    causal = Function(lambda q, k: F.scaled_dot_product_attention(q, q, q, is_causal=True))
    assert count_macs(grouped, (query, key)).total == count_macs(causal, (query, key)).total == 4 * 36 * 16


def test_values_may_have_a_width_of_their_own():
    """Scores (4 x 6) from 8 products, outputs (4 x 5) from 6."""
    query, key, value = torch.zeros(1, 2, 4, 8), torch.zeros(1, 2, 6, 8), torch.zeros(1, 2, 6, 5)
    macs = count_macs(Function(F.scaled_dot_product_attention), (query, key, value))
    assert macs.total == 2 * (4 * 6 * 8 + 4 * 5 * 6)


def test_a_fast_path_that_was_off_stays_off():
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        count_macs(nn.Linear(2, 2), torch.zeros(1, 2))
        assert not torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_padding_does_not_bring_back_the_fast_path():
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=True
    )
    mask = torch.tensor([[False] * 5 + [True], [False] * 6])
    macs = count_macs(encoder.eval(), {"src": torch.zeros(2, 6, 8), "src_key_padding_mask": mask})
    assert macs.total == 2 * LAYERS["encoder layer"][2]


def test_the_lstm_weights_kernel_formula_holds_without_it_too():
    """With projections torch falls back to single products: gates 20 x (3 + 2) and projection 2 x 5, at 14 steps."""
    with pytest.warns(UserWarning, match="projections") if torch.backends.mkldnn.is_available() else _nothing():
        macs = count_macs(nn.LSTM(3, 5, proj_size=2), torch.zeros(7, 2, 3))
    assert macs.total == 14 * (20 * 3 + 20 * 2 + 2 * 5)


def _nothing():
    import contextlib

    return contextlib.nullcontext()


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    batch=st.integers(1, 4), groups=st.integers(1, 3), inside=st.integers(1, 3), outside=st.integers(1, 3),
    kernel=st.integers(1, 3), stride=st.integers(1, 2), side=st.integers(5, 8),
)  # fmt: skip
def test_convolutions_follow_the_formula(batch, groups, inside, outside, kernel, stride, side):
    model = nn.Conv2d(inside * groups, outside * groups, kernel, stride=stride, groups=groups)
    macs = count_macs(model, torch.zeros(batch, inside * groups, side, side))
    places = ((side - kernel) // stride + 1) ** 2
    assert macs.per_sample == places * outside * groups * inside * kernel**2
    assert macs.total == batch * macs.per_sample
    assert macs.batch_size == batch


def test_modules_are_counted_by_name_with_what_is_inside():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
            self.unused = nn.Linear(4, 4)

        def forward(self, x):
            x = self.block(self.block(x))
            return x @ torch.zeros(4, 2)

    macs = count_macs(Shared(), torch.zeros(3, 4))
    assert macs.by_module == {"block": 2 * 48, "block.0": 2 * 48, "block.1": 0}
    assert macs.total == 2 * 48 + 24
    assert sum(macs.by_operation.values()) == macs.total
    assert macs.by_operation["mm"] == 24


def test_operations_of_other_libraries_are_named():
    @torch.library.custom_op("measuretest::double", mutates_args=())
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    macs = count_macs(Function(lambda x: double(x) @ torch.zeros(4, 2)), torch.zeros(3, 4))
    assert macs.uncounted == ("measuretest::double",)
    assert macs.total == 24


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"model must be an nn.Module, got function"):
        count_macs(lambda x: x, torch.zeros(1))


@pytest.mark.parametrize(
    ("name", "giga_macs"),
    [("resnet18", 1.814), ("mobilenet_v2", 0.301), ("mobilenet_v3_small", 0.057), ("vit_b_16", 17.564)],
)
def test_published_counts(name, giga_macs):
    """The figures of torchvision's model cards (GFLOPS there are multiply-accumulates), at 224 x 224."""
    from compresslab.workbench.vision import torchvision

    with torch.device("meta"):  # shapes alone: the count needs no numbers
        model = getattr(torchvision().models, name)()
        macs = count_macs(model, torch.zeros(1, 3, 224, 224))
    published = torchvision().models.get_model_weights(name).DEFAULT.meta["_ops"]
    assert macs.total / 1e9 == pytest.approx(giga_macs, rel=0.01)
    assert macs.total / 1e9 == pytest.approx(published, rel=0.01)
