"""The common checks: a sound method passes all of them, and each planted fault is found by the check made for it."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import nn

from compresslab.testing import HOSTILE, CompressorFault, check_compressor, hostile, verdict_table

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding)


def round_weights(model, batches, *, levels=7):
    """A sound little method: weights rounded to 15 levels by their largest value; two of its promises are checks."""
    targets = {name: m for name, m in model.named_modules() if isinstance(m, LAYERS)}
    if not targets:
        raise ValueError("the model has no layer to round; give it a Linear, Conv or Embedding layer")
    for name, layer in targets.items():
        if not layer.weight.is_meta and (bad := int((~layer.weight.isfinite()).sum())):
            raise ValueError(f"layer {name!r}: {bad} of {layer.weight.numel()} weights are not finite; mend them first")
    new = copy.deepcopy(model)
    done = set()
    for name in targets:
        weight = new.get_submodule(name).weight
        if id(weight) in done or weight.is_meta:
            continue
        done.add(id(weight))
        with torch.no_grad():
            scale = (weight.abs().max() / levels).clamp_min(torch.finfo(weight.dtype).tiny)
            weight.copy_((weight / scale).round() * scale)
    return new


def with_batches(model, batches):
    """The same, for methods that read data: it refuses what it must."""
    seen = 0
    for inputs, _ in batches:
        if not inputs.is_meta and not inputs.isfinite().all():
            raise ValueError("the inputs hold a value that is not finite; remove that sample")
        seen += 1
    if not seen:
        raise ValueError("batches is empty; give at least one batch of inputs and labels")
    return round_weights(model, batches)


def test_a_sound_method_passes_on_every_model():
    verdicts = check_compressor(round_weights)
    assert [verdict.model for verdict in verdicts] == list(HOSTILE)
    outcomes = {verdict.model: verdict.outcome for verdict in verdicts}
    assert {name for name, outcome in outcomes.items() if outcome == "refused"} == {"nan", "infinity", "no_layers"}


def test_a_sound_method_that_reads_batches_passes():
    assert {verdict.outcome for verdict in check_compressor(with_batches)} == {"right", "refused"}


def mutates(model, batches):
    round_weights(model, batches)
    next(model.parameters()).data += 1
    return round_weights(model, batches)


def returns_the_same(model, batches):
    return model


def leaves_eval(model, batches):
    new = round_weights(model, batches)
    model.eval()
    return new


def result_in_eval(model, batches):
    return round_weights(model, batches).eval()


def leaves_hook(model, batches):
    next(model.modules()).register_forward_hook(lambda *_: None)
    return round_weights(model, batches)


def leaves_gradients(model, batches):
    new = round_weights(model, batches)
    for parameter in model.parameters():
        if not parameter.is_meta:
            parameter.grad = torch.zeros_like(parameter)
    return new


def draws_globally(model, batches):
    torch.rand(1)
    return round_weights(model, batches)


def seeds_python(model, batches):
    random.seed(0)
    return round_weights(model, batches)


def sets_threads(model, batches):
    torch.set_num_threads(torch.get_num_threads() + 1)
    return round_weights(model, batches)


def does_nothing(model, batches):
    round_weights(model, batches)
    return copy.deepcopy(model)


def shares_memory(model, batches):
    new = round_weights(model, batches)
    new.get_parameter("0.bias").data = model.get_parameter("0.bias").data
    return new


def leaks_key_error(model, batches):
    return {}["layer"]


def refuses_all(model, batches):
    raise ValueError("this model cannot be compressed by this method; try another")


def is_curt(model, batches):
    raise ValueError("bad model")


def hides_the_layer(model, batches):
    try:
        return round_weights(model, batches)
    except ValueError as error:
        raise ValueError("some weights of the model are not finite, mend them") from error


def accepts_nan(model, batches):
    new = copy.deepcopy(model)
    for parameter in new.parameters():
        parameter.data = parameter.data * 0.5
    return new


def breaks_ties(model, batches):
    new = round_weights(model, batches)
    if isinstance(getattr(new, "head", None), nn.Linear):
        new.head.weight = nn.Parameter(new.head.weight.detach().clone())
    return new


def is_random(model, batches):
    new = round_weights(model, batches)
    noise = torch.Generator().manual_seed(random.SystemRandom().getrandbits(30))
    for parameter in new.parameters():
        parameter.data += torch.randn(parameter.shape, generator=noise).to(parameter.dtype)
    return new


def changes_dtype(model, batches):
    return round_weights(model, batches).double()


def cuts_outputs(model, batches):
    new = round_weights(model, batches)
    new[-1].weight = nn.Parameter(new[-1].weight[:3].clone())
    new[-1].bias = nn.Parameter(new[-1].bias[:3].clone())
    return new


def makes_infinities(model, batches):
    new = round_weights(model, batches)
    next(new.parameters()).data.fill_(float("inf"))
    return new


def spoils_batches(model, batches):
    for inputs, _ in batches:
        if inputs.is_floating_point():
            inputs.mul_(2)
    return with_batches(model, batches)


def ignores_empty(model, batches):
    list(batches)
    return round_weights(model, batches)


def ignores_nan_inputs(model, batches):
    if not list(batches):
        raise ValueError("batches is empty; give at least one batch")
    return round_weights(model, batches)


def hook_stays_after_interrupt(model, batches):
    handle = next(model.modules()).register_forward_hook(lambda *_: None)
    new = with_batches(model, batches)
    handle.remove()
    new = copy.deepcopy(new)
    for module in new.modules():
        module._forward_hooks.clear()
    return new


def updates_batch_norm(model, batches):
    new = with_batches(model, batches)
    flag = model.training
    model.train()
    with torch.no_grad():
        model(next(iter(batches))[0])
    model.train(flag)
    return new


PLANTED = [
    (mutates, "mlp", "untouched: weights"),
    (returns_the_same, "mlp", "new_model"),
    (leaves_eval, "train_mode", "untouched: train and eval flags"),
    (result_in_eval, "train_mode", "mode"),
    (leaves_hook, "mlp", "untouched: hooks"),
    (leaves_gradients, "mlp", "untouched: gradients"),
    (draws_globally, "mlp", "untouched: torch's global random state"),
    (seeds_python, "mlp", "untouched: Python's global random state"),
    (sets_threads, "mlp", "untouched: the number of threads"),
    (does_nothing, "mlp", "silent_no_op"),
    (shares_memory, "mlp", "new_model: 0.bias"),
    (leaks_key_error, "mlp", "error_type: KeyError"),
    (refuses_all, "mlp", "must_accept"),
    (is_curt, "prime_sizes", "error_text"),
    (hides_the_layer, "nan", "error_text"),
    (accepts_nan, "nan", "finite_in"),
    (accepts_nan, "infinity", "finite_in"),
    (accepts_nan, "no_layers", "nothing_to_compress"),
    (breaks_ties, "tied", "ties"),
    (is_random, "mlp", "deterministic"),
    (changes_dtype, "mlp", "runs: the result cannot run"),
    (cuts_outputs, "mlp", "output_shape"),
    (makes_infinities, "mlp", "finite_out"),
    (spoils_batches, "mlp", "untouched: the batches"),
    (ignores_empty, "mlp", "empty_batches"),
    (ignores_nan_inputs, "mlp", "finite_batches"),
    (hook_stays_after_interrupt, "mlp", "after_interrupt: hooks"),
    (updates_batch_norm, "conv_bn", "untouched: weights and buffers"),
]


@pytest.mark.parametrize(("compress", "model", "finding"), PLANTED, ids=lambda value: getattr(value, "__name__", None))
def test_a_planted_fault_is_found(compress, model, finding):
    threads = torch.get_num_threads()
    try:
        with pytest.raises(CompressorFault, match=finding):
            check_compressor(compress, models=[model])
    finally:
        torch.set_num_threads(threads)


def test_every_model_is_legal():
    for name in HOSTILE:
        case = hostile(name)
        output = case.model.eval()(case.batches[0][0])
        assert output.shape[0] == 4, name
        assert name in ("nan", "infinity", "meta") or output.isfinite().all(), name


def test_the_same_seed_makes_the_same_model_and_leaves_the_global_state():
    state = torch.random.get_rng_state()
    first, second = hostile("conv_bn"), hostile("conv_bn")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))


def test_unknown_model():
    with pytest.raises(ValueError, match="name='cnn' is not a hostile model; choose one of mlp"):
        hostile("cnn")


def test_the_table_has_a_row_for_each_verdict():
    table = verdict_table(check_compressor(round_weights, models=["mlp", "nan"]))
    assert table.splitlines()[2] == "| mlp | right |  |"
    assert "| nan | refused | ValueError: layer '2': 1 of 80 weights are not finite" in table
