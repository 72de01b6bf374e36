"""One thread, no windows, and a digest of everything about a model that measuring must leave alone."""

from __future__ import annotations

import time

import matplotlib
import pytest
import torch
from torch import nn

from compresslab.measure import use_threads

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def _quiet_machine():
    import matplotlib.pyplot as plt

    with use_threads(1):
        yield
    plt.close("all")


class Faulty(nn.Module):
    """A small network with everything that could be touched, whose forward raises at one call."""

    def __init__(self, error: type[BaseException] | None = None, at: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.frozen = nn.BatchNorm1d(4).eval()  # in eval mode inside a model that trains
        self.head = nn.Linear(4, 3)
        self.error, self.at, self.calls = error, at, 0

    def forward(self, x):
        self.calls += 1
        x = self.body(x)
        if self.error and self.calls >= self.at:
            raise self.error(f"call {self.calls}")
        return self.head(self.frozen(x))


@pytest.fixture
def make_faulty():
    """Make a Faulty model in train mode, with gradients on its weights."""

    def make(error: type[BaseException] | None = None, at: int = 1) -> Faulty:
        torch.manual_seed(0)
        model = Faulty().train()
        model.frozen.eval()
        model(torch.randn(8, 4)).sum().backward()
        model.error, model.at, model.calls = error, at, 0
        return model

    return make


@pytest.fixture
def state_of():
    """Everything of a model, and of torch, that measuring must leave as it was."""

    def state(model: nn.Module) -> dict[str, object]:
        return {
            "modes": [module.training for module in model.modules()],
            "hooks": [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()],
            "global hooks": (
                len(nn.modules.module._global_forward_hooks),
                len(nn.modules.module._global_forward_pre_hooks),
            ),
            "values": [tensor.detach().clone().tolist() for tensor in model.state_dict().values()],
            "grads": [parameter.grad.tolist() for parameter in model.parameters()],
            "needs grad": [parameter.requires_grad for parameter in model.parameters()],
            "threads": torch.get_num_threads(),
            "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
            "fast path": torch.backends.mha.get_fastpath_enabled(),
            "random": torch.get_rng_state().tolist(),
        }

    return state


class Clock:
    """A clock of our own, and callables that take a given time on it, one duration after the other."""

    def __init__(self) -> None:
        self.now, self.order = 0.0, []

    def __call__(self) -> float:
        return self.now

    def taking(self, *durations: float, name: str = ""):
        state = {"call": 0}

        def run(*_):
            self.now += durations[min(state["call"], len(durations) - 1)]
            state["call"] += 1
            self.order.append(name)

        run.state = state
        return run


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock
