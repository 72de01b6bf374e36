# %% [markdown]
# # 09 Low rank and shared weights: is there redundancy that is neither bits nor zeros?
#
# **Time:** 90 minutes with the exercises, 50 without. **Runs in:** one to two minutes, without a network or a GPU.
#
# **Before you start** you should have done lessons 02 (bits) and 05 (zeros). The small GPT and its perplexity come from lesson 04, and a little of lesson 08 (soft targets) is used.
#
# **Afterwards you can**
# - replace a matrix or a convolution by a product of smaller ones, choose the rank, and say from where on it saves parameters, arithmetic and time: three different numbers;
# - use what a layer sees, and not only what it holds, to cut it;
# - let weights share values, train the values, and write the result as a file that is as small as you say;
# - share whole layers, and know what that does not save.
#
# So far we took bits away, and weights. Is there a third kind of redundancy: weights that can be *computed* from fewer numbers, or that many places share?

# %% tags=["setup"]
import copy
import itertools
import tempfile
import zlib
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from sklearn.cluster import KMeans
from torch import nn

from compresslab import factorization as f
from compresslab import measure
from compresslab import pruning as p
from compresslab import quantization as q
from compresslab.course import check, quiz, reveal, show, start
from compresslab.distillation.soft import soft_target_loss
from compresslab.workbench import checkpoints, data
from compresslab.workbench.train import evaluate, fit, jitter

_ = start(threads=1)

# %% [markdown]
# ## Three guesses, before anything is measured

# %%
guess_rank = None  # 384 x 96 as a product of 384 x r and r x 96: the largest r that saves parameters?
guess_bits = None  # percent: accuracy of our ResNet (89 %) when each layer has only 4 different weights?
guess_file = None  # how many times smaller can the file of a network get, if it may lose about a point?

# %% [markdown]
# ## 1. A table that is a product
#
# Look at these twelve numbers. They are made of seven.

# %%
column, row = torch.tensor([[1.0], [2.0], [-1.0]]), torch.tensor([[3.0, 0.0, 1.0, 2.0]])
product = column @ row
print(product.int().tolist(), "has rank", int(torch.linalg.matrix_rank(product)))

# %% [markdown]
# Each row is a multiple of one row. That is **rank 1**. A matrix of rank $r$ is a sum of $r$ such products, $W = LR$ with $L$ of shape $(O, r)$ and $R$ of shape $(r, I)$. For a layer with $O$ outputs and $I$ inputs it takes $r(O + I)$ numbers in place of $O \cdot I$.
#
# No trained matrix has a low rank exactly. But the **singular value decomposition** (SVD), $W = U \Sigma V^\top$, writes any matrix as a sum of such products: a column of $U$ times a row of $V^\top$ times a *singular value*, which says how much this product matters. The largest come first, and no matrix of rank $r$ is nearer to $W$ than the first $r$ of them (Eckart and Young, 1936). Below, twelve numbers that are *nearly* our product, cut to rank 1. *Look at:* the error, which we know before we cut.

# %%
weight = product + 0.3 * torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.0, 1.0, -1.0, 0.0], [0.0, 0.0, 1.0, -1.0]])
u, s, vh = torch.linalg.svd(weight, full_matrices=False)
cut = u[:, :1] * s[:1] @ vh[:1]
print("singular values", [round(value, 2) for value in s.tolist()])
print(f"error of rank 1: {(weight - cut).norm():.4f} = root of the sum of the squares left: {s[1:].norm():.4f}")

# %% [markdown]
# The part of the sum of squares that stays is called the **energy**. So a rank can be chosen by the energy to keep. And up to which rank does it pay? In a few lines:


# %%
def energy_rank(values, energy):
    kept = values.square().cumsum(0) / values.square().sum()
    return int((kept < energy).sum()) + 1


def break_even(out_features, in_features):
    return (out_features * in_features - 1) // (out_features + in_features)


values = torch.tensor([3.0, 2.0, 1.0, 0.5])
assert all(energy_rank(values, e) == f.energy_rank(values, e) for e in (0.5, 0.7, 0.9, 0.99))
assert break_even(384, 96) == f.break_even_rank(384, 96)
print("energy 0.9 of", values.tolist(), "takes rank", energy_rank(values, 0.9))
reveal(guess_rank, break_even(384, 96), what="largest rank of 384 x 96 that saves parameters")

# %% [markdown]
# Of 96 possible ranks the upper 20 save nothing at all: two full factors are more than one matrix.
#
# ## 2. Three numbers called break-even
#
# Now a convolution, 64 to 128 channels with stride 2, as three: 1 x 1 to few channels, 3 x 3 among the few, 1 x 1 back (Tucker-2, section 5). We keep twice as many directions of the outputs as of the inputs, and try ranks in steps of four. At which rank does it stop saving parameters? Arithmetic? Time?

# %%
conv, image = nn.Conv2d(64, 128, 3, stride=2, padding=1, bias=False), torch.randn(1, 64, 32, 32)
ranks = range(4, 65, 4)
factors = {r: f.tucker_conv(conv, (2 * r, r)) for r in ranks}
parameters = {r: f.parameters_of(part) for r, part in factors.items()}
macs = {r: measure.count_macs(part, image).total for r, part in factors.items()}
dense = f.parameters_of(conv), measure.count_macs(conv, image).total
saves = [max(r for r in ranks if cost[r] < limit) for cost, limit in zip((parameters, macs), dense, strict=True)]
print(f"parameters: {dense[0]:,}, break even above rank {saves[0]}; MACs: {dense[1]:,}, above rank {saves[1]}")
assert saves[0] > saves[1]

# %% [markdown]
# The first 1 x 1 runs *before* the stride, on four times as many pixels. So arithmetic breaks even earlier than parameters. (Where nothing strides, as in a linear layer, both are the same number; in an embedding, which only looks up, any rank costs arithmetic.) And time:

# %% tags=["nbval-ignore-output"]
calls = {"dense": conv} | {str(r): part for r, part in factors.items() if r % 8 == 0}
speed = measure.compare_latency(calls, image, reference="dense", rounds=10, min_time_s=0.02)
timed = {name: 1e3 * found.median_s for name, found in speed.latency.items()}
print(
    ", ".join(f"rank {name}: {ms:.2f} ms" if name != "dense" else f"dense: {ms:.2f} ms" for name, ms in timed.items())
)
faster = 8 * f.largest_rank(lambda step: timed[str(8 * step)], timed["dense"], most=8)
print(f"break even: parameters {saves[0]}, MACs {saves[1]}, milliseconds {faster}")

# %% tags=["slide"]
curves = {"parameters": {r: parameters[r] / dense[0] for r in ranks}, "MACs": {r: macs[r] / dense[1] for r in ranks}}
curves["milliseconds"] = {r: timed[str(r)] / timed["dense"] for r in ranks if str(r) in timed}
fig, ax = plt.subplots(figsize=(6.5, 3.2))
for (label, curve), style in zip(curves.items(), ("o-", "s--", "^:"), strict=True):
    ax.plot(list(curve), list(curve.values()), style, label=label)
ax.axhline(1, color="black", lw=0.8)
ax.set(
    xlabel="rank of the inputs (the outputs have twice it)", ylabel="cost, dense = 1", title="One layer, three costs"
)
ax.legend()
show(fig, alt="All three costs rise with the rank and cross the line of the dense layer, parameters last, time first")

# %% [markdown]
# *Look at:* where each curve crosses the black line, the dense layer. Three layers are three calls, and read and write two results between them. So the clock breaks even first, and where exactly is a property of the machine. That is why `largest_rank` takes any cost: a formula, or a stopwatch.
#
# ### Trap: a rank that saves parameters and costs time
#
# A layer of the size in our GPT, at rank 64: a sixth fewer parameters. *Look at:* the last column.

# %% tags=["trap", "nbval-ignore-output"]
layer, x = nn.Linear(96, 384), torch.randn(1, 96)
pair = f.factorize_linears(nn.Sequential(layer), rank=64).model[0]
slow = measure.compare_latency({"dense": layer, "rank 64": pair}, x, rounds=30, min_time_s=0.05)
for name, module in (("dense", layer), ("rank 64", pair)):
    print(f"{name:<8} {f.parameters_of(module):>6,} parameters, {1e6 * slow.latency[name].median_s:.1f} us")

# %%
assert f.parameters_of(pair) < f.parameters_of(layer)
assert slow.speedup["rank 64"].value < 1

# %% [markdown]
# Less arithmetic, and more time: what so small a call costs is mostly the calling, and now there are two calls. Mended by asking the clock, not the formula: a layer that gets no faster stays as it is.
#
# ## 3. Keep what the layer does, not what it holds
#
# The cut SVD is the nearest *matrix*. But who looks at the matrix? What should stay is the output: the error to make small is $\|(W - W')X\|$, where the columns of $X$ are inputs. Two weights, 3 and 1, each with an input of its own, and room for one. If the second input is ten times as large as the first (its mean square is 100 in place of 1), its weight matters ten times as much:

# %%
weight, seen = torch.diag(torch.tensor([3.0, 1.0])), torch.diag(torch.tensor([1.0, 100.0]))
for name, covariance in (("plain", None), ("weighted", seen)):
    left, right = f.decompose(weight, covariance=covariance).factors(1)
    print(f"{name:<9} keeps {(left @ right).round().abs().int().tolist()}")

# %% [markdown]
# Only the mean $C$ of $xx^\top$ over the inputs is needed, as in GPTQ (lesson 04). Split it into $C = SS^\top$; then $\|(W - W')S\|$ measures the same error, and it is the SVD of $WS = U\Sigma V^\top$ that has to be cut. Papers go on with $W' = U_r \Sigma_r V_r^\top S^{-1}$, and then worry about an $S$ that cannot be inverted. There is nothing to worry about: $\Sigma_r V_r^\top = U_r^\top W S$, so the inverse cancels and $W' = U_r U_r^\top W$, with $U_r$ the first $r$ columns of $U$. (The package adds a little of the identity to $C$, `ridge`, which decides where the inputs do not. Below it is off.) In code:


# %%
def weighted(weight, x, rank):
    values, vectors = torch.linalg.eigh((x.T @ x / len(x)).double())
    root = vectors * values.clamp_min(0).sqrt()
    u = torch.linalg.svd(weight.double() @ root, full_matrices=False).U[:, :rank]
    return u @ u.T @ weight.double()


# %%
generator = torch.Generator().manual_seed(0)
weight = torch.randn(8, 12, generator=generator)
x = torch.randn(5, 12, generator=generator)  # fewer inputs than features
left, right = f.decompose(weight, covariance=x.T @ x, ridge=0.0).factors(3)
print("equal to the package:", torch.allclose(weighted(weight, x, 3).float(), left @ right, atol=1e-4))
best = torch.linalg.svdvals(weight @ x.T)[3:].norm()
print(f"error on these inputs: {((weight - left @ right) @ x.T).norm():.4f}, the least possible: {best:.4f}")

# %% [markdown]
# Now real networks: the MLP and a small vision transformer (ViT: the GPT's kind of blocks, reading patches of the image) on our characters, the GPT on text. Each is cut in both ways to the same ranks; the weighted way sees 512 images, or 32 pieces of text. For the GPT the number is a perplexity, on a few batches of validation text: lower is better. *Look at:* the MLP at rank 16.

# %%
splits, text = data.load("glyphs"), data.load("python-docs")
images = list(splits.train.take(512).batches(128))
pieces = list(text.train.batches(8, context=128, shuffle=True, generator=torch.Generator().manual_seed(0)))
held_out = list(text.val.batches(32, context=128))[:4]


def percent(model, split=splits.val):
    return 100 * measure.accuracy(measure.predict(model, split.batches())).value


def listed(values, digits=1):
    return ", ".join(f"≈ {value:.{digits}f}" for value in values)


# %%
networks = {name: checkpoints.load(name) for name in ("mlp", "vit", "gpt", "resnet", "vgg", "separable", "lstm")}
dense = {name: percent(networks[name]) for name in ("mlp", "vit", "resnet", "vgg")}
dense |= {name: evaluate(networks[name], held_out).perplexity for name in ("gpt", "lstm")}

# %%
cuts = {}
for name, ranks in (("mlp", (24, 16)), ("vit", (32, 24)), ("gpt", (48, 32))):
    for rank in ranks:
        for way, batches in (("plain", None), ("weighted", pieces[:4] if name == "gpt" else images)):
            found = f.factorize_linears(networks[name], batches, rank=rank)
            value = evaluate(found.model, held_out).perplexity if name == "gpt" else percent(found.model)
            cuts[name, rank, way] = value
            share = found.parameters / found.parameters_before
        print(
            f"{name} rank {rank} ({share:.0%} of the parameters): plain ≈ {cuts[name, rank, 'plain']:.1f}, weighted ≈ {value:.1f}"
        )

# %%
print(
    ", ".join(f"{name} as it was ≈ {dense[name]:.1f}" for name in ("mlp", "vit", "gpt")), "(the last is a perplexity)"
)
assert all(cuts[n, r, "weighted"] > cuts[n, r, "plain"] + 2 for n, r, _ in cuts if n != "gpt")
assert cuts["gpt", 32, "weighted"] < cuts["gpt", 32, "plain"] / 2

# %% [markdown]
# At equal ranks it helps everywhere, the more the harder the cut: 4 to 30 points of accuracy, and at rank 32 the GPT's perplexity is less than half. It takes one pass over some inputs. (The GPT's head stays whole: its weight is tied to the embedding, and the package says so in `skipped`.)
#
# ### Energy is not accuracy
#
# Which layer should get which rank? `allocate_ranks` shares a number of parameters among the layers so that little energy is lost: it spends each where it buys most energy. But the energy of what? We have two: that of the weights, and that of the outputs. All three networks below have 60 % of the parameters of the GPT's matrices.

# %%
gpt = networks["gpt"]
matrices = {name: part for name, part in gpt.blocks.named_modules(prefix="blocks") if isinstance(part, nn.Linear)}
seen = f.input_covariances(gpt, pieces[:4], layers=matrices)
spectra = {name: f.decompose(part.weight, covariance=seen[name]).singular_values for name, part in matrices.items()}
shapes = {name: tuple(part.weight.shape) for name, part in matrices.items()}
by_outputs = f.allocate_ranks(spectra, shapes, int(0.6 * sum(out * into for out, into in shapes.values()))).ranks
by_outputs = {name: rank for name, rank in by_outputs.items() if rank is not None}

# %%
shared = {"ranks by weights, cut by weights": f.factorize_linears(gpt, budget=0.6)}
shared["ranks by outputs, cut by outputs"] = f.factorize_linears(gpt, pieces[:4], rank=by_outputs)
shared["ranks by weights, cut by outputs"] = f.factorize_linears(gpt, pieces[:4], budget=0.6)
for name, found in shared.items():
    shared[name] = evaluate(found.model, held_out).perplexity
    print(f"{name}: {found.parameters:,} parameters, perplexity ≈ {shared[name]:.2f}")
assert sorted(shared, key=shared.get)[0] == "ranks by weights, cut by outputs"

# %% [markdown]
# Some layers have inputs with one loud direction. It holds nearly all energy, so a tiny rank seems to do; but it is the rest that tells tokens apart. *Within* a layer the outputs are the better guide, *between* layers their energies do not compare. So the package's `budget=` takes ranks from the weights and cuts by the outputs. (Lesson 02 has the surer way: measure the loss of each layer.)
#
# ## 4. What training makes good
#
# Two narrow layers train like any others. The MLP at rank 16, with 29 % of its parameters, twice through 4,000 images, three seeds:


# %%
def tune(model, count, epochs=1, **more):
    options = {"batch_size": 64, "augment": jitter, "lr": 3e-3} | more
    return [fit(model, splits.train.take(count), epochs=epochs, seed=seed, **options).model for seed in range(3)]


# %%
tuned = {}
for way, batches in (("plain", None), ("weighted", images)):
    found = f.factorize_linears(networks["mlp"], batches, rank=16)
    tuned[way] = [percent(model) for model in tune(found.model, 4000, epochs=2, lr=1e-3)]
    print(f"{way:<9} before ≈ {cuts['mlp', 16, way]:.1f} %, after {listed(tuned[way])} %")
assert min(tuned["plain"]) > cuts["mlp", 16, "plain"] + 20
assert min(tuned["weighted"]) > max(tuned["plain"])

# %% [markdown]
# Training wins back much of what the plain cut lost, and a better start is still seen afterwards.
#
# ## 5. Convolutions
#
# A kernel has four axes: output channels, input channels, and the two of its window. So it can be cut in more ways than a matrix. Each way is a chain of thinner convolutions:
#
# - **channel**: 3 x 3 to few channels, then 1 x 1 back;
# - **spatial**: a column (3 x 1), then a row (1 x 3);
# - **Tucker-2**: few channels on both sides of the window;
# - **separable**: each channel alone (*depthwise*), then 1 x 1 (section 6).
#
# Here they are for one layer of our ResNet, the first three with at most 40 % of its weights.

# %%
layer = networks["resnet"].layer3[0].conv2
chains = {"whole": [layer], "channel": f.channel_svd(layer, 23), "spatial": f.spatial_svd(layer, 38)}
chains |= {"Tucker-2": f.tucker_conv(layer, (33, 33)), "separable": f.separable_conv(layer)}
for name, chain in chains.items():
    counts = [part.weight.numel() for part in chain]
    print(f"{name:<10}{sum(counts):>6,} weights ({sum(counts) / layer.weight.numel():.0%}):", *counts)
    assert name == "whole" or sum(counts) <= 0.4 * layer.weight.numel()


# %% [markdown]
# *Look at:* where each chain is thin. Bars are channels; between them stand the windows, with their weights below.


# %%
def draw_chain(ax, y, chain):
    """Bars for the channels, squares for the windows between them; y is the middle."""
    widths = [chain[0].in_channels, *(part.out_channels for part in chain)]
    ax.bar(range(len(widths)), [n / 90 for n in widths], 0.06, [y - n / 180 for n in widths], color="C0")
    for x, count in enumerate(widths):
        ax.text(x, y - count / 180 - 0.03, count, ha="center", va="bottom", fontsize=8)
    for x, part in enumerate(chain):
        h, w = part.kernel_size
        for row, column in itertools.product(range(h), range(w)):
            place = x + 0.5 + 0.07 * (column - w / 2), y + 0.14 * (row - h / 2)
            ax.add_patch(plt.Rectangle(place, 0.07, 0.14, fc="white" if part.groups > 1 else "C1", ec="black"))
        ax.text(x + 0.5, y + 0.25, f"{part.weight.numel():,}", ha="center", va="top", fontsize=8)


# %% tags=["slide"]
fig, ax = plt.subplots(figsize=(7, 5))
for y, chain in enumerate(chains.values()):
    draw_chain(ax, y, chain)
totals = [sum(part.weight.numel() for part in chain) for chain in chains.values()]
ax.set_yticks(range(5), [f"{name}\n{total:,} weights" for name, total in zip(chains, totals, strict=True)])
ax.set(ylim=(4.5, -0.6), xlim=(-0.1, 3.1), xticks=[], title="Four ways to cut one kernel (white: each channel alone)")
ax.spines[:].set_visible(False)
ax.tick_params(length=0)
show(
    fig,
    alt="Five rows of bars and windows: channel is thin in the middle, spatial a column and a row, Tucker thin twice",
)

# %% [markdown]
# Few channels in the middle, a thin window, or channels that do not mix: that is where the weights go. The oldest example is in every textbook: Sobel's filter is a column times a row.

# %%
sobel = nn.Conv2d(1, 1, 3, bias=False)
sobel.weight.data = (torch.tensor([[1.0], [2.0], [1.0]]) @ torch.tensor([[1.0, 0.0, -1.0]])).view(1, 1, 3, 3)
vertical, horizontal = f.spatial_svd(sobel, 1)
picture = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
print("six numbers do what nine did:", torch.allclose(horizontal(vertical(picture)), sobel(picture), atol=1e-5))

# %% [markdown]
# Tucker-2 looks for a few directions (a *basis*) among the input channels, and a few among the output channels. The best pair of bases has no formula. Cutting each axis by its own SVD (HOSVD) is good; improving them in turns, each given the other (HOOI), is a little better and never worse. *Look at:* how soon the error of the kernel stands still.

# %%
kernel = networks["resnet"].layer3[0].conv2.weight
errors = [f.tucker2(kernel, (24, 24), steps=steps).error for steps in (0, 1, 2, 5, 20)]
print("HOSVD, then 1, 2, 5, 20 steps:", ", ".join(f"≈ {error:.4f}" for error in errors))
assert all(after <= before + 1e-9 for before, after in itertools.pairwise(errors))

# %% [markdown]
# The ResNet with 40 % of each kernel's parameters, cut in all three ways; then one pass of training over 1,500 images, three seeds.

# %%
cut, convs, spatial = {}, {}, None
for method in ("channel", "spatial", "tucker"):
    found = cut[method] = f.factorize_convs(networks["resnet"], method=method, share=0.4)
    made = tune(found.model, 1500)
    spatial = made[0] if method == "spatial" else spatial
    convs[method] = [percent(model) for model in made]
    print(
        f"{method:<8} {found.parameters:,} parameters: before ≈ {percent(found.model):.1f} %, after {listed(convs[method])} %"
    )

# %%
assert min(convs["spatial"]) > max(convs["channel"])
reasons = pd.Series(cut["tucker"].skipped).value_counts()
print(reasons.to_string())

# %% [markdown]
# Which cut is best is a property of the network: ours is narrow, so its channels have little to spare, and perhaps its kernels look for strokes, which are nearly products of a column and a row. In wide networks it is often the other way round. And what cannot be cut is listed with its reason.
#
# ## 6. Separable convolutions: the same idea, built in
#
# The most radical cut, the last row of the picture, looks around in each channel alone (depthwise), and then mixes the channels at each pixel (1 x 1). A 3 x 3 convolution of $C$ to $O$ channels has $9CO$ weights, this pair has $9C + CO$. MobileNet is a stack of such pairs. EfficientNet asks how such a network should grow, and answers: deeper, wider and with larger images *together*, so that each step $\varphi$ takes about twice the arithmetic. The formulas say:

# %%
whole, split = f.conv_cost(512, 512, pixels=14 * 14), f.separable_cost(512, 512, pixels=14 * 14)
print(
    f"a layer of MobileNet: {whole.macs / 1e6:.0f} M MACs, separable {split.macs / 1e6:.1f} M: {whole.macs / split.macs:.1f}x"
)
block = f.inverted_residual_cost(24, 32, expansion=6, pixels=28 * 28)
print(f"a block of MobileNetV2 (widen 6x, look around, narrow): {block.macs / 1e6:.2f} M")
grown = f.compound_scaling(3)
print(
    f"EfficientNet's rule, three steps: depth {grown.depth:.2f}x, width {grown.width:.2f}x, resolution {grown.resolution:.2f}x, MACs {grown.macs:.1f}x"
)

# %% [markdown]
# ### Can a trained kernel be split so?
#
# For each input channel the best pair is an SVD. `separate_convs` takes it, with one or more depthwise kernels for each channel. *Look at:* how far that goes.

# %%
apart = {}
for terms in (1, 2, 4):
    found = f.separate_convs(networks["resnet"], terms=terms)
    apart[terms] = percent(found.model)
    print(f"{terms} depthwise kernels a channel: {found.parameters:,} parameters, ≈ {apart[terms]:.1f} %")
assert apart[1] < 10 < 50 < apart[4] < dense["resnet"] - 10

# %% [markdown]
# Not far: with one kernel for each channel, a network that was not trained so is guessing.
#
# ### Fewer multiplications, and the clock
#
# MobileNet and EfficientNet are *built* of such pairs and trained from scratch. Our course has one, nearly as good as the ResNet.

# %%
pair = {name: networks[name] for name in ("resnet", "separable")}
for name, model in pair.items():
    total = measure.count_macs(model, torch.zeros(1, 1, 32, 32)).total
    layers = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    print(f"{name:<10} {total / 1e6:.2f} M MACs, {layers} convolutions, ≈ {percent(model):.1f} %")

# %% tags=["nbval-ignore-output"]
for batch in (1, 64):
    found = measure.compare_latency(pair, torch.zeros(batch, 1, 32, 32), rounds=15, min_time_s=0.05).latency
    print(f"batch {batch}:", {name: f"{1e3 * each.median_s / batch:.3f} ms an image" for name, each in found.items()})

# %% tags=["nbval-ignore-output"]
small = torch.zeros(1, 64, 8, 8)
parts = {"3 x 3": nn.Conv2d(64, 64, 3, padding=1), "1 x 1": nn.Conv2d(64, 64, 1)}
parts["depthwise"] = nn.Conv2d(64, 64, 3, padding=1, groups=64)
seconds = {name: found.median_s for name, found in measure.compare_latency(parts, small, rounds=15).latency.items()}
counts = {name: measure.count_macs(part, small).total for name, part in parts.items()}
rate = {name: counts[name] / seconds[name] / 1e9 for name in parts}
for name in parts:
    print(f"{name:<10} {counts[name]:>9,} MACs, {1e6 * seconds[name]:.1f} us, {rate[name]:.1f} G MACs a second")

# %%
print("MACs:", counts)
assert rate["depthwise"] < rate["3 x 3"] / 2

# %% [markdown]
# Nearly three times fewer multiplications, and where we measured it is slower for one image and level for 64. The last three lines say why. A 3 x 3 convolution uses each number that it loads many times. A depthwise one uses it nine times, and the processor waits. Count MACs to compare *designs*; to compare *speed*, measure.
#
# ## 7. Weights that share values
#
# Back to matrices. Perhaps a layer does not need many *different* weights: let it have 4, 8 or 16, in a table (codebook), and store for each weight the number of its entry. Which values? Those of **k-means**: assign each weight to the nearest, move each value to the mean of its weights, again until nothing moves.


# %%
def lloyd(weights, centroids, steps=100):
    for _ in range(steps):
        nearest = (weights.flatten().unsqueeze(1) - centroids).abs().argmin(1)
        centroids = torch.stack([weights.flatten()[nearest == k].mean() for k in range(len(centroids))])
    return centroids


weights = torch.tensor([[0.0, 1.0, 3.0], [4.0, 8.0, 8.0]])
found = f.kmeans(weights, 3)
print("values", found.centroids.tolist(), "numbers", found.indices.tolist(), "bytes", found.nbytes)
assert torch.equal(lloyd(weights, torch.tensor([0.0, 4.0, 8.0])), found.centroids)

# %% [markdown]
# Three values of 4 bytes, and six numbers of 2 bits: 14 bytes. (The package sorts the weights once and then only searches the borders between the values; section 11 times it.)
#
# A grid of lesson 02 has its values at equal distances. Here they go where the weights are. Is that worth a table? The ResNet, at equal bits for each weight:

# %%
bits = {}
for width in (2, 3, 4):
    grid = percent(q.quantize_weights(networks["resnet"], bits=width).model)
    table = percent(f.share_weights(networks["resnet"], clusters=2**width).model)
    bits[width] = grid, table
    print(f"{width} bits: a grid for each channel ≈ {grid:.1f} %, a table for each layer ≈ {table:.1f} %")
reveal(guess_bits, bits[2][1], what="four different weights in each layer", unit="%")
assert all(bits[width][1] > bits[width][0] + 3 for width in (2, 3))

# %%
sizes = [q.quantize_weights(networks["resnet"], bits=3).nbytes, 0]
shared = f.share_weights(networks["resnet"], clusters=8)
rest = sum(t.nbytes for name, t in networks["resnet"].state_dict().items() if name not in shared.codebooks)
sizes[1] = rest + sum(book.nbytes for book in shared.codebooks.values())
print(f"bytes at 3 bits: grids for the channels {sizes[0]:,}, tables for the layers {sizes[1]:,}")
assert sizes[1] < sizes[0]

# %% [markdown]
# At 2 and 3 bits a table for a whole layer beats a grid for each channel, and at 3 bits we saw that it takes fewer bytes. At 4 it is level. The price: a table must be looked up, and no integer arithmetic can be done with the numbers of its entries. It makes a *file* small.
#
# ### Trap: a codebook larger than what it codes
#
# 256 values are a table of 1,024 bytes. *Look at:* who is left out, and why.

# %% tags=["trap"]
large = f.share_weights(networks["resnet"], clusters=256, init="density")
small = [name for name, reason in large.skipped.items() if "saves nothing" in reason]
for name in small[:2]:
    print(f"{name}: {large.skipped[name]}")
book = f.kmeans(networks["resnet"].conv1.weight, 256, init="density")
weight = networks["resnet"].conv1.weight
print(f"the first layer, coded all the same: {book.nbytes} bytes in place of {weight.nbytes}")
assert book.nbytes > weight.nbytes

# %% [markdown]
# The first layer has fewer than 256 weights. So its table is as long as the layer, and the numbers of the entries come on top. The package refuses and says so. (`init="density"` starts the values where the weights are dense, so that more of them stay in use.) Mended by fewer values, or by one table for several layers.
#
# ## 8. Short words for frequent numbers
#
# With 16 values each number takes 4 bits. But the values near zero are used far more often than those at the ends. A **Huffman code** gives frequent symbols short words. By hand: six symbols, counts 45, 13, 12, 16, 9, 5. Join the two rarest, again and again; the depth of a symbol in the tree is the length of its word.

# %%
counts = torch.tensor([45, 13, 12, 16, 9, 5])
lengths = f.code_lengths(counts)
words = [f"{word:0{n}b}" for word, n in zip(f.code_words(lengths).tolist(), lengths.tolist(), strict=True)]
print(words, "no word is the beginning of another")
symbols = torch.arange(6).repeat_interleave(counts)
print(
    f"{int((lengths * counts).sum())} bits, with 3 bits each {3 * int(counts.sum())}, entropy {f.entropy_bits(symbols):.1f}"
)

# %% [markdown]
# The **entropy** is the least that any code of single symbols can reach. Now a real layer, the classifier of the VGG (a plain stack of convolutions, the ResNet's rival in lesson 00), with 16 values.

# %%
numbers = f.kmeans(networks["vgg"].classifier.weight, 16).indices
encoded = f.huffman_encode(numbers)
assert torch.equal(f.huffman_decode(encoded).to(torch.uint8), numbers.flatten())
least, each = f.entropy_bits(numbers) / numbers.numel(), 8 * encoded.nbytes / numbers.numel()
print(f"bits for each weight: fixed 4, Huffman ≈ {each:.3f}, entropy ≈ {least:.3f}")
assert least < each < 1.05 * least

# %% [markdown]
# A third of a bit is not much. The gain grows where some symbols are far more frequent than others, as zeros are after pruning.
#
# ## 9. Deep Compression, from end to end
#
# Han, Mao and Dally put it together in 2016: **prune**, let the rest **share values**, **code** the numbers, and also the gaps between the weights that are left. After the first two stages the network is trained. Our VGG: 80 % zeros on the cubic schedule of lesson 05, reached after 375 steps, half of the training, and with the soft targets of lesson 08.

# %%
teacher, pruner = networks["vgg"], p.GradualPruner(lambda step: 0.8 * (1 - (1 - min(step / 375, 1)) ** 3))


def distilled(model, batch):
    logits = model(batch[0])
    with torch.no_grad():
        hints = teacher(batch[0])
    soft = soft_target_loss(logits, hints, temperature=2.0)
    return 0.3 * nn.functional.cross_entropy(logits, batch[1]) + 0.7 * soft


# %%
options = {"batch_size": 64, "augment": jitter, "loss_fn": distilled, "weight_decay": 0.0}
pruned = fit(teacher, splits.train, epochs=3, lr=4e-3, after_step=pruner, **options).model
print(f"{p.sparsity_of(pruned).overall:.1%} of the weights are zero")
print(f"right: ≈ {percent(pruned):.1f} %, before ≈ {dense['vgg']:.1f} %")

# %% [markdown]
# The masks go to `share_weights`: zeros take no part in the clusters. Then the *tables* are trained. The gradient of a value is the sum over all its weights. Which weight has which value, and where the zeros are, stays as it is.

# %%
clustered = f.share_weights(pruned, clusters=8, masks=pruner.masks)
tables = f.train_codebooks(clustered.model, clustered.codebooks)
print("a layer's parameter now:", tables.features[3].parametrizations.weight.original.shape[0], "values")
fitted = fit(tables, splits.train.take(8000), epochs=1, lr=1e-3, **options).model
ready = f.finish_codebooks(fitted)
steps = {"pruned": percent(pruned), "8 values": percent(clustered.model), "trained": percent(ready)}
print(", ".join(f"{name} ≈ {value:.1f} %" for name, value in steps.items()))
assert steps["trained"] > steps["8 values"]

# %% [markdown]
# And the file. `save_compressed` is told nothing: it finds the zeros and the repeated values, tensor by tensor, and takes the shortest code. Reading it gives back every bit.

# %%
with tempfile.TemporaryDirectory() as folder:
    file = f.save_compressed(ready.state_dict(), Path(folder) / "vgg")
    again = checkpoints.load("vgg")
    again.load_state_dict(f.load_compressed(file.path))
state = again.state_dict()
same = all(torch.equal(state[name], tensor) for name, tensor in ready.state_dict().items())
print(f"read back bit for bit: {same}; {file.dense_bytes:,} bytes became ≈ {file.nbytes:,}: ≈ {file.ratio:.1f}x")
print(f"gzip of the same weights: ≈ {file.gzip_bytes:,}; the entropy bound: ≈ {file.bound_bytes:,.0f}")

# %%
reveal(guess_file, file.ratio, what="how many times smaller", unit="x")
assert same
assert file.ratio > 20
assert file.bound_bytes < file.nbytes < 1.05 * file.bound_bytes < file.gzip_bytes
assert steps["trained"] > dense["vgg"] - 3

# %% [markdown]
# Twenty times smaller than FP32, within a few percent of what is possible, and far below gzip, for a point or two of accuracy. (More training brings it closer: `benchmarks/bench_factorization.py` takes twice as much.) Where does it come from?

# %%
stages = {"dense": networks["vgg"], "80 % zeros": pruned}
stages |= {"8 values": f.share_weights(networks["vgg"], clusters=8).model, "both": ready}
written = {}

with tempfile.TemporaryDirectory() as folder:
    for name, model in stages.items():
        found = written[name] = f.save_compressed(model.state_dict(), Path(folder) / "file")
        by_gzip = found.dense_bytes / found.gzip_bytes
        print(f"{name:<11} ≈ {found.ratio:.1f}x with our codes, ≈ {by_gzip:.1f}x with gzip")
assert written["both"].ratio > 1.5 * max(written["80 % zeros"].ratio, written["8 values"].ratio)

# %% [markdown]
# Zeros alone save less than one thinks: the values that are left take 32 bits each. Values alone come to about 3 bits for each weight, but for *each*. It is both together that makes twenty.
#
# ## 10. Sharing whole layers
#
# One step further: two layers that are one. ALBERT does so with all blocks of a BERT. We let the GPT's blocks 1 and 2 be one, and 3 and 4. Beside it, at the same number of parameters: the GPT with two blocks simply taken out. Both train on 30 batches, three times, each time on other batches.

# %%
tied = f.share_layers(gpt, [["blocks.0", "blocks.1"], ["blocks.2", "blocks.3"]])
short = copy.deepcopy(gpt)
short.blocks = nn.ModuleList([short.blocks[0], short.blocks[2]])
print(f"parameters: {tied.parameters_before:,}, shared {tied.parameters:,}, two blocks {f.parameters_of(short):,}")
macs = [measure.count_macs(model, torch.zeros(1, 128, dtype=torch.int64)).total for model in (gpt, tied.model, short)]
print("MACs:", ", ".join(f"{count / 1e6:.1f} M" for count in macs))
assert tied.parameters == f.parameters_of(short)
assert macs[0] == macs[1] > macs[2]

# %%
results = {}
for name, model in (("shared", tied.model), ("two blocks", short)):
    made = [fit(model, pieces[place::3][:30], epochs=1, lr=2e-3, seed=place).model for place in range(3)]
    results[name] = [evaluate(model, held_out).perplexity for model in (model, *made)]
    print(
        f"{name:<11} before ≈ {results[name][0]:.1f}, after", ", ".join(f"≈ {value:.2f}" for value in results[name][1:])
    )
assert max(results["shared"][1:]) < results["shared"][0] / 2
assert sum(results["two blocks"][1:]) < sum(results["shared"][1:])

# %% [markdown]
# Sharing nearly halves the parameters and saves no arithmetic at all. Blocks that were trained apart do different things, and a short training does not make them one: the network with two blocks is a little better, at about half of the arithmetic. ALBERT shares *from the start*.
#
# A recurrent network is shared by construction: one cell at every time step. Ours is an LSTM, trained on the same text as the GPT. Zeros and tables work there as anywhere, but each error is made again at every step. *Look at:* 80 % zeros before and after 100 batches.

# %%
zeros = p.prune_magnitude(networks["lstm"], 0.8)
repair = {"epochs": 1, "lr": 5e-3, "after_step": p.enforce(zeros.masks)}
lstms = [fit(zeros.model, pieces[place::3][:100], seed=place, **repair).model for place in range(3)]
lines = {"as it was": [networks["lstm"]], "80 % zeros": [zeros.model], "trained": lstms}
lines["8 bits"] = [q.quantize_weights(model, bits=8).model for model in lstms]
lines["16 values"] = [f.share_weights(model, clusters=16, masks=zeros.masks).model for model in lstms]
for name, some in lines.items():
    lines[name] = [evaluate(model, held_out).perplexity for model in some]
    print(f"{name:<11} {listed(lines[name], 2)}")
assert max(lines["trained"]) < lines["80 % zeros"][0] / 3
assert max(lines["8 bits"]) < min(lines["16 values"])

# %% [markdown]
# A hundred batches win back most of it. On top of the zeros 8 bits cost nothing, 16 values a little.
#
# ## 11. Production: scikit-learn and zlib
#
# Scikit-learn's k-means works in any number of dimensions, ours only in one. On a line, from the same start, both find the same; ours need not look at all distances. And zlib (gzip) is in every Python: the reference that a cleverer format has to beat, which we did above.

# %%
weights = networks["resnet"].layer3[1].conv1.weight.detach().flatten()
begin = torch.linspace(float(weights.min()), float(weights.max()), 16).unsqueeze(1).numpy()
theirs = KMeans(16, init=begin, n_init=1, max_iter=300, tol=0).fit(weights.unsqueeze(1).numpy())
ours = (weights - f.kmeans(weights, 16, iterations=300).weight()).double().square().sum().item()
print(f"squared error: scikit-learn ≈ {theirs.inertia_:.3f}, ours ≈ {ours:.3f}")
assert abs(ours / theirs.inertia_ - 1) < 0.01

# %% tags=["nbval-ignore-output"]
both = {
    "scikit-learn": lambda: theirs.fit(weights.unsqueeze(1).numpy()),
    "ours": lambda: f.kmeans(weights, 16, iterations=300),
}
timed = measure.compare_latency(both, rounds=5, min_time_s=0.02)
print(", ".join(f"{name} {1e3 * found.median_s:.1f} ms" for name, found in timed.latency.items()))
packed = zlib.compress(numbers.numpy().tobytes(), 9)
print(f"numbers of the classifier's values: zlib {len(packed):,} bytes, Huffman {encoded.nbytes:,}")

# %% [markdown]
# ## 12. The whole lesson in one table
#
# All on the test split, once. Files as `save_compressed` writes them. The ResNet with 8 values was not trained afterwards, the spatial one for one pass over 1,500 images. *Look at:* the upper left corner of the figure, where a file is small and good.

# %%
finals = {"VGG": networks["vgg"], "VGG, Deep Compression": again, "ResNet": networks["resnet"]}
finals |= {"ResNet, 8 values": shared.model, "ResNet, spatial 40 %": spatial, "separable": networks["separable"]}
rows = []
with tempfile.TemporaryDirectory() as folder:
    for name, model in finals.items():
        share = measure.accuracy(measure.predict(model, splits.test.batches()))
        count = measure.count_macs(model, torch.zeros(1, 1, 32, 32)).total
        size = f.save_compressed(model.state_dict(), Path(folder) / "file").nbytes
        rows.append([size, share.value, share.low, share.high])
        print(f"{name:<22} ≈ {size:>7,} bytes   {count / 1e6:.2f} M MACs   ≈ {100 * share.value:.1f} %")

# %% tags=["slide"]
columns = ["size_bytes", "accuracy", "accuracy_low", "accuracy_high"]
summary = pd.DataFrame(rows, index=list(finals), columns=columns)
ax = measure.plot_comparison(summary, "accuracy")
ax.set(title="Fewer numbers, or shorter ones")
show(
    ax,
    alt="Accuracy over file size: Deep Compression is by far the smallest file, at nearly the accuracy of the dense VGG",
)

# %% tags=["headline", "slide"]
lost = 100 * (summary.loc["VGG", "accuracy"] - summary.loc["VGG, Deep Compression", "accuracy"])
print(f"Deep Compression: ≈ {file.ratio:.1f} times smaller than FP32, ≈ {lost:.1f} points lost on test")
assert lost < 3
assert summary["size_bytes"].idxmin() == "VGG, Deep Compression"

# %% [markdown]
# ## Exercises
#
# ### 09.1 Where a rank breaks even
# *10 minutes, difficulty 1 of 3.* Write `largest(out_features, in_features)`: the largest rank whose two factors have *fewer* numbers than the matrix; 0 if none has.
#
# <details><summary>Hint</summary>r (O + I) &lt; O I. What if both are equal?</details>


# %% tags=["exercise"]
def largest(out_features, in_features):
    return None  # replace this line


check("09.1", largest)


# %% jupyter={"source_hidden": true} tags=["solution"]
def largest_solution(out_features, in_features):
    return (out_features * in_features - 1) // (out_features + in_features)


check("09.1", largest_solution, record=False)

# %% [markdown]
# ### 09.2 A rank by energy
# *10 minutes, difficulty 1 of 3.* Write `rank_for(singular_values, energy)`: the smallest rank that keeps this part of the sum of squares. The values come in order, the largest first.
#
# <details><summary>Hint</summary><code>cumsum</code> of the squares, divided by their sum; count how many are still too small.</details>


# %% tags=["exercise"]
def rank_for(singular_values, energy):
    return None  # replace this line


check("09.2", rank_for)


# %% jupyter={"source_hidden": true} tags=["solution"]
def rank_for_solution(singular_values, energy):
    kept = singular_values.square().cumsum(0) / singular_values.square().sum()
    return int((kept < energy).sum()) + 1


check("09.2", rank_for_solution, record=False)

# %% [markdown]
# ### 09.3 Keep the outputs
# *20 minutes, difficulty 3 of 3.* Write `cut_outputs(weight, x, rank)`: the matrix of shape (O, I) and at most this rank whose outputs on the inputs `x`, of shape (N, I), are nearest to those of `weight`. N may be smaller than I.
#
# <details><summary>Hint</summary>No inverse is needed: the main directions of the outputs <code>weight @ x.T</code> are the left singular vectors. Project on them.</details>


# %% tags=["exercise"]
def cut_outputs(weight, x, rank):
    return None  # replace this line


check("09.3", cut_outputs)


# %% jupyter={"source_hidden": true} tags=["solution"]
def cut_outputs_solution(weight, x, rank):
    u = torch.linalg.svd(weight @ x.T, full_matrices=False).U[:, :rank]
    return u @ u.T @ weight


check("09.3", cut_outputs_solution, record=False)

# %% [markdown]
# ### 09.4 One step of k-means
# *15 minutes, difficulty 2 of 3.* Write `step(weights, centroids)`: the new centroids, each the mean of the weights that are nearest to it. One that nobody is nearest to stays where it is.
#
# <details><summary>Hint</summary>The distances are a matrix: <code>(weights.flatten().unsqueeze(1) - centroids).abs()</code>.</details>


# %% tags=["exercise"]
def step(weights, centroids):
    return None  # replace this line


check("09.4", step)


# %% jupyter={"source_hidden": true} tags=["solution"]
def step_solution(weights, centroids):
    flat, new = weights.flatten(), centroids.clone()
    nearest = (flat.unsqueeze(1) - centroids).abs().argmin(1)
    for k in range(len(centroids)):
        if (nearest == k).any():
            new[k] = flat[nearest == k].mean()
    return new


check("09.4", step_solution, record=False)

# %% [markdown]
# ### 09.5 The gradient of a table
# *15 minutes, difficulty 2 of 3.* A layer's weights are `table[numbers]`. Write `table_gradient(gradient, numbers, clusters)`: from the gradient of the weights, that of the table, of shape (clusters,).
#
# <details><summary>Hint</summary><code>index_add_</code> adds up repeated numbers, <code>+=</code> with an index does not.</details>


# %% tags=["exercise"]
def table_gradient(gradient, numbers, clusters):
    return None  # replace this line


check("09.5", table_gradient)


# %% jupyter={"source_hidden": true} tags=["solution"]
def table_gradient_solution(gradient, numbers, clusters):
    return torch.zeros(clusters).index_add_(0, numbers.flatten(), gradient.flatten())


check("09.5", table_gradient_solution, record=False)

# %% [markdown]
# ## Quiz

# %% tags=["quiz"]
quiz("09")

# %% [markdown]
# ## Summary
#
# - A rank saves parameters below one number, arithmetic below another, time below a third. Measure the third.
# - Cut what the layer does, not what it holds: $W' = U_r U_r^\top W$ with the directions of the outputs. Within a layer; between layers energies do not compare.
# - Tables of values beat grids at few bits, in a file. A table must be smaller than what it codes.
# - Zeros, shared values and short words multiply: twenty times smaller for a point or two.
# - Sharing layers saves bytes and no time. A network of separable convolutions has to be trained as one: it is not cut out of another. And its MACs are not milliseconds.
#
# ## Sources
#
# - Eckart and Young, *The approximation of one matrix by another of lower rank*, 1936
# - Wang and others, *SVD-LLM*, 2024, arXiv:2403.07378 (whitening)
# - Jaderberg and others, *Speeding up convolutional neural networks with low rank expansions*, 2014, arXiv:1405.3866 (spatial)
# - Kim and others, *Compression of deep convolutional neural networks for fast and low power mobile applications*, 2016, arXiv:1511.06530 (Tucker-2)
# - Howard and others, *MobileNets*, 2017, arXiv:1704.04861; Sandler and others, *MobileNetV2*, 2018, arXiv:1801.04381; Tan and Le, *EfficientNet*, 2019, arXiv:1905.11946
# - Han, Mao and Dally, *Deep compression*, 2016, arXiv:1510.00149
# - Huffman, *A method for the construction of minimum-redundancy codes*, 1952
# - Lan and others, *ALBERT*, 2020, arXiv:1909.11942
#
# ## Next
#
# Lesson 10 is about models in which only some weights work at a time: mixtures of experts.

# %%
lesson_done = True
