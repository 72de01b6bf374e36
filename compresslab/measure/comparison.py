"""One table and one figure for every lesson: the same candidates, the same data, everything that matters.

Size of the saved file, parameters, MACs, latency timed in turns, quality with its interval, and against the reference
on the same samples: the difference, its p-value and how often both say the same. Classifiers are judged by accuracy,
language models (labels (N, L)) by perplexity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compresslab.measure.answers import Answers, collect_answers
from compresslab.measure.estimates import Estimate
from compresslab.measure.macs import count_macs
from compresslab.measure.paired import agreement
from compresslab.measure.plots import plot_comparison
from compresslab.measure.report import write_html
from compresslab.measure.size import measure_size
from compresslab.measure.speedup import Speedups, compare_latency
from compresslab.measure.tables import markdown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["Candidate", "Comparison", "compare"]


@dataclass(frozen=True)
class Candidate:
    """Something that is not an nn.Module, such as an exported model in its runtime, with what it cannot tell itself.

    Example:
        >>> Candidate(lambda inputs: inputs.flatten(1), size_bytes=0).macs is None
        True
    """

    run: Callable[[Any], Tensor]  # inputs of a batch, as tensors, to logits
    size_bytes: int  # of all its files: ``size_of(path)``
    parameters: int | None = None
    macs: float | None = None  # for one sample


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """What ``compare`` measured. ``table`` has it all; printed, it shows what is the same on every machine."""

    table: pd.DataFrame
    reference: str
    metric: str  # "accuracy" or "perplexity"
    threads: int
    batch_size: int  # of the latency
    samples: int  # that the quality was measured on: for language models sequences

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Draw quality with its interval against size; the area of a marker is the latency."""
        return plot_comparison(self.table, self.metric, ax=ax)

    def to_markdown(self) -> str:
        """The part of the table that does not depend on the machine; after ≈ stands what rounding may move."""
        return markdown(self.table, self.metric)

    def to_html(self, path: str | Path, *, title: str = "Model comparison") -> Path:
        """Write one page, whole in itself: table, figure and how it was measured. No scripts, nothing fetched."""
        setting = {
            "Reference": self.reference,
            "Quality": f"{self.metric} on {self.samples:,} samples, intervals of 95 %",
            "Latency": f"median of interleaved calls at batch size {self.batch_size}, threads: {self.threads}",
        }
        return write_html(path, self.table, self.metric, title=title, setting=setting)

    def __repr__(self) -> str:
        return self.to_markdown()

    _repr_markdown_ = to_markdown  # what a notebook shows


def compare(
    candidates: Mapping[str, nn.Module | Candidate],
    data: Any,
    *,
    reference: str | None = None,
    batch_size: int = 256,
    latency_inputs: Any = None,
    threads: int = 1,
    generator: torch.Generator | None = None,
) -> Comparison:
    """Measure several models on the same data, against one of them.

    Args:
        candidates: name to module, or to ``Candidate`` for what runs elsewhere.
        data: pairs (inputs, labels) that can be gone through several times in the same order (a list, an unshuffled
            loader), or an object with ``.batches(batch_size)``. Labels (N,) are classes, (N, L) are tokens.
        reference: the name that the others are compared with; None is the first.
        batch_size: of ``data.batches``; changes no result.
        latency_inputs: what is timed and what MACs are counted on; None is the first sample of the data, alone.
        threads: CPU threads of torch while timing.
        generator: of the bootstrap and of the order of timing; None starts from seed 0.

    Returns:
        A comparison whose table has a row for each name, with the columns size_bytes, compression (reference / own
        size), parameters, macs (one sample), latency_s, latency_p90_s, speedup, speedup_low, speedup_high, throughput
        (samples/s), accuracy or perplexity with _low and _high, difference with _low and _high (own less reference),
        p_value and agreement (share of equal predictions).

    Raises:
        TypeError: a candidate is neither a module nor a Candidate, or ``data`` can be read only once.
        ValueError: no candidates, ``reference`` is none of them, or the labels differ between two passes over the
            data (it is shuffled).

    Example:
        >>> models = {"first": nn.Linear(4, 2), "bare": nn.Linear(4, 2, bias=False)}
        >>> comparison = compare(models, [(torch.eye(4), torch.tensor([0, 1, 0, 1]))])
        >>> comparison.table["size_bytes"].tolist(), comparison.table["macs"].tolist()
        ([168, 104], [8.0, 8.0])
    """
    import pandas as pd

    names = list(candidates)
    if not names:
        raise ValueError("candidates is empty; give at least one, as {name: model}")
    for name, candidate in candidates.items():
        if not isinstance(candidate, nn.Module | Candidate):
            raise TypeError(f"candidates[{name!r}] must be a module or a Candidate, got {type(candidate).__name__}")
    reference = names[0] if reference is None else reference
    if reference not in candidates:
        raise ValueError(f"reference={reference!r} must be one of the candidates {names}")
    batches = data.batches(batch_size) if hasattr(data, "batches") else data
    if iter(batches) is batches:
        raise TypeError(f"data is a {type(batches).__name__} that can be read only once; pass list(data)")
    runs = {name: given.run if isinstance(given, Candidate) else given for name, given in candidates.items()}
    answers = {name: collect_answers(run, batches) for name, run in runs.items()}
    if latency_inputs is None:
        latency_inputs = _first_sample(next(iter(batches))[0])
    speedups = compare_latency(runs, latency_inputs, reference=reference, threads=threads, generator=generator)
    rows = {
        name: _cost(given, latency_inputs)
        | _speed(speedups, name)
        | _quality(answers[name], answers[reference], generator)
        for name, given in candidates.items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("name").astype({"parameters": "Int64"})
    table.insert(1, "compression", table.loc[reference, "size_bytes"] / table["size_bytes"])
    base = answers[reference]
    return Comparison(table, reference, base.metric, threads, speedups.latency[reference].batch_size, len(base.labels))


def _first_sample(inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return {key: _first_sample(value) for key, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(map(_first_sample, inputs))
    return inputs[:1] if isinstance(inputs, Tensor) and inputs.dim() else inputs


def _cost(candidate: nn.Module | Candidate, inputs: Any) -> dict[str, float | None]:
    if isinstance(candidate, Candidate):
        return {key: getattr(candidate, key) for key in ("size_bytes", "parameters", "macs")}
    size = measure_size(candidate)
    macs = count_macs(candidate, inputs).per_sample
    return {"size_bytes": size.size_bytes, "parameters": size.parameters, "macs": macs}


def _speed(speedups: Speedups, name: str) -> dict[str, float]:
    latency = speedups.latency[name]
    times = {"latency_s": latency.median_s, "latency_p90_s": latency.p90_s}
    return times | _spread("speedup", speedups.speedup[name]) | {"throughput": latency.throughput}


def _quality(answers: Answers, base: Answers, generator: torch.Generator | None) -> dict[str, float]:
    paired = answers.against(base, generator=generator)
    same = agreement(base.predicted, answers.predicted).value
    columns = _spread(answers.metric, answers.quality(generator=generator)) | _spread("difference", paired.difference)
    return columns | {"p_value": paired.p_value, "agreement": same}


def _spread(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
