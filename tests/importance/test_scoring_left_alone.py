"""Every public function on every hostile model: right or refused, and the model left as it was, also after Ctrl-C."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compresslab import importance
from compresslab.testing import check_compressor, hostile

LAST_LAYERS = {"mlp": "0.weight"}


def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def gate_sums(model: nn.Module, batches: list) -> dict[str, Tensor]:
    total = {}
    for _, found in importance.gate_gradients(model, batches, loss_fn):
        for name, derivative in found.items():
            total[name] = total.get(name, 0) + derivative.abs().sum(0)
    return total


def by_oracle(oracle: importance.Oracle) -> dict[str, Tensor]:
    scores = {}
    for (name, _), increase in zip(oracle.places, oracle.increase, strict=True):
        scores[name] = torch.cat([scores.get(name, torch.empty(0)), increase[None]])
    return scores


SCORERS: dict[str, Callable] = {
    "magnitude_scores": lambda m, b: importance.magnitude_scores(m),
    "gradient_scores": lambda m, b: importance.gradient_scores(m, b, loss_fn),
    "taylor_scores": lambda m, b: importance.taylor_scores(m, b, loss_fn),
    "taylor_channel_scores": lambda m, b: importance.taylor_channel_scores(m, b, loss_fn),
    "taylor_map_scores": lambda m, b: importance.taylor_map_scores(m, b, loss_fn),
    "fisher_diagonal": lambda m, b: importance.fisher_diagonal(m, b, loss_fn),
    "fisher_scores": lambda m, b: importance.fisher_scores(m, b, loss_fn, labels="sampled"),
    "fisher_channel_scores": lambda m, b: importance.fisher_channel_scores(m, b, loss_fn),
    "hessian_diagonal": lambda m, b: importance.hessian_diagonal(m, b, loss_fn, probes=2).values,
    "hessian_scores": lambda m, b: importance.hessian_scores(m, b, loss_fn, probes=2),
    "snip_scores": lambda m, b: importance.snip_scores(m, b, loss_fn),
    "grasp_scores": lambda m, b: importance.grasp_scores(m, b, loss_fn),
    "synflow_scores": lambda m, b: importance.synflow_scores(m, b),
    "synflow_masks": lambda m, b: importance.synflow_masks(m, b, sparsity=0.5, rounds=3).masks,
    "activation_scores": lambda m, b: importance.activation_scores(m, b),
    "batchnorm_scale_scores": lambda m, b: importance.batchnorm_scale_scores(m, b),
    "input_norms": lambda m, b: importance.input_norms(m, b),
    "wanda_scores": lambda m, b: importance.wanda_scores(m, b),
    "gate_gradients": gate_sums,
    "channel_oracle": lambda m, b: by_oracle(importance.channel_oracle(m, b, loss_fn)),
    "weight_oracle": lambda m, b: by_oracle(importance.weight_oracle(m, b, loss_fn, samples=7)),
}
# Models that a method must refuse, beside those that hold no number it could use.
WITHOUT_BATCHNORM = ("mlp",)


def as_compressor(score: Callable) -> Callable:
    """Zero the lower half of what was scored, by the first axis: so every promise of a compressor is asked for."""

    def compress(model: nn.Module, batches: object) -> nn.Module:
        scores = score(model, batches)
        if not all(tensor.isfinite().all() for tensor in scores.values()):
            raise AssertionError(f"scores are not finite: {list(scores)}")
        result = copy.deepcopy(model)
        with torch.no_grad():
            for name in scores:
                weight = result.get_parameter(name)
                weight[: max(1, len(weight) // 2)] *= 0.5
                if torch.equal(weight, model.get_parameter(name)):
                    weight += 1  # a weight of zeros
        return result

    return compress


@pytest.mark.parametrize("name", SCORERS)
def test_hostile_models(name):
    accept = () if name == "batchnorm_scale_scores" else ("mlp", "conv_bn")
    verdicts = check_compressor(as_compressor(SCORERS[name]), must_accept=accept)
    refused = {v.model for v in verdicts if v.outcome == "refused"}
    always = {"no_layers", "nan", "infinity", "meta"}
    assert refused >= always
    if name in ("gradient_scores", "magnitude_scores", "taylor_scores", "fisher_scores", "fisher_diagonal"):
        assert refused <= always | {"all_zero"}
    if name == "magnitude_scores":
        assert refused == always


def test_every_public_function_of_a_model_is_here():
    others = {
        "at_gates", "average_ranks", "combine_scores", "count_passes", "find_channels", "gated", "per_channel",
        "scored_weights", "scoring", "spearman", "split_half",
    }  # fmt: skip
    public = {name for name in importance.__all__ if name[0].islower()}
    assert public - others == set(SCORERS)


@pytest.mark.parametrize(
    "name", [n for n in SCORERS if n not in ("magnitude_scores", "synflow_scores", "synflow_masks")]
)
def test_an_error_in_the_middle_leaves_the_model(name):
    # The loss or the model itself raises in the second batch, inside every context there is.
    case = hostile("train_mode")
    before = {key: tensor.clone() for key, tensor in case.model.state_dict().items()}
    modes = [module.training for module in case.model.modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in case.model.modules()]
    if name == "batchnorm_scale_scores":
        bad = [(torch.zeros(4, 99), None)]
    else:
        bad = [case.batches[0], (torch.zeros(4, 99), case.batches[1][1])]
    with pytest.raises((RuntimeError, ValueError)):
        SCORERS[name](case.model, bad)
    assert all(torch.equal(before[key], tensor) for key, tensor in case.model.state_dict().items())
    assert [module.training for module in case.model.modules()] == modes
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in case.model.modules()] == hooks
    assert torch.is_grad_enabled()
    assert all(p.grad is None and p.requires_grad for p in case.model.parameters())


@pytest.mark.parametrize("name", SCORERS)
def test_dropout_and_batch_norm_noise_do_not_enter(name):
    # In train mode and in eval mode the same numbers; snip and grasp use the batch's statistics in both.
    case, other = hostile("train_mode"), hostile("train_mode")
    if name in ("channel_oracle", "weight_oracle"):
        pass
    first, second = SCORERS[name](case.model.train(), case.batches), SCORERS[name](other.model.eval(), other.batches)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_batches_may_come_only_once():
    case = hostile("conv_bn")
    for name, score in SCORERS.items():
        kept, once = score(case.model, case.batches), score(case.model, iter(case.batches))
        assert all(torch.equal(kept[key], once[key]) for key in kept), name


def test_gradients_are_found_although_the_caller_records_none():
    case = hostile("conv_bn")
    with torch.no_grad():
        inside = {name: score(case.model, case.batches) for name, score in SCORERS.items()}
        assert not torch.is_grad_enabled()
    for name, score in SCORERS.items():
        outside = score(case.model, case.batches)
        assert all(torch.equal(outside[key], inside[name][key]) for key in outside), name
