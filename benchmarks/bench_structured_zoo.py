"""Structured pruning of what is no classifier, and of one classifier of each family: same function, and all that comes after.

Half the units of each group are removed. Then the smaller model must compute the same as the original with these
channels zeroed (float64), train for a step, be rebuilt from its file, and run in ONNX Runtime with the same output.
Detectors without their post-processing: backbone and heads, boxes given where a head wants some.
``COMPRESSLAB_MODELS=bert,raft_small`` limits the table to those named.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.bench_structured import enliven, parameters
from benchmarks.harness import Row, benchmark
from compresslab.measure import use_threads
from compresslab.pruning.channels import Pruned, count_macs, prune_channels
from compresslab.pruning.dependency import find_dependencies
from compresslab.pruning.proof import assert_same_function
from compresslab.pruning.running import call, tensors_in
from compresslab.pruning.saving import load_pruned, save_pruned
from compresslab.workbench import ao  # noqa: F401  (transformers imports torchao itself, loudly)
from compresslab.workbench.vision import torchvision

CLASSIFIERS = {
    "resnet18": {}, "mobilenet_v3_small": {}, "densenet121": {}, "shufflenet_v2_x0_5": {}, "efficientnet_b0": {},
    "squeezenet1_1": {}, "googlenet": {"init_weights": False, "aux_logits": False}, "vit_b_16": {"image_size": 64},
    "swin_t": {}, "maxvit_t": {}, "convnext_tiny": {}, "regnet_y_400mf": {},
}  # fmt: skip
SEGMENTATION = ("fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
CLIPS = {
    "r3d_18": (2, 3, 8, 64, 64), "mc3_18": (2, 3, 8, 64, 64), "r2plus1d_18": (2, 3, 8, 64, 64), "s3d": (1, 3, 16, 224, 224),
    "swin3d_t": (2, 3, 8, 64, 64), "mvit_v2_s": (1, 3, 16, 224, 224),
}  # fmt: skip
FLOW = ("raft_small", "raft_large")
DETECTORS = (
    "fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_320_fpn",
    "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2",
    "fcos_resnet50_fpn", "ssd300_vgg16", "ssdlite320_mobilenet_v3_large",
)  # fmt: skip
IN_FLOAT32 = (*FLOW, "mixtral")  # they make values of this type themselves, or have kernels for no other
TRANSFORMERS = ("bert", "gpt2", "llama", "hf_vit", "mixtral")


class Detector(nn.Module):
    """What a detector computes of an image before boxes are picked: features, and what its heads say of them."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone = detector.backbone
        self.rpn = detector.rpn.head if hasattr(detector, "rpn") else None
        self.head = getattr(detector, "head", None)
        self.roi = detector.roi_heads if hasattr(detector, "roi_heads") else None

    def forward(self, image: Tensor) -> list[Tensor]:
        features = self.backbone(image)
        if self.roi is None:
            return tensors_in(self.head(list(features.values())))
        found = tensors_in(self.rpn(list(features.values())))
        pooled = features["0"][:, :, :7, :7]  # of one box; picking boxes is no layer
        found += self.roi.box_predictor(self.roi.box_head(pooled))
        if self.roi.has_mask():
            found.append(self.roi.mask_predictor(self.roi.mask_head(pooled)))
        if self.roi.has_keypoint():
            found.append(self.roi.keypoint_predictor(self.roi.keypoint_head(pooled)))
        return found


class Flow(nn.Module):
    """RAFT from two images to flow, with two of its usual twelve updates."""

    def __init__(self, raft: nn.Module) -> None:
        super().__init__()
        self.raft = raft

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.raft(first, second, num_flow_updates=2)[-1]


def zoo() -> dict[str, Callable[[], tuple[nn.Module, Any]]]:
    """Builders of models and inputs, by name."""
    tv = torchvision().models
    built: dict[str, Callable[[], tuple[nn.Module, Any]]] = {}
    for name, options in CLASSIFIERS.items():
        shape = (1, 3, 224, 224) if name == "maxvit_t" else (2, 3, 64, 64)  # it has its size written down
        built[name] = lambda name=name, options=options, shape=shape: (
            tv.get_model(name, weights=None, **options), noise(*shape),
        )  # fmt: skip
    for name in SEGMENTATION:
        built[name] = lambda name=name: (tv.get_model(name, weights=None, weights_backbone=None), noise(2, 3, 64, 64))
    for name, shape in CLIPS.items():
        built[name] = lambda name=name, shape=shape: (tv.get_model(name, weights=None), noise(*shape))
    for name in FLOW:
        built[name] = lambda name=name: (
            Flow(tv.get_model(name, weights=None)), (noise(1, 3, 128, 128), noise(1, 3, 128, 128, seed=1)),
        )  # fmt: skip
    for name in DETECTORS:
        side = 300 if name == "ssd300_vgg16" else 64
        side = 224 if "rcnn" in name else side
        built[name] = lambda name=name, side=side: (
            Detector(tv.get_model(name, weights=None, weights_backbone=None)), noise(2, 3, side, side),
        )  # fmt: skip
    return built | {name: lambda name=name: transformer(name) for name in TRANSFORMERS}


def transformer(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A small one of Hugging Face's library, with random weights."""
    torchvision()  # transformers imports it itself, and fails where its operators are not there
    import transformers as hf

    usual = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    tokens = usual | {
        "vocab_size": 96,
        "max_position_embeddings": 64,
        "use_cache": False,
        "attn_implementation": "sdpa",
    }
    ends = {"bos_token_id": 0, "eos_token_id": 1}
    shared = tokens | {"num_key_value_heads": 2}
    made: dict[str, Callable[[], nn.Module]] = {
        "bert": lambda: hf.BertModel(hf.BertConfig(**tokens), add_pooling_layer=True),
        "gpt2": lambda: hf.GPT2LMHeadModel(
            hf.GPT2Config(**ends, vocab_size=96, n_embd=64, n_layer=2, n_head=4, n_positions=64, use_cache=False)
        ),
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**shared)),
        "hf_vit": lambda: hf.ViTForImageClassification(
            hf.ViTConfig(**usual, image_size=32, patch_size=8, num_labels=7)
        ),
        "mixtral": lambda: hf.MixtralForCausalLM(
            hf.MixtralConfig(**shared, num_local_experts=4, num_experts_per_tok=2)
        ),
    }
    model = made[name]()
    if name == "hf_vit":
        return model, {"pixel_values": noise(2, 3, 32, 32)}
    return model, {"input_ids": torch.randint(0, 96, (2, 9), generator=torch.Generator().manual_seed(0))}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@benchmark
def structured_zoo() -> Iterator[Row]:
    """Five checks of each model; a row is met when all of them pass."""
    chosen = os.environ.get("COMPRESSLAB_MODELS", "all")
    builders = zoo()
    with use_threads(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in builders if chosen == "all" else chosen.split(","):
            if name.startswith(TRANSFORMERS) and not _installed("transformers"):
                continue
            yield row(name, builders[name])


def row(name: str, build: Callable[[], tuple[nn.Module, Any]]) -> Row:
    """Half of each group removed, and what became of it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = build()
    model = enliven(model)
    start = time.perf_counter()
    found = find_dependencies(model, x)
    pruned = prune_channels(model, x)
    seconds = time.perf_counter() - start
    left = parameters(pruned.model) / parameters(model), count_macs(pruned.model, x) / count_macs(model, x)
    limit, dtype = (1e-4, torch.float32) if name in IN_FLOAT32 else (1e-12, torch.float64)
    passed, failed, error = [], [], float("inf")
    try:
        error = assert_same_function(model, pruned, x, tolerance=limit, dtype=dtype).error
        passed.append("same")
    except Exception as problem:
        failed.append(f"same ({brief(problem)})")
    for check in (reloads, trains, exports):
        try:
            check(pruned, x, build)
            passed.append(check.__name__)
        except Exception as problem:
            failed.append(f"{check.__name__} ({brief(problem)})")
    text = (f"{len(found.groups)} groups, {left[0]:.1%} of the parameters, {left[1]:.1%} of the MACs, {seconds:.1f} s,"
            f" error {error:.1e}; {', '.join(passed)}")  # fmt: skip
    text += f"; not: {', '.join(failed)}" if failed else ""
    ratio = 0.0 if failed else 1.0
    return Row(name, text, f"same within {limit:.0e}, trains, reloads, exports", ratio, ratio, ratio, 1.0)


def brief(problem: Exception) -> str:
    return f"{type(problem).__name__}: {problem}".splitlines()[0].replace("|", "/")[:160]


def values(out: Any) -> list[Tensor]:
    return [part for part in tensors_in(out) if part.is_floating_point()]


def trains(pruned: Pruned, x: Any, build: Callable) -> None:
    """One step changes some weight, and leaves all of them finite."""
    model = pruned.model.train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    sum(part.square().mean() for part in values(call(model, x))).backward()
    torch.optim.SGD(model.parameters(), 1e-4).step()
    moved = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise ValueError("weights are not finite after a step")
    if not any(not torch.equal(before[name], model.get_parameter(name)) for name in moved):
        raise ValueError("no weight has changed")


@torch.no_grad()
def reloads(pruned: Pruned, x: Any, build: Callable) -> None:
    """The file and the original's code give the same model."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_pruned(save_pruned(pruned, Path(folder) / "small.safetensors"), build()[0].eval())
    outputs = [values(call(candidate.eval(), x)) for candidate in (loaded.model, pruned.model)]
    for ours, theirs in zip(*outputs, strict=True):
        if not torch.equal(ours, theirs):
            raise ValueError(f"outputs differ by {float((ours - theirs).abs().max()):.1e}")


@torch.no_grad()
def exports(pruned: Pruned, x: Any, build: Callable) -> None:
    """To ONNX through ``torch.export``, run by ONNX Runtime."""
    import onnxruntime

    model = pruned.model.eval()
    if hasattr(model, "set_experts_implementation"):  # the usual one has no counterpart in ONNX
        model.set_experts_implementation("batched_mm")
    args, kwargs = ((), x) if isinstance(x, dict) else (x if isinstance(x, tuple) else (x,), None)
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            path = Path(folder) / "small.onnx"
            torch.onnx.export(model, args, path, kwargs=kwargs, dynamo=True, verbose=False)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = 1, 4
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            names = [given.name for given in session.get_inputs()]
            inputs = list(kwargs.values()) if kwargs else list(args)
            feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
            found = [torch.from_numpy(part) for part in session.run(None, feed)]
    finally:
        logging.disable(logging.NOTSET)
    expected = values(call(model, x))
    for ours, theirs in zip(found, expected, strict=True):
        distance = float((ours - theirs).norm() / theirs.norm().clamp(min=1e-9))
        if not distance < 1e-3:
            raise ValueError(f"ONNX Runtime's output differs by {distance:.1e} of its size")


def _installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None
