"""Experts: what each score and method costs in perplexity at three ratios, and time and error on a wider Mixtral."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import Row, against_limit, benchmark
from compresslab import measure
from compresslab.pruning.expert_layers import find_moe_layers
from compresslab.pruning.expert_merging import merge_experts
from compresslab.pruning.expert_neurons import kept_neurons, prune_expert_neurons
from compresslab.pruning.expert_skipping import skip_experts
from compresslab.pruning.experts import drop_experts, lowest_experts
from compresslab.pruning.routing import RoutingStatistics, routing_statistics
from compresslab.workbench import ao, checkpoints, data  # noqa: F401 (ao before transformers)
from compresslab.workbench.train import fit
from compresslab.workbench.vision import torchvision

Statistics = Mapping[str, RoutingStatistics]


def of(statistics: Statistics, score: str) -> dict[str, Tensor]:
    """A score by layer."""
    if score == "usage x contribution":
        return {name: seen.usage * seen.contribution for name, seen in statistics.items()}
    return {name: getattr(seen, score) for name, seen in statistics.items()}


@benchmark
def experts_perplexity() -> Iterator[Row]:
    """The course's model, statistics from five draws of training text, perplexity on the whole validation split."""
    model, splits = checkpoints.load("moe_gpt"), data.load("python-docs")
    held_out = list(splits.val.batches(8))
    draws = []
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        batches = list(splits.train.batches(8, shuffle=True, generator=generator))[:20]
        draws.append(routing_statistics(model, batches))

    def perplexity(candidate: nn.Module) -> float:
        return measure.perplexity(measure.predict_batches(candidate, held_out), resamples=10).value

    def against_usage(work: str, method: Callable[[Statistics], nn.Module], baseline: list[float]) -> Row:
        found = [perplexity(method(statistics)) for statistics in draws]
        ratios = sorted(b / f for b, f in zip(baseline, found, strict=True))
        ours, theirs = (f"{min(v):.2f} to {max(v):.2f}" for v in (found, baseline))
        return Row(work, ours, f"dropped by usage: {theirs}", ratios[2], ratios[0], ratios[-1], 1.0)

    with measure.use_threads(1):
        for ratio in (0.125, 0.25, 0.5):

            def drop(statistics: Statistics, score: str, ratio: float = ratio) -> nn.Module:
                return drop_experts(model, lowest_experts(of(statistics, score), ratio=ratio)).model

            def merge(statistics: Statistics, ratio: float = ratio) -> nn.Module:
                weights = of(statistics, "usage x contribution")
                return merge_experts(model, weights, of(statistics, "similarity"), ratio=ratio).model

            def thin(statistics: Statistics, ratio: float = ratio) -> nn.Module:
                scores = of(statistics, "usage x contribution")
                kept = {name: kept_neurons(score, 64, ratio=ratio) for name, score in scores.items()}
                return prune_expert_neurons(model, kept).model

            usage = [perplexity(drop(statistics, "usage")) for statistics in draws]
            for score in ("mean_gate", "contribution", "usage x contribution"):
                yield against_usage(f"{ratio:.1%} of the experts by {score}", lambda s, n=score: drop(s, n), usage)
            yield against_usage(f"{ratio:.1%} merged", merge, usage)
            yield against_usage(f"{ratio:.1%} of the neurons", thin, usage)
        half = [
            perplexity(skip_experts(model, {n: s.skip_threshold(0.5) for n, s in found.items()}).model)
            for found in draws
        ]
        limit = round(1.01 * perplexity(model), 3)
        yield against_limit("half of the second experts skipped, perplexity", half, limit, unit="")


@benchmark
def experts_repaired() -> Iterator[Row]:
    """A quarter of the experts dropped by contribution, then one pass over the training text; three draws and seeds."""
    model, splits = checkpoints.load("moe_gpt"), data.load("python-docs")
    held_out = list(splits.val.batches(32))

    def perplexity(candidate: nn.Module) -> float:
        return measure.perplexity(measure.predict_batches(candidate, held_out), resamples=1).value

    with measure.use_threads(1):
        whole, before, after = perplexity(model), [], []
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            batches = list(splits.train.batches(8, shuffle=True, generator=generator))
            scores = of(routing_statistics(model, batches[:20]), "contribution")
            smaller = drop_experts(model, lowest_experts(scores, ratio=0.25)).model
            before.append(perplexity(smaller) / whole)
            after.append(perplexity(fit(smaller, batches, epochs=1, lr=2e-3, seed=seed).model) / whole)
    work = f"a quarter dropped ({min(before):.2f} to {max(before):.2f}), {len(batches)} steps of repair, perplexity"
    yield against_limit(work, after, 1.03, unit=f"of the whole model's {whole:.3f}")


@benchmark
def experts_mixtral() -> Iterator[Row]:
    """A random Mixtral of 8 blocks and 16 experts: the error of dropping, and the time of statistics and of dropping."""
    torchvision()
    import transformers as hf

    config = hf.MixtralConfig(
        vocab_size=1000, hidden_size=256, intermediate_size=512, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=16, max_position_embeddings=256,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = hf.MixtralForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.05, generator=generator)
    tokens = torch.randint(1000, (4, 128), generator=generator)
    gone = {name: [1, 5, 7, 12] for name in find_moe_layers(model).layers}
    with measure.use_threads(1), torch.no_grad():
        plain, statistics, dropping = [], [], []
        for _ in range(3):
            plain.append(seconds(lambda: model(tokens)))
            statistics.append(seconds(lambda: routing_statistics(model, [(tokens, None)])))
            dropping.append(seconds(lambda: drop_experts(model, gone)))
        times = [long / short for long, short in zip(statistics, plain, strict=True)]
        yield against_limit("statistics over a plain forward pass", times, 4.0, unit="x")
        yield against_limit("a quarter of 128 experts dropped, copy included", dropping, 5.0, unit="s")
        routers = {id(model.get_submodule(layer.router).weight) for layer in find_moe_layers(model).layers.values()}
        found, linear = drop_experts(model, gone).model(tokens).logits, F.linear

        def silenced(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            y = linear(x, weight, bias)
            return y.index_fill(-1, torch.tensor([1, 5, 7, 12]), -torch.inf) if id(weight) in routers else y

        F.linear = silenced
        try:
            wanted = model(tokens).logits
        finally:
            F.linear = linear
        error = ((found - wanted).abs().max() / wanted.abs().max()).item()
        yield against_limit("largest difference to logits at -inf, float32", [max(error, 1e-12)], 1e-5, unit="")


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
