from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compresslab.measure import fgsm, pgd, straight_through
from compresslab.quantization import quantize_static


def linear(*rows: list[float]) -> nn.Linear:
    model = nn.Linear(len(rows[0]), len(rows), bias=False)
    model.weight.data = torch.tensor(rows)
    return model


def test_fgsm_on_a_linear_model_by_hand():
    """Logits w x with w0 = (1, -2, 0), w1 = (0, 0, 0), label 0: the loss falls along w0, so the step is
    -epsilon sign(w0) = (-0.1, +0.1, 0), and the margin falls by epsilon ||w0||_1 = 0.3."""
    model, x = linear([1.0, -2.0, 0.0], [0.0, 0.0, 0.0]), torch.tensor([[0.5, 0.25, 0.5]])
    attacked = fgsm(model, x, torch.tensor([0]), epsilon=0.1)
    assert torch.allclose(attacked, torch.tensor([[0.4, 0.35, 0.5]]))
    margin = lambda inputs: (model(inputs)[0, 0] - model(inputs)[0, 1]).item()  # noqa: E731
    assert margin(x) - margin(attacked) == pytest.approx(0.3)


def test_on_a_linear_model_pgd_ends_where_fgsm_does():
    """The loss of two classes is monotone in each entry: the best corner is the same for both."""
    generator = torch.Generator().manual_seed(0)
    model = linear(*torch.randn(2, 6, generator=generator).tolist())
    x, labels = torch.rand(20, 6, generator=generator), torch.randint(2, (20,), generator=generator)
    for epsilon in (0.05, 0.4):
        assert torch.allclose(
            pgd(model, x, labels, epsilon=epsilon, steps=5), fgsm(model, x, labels, epsilon=epsilon), atol=1e-6
        )


@settings(derandomize=True, deadline=None, max_examples=20)
@given(epsilon=st.floats(0, 0.5), seed=st.integers(0, 9), steps=st.integers(1, 4))
def test_never_further_than_epsilon_and_never_outside(epsilon, seed, steps):
    torch.manual_seed(seed)
    model, x = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)), torch.rand(6, 5)
    labels = torch.randint(3, (6,))
    for attacked in (
        fgsm(model, x, labels, epsilon=epsilon, low=0.1 - x.new_ones(5) * 0.1, high=1.0),
        pgd(model, x, labels, epsilon=epsilon, steps=steps, generator=torch.Generator().manual_seed(seed)),
    ):
        assert (attacked - x).abs().max() <= epsilon + 1e-6
        assert attacked.min() >= 0 and attacked.max() <= 1


def curved() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 3))
    for p in model.parameters():
        p.data *= 4
    return model


def test_pgd_finds_a_higher_loss_than_fgsm_where_the_loss_is_curved():
    model, x = curved(), torch.rand(200, 8)
    labels = model(x).argmax(-1)
    attacked = x, fgsm(model, x, labels, epsilon=0.2), pgd(model, x, labels, epsilon=0.2, steps=20)
    losses = [F.cross_entropy(model(inputs), labels).item() for inputs in attacked]
    assert losses[0] < losses[1] < losses[2]


def test_a_step_of_its_own_for_each_channel():
    """Channels with deviations 0.5 and 0.25: a pixel step of 0.1 is 0.2 and 0.4 in the units of the inputs."""
    model, x = linear([1.0, 1.0], [0.0, 0.0]), torch.zeros(1, 2)
    epsilon, low, high = torch.tensor([0.2, 0.4]), torch.tensor([-1.0, -0.3]), torch.tensor([1.0, 2.0])
    attacked = fgsm(model, x, torch.tensor([0]), epsilon=epsilon, low=low, high=high)
    assert torch.allclose(attacked, torch.tensor([[-0.2, -0.3]]))
    again = pgd(model, x, torch.tensor([0]), epsilon=epsilon, low=low, high=high)
    assert torch.allclose(again, attacked)


def test_pgd_follows_its_generator():
    model, x, labels = curved(), torch.rand(50, 8), torch.arange(50) % 3
    runs = [pgd(model, x, labels, epsilon=0.2, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    assert not torch.equal(*runs)
    assert torch.equal(pgd(model, x, labels, epsilon=0.2), pgd(model, x, labels, epsilon=0.2))


def test_attacks_leave_model_and_inputs_alone(make_faulty, state_of):
    x, labels = torch.linspace(0, 1, 32).reshape(8, 4), torch.arange(8) % 3
    for attack in (fgsm, pgd):
        model, given_x = make_faulty(), x.clone()
        before = state_of(model)
        attack(model, given_x, labels, epsilon=0.1)
        assert state_of(model) == before and torch.equal(given_x, x) and not given_x.requires_grad
        model = make_faulty(KeyboardInterrupt, 1)
        before = state_of(model)
        with pytest.raises(KeyboardInterrupt):
            attack(model, x, labels, epsilon=0.1)
        assert state_of(model) == before


def test_rounding_hides_the_gradient_and_a_stand_in_gives_it_back():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    x, labels = torch.rand(64, 6), torch.randint(3, (64,))
    quantized = quantize_static(model, [(x, None)])
    with pytest.raises(ValueError, match=r"the gradient of 64 inputs is 0 everywhere: rounding hides it"):
        fgsm(quantized, x, labels, epsilon=0.1)
    with pytest.raises(ValueError, match="pass straight_through"):
        pgd(lambda inputs: quantized(inputs).detach(), x, labels, epsilon=0.1)
    bridged = straight_through(quantized, model)
    assert torch.equal(bridged(x), quantized(x))
    attacked = fgsm(bridged, x, labels, epsilon=0.2)
    losses = [F.cross_entropy(quantized(inputs), labels).item() for inputs in (x, attacked)]
    assert losses[1] > losses[0] + 0.05


def test_a_stand_in_gives_its_gradient_at_the_outputs_of_the_model():
    """Loss of the model's logits, derivative through the stand-in: softmax(model) - onehot, times W of the stand-in."""
    stand_in, x = linear([1.0, 2.0], [0.0, -1.0]), torch.tensor([[0.3, 0.7]])
    true = torch.tensor([[2.0, 0.0]])
    loss = F.cross_entropy(straight_through(lambda _: true, stand_in)(x.requires_grad_()), torch.tensor([1]))
    (found,) = torch.autograd.grad(loss, x)
    expected = (true.softmax(-1) - torch.tensor([[0.0, 1.0]])) @ stand_in.weight
    assert torch.allclose(found, expected)


def test_bad_arguments():
    model, x, labels = linear([1.0], [0.0]), torch.tensor([[0.5]]), torch.tensor([0])
    with pytest.raises(ValueError, match=r"epsilon=-0.1 must be at least 0"):
        fgsm(model, x, labels, epsilon=-0.1)
    with pytest.raises(ValueError, match=r"inputs in 3..3 must lie within low and high"):
        fgsm(model, x + 2.5, labels, epsilon=0.1)
    with pytest.raises(ValueError, match="steps=0 must be a whole number"):
        pgd(model, x, labels, epsilon=0.1, steps=0)
