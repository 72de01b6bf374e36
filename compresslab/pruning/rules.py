"""What each operation of a model does with the labels of its operands: the rules that ``trace.py`` goes by.

A rule gets the trace, the operation's arguments by their names in ATen's schema, and the result. Most operations are of
five kinds: element-wise (the labels of all operands are joined), sums of products (what is multiplied is joined, what
is summed over is gone), statistics over an axis (its channels become one, or stay), moves of elements (simply done to
the labels as well), and windows in space. An operation without a rule freezes what it touches.

Longer than a lesson's file: it is the list of what is understood, to be read by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compresslab.pruning.labels import FIXED, Operand, aligned, shrink, varies

if TYPE_CHECKING:
    from compresslab.pruning.trace import Trace

__all__ = ["RULES"]

Arguments = dict[str, Any]
Rule = Callable[["Trace", Arguments, Any], None]
RULES: dict[str, Rule] = {}

POINTWISE = [
    "abs",
    "add",
    "addcdiv",
    "addcmul",
    "atan2",
    "bitwise_and",
    "bitwise_not",
    "bitwise_or",
    "ceil",
    "celu",
    "clamp",
    "clamp_max",
    "clamp_min",
    "copy",
    "cos",
    "div",
    "elu",
    "eq",
    "erf",
    "exp",
    "exp2",
    "expm1",
    "fill",
    "floor",
    "floor_divide",
    "fmod",
    "ge",
    "gelu",
    "gt",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "isfinite",
    "isinf",
    "isnan",
    "le",
    "leaky_relu",
    "lerp",
    "log",
    "log1p",
    "log2",
    "log_sigmoid",
    "logical_and",
    "logical_not",
    "logical_or",
    "lt",
    "masked_fill",
    "maximum",
    "minimum",
    "mish",
    "mul",
    "multiply",
    "nan_to_num",
    "ne",
    "neg",
    "pow",
    "reciprocal",
    "relu",
    "relu6",
    "remainder",
    "round",
    "rsqrt",
    "rsub",
    "selu",
    "sigmoid",
    "sign",
    "silu",
    "sin",
    "softplus",
    "softshrink",
    "softsign",
    "sqrt",
    "square",
    "sub",
    "subtract",
    "tan",
    "tanh",
    "tanhshrink",
    "threshold",
    "true_divide",
    "where",
    "xlogy",
    "zero",
    "alias",
    "alpha_dropout",
    "bernoulli",
    "clone",
    "contiguous",
    "detach",
    "dropout",
    "feature_dropout",
    "lift_fresh",
    "native_dropout",
    "to",
    "_to_copy",
    "empty_like",
    "full_like",
    "ones_like",
    "rand_like",
    "randn_like",
    "zeros_like",
]
STATISTICS = [
    "all",
    "amax",
    "amin",
    "any",
    "argmax",
    "argmin",
    "logsumexp",
    "max",
    "mean",
    "median",
    "min",
    "norm",
    "linalg_vector_norm",
    "prod",
    "std",
    "sum",
    "var",
    "var_mean",
    "std_mean",
]
ALONG = ["_log_softmax", "_softmax", "argsort", "cumprod", "cumsum", "log_softmax", "softmax", "sort", "topk"]
MOVES = [
    "_reshape_alias",
    "_unsafe_view",
    "chunk",
    "expand",
    "flatten",
    "flip",
    "movedim",
    "moveaxis",
    "narrow",
    "permute",
    "repeat",
    "repeat_interleave",
    "reshape",
    "roll",
    "select",
    "slice",
    "split",
    "split_with_sizes",
    "squeeze",
    "swapaxes",
    "t",
    "tensor_split",
    "tile",
    "transpose",
    "unbind",
    "unflatten",
    "unsafe_chunk",
    "unsafe_split",
    "unsqueeze",
    "view",
    "numpy_T",
    "matrix_H",
    "mT",
    "unfold",
    "diagonal",
]
PARTS = ("chunk", "split", "split_with_sizes", "tensor_split", "unbind", "unsafe_chunk", "unsafe_split")
AS_OTHER = ("expand_as", "reshape_as", "view_as")
SPACE = {"1d": 1, "2d": 2, "3d": 3}
WINDOWS = [f"{kind}{size}" for kind in ("avg_pool", "max_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool",
    "reflection_pad", "replication_pad", "upsample_nearest", "_upsample_nearest_exact", "_adaptive_avg_pool")
    for size in SPACE] + ["upsample_linear1d", "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d",
    "_upsample_bicubic2d_aa", "upsample_trilinear3d", "max_pool1d_with_indices", "max_pool2d_with_indices",
    "max_pool3d_with_indices", "mkldnn_max_pool2d", "fractional_max_pool2d", "grid_sampler_2d", "grid_sampler"]  # fmt: skip


def rule(*names: str) -> Callable[[Rule], Rule]:
    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return enter


def operand(trace: Trace, tensor: Tensor, axis: int | None = None, dim: int = 0) -> Operand:
    """A tensor's layers and shape; a vector can be laid along ``axis`` of ``dim`` axes."""
    layers, shape = trace.of(tensor), tensor.shape
    if axis is None:
        return layers, shape
    return [along(layer.flatten(), axis, dim) for layer in layers], [
        len(tensor) if d == axis else 1 for d in range(dim)
    ]


def along(vector: Tensor, axis: int, dim: int) -> Tensor:
    return vector.reshape([-1 if d == axis else 1 for d in range(dim)])


def tensors(*values: Any) -> list[Tensor]:
    """All tensors in arguments or results, within tuples, lists and dicts."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found += tensors(*value)
        elif isinstance(value, dict):
            found += tensors(*value.values())
    return found


def axes_of(value: int | Sequence[int] | None, dim: int) -> set[int]:
    if value is None or value == []:
        return set(range(dim))
    return {axis % max(dim, 1) for axis in ([value] if isinstance(value, int) else value)}


@rule(*POINTWISE)
def pointwise(trace: Trace, a: Arguments, out: Any) -> None:
    layers = trace.join([operand(trace, tensor) for tensor in tensors(a)])
    for result in tensors(out):
        trace.put(result, layers)


@rule(*AS_OTHER)
def as_other(trace: Trace, a: Arguments, out: Tensor) -> None:
    expand = trace.name == "expand_as"
    moved(trace, operand(trace, a["self"]), lambda x: x.expand(out.shape) if expand else x.reshape(out.shape), out)


@rule(*STATISTICS)
def statistic(trace: Trace, a: Arguments, out: Any) -> None:
    x = a["self"]
    axes = axes_of(a.get("dim"), x.dim())
    layers = over(trace, trace.of(x), axes)
    if not a.get("keepdim") or a.get("dim") is None:
        layers = [drop(layer, axes) for layer in layers]
    for result in tensors(out):
        trace.put(result, layers)


@rule(*ALONG)
def along_axis(trace: Trace, a: Arguments, out: Any) -> None:
    layers = mix(trace, trace.of(a["self"]), axes_of(a["dim"], a["self"].dim()))
    for result in tensors(out):
        trace.put(result, layers)


def mix(trace: Trace, layers: list[Tensor], axes: Iterable[int]) -> list[Tensor]:
    """Channels along these axes are computed from one another: none of them can go alone."""
    return [trace.classes.tie(layer, axes, f"{trace.name} goes over all of them") for layer in layers]


def over(trace: Trace, layers: list[Tensor], axes: set[int]) -> list[Tensor]:
    """``mix``, unless statistics may change."""
    return layers if trace.through_norms else mix(trace, layers, axes)


def drop(layer: Tensor, axes: Iterable[int]) -> Tensor:
    """The layer without these axes, after a sum over them."""
    for axis in sorted(axes, reverse=True):
        layer = layer.select(axis, 0)
    return layer


def products(trace: Trace, first: Operand, second: Operand, *, live: bool) -> list[Tensor]:
    """Layers of (..., M, N) for operands (..., M, 1, K) and (..., 1, N, K) multiplied and summed over K.

    What is summed over with a weight is consumed. Of two activations it is mixed: a scale may hang on its size.
    """
    if live:
        first, second = ((mix(trace, layers, [-1]), shape) for layers, shape in (first, second))
    layers = trace.join([first, second])
    if live:
        trace.heads += [layer.flatten() for layer in layers if not {layer.dim() - 1, layer.dim() - 2} & varies(layer)]
    layers = [trace.classes.tie(layer, [-1], f"{trace.name} sums over them") if varies(layer) - {layer.dim() - 1}
              else layer for layer in layers]  # fmt: skip
    return [drop(layer, [layer.dim() - 1]) for layer in layers if varies(layer) != {layer.dim() - 1}]


def spread(operand: Operand, axis: int) -> Operand:
    layers, shape = operand
    place = axis % (len(shape) + 1)
    return [layer.unsqueeze(place) for layer in layers], [*shape[:place], 1, *shape[place:]]


def flip(operand: Operand) -> Operand:
    layers, shape = operand
    return [layer.mT for layer in layers], [*shape[:-2], shape[-1], shape[-2]]


def matrix_product(trace: Trace, a: Tensor, b: Tensor, *more: Tensor) -> list[Tensor]:
    """Layers of a (..., M, K) times b (..., K, N), plus others."""
    if min(a.dim(), b.dim()) < 2:
        return trace.give_up([a, b, *more])
    first, second = operand(trace, a), operand(trace, b)
    trace.produce(a, first[0], -2)
    trace.produce(b, second[0], -1)
    live = trace.live(a) and trace.live(b)
    layers = products(trace, spread(first, -2), spread(flip(second), -3), live=live)
    shape = (*torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
    return trace.join([(layers, shape), *(operand(trace, tensor) for tensor in more)]) if more else layers


@rule("mm", "bmm", "matmul", "addmm", "baddbmm")
def matmul(trace: Trace, a: Arguments, out: Tensor) -> None:
    second = a.get("mat2", a.get("other", a.get("batch2")))
    first = a.get("mat1", a.get("batch1", a["self"]))
    trace.put(out, matrix_product(trace, first, second, *([] if first is a["self"] else [a["self"]])))


@rule("_grouped_mm")
def grouped_product(trace: Trace, a: Arguments, out: Tensor) -> None:
    """Rows (S, K), each times the matrix of its expert out of (E, K, N)."""
    x, weight = a["self"], a["mat2"]
    if x.dim() != 2 or weight.dim() != 3 or trace.live(weight):
        trace.put(out, trace.give_up(tensors(a)))
        return
    for layer in trace.of(weight):
        if 0 in varies(layer):
            trace.freeze(layer, "experts are told apart by number")
    matrix = [layer[0] for layer in trace.of(weight) if 0 not in varies(layer)]
    trace.produce(weight, trace.of(weight), 2)
    second = flip((matrix, weight.shape[1:]))
    trace.put(out, products(trace, spread(operand(trace, x), -2), spread(second, -3), live=False))


@rule("linear")
def linear(trace: Trace, a: Arguments, out: Tensor) -> None:
    x, weight, bias = a["input"], a["weight"], a["bias"]
    first, second = operand(trace, x), operand(trace, weight)
    trace.produce(weight, second[0], 0)
    layers = products(trace, spread(first, -2), second, live=trace.live(weight))
    trace.put(out, trace.join([(layers, out.shape), operand(trace, bias)]) if bias is not None else layers)


@rule(
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "convolution",
    "_convolution",
)
def convolution(trace: Trace, a: Arguments, out: Tensor) -> None:
    x, weight, bias, groups = a["input"], a["weight"], a["bias"], a["groups"]
    transposed = a.get("transposed", trace.name.startswith("conv_transpose"))
    at, dim = x.dim() - weight.dim() + 1, out.dim()
    rows, columns = [], []  # of the weight, as (groups, O, 1) and (groups, 1, I)
    for layer in trace.of(weight):
        if varies(layer) - {0, 1}:
            trace.freeze(layer, "it is not an axis of channels")
        elif varies(layer) == {0}:
            (columns if transposed else rows).append(layer.flatten())
        else:
            (rows if transposed else columns).append(layer.flatten())
    inputs = [layer.flatten() for layer in channels(trace, x, at)]
    trace.produce(weight, [along(row, 0, weight.dim()) for row in rows], 0)
    if groups == 1:
        first = ([v.view(1, -1) for v in inputs], (1, x.shape[at]))
        second = ([v.view(-1, 1) for v in rows] + [v.view(1, -1) for v in columns], (out.shape[at], x.shape[at]))
        layers = products(trace, first, second, live=trace.live(weight))
    else:
        layers = grouped(trace, a, inputs, rows, columns, transposed)
    layers = [along(layer.flatten(), at, dim) for layer in layers]
    if bias is not None:
        layers = trace.join([(layers, out.shape), operand(trace, bias, at, dim)])
    trace.put(out, layers)


def grouped(
    trace: Trace, a: Arguments, inputs: list[Tensor], rows: list[Tensor], columns: list[Tensor], transposed: bool
) -> list[Tensor]:
    """Either whole groups can go (depthwise: each channel is one), or the same channels of every group, which are tied."""
    tie, groups, weight = trace.classes.tie, a["groups"], a["weight"]
    ins, outs = (
        (weight.shape[0] // groups, weight.shape[1]) if transposed else (weight.shape[1], weight.shape[0] // groups)
    )
    shape = (groups, outs, ins)
    every = "the groups of a convolution have equally many"
    if transposed:  # the weight is (groups * I, O)
        w = [v.view(groups, 1, ins) for v in columns] + [v.view(1, outs, 1) for v in rows]
    else:
        w = [v.view(groups, outs, 1) for v in rows] + [v.view(1, 1, ins) for v in columns]
    x = [shrink(v.view(groups, 1, ins)) for v in inputs]
    whole = (
        varies(x[0]) == {0} if x and len(varies(x[0])) == 1 else groups > ins
    )  # as settled before, else what is finer
    axes = {1, 2} if whole else {0}
    x, w = ([tie(layer, axes, every) for layer in layers] for layers in (x, w))
    layers = trace.join([(x, (groups, 1, ins)), (w, shape)])
    layers = [tie(layer, axes, every) for layer in layers]
    return [layer[..., :1].expand(groups, outs, 1) for layer in layers if varies(layer) & {0, 1}]


def channels(trace: Trace, x: Tensor, at: int) -> list[Tensor]:
    """The layers of x that lie along one axis; those along others are frozen."""
    layers = []
    for layer in trace.of(x):
        if varies(layer) == {at}:
            layers.append(layer)
        elif at in varies(layer):
            layers.append(trace.classes.tie(layer, varies(layer) - {at}, f"{trace.name} goes over other axes of them"))
        else:
            trace.freeze(layer, f"{trace.name} does not see them as channels")
    return [layer for layer in layers if varies(layer) == {at}]


@rule("batch_norm", "native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "instance_norm",
      "cudnn_batch_norm", "miopen_batch_norm", "prelu", "_prelu_kernel")  # fmt: skip
def per_channel(trace: Trace, a: Arguments, out: Any) -> None:
    x = a.get("input", a.get("self"))
    at = min(1, x.dim() - 1)
    vectors = [a.get(name) for name in ("weight", "bias", "running_mean", "running_var")]
    vectors = [vector for vector in vectors if vector is not None]
    layers = trace.join([operand(trace, x), *(operand(trace, v.flatten() if v.dim() else v, at, x.dim()) if v is not x
                         and v.dim() == 1 else operand(trace, v) for v in vectors)])  # fmt: skip
    for result in tensors(out):
        if result.dim() == x.dim():
            trace.put(result, layers)


@rule("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm")
def layer_norm(trace: Trace, a: Arguments, out: Any) -> None:
    x = a["input"]
    axes = set(range(x.dim() - len(a["normalized_shape"]), x.dim()))
    layers = over(trace, trace.of(x), axes)
    vectors = [operand(trace, a[name]) for name in ("weight", "bias") if a.get(name) is not None]
    layers = trace.join([(layers, x.shape), *vectors])
    for result in tensors(out):
        if result.shape == x.shape:
            trace.put(result, layers)


@rule("group_norm", "native_group_norm")
def group_norm(trace: Trace, a: Arguments, out: Any) -> None:
    """Each group has statistics of its own, so whole groups can go."""
    x, groups = a["input"], a.get("num_groups", a.get("group"))
    layers = []
    for layer in channels(trace, x, 1):
        layer = layer.view(groups, -1)
        layer = trace.classes.tie(layer, [0 if trace.through_norms else 1], "group_norm takes statistics over them")
        layers.append(along(layer.expand(groups, x.shape[1] // groups).flatten(), 1, x.dim()))
    vectors = [operand(trace, a[name], 1, x.dim()) for name in ("weight", "bias") if a.get(name) is not None]
    layers = trace.join([(layers, x.shape), *vectors])
    for result in tensors(out):
        if result.shape == x.shape:
            trace.put(result, layers)


@rule("scaled_dot_product_attention", "_scaled_dot_product_attention_math", "_scaled_dot_product_flash_attention",
      "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_efficient_attention",
      "_scaled_dot_product_cudnn_attention")  # fmt: skip
def attention(trace: Trace, a: Arguments, out: Any) -> None:
    """softmax(q k^T + mask) v: q (..., H, L, E), k (..., H, S, E), v (..., H, S, V)."""
    q, k, v = (operand(trace, a[name]) for name in ("query", "key", "value"))
    if len(q[1]) > 2 and q[1][-3] != k[1][-3]:
        k, v = (repeated(part, q[1][-3] // part[1][-3]) for part in (k, v))
    scores = products(trace, spread(q, -2), spread(k, -3), live=True)
    shape = (*q[1][:-1], k[1][-2])
    mask = a.get("attn_mask", a.get("attn_bias"))
    if mask is not None:
        scores = trace.join([(scores, shape), operand(trace, mask)])
    scores = mix(trace, scores, [len(shape) - 1])
    trace.put(tensors(out)[0], products(trace, spread((scores, shape), -2), spread(flip(v), -3), live=True))


def repeated(part: Operand, times: int) -> Operand:
    """Each head of keys or values, for all the heads of queries that share it."""
    layers, shape = part
    layers = [layer.repeat_interleave(times, -3) if layer.shape[-3] > 1 else layer for layer in layers]
    return layers, [*shape[:-3], shape[-3] * times, *shape[-2:]]


@rule("embedding")
def embedding(trace: Trace, a: Arguments, out: Tensor) -> None:
    layers = []
    for layer in trace.of(a["weight"]):
        if varies(layer) == {1}:
            layers.append(aligned(layer.flatten(), out.dim()))
            trace.produce(a["weight"], [layer], 1)
        else:
            trace.freeze(layer, "its rows are looked up by number")
    trace.put(out, layers)


@rule(*MOVES)
def move(trace: Trace, a: Arguments, out: Any) -> None:
    x = a["self"]
    if trace.name in PARTS:
        for layer in trace.of(x):
            parts = trace.again(layer.expand(x.shape)) if a["dim"] % x.dim() in varies(layer) else []
            for part in parts:
                if part.shape == parts[0].shape:  # chunks are as many whatever the width: equal parts stay equal
                    trace.classes.union(part, parts[0])
    moved(trace, operand(trace, x), trace.again, out)


def moved(trace: Trace, x: Operand, change: Callable[[Tensor], Any], out: Any) -> None:
    """What was done to x is done to its labels."""
    results = tensors(out)
    found: list[list[Tensor]] = [[] for _ in results]
    for layer in x[0]:
        for place, labels in enumerate(tensors(change(layer.expand(x[1])))):
            labels = shrink(labels)
            if len(varies(labels)) > len(varies(layer)):
                trace.grids.append(labels)
            found[place].append(labels)
    for result, layers in zip(results, found, strict=True):
        trace.put(result, layers)


@rule("glu")
def gated(trace: Trace, a: Arguments, out: Tensor) -> None:
    """One half times the sigmoid of the other."""
    halves = [layer.expand(a["self"].shape).chunk(2, a["dim"]) for layer in trace.of(a["self"])]
    parts = [([shrink(part) for part in side], out.shape) for side in zip(*halves, strict=True)]
    trace.put(out, trace.join(parts))


@rule("index", "index_select", "gather", "take_along_dim", "pixel_shuffle", "pixel_unshuffle")
def select_at(trace: Trace, a: Arguments, out: Tensor) -> None:
    """Elements picked by number: the axis that the numbers count along stays as it is."""
    x = a["self"]
    if trace.name == "index":
        axes = {axis for axis, index in enumerate(a["indices"]) if index is not None}
    else:
        axes = axes_of(a["dim"], x.dim()) if "dim" in a else {x.dim() - 3}
    kept = [trace.classes.tie(layer, axes, f"{trace.name} picks from them by number") for layer in trace.of(x)]
    moved(trace, ([layer for layer in kept if not varies(layer) & axes], x.shape), trace.again, out)


@rule("index_add", "index_copy", "index_put", "scatter", "scatter_add", "scatter_reduce", "index_fill", "slice_scatter",
      "select_scatter")  # fmt: skip
def scatter(trace: Trace, a: Arguments, out: Tensor) -> None:
    """Elements put at places counted along some axes; along the others it is element-wise."""
    x, source = a["self"], a.get("source", a.get("src", a.get("values")))
    axes = {i for i, v in enumerate(a["indices"]) if v is not None} if "indices" in a else axes_of(a["dim"], x.dim())
    plain = isinstance(source, Tensor) and source.dim() == x.dim() and trace.name != "index_put"
    if trace.name == "index_put" and axes == {0}:
        plain = source.dim() == x.dim() or source.numel() == 1
    if not plain:
        trace.put(out, trace.give_up(tensors(a)))
        return
    operands = []
    for tensor in (x, source):
        layers = mix(trace, trace.of(tensor), axes)
        shape = [1 if axis in axes else size for axis, size in enumerate(tensor.shape)]
        operands.append(([layer for layer in layers if not varies(layer) & axes], shape))
    trace.put(out, trace.join(operands))


@rule("cat", "concat", "stack")
def concatenate(trace: Trace, a: Arguments, out: Tensor) -> None:
    parts = [operand(trace, tensor) for tensor in a["tensors"]]
    axis = a["dim"] % out.dim()
    if trace.name == "stack":
        parts = [spread(part, axis) for part in parts]
    parts = [part for part in parts if len(part[1]) == out.dim()]  # cat takes empty tensors of shape (0,)
    across = trace.join(
        [([layer for layer in layers if axis not in varies(layer)], [1 if d == axis else n for d, n in enumerate(shape)])
         for layers, shape in parts]
    )  # fmt: skip
    pieces, frame = [], [1] * out.dim()
    for layers, shape in parts:
        labels = next((layer for layer in layers if axis in varies(layer)), None)
        labels = torch.full([1] * out.dim(), FIXED) if labels is None else labels
        frame = [max(sizes) for sizes in zip(frame, labels.shape, strict=True)]
        pieces.append((labels, shape[axis]))
    if any((labels != FIXED).any() for labels, _ in pieces):
        frame = [-1 if d == axis else size for d, size in enumerate(frame)]
        pieces = [labels.expand([size if d == axis else frame[d] for d in range(out.dim())]) for labels, size in pieces]
        across.append(torch.cat(pieces, axis))
    trace.put(out, across)


@rule("pad", "constant_pad_nd")
def pad(trace: Trace, a: Arguments, out: Tensor) -> None:
    amounts = a["pad"]
    axes = {out.dim() - 1 - place // 2 for place, amount in enumerate(amounts) if amount}
    layers = []
    for layer in trace.of(a["self"]):
        if varies(layer) & axes and a.get("mode", "constant") != "constant":
            layer = trace.classes.tie(layer, axes, f"{trace.name} goes over them")
        if varies(layer) & axes:
            wide = layer.expand([n if d in axes else layer.shape[d] for d, n in enumerate(a["self"].shape)])
            only = [n if out.dim() - 1 - place // 2 in varies(layer) else 0 for place, n in enumerate(amounts)]
            layer = torch.constant_pad_nd(wide, only, FIXED)
        layers.append(layer)
    trace.put(out, layers)


@rule(*WINDOWS)
def windows(trace: Trace, a: Arguments, out: Any) -> None:
    x = a.get("self", a.get("input"))
    space = next(n for size, n in SPACE.items() if size in trace.name.replace("_2d", "2d") + "2d")
    layers = trace.of(x)
    layers = [
        trace.classes.tie(layer, range(x.dim() - space, x.dim()), f"{trace.name} goes over them") for layer in layers
    ]
    layers = [layer for layer in layers if not varies(layer) & set(range(x.dim() - space, x.dim()))]
    for result in tensors(out):
        trace.put(result, layers)


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(trace: Trace, a: Arguments, out: tuple[Tensor, ...]) -> None:
    """A unit of the hidden state is a row of each gate, and a column of the weights that read the state."""
    if not isinstance(a.get("params"), (list, tuple)) or "batch_first" not in a:
        for result in tensors(out):
            trace.put(result, trace.give_up(tensors(a)))
        return
    directions = 1 + a["bidirectional"]
    x, per_layer = operand(trace, a["input"]), len(a["params"]) // (a["num_layers"] * directions)
    hidden, state = out[0].shape[-1] // directions, None
    for start in range(0, len(a["params"]), per_layer):
        into, own, *biases = a["params"][start : start + per_layer]
        if own.shape[1] != hidden or len(biases) not in (0, 2):
            return trace.put(out[0], trace.give_up(tensors(a)))
        rows, columns = [], []
        for weight in (into, own):
            for layer in trace.of(weight):
                (rows if varies(layer) == {0} else columns if weight is own else []).append(layer.flatten())
        rows += [layer.flatten() for bias in biases for layer in trace.of(bias)]
        if len(rows) != 2 + len(biases) or len(columns) != 1:
            return trace.put(out[0], trace.give_up(tensors(a)))
        trace.produce(into, [rows[0].view(-1, 1)], 0)
        into_columns = ([layer for layer in trace.of(into) if varies(layer) == {1}], (1, into.shape[1]))
        products(trace, spread(x, -2), into_columns, live=False)
        if state is not None:
            trace.classes.union(columns[0], state)  # all of its layers and both directions have the same size
        state = columns[0]
        for row in rows:  # (gates * hidden,)
            trace.classes.union(row.view(-1, hidden), state)
        if start // per_layer % directions == directions - 1:  # the next layer reads both directions, side by side
            both = trace.classes.find(state).repeat(directions)
            x = ([along(both, len(x[1]) - 1, len(x[1]))], (*x[1][:-1], directions * hidden))
    trace.put(out[0], x[0])
    for last in out[1:]:
        trace.put(last, [aligned(trace.classes.find(state), last.dim())])
