"""The checks that every compression method passes, on every hostile model, by one line in its test:

    check_compressor(lambda model, batches: prune_magnitude(model, sparsity=0.5))

For each model the method's answer is *right* (a new, working, smaller or simpler model) or *refused* (a ``ValueError``
or ``TypeError`` that says what, where and what now). Anything else is a fault.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor, nn

from compresslab.testing.hostile import HOSTILE, Hostile, hostile

__all__ = ["CompressorFault", "Verdict", "check_compressor", "verdict_table"]

Batches = Iterable[tuple[Tensor, Tensor]]
Compress = Callable[[nn.Module, Batches], nn.Module]


class CompressorFault(AssertionError):
    """A method broke a promise; the message lists every model, check and finding."""


@dataclass(frozen=True)
class Verdict:
    """What a method did with one hostile model."""

    model: str
    outcome: str  # "right", "refused" or "fault"
    check: str  # the check that failed, empty otherwise
    detail: str  # the error's text, or what was found


class _Fault(Exception):
    """Carries the name of the failed check and the finding up to ``_verdict``."""


def check_compressor(
    compress: Compress,
    *,
    models: Sequence[str] = HOSTILE,
    must_accept: Sequence[str] = ("mlp", "conv_bn"),
) -> list[Verdict]:
    """The verdicts of a method on hostile models, all of them right or refused.

    Args:
        compress: called as ``compress(model, batches)``, returns the compressed model. It may ignore ``batches``;
            if it reads them, empty, non-finite and interrupted batches are tried too.
        models: names from ``HOSTILE``.
        must_accept: the models that the method may not refuse.

    Returns:
        One verdict for each model, in order; ``verdict_table`` prints them.

    Raises:
        CompressorFault: at least one check failed; the message names all.

    Example:
        >>> def halve(model, batches):
        ...     import copy
        ...     model = copy.deepcopy(model)
        ...     for layer in model.modules():
        ...         if isinstance(layer, nn.Linear):
        ...             layer.weight.data *= 0.5
        ...     return model
        >>> check_compressor(halve, models=["mlp"])[0].outcome
        'right'
    """
    verdicts = [_verdict(compress, name, must_accept=name in must_accept) for name in models]
    faults = [verdict for verdict in verdicts if verdict.outcome == "fault"]
    if faults:
        lines = "\n".join(f"  {fault.model}: {fault.check}: {fault.detail}" for fault in faults)
        raise CompressorFault(f"{len(faults)} of {len(verdicts)} hostile models found a fault:\n{lines}")
    return verdicts


def verdict_table(verdicts: Iterable[Verdict]) -> str:
    """The verdicts as a Markdown table: model, outcome, detail."""
    rows = [f"| {v.model} | {v.outcome} | {' '.join(f'{v.check} {v.detail}'.split())} |" for v in verdicts]
    return "\n".join(["| model | outcome | detail |", "|---|---|---|", *rows])


def _verdict(compress: Compress, name: str, *, must_accept: bool) -> Verdict:
    try:
        refusal = _check_result(compress, name)
        if refusal and must_accept:
            raise _Fault("must_accept", f"refused a plain model: {refusal}")
        if not refusal:
            _check_batches(compress, name)
    except _Fault as fault:
        return Verdict(name, "fault", *fault.args)
    return Verdict(name, "refused" if refusal else "right", "", refusal)


def _check_result(compress: Compress, name: str) -> str:
    """Run the method once, look at everything; returns the text of a refusal, or nothing."""
    case, before = _watched(name)
    result, error = _call(compress, case, case.batches)
    _compare(before, _snapshot(case))
    if error is not None:
        return _check_error(error, case)
    if case.poisoned:
        raise _Fault("finite_in", f"accepted a non-finite value in {case.poisoned}")
    if case.nothing_to_compress:
        raise _Fault("nothing_to_compress", "returned a model although no layer could be compressed")
    if not isinstance(result, nn.Module):
        raise _Fault("returns_model", f"returned {type(result).__name__}, not a module")
    _check_new(case.model, result)
    if name != "meta":
        try:
            _check_output(case, result)
            _check_saved(case, result)
        except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise _Fault("runs", f"the result cannot run, be copied or be saved: {error}"[:300]) from error
        again, _ = _call(compress, hostile(name), hostile(name).batches)
        if again is None or _different(result.state_dict(), again.state_dict()):
            raise _Fault("deterministic", "two calls on equal models gave different results")
    return ""


def _watched(name: str) -> tuple[Hostile, dict[str, Any]]:
    case = hostile(name)
    return case, _snapshot(case)


def _call(compress: Compress, case: Hostile, batches: Batches) -> tuple[Any, BaseException | None]:
    try:
        return compress(case.model, batches), None
    except (Exception, KeyboardInterrupt) as error:
        return None, error


def _check_error(error: BaseException, case: Hostile) -> str:
    kind, text = type(error).__name__, str(error)
    if not isinstance(error, ValueError | TypeError):
        raise _Fault("error_type", f"{kind}: {text[:200]!r}; raise a ValueError or TypeError that says what to do")
    if len(text.split()) < 5:
        raise _Fault("error_text", f"{kind}: {text!r} does not say the rule, the value and the way out")
    if case.poisoned and case.poisoned.removesuffix(".weight") not in text:
        raise _Fault("error_text", f"{kind}: {text!r} does not name {case.poisoned}")
    return f"{kind}: {text}"


def _check_new(model: nn.Module, result: nn.Module) -> None:
    old = {id(module) for module in model.modules()} | {id(parameter) for parameter in model.parameters()}
    if any(id(part) in old for part in (*result.modules(), *result.parameters())):
        raise _Fault("new_model", "the result shares modules or parameters with the model given")
    storages = {t.untyped_storage().data_ptr() for t in model.state_dict().values() if t.numel() and not t.is_meta}
    for name, tensor in result.state_dict().items():
        if tensor.numel() and not tensor.is_meta and tensor.untyped_storage().data_ptr() in storages:
            raise _Fault("new_model", f"{name} shares its memory with the model given")
    if result.training != model.training:
        raise _Fault("mode", f"the result is in training={result.training}, the model given in {model.training}")
    same_types = [type(m) for m in model.modules()] == [type(m) for m in result.modules()]
    if same_types and not next(model.parameters()).is_meta and not _different(model.state_dict(), result.state_dict()):
        raise _Fault("silent_no_op", "the result equals the model given, and nothing was said")
    for first, second in _ties(model):
        parameters = dict(result.named_parameters(remove_duplicate=False))
        both = first in parameters and second in parameters
        if both and parameters[first] is not parameters[second]:
            raise _Fault("ties", f"{first} and {second} were one parameter and are two in the result")


def _check_output(case: Hostile, result: nn.Module) -> None:
    reference, probe = copy.deepcopy(case.model).eval(), copy.deepcopy(result).eval()
    with torch.no_grad():
        for inputs, _ in case.batches:
            wanted, got = reference(inputs), probe(inputs)
            if got.shape != wanted.shape or got.dtype != wanted.dtype:
                shapes = f"{tuple(got.shape)} {got.dtype}, was {tuple(wanted.shape)} {wanted.dtype}"
                raise _Fault("output_shape", f"the result's output is {shapes}")
            if not got.isfinite().all():
                raise _Fault("finite_out", "the result's output is not finite")


def _check_saved(case: Hostile, result: nn.Module) -> None:
    probe = copy.deepcopy(result).eval()
    state = {name: tensor.clone().contiguous() for name, tensor in probe.state_dict().items()}
    fresh = copy.deepcopy(probe)
    with torch.no_grad():
        for tensor in fresh.state_dict().values():
            tensor.zero_()
        fresh.load_state_dict(load_bytes(save_bytes(state)))
        inputs = case.batches[0][0]
        if not torch.equal(probe(inputs), fresh(inputs)):
            raise _Fault("saved", "saved and loaded again, the result computes something else")


def _check_batches(compress: Compress, name: str) -> None:
    """Only for methods that read their batches: empty, poisoned, interrupted."""
    reader = _Interrupted(hostile(name).batches, stop_at=None)
    _call(compress, hostile(name), reader)
    if not reader.started or name == "meta":
        return
    _, error = _call(compress, hostile(name), [])
    if not isinstance(error, ValueError):
        raise _Fault("empty_batches", f"no batches at all should be a ValueError, got {error!r}")
    first = hostile(name).batches[0]
    if first[0].is_floating_point():
        poisoned = first[0].clone()
        poisoned.view(-1)[0] = float("nan")
        _, error = _call(compress, hostile(name), [(poisoned, first[1])])
        if not isinstance(error, ValueError):
            raise _Fault("finite_batches", f"a NaN in the inputs should be a ValueError, got {error!r}")
    for stop_at in range(len(hostile(name).batches)):
        case, before = _watched(name)
        _, error = _call(compress, case, _Interrupted(case.batches, stop_at))
        if not isinstance(error, KeyboardInterrupt):
            break  # the method does not read that far
        _compare(before, _snapshot(case), "after_interrupt")


class _Interrupted:
    """Batches that stop with Ctrl-C before batch ``stop_at``, and know whether they were read."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]], stop_at: int | None) -> None:
        self.batches, self.stop_at, self.started = batches, stop_at, False

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.started = True
        for index, batch in enumerate(self.batches):
            if index == self.stop_at:
                raise KeyboardInterrupt
            yield batch


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


def _snapshot(case: Hostile) -> dict[str, Any]:
    """Everything a method must leave as it was, by the words used in a finding."""
    model = case.model
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {
        "weights and buffers": {name: None if t.is_meta else t.detach().clone() for name, t in tensors},
        "identity of the tensors": {name: id(t) for name, t in tensors},
        "modules": [(name, id(module), type(module)) for name, module in model.named_modules()],
        "train and eval flags": [module.training for module in model.modules()],
        "requires_grad": {name: t.requires_grad for name, t in tensors},
        "gradients": {name: None if t.grad is None else t.grad.clone() for name, t in tensors},
        "hooks": [len(getattr(module, hooks)) for module in model.modules() for hooks in HOOKS],
        "the batches": {str(i): inputs.clone() for i, (inputs, _) in enumerate(case.batches) if not inputs.is_meta},
        "torch's global random state": {"state": torch.random.get_rng_state()},
        "Python's global random state": random.getstate(),
        "the number of threads": torch.get_num_threads(),
        "the default dtype": torch.get_default_dtype(),
        "the gradient mode": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "the attention fast path": torch.backends.mha.get_fastpath_enabled(),
    }


def _compare(before: dict[str, Any], after: dict[str, Any], check: str = "untouched") -> None:
    for what, was in before.items():
        now = after[what]
        tensors = isinstance(was, dict) and any(isinstance(value, Tensor) for value in was.values())
        if _different(was, now) if tensors else was != now:
            raise _Fault(check, f"{what} changed")


def _different(first: dict[str, Any], second: dict[str, Any]) -> bool:
    if first.keys() != second.keys():
        return True
    for name, value in first.items():
        other = second[name]
        if (value is None) != (other is None):
            return True
        if value is None:
            continue
        if value.shape != other.shape or value.dtype != other.dtype:
            return True
        if not value.is_meta and not torch.equal(value.nan_to_num(), other.nan_to_num()):
            return True
    return False


def _ties(model: nn.Module) -> list[tuple[str, str]]:
    first: dict[int, str] = {}
    pairs = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            pairs.append((first[id(parameter)], name))
        first.setdefault(id(parameter), name)
    return pairs
