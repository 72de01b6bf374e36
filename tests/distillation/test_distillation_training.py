"""Distillation in a training loop: projections, taps, the teacher left alone, the cache, the ladder, two processes."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from compresslab.distillation import (
    Distillation,
    Pair,
    Projection,
    WithLogits,
    WithProjections,
    add_projections,
    attention_loss,
    cached_logits,
    decoupled_loss,
    distil,
    every_other_block,
    hint_loss,
    match_blocks,
    progressive,
    relational_loss,
    soft_target_loss,
    tapped,
)
from compresslab.distillation.features import logits_of
from compresslab.testing import check_compressor
from compresslab.testing.hostile import HOSTILE
from compresslab.workbench import models
from compresslab.workbench.data import Split
from compresslab.workbench.files import load_tensors
from compresslab.workbench.train import fit

REPOSITORY = Path(__file__).resolve().parents[2]


def split(n: int = 48, classes: int = 6) -> Split:
    source = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % classes
    base = torch.randint(0, 255, (classes, 1, 32, 32), generator=source)
    images = (base[labels] + torch.randint(-40, 40, (n, 1, 32, 32), generator=source)).clamp(0, 255)
    return Split(images.to(torch.uint8), labels, (0.5,), (0.5,))


def resnet(width: int, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    return models.build("resnet", width=width, depth=1, stride=2, classes=6, generator=generator)


def mlp(width: int = 8, seed: int = 0) -> nn.Module:
    return models.build("mlp", width=width, classes=6, generator=torch.Generator().manual_seed(seed))


def gpt(depth: int = 2, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    return models.build("gpt", context=8, width=16, depth=depth, heads=2, vocab=32, generator=generator)


def state(model: nn.Module) -> dict[str, object]:
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "flags": [module.training for module in model.modules()],
        "gradients": [p.grad for p in model.parameters()],
        "wanted": [p.requires_grad for p in model.parameters()],
        "hooks": [len(module._forward_hooks) for module in model.modules()],
    }


def same(first: dict[str, object], second: dict[str, object]) -> bool:
    tensors = zip(first["tensors"].values(), second["tensors"].values(), strict=True)
    return all(torch.equal(a, b) for a, b in tensors) and all(
        first[key] == second[key] for key in ("flags", "gradients", "wanted", "hooks")
    )


HINTS = [
    Pair("layer2", "layer2", hint_loss, weight=0.5, project=True),
    Pair("layer3", "layer3", attention_loss, weight=1000.0),
    Pair("linear", "linear", relational_loss),
]


# --------------------------------------------------------------------------------------------------------- the loss


def test_the_weights_by_hand():
    # Student (0, 0), teacher (log 3, 0), T = 1, label 0: hard log 2, soft 3/4 log(3/2) + 1/4 log(1/2) = 0.1308.
    teacher, student = nn.Linear(1, 2, bias=False), nn.Linear(1, 2, bias=False)
    teacher.weight.data, student.weight.data = torch.tensor([[3.0], [1.0]]).log(), torch.zeros(2, 1)
    batch = torch.ones(1, 1), torch.tensor([0])
    for weight in (0.0, 0.25, 1.0):
        loss, parts = Distillation(teacher, soft_weight=weight, temperature=1.0)(student, batch)
        assert loss.item() == pytest.approx(weight * 0.130812 + (1 - weight) * 0.693147, rel=1e-5)
        assert set(parts) == {"hard"} if weight == 0 else {"soft"} if weight == 1 else {"hard", "soft"}
        assert not any(part.requires_grad for part in parts.values())
    plain, _ = Distillation(None, soft_weight=0.0)(student, batch)  # nobody is asked
    assert plain.item() == pytest.approx(0.693147, rel=1e-5)
    pair = Pair("", "", lambda s, t: (s - t).abs().sum(), weight=2.0)
    loss, _ = Distillation(teacher, soft_weight=1.0, temperature=1.0, pairs=[pair])(student, batch)
    assert loss.item() == pytest.approx(0.130812 + 2 * 1.098612, rel=1e-5)
    again = [Pair("", "", partial(pair.loss), weight=2.0)]  # a partial has no name
    assert set(Distillation(teacher, pairs=again)(student, batch)[1]) == {"hard", "soft", "pair "}
    unlabelled = batch[0], torch.tensor([-100])
    assert Distillation(teacher, temperature=1.0)(student, unlabelled)[0].item() == pytest.approx(
        0.9 * 0.130812, rel=1e-5
    )


def test_other_losses_and_padding():
    teacher, student = gpt(), gpt(seed=1)
    tokens = torch.arange(16).view(2, 8)
    batch = tokens, tokens.flip(1), torch.tensor([[True] * 8, [True] * 3 + [False] * 5])
    found = Distillation(teacher, mask=lambda batch: batch[2])(student, batch)[1]["soft"]
    expected = soft_target_loss(student(tokens), teacher(tokens), mask=batch[2])
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    found = Distillation(teacher, soft_loss=decoupled_loss, mask=lambda batch: batch[2])(student, batch)[1]["soft"]
    targets = batch[1].masked_fill(~batch[2], -100)
    assert found.item() == pytest.approx(decoupled_loss(student(tokens), teacher(tokens), targets).item(), rel=1e-5)


def test_the_teacher_is_asked_in_eval_mode_and_put_back():
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(1024, 6), nn.Dropout(0.5), nn.BatchNorm1d(6)).train()
    teacher[1].eval()
    teacher.zero_grad()
    before, student = state(teacher), mlp()
    inputs, targets = next(iter(split().batches(8)))
    loss = Distillation(teacher, soft_weight=1.0, pairs=[Pair("head", "1", hint_loss)])
    value, _ = loss(student, (inputs, targets))
    value.backward()
    assert same(state(teacher), before)
    assert all(p.grad is None for p in teacher.parameters())
    with torch.no_grad():
        quiet = copy.deepcopy(teacher).eval()
        ours = student(inputs)
        expected = soft_target_loss(ours, quiet(inputs)) + hint_loss(ours, quiet[1](quiet[0](inputs)))
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("where", ["student", "teacher", "loss"])
def test_hooks_and_flags_after_an_interrupt(where):
    class Stops(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise KeyboardInterrupt

    def stops(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    teacher, student = nn.Sequential(nn.Linear(2, 3), nn.ReLU()).train(), nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    if where != "loss":
        {"student": student, "teacher": teacher}[where].append(Stops())
    before = state(teacher), state(student)
    pair = Pair("0", "0", stops if where == "loss" else hint_loss)
    with pytest.raises(KeyboardInterrupt):
        Distillation(teacher, pairs=[pair])(student, (torch.ones(1, 2), torch.tensor([0])))
    assert same(state(teacher), before[0])
    assert same(state(student), before[1])


def test_what_the_loss_refuses():
    teacher, batch = mlp(), next(iter(split().batches(4)))
    for weight in (-0.1, 1.1):
        with pytest.raises(ValueError, match=rf"soft_weight={weight} must be the teacher's share"):
            Distillation(teacher, soft_weight=weight)
    with pytest.raises(ValueError, match=r"temperature=0 must be above 0"):
        Distillation(teacher, temperature=0)
    with pytest.raises(ValueError, match="pairs want a teacher that runs"):
        Distillation(None, pairs=HINTS)
    with pytest.raises(ValueError, match="a batch of 2 parts must hold the teacher's logits"):
        Distillation(None)(teacher, batch)
    with pytest.raises(ValueError, match=r"project=True wants a trained projection"):
        Distillation(resnet(8), pairs=HINTS)(resnet(4), batch)
    with pytest.raises(ValueError, match=r"'layer9' is no module of ResNet; there are 'layer[123]'"):
        Distillation(resnet(8), pairs=[Pair("layer1", "layer9", hint_loss)])(resnet(4), batch)
    with pytest.raises(ValueError, match="needs example_inputs"):
        distil(resnet(4), Distillation(resnet(8), pairs=HINTS), partial(fit, train=[batch]))
    with pytest.raises(TypeError, match=r"must give a module, or something that has it as .model; got NoneType"):
        distil(mlp(), Distillation(teacher), lambda model, loss_fn: None)
    with pytest.raises(TypeError, match="the model gave SimpleNamespace without logits"):
        logits_of(SimpleNamespace(last_hidden_state=1))


def test_taps():
    model = nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 3), nn.Identity())
    with tapped(model[:2], ["0", "1"]) as seen:
        output, _ = model[:2](torch.ones(4, 2))
        assert torch.equal(seen["1"], output)  # the first of a tuple
    assert not any(module._forward_hooks for module in model.modules())
    shared = nn.ReLU()
    with tapped(nn.Sequential(shared, nn.Linear(2, 2), shared), ["0"]) as seen:
        nn.Sequential(shared)(-torch.ones(1, 2))
        shared(torch.ones(1, 2))
    assert seen["0"].tolist() == [[1.0, 1.0]]  # the last call
    with pytest.raises(ValueError, match="'x' is no module of Sequential"), tapped(model, ["0", "x"]):
        pass
    assert not any(module._forward_hooks for module in model.modules())


# ------------------------------------------------------------------------------------------------------- training


def test_projections_are_trained_with_the_student_and_thrown_away():
    teacher, student, data = resnet(8), resnet(4, seed=1), split()
    before = state(teacher), state(student)
    inputs = data.inputs(slice(4))
    seen = []

    def train(model: nn.Module, loss_fn: Distillation) -> object:
        seen.append(model)
        return fit(model, data, loss_fn=loss_fn, epochs=8, batch_size=8, val=data)

    done = distil(student, Distillation(teacher, pairs=HINTS), train, example_inputs=inputs)
    assert same(state(teacher), before[0])
    assert same(state(student), before[1])
    assert type(done.model) is type(student)
    assert done.model.state_dict().keys() == student.state_dict().keys()
    given, trained = seen[0].projections, done.trained.model.projections
    assert [type(p) for p in given] == [Projection, nn.Identity, nn.Identity]
    assert not torch.equal(given[0].weight, trained[0].weight)
    assert not torch.equal(done.model.conv1.weight, student.conv1.weight)
    history = done.trained.history
    assert history[-1]["hint_loss layer2"] < 0.9 * history[0]["hint_loss layer2"]
    assert {"hard", "soft", "attention_loss layer3", "relational_loss linear", "val_accuracy"} <= history[0].keys()
    again = distil(student, Distillation(teacher, pairs=HINTS), train, example_inputs=inputs)
    assert torch.equal(again.model.conv1.weight, done.model.conv1.weight)  # no chance but the seeds


def test_a_frozen_projection_is_worse_than_a_trained_one_and_a_new_one_learns_nothing():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 8, generator=generator)
    teacher = nn.Linear(8, 12, bias=False)
    teacher.weight.data = torch.randn(12, 8, generator=generator) / 8**0.5
    found = {}
    for kind in ("trained", "frozen", "new"):
        student = nn.Linear(8, 8, bias=False)
        student.weight.data = torch.randn(8, 8, generator=torch.Generator().manual_seed(1)) / 8**0.5
        projection = Projection(8, 12)
        learn = [*student.parameters(), *(projection.parameters() if kind == "trained" else ())]
        optimizer = torch.optim.Adam(learn, lr=0.02)
        for _ in range(300):
            if kind == "new":
                projection = Projection(8, 12, generator=generator)
            optimizer.zero_grad()
            loss = hint_loss(projection(student(x)), teacher(x))
            loss.backward()
            optimizer.step()
        found[kind] = loss.item() / teacher(x).var().item()
    assert found["trained"] < 0.01
    assert found["trained"] < found["frozen"] < 0.6
    assert found["new"] > 0.8  # it gives up, and says nothing


def test_the_loss_in_the_loop_is_the_loss_by_hand():
    teacher, student, data = mlp(16), mlp(8, seed=1), split(16)
    ours = distil(student, Distillation(teacher, soft_weight=0.7), partial(fit, train=data, epochs=1, batch_size=16))

    def by_hand(model: nn.Module, batch: tuple) -> torch.Tensor:
        inputs, targets = batch
        with torch.no_grad():
            theirs = teacher(inputs)
        outputs = model(inputs)
        kl = F.kl_div((outputs / 4).log_softmax(-1), (theirs / 4).softmax(-1), reduction="batchmean")
        return 0.7 * 16 * kl + 0.3 * F.cross_entropy(outputs, targets)

    expected = fit(student, data, loss_fn=by_hand, epochs=1, batch_size=16).model
    for a, b in zip(ours.model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_in_bfloat16():
    data = split(32)
    loss = Distillation(resnet(8), pairs=HINTS)
    train = partial(fit, train=data, epochs=3, batch_size=16, precision="bf16")
    done = distil(resnet(4, seed=1), loss, train, example_inputs=data.inputs(slice(2)))
    assert done.trained.history[-1]["train_loss"] < done.trained.history[0]["train_loss"]
    assert all(p.dtype == torch.float32 for p in done.model.parameters())


def test_a_language_model_learns_from_a_deeper_one():
    teacher = gpt(depth=4)
    student = every_other_block(teacher, "blocks")
    tokens = torch.randint(0, 32, (16, 9), generator=torch.Generator().manual_seed(0))
    batches = [(tokens[:, :-1], tokens[:, 1:])]
    pairs = [Pair(f"blocks.{i}", f"blocks.{j}", hint_loss, project=True) for i, j in enumerate(match_blocks(2, 4))]
    loss = Distillation(teacher, soft_weight=1.0, pairs=pairs)
    done = distil(student, loss, partial(fit, train=batches, epochs=30, lr=0.01), example_inputs=tokens[:2, :-1])
    first, last = done.trained.history[0], done.trained.history[-1]
    assert last["soft"] < first["soft"] / 2
    assert last["hint_loss blocks.1"] < first["hint_loss blocks.1"] / 2
    assert done.model.head.weight is done.model.embed.weight


def test_the_wrapper_answers_as_the_student():
    student = gpt()
    student.context = 5
    both = add_projections(
        student, gpt(4), [Pair("blocks.0", "blocks.3", hint_loss, project=True)], torch.zeros(1, 4).long()
    )
    assert both.context == 5
    assert copy.deepcopy(both).context == 5
    tokens = torch.ones(1, 4, dtype=torch.int64)
    assert torch.equal(both(tokens), student(tokens))
    with pytest.raises(AttributeError, match="nothing"):
        _ = both.nothing
    assert len(list(both.parameters())) == len(list(student.parameters())) + 2
    assert isinstance(both, WithProjections)


def test_hostile_models_as_student_and_teacher():
    """The loop is the caller's, and so is what it does with dropout, NaN or meta tensors."""

    def sharper(student: torch.Tensor, teacher: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return soft_target_loss(student, 2 * teacher)

    def teach(model: nn.Module, batches: object) -> nn.Module:
        def train(student: nn.Module, loss_fn: Distillation) -> nn.Module:
            optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=0.1)
            steps = 0
            for batch in batches:
                if batch[0].is_floating_point() and not batch[0].isfinite().all():
                    raise ValueError("inputs are not finite")
                optimizer.zero_grad()
                loss_fn(student, batch)[0].backward()
                optimizer.step()
                steps += 1
            if not steps:
                raise ValueError("no batch")
            student.zero_grad()
            return student

        return distil(model, Distillation(model, soft_weight=1.0, soft_loss=sharper), train).model

    names = [
        "mlp",
        "conv_bn",
        "conv1d",
        "recurrent",
        "embedding",
        "shared",
        "extras",
        "partly_frozen",
        "with_gradients",
    ]
    check_compressor(teach, models=[*names, "float64", "bfloat16", "equal_weights", "non_contiguous"])


# ---------------------------------------------------------------------------------------------------------- cache


def test_cached_logits_give_the_same_training(tmp_path):
    teacher, student, data = resnet(8).train(), mlp(), split(40)
    before, path = state(teacher), tmp_path / "logits.safetensors"
    logits = cached_logits(teacher, data.batches(16), path)
    assert same(state(teacher), before)
    with torch.no_grad():
        torch.testing.assert_close(logits, copy.deepcopy(teacher).eval()(data.inputs()))
    options = {"epochs": 2, "batch_size": 12}
    live = distil(student, Distillation(teacher), partial(fit, train=data, **options)).model
    cached = distil(student, Distillation(None), partial(fit, train=WithLogits(data, logits), **options)).model
    for a, b in zip(live.parameters(), cached.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    batches = list(data.batches(16))
    listed = list(WithLogits(batches, logits))
    assert torch.equal(torch.cat([batch[2] for batch in listed]), logits)
    assert len(WithLogits(batches, logits)) == 3
    assert not hasattr(WithLogits(batches, logits), "batches")
    plain = torch.cat([part for _, _, part in WithLogits(data, logits).batches(7)])
    assert torch.equal(plain, logits)
    first = next(iter(WithLogits(data, logits).batches(7, shuffle=True, generator=torch.Generator().manual_seed(3))))
    second = next(iter(data.batches(7, shuffle=True, generator=torch.Generator().manual_seed(3))))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_a_file_of_anything_else_is_not_used(tmp_path):
    class Counting(nn.Module):
        calls = 0

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Counting.calls += 1
            return self.layer(x)

    teacher, path = Counting(), tmp_path / "logits.safetensors"
    batches = [(torch.ones(4, 2), None), (torch.zeros(1, 2), None)]

    def calls(*arguments: object) -> int:
        Counting.calls = 0
        logits = cached_logits(*arguments, path)
        assert torch.equal(logits, torch.cat([teacher.layer(x) for x, _ in arguments[1]]))
        return Counting.calls

    assert [calls(teacher, batches), calls(teacher, batches)] == [2, 0]
    assert calls(teacher, batches[:1]) == 1
    assert [calls(teacher, batches), calls(teacher, batches)] == [2, 0]
    teacher.layer.bias.data[0] += 1
    assert [calls(teacher, batches), calls(teacher, batches)] == [2, 0]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # one bit of the last logit
    assert [calls(teacher, batches), calls(teacher, batches)] == [2, 0]
    path.write_bytes(whole[:50])
    assert calls(teacher, batches) == 2
    save_file({"other": torch.zeros(1)}, path)
    assert calls(teacher, batches) == 2
    assert set(load_file(path)) == {"logits"}
    assert os.listdir(tmp_path) == ["logits.safetensors"]  # no temporary file is left


def test_what_the_cache_refuses(tmp_path):
    path, batches = tmp_path / "logits", [(torch.ones(4, 2), None)]
    with pytest.raises(ValueError, match="limit_bytes=47 is too little: 4 samples take 48"):
        cached_logits(nn.Linear(2, 3), batches, path, limit_bytes=47)
    assert cached_logits(nn.Linear(2, 3), batches, path, limit_bytes=48).shape == (4, 3)
    with pytest.raises(ValueError, match="batches holds no batch"):
        cached_logits(nn.Linear(2, 4), [], path)
    with pytest.raises(ValueError, match="logits of 4 samples must be those of the 40 in data"):
        WithLogits(split(40), torch.zeros(4, 6))
    with pytest.raises(ValueError, match="logits of 3 samples end before the data, at sample 4"):
        list(WithLogits(batches, torch.zeros(3, 6)))


# --------------------------------------------------------------------------------------------------------- ladder


def test_every_other_block():
    teacher = gpt(depth=4)
    before = state(teacher)
    student = every_other_block(teacher, "blocks")
    assert same(state(teacher), before)
    assert len(student.blocks) == 2
    assert student.config["depth"] == 2
    assert teacher.config["depth"] == 4
    for i, j in enumerate((0, 2)):
        assert torch.equal(student.blocks[i].attn.qkv.weight, teacher.blocks[j].attn.qkv.weight)
    assert student.head.weight is student.embed.weight
    assert student.embed.weight is not teacher.embed.weight
    odd = every_other_block(teacher, "blocks", keep=[1, 3])
    assert torch.equal(odd.blocks[1].mlp.fc1.weight, teacher.blocks[3].mlp.fc1.weight)
    for keep in ([], [2, 1], [0, 0], [4], [-1]):
        with pytest.raises(ValueError, match=r"keep=.* must be rising numbers of blocks in 0..3"):
            every_other_block(teacher, "blocks", keep=keep)
    with pytest.raises(ValueError, match=r"'block' is no nn.ModuleList or nn.Sequential; there are 'blocks'"):
        every_other_block(teacher, "block")


def test_every_hostile_model_gives_half_of_its_blocks_or_says_why_not():
    finite = [name for name in HOSTILE if name not in ("nan", "infinity")]  # weights are copied, not looked at
    verdicts = check_compressor(lambda model, _: every_other_block(model, "blocks"), models=finite, must_accept=())
    assert any("is no nn.ModuleList" in verdict.detail for verdict in verdicts)


def test_blocks_are_matched_last_with_last():
    assert match_blocks(6, 12) == [1, 3, 5, 7, 9, 11]
    assert match_blocks(3, 5) == [0, 2, 4]
    assert match_blocks(4, 4) == [0, 1, 2, 3]
    assert match_blocks(1, 7) == [6]
    for student, teacher in ((0, 3), (4, 3)):
        with pytest.raises(ValueError, match=rf"student_blocks={student} must be in 1..3"):
            match_blocks(student, teacher)


def test_each_learns_from_the_one_before():
    seen = []

    def teach(student: nn.Module, teacher: nn.Module) -> nn.Module:
        seen.append((student, teacher))
        return nn.Flatten()

    teacher, students = nn.Identity(), [nn.ReLU(), nn.Tanh()]
    trained = progressive(teacher, students, teach)
    assert seen == [(students[0], teacher), (students[1], trained[0])]
    assert len(trained) == 2
    with pytest.raises(ValueError, match="students is empty"):
        progressive(teacher, [], teach)
    with pytest.raises(TypeError, match=r"teach must give the trained student, a module; got NoneType"):
        progressive(teacher, students, lambda student, teacher: None)


# --------------------------------------------------------------------------------------------------- transformers


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2"])
def test_transformers(name):
    pytest.importorskip("transformers")
    from compresslab.workbench.hf import random_transformer

    teacher = random_transformer(name)
    blocks = "transformer.h" if name == "gpt2" else "model.layers"
    student = every_other_block(teacher, blocks)
    assert student.config.num_hidden_layers == 1
    assert teacher.config.num_hidden_layers == 2
    for layer in every_other_block(teacher, blocks, keep=[1]).modules():
        assert getattr(layer, "layer_idx", 0) == 0  # its place in the cache
    tokens = torch.randint(0, 64, (4, 9), generator=torch.Generator().manual_seed(0))
    batch = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    loss = Distillation(teacher, pairs=[Pair(f"{blocks}.0", f"{blocks}.1", hint_loss, project=True)])
    done = distil(student, loss, partial(fit, train=[batch], epochs=8, lr=0.01), example_inputs=batch[0])
    history = done.trained.history
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert done.model(batch[0]).logits.shape == (4, 8, 64)
    assert done.model.generate(tokens[:1, :3], max_new_tokens=3, do_sample=False).shape == (1, 6)
    assert logits_of(teacher(batch[0], return_dict=False)).shape == (4, 8, 64)


# ------------------------------------------------------------------------------------------------ several processes

SCRIPT = """
import os, sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from test_distillation_training import shared
from compresslab.workbench.files import save_tensors
done = shared()
tensors = dict(done.trained.model.state_dict())
tensors["loss"] = torch.tensor([row["train_loss"] for row in done.trained.history])
save_tensors({folder!r} + "/" + os.environ["RANK"] + ".safetensors", tensors)
torch.distributed.destroy_process_group()
"""


def shared() -> object:
    """Hints with a projection; 21 samples in batches of 4, so that one of two processes has none of the last."""
    loss = Distillation(mlp(16), pairs=[Pair("layers.1", "layers.1", hint_loss, project=True)])
    train = partial(fit, train=split(21), epochs=2, batch_size=4)
    return distil(mlp(8, seed=1), loss, train, example_inputs=split().inputs(slice(2)))


def test_two_processes_distil_as_one(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "USE_LIBUV": "0"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    alone = shared().trained
    first, second = (load_tensors(tmp_path / f"{rank}.safetensors")[0] for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first.pop("loss").tolist() == pytest.approx([row["train_loss"] for row in alone.history], rel=1e-5)
    for name, tensor in alone.model.state_dict().items():
        torch.testing.assert_close(first[name], tensor, rtol=0, atol=1e-5, msg=name)
