"""Small models that break careless code: each is legal PyTorch, and each has broken some public tool.

``HOSTILE`` maps a name to a function that makes the model anew. What a method does with one is its own affair, as long
as the answer is right or a precise error: ``check_compressor`` is the judge.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["HOSTILE", "Hostile", "hostile"]


@dataclass(frozen=True, eq=False)
class Hostile:
    """A model with what a method may be given beside it."""

    name: str
    model: nn.Module
    batches: list[tuple[Tensor, Tensor]]  # (inputs, labels); three batches of four samples
    poisoned: str = ""  # name of the parameter that holds a NaN or an infinity
    nothing_to_compress: bool = False


class Residual(nn.Module):
    """Convolution, batch norm and a skip connection: two layers that must keep the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, H, W) -> (N, 5)
        x = self.stem(x)
        x = torch.relu(self.bn(self.conv(x)) + x)
        return self.head(x.mean((2, 3)))


class Language(nn.Module):
    """Tokens in, logits over the vocabulary out; the head may share the embedding's weight."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:  # (N, L) -> (N, L, 11)
        return self.head(torch.relu(self.mix(self.embedding(tokens))))


class Shared(nn.Module):
    """One linear layer used twice under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.again = self.first
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.again(torch.relu(self.first(x)))))


class Extras(nn.Module):
    """A 0-d parameter, an empty one, an integer buffer and one that is not saved, beside a plain layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5)
        self.temperature = nn.Parameter(torch.tensor(0.7))
        self.nothing = nn.Parameter(torch.empty(0))
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("scratch", torch.ones(5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.temperature * self.scratch


class Attention(nn.Module):
    """Multi-head attention, whose input projection is a bare parameter, not a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:  # (N, L, 8) -> (N, 5)
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 7, batch_first=True)
        self.head = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:  # (N, L, 6) -> (N, 5)
        return self.head(self.lstm(x)[0][:, -1])


def _mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5))


def _cnn(middle: nn.Module, width: int = 8) -> nn.Sequential:
    first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    return nn.Sequential(first, nn.BatchNorm2d(8), nn.ReLU(), middle, nn.ReLU(), nn.Flatten(), nn.Linear(width * 64, 5))


def _edit(model: nn.Module, name: str, change: Callable[[Tensor], None]) -> nn.Module:
    with torch.no_grad():
        change(model.get_parameter(name))
    return model


def _fill(index: object, value: float) -> Callable[[Tensor], None]:
    return lambda weight: weight.__setitem__(index, value)


def _non_contiguous() -> nn.Module:
    model = _mlp()
    model[0].weight = nn.Parameter(torch.randn(6, 16).t())
    return model


def _dropout_in_train_mode() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 5)).train()


def _partly_frozen() -> nn.Module:
    model = _mlp()
    model[0].requires_grad_(False)
    model[0].eval()
    return model


def _with_gradients() -> nn.Module:
    model = _mlp()
    model(torch.randn(4, 6)).sum().backward()
    return model


VECTOR, IMAGE, SEQUENCE = (6,), (3, 8, 8), (4, 6)
# name: (make the model, shape of one sample, options of Hostile)
_MAKERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict]] = {
    "mlp": (_mlp, VECTOR, {}),
    "conv_bn": (lambda: _cnn(nn.Conv2d(8, 8, 3, padding=1)), IMAGE, {}),
    "residual": (Residual, IMAGE, {}),
    "depthwise": (lambda: _cnn(nn.Conv2d(8, 8, 3, padding=1, groups=8)), IMAGE, {}),
    "grouped": (lambda: _cnn(nn.Conv2d(8, 4, 3, padding=1, groups=2), 4), IMAGE, {}),
    "transposed": (lambda: _cnn(nn.ConvTranspose2d(8, 4, 3, padding=1), 4), IMAGE, {}),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5)),
        SEQUENCE,
        {},
    ),
    "one_channel": (lambda: _cnn(nn.Conv2d(8, 1, 1), 1), IMAGE, {}),
    "prime_sizes": (
        lambda: nn.Sequential(nn.Linear(6, 13), nn.ReLU(), nn.Linear(13, 7), nn.ReLU(), nn.Linear(7, 5)),
        VECTOR,
        {},
    ),
    "attention": (Attention, (4, 8), {}),
    "recurrent": (Recurrent, SEQUENCE, {}),
    "embedding": (lambda: Language(tied=False), (), {}),
    "tied": (lambda: Language(tied=True), (), {}),
    "shared": (Shared, VECTOR, {}),
    "extras": (Extras, VECTOR, {}),
    "all_zero": (lambda: _edit(_mlp(), "2.weight", lambda weight: weight.zero_()), VECTOR, {}),
    "constant_row": (lambda: _edit(_mlp(), "0.weight", _fill(3, 0.25)), VECTOR, {}),
    "equal_weights": (lambda: _edit(_mlp(), "0.weight", lambda weight: weight.fill_(0.5)), VECTOR, {}),
    "huge_row": (lambda: _edit(_mlp(), "0.weight", lambda weight: weight[0].mul_(1e4)), VECTOR, {}),
    "non_contiguous": (_non_contiguous, VECTOR, {}),
    "train_mode": (_dropout_in_train_mode, VECTOR, {}),
    "partly_frozen": (_partly_frozen, VECTOR, {}),
    "with_gradients": (_with_gradients, VECTOR, {}),
    "float64": (lambda: _mlp().double(), VECTOR, {}),
    "bfloat16": (lambda: _mlp().bfloat16(), VECTOR, {}),
    "float16": (lambda: _mlp().half(), VECTOR, {}),
    "no_layers": (lambda: nn.Sequential(nn.ReLU(), nn.Flatten()), VECTOR, {"nothing_to_compress": True}),
    "nan": (lambda: _edit(_mlp(), "2.weight", _fill((1, 2), math.nan)), VECTOR, {"poisoned": "2.weight"}),
    "infinity": (lambda: _edit(_mlp(), "0.weight", _fill((0, 0), math.inf)), VECTOR, {"poisoned": "0.weight"}),
    "meta": (lambda: _mlp().to("meta"), VECTOR, {}),
}
HOSTILE: tuple[str, ...] = tuple(_MAKERS)


def hostile(name: str, *, seed: int = 0) -> Hostile:
    """The hostile model of that name, made anew, with three batches of four samples.

    Args:
        name: one of ``HOSTILE``.
        seed: of weights and data; the global random state is left as it was.

    Raises:
        ValueError: no model has that name.

    Example:
        >>> case = hostile("tied")
        >>> case.model.head.weight is case.model.embedding.weight
        True
    """
    if name not in _MAKERS:
        raise ValueError(f"name={name!r} is not a hostile model; choose one of {', '.join(HOSTILE)}")
    make, shape, options = _MAKERS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
        parameter = next(model.parameters(), torch.empty(0))
        batches = []
        for _ in range(3):
            if shape:
                inputs = torch.randn(4, *shape).to(parameter.dtype).to(parameter.device)
                labels = torch.randint(0, 5, (4,))
            else:
                tokens = torch.randint(0, 11, (4, 7))
                inputs, labels = tokens[:, :-1], tokens[:, 1:]
            batches.append((inputs, labels.to(parameter.device)))
    return Hostile(name, model, batches, **options)
