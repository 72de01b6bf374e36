# %% [markdown]
# # 01 Precision formats: what does a number cost, and what does it lose?
#
# **Time:** 90 minutes with the exercises, 45 without. **Runs in:** less than a minute, without a network or a GPU.
#
# **Before you start** you should have done lesson 00: sizes are bytes of files, speed is measured, an accuracy has an interval.
#
# **Afterwards you can**
# - read the bits of any floating point number, and say what its neighbours are;
# - round a tensor to any format, from BF16 to 4 bits, exactly as the hardware does;
# - tell overflow from underflow from stagnation, and mend each;
# - say what a format really costs, its shared scales included, and what it does to a trained network.
#
# A network is a large heap of numbers, and nobody asked whether each of them needs 32 bits. This lesson takes a number apart, and then takes bits away.

# %% tags=["setup"]
import copy
import math

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from compresslab import measure
from compresslab.course import check, quiz, reveal, show, show_source, start, table
from compresslab.course.widgets import bit_explorer, explain_bits
from compresslab.formats import FLOATS, FORMATS, bits_per_element, decode, floats, round_model, round_to_format
from compresslab.workbench import checkpoints, data, models
from compresslab.workbench.train import fit

_ = start()

# %% [markdown]
# ## Three guesses, before anything is measured

# %%
guess_values = None  # how many different numbers, zero and both signs included, does a 4-bit float have?
guess_lost = None  # percent: of the gradients of activations, how many are too small for FP16, and become zero?
guess_accuracy = None  # points: what does our network lose with 4-bit floats as weights, 32 sharing a scale (MXFP4)?

# %% [markdown]
# ## 1. A number is three fields of bits
#
# A floating point number is a sign, an **exponent** (which power of two are we at?) and a **mantissa** (how far to the next power?). In FP8 E4M3 there are 4 exponent bits and 3 mantissa bits. We read `0 1000 101` by hand:
#
# - sign 0: positive;
# - exponent 1000 is 8; the *bias* 7 is subtracted, so the power is $2^1$;
# - mantissa 101 is 5 of 8 steps: $1 + 5/8$ (the leading 1 is not stored, it is always there).
#
# $$(1 + 5/8) \cdot 2^{8 - 7} = 3.25$$

# %%
sign, exponent, mantissa = 0, 0b1000, 0b101
by_hand = (-1) ** sign * (1 + mantissa / 8) * 2 ** (exponent - 7)
print("by hand:", by_hand)
print("decoded:", decode(torch.tensor(0b0_1000_101), FLOATS["fp8_e4m3"]).item())

# %% [markdown]
# Play with it: change the number, the format, or switch single bits. Without a kernel you see one example as text.
#
# *Try:* which number comes after 448 in E4M3? What happens to 0.3 in a 4-bit float? How far do you get with the mantissa bits all 0?

# %% tags=["nbval-ignore-output"]
bit_explorer(3.3, "fp8_e4m3")

# %%
print(explain_bits(0.01, "fp8_e4m3"))
print(explain_bits(0.01, "bf16"))

# %% [markdown]
# *Subnormal* means: at the lowest exponent the leading 1 is dropped, so that the numbers go down to zero in even steps instead of ending in a gap.

# %% [markdown]
# ## 2. A format is a set of points on a line
#
# *Look at:* where the points are dense, and where they are not.

# %% tags=["slide"]
names = ["fp4_e2m1", "fp6_e2m3", "fp6_e3m2", "fp8_e4m3", "fp8_e5m2"]
fig, ax = plt.subplots(figsize=(8, 2.6))
for row, name in enumerate(names):
    values = FLOATS[name].values()
    ax.plot(values, [row] * len(values), "|", markersize=14, color=f"C{row}")
ax.set(xlim=(-0.2, 8.2), xlabel="value", yticks=range(5), yticklabels=names, title="All values between 0 and 8")
show(fig, alt="Five rows of ticks: dense near zero, and half as dense in every next octave; FP4 has eight ticks in all")

# %%
four_bits = FLOATS["fp4_e2m1"].values()
print("FP4 E2M1:", four_bits.tolist())
reveal(guess_values, len({*four_bits.tolist(), *(-four_bits).tolist()}), what="different numbers in 4 bits")

# %% [markdown]
# Sixteen codes, but zero has two of them (plus and minus). The spacing doubles from octave to octave (from one power of two to the next): a float has the same *relative* error everywhere, where an integer has the same *absolute* error everywhere. The table shows the trade: exponent bits buy range, mantissa bits buy fineness.

# %%
rows = []
for name, fmt in FLOATS.items():
    limits = [f"{value:.4g}" for value in (fmt.max_value, fmt.tiny, fmt.smallest)]
    rows.append([name, fmt.bits, *limits, 100 / 2 ** (fmt.mantissa_bits + 1)])
columns = ["format", "bits", "largest", "smallest normal", "smallest", "largest rounding error, %"]
table(pd.DataFrame(rows, columns=columns), digits=2, index=False)

# %% [markdown]
# The last column is half a step just above a power of two, in percent (for normal numbers). FP16 errs by at most 0.049 %, BF16 by 0.39 %: eight times as much, since it has three mantissa bits less.
#
# TF32 needs a word: it is what some GPUs use *inside* a matrix product, 19 bits that are stored as 32. It saves time there, never bytes.

# %%
assert round(100 / 2**11, 3) == 0.049
assert round(100 / 2**8, 2) == 0.39

# %% [markdown]
# ## 3. Rounding: one addition does it
#
# Rounding to FP4 by hand: look up how wide the steps are where the number lies, and count in whole steps. From 1 to 2 they are 0.5 wide (below 1 too), from 2 to 4 they are 1 wide, from 4 on 2. *Look at:* the numbers half-way between two values.

# %%
for value, step in ((0.3, 0.5), (1.4, 0.5), (2.5, 1.0), (3.5, 1.0), (5.0, 2.0)):
    print(f"{value} is {value / step:.1f} steps of {step}, rounded {round(value / step)}: {round(value / step) * step}")

# %% [markdown]
# On a tie, the *even* number of steps wins (its last bit is 0), so that ties go up as often as down. The same for a tensor: each octave, from one power of two to the next, has a step of its own.


# %%
def steps_around(x):
    octave = x.abs().log2().floor().clamp(min=0)  # 0 from 1 to 2, 1 from 2 to 4; below 1 the steps stay as they are
    return 2**octave / 2  # one mantissa bit: two steps in an octave


def round_by_steps(x):
    step = steps_around(x)
    return ((x / step).round() * step).clamp(-6, 6)


x = torch.tensor([0.3, 1.4, 2.5, 3.5, -5.0, 100.0])
print(round_by_steps(x).tolist())

# %% [markdown]
# Now the trick. A float32 has 24 significant bits. If we add a number so large that only steps of 0.5 are left, the processor has to round the sum, to nearest even, as the standard demands. Then we subtract the large number again. *Look at:* the sums.

# %%
big = 1.5 * 2**22  # from 2^22 to 2^23 the steps of float32 are 0.5 wide; the middle leaves room for both signs
for value in (0.3, 0.25, 0.75, 1.4):
    total = torch.tensor(value) + big
    print(f"{value} + {big:.0f} = {total.item():.1f}   back: {(total - big).item()}")

# %% [markdown]
# No division, no rounding: the addition did it. A step twice as wide needs a number twice as large:


# %%
def round_by_addition(x):
    big = 2 * steps_around(x) * 1.5 * 2**22
    return (x + big - big).clamp(-6, 6)


generator = torch.Generator().manual_seed(0)
x = 4 * torch.randn(10_000, generator=generator)
assert torch.equal(round_by_addition(x), round_by_steps(x))
assert torch.equal(round_by_addition(x), round_to_format(x, "fp4_e2m1"))
distance = (x.abs().clamp(max=6)[:, None] - four_bits).abs().amin(1)  # to the nearest of all values
assert torch.equal((x.clamp(-6, 6) - round_by_addition(x)).abs(), distance)

# %% [markdown]
# The package does this for any format, and takes the octave from the exponent bits. *Look at:* the last two lines, which are ours. (The block in the middle is for formats with the exponents of float32, such as BF16: there is no larger number to add, so the bits are rounded as an integer.)

# %%
show_source(floats._round_nearest)

# %%
halves = torch.arange(65536).to(torch.uint16).view(torch.float16).float()  # every number that FP16 has
for name, dtype in {"bf16": torch.bfloat16, "fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}.items():
    ours, theirs = round_to_format(halves, name), halves.to(dtype).float()
    assert torch.equal(ours.nan_to_num(1e30), theirs.nan_to_num(1e30))
    print(f"{name}: equal to torch's own cast on all {len(halves):,} numbers of FP16")

# %% [markdown]
# ## 4. Three ways to lose
#
# ### Trap: overflow
#
# FP16 ends at 65,504. A single activation may be far below that, while the sum of a thousand of them is not.

# %% tags=["trap"]
activations = torch.full((1000,), 80.0).half()
print("sum in FP16:        ", activations.sum().item())
print("sum in float32:     ", activations.float().sum().item())
print("sum stored as BF16: ", activations.bfloat16().sum().item())
assert activations.sum().isinf()

# %% [markdown]
# The terms are harmless, the result is not. This is how layer norms, softmax sums and losses break in FP16, and why they are kept in float32. BF16 survives, with an error: 80,000 is not one of its numbers.
#
# ### Trap: BF16 adds 1 to 256 for ever
#
# *Look at:* the counter.

# %% tags=["trap"]
counter = torch.tensor(0.0, dtype=torch.bfloat16)
for _ in range(1000):
    counter = counter + 1
print("a thousand times + 1 in BF16:", counter.item())
assert counter == 256

# %% [markdown]
# Above 256 the steps of BF16 are 2 wide, 257 is a tie, and ties go to the even code, which is 256. This is **stagnation**: an update that is small against the weight vanishes, every time. Weights that are trained in BF16 need a float32 copy, or another way of rounding:
#
# **Stochastic rounding** goes up with a probability equal to the distance from the value below, in steps: a third of the way up, one time in three. One result is worse, the mean is right.

# %%
counter = torch.zeros(1)
generator = torch.Generator().manual_seed(0)
for _ in range(1000):
    counter = round_to_format(counter + 1, "bf16", rounding="stochastic", generator=generator)
print(f"a thousand times + 1, rounded stochastically: ≈ {counter.item():.0f}")
assert 800 < counter < 1200

# %% [markdown]
# ### Underflow, and the gradients
#
# The third loss is at the other end. Backpropagation sends a gradient back through every *activation* (a number that one layer hands to the next), and makes the gradients of the weights from those. Here are both kinds, for one batch and our trained network. *Look at:* how much of each hill lies left of the solid line, where FP16 has no numbers any more.

# %%
splits = data.load("glyphs")
baseline = checkpoints.load("resnet")
inputs, labels = next(iter(splits.train.batches(256)))
outputs = []
convolutions = [module for module in baseline.modules() if isinstance(module, nn.Conv2d)]
hooks = [module.register_forward_hook(lambda *call: outputs.append(call[-1])) for module in convolutions]
loss = F.cross_entropy(baseline(inputs), labels)
[hook.remove() for hook in hooks]
found = torch.autograd.grad(loss, [*baseline.parameters(), *outputs])
of_weights = torch.cat([g.flatten() for g in found[: -len(outputs)]])
of_activations = torch.cat([g.flatten() for g in found[-len(outputs) :]])
print(f"{len(of_weights):,} gradients of weights, {len(of_activations):,} of activations")

# %% tags=["slide"]
fig, ax = plt.subplots(figsize=(7.5, 3.2))
for gradients, name, hatch in ((of_weights, "weights", "//"), (of_activations, "activations", "")):
    exponents = gradients[gradients != 0].abs().log2().numpy()
    ax.hist(exponents, bins=range(-45, 1), density=True, alpha=0.6, hatch=hatch, edgecolor="black", label=name)
ax.axvline(-14, color="black", ls="--", label="smallest normal FP16, 2^-14")
ax.axvline(-24, color="black", label="smallest FP16, 2^-24")
ax.set(xlabel="log2 of the size of a gradient", ylabel="share", title="Where the gradients are", xlim=(-45, 0))
ax.legend(fontsize=8)
show(
    fig,
    alt="Two hills: gradients of weights lie inside the range of FP16, those of activations reach far below its end",
)


# %%
def too_small(gradients, scale=1.0):
    """Shares of the gradients that are not zero: lost in FP16, and below its normal numbers."""
    there, scaled = gradients != 0, gradients * scale
    zero, weak = (scaled.half() == 0) & there, (scaled.abs() < 2**-14) & there
    return (zero.sum() / there.sum()).item(), (weak.sum() / there.sum()).item()


for name, gradients in (("weights", of_weights), ("activations", of_activations)):
    (zero, weak), (after, _) = too_small(gradients), too_small(gradients, 2**12)
    print(f"{name}: zero ≈ {100 * zero:.2f} %, below normal ≈ {100 * weak:.0f} %, scaled ≈ {100 * after:.2f} %")

# %%
lost = too_small(of_activations)[0]
reveal(guess_lost, 100 * lost, what="gradients of activations lost in FP16", unit="%")
assert lost > 0.05 > 10 * too_small(of_activations, 2**12)[0]
assert too_small(of_weights)[0] < 0.01

# %% [markdown]
# The gradients of the weights are sums over many places, and large enough. But they are made of those of the activations, and there FP16 loses a good part: each belongs to one pixel of one image in a batch of 256. (Figure and shares leave out those that are zero in any format, because a ReLU let nothing pass.)
#
# **Loss scaling** mends it: multiply the loss by a power of two (here $2^{12}$), and every gradient moves to the right by the same distance; divide by it in float32 before the step. If something overflows, skip the step and take a smaller scale. BF16 has the exponents of FP32 and needs none of this, which is why it has won in training.

# %% [markdown]
# ## 5. Mixed precision is not `.half()`
#
# "Mixed precision" means: the expensive products in 16 bits, the weights and the sums in 32. `autocast` does it. Casting the whole model is something else. Three steps of Adam show the difference.


# %% tags=["trap"]
def three_steps(dtype, autocast):
    model = models.build("mlp", width=16).to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(model(inputs[:64].to(dtype)).float(), labels[:64])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return all(parameter.isfinite().all() for parameter in model.parameters())


# %%
pure, mixed = three_steps(torch.float16, autocast=False), three_steps(torch.float32, autocast=True)
print(f"all weights finite: {pure} in pure FP16, {mixed} with BF16 autocast")
assert mixed > pure

# %% [markdown]
# Adam divides by the root of the mean squared gradient plus $10^{-8}$. In FP16 a small gradient squared is zero, and so is $10^{-8}$: zero by zero.
#
# Does autocast cost accuracy? Three seeds each, the same five epochs of a small network.

# %%
scores = {"fp32": [], "bf16": []}
for seed in range(3):
    model = models.build("mlp", generator=torch.Generator().manual_seed(seed))
    for precision, found in scores.items():
        trained = fit(model, splits.train, epochs=5, precision=precision, seed=seed).model
        found.append(100 * measure.accuracy(measure.predict(trained, splits.val.batches())).value)
for precision, found in scores.items():
    print(precision, "≈", ", ≈ ".join(f"{value:.1f}" for value in found), "%")
difference = sum(scores["bf16"]) / 3 - sum(scores["fp32"]) / 3
print(f"mean difference ≈ {difference:.1f} points")
assert abs(difference) < 2

# %% [markdown]
# No difference that three seeds could show. (Five epochs are far too few for this network; what counts is that both had the same.)

# %% [markdown]
# ## 6. Below 8 bits: blocks that share a scale
#
# FP4 ends at 6, INT4 at 7. Weights are small numbers around zero, so something must stretch the grid over them: a **scale**. One scale for a whole tensor has an enemy.

# %%
x = torch.tensor([0.1, -0.2, 0.3, -0.1, 0.2, 0.05, -0.3, 8.0])
rounded = round_to_format(x, "int4")
print([round(value, 2) for value in rounded.tolist()])
assert rounded.count_nonzero() == 1

# %% [markdown]
# One outlier of 8, and everybody else is zero. So a few neighbours share a scale, and an outlier spoils only its own block: 32 elements with a power of two (MX: MXFP4 holds E2M1 elements, MXFP6 E2M3, MXFP8 E4M3), 64 with a float32 (NF4). NF4 also places its 16 values where a bell curve has them. In what follows `int8` and `int4` have one scale for the whole tensor, and the plain floats have none. The scales are not free:

# %%
table(pd.DataFrame({"format": FORMATS, "bits for each element": map(bits_per_element, FORMATS)}), index=False)

# %% [markdown]
# What is each worth? We round the weights of our network and look at the weights themselves. The **signal-to-noise ratio** compares the size of the numbers $x$ with that of their errors $x - \hat x$, in decibels: $10 \log_{10} \big(\sum x^2 / \sum (x - \hat x)^2\big)$. More is better: 6 dB more is half the error, 0 dB means that the error is as large as the numbers.

# %%
weights = [module.weight.detach().flatten(1) for module in convolutions]  # one row for each output channel
noise = {}
for name in FORMATS[1:]:  # all but FP32 itself
    rounded = [round_to_format(weight, name, saturate=True) for weight in weights]
    noise[name] = measure.sqnr_db(*(torch.cat([w.flatten() for w in side]) for side in (weights, rounded)))

# %% tags=["slide"]
fig, ax = plt.subplots(figsize=(8, 3.8))
for i, (name, value) in enumerate(noise.items()):
    style = {"color": f"C{i % 8}", "mfc": f"C{i % 8}" if i < 8 else "white"}
    ax.plot(bits_per_element(name), value, "osD^vP*X"[i % 8], label=f"{name}: {value:.0f} dB", **style)
ax.set(xlabel="bits for each element, scales included", ylabel="signal to noise, dB", title="What the bits buy")
ax.legend(fontsize=8, bbox_to_anchor=(1.01, 1), loc="upper left")
show(fig, alt="Formats by bits and signal to noise: about 6 dB for each bit; FP4 without a scale lies lowest at 4 bits")

# %%
assert noise["fp4_e2m1"] < noise["int4"] < noise["nf4"]
assert noise["fp4_e2m1"] < noise["mxfp4"] - 6
assert noise["mxfp8"] < noise["fp8_e4m3"] < noise["int8"]
assert noise["fp6_e2m3"] < noise["fp6_e3m2"] < noise["mxfp6"]
print(f"8 bits: fp8_e4m3 ≈ {noise['fp8_e4m3']:.0f}, mxfp8 ≈ {noise['mxfp8']:.0f}, int8 ≈ {noise['int8']:.0f} dB")

# %% [markdown]
# Read it from below. A 4-bit float without a scale is useless for small weights: most of them round to zero. With a block scale the same element type is respectable. Six bits without a scale are better spent on the exponent (E3M2); with a scale, on the mantissa: MXFP6, with three mantissa bits, beats even FP8 E5M2, which has range in plenty and two. And at 8 bits an integer grid with one scale beats the 8-bit floats: these weights have few outliers, so range is worth less than fineness. Language models have outliers (lesson 04 shows them), and there it can be the other way round.
#
# One thing may surprise: MXFP8 is slightly *worse* than plain FP8, though it has a scale for each block. Eight bits have range enough by themselves, and a scale that must be a power of two lets the largest element of a block run beyond 448, where it is cut.

# %% [markdown]
# ## 7. A whole network in every format
#
# Weights only; everything else stays in float32. *Look at:* the logits lose signal long before the accuracy moves.

# %%
reference = measure.predict(baseline, splits.test.batches())
rows = []
for name in FORMATS:
    model = round_model(baseline, name).model
    answers = measure.predict(model, splits.test.batches())
    db = measure.sqnr_db(reference.logits, answers.logits) if name != "fp32" else math.inf
    agree = measure.agreement(reference.predicted, answers.predicted).value
    rows.append([name, bits_per_element(name), db, 100 * measure.accuracy(answers).value, 100 * agree])
columns = ["bits", "logits, dB", "accuracy, %", "agreement, %"]
results = pd.DataFrame([row[1:] for row in rows], index=FORMATS, columns=columns)
for name, row in results.iterrows():
    print(f"{name:<9} {row.bits:5.2f} bits   ≈ {row['logits, dB']:5.1f} dB   ≈ {row['accuracy, %']:4.1f} %")

# %%
accuracy = results["accuracy, %"]
for name in ("fp16", "bf16", "int8", "mxfp8"):
    assert abs(accuracy[name] - accuracy["fp32"]) < 0.8
assert accuracy["fp4_e2m1"] < 20
assert accuracy["mxfp4"] > accuracy["int4"] - 3
reveal(guess_accuracy, accuracy["fp32"] - accuracy["mxfp4"], what="points lost at 4 bits (MXFP4)")

# %% tags=["headline", "slide"]
print(
    f"accuracy in FP32 ≈ {accuracy['fp32']:.1f} %, in MXFP8 ≈ {accuracy['mxfp8']:.1f} %, in MXFP4 "
    f"≈ {accuracy['mxfp4']:.1f} %, in FP4 without a scale ≈ {accuracy['fp4_e2m1']:.1f} %"
)

# %% [markdown]
# Sixteen bits cost nothing here, and eight next to nothing, in any of the formats. At six bits a float without a scale begins to fail, at four it fails outright, while with blocks both still read well. What is lost at four bits and below, lessons 02 to 04 win back.
#
# ### Which layers should be left alone?
#
# We round one layer at a time to MXFP4 and ask how much noise it adds to the logits.

# %%
layers = [name for name, module in baseline.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
batch = splits.val.take(500).inputs()
clean = baseline(batch).detach()
alone = {}
for name in layers:
    model = round_model(baseline, "mxfp4", keep=[other for other in layers if other != name]).model
    alone[name] = measure.sqnr_db(clean, model(batch).detach())

# %% tags=["slide"]
fig, ax = plt.subplots(figsize=(8, 3.2))
ax.bar(range(len(layers)), alone.values(), color="C0", edgecolor="black")
ax.set_xticks(range(len(layers)), layers, rotation=60, ha="right", fontsize=7)
ax.set(ylabel="signal to noise of the logits, dB", title="One layer in MXFP4, all others in FP32 (lower hurts more)")
show(fig, alt="One bar for each layer: the last one, linear, is lowest by several decibels, the first is as the others")

# %%
order = sorted(alone, key=alone.get)
print(f"from the most to the least sensitive layer: ≈ {alone[order[0]]:.0f} to ≈ {alone[order[-1]]:.0f} dB")
print("most sensitive:", order[0])
assert order[0] == "linear"
assert alone["conv1"] > alone["linear"] + 3

# %% [markdown]
# "The first and the last layer are the sensitive ones", says the rule of thumb. Here it is half right: the last one is, the first is not. A scan like this takes seconds, so nobody needs to believe a rule. Lesson 02 turns the scan into bits for each layer.

# %% [markdown]
# ## 8. For real: files and speed
#
# So far we simulated. PyTorch can hold a whole model in FP16 or BF16. First the files, then the clock: the whole network, and one large linear layer, both at batch size 32.

# %% [markdown]
# ### Trap: half the bytes, so twice as fast

# %% tags=["trap"]
casts = {"float32": baseline, "bfloat16": copy.deepcopy(baseline).bfloat16(), "float16": copy.deepcopy(baseline).half()}
for name, model in casts.items():
    print(f"{name:<9} {measure.measure_size(model).size_bytes:>8,} bytes")


# %% tags=["nbval-ignore-output"]
def speedups(model, x):
    """The same module in three formats, timed in turns."""
    runs = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        cast, inputs = copy.deepcopy(model).to(dtype), x.to(dtype)
        runs[str(dtype).removeprefix("torch.")] = lambda cast=cast, inputs=inputs: cast(inputs)
    return measure.compare_latency(runs, rounds=10).speedup


# %% tags=["nbval-ignore-output"]
batch = splits.test.inputs(slice(0, 32))
for what, model, x in (("network", baseline, batch), ("layer", nn.Linear(2048, 2048), torch.randn(32, 2048))):
    print(f"{what:<8}", ", ".join(f"{name} {speed}" for name, speed in speedups(model, x).items()))

# %%
sizes = {name: measure.measure_size(model).size_bytes for name, model in casts.items()}
assert max(sizes["float16"], sizes["bfloat16"]) < 0.52 * sizes["float32"]

# %% [markdown]
# The files are half as large everywhere. The speed is whatever your processor makes of it: with instructions for bfloat16, large layers can be several times faster; without instructions for float16, everything can be slower than float32, since each number is converted first. `compresslab doctor` says which ones yours has.
#
# The same network with the tool that others use for inference in 16 bits, `autocast`, which decides layer by layer and keeps the weights in float32:

# %%
with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
    mixed = baseline(batch).float()
db = measure.sqnr_db(baseline(batch).detach(), mixed)
cast_db = measure.sqnr_db(baseline(batch).detach(), casts["bfloat16"](batch.bfloat16()).detach().float())
print(f"autocast: logits ≈ {db:.0f} dB; everything in bfloat16: ≈ {cast_db:.0f} dB")
assert db > cast_db > 30

# %% [markdown]
# ## Exercises
#
# ### 01.1 Read the bits
# *10 minutes, difficulty 1 of 3.* Write `value_of(bits, exponent_bits, mantissa_bits)`: the number that a text such as `"01000101"` stands for. Infinities and NaN are not asked.
#
# <details><summary>Hint 1</summary><code>int("1000", 2)</code> is 8; the bias is <code>2 ** (exponent_bits - 1) - 1</code>.</details>
# <details><summary>Hint 2</summary>Where the stored exponent is 0, there is no implicit 1, and the power is 2^(1 - bias).</details>


# %% tags=["exercise"]
def value_of(bits, exponent_bits, mantissa_bits):
    return None  # replace this line


check("01.1", value_of)


# %% jupyter={"source_hidden": true} tags=["solution"]
def value_of_solution(bits, exponent_bits, mantissa_bits):
    bias = 2 ** (exponent_bits - 1) - 1
    sign = -1 if bits[0] == "1" else 1
    stored = int(bits[1 : 1 + exponent_bits], 2)
    fraction = int(bits[1 + exponent_bits :], 2) / 2**mantissa_bits
    if stored == 0:
        return sign * fraction * 2.0 ** (1 - bias)
    return sign * (1 + fraction) * 2.0 ** (stored - bias)


check("01.1", value_of_solution, record=False)

# %% [markdown]
# ### 01.2 How far, how fine?
# *10 minutes, difficulty 2 of 3.* Write `range_and_step(exponent_bits, mantissa_bits)` for a format with infinities, like FP16: return the largest finite number and the step just above 1.
#
# <details><summary>Hint</summary>The stored exponent of all ones is taken by infinity and NaN. What is the largest mantissa?</details>


# %% tags=["exercise"]
def range_and_step(exponent_bits, mantissa_bits):
    return None  # replace this line


check("01.2", range_and_step)


# %% jupyter={"source_hidden": true} tags=["solution"]
def range_and_step_solution(exponent_bits, mantissa_bits):
    bias = 2 ** (exponent_bits - 1) - 1
    largest_exponent = (2**exponent_bits - 2) - bias
    return (2 - 2.0**-mantissa_bits) * 2.0**largest_exponent, 2.0**-mantissa_bits


check("01.2", range_and_step_solution, record=False)

# %% [markdown]
# ### 01.3 Round to nearest, ties to even
# *15 minutes, difficulty 2 of 3.* Write `round_mantissa(x, mantissa_bits)` for a Python float `x` above 0: the nearest number with that many mantissa bits, whatever the exponent.
#
# <details><summary>Hint 1</summary>How wide are the steps around x? <code>math.floor(math.log2(x))</code> is the exponent.</details>
# <details><summary>Hint 2</summary>Python's own <code>round</code> rounds ties to even.</details>


# %% tags=["exercise"]
def round_mantissa(x, mantissa_bits):
    return None  # replace this line


check("01.3", round_mantissa)


# %% jupyter={"source_hidden": true} tags=["solution"]
def round_mantissa_solution(x, mantissa_bits):
    step = 2.0 ** (math.floor(math.log2(x)) - mantissa_bits)
    return round(x / step) * step


check("01.3", round_mantissa_solution, record=False)

# %% [markdown]
# ### 01.4 What a block costs
# *5 minutes, difficulty 1 of 3.* Write `block_bits(element_bits, block, scale_bits)`: bits for each element when `block` of them share a scale.


# %% tags=["exercise"]
def block_bits(element_bits, block, scale_bits):
    return None  # replace this line


check("01.4", block_bits)


# %% jupyter={"source_hidden": true} tags=["solution"]
def block_bits_solution(element_bits, block, scale_bits):
    return element_bits + scale_bits / block


check("01.4", block_bits_solution, record=False)

# %% [markdown]
# ### 01.5 Find the bug: unscaling gradients
# *15 minutes, difficulty 3 of 3.* This helper for loss scaling has two faults. Name them, then write `unscale(gradients, scale)`: a list of **float32** gradients divided by the scale, or the text `"skip"` if any gradient holds an infinity or NaN.
#
# ```python
# def unscale(gradients, scale):          # gradients: float16 tensors of the scaled loss
#     return [g / scale for g in gradients]
# ```
#
# <details><summary>Hint</summary>In which format does the division happen, and what is the smallest number there? What does an overflow leave behind?</details>


# %% tags=["exercise"]
def unscale(gradients, scale):
    return None  # replace this line


check("01.5", unscale)


# %% jupyter={"source_hidden": true} tags=["solution"]
def unscale_solution(gradients, scale):
    unscaled = [gradient.float() / scale for gradient in gradients]
    return unscaled if all(g.isfinite().all() for g in unscaled) else "skip"


check("01.5", unscale_solution, record=False)

# %% [markdown]
# ## Quiz

# %% tags=["quiz"]
quiz("01")

# %% [markdown]
# ## Summary
#
# - A float is sign, exponent, mantissa: exponent bits buy **range**, mantissa bits buy **fineness**.
# - Three ways to lose: **overflow** (FP16 sums), **underflow** (FP16 gradients), **stagnation** (BF16 updates). Float32 sums, loss scaling and stochastic rounding mend them.
# - Mixed precision keeps weights and sums in 32 bits; `.half()` does not.
# - Below 8 bits a format needs **blocks with scales**, and the scales count.
# - Half the bytes is certain, twice the speed is not.
#
# ## Sources
#
# - IEEE, *Standard for floating-point arithmetic*, 754-2019, doi:10.1109/IEEESTD.2019.8766229
# - Micikevicius and others, *FP8 formats for deep learning*, 2022, arXiv:2209.05433
# - Micikevicius and others, *Mixed precision training*, ICLR 2018, arXiv:1710.03740
# - Rouhani and others, *Microscaling data formats for deep learning*, 2023, arXiv:2310.10537
# - Dettmers and others, *QLoRA: efficient finetuning of quantized LLMs*, 2023, arXiv:2305.14314 (NF4)
# - Gupta and others, *Deep learning with limited numerical precision*, ICML 2015, arXiv:1502.02551 (stochastic rounding)
#
# ## Next
#
# Lesson 02 replaces floats by integers, for weights and activations, without any training.

# %%
lesson_done = True
