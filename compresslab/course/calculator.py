"""The compression calculator: what a compressed linear layer takes, by formulas, and how fast it could be at best.

    bytes      = values + scales + indices
    intensity  = 2 MACs / (bytes of the weights + bytes of what goes in and out)
    time       >= max(2 MACs / peak, bytes / bandwidth)                                        (the roofline)

It says nothing about accuracy: no formula knows that. The lessons measured it, and the advisor quotes them.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from compresslab.course.display import show_widget

if TYPE_CHECKING:
    import ipywidgets

__all__ = [
    "DEVICES",
    "INDICES",
    "Cost",
    "Device",
    "calculate",
    "calculator",
    "calculator_widget",
    "explain_cost",
    "measured_device",
]

INDICES = ("none", "bitmask", "csr", "coo", "2:4")


@dataclass(frozen=True)
class Device:
    """Limits of a processor: from its data sheet, dense, or measured."""

    name: str
    source: str
    bandwidth: float  # bytes a second
    peak: dict[int, float]  # operations a second by the width of the numbers, bits


DEVICES = {
    "a100": Device("NVIDIA A100 40 GB PCIe", "data sheet, 2021", 1.555e12, {32: 19.5e12, 16: 312e12, 8: 624e12}),
    "h100": Device("NVIDIA H100 SXM", "data sheet, 2023", 3.35e12, {32: 67e12, 16: 989e12, 8: 1979e12}),
    "orin-nano": Device("NVIDIA Jetson Orin Nano 8 GB", "data sheet, 2023", 68e9, {32: 1.28e12, 16: 10e12, 8: 20e12}),
    "laptop": Device("4 cores at 3 GHz with AVX2", "2 FMA units of 8 floats a core; 2 channels DDR4-3200", 51.2e9, {32: 384e9, 16: 384e9, 8: 768e9}),
}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """What one layer takes."""

    weight_bytes: int  # values, scales and indices
    bits_per_weight: float  # of the layer as it was: of out x in
    macs: int  # that a dense kernel does, for the whole batch
    moved_bytes: int  # weights once, inputs and outputs once
    intensity: float  # operations (2 per MAC) a byte
    bound_s: float  # no kernel on the device is faster
    limit: str  # "memory" or "compute"


def calculate(
    out_features: int,
    in_features: int,
    *,
    batch: int = 1,
    bits: int = 32,
    group_size: int | None = None,
    integer_compute: bool = False,
    sparsity: float = 0.0,
    index: str = "none",
    rank: int | None = None,
    ratio: float = 0.0,
    device: str | Device = "laptop",
) -> Cost:
    """Bytes, operations and a bound on the time of a linear layer, after what is asked for.

    Args:
        out_features, in_features: of the layer as it was.
        batch: samples, or tokens, at the same time.
        bits: of a stored weight, 1..32; below 16 a 16-bit scale comes with each row or group.
        group_size: consecutive inputs that share a scale; None is a whole row.
        integer_compute: activations are 8 bits too, and so are the products.
        sparsity: fraction of zeros, 0..1; a dense kernel multiplies them all the same.
        index: how it is stored where the others are: ``INDICES``. ``"2:4"`` needs a sparsity of 0.5.
        rank: two factors of this rank instead of the matrix.
        ratio: fraction of the inputs and of the outputs that is removed, 0..1.
        device: a name of ``DEVICES``, or limits of your own.

    Raises:
        ValueError: an option is out of range; the message says which and what would do.

    Example:
        >>> cost = calculate(4096, 4096, bits=4, group_size=128)
        >>> cost.weight_bytes, cost.bits_per_weight, cost.limit
        (8650752, 4.125, 'memory')
    """
    _check(out_features, in_features, batch, bits, group_size, sparsity, index, rank, ratio)
    limits = DEVICES[device] if isinstance(device, str) else device
    rows, columns = max(1, round(out_features * (1 - ratio))), max(1, round(in_features * (1 - ratio)))
    shapes = [(rows, columns)] if rank is None else [(rank, columns), (rows, rank)]
    weight_bytes = sum(_stored(*shape, bits, group_size, sparsity, index) for shape in shapes)
    macs = batch * sum(out * into for out, into in shapes)
    width = 1 if integer_compute else 4 if bits > 16 else 2  # bytes of an activation
    moved = weight_bytes + batch * width * sum(out + into for out, into in shapes)
    peak = limits.peak[8 if integer_compute else 32 if bits > 16 else 16]
    compute, memory = 2 * macs / peak, moved / limits.bandwidth
    limit = "compute" if compute > memory else "memory"
    per_weight = 8 * weight_bytes / (out_features * in_features)
    return Cost(weight_bytes, per_weight, macs, moved, 2 * macs / moved, max(compute, memory), limit)


def explain_cost(out_features: int, in_features: int, **options: object) -> str:
    """``calculate`` in words, beside the same layer in 32-bit floats.

    Example:
        >>> print(explain_cost(512, 512, batch=1, bits=8))
        weights   263,168 bytes, 8.03 bits for each of 262,144 (FP32: 1,048,576 bytes, 3.98 times as many)
        work      262,144 MACs, 2.0 operations a byte
        at best   0.00518 ms on 4 cores at 3 GHz with AVX2, limited by memory; FP32 0.0206 ms, so at most 3.97 times as fast
    """
    cost = calculate(out_features, in_features, **options)
    kept = {name: options[name] for name in ("batch", "device") if name in options}
    whole = calculate(out_features, in_features, **kept)
    device = options.get("device", "laptop")
    name = DEVICES[device].name if isinstance(device, str) else device.name
    return "\n".join(
        (
            f"weights   {cost.weight_bytes:,} bytes, {cost.bits_per_weight:.2f} bits for each of {out_features * in_features:,} "
            f"(FP32: {whole.weight_bytes:,} bytes, {whole.weight_bytes / cost.weight_bytes:.2f} times as many)",
            f"work      {cost.macs:,} MACs, {cost.intensity:.1f} operations a byte",
            f"at best   {1e3 * cost.bound_s:.3g} ms on {name}, limited by {cost.limit}; FP32 {1e3 * whole.bound_s:.3g} ms, "
            f"so at most {whole.bound_s / cost.bound_s:.2f} times as fast",
        )
    )


def _stored(rows: int, columns: int, bits: int, group_size: int | None, sparsity: float, index: str) -> int:
    """Bytes of a matrix: values, scales, indices."""
    count = rows * columns
    kept = count if index == "none" else count - round(sparsity * count)
    scales = 0 if bits >= 16 else 2 * rows * (1 if group_size is None else math.ceil(columns / group_size))
    places = {
        "none": 0,
        "bitmask": math.ceil(count / 8),
        "2:4": math.ceil(count / 8),  # two bits for each of the two values of four
        "csr": kept * (2 if columns <= 2**15 else 4) + (2 if kept < 2**15 else 4) * (rows + 1),
        "coo": kept * (4 if max(rows, columns) <= 2**15 else 8),
    }[index]
    return math.ceil(kept * bits / 8) + scales + places


def _check(
    out_features: int,
    in_features: int,
    batch: int,
    bits: int,
    group_size: int | None,
    sparsity: float,
    index: str,
    rank: int | None,
    ratio: float,
) -> None:
    """Refuse what is out of range."""
    if min(out_features, in_features, batch) < 1:
        raise ValueError(f"out_features={out_features}, in_features={in_features}, batch={batch} must be at least 1")
    if not 1 <= bits <= 32:
        raise ValueError(f"bits={bits} must be in 1..32; try 4 or 8")
    if group_size is not None and group_size < 1:
        raise ValueError(f"group_size={group_size} must be at least 1, or None for a whole row; try 128")
    if not 0 <= sparsity <= 1 or not 0 <= ratio < 1:
        raise ValueError(f"sparsity={sparsity} must be in 0..1 and ratio={ratio} from 0 to below 1; try 0.5")
    if index not in INDICES:
        raise ValueError(f"index={index!r} must be one of {', '.join(INDICES)}")
    if index == "2:4" and sparsity != 0.5:
        raise ValueError(f"sparsity={sparsity} must be 0.5 for index='2:4', which keeps two of every four")
    if rank is not None and not 1 <= rank <= min(out_features, in_features):
        raise ValueError(f"rank={rank} must be in 1..{min(out_features, in_features)}, the smaller side of the layer")


def calculator(**options: object) -> None:
    """Show the calculator: fields for a layer and what is done to it, and the text below."""
    text = explain_cost(**({"out_features": 4096, "in_features": 4096} | options))
    show_widget(calculator_widget(**options), text)


def calculator_widget(**options: object) -> ipywidgets.Widget:
    """The calculator as a widget; what does not go together is said in its text."""
    import ipywidgets as widgets

    set_ = {
        "out_features": 4096, "in_features": 4096, "batch": 1, "bits": 32, "group_size": None, "integer_compute": False,
        "sparsity": 0.0, "index": "none", "rank": None, "ratio": 0.0, "device": "laptop",
    } | options  # fmt: skip
    style, layout = {"description_width": "9em"}, widgets.Layout(width="20em")

    def whole(name: str, label: str, low: int, high: int) -> ipywidgets.Widget:
        return widgets.BoundedIntText(
            value=set_[name] or 0, min=low, max=high, description=label, style=style, layout=layout
        )

    def share(name: str, label: str) -> ipywidgets.Widget:
        return widgets.BoundedFloatText(
            value=set_[name], min=0, max=0.99, step=0.05, description=label, style=style, layout=layout
        )

    def menu(name: str, label: str, values: dict | tuple) -> ipywidgets.Widget:
        return widgets.Dropdown(options=values, value=set_[name], description=label, style=style, layout=layout)

    fields = {
        "out_features": whole("out_features", "outputs", 1, 10**6),
        "in_features": whole("in_features", "inputs", 1, 10**6),
        "batch": whole("batch", "batch", 1, 10**6),
        "bits": menu("bits", "bits of a weight", (32, 16, 8, 6, 5, 4, 3, 2, 1)),
        "group_size": whole("group_size", "group (0: a row)", 0, 10**6),
        "integer_compute": menu("integer_compute", "computes in", {"floats": False, "8-bit integers": True}),
        "sparsity": share("sparsity", "zeros"),
        "index": menu("index", "stored as", {"dense": "none", **{name: name for name in INDICES[1:]}}),
        "rank": whole("rank", "rank (0: whole)", 0, 10**6),
        "ratio": share("ratio", "channels removed"),
        "device": menu("device", "device", {device.name: name for name, device in DEVICES.items()}),
    }
    text = widgets.HTML()

    def changed(_: dict | None = None) -> None:
        chosen = {name: field.value for name, field in fields.items()}
        chosen |= {name: chosen[name] or None for name in ("group_size", "rank")}
        try:
            words = explain_cost(**chosen)
        except ValueError as error:
            words = str(error)
        text.value = f'<pre role="status" aria-live="polite">{html.escape(words)}</pre>'

    for field in fields.values():
        field.observe(changed, names="value")
    changed()
    return widgets.VBox(
        [widgets.GridBox(list(fields.values()), layout=widgets.Layout(grid_template_columns="21em 21em")), text]
    )


def measured_device(name: str = "this machine") -> Device:
    """The limits of the machine this runs on, measured in a second (32-bit floats; narrower ones are not measured)."""
    from compresslab.measure import measure_machine

    machine = measure_machine()
    limits = Device(name, "measured", machine.bytes_per_s, {})
    return replace(limits, peak=dict.fromkeys((32, 16, 8), machine.flops_per_s))
