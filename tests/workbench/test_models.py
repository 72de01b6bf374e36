"""The small models: their shapes and sizes by hand, their parts against definitions, and what lessons need of them."""

from __future__ import annotations

import copy
import io
import itertools
import json
import math
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compresslab.workbench import models
from compresslab.workbench.files import load_tensors
from compresslab.workbench.models.gpt import Attention
from compresslab.workbench.models.moe import MoE, Routing, load_balance_loss
from compresslab.workbench.models.resnet import PadShortcut

IMAGE_MODELS = ["mlp", "vgg", "resnet", "separable", "vit"]
TEXT_MODELS = ["gpt", "moe_gpt", "lstm", "gru"]
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def example(name: str, batch: int = 3, length: int = 20) -> torch.Tensor:
    if name in TEXT_MODELS:
        return torch.randint(0, 256, (batch, length), generator=generator())
    return torch.randn(batch, 1, 32, 32, generator=generator())


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_shapes_and_config(name):
    model = models.build(name)
    inputs = example(name)
    expected = (3, 20, 256) if name in TEXT_MODELS else (3, 62)
    assert model(inputs).shape == expected
    assert model.training
    assert json.loads(json.dumps(model.config)) == model.config
    again = models.build(**model.config)
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_weights_come_from_the_generator_alone(name):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = models.build(name, generator=generator(5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    same, other = models.build(name, generator=generator(5)), models.build(name, generator=generator(6))
    for a, b in zip(first.parameters(), same.parameters(), strict=True):
        assert torch.equal(a, b)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_a_generator_moves_on():
    source = generator()
    first, second = models.build("mlp", generator=source), models.build("mlp", generator=source)
    assert not torch.equal(first.head.weight, second.head.weight)


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_every_parameter_learns_and_copies_agree(name):
    model = models.build(name)
    inputs = example(name, batch=64 if name == "moe_gpt" else 3)  # enough tokens for every expert
    model(inputs).square().sum().backward()
    lazy = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert lazy == []
    clone = copy.deepcopy(model).eval()
    clone.load_state_dict(model.state_dict())
    torch.testing.assert_close(clone(inputs), model.eval()(inputs), rtol=0, atol=0)


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_a_fresh_model_is_nearly_undecided(name):
    """Logits of deviation s cost about s^2 / 2 more than the ln(classes) of equal ones: less than 1 here."""
    inputs = example(name, batch=64)
    logits = models.build(name)(inputs).flatten(0, -2)
    targets = torch.randint(0, logits.shape[-1], logits.shape[:1], generator=generator(1))
    assert abs(F.cross_entropy(logits, targets).item() - math.log(logits.shape[-1])) < 1


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_no_bias_in_front_of_batch_norm(name):
    modules = list(models.build(name).modules())
    for before, after in itertools.pairwise(modules):
        if isinstance(before, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
            assert before.bias is None
    if any(isinstance(m, nn.BatchNorm2d) for m in modules):
        assert all(m.bias is None for m in modules if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        # 16*8+8, 8*8+8, 8*3+3
        ("mlp", {"size": 4, "width": 8, "classes": 3}, 136 + 72 + 27),
        # conv 1->2, 2->4, 4->8 with batch norm (2 numbers a channel), then 8 channels of 1x1 to 3 classes
        ("vgg", {"size": 8, "width": 2, "depth": 1, "classes": 3}, (18 + 4) + (72 + 8) + (288 + 16) + (24 + 3)),
        # He et al., table 6: ResNet-20 has 0.27 M; exactly 269,722 with option A
        ("resnet", {"in_channels": 3, "classes": 10, "shortcut": "pad"}, 269_722),
        # option B adds 1x1 convolutions with batch norm: 16*32 + 64, 32*64 + 128
        ("resnet", {"in_channels": 3, "classes": 10}, 269_722 + 576 + 2176),
        # stem 9*2+4; blocks (9*2+4 + 2*4+8), (9*4+8 + 4*8+16), (9*8+16 + 8*16+32); 16*3+3
        ("separable", {"width": 2, "depth": 1, "classes": 3}, 22 + 38 + 92 + 248 + 51),
        # patches 16*8+8, positions 4*8, norms 3*16, qkv 8*24, proj 72, mlp 8*32+32+32*8+8, head 8*3+3
        (
            "vit",
            {"size": 8, "patch": 4, "width": 8, "depth": 1, "classes": 3, "heads": 2},
            136 + 32 + 48 + 192 + 72 + 552 + 27,
        ),
        # tokens 256*8 (also the head), positions 10*8, norms 48, attention 192+72, mlp 552
        ("gpt", {"width": 8, "depth": 1, "context": 10, "heads": 2}, 2048 + 80 + 48 + 264 + 552),
        # the same with a router 8*4 and four experts 8*6+6+6*8+8
        (
            "moe_gpt",
            {"width": 8, "depth": 1, "context": 10, "heads": 2, "experts": 4, "hidden": 6},
            2048 + 80 + 48 + 264 + 32 + 4 * 110,
        ),
        # embedding 256*4, four gates of 4*8 + 8*8 and two biases of 8, head 8*256+256
        ("lstm", {"embedding": 4, "width": 8}, 1024 + 4 * (32 + 64 + 16) + 2304),
        ("gru", {"embedding": 4, "width": 8}, 1024 + 3 * (32 + 64 + 16) + 2304),
    ],
)
def test_parameters_counted_by_hand(name, config, expected):
    assert parameters(models.build(name, **config)) == expected


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("alexnet", {}, "architecture='alexnet' is not known; the names are mlp, vgg, resnet"),
        ("resnet", {"widht": 8}, "resnet has no option widht=8; its options are in_channels, classes, width"),
        ("resnet", {"width": 0}, "width=0 must be a whole number, at least 1"),
        ("resnet", {"width": True}, "width=True must be a whole number"),
        ("resnet", {"width": 8.0}, "width=8.0 must be a whole number"),
        ("resnet", {"shortcut": "none"}, "shortcut='none' must be 'conv' or 'pad'"),
        ("moe_gpt", {"balance_weight": float("nan")}, "balance_weight=nan must be a finite number"),
        ("moe_gpt", {"experts": 2, "top_k": 3}, "top_k=3 must be at most experts=2"),
        ("gpt", {"width": 12, "heads": 5}, "heads=5 must divide width=12; try 1, 2, 3, 4, 6, 12"),
        ("vit", {"patch": 5}, "patch=5 must divide size=32"),
        ("vgg", {"size": 28}, "size=28 must be a multiple of 8, for it is halved three times; try 32"),
    ],
)
def test_a_bad_config_is_named(name, config, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        models.build(name, **config)


@pytest.mark.parametrize("name", ["gpt", "moe_gpt"])
def test_tokens_beyond_the_context_are_refused(name):
    model = models.build(name, width=8, depth=1, heads=2, context=10)
    with pytest.raises(ValueError, match="tokens of length 11 are longer than the context of 10"):
        model(torch.zeros(1, 11, dtype=torch.int64))


def test_pad_shortcut_by_hand():
    # one channel to four, every second pixel: zeros before and after, the corner pixels in the middle
    x = torch.arange(1.0, 10.0).view(1, 1, 3, 3)
    y = PadShortcut(1, 4, 2)(x)
    assert y.shape == (1, 4, 2, 2)
    assert y[0, 1].tolist() == [[1, 3], [7, 9]]  # (4 - 1) // 2 = 1 channel of zeros in front
    assert y[0, [0, 2, 3]].abs().sum() == 0


@pytest.fixture(scope="module")
def public_resnet20():
    path = SHARED / "resnet20-cifar10.safetensors"
    if not path.is_file():
        pytest.skip("the public ResNet-20 weights are not in shared/data beside the checkout")
    return load_tensors(path)[0]


def test_resnet_has_the_names_of_the_public_weights(public_resnet20):
    model = models.build("resnet", in_channels=3, classes=10, shortcut="pad")
    ours = {k: tuple(v.shape) for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert ours == {name: tuple(tensor.shape) for name, tensor in public_resnet20.items()}


def test_resnet_computes_what_the_public_weights_expect(public_resnet20):
    archive = SHARED / "cifar10-jpeg.zip"
    if not archive.is_file():
        pytest.skip("cifar10-jpeg.zip is not in shared/data beside the checkout")
    image_module = pytest.importorskip("PIL.Image")
    model = models.build("resnet", in_channels=3, classes=10, shortcut="pad").eval()
    model.load_state_dict(public_resnet20, strict=False)
    with zipfile.ZipFile(archive) as file:
        paths = sorted(n for n in file.namelist() if "test/" in n and n.endswith((".jpg", ".jpeg")))[::25]
        folders = sorted({Path(n).parent.name for n in paths})
        pixels = [torch.frombuffer(bytearray(_rgb(image_module, file.read(n))), dtype=torch.uint8) for n in paths]
    images = torch.stack(pixels).view(-1, 32, 32, 3).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        predicted = model((images - mean.view(3, 1, 1)) / std.view(3, 1, 1)).argmax(1)
    right = (predicted == torch.tensor([folders.index(Path(n).parent.name) for n in paths])).double().mean()
    assert 0.76 < right < 0.87  # 81.0 % on all 10,000; these are 400


def _rgb(image_module, content: bytes) -> bytes:
    return image_module.open(io.BytesIO(content)).convert("RGB").tobytes()


@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_the_textbook_formula(causal):
    torch.manual_seed(0)
    layer, x = Attention(12, 3, causal).double(), torch.randn(2, 5, 12, dtype=torch.float64)
    q, k, v = layer.qkv(x).split(12, dim=-1)
    heads = []
    for h in range(3):  # softmax(q k^T / sqrt(d)) v, head by head
        part = slice(4 * h, 4 * h + 4)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / 2
        if causal:
            scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf"))
        heads.append(scores.softmax(-1) @ v[..., part])
    torch.testing.assert_close(layer(x), layer.proj(torch.cat(heads, -1)))


def test_attention_runs_with_fewer_heads():
    torch.manual_seed(0)
    layer, x = Attention(12, 3, True), torch.randn(2, 5, 12)
    layer.proj.weight.data[:, 4:8] = 0  # the second head says nothing ...
    expected = layer(x)
    kept = torch.tensor([i for i in range(12) if i // 4 != 1])
    rows = torch.cat([kept, kept + 12, kept + 24])
    layer.qkv.weight = nn.Parameter(layer.qkv.weight[rows])
    layer.proj.weight = nn.Parameter(layer.proj.weight[:, kept])  # ... and is cut out
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("name", ["gpt", "moe_gpt", "vit"])
def test_each_part_of_a_block_adds_to_the_stream(name):
    block = models.build(name, depth=1).blocks[0]
    x = torch.randn(2, 5, block.norm1.normalized_shape[0], generator=generator())
    for part in block.modules():
        for last in ("proj", "fc2"):
            if hasattr(part, last):
                nn.init.zeros_(getattr(part, last).weight)  # biases start at zero: both parts say nothing
    y = block(x)
    assert torch.equal(y[0] if name == "moe_gpt" else y, x)


@pytest.mark.parametrize(
    ("name", "expected"),
    # one behind each layer but the last: 2; 3 stages of 2; a stem and 2 in each of 9 blocks; the same in 6 blocks
    [("mlp", 2), ("vgg", 6), ("resnet", 19), ("separable", 13)],
)
def test_rectifiers(name, expected):
    model, seen = models.build(name), []
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda module, inputs, output: seen.append(id(module)))
    model(example(name))
    assert len(seen) == len(set(seen)) == expected


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_text_models_do_not_see_the_future(name):
    model, tokens = models.build(name).eval(), example(name)
    changed = tokens.clone()
    changed[:, 12:] = (changed[:, 12:] + 1) % 256
    a, b = model(tokens), model(changed)
    torch.testing.assert_close(a[:, :12], b[:, :12], rtol=1e-4, atol=1e-5)
    assert (a[:, 12:] - b[:, 12:]).abs().amax() > 1e-3


@pytest.mark.parametrize("name", ["gpt", "moe_gpt"])
def test_the_embedding_is_tied(name):
    model = models.build(name)
    assert model.head.weight is model.embed.weight
    clone = copy.deepcopy(model)
    assert clone.head.weight is clone.embed.weight


def test_load_balance_loss_by_hand():
    # two tokens, three experts, top 1: f = (1, 0, 0), P = (0.6, 0.3, 0.1), 3 * 0.6 = 1.8
    probs = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]])
    routing = Routing(probs, torch.tensor([[0], [0]]), torch.ones(2, 1))
    assert routing.load.tolist() == [1.0, 0.0, 0.0]
    assert load_balance_loss(routing).item() == pytest.approx(1.8)


def test_load_counts_every_assignment():
    # top 2 of 3: tokens go to (0, 1) and (0, 2): expert 0 has two of the four
    routing = Routing(torch.full((2, 3), 1 / 3), torch.tensor([[0, 1], [0, 2]]), torch.full((2, 2), 0.5))
    assert routing.load.tolist() == [0.5, 0.25, 0.25]


@pytest.mark.parametrize("tokens", [1, 2, 7])
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_moe_is_the_weighted_sum_of_the_chosen_experts(tokens, top_k):
    torch.manual_seed(0)
    layer, x = MoE(6, 5, 4, top_k).double(), torch.randn(1, tokens, 6, dtype=torch.float64)
    out, routing = layer(x)
    probs = (x[0] @ layer.router.weight.T).softmax(-1)
    torch.testing.assert_close(routing.probs, probs)
    for t in range(tokens):
        best = sorted(range(4), key=lambda e: -probs[t, e].item())[:top_k]
        assert routing.chosen[t].tolist() == best
        total = sum(probs[t, e] for e in best)
        expected = sum(probs[t, e] / total * layer.experts[e](x[0, t]) for e in best)
        torch.testing.assert_close(out[0, t], expected)


def test_moe_loss_is_cross_entropy_plus_balance():
    model, tokens = models.build("moe_gpt", balance_weight=0.5), example("moe_gpt")
    targets = tokens.roll(-1, 1)
    total, parts = model.loss(tokens, targets)
    logits, routings = model.route(tokens)
    cross_entropy = F.cross_entropy(logits.reshape(-1, 256), targets.reshape(-1))
    balance = sum(load_balance_loss(routing) for routing in routings) / len(routings)
    torch.testing.assert_close(total, cross_entropy + 0.5 * balance)
    assert parts["cross_entropy"].item() == pytest.approx(cross_entropy.item())
    assert parts["load_balance"].item() == pytest.approx(balance.item())
    assert len(routings) == len(model.blocks)


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_export_with_dynamic_shapes(name):
    config = {"width": 16, "depth": 2} if name != "separable" else {"width": 4}
    model = models.build(name, **config).eval()
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=2, max=128)
    shapes = {0: batch, 1: length} if name in ("gpt", "moe_gpt") else {0: batch}  # recurrent loops are unrolled
    exported = torch.export.export(model, (example(name),), dynamic_shapes=(shapes,)).module()
    for size in (1, 2, 5):
        inputs = example(name, size, 4 * size + 3 if 1 in shapes else 20)
        torch.testing.assert_close(exported(inputs), model(inputs))


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_image_models_can_be_traced_by_fx(name):
    model, inputs = models.build(name).eval(), example(name)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(inputs), model(inputs))


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_samples_do_not_mix_in_eval_mode(name):
    model, inputs = models.build(name).eval(), example(name)
    torch.testing.assert_close(model(inputs)[1:2], model(inputs[1:2]), rtol=1e-4, atol=1e-5)
