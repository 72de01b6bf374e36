"""The training loop: its steps by hand, its promises (same bits, nothing touched, resumable), its errors."""

from __future__ import annotations

import copy
import itertools
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compresslab.workbench import models
from compresslab.workbench.files import CorruptArtifact, load_tensors, save_tensors
from compresslab.workbench.train import evaluate, fit, jitter, lr_factor

REPOSITORY = Path(__file__).resolve().parents[2]


class Images:
    """A split as the data module makes them: shuffled by the generator that it is given."""

    def __init__(self, n: int = 40, classes: int = 4, seed: int = 0):
        source = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(0, classes, (n,), generator=source)
        self.images = torch.randn(n, 1, 8, 8, generator=source) + self.labels.view(-1, 1, 1, 1)

    def batches(self, batch_size=256, *, shuffle=False, generator=None):
        n = len(self.labels)
        order = torch.randperm(n, generator=generator) if shuffle else torch.arange(n)
        return [(self.images[index], self.labels[index]) for index in order.split(batch_size)]


class Text:
    """A text split: windows of the context that the model asks for."""

    def __init__(self, n: int = 400):
        self.tokens = (torch.arange(n) % 7 + 97).to(torch.uint8)
        self.asked: list[int] = []

    def batches(self, batch_size=32, *, context=128, shuffle=False, generator=None):
        self.asked.append(context)
        windows = self.tokens.long().unfold(0, context + 1, context)
        order = torch.randperm(len(windows), generator=generator) if shuffle else torch.arange(len(windows))
        return [(windows[index][:, :-1], windows[index][:, 1:]) for index in order.split(batch_size)]


def small(name: str = "vgg", **config) -> nn.Module:
    defaults = {
        "mlp": {"size": 8, "width": 8, "classes": 4},
        "vgg": {"size": 8, "width": 2, "depth": 1, "classes": 4},
        "gpt": {"width": 16, "depth": 1, "heads": 2, "context": 16},
        "moe_gpt": {"width": 16, "depth": 1, "heads": 2, "context": 16, "hidden": 8, "experts": 4},
    }
    return models.build(name, **(defaults[name] | config))


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ------------------------------------------------------------------------------------------------ golden, by hand


def scalar(weight: float = 0.0) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, weight)
    return model


def squared(model, batch):
    return ((model(batch[0]) - batch[1]) ** 2).mean()


SGD = torch.optim.SGD
ONE = [(torch.ones(1, 1), torch.ones(1, 1))]  # loss (w - 1)^2, gradient 2 (w - 1)


def test_two_steps_of_sgd_by_hand():
    # lr 0.25, constant: w = 0 -> 0 + 0.25 * 2 = 0.5 -> 0.5 + 0.25 * 1 = 0.75; losses 1 and 0.25
    options = {"lr": 0.25, "schedule": "constant", "warmup": 0.0, "clip": None, "optimizer": SGD, "loss_fn": squared}
    fitted = fit(scalar(), ONE, epochs=2, **options)
    assert fitted.model.weight.item() == 0.75
    assert [(row["epoch"], row["steps"], row["train_loss"], row["lr"]) for row in fitted.history] == [
        (1, 1, 1.0, 0.25),
        (2, 2, 0.25, 0.25),
    ]


def test_clipping_by_hand():
    # the gradient -2 is cut to length 0.5: w = 0 + 0.25 * 0.5 (PyTorch divides by norm + 1e-6)
    options = {"lr": 0.25, "schedule": "constant", "warmup": 0.0, "optimizer": SGD, "loss_fn": squared}
    fitted = fit(scalar(), ONE, epochs=1, clip=0.5, **options)
    assert fitted.model.weight.item() == pytest.approx(0.125, abs=1e-6)


def test_the_schedule_reaches_the_optimizer():
    # four steps, warm-up over two, linear: factors 0.5, 1, 1, 0.5
    seen = []
    options = {"schedule": "linear", "warmup": 0.5, "loss_fn": squared, "lr": 0.2}

    def watched(parameters, lr):
        optimizer = SGD(parameters, lr=lr)
        optimizer.register_step_post_hook(lambda opt, *_: seen.append(opt.param_groups[0]["lr"]))
        return optimizer

    fit(scalar(), ONE * 2, epochs=2, optimizer=watched, **options)
    assert seen == pytest.approx([0.1, 0.2, 0.2, 0.1])


def test_each_group_keeps_its_own_peak():
    rates = []

    def two_groups(parameters, lr):
        groups = [{"params": parameters[:1], "lr": 10 * lr}, {"params": parameters[1:]}]
        optimizer = SGD(groups, lr=lr)
        optimizer.register_step_post_hook(lambda opt, *_: rates.append([g["lr"] for g in opt.param_groups]))
        return optimizer

    fit(small("mlp"), Images(), epochs=1, batch_size=20, lr=0.01, schedule="linear", warmup=0, optimizer=two_groups)
    assert rates == [pytest.approx([0.1, 0.01]), pytest.approx([0.05, 0.005])]


def test_cosine_by_hand():
    # no warm-up, four steps: (1 + cos(0, 45, 90, 135 degrees)) / 2
    root = 2**0.5 / 2
    factors = [lr_factor(step, 4, warmup=0.0) for step in range(4)]
    assert factors == pytest.approx([1.0, (1 + root) / 2, 0.5, (1 - root) / 2])


@settings(derandomize=True, deadline=None, max_examples=50)
@given(steps=st.integers(1, 60), warmup=st.floats(0, 1), schedule=st.sampled_from(["cosine", "linear", "constant"]))
def test_the_factor_rises_then_falls_and_stays_in_0_to_1(steps, warmup, schedule):
    factors = [lr_factor(step, steps, schedule=schedule, warmup=warmup) for step in range(steps)]
    assert all(0 < f <= 1 for f in factors)
    top = factors.index(max(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert max(factors) == pytest.approx(1.0)


def test_decay_is_on_matrices_only():
    # With a loss of zero AdamW moves nothing but what decays: w * (1 - lr * decay) = w * 0.9 in one step.
    model = small()
    nn.init.constant_(model.classifier.bias, 1.0)
    options = {"epochs": 1, "lr": 0.1, "weight_decay": 1.0, "schedule": "constant", "warmup": 0, "batch_size": 64}
    trained = fit(model, Images(), loss_fn=lambda m, batch: 0.0 * m(batch[0]).sum(), **options).model
    for (name, before), after in zip(model.named_parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(after, before * 0.9 if before.dim() >= 2 else before, msg=name)


def test_evaluation_by_hand():
    # logits (0, ln 3): probabilities 1/4, 3/4; losses -ln(3/4), -ln(1/4), mean ln(4 / sqrt 3)
    logits = torch.tensor([[0.0, 3.0], [0.0, 3.0]]).log().clamp(min=0)
    measured = evaluate(nn.Identity(), [(logits[:1], torch.tensor([1])), (logits[1:], torch.tensor([0]))])
    assert measured.loss == pytest.approx(0.836988, abs=1e-6)  # ln 4 - ln 3 / 2 = 1.386294 - 0.549306
    assert (measured.accuracy, measured.perplexity, measured.n) == (0.5, None, 2)
    assert measured.as_row() == {"val_loss": measured.loss, "val_accuracy": 0.5}


def test_perplexity_by_hand():
    # the same logits at every position of (1, 2) tokens: perplexity exp(mean) = 4 / sqrt 3
    logits = torch.tensor([[[0.0, 3.0], [0.0, 3.0]]]).log().clamp(min=0)
    measured = evaluate(nn.Identity(), [(logits, torch.tensor([[1, 0]]))])
    assert measured.perplexity == pytest.approx(4 / 3**0.5)
    assert (measured.accuracy, measured.n) == (None, 2)
    assert measured.as_row().keys() == {"val_loss", "val_perplexity"}


def test_the_epoch_loss_weighs_batches_by_their_size():
    # losses (0 - 1)^2 over three samples and (0 - 3)^2 over one: (3 * 1 + 9) / 4 = 3, the weight frozen by lr ~ 0
    data = [(torch.ones(3, 1), torch.ones(3, 1)), (torch.ones(1, 1), 3 * torch.ones(1, 1))]
    fitted = fit(scalar(), data, epochs=1, lr=1e-30, optimizer=SGD, loss_fn=squared)
    assert fitted.history[0]["train_loss"] == pytest.approx(3.0)


# ------------------------------------------------------------------------------------------------ oracle


def test_the_loop_is_the_textbook_loop():
    """The same steps written out, with torch's own scheduler."""
    images, model = Images(), small().eval()  # it trains in train mode all the same
    fitted = fit(model, images, epochs=2, batch_size=16, lr=0.01, warmup=0.0, clip=1.0, weight_decay=0.0, seed=3)

    reference = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(reference.parameters(), lr=0.01, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6)
    for epoch in range(2):
        source = torch.Generator().manual_seed(3 * 1_000_003 + epoch)
        for inputs, targets in images.batches(16, shuffle=True, generator=source):
            optimizer.zero_grad()
            F.cross_entropy(reference(inputs), targets).backward()
            nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
    for (name, a), b in zip(fitted.model.state_dict().items(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


def test_it_learns_images():
    fitted = fit(small(), Images(400), val=Images(100, seed=1), epochs=5, batch_size=32, lr=0.02)
    assert fitted.history[-1]["val_accuracy"] > 0.8  # 0.25 is chance
    assert fitted.history[-1]["val_loss"] < fitted.history[0]["val_loss"]
    assert not any(module.training for module in fitted.model.modules())


@pytest.mark.parametrize("name", ["gpt", "moe_gpt"])
def test_it_learns_text(name):
    text = Text()
    fitted = fit(small(name), text, val=text, epochs=8, batch_size=4, lr=0.02)
    assert fitted.history[-1]["val_perplexity"] < 3 < fitted.history[0]["val_perplexity"]  # 256 is chance
    assert set(text.asked) == {16}  # the context is the model's
    if name == "moe_gpt":
        row = fitted.history[-1]
        assert row["train_loss"] == pytest.approx(row["cross_entropy"] + 0.01 * row["load_balance"])
        assert row["load_balance"] == pytest.approx(1.0, abs=0.5)


def test_bf16_learns_too_and_keeps_float_weights():
    fitted = fit(small(), Images(400), val=Images(100, seed=1), epochs=5, batch_size=32, lr=0.02, precision="bf16")
    assert fitted.history[-1]["val_accuracy"] > 0.8
    assert all(p.dtype == torch.float32 for p in fitted.model.parameters())


def test_bf16_reaches_the_model():
    seen = []

    def loss_fn(model, batch):
        logits = model(batch[0])
        seen.append(logits.dtype)
        return logits.float().square().mean()

    fit(small("mlp"), Images(), epochs=1, loss_fn=loss_fn, precision="bf16")
    fit(small("mlp"), Images(), epochs=1, loss_fn=loss_fn)
    assert seen == [torch.bfloat16, torch.float32]


# ------------------------------------------------------------------------------------------------ promises


class Hostile(nn.Module):
    """A model with dropout, a frozen layer, a hook and a stray gradient."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(64, 8)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        return self.last(self.drop(self.first(x.flatten(1))))


def hostile() -> Hostile:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Hostile()
    model.first.requires_grad_(False)
    model.drop.eval()
    model.last.weight.grad = torch.ones_like(model.last.weight)
    return model


@pytest.mark.parametrize("stop_at", [None, 1, 4])
def test_what_was_given_is_not_touched(stop_at):
    model, before_random = hostile(), torch.get_rng_state()
    before, flags = state(model), [m.training for m in model.modules()]
    calls = itertools.count(1)

    def loss_fn(m, batch):
        if next(calls) == stop_at:
            raise KeyboardInterrupt
        return F.cross_entropy(m(batch[0]), batch[1])

    if stop_at:
        with pytest.raises(KeyboardInterrupt):
            fit(model, Images(), epochs=2, batch_size=16, loss_fn=loss_fn)
    else:
        trained = fit(model, Images(), epochs=2, batch_size=16, loss_fn=loss_fn).model
        assert not torch.equal(trained.last.weight, before["last.weight"])
        assert torch.equal(trained.first.weight, before["first.weight"])  # frozen stays frozen
        assert all(p.grad is None for p in trained.parameters() if p.requires_grad)
    assert same(state(model), before)
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(model.last.weight.grad, torch.ones(4, 8))
    assert torch.equal(torch.get_rng_state(), before_random)


def test_the_same_seed_gives_the_same_bits_whatever_the_global_state():
    def run(seed):
        torch.manual_seed(torch.seed() % 1000)
        return state(fit(hostile(), Images(), epochs=2, batch_size=16, seed=seed).model)

    first = run(0)
    assert same(first, run(0))
    assert not same(first, run(1))


def noise(inputs, generator):
    return inputs + 0.1 * torch.randn(inputs.shape, generator=generator)


OPTIMIZERS = {"adamw": None, "momentum": partial(SGD, momentum=0.9, nesterov=True), "sgd": SGD}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("stop_at", [2, 4, 8])
def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, stop_at, optimizer):
    """3 steps an epoch, 3 epochs, with batch norm, augmentation and dropout; stopped in epochs 1, 2 and 3."""
    model = nn.Sequential(small(), nn.Dropout(0.2))
    options = {"val": Images(20, seed=1), "epochs": 3, "batch_size": 16, "lr": 0.01, "augment": noise}
    options |= {"optimizer": optimizer}
    whole = fit(model, Images(), **options)
    calls = itertools.count(1)
    steps = []

    def loss_fn(m, batch):
        steps.append(1)
        if next(calls) == stop_at:
            raise KeyboardInterrupt
        return F.cross_entropy(m(batch[0]), batch[1])

    path = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fit(model, Images(), loss_fn=loss_fn, resume=path, **options)
    assert path.exists() == (stop_at > 3)
    resumed = fit(model, Images(), loss_fn=loss_fn, resume=path, **options)
    assert same(state(resumed.model), state(whole.model))
    assert resumed.history == whole.history
    assert len(steps) == 9 + (stop_at - 1) % 3 + 1  # no more than the current epoch was lost
    again = fit(model, Images(), loss_fn=loss_fn, resume=path, **options)  # nothing is left to do
    assert same(state(again.model), state(whole.model))
    assert len(steps) == 9 + (stop_at - 1) % 3 + 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.safetensors"]


def test_a_resume_file_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    fit(small(), Images(), epochs=1, resume=path)
    with pytest.raises(
        ValueError, match=r"run.safetensors' holds another run: lr=0.5 \(there 0.002\); use its options"
    ):
        fit(small(), Images(), epochs=1, lr=0.5, resume=path)
    other = models.build(
        "vgg",
        **{k: v for k, v in small().config.items() if k != "architecture"},
        generator=torch.Generator().manual_seed(1),
    )
    with pytest.raises(ValueError, match=r"holds another run: initial_weights=\d+ \(there \d+\)"):
        fit(other, Images(), epochs=1, resume=path)


def test_a_resume_file_that_is_not_whole_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    save_tensors(path, {"a": torch.zeros(2)})
    with pytest.raises(CorruptArtifact, match=r"resume='.*run.safetensors' was not written by fit"):
        fit(small(), Images(), epochs=1, resume=path)
    fit(small(), Images(), epochs=1, resume=tmp_path / "good.safetensors")
    content = bytearray((tmp_path / "good.safetensors").read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptArtifact, match=r"run\.safetensors is not what was saved"):
        fit(small(), Images(), epochs=1, resume=path)


def test_the_resume_file_holds_tensors_and_text(tmp_path):
    fit(small("gpt"), Text(), epochs=1, resume=tmp_path / "run.safetensors")
    tensors, metadata = load_tensors(tmp_path / "run.safetensors")
    assert torch.equal(tensors["model.head.weight"], tensors["model.embed.weight"])
    assert metadata.keys() == {"run", "history"}


def test_after_step_keeps_masks():
    model = small("mlp")
    mask = torch.rand(model.head.weight.shape, generator=torch.Generator().manual_seed(0)) > 0.5

    def put_back(m):
        with torch.no_grad():
            m.head.weight.mul_(mask)

    trained = fit(model, Images(), epochs=2, after_step=put_back).model
    assert torch.equal(trained.head.weight != 0, mask)


def test_augment_sees_the_training_inputs_only():
    seen = []

    def augment(inputs, generator):
        seen.append(len(inputs))
        return inputs * 0

    images = Images()
    fitted = fit(small("mlp"), images, val=images, epochs=1, batch_size=16, augment=augment, lr=1e-9)
    assert seen == [16, 16, 8]
    assert fitted.history[0]["train_loss"] != pytest.approx(fitted.history[0]["val_loss"], rel=1e-3)


def test_jitter_moves_every_image_by_itself():
    images = torch.rand(200, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    moved = jitter(images, torch.Generator().manual_seed(0), pixels=2)
    found = set()
    for before, after in zip(images, moved, strict=True):
        shifts = [
            (dy, dx) for dy in range(-2, 3) for dx in range(-2, 3) if torch.equal(before.roll((dy, dx), (1, 2)), after)
        ]
        assert len(shifts) == 1
        found |= set(shifts)
    assert len(found) == 25  # each shift comes about 8 times
    assert torch.equal(jitter(images, torch.Generator(), pixels=0), images)


def test_a_batch_can_carry_more_than_two_tensors():
    images = Images()
    with torch.no_grad():
        teacher = small("mlp", width=16)
        batches = [(x, y, teacher(x)) for x, y in images.batches(16)]

    def distil(model, batch):
        inputs, targets, wanted = batch
        logits = model(inputs)
        hard, soft = F.cross_entropy(logits, targets), F.mse_loss(logits, wanted)
        return hard + soft, {"hard": hard, "soft": soft}

    row = fit(small("mlp"), batches, epochs=1, loss_fn=distil).history[0]
    assert row["train_loss"] == pytest.approx(row["hard"] + row["soft"])


def test_iterables_without_a_length():
    class Stream:
        def __iter__(self):
            return iter(Images().batches(16))

    a = fit(small(), Stream(), epochs=2)
    b = fit(small(), Images().batches(16), epochs=2)
    assert same(state(a.model), state(b.model))
    assert a.history[-1]["steps"] == 6


def test_a_data_loader_leaves_the_global_state_and_repeats():
    images = Images()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images.images, images.labels), 16, shuffle=True)
    before = torch.get_rng_state()
    first = state(fit(small(), loader, epochs=2).model)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert same(first, state(fit(small(), loader, epochs=2).model))


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_is_in_eval_mode_and_puts_the_flags_back(training):
    model = hostile().train(training)
    model.last.train(not training)
    flags = [m.training for m in model.modules()]
    a, b = evaluate(model, Images()), evaluate(copy.deepcopy(model).eval(), Images())
    assert a == b
    assert [m.training for m in model.modules()] == flags
    with pytest.raises(RuntimeError):
        evaluate(model, [(torch.zeros(1, 3), torch.zeros(1))])
    assert [m.training for m in model.modules()] == flags


def test_progress_is_quiet_by_default(capsys):
    fit(small("mlp"), Images(), epochs=1)
    assert capsys.readouterr() == ("", "")
    fit(small("mlp"), Images(), epochs=1, progress=True)
    assert "epoch 1 of 1" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"epochs": 0}, "epochs=0 must be a whole number, at least 1"),
        ({"epochs": 1.5}, "epochs=1.5 must be a whole number"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1; try 128"),
        ({"lr": 0.0}, "lr=0.0 must be greater than 0; try 2e-3"),
        ({"lr": float("nan")}, "lr=nan must be greater than 0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0 must be at least 0"),
        ({"schedule": "step"}, "schedule='step' must be 'cosine', 'linear' or 'constant'"),
        ({"warmup": 1.5}, "warmup=1.5 must be a fraction of the steps, 0 to 1"),
        ({"clip": 0.0}, "clip=0.0 must be greater than 0, or None"),
        ({"precision": "fp16"}, "precision='fp16' must be 'fp32' or 'bf16'"),
    ],
)
def test_a_bad_option_is_named(option, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(small(), Images(), **option)


def test_no_data():
    with pytest.raises(ValueError, match="train is empty: there is no batch"):
        fit(small(), [])
    with pytest.raises(ValueError, match="train is a list_iterator, gone after one epoch; pass a list"):
        fit(small(), iter(Images().batches(16)))
    with pytest.raises(ValueError, match="data is empty"):
        evaluate(small(), [])


def test_nothing_to_train():
    with pytest.raises(ValueError, match="no parameter with requires_grad=True; unfreeze"):
        fit(small().requires_grad_(False), Images())


@pytest.mark.parametrize("label", [4, -1])
@pytest.mark.parametrize("as_split", [True, False])
def test_wrong_labels_are_found_before_training(label, as_split):
    images = Images()
    images.labels[33] = label
    data = images if as_split else images.batches(16)
    stepped = []
    with pytest.raises(
        ValueError, match=rf"targets must be in 0..3, for the model has 4 outputs; got {label} at position 33"
    ):
        fit(small(), data, after_step=stepped.append)
    assert stepped == []


def test_a_loss_that_is_not_finite_stops():
    data = Images().batches(16)
    data[1][0][3] = float("nan")
    with pytest.raises(
        FloatingPointError, match=r"the loss is nan, .* at epoch 1, step 2, batch 2; try a lower lr than 0.002"
    ):
        fit(small(), data, epochs=2)
    with pytest.raises(FloatingPointError, match="the loss over 40 predictions is nan"):
        evaluate(small(), data)


def test_a_gradient_that_is_not_finite_stops():
    # sqrt(|w|) has an infinite slope at w = 0, although the loss is 0
    with pytest.raises(
        FloatingPointError, match=r"the loss is 0.0, the norm of the gradient (nan|inf) at epoch 1, step 1"
    ):
        fit(scalar(), ONE, loss_fn=lambda m, batch: m.weight.abs().sqrt().sum())


def test_an_infinite_loss_with_a_finite_gradient_stops():
    with pytest.raises(FloatingPointError, match=r"the loss is inf, the norm of the gradient 1.0 at epoch 1, step 1"):
        fit(scalar(), ONE, loss_fn=lambda m, batch: m.weight.sum() + float("inf"))


def test_divergence_stops():
    with pytest.raises(FloatingPointError, match="try a lower lr than 100"):
        fit(scalar(), ONE, epochs=200, lr=100.0, schedule="constant", clip=None, optimizer=SGD, loss_fn=squared)


# ------------------------------------------------------------------------------------------------ several processes

SCRIPT = """
import os
import sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from test_train import DISTRIBUTED
from compresslab.workbench.files import save_tensors
from compresslab.workbench.train import fit
for name, run in DISTRIBUTED.items():
    model, data, options = run()
    path = {folder!r} + "/resume-" + name
    fitted = fit(model, data, resume=path, **options)
    again = fit(model, data, resume=path, **options)
    assert again.history == fitted.history
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), fitted.model.parameters(), strict=True))
    rank = os.environ["RANK"]
    tensors = dict(fitted.model.state_dict())
    tensors["history"] = torch.tensor([row["train_loss"] for row in fitted.history], dtype=torch.float64)
    save_tensors({folder!r} + "/" + name + rank + ".safetensors", tensors)
torch.distributed.destroy_process_group()
"""

# 37 samples in batches of 12: the last batch has 1, so that one of two processes has none.
DISTRIBUTED = {
    "mlp": lambda: (small("mlp"), Images(37), {"epochs": 2, "batch_size": 12, "lr": 0.01, "augment": noise}),
    "gpt": lambda: (small("gpt"), Text(), {"epochs": 2, "batch_size": 5, "lr": 0.01, "val": Text()}),
    "vgg": lambda: (small("vgg"), Images(40), {"epochs": 2, "batch_size": 20}),
}


def test_two_processes_take_the_steps_of_one(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "USE_LIBUV": "0"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, run in DISTRIBUTED.items():
        model, data, options = run()
        alone = fit(model, data, **options)
        first, second = (load_tensors(tmp_path / f"{name}{rank}.safetensors")[0] for rank in (0, 1))
        assert same(first, second)
        if name == "vgg":  # batch norm sees half a batch: other numbers than alone, but the same on both
            continue
        losses = first.pop("history")
        assert losses.tolist() == pytest.approx([row["train_loss"] for row in alone.history], rel=1e-5)
        for key, tensor in alone.model.state_dict().items():
            torch.testing.assert_close(first[key], tensor, rtol=0, atol=1e-5, msg=f"{name} {key}")
