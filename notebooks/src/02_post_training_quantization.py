# %% [markdown]
# # 02 Post-training quantization: how few bits can a trained model live with, without training?
#
# **Time:** 90 minutes with the exercises, 50 without. **Runs in:** one to two minutes, without a network or a GPU.
#
# **Before you start** you should have done lessons 00 and 01: an accuracy has an interval, logits have a signal-to-noise ratio in decibels, and a few numbers may share a scale.
#
# **Afterwards you can**
# - lay a grid of integers over any tensor, and say what it costs and what it loses;
# - choose between weight-only, dynamic and static quantization, and calibrate the last one;
# - compute a layer with integers alone, as a phone does;
# - go below 8 bits: better rounding, and bits where they are needed.
#
# A float can be anywhere. An integer has 256 places, or 16, or 4. This lesson moves a trained network onto such a grid: no labels, no gradient, at most a few hundred unlabelled images.

# %% tags=["setup"]
import logging
import math
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import nn

from compresslab import export as e
from compresslab import measure
from compresslab import quantization as q
from compresslab.course import check, quiz, reveal, show, show_source, start
from compresslab.quantization.adaround import adaround
from compresslab.quantization.integer_only import integer_only
from compresslab.workbench import ao, checkpoints, data
from compresslab.workbench.vision import torchvision

_ = start(threads=1)
logging.disable(logging.WARNING)  # the tools that follow warn of things that do not concern us here
warnings.filterwarnings("ignore", category=FutureWarning)

# %% [markdown]
# ## Three guesses, before anything is measured

# %%
guess_bits = None  # bits: with a scale for each channel, at how many bits does rounding cost more than 5 points?
guess_images = None  # how many images show the ranges of the activations as well (within 1 dB) as a thousand do?
guess_speed = None  # with integer kernels at batch size 1: how many times as fast as FP32?

# %% [markdown]
# ## 1. A grid over the real line
#
# Four bits name 16 levels. We lay them over the range of some numbers, from the smallest to the largest: 15 steps. The level that stands for 0.0 is the **zero point**.

# %%
x = torch.tensor([-1.0, -0.3, 0.0, 0.6, 2.0])
scale = (x.max() - x.min()) / 15
zero_point = (-x.min() / scale).round()
levels = ((x / scale).round() + zero_point).clamp(0, 15)
print("scale", round(scale.item(), 3), " zero point", zero_point.item(), " levels", levels.tolist())
print("back ", [round(value, 3) for value in ((levels - zero_point) * scale).tolist()])

# %% [markdown]
# Three things to see. Nothing is off by more than half a step (0.1). Zero comes back as exactly zero: this matters, since padding and ReLU make many zeros. And the zero point is an integer: here 1.0 / 0.2 is 5 as it stands; where it is not whole, it is rounded, and the range moves by up to half a step.
#
# This is **asymmetric** quantization. The **symmetric** kind puts level 0 at 0.0 and uses as much of both sides: simpler arithmetic, and half of the levels unused if the numbers have one sign. *Look at:* where the two grids spend their levels.

# %% tags=["slide"]
fig, ax = plt.subplots(figsize=(8, 2.2))
for row, symmetric in enumerate((False, True)):
    grid = q.choose_grid(-1.0, 2.0, bits=4, symmetric=symmetric)
    places = (torch.arange(grid.quant_min, grid.quant_max + 1) - grid.zero_point) * grid.scale
    ax.plot(places, [row] * len(places), "|", markersize=16, color=f"C{row}")
ax.plot(x, [0.5] * len(x), "k^", label="our numbers")
ax.set(yticks=(0, 0.5, 1), yticklabels=("asymmetric", "", "symmetric"), ylim=(-0.5, 1.5), xlabel="value")
ax.legend(loc="upper left", fontsize=8)
show(
    fig,
    alt="Two rows of ticks: the asymmetric grid covers -1 to 2 in 15 steps, the symmetric one -2 to 2 in 14 wider steps",
)

# %% [markdown]
# The package does the same, for any bits from 1 to 16, and torch's own simulation agrees with it to the last bit.

# %%
quantized = q.quantize(x, bits=4, symmetric=False)
assert torch.equal(quantized.levels, levels.to(torch.uint8))
theirs = torch.fake_quantize_per_tensor_affine(x, quantized.scale, quantized.zero_point, 0, 15)
assert torch.equal(quantized.dequantize(), theirs)
show_source(q.Grid.quantize)

# %% [markdown]
# ## 2. Who shares a scale?
#
# ### Trap: one huge channel
#
# Each row of this weight makes one output channel. The first row is a hundred times larger than the second.

# %% tags=["trap"]
weight = torch.tensor([[70.0, -30.0, 52.0], [0.7, -0.3, 0.52]])
print("one scale: ", q.quantize(weight, bits=4).dequantize().tolist())
rows = q.quantize(weight, bits=4, axis=0).dequantize()
print("per channel:", [[round(value, 2) for value in row] for row in rows.tolist()])
assert q.quantize(weight, bits=4).levels[1].count_nonzero() == 0

# %% [markdown]
# With one scale the second channel is gone. With a scale for each output channel both survive, and it costs nothing at run time: the scale multiplies the finished sum. A **group** of, say, 32 neighbours is finer still, but then scales change in the middle of a sum.
#
# Scales take space. So we write real files: packed levels, scales, and everything that stayed in floating point.


# %%
def file_bytes(result):
    """Size of the saved file: integers packed into bytes, scales, and what was not quantized."""
    return measure.measure_size(q.packed_state(result.model, result.weights)).size_bytes


# %% [markdown]
# Now our trained ResNet. Its batch norms are folded into the convolutions first (section 4 says how). *Look at:* the last column, where groups buy accuracy with bytes.

# %%
splits = data.load("glyphs")
network = checkpoints.load("resnet")
model = q.fold_batchnorm(network).model
reference = measure.predict(model, splits.val.batches())


def score(candidate):
    """Logits in dB against the float model, and accuracy in percent, both on the validation split."""
    found = measure.predict(candidate, splits.val.batches())
    return measure.sqnr_db(reference.logits, found.logits), 100 * measure.accuracy(found).value


# %%
kinds = {"tensor": {"per_channel": False}, "channel": {}, "groups of 32": {"group_size": 32}}
rows = []
for bits in (8, 4, 3, 2):
    for kind, options in kinds.items():
        result = q.quantize_weights(model, bits=bits, **options)
        rows.append([bits, kind, file_bytes(result), result.bits_per_weight, *score(result.model)])
columns = ["bits", "a scale for each", "file, bytes", "bits per weight", "logits, dB", "accuracy, %"]
weights_only = pd.DataFrame(rows, columns=columns)
for _, row in weights_only.iterrows():
    print(f"{row.iloc[0]} bits, {row.iloc[1]:<12} {row.iloc[2]:>7,} bytes ({row.iloc[3]:.2f} bits per weight)", end="")
    print(f"   ≈ {row.iloc[4]:4.1f} dB   ≈ {row.iloc[5]:4.1f} %")

# %% tags=["slide"]
float_bytes, float_accuracy = measure.measure_size(model).size_bytes, 100 * measure.accuracy(reference).value
fig, ax = plt.subplots(figsize=(7, 3.6))
for kind, marker in zip(kinds, "o^s", strict=True):
    part = weights_only[weights_only["a scale for each"] == kind]
    ax.plot(part["file, bytes"] / 1e3, part["accuracy, %"], marker + "-", label=kind)
ax.axhline(float_accuracy, color="black", ls="--", label=f"FP32, {float_bytes / 1e3:.0f} kB")
ax.set(xlabel="saved file, kB", ylabel="accuracy, %", title="Weights at 2, 3, 4 and 8 bits, left to right")
ax.legend()
show(
    fig,
    alt="Three curves rise steeply up to about 100 kB and are flat beyond; groups of 32 lie to the right of the other two",
)

# %%
accuracy = weights_only.set_index(["bits", "a scale for each"])["accuracy, %"]
assert all(abs(accuracy[8, kind] - float_accuracy) < 0.5 for kind in kinds)
assert accuracy[3, "tensor"] + 5 < accuracy[3, "channel"] < accuracy[3, "groups of 32"]
first_to_fail = max(bits for bits in (8, 4, 3, 2) if accuracy[bits, "channel"] < float_accuracy - 5)
print(f"FP32 ≈ {float_accuracy:.1f} %")
reveal(guess_bits, first_to_fail, what="rounding fails (5 points, per channel) at", unit="bits")

# %% [markdown]
# Eight bits cost nothing that we can see; four bits per channel cost about a point; three bits hurt, and two are the end of rounding. (The dashed line is FP32.) Note the price of groups: "4 bits in groups of 32" is **5 bits per weight**, since each group stores a float32 scale. At equal bytes, 4 bits per channel beat 3 bits in groups. And 8 bits are not quite a quarter of 32, since scales, biases and the header are in the file too.

# %%
sizes = weights_only.set_index(["bits", "a scale for each"])["file, bytes"]
assert abs(sizes[4, "channel"] / sizes[3, "groups of 32"] - 1) < 0.05
assert accuracy[4, "channel"] > accuracy[3, "groups of 32"]
ratio = float_bytes / sizes[8, "channel"]
print(f"FP32 {float_bytes:,} bytes, 8 bits per channel {sizes[8, 'channel']:,} bytes: {ratio:.2f} times smaller, not 4")

# %% [markdown]
# ## 3. Weights only, dynamic, static
#
# So far only the *weights* were rounded, and computed with as floats. Three ways of working are in use:
#
# | | weights stored in | multiplied in | activations' ranges | needs data |
# |---|---|---|---|---|
# | **weight-only** | integers | floats | – | no |
# | **dynamic** | integers | integers | measured anew in each call | no |
# | **static** | integers | integers | fixed by calibration | some unlabelled inputs |
#
# Dynamic quantization looks like a bargain: no data, integer arithmetic. But it is made for linear layers.
#
# ### Trap: dynamic quantization that skips every convolution
#
# PyTorch's old `quantize_dynamic` (in torch.ao, deprecated: its own warning names torch 2.10 as the release that removes it) takes a network like ours, returns it, and says nothing. Ours says what it did.

# %% tags=["trap"]
dynamic = q.quantize_dynamic(model)
shares = {name: parameter.numel() for name, parameter in model.named_parameters() if name.endswith("weight")}
done = sum(shares[f"{name}.weight"] for name in dynamic.replaced)
print("replaced:", dynamic.replaced, f"= {100 * done / sum(shares.values()):.1f} % of the weights")
print("skipped: ", len(dynamic.skipped), "layers; the first:", next(iter(dynamic.skipped.items())))
assert done < 0.05 * sum(shares.values())

# %% [markdown]
# For networks of convolutions it has to be static. That takes three things: a batch norm that is out of the way, integer arithmetic, and ranges.

# %% [markdown]
# ## 4. Fold the batch norm
#
# In eval mode a batch norm subtracts the running mean $\mu$ of each channel, divides by its running deviation (variance $\sigma^2$, and a small $\epsilon$ against zero), multiplies by a learned $\gamma$ and adds a learned $\beta$. All of these are constants, so one convolution with another weight and bias can do both:
#
# $$\gamma \, \frac{(w \cdot x + b) - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta = (k w) \cdot x + \big(k (b - \mu) + \beta\big), \qquad k = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}}$$

# %%
folded = q.fold_batchnorm(network)
batch = splits.val.take(64).inputs()
difference = (network(batch) - folded.model(batch)).abs().max().item()
norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
print(f"{len(folded.folded)} of {norms} batch norms folded; logits differ by at most ≈ {difference:.0e}")
assert difference < 1e-4
assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.model.modules())

# %% [markdown]
# ## 5. Integers all the way
#
# An activation with level $a$, scale $s_a$ and zero point $z_a$ stands for $s_a (a - z_a)$, a symmetric weight with level $w$ for $s_w w$. In a sum of their products the scales come out in front, and what is left is whole numbers. Eight bits times eight bits are sixteen, and thousands of them fit into 32.

# %%
a = q.quantize(torch.tensor([0.4, 1.0, 0.1]), symmetric=False)  # activations, after a ReLU
w = q.quantize(torch.tensor([0.5, -0.2, 0.9]))
total = ((a.levels.int() - a.zero_point) * w.levels.int()).sum()
print("levels", a.levels.tolist(), "times", w.levels.tolist(), "=", total.item())
print(f"in floats again {(total * a.scale * w.scale).item():.4f}, exactly it would be {0.4 * 0.5 - 0.2 + 0.09:.4f}")

# %% [markdown]
# The sum must become an 8-bit activation $y$ of the *next* layer: multiply by $M = s_a s_w / s_y$, round, add the zero point. (Say that $y$ runs from 0 to 1; then $s_y$ is 1/255 and the zero point 0.) $M$ is a float, nearly always below 1. A chip without floats takes an integer of 31 bits and a shift to the right instead; half of what is shifted away is added first, so that the shift rounds:

# %%
m = (a.scale * w.scale / (1 / 255)).item()
multiplier, shift = q.quantize_multiplier(m)
print(f"M = {m:.6f} is {multiplier} / 2^{shift}, exactly: {multiplier / 2**shift == m}")
requantized = (total.item() * multiplier + 2 ** (shift - 1)) >> shift
print(f"{total.item()} * M = {total.item() * m:.2f}, in integers {requantized}")
assert requantized == round(total.item() * m)

# %% [markdown]
# That is all the arithmetic there is. Residual additions need one more idea: the two branches have different scales, so each is brought to the scale of the sum by a multiplier of its own.

# %% [markdown]
# ## 6. Calibration: which range?
#
# The activations are not known ahead, so we watch them on a few batches. Here is what comes out of one ReLU of our network.

# %%
seen = []
handle = model.layer2[0].relu2.register_forward_hook(lambda module, inputs, output: seen.append(output))
with torch.no_grad():
    [model(inputs) for inputs, _ in splits.train.take(256).batches(64)]
handle.remove()
activations = torch.cat(seen)
print(f"{activations.numel():,} values, ≈ {100 * (activations == 0).float().mean():.0f} % zeros")

# %% [markdown]
# A wide range clips nothing and rounds coarsely; a narrow one rounds finely and clips. Five **observers** choose differently:
#
# - *min-max*: everything that was seen; one outlier decides;
# - *moving average* of each batch's ends: outliers fade;
# - *percentile*: all but one value in ten thousand;
# - *mean squared error*: whatever loses least;
# - *entropy*: the clipped histogram that tells least apart from the original (Kullback-Leibler).
#
# Each sees one batch at a time and keeps a few numbers or a histogram, so memory does not grow. *Look at:* where they cut. A line shows the cut for 8 bits and its signal to noise, then both for 4 bits.

# %%
rows = []
for method in q.OBSERVERS:
    row = [method]
    for bits in (8, 4):
        found = q.calibrate(seen, method=method, bits=bits, symmetric=False)
        rounded = found.grid(bits=bits, symmetric=False).quantize(activations).dequantize()
        row += [found.maximum, measure.sqnr_db(activations, rounded)]
    rows.append(row)
calibrated = pd.DataFrame(rows, columns=["observer", "cut, 8 bits", "dB, 8 bits", "cut, 4 bits", "dB, 4 bits"])
for name, *values in rows:
    print(f"{name:<11}", "   ".join(f"≈ {value:5.1f}" for value in values))

# %% tags=["slide"]
fig, ax = plt.subplots(figsize=(8, 3.2))
ax.hist(activations[activations > 0].numpy(), bins=200, log=True, color="lightgray")
for i, (_, row) in enumerate(calibrated.iterrows()):
    ax.axvline(row["cut, 4 bits"], color=f"C{i}", ls=["-", "--", "-.", ":", "-"][i], lw=2, label=row["observer"])
ax.set(xlabel="activation after the ReLU", ylabel="how often (log)", title="Where five observers end a 4-bit range")
ax.legend()
show(
    fig,
    alt="A histogram that falls off to the right on a log scale, with five vertical lines; min-max stands at its very end",
)

# %%
by = calibrated.set_index("observer")
assert by.loc["mse", "dB, 4 bits"] == by["dB, 4 bits"].max()
assert by.loc["mse", "dB, 4 bits"] > by.loc["minmax", "dB, 4 bits"] + 1
assert by["cut, 8 bits"].max() == by.loc["minmax", "cut, 8 bits"]

# %% [markdown]
# With 8 bits there are levels enough, and cutting gains little. With 4 bits the mean squared error is worth several decibels over min-max. Entropy optimizes something else, and it shows.
#
# ### Trap: calibrating in train mode
#
# In train mode the batch norms update their statistics with every batch, even under `no_grad`. Here all batches show one letter, as they may where a folder is read class by class.

# %% tags=["trap"]
careless = checkpoints.load("resnet").train()
letter_a = splits.train.take((splits.train.labels == 0).nonzero().flatten()[:512]).inputs()  # class 0 is "A"
with torch.no_grad():
    [careless(part) for part in letter_a.split(16)]
lost = score(careless.eval())
print(f"nothing quantized yet, and the logits are at ≈ {lost[0]:.0f} dB, the accuracy at ≈ {lost[1]:.0f} %")
assert lost[1] < float_accuracy - 10

# %% [markdown]
# `quantize_static` calibrates in eval mode whatever the flags say, and leaves your model as it was.

# %% [markdown]
# ## 7. Static W8A8: the whole network on integers
#
# "W8A8" means weights and activations at 8 bits. The result of `quantize_static` is a simulation in floats whose integers are stored; `integer_only` runs those integers without any float between input and output.

# %%
calibration = splits.train.take(256)
static = q.quantize_static(model, calibration.batches(64))
print(f"simulation   ≈ {score(static)[0]:.1f} dB, ≈ {score(static)[1]:.1f} %")
integers = integer_only(static)
print(f"integers only ≈ {score(integers)[0]:.1f} dB, ≈ {score(integers)[1]:.1f} %")
assert abs(score(static)[1] - float_accuracy) < 0.7
assert score(static)[0] > 32

# %% [markdown]
# ## 8. How many images, and which?
#
# Accuracy cannot answer this: it hardly moves. The logits can. Three random draws for each number of images.

# %%
counts = [1, 4, 16, 64, 256, 1000]
curve = {count: [] for count in counts}
for seed in range(3):
    order = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(seed))
    for count in counts:
        sample = splits.train.take(order[:count])
        curve[count].append(score(q.quantize_static(model, sample.batches(64)))[0])
means = {count: sum(values) / 3 for count, values in curve.items()}
print(", ".join(f"{count}: ≈ {value:.1f} dB" for count, value in means.items()))

# %%
inputs, font, letter = splits.train.take(256).inputs(), splits.train.groups == 0, splits.train.labels == 0
sets = {
    "256 images": inputs,
    "one font": splits.train.take(font.nonzero().flatten()[:256]).inputs(),
    "one class": splits.train.take(letter.nonzero().flatten()[:256]).inputs(),
    "low contrast": inputs * 0.3,
    "noise": torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0)),
}
skew = {name: score(q.quantize_static(model, [(x, None)])) for name, x in sets.items()}
for name, (db, percent) in skew.items():
    print(f"{name:<13} ≈ {db:5.1f} dB   ≈ {percent:4.1f} %")

# %% tags=["slide"]
fig, ax = plt.subplots(figsize=(7.5, 3.4))
for seed in range(3):
    ax.plot(counts, [curve[count][seed] for count in counts], "o", color="C0", alpha=0.6)
ax.plot(counts, means.values(), color="C0", label="random images, mean of three draws")
for i, (name, (db, _)) in enumerate(list(skew.items())[1:]):
    ax.axhline(db, color=f"C{i + 1}", ls=["--", "-.", ":", "-"][i], label=name)
ax.set(xscale="log", xlabel="calibration images", ylabel="logits, dB", title="How many, and which?")
ax.legend(fontsize=8, loc=(0.55, 0.25))
show(
    fig,
    alt="A curve of decibels that flattens by some tens of images; calibrating on noise or low contrast lies far below",
)

# %%
enough = next(count for count in counts if means[count] > means[1000] - 1)
reveal(guess_images, enough, what="images to be within 1 dB of a thousand")
assert enough <= 64
assert means[1] < means[1000] - 1
assert skew["low contrast"][0] < skew["256 images"][0] - 6

# %% [markdown]
# "About 100 samples" is good advice, and generous for this network. *Which* images is the real question. One font does no harm, one class costs some decibels. Low contrast gives ranges that are too small, so that ordinary images are clipped; noise is no letter at all. No number of such images helps.

# %% [markdown]
# ## 9. Below eight bits: round better
#
# Rounding to nearest is best for *one weight*, and not for the *sum* that a layer computes: two weights of 0.4 steps with equal inputs should give 0.8, and both rounded to nearest give 0. Three methods do better. Two of them now, on the network that suffers most: depthwise-separable, with nine weights to a channel, one scale for each tensor, 4 bits.
#
# - **Cross-layer equalization**: divide a channel by $s$ in one layer, multiply it by $s$ in the next. The function is the same, and the channels get equal ranges.
# - **Bias correction**: rounding moves the mean of a layer's outputs. Measure by how much, take it off the bias.

# %%
separable = q.fold_batchnorm(checkpoints.load("separable")).model
target = measure.predict(separable, splits.val.batches())
equal = q.equalize(separable).model
images_512 = splits.train.take(512)
candidates = {}
for name, start_from in (("as it is", separable), ("equalized", equal)):
    rounded = q.quantize_weights(start_from, bits=4, per_channel=False).model
    candidates[name] = rounded
    candidates[f"{name}, bias corrected"] = q.correct_bias(start_from, rounded, images_512.batches(128)).model

# %%
steps = {name: 100 * measure.accuracy(measure.predict(m, splits.val.batches())).value for name, m in candidates.items()}
print(f"FP32 ≈ {100 * measure.accuracy(target).value:.1f} %")
for name, percent in steps.items():
    print(f"{name:<26} ≈ {percent:.1f} %")
assert steps["as it is"] + 10 < steps["equalized"] < steps["equalized, bias corrected"]

# %% [markdown]
# From a loss of some thirty points to one of about two, without a label and without one more bit. (A scale for each channel does much of this by brute force.)
#
# ### Up or down? AdaRound by hand
#
# The third method chooses for each weight: *up or down*. Here is a row of eight weights, in steps of its grid, and eight inputs that rise and fall together. There are $2^8 = 256$ ways to round the row, so we try all. *Look at:* how many are better than nearest.

# %%
generator = torch.Generator().manual_seed(0)
x = torch.randn(1000, 1, generator=generator) + 0.5 * torch.randn(1000, 8, generator=generator)
up = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 8)  # 1 is up: a line for each of the 256 ways


def output_errors(w):
    """Of each way to round w, and which way is nearest."""
    errors = (x @ (w.floor() + up - w).T).square().mean(0)
    return errors, (up == (w - w.floor()).round()).all(1).nonzero().item()


# %%
w = torch.tensor([1.39, 0.03, 0.14, 0.47, 0.26, 0.25, -0.66, -2.05])
errors, nearest = output_errors(w)
best = errors.argmin()
for name, way in (("nearest", nearest), ("best", best)):
    print(f"{name:<8} {(w.floor() + up[way]).int().tolist()}  output error {errors[way]:.2f}")
print("better than nearest:", (errors < errors[nearest]).sum().item(), "of 256")
assert errors[nearest] > 10 * errors[best] and (w.round() < w).sum() == 7

# %% tags=["slide"]
fig, ax = plt.subplots(figsize=(7, 2.8))
ranks = errors.argsort()
ax.plot(errors[ranks], color="gray", label="all ways, sorted")
ax.plot((ranks == nearest).nonzero(), errors[nearest], "s", markersize=9, label="each to nearest")
ax.plot(0, errors[best], "*", markersize=13, label="the best")
ax.set(xlabel="ways to round eight weights, best first", ylabel="output error, steps²", yscale="log")
ax.legend()
show(fig, alt="A curve that rises on a log scale from 0.3 to 30; rounding to nearest lies beyond its middle")

# %%
others = [output_errors(row) for row in torch.randn(200, 8, generator=generator)]
ratios = torch.stack([found[at] / found.min() for found, at in others])
wins = 100 * (ratios == 1).double().mean()
print(f"200 other rows: nearest is best in ≈ {wins:.0f} %, its error on average ≈ {ratios.mean():.1f} times the least")
assert 30 < wins < 70
assert 2 < ratios.mean() < 4

# %% [markdown]
# Nearest takes seven of the eight down, and their errors add up. Two of them, 1.39 and 0.47, taken *up* mend the sum. (We chose a bad row: in about half of 200 others nearest is best. But on average its error is about three times the least.)
#
# A real row has hundreds of weights, and nobody tries $2^{300}$ ways. So **AdaRound** makes the choice soft: each weight is its lower level plus a number $h$ between 0 and 1, and gradient descent moves the $h$. They come from free numbers $V$ by a sigmoid, stretched to run from -0.1 to 1.1 and cut, so that $h$ can really arrive at 0 and 1:
#
# $$h(V) = \mathrm{clip}\big(1.2\,\sigma(V) - 0.1,\ 0,\ 1\big), \qquad \text{loss} = \text{output error} + \lambda \sum \big(1 - |2h - 1|^{\beta}\big)$$
#
# The last term is a price for every undecided $h$. A high $\beta$ moves only those near an end; it falls from 20 to 2, and then all must choose. *Look at:* which weights end on the other side (solid).


# %%
def soft(v):
    return (1.2 * v.sigmoid() - 0.1).clamp(0, 1)


fraction = w - w.floor()
v = ((fraction + 0.1) / (1.1 - fraction)).log().requires_grad_()  # then h starts at the weight as it is
print("h at the start:", [round(value, 2) for value in soft(v).tolist()])

# %%
adam, path = torch.optim.Adam([v], lr=0.02), []
for step in range(1000):
    h, beta = soft(v), 20 - 18 * step / 1000
    loss = (x @ (w.floor() + h - w)).square().mean()
    loss = loss + (1 - (2 * h - 1).abs() ** beta).sum()  # lambda is 1
    adam.zero_grad()
    loss.backward()
    adam.step()
    path.append(h.detach())

# %% tags=["slide"]
fig, ax = plt.subplots(figsize=(7, 3))
for i, line in enumerate(torch.stack(path).T):
    style = "-" if line[-1].round() != line[0].round() else "--"
    ax.plot(line, style, marker="osD^vP*X"[i], markevery=(25 * i, 200), label=f"{w[i]:.2f}")
ax.set(xlabel="step of the search", ylabel="h: 0 is down, 1 is up", title="Eight weights decide")
ax.legend(title="weight", ncols=2, fontsize=8, bbox_to_anchor=(1.01, 1), loc="upper left")
show(fig, alt="Eight curves that start between 0 and 1 and end at either; two, solid, rise through the middle to 1")

# %%
chosen = soft(v).detach().round()
packaged = adaround(w[None], x, q.Grid(torch.tensor(1.0), torch.tensor(0), bits=4))  # any grid with step 1
print("found:", (w.floor() + chosen).int().tolist(), " the package:", packaged.weight.levels[0].tolist())
found = errors[(up == chosen).all(1)].item()
print(f"output error ≈ {found:.2f}, of the best way ≈ {errors[best]:.2f}")
assert found < 1.5 * errors[best]
assert torch.equal(packaged.weight.levels[0], (w.floor() + chosen).to(torch.int8))

# %% [markdown]
# The best way, found without trying them all. In a network this is done layer by layer, on the inputs that the layers rounded before really give. Now our ResNet. (*Nearest, clipped* rounds to nearest too, on a range that is cut where the squared error of the weights is least. AdaRound uses that range.)

# %%
rows = {}
for bits in (4, 3, 2):
    nearest = q.quantize_weights(model, bits=bits)
    clipped = q.quantize_weights(model, bits=bits, method="mse")
    better = q.adaround_model(model, calibration.batches(64), bits=bits, steps=300, samples=2048)
    rows[bits] = [score(result.model)[1] for result in (nearest, clipped, better)]
adaptive = pd.DataFrame(rows, index=["nearest", "nearest, clipped", "AdaRound"]).T
for bits, row in adaptive.iterrows():
    print(f"{bits} bits: " + ", ".join(f"{name} ≈ {value:.1f} %" for name, value in row.items()))

# %%
assert all(adaptive.loc[bits, "AdaRound"] > adaptive.loc[bits, "nearest, clipped"] for bits in (3, 2))
assert adaptive.loc[3, "AdaRound"] > float_accuracy - 1.5
gain = adaptive.loc[3, "AdaRound"] - adaptive.loc[3, "nearest"]
print(f"at 3 bits AdaRound gains ≈ {gain:.1f} points over rounding to nearest, with the same file size")

# %% [markdown]
# At 3 bits next to nothing is lost any more, and at 2 bits the network reads again. Seconds of work, 256 images without labels.

# %% [markdown]
# ## 10. Which layers mind? Bits where they are needed
#
# One layer at a time at 2, 3, 4 and 8 bits, all others in floats; what is measured is the noise in the logits, as a share of their power.

# %%
layers = list(q.quantize_weights(model).weights)
probe = splits.train.take(500).inputs()
with torch.no_grad():
    clean = model(probe)


def one_layer(model, layer, bits):
    return q.quantize_weights(model, bits={layer: bits}, method="mse").model


def noise(candidate):
    with torch.no_grad():
        return ((candidate(probe) - clean).square().sum() / clean.square().sum()).item()


# %%
scan = measure.scan_sensitivity(model, one_layer, noise, layers=layers, settings=[2, 3, 4, 8])

# %% tags=["slide"]
fig, ax = plt.subplots(figsize=(7.5, 4))
scan.plot(ax=ax)
ax.legend(title="bits")
ax.set(
    xscale="log", xlabel="noise in the logits, share of their power", title="One layer rounded, all others in floats"
)
show(
    fig,
    alt="A row for each layer, markers for 2 to 8 bits: each bit less moves a row right; rows differ by up to tenfold",
)

# %%
at_three = scan.table[3].sort_values()
spread = at_three.iloc[-1] / at_three.iloc[0]
print(f"at 3 bits: the most sensitive layer adds ≈ {spread:.0f} times the noise of the least sensitive")
print("the most sensitive:", at_three.index[-1])
assert spread > 3

# %% [markdown]
# So bits should go where a byte buys most. The budget is what uniform 3 bits would take. This is a knapsack: choices for each layer, a cost in bytes, a gain. Dynamic programming solves it exactly; a greedy answer is shown beside it.

# %%
widths = (2, 3, 4, 8)
cost = {name: {} for name in layers}
for bits in widths:
    for name, weight in q.quantize_weights(model, bits=bits).weights.items():
        cost[name][bits] = weight.nbytes
budget = sum(cost[name][3] for name in layers)
plans = {
    "uniform 3": dict.fromkeys(layers, 3),
    "greedy": q.allocate_bits_greedy(scan.errors, cost, budget).bits,
    "exact": q.allocate_bits(scan.errors, cost, budget).bits,
}

# %%
mixed = {}
for name, plan in plans.items():
    used, expected = sum(cost[k][v] for k, v in plan.items()), sum(scan.errors[k][v] for k, v in plan.items())
    mixed[name] = score(q.quantize_weights(model, bits=plan, method="mse").model)
    db, share = mixed[name]
    print(f"{name:<10} ≈ {used:,} bytes, noise expected ≈ {expected:.3f}: ≈ {db:.1f} dB, ≈ {share:.1f} %")
assert mixed["exact"][1] > mixed["uniform 3"][1]
assert mixed["exact"][0] > mixed["uniform 3"][0]

# %% [markdown]
# Same bytes, more accuracy, and here greedy is as good as exact. The prediction (errors of single layers, added up) is rough, but good enough to choose by. (A phone may have kernels for 4 and 8 bits only; the method is the same.)

# %% [markdown]
# ## 11. For real: ONNX Runtime
#
# ONNX is a file format for networks, and ONNX Runtime, which runs such files, really computes with integers. We export the float network and hand it to the runtime's own `quantize_static`, wrapped in one call: activations as unsigned 8 bits, weights as signed 8 bits per channel. (Its defaults, signed activations and a scale per tensor, are the slow ones on x86. Lesson 11 shows why, and what is in the files.)

# %%
folder = Path(tempfile.mkdtemp())
example, images = calibration.take(2).inputs(), splits.val.inputs()
sessions = {"FP32": e.OnnxModule(e.export_onnx(model, example, folder / "float.onnx"))}
theirs = {}
for method in ("minmax", "entropy", "percentile"):
    path = folder / f"{method}.onnx"
    e.quantize_onnx_static(folder / "float.onnx", path, calibration.batches(64), method=method)
    sessions[method] = e.OnnxModule(path)
    theirs[method] = sessions[method](images)
    print(f"ONNX Runtime, {method:<10} ≈ {measure.sqnr_db(reference.logits, theirs[method]):.1f} dB")

# %%
plain = q.quantize_static(model, calibration.batches(64), method="minmax", refine=False)
print(f"ours, min-max, plain     ≈ {score(plain)[0]:.1f} dB; as in section 7 ≈ {score(static)[0]:.1f} dB")
assert score(static)[0] > score(plain)[0] + 1

# %% [markdown]
# With min-max ranges ours and theirs are about equal, as they should be. What ours has more in section 7 comes from `refine`, which chooses weight scales and corrects biases by the error of each layer's output. And do you see that entropy and min-max are the same?
#
# ### Trap: an entropy calibration that calibrates nothing
#
# That is no accident. ONNX Runtime's entropy method sorts all values into 128 bins, merges them into 128 levels, and may cut only where at least 128 bins are left: there is one candidate, the whole range. Ours has thousands of bins to choose from, the same for each batch, so the range does not depend on how the images were cut into batches.

# %% tags=["trap"]
gap = (theirs["entropy"] - theirs["minmax"]).abs().max()
print(f"largest difference of the logits, entropy - min-max: ≈ {gap:.2f}")
one, many = (q.calibrate(activations.split(size), method="entropy").maximum for size in (len(activations), 16))
print("ours, one batch or many: the same range:", one == many)
assert one == many

# %% [markdown]
# Now the time. *Look at:* dynamic quantization of convolutions, which ONNX Runtime does carry out.

# %% tags=["nbval-ignore-output"]
sessions["dynamic"] = e.OnnxModule(e.quantize_onnx_dynamic(folder / "float.onnx", folder / "dynamic.onnx"))
runs = {"FP32": sessions["FP32"], "static INT8": sessions["percentile"], "dynamic INT8": sessions["dynamic"]}
speeds = {}
for batch_size in (1, 32):
    timed = measure.compare_latency(runs, (images[:batch_size],), rounds=30)
    speeds[batch_size] = {name: ratio.value for name, ratio in timed.speedup.items()}
    milliseconds = ", ".join(f"{name} {1e3 * timed.latency[name].median_s:.2f} ms" for name in runs)
    print(f"batch {batch_size}: {milliseconds}; static is {speeds[batch_size]['static INT8']:.1f}x as fast as FP32")
reveal(guess_speed, speeds[1]["static INT8"], what="speed of static INT8 at batch 1, FP32 = 1")
assert speeds[32]["dynamic INT8"] < speeds[32]["static INT8"]

# %%
sizes = {name: (folder / f"{name}.onnx").stat().st_size for name in ("float", "percentile", "dynamic")}
print(", ".join(f"{name} ≈ {size:,} bytes" for name, size in sizes.items()))
assert 3 * max(sizes["percentile"], sizes["dynamic"]) < sizes["float"]

# %% [markdown]
# Static INT8 is faster where the processor has instructions for it (`compresslab doctor`: VNNI or similar). Dynamic INT8 of convolutions is several times *slower than FP32*: its kernel is slow, and it measures ranges in every call. Both files are small; only a clock tells them apart.
#
# The second library is **torchao**, PyTorch's own. Its graph flow (*PT2E*) exports, inserts observers, calibrates, converts. Its integers run fast only after `torch.compile`, which needs time and a C++ compiler, so we look at its quality alone. (What most tutorials show, `torch.ao.quantization` with its stubs and fused modules, is deprecated.)

# %%
exported = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
chosen = ao.X86InductorQuantizer().set_global(ao.get_default_x86_inductor_quantization_config())
prepared = ao.prepare_pt2e(exported, chosen)
with torch.no_grad():
    [prepared(inputs) for inputs, _ in calibration.batches(64)]
    converted = ao.convert_pt2e(prepared)(images)
print(f"torchao PT2E ≈ {measure.sqnr_db(reference.logits, converted):.1f} dB")

# %% [markdown]
# ## 12. The whole lesson in one table
#
# Everything was chosen on the validation split; now, once, the test split. A paired test tells whether a loss is more than luck.

# %%
smaller = sum(cost[name][2] + cost[name][3] for name in layers) // 2  # 2.5 bits on average
plan = q.allocate_bits(scan.errors, cost, smaller).bits
results = {
    "W4 nearest": q.quantize_weights(model, bits=4),
    "W3 nearest": q.quantize_weights(model, bits=3),
    "W3 AdaRound": q.adaround_model(model, calibration.batches(64), bits=3, steps=300, samples=2048),
    "W2.5 AdaRound": q.adaround_model(model, calibration.batches(64), bits=plan, steps=300, samples=2048),
}
finals = {"FP32": (model, float_bytes), "W8A8 static": (static, measure.measure_size(static).size_bytes)}
finals |= {name: (result.model, file_bytes(result)) for name, result in results.items()}
print("bits of the last plan:", ", ".join(f"≈ {bits}" for bits in plan.values()))

# %%
answers = {name: measure.predict(candidate, splits.test.batches()) for name, (candidate, _) in finals.items()}
rows = []
for name, found in answers.items():
    share, p = measure.accuracy(found), measure.mcnemar(answers["FP32"].correct, found.correct).p_value
    rows.append([finals[name][1], share.value, share.low, share.high])
    ends = f"[≈ {100 * share.low:.1f}, ≈ {100 * share.high:.1f}]"
    print(f"{name:<13} ≈ {finals[name][1]:>7,} bytes   ≈ {100 * share.value:.1f} % {ends}   p ≈ {p:.2g}")
columns = ["size_bytes", "accuracy", "accuracy_low", "accuracy_high"]
summary = pd.DataFrame(rows, index=list(answers), columns=columns)

# %% tags=["slide"]
ax = measure.plot_comparison(summary, "accuracy")
ax.set(title="What a trained network lives with")
show(ax, alt="Six points with error bars by file size: all but rounding to three bits lie near FP32")

# %% tags=["headline", "slide"]
small, percent = finals["W2.5 AdaRound"][1], 100 * summary["accuracy"]
print(
    f"FP32 {float_bytes:,} bytes ≈ {percent['FP32']:.1f} %; W8A8 ≈ {percent['W8A8 static']:.1f} %; 2.5 bits on average, "
    f"AdaRound, ≈ {small:,} bytes ≈ {percent['W2.5 AdaRound']:.1f} %"
)
assert abs(percent["W8A8 static"] - percent["FP32"]) < 0.7
assert percent["W2.5 AdaRound"] > percent["W3 nearest"] + 5
assert small < float_bytes / 10

# %% [markdown]
# W8A8 lost nothing that these test images could show: its p is above 0.05. The others did lose something, AdaRound less than a point, in a file of about a tenth of the size.
#
# ## Does it work on other networks?
#
# The same call on a network that was not made for this course, with random weights. What stays in floating point is listed, never hidden.

# %%
mobile = torchvision().models.mobilenet_v3_small(num_classes=10).eval()
photos = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
result = q.quantize_static(mobile, [(photos, None)])
print(len(result.report), "operations on integer grids; in floating point:", result.skipped or "none")
with torch.no_grad():
    print("output", tuple(result(photos).shape))

# %% [markdown]
# ## Exercises
#
# ### 02.1 Lay a grid over a range
# *10 minutes, difficulty 1 of 3.* Write `grid_of(minimum, maximum, bits)`: the scale and the zero point of the asymmetric grid with levels 0 to $2^{bits} - 1$. Where the range does not contain 0, widen it first, so that it does.
#
# <details><summary>Hint</summary>How many <em>steps</em> are there between 256 levels? Which level does 0.0 get?</details>


# %% tags=["exercise"]
def grid_of(minimum, maximum, bits):
    return None  # replace this line


check("02.1", grid_of)


# %% jupyter={"source_hidden": true} tags=["solution"]
def grid_of_solution(minimum, maximum, bits):
    minimum, maximum = min(minimum, 0.0), max(maximum, 0.0)
    scale = (maximum - minimum) / (2**bits - 1)
    return scale, round(-minimum / scale)


check("02.1", grid_of_solution, record=False)

# %% [markdown]
# ### 02.2 A product of integers
# *10 minutes, difficulty 2 of 3.* Write `integer_dot(a, zero_point, w)` for a uint8 tensor `a` with a zero point and an int8 tensor `w`: the Python integer $\sum (a - z) w$.
#
# <details><summary>Hint</summary>What is <code>torch.tensor([10], dtype=torch.uint8) - 128</code>?</details>


# %% tags=["exercise"]
def integer_dot(a, zero_point, w):
    return None  # replace this line


check("02.2", integer_dot)


# %% jupyter={"source_hidden": true} tags=["solution"]
def integer_dot_solution(a, zero_point, w):
    return ((a.int() - zero_point) * w.int()).sum().item()


check("02.2", integer_dot_solution, record=False)

# %% [markdown]
# ### 02.3 Fold a batch norm
# *15 minutes, difficulty 2 of 3.* Write `fold(weight, bias, gamma, beta, mean, variance, eps)` for a convolution's weight of shape (O, I, K, K): the weight and the bias of the one convolution that does both.
#
# <details><summary>Hint 1</summary>The formula stands in section 4.</details>
# <details><summary>Hint 2</summary>The factor k has one entry for each output channel, axis 0: reshape it before you multiply.</details>


# %% tags=["exercise"]
def fold(weight, bias, gamma, beta, mean, variance, eps):
    return None  # replace this line


check("02.3", fold)


# %% jupyter={"source_hidden": true} tags=["solution"]
def fold_solution(weight, bias, gamma, beta, mean, variance, eps):
    k = gamma / (variance + eps).sqrt()
    return weight * k.reshape(-1, 1, 1, 1), (bias - mean) * k + beta


check("02.3", fold_solution, record=False)

# %% [markdown]
# ### 02.4 A multiplier and a shift
# *15 minutes, difficulty 3 of 3.* Write `fixed_point(m)` for a float $0 < m < 1$: integers (multiplier, shift) with $2^{30} \le$ multiplier $< 2^{31}$ and $m \approx$ multiplier $/ 2^{shift}$.
#
# <details><summary>Hint</summary><code>math.frexp(m)</code> gives a fraction from 0.5 to 1 and a power of two.</details>


# %% tags=["exercise"]
def fixed_point(m):
    return None  # replace this line


check("02.4", fixed_point)


# %% jupyter={"source_hidden": true} tags=["solution"]
def fixed_point_solution(m):
    fraction, exponent = math.frexp(m)
    return round(fraction * 2**31), 31 - exponent


check("02.4", fixed_point_solution, record=False)

# %% [markdown]
# ### 02.5 Find the bug: a scale for each channel
# *15 minutes, difficulty 2 of 3.* This function rounds a weight (O, C, K, K) to 4 bits, symmetric, with a scale for each output channel. It has three faults, and on some shapes it does not even fail. Name them, then write `round_per_channel(weight)`.
#
# ```python
# def round_per_channel(weight):
#     scale = weight.abs().flatten(1).amax(1) / 8
#     return (weight / scale).round() * scale
# ```
#
# <details><summary>Hint</summary>Which axis does a tensor of shape (O,) broadcast against? What is the largest symmetric level? What about a channel of zeros?</details>


# %% tags=["exercise"]
def round_per_channel(weight):
    return None  # replace this line


check("02.5", round_per_channel)


# %% jupyter={"source_hidden": true} tags=["solution"]
def round_per_channel_solution(weight):
    scale = weight.abs().flatten(1).amax(1).reshape(-1, 1, 1, 1) / 7
    scale = torch.where(scale == 0, 1.0, scale)
    return (weight / scale).round() * scale


check("02.5", round_per_channel_solution, record=False)

# %% [markdown]
# ## Quiz

# %% tags=["quiz"]
quiz("02")

# %% [markdown]
# ## Summary
#
# - A grid is a **scale** and a **zero point**. Who shares a scale decides how much is lost, and the scales are bytes too.
# - Static W8A8 costs no accuracy here, needs a few dozen *representative* images, and runs on integers alone: 32-bit sums, a multiplier and a shift.
# - Dynamic quantization is for linear layers. On convolutions it does nothing, or is slow.
# - Below 8 bits: equalize, correct biases, choose the rounding (AdaRound), and spend bits where the sensitivity scan says. Together they make the file more than ten times smaller.
# - Measure the logits, not only the accuracy: it moves last.
#
# ## Sources
#
# - Jacob and others, *Quantization and training of neural networks for efficient integer-arithmetic-only inference*, 2017, arXiv:1712.05877
# - Nagel and others, *A white paper on neural network quantization*, 2021, arXiv:2106.08295
# - Nagel and others, *Data-free quantization through weight equalization and bias correction*, 2019, arXiv:1906.04721
# - Nagel and others, *Up or down? Adaptive rounding for post-training quantization*, 2020, arXiv:2004.10568
# - Migacz, *8-bit inference with TensorRT*, GTC 2017 (entropy calibration)
# - Dong and others, *HAWQ-V2*, 2019, arXiv:1911.03852 (bits by sensitivity)
#
# ## Next
#
# Weights of 2 bits lost points here, although the activations stayed floats. Lesson 03 trains the network on the grid, with both at 2 bits.

# %%
lesson_done = True
