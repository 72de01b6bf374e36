# %% [markdown]
# # 03 Quantization-aware training: when the bits run out, can training win them back?
#
# **Time:** 90 minutes with the exercises, 45 without. **Runs in:** two to three minutes, without a network or a GPU.
#
# **Before you start** you should have done lesson 02: grids, scales, calibration, and what rounding costs at 8, 4, 3 and 2 bits.
#
# **Afterwards you can**
# - train through a function that has no slope, and say what you pretend while doing so;
# - learn the step of a grid together with the weights (LSQ);
# - prepare, train and convert a network, with the same predictions in integers, and say what to freeze;
# - tell when training is worth it, and when rounding was enough.
#
# In lesson 02 the network was finished, and then rounded. Now it is trained *knowing* that it will be rounded: every forward pass uses the rounded weights and activations, and the weights move to places from which rounding does no harm.

# %% tags=["setup"]
import logging
import math

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch.nn import functional as F

from compresslab import measure
from compresslab import quantization as q
from compresslab.course import check, quiz, reveal, show, show_source, start
from compresslab.quantization.fake_quantize import fake_quantize
from compresslab.quantization.lsq import lsq
from compresslab.workbench import ao, checkpoints, data
from compresslab.workbench.train import fit, jitter

_ = start(threads=1)
logging.disable(logging.WARNING)  # torchao warns of things that do not concern us here

# %% [markdown]
# ## Three guesses, before anything is measured

# %%
guess_eight = None  # points of accuracy: what does training win at 8 bits, over rounding a trained network?
guess_two = None  # percent: accuracy with 2-bit weights and activations, after training on 2,000 images once?
guess_ends = None  # points: what does it cost to give the first and the last layer 2 bits as well?

# %% [markdown]
# ## 1. A staircase has no slope
#
# Rounding is a staircase: flat everywhere, with jumps that have no derivative. *Look at:* what gradient descent gets to see.

# %% tags=["slide"]
x = torch.linspace(-2.2, 2.2, 1001, requires_grad=True)
y = (x / 0.5).round().clamp(-3, 3) * 0.5
(slope,) = torch.autograd.grad(y.sum(), x)
fig, ax = plt.subplots(figsize=(6.5, 3))
ax.plot(x.detach(), y.detach(), label="rounded, step 0.5, levels -3 to 3")
ax.plot(x.detach(), slope, "--", label="its derivative")
ax.plot(x.detach(), x.detach(), ":", color="black", label="what we pretend inside of the grid")
ax.set(xlabel="x", ylabel="y", title="No slope to descend")
ax.legend(fontsize=8)
show(fig, alt="A staircase from -1.5 to 1.5; its derivative is zero everywhere; a dotted diagonal runs through it")

# %%
assert slope.count_nonzero() == 0
print("gradients that are not zero:", int(slope.count_nonzero()), "of", slope.numel())

# %% [markdown]
# The **straight-through estimator** (Bengio and others, 2013) is a lie that works: round in the forward pass, and in the backward pass act as if nothing had happened, except where the value was clipped. In PyTorch it is one line: add the difference, and hide it from autograd.


# %%
def straight_through(x, scale, low, high):
    clipped = x.clamp(low * scale, high * scale)
    rounded = (x / scale).round().clamp(low, high) * scale
    return clipped + (rounded - clipped).detach()


x = torch.tensor([-2.0, -0.7, 0.2, 1.4, 2.0], requires_grad=True)
y = straight_through(x, 0.5, -3, 3)
(slope,) = torch.autograd.grad(y.sum(), x)
print("forward ", y.tolist())
print("gradient", slope.tolist())

# %% [markdown]
# The package does the same; so does torch. This is called **fake quantization**: the values are those of integers, the type is float, and training can go on.

# %%
scale, zero = torch.tensor(0.5), torch.tensor(0, dtype=torch.int32)
ours = fake_quantize(x, scale, zero, quant_min=-3, quant_max=3)
theirs = torch.fake_quantize_per_tensor_affine(x, scale, zero, -3, 3)
assert torch.equal(ours, y)
assert torch.equal(ours, theirs)
for other in (ours, theirs):
    assert torch.equal(torch.autograd.grad(other.sum(), x)[0], slope)

# %% [markdown]
# What does a weight do when it is trained like this? Here is one that would like to be 0.6, on a grid with steps of 1. *Look at:* the weight beneath, and what the network sees of it.

# %%
weight = torch.tensor(0.1, requires_grad=True)
beneath, seen = [], []
for step in range(120):
    rate = 0.05 if step < 80 else 0.05 * (120 - step) / 40  # constant, then down to zero
    rounded = straight_through(weight, 1.0, -3, 3)
    (gradient,) = torch.autograd.grad((rounded - 0.6) ** 2, weight)
    weight.data -= rate * gradient
    beneath.append(weight.item())
    seen.append(rounded.item())

# %% tags=["slide"]
fig, ax = plt.subplots(figsize=(7, 3))
ax.plot(beneath, label="the weight beneath")
ax.step(range(120), seen, where="mid", label="the rounded weight", alpha=0.7)
ax.axhline(0.5, color="black", ls=":", label="where rounding changes")
ax.axvline(80, color="gray", lw=0.8)
ax.set(xlabel="step", ylabel="value", ylim=(-0.45, 1.1), title="A weight that wants to be 0.6")
ax.legend(fontsize=8, ncols=3, loc="lower center")
show(
    fig,
    alt="The weight climbs to 0.5 and zigzags there, ever less at the end; the rounded one jumps between 0 and 1 throughout",
)

# %%
share = sum(seen[20:80]) / 60
jumps = (torch.tensor(seen[20:80]).diff() != 0).sum().item()
late = (torch.tensor(seen[80:]).diff() != 0).sum().item()
print(f"steps 20 to 80: the rounded weight is 1 in {100 * share:.0f} % of the steps, and jumps {jumps} times")
print(f"while the rate falls to zero, in the last 40 steps: {late} jumps")
assert 0.4 < share < 0.8
assert late > 5

# %% [markdown]
# It never arrives: it sits at the edge between two levels and **oscillates**, and on average it gets what it wants: 1 in 60 % of the steps, 0 in the rest. A falling rate (right of the grey line) makes the zigzag beneath smaller, but the rounded weight goes on jumping: on which side it ends is decided by the last step. A network is full of such weights. (Nagel and others, 2022, freeze weights that jump too often. Here the lie of the straight-through estimator shows.)

# %% [markdown]
# ## 2. Learn the step too
#
# Who chooses the scale? So far the largest weight did, or a moving average of the activations. **LSQ** (Esser and others, 2019) makes the step $s$ (our scale) a parameter. Let $v$ be a weight, $\hat v$ what it is rounded to, and $-Q_N$ and $Q_P$ the lowest and the highest level of the grid (here -3 and 3). How $\hat v$ answers to $s$ follows from the same lie:
#
# $$\frac{\partial \hat v}{\partial s} = \begin{cases} -v/s + \mathrm{round}(v/s) & \text{inside} \\ -Q_N & \text{below} \\ Q_P & \text{above} \end{cases}$$
#
# Inside it is the rounding error, in steps: near a level nothing changes, half-way between two it is largest. Outside, the clipped values pull at the end of the grid. *Look at:* the sawtooth, and how much stronger the clipped values pull.

# %% tags=["slide"]
v = torch.linspace(-2.2, 2.2, 881, requires_grad=True)
s = torch.tensor(0.5, requires_grad=True)
columns = [lsq(part, s, quant_min=-3, quant_max=3) for part in v]
slope = torch.stack([torch.autograd.grad(value, s)[0] for value in columns])
steps = v.detach() / 0.5
formula = torch.where(steps <= -3, -3.0, torch.where(steps >= 3, 3.0, steps.round() - steps))
fig, ax = plt.subplots(figsize=(6.5, 2.8))
ax.plot(v.detach(), slope)
ax.set(xlabel="v", ylabel="pull on the step", title="How each value pulls on the step of its grid")
show(fig, alt="A sawtooth between -0.5 and 0.5 inside of the grid, and flat at -3 and 3 outside of it")

# %%
assert torch.allclose(slope, formula, atol=1e-5)
print("autograd and the paper's formula agree on", len(slope), "values")
show_source(q.LSQ.forward)

# %% [markdown]
# Many weights, $N$, share one step, so its gradient is a sum over thousands; the paper scales it by $1/\sqrt{N Q_P}$ so that steps and weights learn equally fast. (With plain gradient descent that matters. Adam divides every gradient by its own size, so there the factor cancels.) Where does the step start? The paper starts from a formula (exercise 03.3), our package from the step of least squared error.

# %% [markdown]
# ## 3. Prepare a network
#
# Three decisions, each of which tutorials get wrong:
#
# - **Batch norms are folded first** (lesson 02). What is trained is then what will be deployed.
# - **The result is a new model.** Whatever trains must hold *its* parameters.
# - **The first and the last layer keep 8 bits.** Section 6 shows why.

# %%
splits = data.load("glyphs")
network = checkpoints.load("resnet")
images, few = splits.train.take(6000), splits.train.take(2000)  # the same for all that are trained
calibration = list(splits.train.take(256).batches(64))
prepared = q.prepare_qat(network, calibration, weight_bits=2, activation_bits=2)
print("layers by the bits of their weights:", pd.Series(prepared.weight_bits).value_counts().to_dict())
print("not quantized:", len(prepared.skipped), "of them biases:", sum("bias" in name for name in prepared.skipped))

# %%
layer = prepared.model.layer1[0].conv1
print("what the layer computes with:", sorted({round(value, 3) for value in layer.weight[0].flatten().tolist()}))
beneath = layer.parametrizations.weight.original
print("what is trained beneath:     ", [round(value, 3) for value in beneath[0].flatten()[:4].tolist()], "...")
assert len(layer.weight[0].unique()) <= 4

# %% [markdown]
# The layer computes with four values, the levels -2 to 1 times its step; beneath lie floats, and they receive the gradients. Only the biases stay in floats altogether. Nothing else has changed, so any training loop will do.
#
# ### Trap: the optimizer of the old model
#
# Tutorials prepare a copy and then train with the optimizer that was made before. It runs, the loss is printed, and nothing is learned.

# %% tags=["trap"]
optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)  # of the float model
before = beneath.detach().clone()
for inputs, labels in list(images.batches(64))[:3]:
    loss = F.cross_entropy(prepared.model(inputs), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("changed in the prepared model:", (beneath != before).any().item())
assert torch.equal(beneath, before)

# %% [markdown]
# ## 4. Train
#
# One pass over 2,000 images, with our usual loop: the rate warms up (the grid is a shock at first) and decays to zero. The fewer bits, the higher the rate: there is more to repair.

# %%
RATES = {8: 1e-4, 4: 1e-4, 3: 5e-4, 2: 2e-3}


def train(model, bits, seed=0, on=few):
    """The trained copy, after one pass."""
    options = {"epochs": 1, "batch_size": 64, "weight_decay": 0.0, "augment": jitter}
    return fit(model, on, lr=RATES[bits], seed=seed, **options).model


def percent(model, split=splits.val):
    return 100 * measure.accuracy(measure.predict(model, split.batches())).value


# %%
before, twos = percent(prepared.model), [train(prepared.model, 2, seed) for seed in range(3)]
learned = [percent(model) for model in twos]
print(
    f"2-bit weights and activations: ≈ {before:.1f} % before; three seeds:", ", ".join(f"≈ {v:.1f} %" for v in learned)
)
reveal(guess_two, sum(learned) / 3, what="accuracy at 2 bits after training", unit="%")
assert min(learned) > before + 40

# %% [markdown]
# Two bits are four values for each weight and four for each activation. Rounded, the network was lost; trained for seconds, it reads again. How much of this do LSQ's steps do? The same training, with steps that are not learned but follow the largest values, and only the straight-through estimator:

# %%
plain = q.prepare_qat(network, calibration, weight_bits=2, activation_bits=2, method="ste")
by_ste = [percent(train(plain.model, 3, seed)) for seed in range(3)]  # the rate of 3 bits, which suits it better
zeros = (plain.model.layer2[0].conv1.weight == 0).float().mean().item()
print("straight-through alone:", ", ".join(f"≈ {v:.1f} %" for v in by_ste))
print(f"weights of a layer that its grid rounds to zero at the start: ≈ {100 * zeros:.0f} %")
assert max(by_ste) < min(learned) - 10
assert zeros > 0.7

# %% [markdown]
# All of it: without them nothing is learned. On a symmetric grid of 2 bits that reaches up to the largest weight, most weights round to zero, and a network of zeros has little to learn from. The step must be smaller. Our LSQ starts it smaller, from the least squared error, and then lets the loss decide.
#
# ## 5. Rounding against training
#
# Now at every width: weights *and* activations at 8, 4, 3 and 2 bits (both ends at 8 on either side), and three seeds for training. Training sees 6,000 images with their labels, once. Rounding gets its best methods, ranges of least squared error and AdaRound for the weights, and the 256 images that calibrate, without labels. Nothing is chosen by this table, so it may look at the test split.


# %%
def rounded(bits):
    """Accuracy of rounding on ranges of least squared error."""
    both = q.prepare_qat(network, calibration, weight_bits=bits, activation_bits=bits).model
    return percent(both, splits.test)


# %% [markdown]
# `prepare_qat` without training is rounding. For AdaRound it takes two calls: one rounds the weights, one the activations. The second is asked for 16-bit weights, a grid so fine that the weights stay where AdaRound put them.

# %%
folded = q.fold_batchnorm(network).model
ends = {"conv1.weight": 8, "linear.weight": 8}


def adarounded(bits, batches=calibration):
    """Accuracy with weights by AdaRound, and activations on ranges of least squared error."""
    widths = dict.fromkeys(q.quantize_weights(folded).weights, bits) | ends
    weights = q.adaround_model(folded, batches, bits=widths, steps=200, samples=1024).model
    both = q.prepare_qat(weights, calibration, weight_bits=16, activation_bits=bits).model
    moved = (both.layer1[0].conv1.weight - weights.layer1[0].conv1.weight).abs().max()
    assert moved < 1e-3 * weights.layer1[0].conv1.weight.abs().max()
    return percent(both, splits.test)


# %%
rows, models = {}, {}
for bits in (8, 4, 3, 2):
    start_from = q.prepare_qat(network, calibration, weight_bits=bits, activation_bits=bits).model
    models[bits] = [train(start_from, bits, seed, images) for seed in range(3)]
    runs = [percent(model, splits.test) for model in models[bits]]
    rows[bits] = [rounded(bits), adarounded(bits), sum(runs) / len(runs), min(runs), max(runs)]

# %%
duel = pd.DataFrame(rows, index=["rounded", "AdaRound", "trained", "lowest", "highest"]).T
for bits, row in duel.iterrows():
    words = f"rounded ≈ {row.rounded:4.1f} %   AdaRound ≈ {row.AdaRound:4.1f} %   trained ≈ {row.trained:4.1f} %"
    print(f"{bits} bits   {words}   [≈ {row.lowest:.1f}, ≈ {row.highest:.1f}]")

# %%
base = percent(network, splits.test)
controls = [percent(train(network, 4, seed, images), splits.test) for seed in range(3)]
print(
    f"float network ≈ {base:.1f} %; trained for the same steps in floats:", ", ".join(f"≈ {v:.1f} %" for v in controls)
)
assert max(controls) < base + 1

# %% tags=["slide"]
fig, ax = plt.subplots(figsize=(7, 3.6))
places = range(4)
for name, marker in (("rounded", "o--"), ("AdaRound", "s-."), ("trained", "^-")):
    ax.plot(places, duel[name], marker, label=name)
ax.fill_between(places, duel["lowest"], duel["highest"], alpha=0.3, color="C2", label="three seeds")
ax.axhline(base, color="black", lw=0.8, label="FP32")
ax.set(xticks=places, xticklabels=duel.index, xlabel="bits of weights and activations", ylabel="test accuracy, %")
ax.legend()
show(
    fig,
    alt="Three curves from 8 down to 2 bits: together at 8 and 4; below, rounding falls first, trained stays highest at 2",
)

# %%
reveal(guess_eight, duel.loc[8, "trained"] - duel.loc[8, "rounded"], what="points won by training at 8 bits")
assert abs(duel.loc[8, "trained"] - duel.loc[8, "rounded"]) < 1
assert duel.loc[4, "trained"] > duel.loc[4, "rounded"] - 0.3
assert duel.loc[3, "lowest"] > duel.loc[3, "rounded"] + 1.5
assert abs(duel.loc[3, "trained"] - duel.loc[3, "AdaRound"]) < 2
assert duel.loc[2, "lowest"] > duel.loc[2, "AdaRound"] + 3

# %% [markdown]
# The images were not the same for both sides: AdaRound had 256, training 6,000 with labels. Would AdaRound do better with all of them? At 3 bits:

# %%
with_all = adarounded(3, images.batches(64))
print(f"AdaRound, 3 bits, 6,000 images without labels: ≈ {with_all:.1f} %; with 256 ≈ {duel.loc[3, 'AdaRound']:.1f} %")
assert abs(with_all - duel.loc[3, "AdaRound"]) < 2

# %% tags=["headline", "slide"]
print(
    f"weights and activations: 8 bits rounded ≈ {duel.loc[8, 'rounded']:.1f} %, trained ≈ {duel.loc[8, 'trained']:.1f} %; "
    f"2 bits rounded ≈ {duel.loc[2, 'rounded']:.1f} %, AdaRound ≈ {duel.loc[2, 'AdaRound']:.1f} %, "
    f"trained ≈ {duel.loc[2, 'trained']:.1f} %"
)

# %% [markdown]
# Four things are in this table:
#
# - At **8 bits** there is nothing to win. QAT at 8 bits mostly costs time.
# - At **4 bits** there is little to win, at **3 bits** training beats rounding to nearest by several points. Against AdaRound, which saw a small part of the images and no label, it is level within a point or so: whoever shows QAT far ahead here compares it with careless rounding.
# - At **2 bits** training is worth its price. AdaRound can repair weights, but not activations of four values.
# - The control, trained in floats for the same steps, gains nothing. What training wins is won back from rounding.
#
# ## 6. Traps
#
# ### Trap: the first and the last layer like the others

# %% tags=["trap"]
alike = q.prepare_qat(network, calibration, weight_bits=2, activation_bits=2, first_last_bits=None)
all_two = [percent(train(alike.model, 2, seed)) for seed in range(3)]
saved = q.convert(prepared.model).nbytes - q.convert(alike.model).nbytes
print("2 bits everywhere:", ", ".join(f"≈ {v:.1f} %" for v in all_two))
print(f"bytes saved by it: {saved:,} of {q.convert(prepared.model).nbytes:,}")
cost = (sum(learned) - sum(all_two)) / 3
reveal(guess_ends, cost, what="points lost with 2 bits in the first and last layer, mean of three seeds")
assert max(all_two) < min(learned) - 2

# %% [markdown]
# The input image with four grey values, and logits from four-valued weights: a bad place to save. The rule of thumb holds here.
#
# ### Trap: observers that never freeze
#
# In the older kind of QAT an **observer** follows the range of each activation with a moving average. If it goes on in evaluation, every look at the validation set changes the model. Here is one that follows in eval mode too: its range was 0 to 1, and evaluation shows it values of 4. And ours, shown the same.


# %% tags=["trap"]
class NeverFrozen(q.FakeQuantize):
    """What many prepared models do."""

    def forward(self, x):
        self._observe(x.detach())
        return super().forward(x)


for kind in (NeverFrozen, q.FakeQuantize):
    quantizer = kind(0.0, 1.0, bits=4).eval()
    print(f"{kind.__name__:<13} scale {quantizer.scale.item():.4f}", end=" ")
    [quantizer(torch.full((8,), 4.0)) for _ in range(5)]
    print(f"after five batches of validation {quantizer.scale.item():.4f}")

# %%
assert quantizer.scale.item() == torch.tensor(1 / 15).item()  # ours stayed

# %% [markdown]
# The package's `freeze` goes further: it gives a copy whose ranges and steps stand still in train mode too. That is for the last part of a long training, so that the weights settle on a grid that no longer moves. (Ours are too short to need it.) Here the network of section 4 that trained by straight-through alone, and one batch in train mode, four times too bright:

# %%
held, bright = q.freeze(plain.model), 4 * next(iter(few.batches(64)))[0]
for name, model in (("not frozen", plain.model), ("frozen", held)):
    quantizer = model.train().layer1[0].conv1.input_quantizer
    before, _ = quantizer.scale.item(), model(bright)
    print(f"{name:<10} scale of the inputs of a layer ≈ {before:.4f}, after the batch ≈ {quantizer.scale.item():.4f}")
    assert (quantizer.scale.item() == before) == (name == "frozen")

# %% [markdown]
# ### In stages?
#
# "First 8 bits, then 4, then 2" sounds gentle. At equal cost, half of the images at 4 bits and half at 2:

# %%
half, other_half = splits.train.take(torch.arange(1000)), splits.train.take(torch.arange(1000, 2000))
four = q.prepare_qat(network, calibration, weight_bits=4, activation_bits=4).model
staged = []
for seed in range(3):
    two = q.prepare_qat(train(four, 4, seed, half), calibration, weight_bits=2, activation_bits=2).model
    staged.append(percent(train(two, 2, seed, other_half)))
print("4 bits, then 2:", ", ".join(f"≈ {v:.1f} %" for v in staged))
print("2 bits at once:", ", ".join(f"≈ {v:.1f} %" for v in learned))
assert sum(staged) / 3 < sum(learned) / 3 + 1

# %% [markdown]
# No gain here: the steps spent at 4 bits are missing at 2, where they were needed. Stages may pay when training is long and the goal is far; test it before you believe it.
#
# ## 7. Convert
#
# Training is over. `convert` throws the floats beneath away and stores the integers (0 to 3 here, with a zero point of 2 for the levels -2 to 1). The predictions have to be the same.

# %%
trained = models[2][0]
converted = q.convert(trained)
integers = converted.weights["layer1.0.conv1.weight"]
print("levels:", sorted(integers.levels.unique().tolist()), "of type", integers.levels.dtype)
batch = splits.val.take(256).inputs()
with torch.no_grad():
    gap = (trained(batch) - converted.model(batch)).abs().max().item()
print("largest difference of the logits before and after:", gap)
assert gap == 0


# %%
def file_bytes(converted):
    """Bytes of the saved file, levels packed."""
    return measure.measure_size(q.packed_state(converted.model, converted.weights)).size_bytes


float_bytes = measure.measure_size(network).size_bytes
print(f"in FP32 {float_bytes:,} bytes, with 2-bit weights {file_bytes(converted):,} bytes")
assert file_bytes(converted) < float_bytes / 10

# %% [markdown]
# ## 8. For real: torchao
#
# PyTorch's own library does QAT in the same two steps, for linear layers (its flow for convolutions, PT2E, is slow to convert on a CPU and stays out of this notebook). Here 4-bit weights in groups of 32 for our MLP. *Look at:* the difference before and after converting.

# %%
mlp = checkpoints.load("mlp")
weights_only = ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.PerGroup(32))
ao.quantize_(mlp, ao.QATConfig(weights_only, step="prepare"))
print("prepared:", type(mlp.layers[0]).__name__)
tuned = fit(mlp, images, epochs=1, lr=1e-4, weight_decay=0.0).model
with torch.no_grad():
    simulated = tuned(batch)
    ao.quantize_(tuned, ao.QATConfig(weights_only, step="convert"))
    difference = (tuned(batch) - simulated).abs().max().item()
print(f"after converting the logits differ by at most {difference:.1g}")
assert difference < 1e-4

# %% [markdown]
# The older flow, `torch.ao.quantization` with `prepare_qat` and a `qconfig`, still fills the web. It is deprecated, trains nothing when the `qconfig` is not attached, and refuses to fuse in train mode. Do not start with it.
#
# ## 9. The whole lesson in one table
#
# The networks of section 5 (the first seed), converted, with the bytes of their files and a paired test against the float network.

# %%
finals = {"FP32": (network, float_bytes)}
for bits in (4, 3, 2):
    done = q.convert(models[bits][0])
    finals[f"W{bits}A{bits} trained"] = (done.model, file_bytes(done))
answers = {name: measure.predict(model, splits.test.batches()) for name, (model, _) in finals.items()}
rows = []
for name, found in answers.items():
    share, p = measure.accuracy(found), measure.mcnemar(answers["FP32"].correct, found.correct).p_value
    rows.append([finals[name][1], share.value, share.low, share.high])
    print(f"{name:<13} {finals[name][1]:>7,} bytes ≈ {100 * share.value:.1f} %   p ≈ {p:.2g}")
columns = ["size_bytes", "accuracy", "accuracy_low", "accuracy_high"]
summary = pd.DataFrame(rows, index=list(answers), columns=columns)

# %% tags=["slide"]
ax = measure.plot_comparison(summary, "accuracy")
ax.set(title="Trained on the grid")
show(ax, alt="Four points with error bars: 4 bits near FP32 at a seventh of its size, 2 bits ten points lower")

# %%
at = 100 * summary["accuracy"]
assert at["FP32"] - 3 < at["W4A4 trained"] < at["FP32"] + 1
assert at["W2A2 trained"] > 65

# %% [markdown]
# Four bits cost a good point at a seventh of the size, two bits more than ten points at a twelfth, and both losses are far beyond luck. The accuracy is that of integers, but nothing here ran on integers yet: a CPU has no instructions for 2 bits. Lesson 11 exports.

# %% [markdown]
# ## Exercises
#
# ### 03.1 Straight through
# *15 minutes, difficulty 2 of 3.* Write `straight(x, scale, quant_min, quant_max)`: `x` rounded to the grid with zero point 0, with a gradient of 1 where it lies within the grid and 0 where it is clipped.
#
# <details><summary>Hint</summary>Section 1 has it in three lines. Which part goes into <code>detach</code>?</details>


# %% tags=["exercise"]
def straight(x, scale, quant_min, quant_max):
    return None  # replace this line


check("03.1", straight)


# %% jupyter={"source_hidden": true} tags=["solution"]
def straight_solution(x, scale, quant_min, quant_max):
    clipped = x.clamp(quant_min * scale, quant_max * scale)
    rounded = (x / scale).round().clamp(quant_min, quant_max) * scale
    return clipped + (rounded - clipped).detach()


check("03.1", straight_solution, record=False)

# %% [markdown]
# ### 03.2 What moves the step
# *15 minutes, difficulty 3 of 3.* Write `pull(v, s, q_n, q_p)`: for each element of the tensor `v`, LSQ's derivative of the rounded value by the step (without the scaling by $1/\sqrt{N Q_P}$).
#
# <details><summary>Hint 1</summary>Decide by <code>v / s</code> whether an element lies below, inside or above.</details>
# <details><summary>Hint 2</summary><code>torch.where</code> twice.</details>


# %% tags=["exercise"]
def pull(v, s, q_n, q_p):
    return None  # replace this line


check("03.2", pull)


# %% jupyter={"source_hidden": true} tags=["solution"]
def pull_solution(v, s, q_n, q_p):
    steps = v / s
    inside = steps.round() - steps
    return torch.where(steps <= -q_n, -float(q_n), torch.where(steps >= q_p, float(q_p), inside))


check("03.2", pull_solution, record=False)

# %% [markdown]
# ### 03.3 Where the step starts, and how fast it moves
# *10 minutes, difficulty 1 of 3.* Write `first_step(weight, bits)`: the paper's first step $2 \, \mathrm{mean}|w| / \sqrt{Q_P}$ and its gradient scale $1/\sqrt{N Q_P}$, for a weight with one step.
#
# <details><summary>Hint</summary>For weights Q<sub>P</sub> is 2<sup>bits - 1</sup> - 1; N is the number of weights.</details>


# %% tags=["exercise"]
def first_step(weight, bits):
    return None  # replace this line


check("03.3", first_step)


# %% jupyter={"source_hidden": true} tags=["solution"]
def first_step_solution(weight, bits):
    q_p = 2 ** (bits - 1) - 1
    return 2 * weight.abs().mean() / math.sqrt(q_p), 1 / math.sqrt(weight.numel() * q_p)


check("03.3", first_step_solution, record=False)

# %% [markdown]
# ### 03.4 Warm up, then decay
# *10 minutes, difficulty 1 of 3.* Write `rate(step, steps, warmup, peak)`: the learning rate rises linearly from 0 to `peak` in the first `warmup` steps, then falls to 0 along a half cosine, at step `steps`.
#
# <details><summary>Hint</summary>(1 + cos(π t)) / 2 falls from 1 to 0 while t goes from 0 to 1.</details>


# %% tags=["exercise"]
def rate(step, steps, warmup, peak):
    return None  # replace this line


check("03.4", rate)


# %% jupyter={"source_hidden": true} tags=["solution"]
def rate_solution(step, steps, warmup, peak):
    if step < warmup:
        return peak * step / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


check("03.4", rate_solution, record=False)

# %% [markdown]
# ### 03.5 Find the bug: QAT that trains nothing
# *15 minutes, difficulty 2 of 3.* The loop below runs, and returns a network that learned nothing. Find out why, then write `train_prepared(model, prepare, inputs, labels)`: the prepared model after 20 steps on this one batch; the float model must stay as it was.
#
# ```python
# def train_prepared(model, prepare, inputs, labels):
#     optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
#     prepared = prepare(model)              # a copy, with fake quantization in it
#     for _ in range(20):
#         loss = F.cross_entropy(prepared(inputs), labels)
#         loss.backward()
#         optimizer.step()
#     return model
# ```
#
# <details><summary>Hint</summary>Whose parameters does the optimizer hold? What is returned? What happens to gradients from one step to the next?</details>


# %% tags=["exercise"]
def train_prepared(model, prepare, inputs, labels):
    return None  # replace this line


check("03.5", train_prepared)


# %% jupyter={"source_hidden": true} tags=["solution"]
def train_prepared_solution(model, prepare, inputs, labels):
    prepared = prepare(model)
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1)
    for _ in range(20):
        loss = F.cross_entropy(prepared(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return prepared


check("03.5", train_prepared_solution, record=False)

# %% [markdown]
# ## Quiz

# %% tags=["quiz"]
quiz("03")

# %% [markdown]
# ## Summary
#
# - Rounding has no slope; the **straight-through estimator** pretends that it has, and weights oscillate between two levels.
# - **LSQ** learns the step of each grid, and at 2 bits that is what makes training work.
# - Prepare makes a **new** model: fold batch norms first, keep 8 bits at both ends, let nothing move in evaluation.
# - Converting changes no prediction. If it does, the simulation was wrong.
# - At 8 bits round; at 4 and 3 bits round carefully (AdaRound), or train; at 2 bits train.
#
# ## Sources
#
# - Bengio, Leonard and Courville, *Estimating or propagating gradients through stochastic neurons*, 2013, arXiv:1308.3432
# - Jacob and others, *Quantization and training of neural networks for efficient integer-arithmetic-only inference*, 2017, arXiv:1712.05877
# - Esser and others, *Learned step size quantization*, ICLR 2020, arXiv:1902.08153
# - Bhalgat and others, *LSQ+*, 2020, arXiv:2004.09576
# - Nagel and others, *Overcoming oscillations in quantization-aware training*, ICML 2022, arXiv:2203.11086
#
# ## Next
#
# Lesson 04 turns to language models, whose weights nobody can train again on a laptop: 4 bits by solving for the errors.

# %%
lesson_done = True
