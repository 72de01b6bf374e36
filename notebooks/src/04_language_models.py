# %% [markdown]
# # 04 Quantizing language models: why do transformers need their own methods?
#
# **Time:** 90 minutes with the exercises, 50 without. **Runs in:** two to three minutes, without a network or a GPU.
#
# **Before you start** you should have done lesson 02: grids, groups, calibration, and why rounding weights one by one is not the best. What a transformer is, section 1 says in a paragraph.
#
# **Afterwards you can**
# - find outlier channels, and move them where they do no harm (SmoothQuant, AWQ);
# - round a weight column by column so that later columns make up for earlier ones (GPTQ);
# - count what a 4-bit model really takes, its cache of keys and values included;
# - say when fewer bits make a language model write faster.
#
# A language model writes one token at a time, and for each it reads all of its weights. So here the bytes of the weights *are* the speed. And nobody trains such a model again on a laptop: whatever we do has to work with a few pages of text and no gradient.

# %% tags=["setup"]
import argparse
import copy
import dataclasses
import inspect
import logging
import math
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import onnxruntime as ort
import pandas as pd
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.quantization.neural_compressor import weight_only
from safetensors.torch import save_file
from torch import nn

from compresslab import measure
from compresslab import quantization as q
from compresslab.course import check, quiz, reveal, show, start
from compresslab.quantization.gptq import gptq
from compresslab.workbench import ao, checkpoints, data
from compresslab.workbench.hf import random_transformer

_ = start(threads=1)
logging.disable(logging.WARNING)

# %% [markdown]
# ## Three guesses, before anything is measured

# %%
guess_three = None  # our model hesitates among 3.0 letters (its perplexity); with 3-bit weights, among how many?
guess_outlier = None  # and with 8-bit activations, three of every 96 of which are 60 times too loud?
guess_cache = None  # percent: of what it keeps about earlier letters (its cache), how much do 4 bits save?

# %% [markdown]
# ## 1. A small GPT, and how unsure it is
#
# Its *tokens*, the pieces of text it reads and writes, are single bytes. An **embedding** turns each into 96 numbers, the channels. Four **blocks** work on them, each in two parts with a **layer norm** in front, which brings the channels to a common size: *attention*, where each token compares a *query* with the *keys* of the tokens before it and takes a mix of their *values*, and a small network of two linear layers (an MLP). At the end a linear layer, the *head*, gives every possible next byte its chance. It has 0.5 million weights, trained on the language reference that comes with Python. Here is a piece of its writing.

# %% tags=["nbval-ignore-output"]
splits = data.load("python-docs")
model = checkpoints.load("gpt")
tokens = splits.encode("The for statement").long()[None]
generator = torch.Generator().manual_seed(1)
with torch.no_grad():
    for _ in range(110):
        chances = (model(tokens[:, -128:])[:, -1] / 0.6).softmax(-1)
        tokens = torch.cat([tokens, chances.multinomial(1, generator=generator)], dim=1)
print(splits.decode(tokens[0]))

# %% [markdown]
# Not wise, but it has seen Python's manual. The measure is **perplexity**: the exponential of the mean loss. It says among how many equally likely tokens the model hesitates; 256 would be no idea at all.

# %%
held_out = list(splits.val.batches(32))  # windows of 128 bytes, never seen in training
calibration = list(splits.train.batches(32))[:2]  # 8,192 bytes to look at, without labels


def perplexity(candidate):
    return measure.perplexity(measure.predict_batches(candidate, held_out), resamples=50).value


float_ppl = perplexity(model)
weights = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2)
print(f"{weights:,} weights, perplexity ≈ {float_ppl:.3f}")
assert 2.8 < float_ppl < 3.2

# %% [markdown]
# ## 2. Rounding to nearest, group by group
#
# Weights only, asymmetric, one scale and one zero point for each group of 32. The embedding, which is also the head, and the table of positions stay as they are. *Look at:* how suddenly it goes wrong.

# %%
options = {"group_size": 32, "symmetric": False, "skip": ["embed", "pos_embed"]}
rows = {}
for bits in (8, 4, 3, 2):
    result = q.quantize_weights(model, bits=bits, **options)
    rows[bits] = [result.bits_per_weight, perplexity(result.model)]
for bits, (stored, ppl) in rows.items():
    print(f"{bits} bits: {stored:.2f} bits per weight with scales, perplexity ≈ {ppl:.2f}")
reveal(guess_three, rows[3][1], what="perplexity with 3-bit weights")
assert rows[8][1] < float_ppl + 0.01
assert rows[2][1] > 2 * float_ppl

# %% [markdown]
# Eight bits are free, as everywhere. At 4 bits there is a small loss, at 3 a visible one, at 2 the model is gone. And "4 bits" are 5.1: a float32 scale and a 4-bit zero point for every 32 weights.
#
# ### Trap: "4 bits, so 8 times smaller"

# %% tags=["trap"]
result = q.quantize_weights(model, bits=4, **options)
whole = measure.measure_size(model).size_bytes
print(
    f"FP32 {whole:,} bytes, with 4-bit layers {result.nbytes:,} bytes: {whole / result.nbytes:.1f} times smaller, not 8"
)
kept = sum(dict(model.named_parameters())[name].nbytes for name in ("embed.weight", "pos_embed.weight"))
print(f"of these, embeddings in FP32: {kept:,} bytes")
assert whole / result.nbytes < 5

# %% [markdown]
# ## 3. GPTQ: later columns make up for earlier ones
#
# A layer computes $w \cdot x$. Two inputs that rise and fall together, and two weights of 0.4 that must become whole numbers. Rounded one by one, both become 0, and the output is always 0. But 0 and 1 together come close: the second makes up for the first.

# %%
generator = torch.Generator().manual_seed(0)
common = torch.randn(1000, 1, generator=generator)
x = common + 0.5 * torch.randn(1000, 2, generator=generator)  # two inputs that go together
hessian = x.T @ x / len(x)
w = torch.tensor([0.4, 0.4])
moved = w[1] + (w[0] - 0) * hessian[0, 1] / hessian[1, 1]
print("mean products of the inputs:", [[round(v, 2) for v in row] for row in hessian.tolist()])
print(f"0.4 rounds to 0; the second weight moves to {moved:.2f} and rounds to {moved.round():.0f}")
for name, rounded in (("one by one", [0.0, 0.0]), ("GPTQ", [0.0, 1.0])):
    print(f"{name:<10} mean squared error {((x @ (w - torch.tensor(rounded))) ** 2).mean():.2f}")

# %% [markdown]
# The matrix of mean products $H = \mathbb{E}[x x^T]$ is all that is needed. (Up to a factor it holds the second derivatives of the squared error by the weights, and such a matrix is called a *Hessian*.) **GPTQ** (Frantar and others, 2022) does this for every column in turn: round it, then move all columns still to come by what $H^{-1}$ says. Little text may leave $H$ without an inverse, so a hundredth of its mean diagonal is added first (*damping*). In a few lines, for a weight of any size:


# %%
def round_by_columns(weight, hessian, grid):
    inverse = (hessian + 0.01 * hessian.diag().mean() * torch.eye(len(hessian))).inverse()
    factor = torch.linalg.cholesky(inverse, upper=True)  # row j: how the columns after j answer for column j
    weight, rounded = weight.clone(), torch.zeros_like(weight)
    for j in range(weight.shape[1]):
        column = weight[:, j] / grid.scale
        rounded[:, j] = grid.scale * column.round().clamp(grid.quant_min, grid.quant_max)
        error = (weight[:, j] - rounded[:, j]) / factor[j, j]
        weight[:, j + 1 :] -= error[:, None] * factor[j, j + 1 :]
    return rounded


# %%
layer = model.blocks[0].mlp.fc1
seen = []
handle = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].flatten(0, 1)))
with torch.no_grad():
    [model(inputs) for inputs, _ in calibration]
handle.remove()
x = torch.cat(seen)  # (tokens, 96)
hessian, weight = (x.T @ x / len(x)).double(), layer.weight.detach().double()
grid = q.quantize(weight, bits=3, axis=0).grid
ours = round_by_columns(weight, hessian, grid)

# %%
plain = {"group_size": None, "act_order": False, "method": "minmax", "sweeps": 0, "symmetric": True}
packaged = gptq(weight, hessian, bits=3, **plain)


def output_error(rounded):
    difference = weight - rounded
    return (difference @ hessian * difference).sum().item()


# %%
nearest = output_error(grid.quantize(weight).dequantize())
best = gptq(weight, hessian, bits=3, group_size=None, symmetric=True)
errors = {"by columns": output_error(ours), "the package, as the paper": packaged.error, "its defaults": best.error}
print("output error, nearest = 1:", ", ".join(f"{name} ≈ {error / nearest:.3f}" for name, error in errors.items()))
same = (packaged.dequantize() - ours).abs().amax(1) < 1e-9
assert same.double().mean() > 0.9
assert best.error < packaged.error < nearest

# %% [markdown]
# What counts is the error of the layer's *output* on the text that was seen. The few lines and the package agree. (In a few rows the package keeps rounding to nearest, where that happened to be better: it promises never to be worse.) The defaults add three things: columns with strong inputs come first, while many others can still make up for them (*act-order*); scales of least error; and, at the end, two more rounds over all columns.
#
# Layer by layer now, each seeing the inputs that the layers quantized before it really give.

# %%
rows = {}
for bits in (4, 3, 2):
    result = q.gptq_model(model, calibration, bits=bits, **options)
    shares = [layer.error / layer.nearest_error for layer in result.layers.values()]
    rows[bits] = [perplexity(q.quantize_weights(model, bits=bits, **options).model), perplexity(result.model)]
    assert max(shares) <= 1  # never worse than rounding, in any layer
    print(f"{bits} bits: nearest ≈ {rows[bits][0]:.2f}, GPTQ ≈ {rows[bits][1]:.2f}", end="; ")
    print(f"error of the layers, nearest = 1: ≈ {min(shares):.2f} to ≈ {max(shares):.2f}")
gptq_ppl = {bits: row[1] for bits, row in rows.items()}
assert all(after < before for before, after in rows.values())

# %% [markdown]
# ### Trap: too little text, or the wrong one
#
# $H$ is estimated from text. Three draws of 8,192 bytes of the manual, one window of it, and source code instead of prose:

# %% tags=["trap"]
code = splits.encode(inspect.getsource(argparse))[: 64 * 128 + 1].long()
texts = {f"manual, draw {seed}": list(splits.train.batches(32))[10 + 2 * seed : 12 + 2 * seed] for seed in range(3)}
texts["128 bytes"] = [(calibration[0][0][:1], None)]
texts["source code"] = [(code[:-1].reshape(64, 128), None)]
by_text = {name: perplexity(q.gptq_model(model, text, bits=3, **options).model) for name, text in texts.items()}
for name, ppl in by_text.items():
    print(f"{name:<15} ≈ {ppl:.3f}")
draws = [ppl for name, ppl in by_text.items() if "draw" in name]
assert max(draws) - min(draws) < 0.1
assert by_text["128 bytes"] > max(draws)

# %% [markdown]
# Which part of the manual hardly matters, and here even source code will do. How much does: one window of 128 bytes says too little about a matrix of 96 or 384 columns. On large models, whose domains differ more, the kind of text matters too; measure it on yours.

# %% [markdown]
# ## 4. Outliers: a few channels that are too loud
#
# Large language models grow **outlier channels**: a few of thousands are up to a hundred times as loud as the rest, in every token (Dettmers and others, 2022). Does our small one?


# %%
def loudness(candidate, name):
    """The largest magnitude of each input channel of a layer."""
    peaks = []
    layer = candidate.get_submodule(name)
    handle = layer.register_forward_pre_hook(lambda m, inputs: peaks.append(inputs[0].abs().amax((0, 1))))
    with torch.no_grad():
        [candidate(inputs) for inputs, _ in calibration]
    handle.remove()
    return torch.stack(peaks).amax(0)


# %%
names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "head"]
spread = {name: (loudness(model, name).max() / loudness(model, name).median()).item() for name in names}
print(f"loudest channel over the median, all layers: ≈ {min(spread.values()):.1f} to ≈ {max(spread.values()):.1f}")
assert max(spread.values()) < 10

# %% [markdown]
# It does not. Half a million weights are too few. So we plant some, honestly: three channels behind every layer norm are made 60 times louder, and the weights that read them 60 times smaller. **The function is the same**; only the numbers inside have become hard to round, as they are in large models.

# %%
joints = q.find_joints(model, calibration[0][0])
large = copy.deepcopy(model)
for joint in joints.found:
    if "norm" in joint.source:
        scales = torch.ones(96)
        scales[torch.tensor([7, 40, 71])] = 1 / 60
        q.move_scales(large, joint, scales)
print(len(joints.found), "places where a scale can move, such as", joints.found[0].source, "->", joints.found[0].layers)
print(f"perplexity before ≈ {float_ppl:.3f}, after ≈ {perplexity(large):.3f}")
assert abs(perplexity(large) - float_ppl) < 1e-3

# %% tags=["slide"]
fig, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True)
for ax, candidate, title in zip(axes, (model, large), ("our model", "with planted outliers"), strict=True):
    ax.bar(range(96), loudness(candidate, "blocks.1.attn.qkv"), width=1.0)
    ax.set(xlabel="channel", title=title, yscale="log")
axes[0].set(ylabel="largest |activation|")
show(fig, alt="Left, 96 bars of about equal height but one; right, three more bars stand out, sixty times as high")

# %% [markdown]
# Now 8-bit weights *and* activations (dynamic quantization of lesson 02, one scale for the whole activation or one for each token). The third line is what you guessed:

# %%
w8a8 = {}
for name, candidate in (("our model", model), ("planted", large)):
    for per_token in (False, True):
        kind = f"{name}, a scale per {'token' if per_token else 'tensor'}"
        w8a8[kind] = perplexity(q.quantize_dynamic(candidate, per_token=per_token, skip=["head"]).model)
print("\n".join(f"{kind:<32} ≈ {ppl:.3f}" for kind, ppl in w8a8.items()))
reveal(guess_outlier, w8a8["planted, a scale per tensor"], what="perplexity in 8 bits, planted outliers")
assert w8a8["our model, a scale per tensor"] < float_ppl + 0.05
assert w8a8["planted, a scale per tensor"] > float_ppl + 1

# %% [markdown]
# Eight bits, and the model is ruined: three loud channels take the whole range, and the others are left with a handful of levels. A scale for each channel would help, and cannot be had: the integers are summed *over* the channels, so one scale must come out in front of the sum.
#
# **SmoothQuant** (Xiao and others, 2022) does what we did, backwards: divide a loud channel by $s_j$ in the norm before, multiply its column of weights. How much? A compromise between the activations $x_j$ of the channel and the weights $W_j$ that read it, by an exponent $\alpha$ between 0 and 1:
#
# $$s_j = \max|x_j|^{\alpha} \, / \, \max|W_j|^{1 - \alpha}$$

# %%
curve = {}
for alpha in (0.0, 0.25, 0.5, 0.75, 1.0):
    smooth = q.smooth_model(large, calibration, alpha=alpha).model
    curve[alpha] = perplexity(q.quantize_dynamic(smooth, per_token=False, skip=["head"]).model)
print(", ".join(f"alpha {alpha}: ≈ {ppl:.3f}" for alpha, ppl in curve.items()))
assert min(curve.values()) < float_ppl + 0.05

# %% [markdown]
# All of the damage is undone, at no cost while it runs. (Here the planted weights are small where the channels are loud, so every alpha does. Where loud channels meet ordinary weights, as in real models, alpha = 0 looks at the weights alone and leaves the outliers where they are; the paper takes the middle.)
#
# ## 5. AWQ: loud inputs need exact weights
#
# For weight-only quantization the same move helps for another reason. A weight that meets a loud input does more damage when it is rounded. **AWQ** (Lin and others, 2023) multiplies such columns before rounding, which makes their rounding error relatively smaller, and divides the input. The factor is the loudness of the channel to some power; AWQ tries which power does best, then how far to clip. We compare it with what we had, and with two methods that look at the weights alone and need no text, HQQ and NF4 (more on them below the figure).

# %%
texts = [list(splits.train.batches(32))[10 + 2 * seed : 12 + 2 * seed] for seed in range(3)]
methods = {
    "nearest": lambda source, bits, text: q.quantize_weights(source, bits=bits, group_size=32, symmetric=False),
    "HQQ": lambda source, bits, text: q.hqq_model(source, bits=bits, group_size=32),
    "AWQ": lambda source, bits, text: q.awq_model(source, text, bits=bits, group_size=32),
    "GPTQ": lambda source, bits, text: q.gptq_model(source, text, bits=bits, group_size=32),
}
rows = []

# %%
for name, method in methods.items():
    for bits in (8, 4, 3, 2):
        results = [method(model, bits, text) for text in (texts if name in ("AWQ", "GPTQ") else texts[:1])]
        found = [perplexity(result.model) for result in results]
        rows.append([name, bits, results[0].bits_per_weight, sum(found) / len(found), min(found), max(found)])
nf4 = q.nf4_model(model)
rows.append(["NF4", 4, nf4.bits_per_weight, *[perplexity(nf4.model)] * 3])

# %%
columns = ["method", "bits", "stored", "mean", "lowest", "highest"]
compared = pd.DataFrame(rows, columns=columns).set_index(["method", "bits"])
for (name, bits), row in compared.iterrows():
    spread = f"  [≈ {row.lowest:.3f}, ≈ {row.highest:.3f}]" if row.lowest < row.highest else ""
    print(f"{name:<8} {bits} bits ({row.stored:5.2f} stored)  ≈ {row['mean']:6.3f}{spread}")

# %% tags=["slide"]
fig, ax = plt.subplots(figsize=(7.5, 3.8))
for i, (name, part) in enumerate(compared.groupby("method", sort=False)):
    bars = [part["mean"] - part["lowest"], part["highest"] - part["mean"]]
    ax.errorbar(part["stored"], part["mean"], yerr=bars, fmt="o^sDv"[i] + "--", capsize=3, label=name)
ax.axhline(float_ppl, color="black", lw=0.8, label="FP32")
ax.set(xlabel="bits per weight, scales and zero points counted", ylabel="perplexity", yscale="log")
ax.set(title="Five ways to round a GPT, at 8, 4, 3 and 2 bits")
ax.set_yticks([3, 4, 6, 10, 15, 20], ["3", "4", "6", "10", "15", "20"])
ax.minorticks_off()
ax.legend()
show(fig, alt="Perplexity over stored bits, log scale: flat from 8 to 4 bits, up at 3, GPTQ least; lost at 2")

# %%
eight, three, two = (compared.xs(bits, level="bits") for bits in (8, 3, 2))
assert (eight["mean"] < float_ppl + 0.01).all()
assert three.loc["GPTQ", "highest"] < three.loc["AWQ", "lowest"] < three.loc["nearest", "mean"]
assert compared.loc[("NF4", 4), "mean"] < three["mean"].min()
assert two["mean"].min() > 2 * float_ppl

# %% [markdown]
# Here everything is rounded, the embedding too (so the numbers are worse than in section 3), and the calibration text is drawn three times: the bars, mostly smaller than their markers, show how little that matters. Eight bits: nobody needs a method. At 4 and 3 GPTQ leads. At 3 AWQ helps, and so does **HQQ**, which needs no data at all: it fits zero points to the weights alone. Those are floats, so it stores the most. **NF4** places its 16 levels where a bell curve has them (lesson 01) and stores its scales in 8 bits: 4.13 bits per weight, as many as the 3-bit methods take here, whose float32 scales for every 32 weights are dear. At that size it wins. At 2 bits no method saves a model with so few weights to spare.
#
# And with planted outliers, at 4 bits:

# %%
planted = {name: perplexity(method(large, 4, texts[0]).model) for name, method in methods.items()}
planted["NF4"] = perplexity(q.nf4_model(large).model)
print("\n".join(f"{name:<8} planted ≈ {ppl:.3f}" for name, ppl in planted.items()))
assert planted["AWQ"] < planted["nearest"] - 0.1
assert planted["AWQ"] < planted["GPTQ"]
assert planted["HQQ"] > planted["nearest"]

# %% [markdown]
# Now AWQ shows what it is for: as if the outliers were not there. And HQQ, blind to the activations, is worse than plain rounding: it cannot know that small columns meet loud inputs. Which method is best is a property of the model, so measure it on yours.

# %% [markdown]
# ## 6. The cache of keys and values
#
# To write a token, attention needs the keys and values of all tokens before it. They are kept, and at long contexts this **cache** is larger than the weights. In large models keys have loud channels that stay loud, so keys get a scale for each channel; values get one for each token (Liu and others, 2024). We write token by token, on the first 64 windows only, so the perplexity is not the one of section 1.

# %%
windows, targets = (torch.cat([pair[i] for pair in held_out[:2]]) for i in (0, 1))


def decode(bits):
    """Perplexity token by token, and bytes of the cache for each token."""
    caches = [q.KVCache(bits=bits, residual=0) for _ in model.blocks]
    with torch.no_grad():
        logits = torch.cat([model(windows[:, i : i + 1], caches) for i in range(128)], dim=1)
    nbytes = sum(cache.nbytes for cache in caches) / len(windows) / 128
    return measure.perplexity(measure.Predictions(logits, targets), resamples=50).value, nbytes


# %%
cached = {bits: decode(bits) for bits in (None, 8, 4, 2)}
for bits, (ppl, nbytes) in cached.items():
    print(f"{'float' if bits is None else f'{bits} bits':<6} ≈ {ppl:.3f}   {nbytes:,.0f} bytes for each token")
saved = 100 * (1 - cached[4][1] / cached[None][1])
reveal(guess_cache, saved, what="saved by a 4-bit cache", unit="%")
assert cached[4][0] < cached[None][0] + 0.02

# %% [markdown]
# Four bits for the cache cost nothing that we can see. The first number is float32; a float16 cache would be half of it.
#
# ## 7. Does it write faster?
#
# One token is a matrix times a *vector*: each weight is read from memory for two operations. So bytes decide, and 4 bits may be several times faster. A prompt of many tokens uses each weight many times, and arithmetic decides. ONNX Runtime has a 4-bit kernel, `MatMulNBits`; here it multiplies by a 2048 x 2048 matrix.


# %%
def one_matmul(size=2048):
    """An ONNX model of one matrix product."""
    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(size, size)).astype(np.float32), "w")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["tokens", size]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight])
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


def session(proto):
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


# %%
quantizer = MatMulNBitsQuantizer(one_matmul(), block_size=32, is_symmetric=True, accuracy_level=4)
quantizer.process()
runs = {"FP32": session(one_matmul()), "4 bits": session(quantizer.model.model)}
bytes_of = {"FP32": one_matmul().ByteSize(), "4 bits": quantizer.model.model.ByteSize()}
print({name: f"{size:,} bytes" for name, size in bytes_of.items()})
print("operators of the 4-bit model:", {node.op_type for node in quantizer.model.model.graph.node})
assert bytes_of["4 bits"] < bytes_of["FP32"] / 6

# %% tags=["nbval-ignore-output"]
points = {}
for count in (1, 8, 64):
    x = np.random.default_rng(1).normal(size=(count, 2048)).astype(np.float32)
    calls = {name: lambda run=run, x=x: run.run(None, {"x": x}) for name, run in runs.items()}
    timed = measure.compare_latency(calls, rounds=20)
    for name, size in bytes_of.items():
        moved, seconds = size + 2 * x.nbytes, timed.latency[name].median_s
        points[f"{name}, {count} at once"] = measure.Work(count * 2048**2, moved, seconds)
    milliseconds = ", ".join(f"{name} {1e3 * timed.latency[name].median_s:.2f} ms" for name in runs)
    print(f"{count:>3} tokens at once: {milliseconds}; 4 bits {timed.speedup['4 bits'].value:.1f}x as fast")

# %% tags=["slide"]
x = np.ones((512, 2048), dtype=np.float32)
timed = measure.compare_latency({"FP32": lambda: runs["FP32"].run(None, {"x": x})}, rounds=5)
product_s = timed.latency["FP32"].median_s
roofs = dataclasses.replace(measure.measure_machine(), flops_per_s=2 * len(x) * 2048**2 / product_s)
ax = measure.plot_roofline(roofs, points)
show(ax, alt="Roofline: one token lies far left near the sloping roof, 4 bits right of it and higher; 64 near the flat")
intensity = {name: round(work.intensity, 1) for name, work in points.items()}
print("FLOPs for each byte:", intensity)
assert intensity["FP32, 1 at once"] < 1 < intensity["4 bits, 1 at once"] < 4

# %% [markdown]
# The fewer tokens at once, the more the bytes count. In the picture, the roofline of lesson 00: for a single token FP32 does half a FLOP for each byte, far left, where only bandwidth counts (a point above the sloping roof got its bytes from a cache). Four bits move the point to the right and so up. With 64 tokens all points are right of the ridge, where bytes no longer matter; what can still lift 4 bits above the flat roof of FP32 is that this kernel multiplies 8-bit integers. A GPU has a roof of the same shape, at larger numbers.
#
# What became of the tools that tutorials name? AutoGPTQ and AutoAWQ are archived; GPTQModel, llm-compressor and torchao live on, all made for GPUs.

# %% [markdown]
# ### Trap: GPTQ by name
#
# A library can have GPTQ (section 3) wrong and look right: models come out, perplexity is fair. One test finds it. We make a layer whose inputs go together, with one loud column of weights (30 times as large), early or late. The error of its outputs, divided by that of rounding to nearest, must be well below 1. *ONNX Runtime* (1.31) has a GPTQ, and so has *torchao* (0.18; it demands a GPU, but needs none, so we take the demand out of its source). *Look at:* the four lines that the last cell prints; the cells before it only bring three programs to one form.


# %% tags=["trap"]
def layer_with_a_loud_column(place):
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(4096, 128, generator=generator) @ torch.randn(128, 1024, generator=generator) / 128**0.5
    x = common + 0.3 * torch.randn(4096, 1024, generator=generator)
    weight = torch.randn(64, 1024, generator=generator) / 32
    weight[:, place] *= 30
    return weight, x.T @ x / len(x)


# %%
source = inspect.getsource(ao.gptq.gptq_quantize)
for gpu_only in ("torch.cuda.synchronize()", 'assert device.type == "cuda", "GPTQ only supports CUDA currently"'):
    source = source.replace(gpu_only, "pass")  # all that ties it to a GPU
exec(source, theirs := dict(vars(ao.gptq)))
config = ao.gptq.GPTQConfig(step="convert", base_config=ao.Int8WeightOnlyConfig())

# %%
programs = {  # each gives weights again; copies, since some change what they are given
    "ours, 8 bits": lambda w, h: gptq(w, h, bits=8, group_size=None, symmetric=True).dequantize(),
    "torchao, 8 bits": lambda w, h: theirs["gptq_quantize"](h.clone(), w.clone(), config).dequantize(),
    "ours, 4 bits": lambda w, h: gptq(w, h, bits=4, group_size=32).dequantize(),
    "ONNX Runtime, 4 bits": lambda w, h: torch.from_numpy(weight_only.gptq(w.T.numpy().copy(), h.numpy().copy())).T,
}
grids = {"8 bits": {"bits": 8, "axis": 0}, "4 bits": {"bits": 4, "symmetric": False, "group_size": 32}}
shares = {}

# %%
for name, program in programs.items():
    for place in (100, 700):
        w, h = layer_with_a_loud_column(place)
        plain = q.quantize(w, **grids[name.split(", ")[1]]).dequantize()
        lost, lost_plain = (((w - other) @ h * (w - other)).sum() for other in (program(w, h).float(), plain))
        shares[name, place] = (lost / lost_plain).item()
    print(f"{name:<21} loud column 100: ≈ {shares[name, 100]:6.3f}   column 700: ≈ {shares[name, 700]:6.3f}")
assert max(share for (name, _), share in shares.items() if "ours" in name) < 0.3
assert abs(shares["ONNX Runtime, 4 bits", 100] - 1) < 1e-3 and shares["torchao, 8 bits", 700] > 10

# %% [markdown]
# ONNX Runtime's is rounding to nearest, to the last digit: it reads a triangular matrix the wrong way round, where it is zero, so no column ever makes up for another. torchao's is GPTQ, but takes the scale of a whole row from its first 256 columns; what is loud behind them is cut off.

# %% [markdown]
# ## 8. A layer that stays packed, and a model that does not fit
#
# All numbers so far came from simulations in floats. `PackedLinear` keeps the levels packed, in memory and in the file, and unpacks them when it runs. The outputs are the same, to the bit.

# %%
result = q.gptq_model(model, calibration, bits=4, **options)
packed = q.pack_linears(result.model, result.weights)
batch = held_out[0][0]
with torch.no_grad():
    print("same outputs:", torch.equal(packed.model(batch), result.model(batch)))
print(f"file {measure.measure_size(packed.model).size_bytes:,} bytes; packed {len(packed.packed)} layers")
reasons = set(packed.skipped.values())
print("kept in floats:", len(packed.skipped), "parameters, such as the head:", packed.skipped["head.weight"])

# %% [markdown]
# And how fast does it write? One token at a time, our whole model:


# %% tags=["nbval-ignore-output"]
def write(candidate, count=64):
    """Write tokens, each the likeliest."""
    caches, token = [q.KVCache(bits=None) for _ in candidate.blocks], torch.zeros(1, 1, dtype=torch.long)
    with torch.no_grad():
        for _ in range(count):
            token = candidate(token, caches)[:, -1:].argmax(-1)


runs = {name: lambda it=it: write(it) for name, it in (("FP32", model), ("packed, 4 bits", packed.model))}
timed = measure.compare_latency(runs, rounds=5)
for name in runs:
    print(f"{name:<15} {64 / timed.latency[name].median_s:,.0f} tokens a second")

# %% [markdown]
# Four times smaller, and *slower*. The whole model fits into a cache of the processor, so there is no memory traffic to save; what remains is the work of unpacking, at every call. Weight-only formats are fast where the model is large and a kernel unpacks in registers (section 7), and nowhere else. Measure before you promise.
#
# A model of 70 billion weights fits no laptop, but rounding needs only one block of rows at a time. `quantize_folder` reads a folder of safetensors files piece by piece and writes packed ones; interrupted, it goes on where it was. (GPTQ needs one layer at a time with its inputs; the same idea, more work.)

# %%
source, target = Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp())
tensors = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "head.weight"}
for i, part in enumerate(("blocks.0", "blocks.1", "blocks.2", "blocks.3", "")):
    shard = {name: tensors.pop(name) for name in list(tensors) if name.startswith(part)}
    save_file(shard, source / f"model-{i}.safetensors")
report = q.quantize_folder(source, target / "packed", bits=4, group_size=32)
print(f"{report.source_bytes:,} bytes in {len(report.made)} shards -> {report.nbytes:,} bytes")
again = q.quantize_folder(source, target / "packed", bits=4, group_size=32)
print("called again: made", len(again.made), "shards, found", len(again.found))

# %% [markdown]
# ## 9. The models people bring
#
# Nothing here knows the names of our GPT's layers: what shares an input, and who can take a scale, is found by trying. So the same calls work on Hugging Face's models. Here with random weights, built from configurations (nothing is downloaded); GPT-2 stores its matrices transposed, in a layer of its own kind, and is brought into shape first.


# %%
def compare(found, text, probe):
    """Decibels of the output with 3-bit weights, rounded and by GPTQ, and how many scales can move."""
    three_bits = {"bits": 3, "group_size": 32, "symmetric": False}
    nearest, solved = q.quantize_weights(found, **three_bits), q.gptq_model(found, text, **three_bits)
    with torch.no_grad():
        right, *others = (one(probe)[0] for one in (found, nearest.model, solved.model))
    return [measure.sqnr_db(right, other) for other in others], len(q.smooth_model(found, text).scales)


# %%
tokens = torch.randint(0, 64, (32, 64), generator=torch.Generator().manual_seed(0))
for name in ("llama", "qwen2", "opt", "gpt2"):
    found = random_transformer(name)
    found = q.use_linear_layers(found).model if name == "gpt2" else found
    (nearest, solved), places = compare(found, [(tokens[:24], None)], tokens[24:])
    print(f"{name:<6} nearest ≈ {nearest:.1f} dB, GPTQ ≈ {solved:.1f} dB; scales can move in {places} places")
    assert solved > nearest

# %% [markdown]
# ## 10. The whole lesson in one table
#
# The test split of the text, once: other topics than before, and harder ones, also for FP32. Embeddings stay in floats. The intervals are wide because some pages are much harder than others; but every row reads the same pages, so compare rows as in lesson 00, in pairs. *Look at:* the intervals of the differences, which are far narrower.

# %%
test = list(splits.test.batches(32))
chosen = {
    "W8 nearest": q.quantize_weights(model, bits=8, **options),
    "W4 nearest": q.quantize_weights(model, bits=4, **options),
    "W4 GPTQ": q.gptq_model(model, calibration, bits=4, **options),
    "W3 nearest": q.quantize_weights(model, bits=3, **options),
    "W3 GPTQ": q.gptq_model(model, calibration, bits=3, **options),
}
finals = {"FP32": model} | {name: q.pack_linears(result.model, result.weights).model for name, result in chosen.items()}

# %%
rows, by_page = [], {}
for name, candidate in finals.items():
    answers = list(measure.predict_batches(candidate, test))
    by_page[name] = torch.cat([answer.nll.mean(-1) for answer in answers])
    found = measure.perplexity(answers, resamples=200)
    size = measure.measure_size(candidate)
    rows.append([size.size_bytes, found.value, found.low, found.high])
    print(f"{name:<11} {size.size_bytes:>9,} bytes   ≈ {found.value:.3f} [≈ {found.low:.3f}, ≈ {found.high:.3f}]")
columns = ["size_bytes", "perplexity", "perplexity_low", "perplexity_high"]
summary = pd.DataFrame(rows, index=list(finals), columns=columns)
final = summary["perplexity"]

# %%
perplexity_of = lambda losses: losses.double().mean().exp().item()  # noqa: E731
for name in list(finals)[1:]:
    pair = measure.paired_bootstrap(by_page["FP32"], by_page[name], statistic=perplexity_of).difference
    print(f"{name:<11} on the same pages ≈ {pair.value:+.3f} [≈ {pair.low:+.3f}, ≈ {pair.high:+.3f}]")
    assert abs(pair.value - final[name] + final["FP32"]) < 1e-3 and (name == "W8 nearest" or pair.low > 0)

# %% tags=["slide"]
ax = measure.plot_comparison(summary, "perplexity")
ax.set(title="What GPTQ buys at the same size")
show(ax, alt="Six points with error bars: at 3 bits GPTQ lies well below rounding to nearest, at 4 bits close to FP32")

# %% tags=["headline", "slide"]
print(
    f"perplexity of FP32 ≈ {final['FP32']:.3f}; 4 bits GPTQ ≈ {final['W4 GPTQ']:.3f}; 3 bits nearest "
    f"≈ {final['W3 nearest']:.3f}, GPTQ ≈ {final['W3 GPTQ']:.3f}; planted outliers W8A8 "
    f"≈ {w8a8['planted, a scale per tensor']:.1f}, smoothed ≈ {min(curve.values()):.3f}"
)
assert final["FP32"] < final["W4 GPTQ"] < final["W3 GPTQ"] < final["W3 nearest"]

# %% [markdown]
# ## Exercises
#
# ### 04.1 What a language model takes
# *10 minutes, difficulty 1 of 3.* Write `model_bytes(parameters, bits, group_size)`: bytes of all weights when each group has a 16-bit scale and a zero point of `bits` bits.


# %% tags=["exercise"]
def model_bytes(parameters, bits, group_size):
    return None  # replace this line


check("04.1", model_bytes)


# %% jupyter={"source_hidden": true} tags=["solution"]
def model_bytes_solution(parameters, bits, group_size):
    return parameters * (bits + (16 + bits) / group_size) / 8


check("04.1", model_bytes_solution, record=False)

# %% [markdown]
# ### 04.2 Two columns of GPTQ
# *20 minutes, difficulty 3 of 3.* Write `two_columns(w, hessian)` for a row of two weights and their 2 x 2 matrix of mean products: round the first to a whole number, move the second by what the first lost, round it. Return both as a tensor.
#
# <details><summary>Hint 1</summary>With e = w[0] - round(w[0]), which change of w[1] makes the mean squared output error least? Set its derivative to zero.</details>
# <details><summary>Hint 2</summary>The error is H00 e² + 2 H01 e d + H11 d², where d is what is left of the second. Solve for d.</details>


# %% tags=["exercise"]
def two_columns(w, hessian):
    return None  # replace this line


check("04.2", two_columns)


# %% jupyter={"source_hidden": true} tags=["solution"]
def two_columns_solution(w, hessian):
    first = w[0].round()
    second = (w[1] + (w[0] - first) * hessian[0, 1] / hessian[1, 1]).round()
    return torch.stack([first, second])


check("04.2", two_columns_solution, record=False)

# %% [markdown]
# ### 04.3 A scale that moves from one layer to the next
# *15 minutes, difficulty 2 of 3.* A norm multiplies by `gamma` and adds `beta`; a Linear layer with `weight` (out, in) follows. Write `move(gamma, beta, weight, s)`: the three tensors of the same function, with the activations between them divided by `s`.
#
# <details><summary>Hint</summary>What comes out of the norm is gamma * x + beta: both have to be divided.</details>


# %% tags=["exercise"]
def move(gamma, beta, weight, s):
    return None  # replace this line


check("04.3", move)


# %% jupyter={"source_hidden": true} tags=["solution"]
def move_solution(gamma, beta, weight, s):
    return gamma / s, beta / s, weight * s


check("04.3", move_solution, record=False)

# %% [markdown]
# ### 04.4 Perplexity
# *5 minutes, difficulty 1 of 3.* Write `perplexity_of(log_probabilities)` for the natural logarithms of the probabilities that the model gave to the tokens that really came.


# %% tags=["exercise"]
def perplexity_of(log_probabilities):
    return None  # replace this line


check("04.4", perplexity_of)


# %% jupyter={"source_hidden": true} tags=["solution"]
def perplexity_of_solution(log_probabilities):
    return math.exp(-log_probabilities.mean())


check("04.4", perplexity_of_solution, record=False)

# %% [markdown]
# ### 04.5 How fast can it write?
# *10 minutes, difficulty 2 of 3.* Write `tokens_per_second(weight_bytes, cache_bytes_per_token, context, bandwidth)`: the most tokens a second when all weights and the whole cache are read from memory for each token.
#
# <details><summary>Hint</summary>How many bytes are read for one token? How long does that take?</details>


# %% tags=["exercise"]
def tokens_per_second(weight_bytes, cache_bytes_per_token, context, bandwidth):
    return None  # replace this line


check("04.5", tokens_per_second)


# %% jupyter={"source_hidden": true} tags=["solution"]
def tokens_per_second_solution(weight_bytes, cache_bytes_per_token, context, bandwidth):
    return bandwidth / (weight_bytes + cache_bytes_per_token * context)


check("04.5", tokens_per_second_solution, record=False)

# %% [markdown]
# ## Quiz

# %% tags=["quiz"]
quiz("04")

# %% [markdown]
# ## Summary
#
# - Transformers have loud channels; a scale can move them from activations into weights and back, and the function stays.
# - **SmoothQuant** moves them so that 8-bit activations work, **AWQ** so that important weights are rounded well.
# - **GPTQ** needs only the mean products of a layer's inputs, and lets later columns make up for earlier ones.
# - Count scales, zero points, embeddings and the cache. "4 bits" is rarely 4.
# - Fewer bytes make single tokens faster where a kernel unpacks them on the way, prompts much less.
#
# ## Sources
#
# - Frantar and others, *GPTQ*, 2022, arXiv:2210.17323
# - Lin and others, *AWQ*, 2023, arXiv:2306.00978
# - Xiao and others, *SmoothQuant*, 2022, arXiv:2211.10438
# - Dettmers and others, *LLM.int8()*, 2022, arXiv:2208.07339 (outlier channels); *QLoRA*, 2023, arXiv:2305.14314 (NF4)
# - Badri and Shaji, *Half-quadratic quantization*, 2023 (HQQ)
# - Liu and others, *KIVI: a tuning-free asymmetric 2-bit quantization for KV cache*, 2024, arXiv:2402.02750
#
# ## Next
#
# Lesson 05 takes weights away instead of shortening them.

# %%
lesson_done = True
