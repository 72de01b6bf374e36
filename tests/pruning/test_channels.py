"""Channels: by hand, families of architectures against the masked original, options, targets, hostile models."""

from __future__ import annotations

import copy
import io
import itertools

import pytest
import torch
from torch import Tensor, nn

from compresslab.pruning.channels import count_macs, prune_channels, prune_to
from compresslab.pruning.proof import assert_same_function
from compresslab.testing import check_compressor
from compresslab.workbench import checkpoints, data, models
from compresslab.workbench.hf import NAMES as TRANSFORMERS
from compresslab.workbench.hf import random_transformer
from compresslab.workbench.vision import torchvision


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def alive(model: nn.Module) -> nn.Module:
    """Statistics and weights that matter, so that a wrong channel shows: a fresh ViT's head is zero."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
        elif isinstance(module, nn.Linear):
            module.weight.data.normal_(0, module.in_features**-0.5, generator=generator)
        if hasattr(module, "layer_scale"):
            module.layer_scale.data.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def vision(name: str, **options) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return alive(getattr(torchvision().models, name)(weights=None, num_classes=7, **options))


def mlp(*widths: int) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    layers = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
        layers[-2].weight.data.normal_(generator=generator)
    return nn.Sequential(*layers[:-1])


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_by_hand():
    """Rows (1, 1), (3, 0), (2, 2), (0, 1) and columns 1, 1, 1, 4.

    Squares of rows 2, 9, 8, 1 with mean 5; of columns 1, 1, 1, 16 with mean 4.75. The sum for each neuron is
    .4 + .21, 1.8 + .21, 1.6 + .21, .2 + 3.37: the first and the third go.
    """
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 1.0], [3.0, 0.0], [2.0, 2.0], [0.0, 1.0]])
    model[2].weight.data = torch.tensor([[1.0, 1.0, 1.0, 4.0]])
    pruned = prune_channels(model, torch.ones(1, 2))
    assert pruned.model[0].weight.tolist() == [[3.0, 0.0], [0.0, 1.0]]
    assert pruned.model[2].weight.tolist() == [[1.0, 4.0]]
    assert {name: {a: i.tolist() for a, i in axes.items()} for name, axes in pruned.kept.items()} == {
        "0.weight": {0: [1, 3]}, "0.bias": {0: [1, 3]}, "2.weight": {1: [1, 3]},
    }  # fmt: skip
    assert (pruned.removed, pruned.exact) == ({"0.weight": 2}, True)
    assert (pruned.model[0].out_features, pruned.model[2].in_features) == (2, 2)


FAMILIES = {
    "resnet18": {}, "vgg11_bn": {}, "densenet121": {}, "shufflenet_v2_x0_5": {}, "squeezenet1_1": {},
    "googlenet": {"init_weights": False, "aux_logits": True}, "regnet_y_400mf": {}, "mobilenet_v3_small": {},
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_torchvision(name):
    model, x = vision(name, **FAMILIES[name]), noise(2, 3, 64, 64)
    if name == "vgg11_bn":  # its three large matrices only take time
        model.classifier = nn.Linear(512 * 49, 7)
    pruned = prune_channels(model, x)
    assert assert_same_function(model, pruned, x).moved > 0.1
    assert size(pruned.model) < {"squeezenet1_1": 0.6, "shufflenet_v2_x0_5": 0.6}.get(name, 0.4) * size(model)
    assert type(pruned.model) is type(model)


def test_a_vision_transformer_loses_heads_and_neurons():
    tv = torchvision().models
    model = alive(tv.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=7))
    x = noise(2, 3, 32, 32)
    pruned = prune_channels(model, x)
    assert_same_function(model, pruned, x)
    layer = pruned.model.encoder.layers.encoder_layer_0
    assert (layer.self_attention.num_heads, layer.self_attention.in_proj_weight.shape) == (2, (48, 32))
    assert layer.mlp[0].out_features == 32
    assert pruned.unprunable["conv_proj.weight"] == "layer_norm goes over all of them"


def test_swin_keeps_its_heads_and_says_why():
    tv = torchvision().models
    model = alive(tv.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=7))
    x = noise(1, 3, 32, 32)
    pruned = prune_channels(model, x)
    assert_same_function(model, pruned, x)
    assert pruned.model.features[1][0].mlp[0].out_features == 32
    assert "the model's code does not follow: RuntimeError: shape" in pruned.unprunable["features.1.0.attn.qkv.weight"]


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name):
    model = random_transformer(name)
    x = {"input_ids": torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(0))}
    pruned = prune_channels(model, x)
    assert assert_same_function(model, pruned, x).moved > 0.1
    assert len(pruned.removed) == 4  # heads and neurons of two blocks


COURSE = ("mlp", "vgg", "resnet", "separable", "vit", "gpt", "moe_gpt", "lstm", "gru")


@pytest.mark.parametrize("name", COURSE)
def test_models_of_the_course(name):
    model = alive(models.build(name))
    tokens = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(0))
    x = tokens if name in ("gpt", "moe_gpt", "lstm", "gru") else noise(2, 1, 32, 32)
    pruned = prune_channels(model, x)
    assert assert_same_function(model, pruned, x).moved > 0.1


def test_layer_scale_and_a_norm_of_channels():
    """ConvNeXt's blocks: the inner width goes, the stream that LayerNorm looks at stays."""
    blocks = torchvision().models.convnext
    setting = [blocks.CNBlockConfig(8, 16, 1), blocks.CNBlockConfig(16, None, 1)]
    model, x = alive(blocks.ConvNeXt(setting, num_classes=7)), noise(2, 3, 32, 32)
    pruned = prune_channels(model, x)
    assert_same_function(model, pruned, x)
    assert list(pruned.removed.values()) == [16, 32]
    assert pruned.unprunable["features.1.0.block.0.weight"] == "layer_norm goes over all of them"


def test_padded_shortcuts():
    """A stage's channels are those of the stage before, in the middle of as many zeros: these stay."""
    model = alive(models.build("resnet", in_channels=3, classes=10, shortcut="pad"))
    pruned = prune_channels(model, noise(2, 3, 32, 32))
    assert_same_function(model, pruned, noise(2, 3, 32, 32))
    assert [layer.weight.shape[0] for layer in (pruned.model.conv1, pruned.model.layer2[0].conv2)] == [8, 24]
    assert pruned.unprunable["layer3.0.conv2.weight"].startswith("48 of 64 channels: they are added to padding")


@pytest.mark.parametrize("options", [{"round_to": 8}, {"minimum": 7}, {"scope": "global"}, {"ratio": 0.3}])
def test_options(options):
    model = alive(models.build("resnet", width=8, depth=1))
    pruned = prune_channels(model, noise(1, 1, 32, 32), **options)
    assert_same_function(model, pruned, noise(2, 1, 32, 32))
    widths = {name: m.weight.shape[0] for name, m in pruned.model.named_modules() if isinstance(m, nn.Conv2d)}
    if "round_to" in options:
        assert set(widths.values()) == {8, 16}  # of 8, 16 and 32
    elif "minimum" in options:
        assert min(widths.values()) == 7
    elif "ratio" in options:
        assert set(widths.values()) == {6, 12, 23}  # 8, 16 and 32 less 2, 4 and 9
    else:
        assert sum(pruned.removed.values()) == 56  # half of 8, 8, 16, 16, 32 and 32


def test_global_scores_are_compared_over_all_layers():
    """The second layer's scores are all lower: its neurons go, down to the minimum."""
    model = mlp(3, 6, 6, 2)
    scores = {"0": torch.arange(10.0, 16.0), "2": torch.arange(6.0)}
    pruned = prune_channels(model, noise(1, 3), ratio=0.5, scores=scores, scope="global", minimum=2)
    assert pruned.removed == {"0.weight": 2, "2.weight": 4}
    assert pruned.kept["0.weight"][0].tolist() == [2, 3, 4, 5]
    assert [indices.tolist() for indices in pruned.kept["2.weight"].values()] == [[2, 3, 4, 5], [4, 5]]


def test_ties_are_broken_by_position():
    pruned = prune_channels(mlp(3, 6, 2), noise(1, 3), scores={"0": torch.ones(6)})
    assert pruned.kept["0.weight"][0].tolist() == [3, 4, 5]


def test_scores_of_what_goes_together_are_summed():
    """Of each weight of the layer, and of the columns that read it: 3 + 0, 2 + 2, 1 + 0."""
    model = nn.Sequential(nn.Linear(1, 3), nn.Linear(3, 1))
    scores = {"0.weight": torch.tensor([[3.0], [2.0], [1.0]]), "1.weight": torch.tensor([[0.0, 2.0, 0.0]])}
    assert prune_channels(model, noise(1, 1), ratio=0.7, scores=scores).kept["0.weight"][0].tolist() == [1]
    assert prune_channels(model, noise(1, 1), ratio=0.7, scores=lambda _: scores).kept["1.weight"][1].tolist() == [1]
    alone = {"0.weight": scores["0.weight"]}
    assert prune_channels(model, noise(1, 1), ratio=0.7, scores=alone).kept["0.weight"][0].tolist() == [0]


def test_one_ratio_for_each_layer():
    pruned = prune_channels(mlp(3, 6, 6, 6, 2), noise(1, 3), ratio={"0": 0.5, "4.weight": 0.34})
    assert pruned.removed == {"0.weight": 3, "4.weight": 2}


def test_layers_left_alone_by_name_and_type():
    model = alive(models.build("resnet"))
    pruned = prune_channels(model, noise(1, 1, 32, 32), ignore=("layer1", "conv1"))
    assert pruned.model.layer1[0].conv1.out_channels == 16
    assert pruned.unprunable["layer1.0.conv1.weight"] == "ignore names layer1"
    assert not any(name.startswith("layer1") for name in pruned.removed)
    with pytest.raises(ValueError, match=r"nothing can be pruned, because .*ignore names Conv2d"):
        prune_channels(model, noise(1, 1, 32, 32), ignore=(nn.Conv2d,))


@pytest.mark.parametrize(
    "measure", ["macs", "parameters", size, lambda m: count_macs(m, noise(1, 1, 32, 32)) + size(m)]
)
@pytest.mark.parametrize("target", [0.5, 0.2])
def test_targets_are_reached_within_one_percent(measure, target):
    model, x = alive(models.build("resnet")), noise(1, 1, 32, 32)
    pruned = prune_to(model, x, target=target, measure=measure)
    cost = {"macs": lambda m: count_macs(m, x), "parameters": size}.get(measure, measure)
    assert target - 0.01 < cost(pruned.model) / cost(model) <= target
    assert_same_function(model, pruned, x)


def test_a_latency_that_falls_in_steps():
    """A kernel that works on eight channels at a time: widths count as the next multiple. No unit goes for nothing."""
    model, x, asked = alive(models.build("vgg", width=48)), noise(1, 1, 32, 32), []

    def seconds(candidate: nn.Module) -> float:
        asked.append(candidate)
        layers = [m for m in candidate.modules() if isinstance(m, nn.Conv2d)]
        return 1e-9 * sum(-(-m.out_channels // 8) * 8 * m.in_channels for m in layers)

    pruned = prune_to(model, x, target=0.5, measure=seconds)
    assert len(asked) < 16  # of the whole model, the smallest, and halving: a measurement takes time
    assert 0.49 < seconds(pruned.model) / seconds(model) <= 0.5
    assert_same_function(model, pruned, x)


def test_macs_by_hand():
    """A convolution: 5 * 4 * 4 positions of 3 * 3 * 3; a depthwise one 5 * 4 * 4 * 9; the head 5 * 7; two samples."""
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.Conv2d(5, 5, 3, groups=5, padding=1), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(5, 7)
    )
    assert count_macs(model, noise(2, 3, 6, 6)) == 2 * (80 * 27 + 80 * 9 + 35)


def test_the_result_is_an_ordinary_model():
    """It copies, saves its state, trains and exports; flags, dtype and requires_grad are the original's."""
    model = alive(models.build("resnet", width=8, depth=1))
    model.conv1.weight.requires_grad_(False)
    x = noise(2, 1, 32, 32)
    small = prune_channels(model, x).model
    assert not small.training
    assert not small.conv1.weight.requires_grad
    file = io.BytesIO()
    torch.save(small.state_dict(), file)
    twin = copy.deepcopy(small)
    file.seek(0)
    twin.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(twin(x), small(x))
    torch.testing.assert_close(torch.export.export(small, (x,)).module()(x), small(x))
    before = small.layer1[0].conv1.weight.clone()
    small.train()(x).square().sum().backward()
    torch.optim.SGD(small.parameters(), 0.1).step()
    assert not torch.equal(before, small.layer1[0].conv1.weight)


def test_it_exports_to_onnx(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    tv = torchvision().models
    model = alive(tv.VisionTransformer(16, 8, 1, 4, 32, 64, num_classes=7))
    x = noise(1, 3, 16, 16)
    small = prune_channels(model, x).model
    torch.onnx.export(small, (x,), tmp_path / "small.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), small(x), rtol=1e-4, atol=1e-5)


def test_a_good_classifier_stays_better_than_chance():
    """A trained model without a quarter of its channels, not repaired: the weak ones went, not the strong ones."""
    model = checkpoints.load("resnet")
    batches = list(data.load("glyphs").val.take(500).batches(250))

    def accuracy(candidate: nn.Module) -> float:
        with torch.no_grad():
            return sum(int((candidate(x).argmax(1) == y).sum()) for x, y in batches) / 500

    def least(m: nn.Module) -> dict[str, Tensor]:
        return {name: -p.detach().square() for name, p in m.named_parameters() if p.dim() > 1}

    weak = prune_to(model, batches[0][0][:1], target=0.85)
    strong = prune_to(model, batches[0][0][:1], target=0.85, scores=least)
    assert accuracy(weak.model) > accuracy(strong.model) + 0.1


def test_hostile_models():
    """The inputs of the first batch are the example."""

    def compress(model: nn.Module, batches) -> nn.Module:
        inputs = next(iter(batches), None)
        if inputs is None:
            raise ValueError("batches holds no batch; pass at least one of (inputs, labels)")
        for x, _ in [inputs, *batches]:
            if x.is_floating_point() and not x.is_meta and not x.isfinite().all():
                raise ValueError("inputs hold values that are not finite; mend them before pruning")
        return prune_channels(model, inputs[0]).model

    refused = {verdict.model for verdict in check_compressor(compress) if verdict.outcome == "refused"}
    assert refused == {"shared", "extras", "no_layers", "nan", "infinity", "meta"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.0}, "ratio=1.0 must be at least 0 and below 1"),
        ({"ratio": {"0": -0.1}}, "ratio=-0.1 must be at least 0"),
        ({"ratio": 0.0}, "nothing is left to remove"),
        ({"ratio": {"4": 0.5}}, "4 cannot be pruned: it is an output of the model"),
        ({"ratio": {"1": 0.5}}, "1 cannot be pruned: it puts out no channels"),
        ({"ratio": {"0": 0.5}, "scope": "global"}, "scope='global' takes one ratio for all"),
        ({"ratio": {"0": 0.5, "0.weight": 0.4}}, "0.weight goes together with a layer of another ratio"),
        ({"ratio": {"head": 0.5}}, "'head' is no layer or weight of the model; did you mean"),
        ({"ignore": ("0.weigth",)}, "'0.weigth' is no layer or weight of the model; did you mean 0.weight"),
        ({"scope": "layer"}, "scope='layer' must be 'group' or 'global'"),
        ({"round_to": 0}, "round_to=0 must be a whole number of at least 1"),
        ({"minimum": 1.5}, "minimum=1.5 must be a whole number of at least 1"),
        ({"scores": {"9": torch.ones(6)}}, "'9' is no layer or weight of the model"),
        ({"scores": {"0": torch.ones(5), "2": torch.ones(6)}}, r"the scores of 0.weight have shape \(5,\)"),
        ({"scores": {"0": torch.ones(6)}}, "no scores for the channels of 2.weight"),
        ({"scores": {"0": torch.full((6,), torch.nan)}}, "the scores of 0 are not all finite"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        prune_channels(mlp(3, 6, 6, 2), noise(1, 3), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 1.0}, "target=1.0 must be above 0 and below 1"),
        ({"target": 0.01}, "target=0.01 cannot be reached: with all that may be removed the cost is 0.091"),
        ({"target": 0.5, "measure": "latency"}, "measure='latency' must be 'macs', 'parameters' or a function"),
    ],
)
def test_targets_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        prune_to(mlp(3, 6, 6, 2), noise(1, 3), **options)
