"""Whatever measures a model leaves it, and torch, as they were: after success, an error and an interrupt."""

from __future__ import annotations

import pytest
import torch

from compresslab import measure

INPUTS = torch.linspace(-1, 1, 32).reshape(8, 4)
BATCHES = [(INPUTS, torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]))] * 2

MEASUREMENTS = {
    "count_macs": lambda model: measure.count_macs(model, INPUTS),
    "measure_memory": lambda model: measure.measure_memory(model, INPUTS),
    "measure_latency": lambda model: measure.measure_latency(model, INPUTS, repeats=2, warmup=1, min_time_s=0),
    "compare_latency": lambda model: measure.compare_latency(
        {"a": model, "b": model}, INPUTS, rounds=2, warmup=1, min_time_s=0, threads=2
    ),
    "profile_layers": lambda model: measure.profile_layers(model, INPUTS, repeats=2, warmup=1),
    "predict": lambda model: measure.predict(model, BATCHES),
    "compare": lambda model: measure.compare({"model": model}, BATCHES),
}


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_model_is_left_alone_after_success(name, make_faulty, state_of):
    model = make_faulty()
    before = state_of(model)
    MEASUREMENTS[name](model)
    assert model.calls > 0
    assert state_of(model) == before


@pytest.mark.parametrize("name", MEASUREMENTS)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_model_is_left_alone_after_an_error_at_any_call(name, error, make_faulty, state_of):
    healthy = make_faulty()
    MEASUREMENTS[name](healthy)
    for at in range(1, min(healthy.calls, 12) + 1):
        model = make_faulty(error, at)
        before = state_of(model)
        with pytest.raises(error, match=f"call {at}"):
            MEASUREMENTS[name](model)
        assert state_of(model) == before


def test_size_leaves_a_model_alone(make_faulty, state_of):
    model = make_faulty()
    before = state_of(model)
    measure.measure_size(model)
    assert state_of(model) == before


def test_a_loop_left_early_leaves_the_model_alone(make_faulty, state_of):
    model = make_faulty()
    before = state_of(model)
    for _ in measure.predict_batches(model, BATCHES):
        assert state_of(model) == before  # between two batches as well
        break
    assert state_of(model) == before


def test_dropout_is_off_while_a_model_is_measured(make_faulty):
    model = make_faulty()
    once, again = measure.predict(model, BATCHES), measure.predict(model, BATCHES)
    assert torch.equal(once.logits, again.logits)


def test_a_model_that_keeps_something_from_its_first_call_can_still_train():
    """Tensors made in inference mode can never be trained with; the cold call must not leave such behind."""

    class Caching(torch.nn.Linear):
        kept = None

        def forward(self, x):
            self.kept = x * 2 if self.kept is None else self.kept
            return super().forward(self.kept)

    model = Caching(4, 3)
    measure.measure_latency(model, INPUTS, repeats=2, min_time_s=0)
    model(INPUTS).sum().backward()
    assert model.weight.grad is not None


def test_importing_measure_loads_no_pandas_and_no_matplotlib():
    import subprocess
    import sys

    code = "import sys, compresslab.measure; sys.exit(any(m in sys.modules for m in ('pandas', 'matplotlib', 'scipy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
