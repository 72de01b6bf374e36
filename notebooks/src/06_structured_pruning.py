# %% [markdown]
# # 06 Structured pruning: how do you take channels, heads and layers out so that the model is really smaller?
#
# **Time:** 90 minutes with the exercises, 50 without. **Runs in:** one to two minutes, without a network or a GPU.
#
# **Before you start** you should have done lesson 05: masks, scores, and why zeros are no faster.
#
# **Afterwards you can**
# - say which slices of which weights belong to one channel, in any network;
# - remove channels, neurons, heads and blocks, and *prove* that nothing else changed;
# - repair a pruned network in seconds, without training;
# - tell how parameters, operations and milliseconds differ, on your machine.
#
# Lesson 05 ended with a network that is 90 % zeros and, in a dense kernel, not a microsecond faster. Dense kernels do not see zeros. They see shapes. So here the shapes change.

# %% tags=["setup"]
import copy
import itertools
import logging
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import onnxruntime as ort
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune as torch_prune

from compresslab import importance as imp
from compresslab import measure
from compresslab import pruning as p
from compresslab.course import check, quiz, reveal, show, start
from compresslab.workbench import checkpoints, data
from compresslab.workbench.hf import random_transformer
from compresslab.workbench.train import fit, jitter
from compresslab.workbench.vision import torchvision

_ = start(threads=1)
warnings.filterwarnings("ignore", category=FutureWarning)
logging.disable(logging.WARNING)  # what the ONNX exporter says of itself

# %% [markdown]
# ## Three guesses, before anything is measured

# %%
guess_parameters = None  # percent: half of the channels are removed; how many parameters are left?
guess_speed = None  # half of the channels are removed; how many times as fast is the network, one image at a time?
guess_repair = None  # percent: half of the operations removed, no training, only a repair: accuracy? (dense: 88.8)

# %% [markdown]
# ## 1. A mask on a filter saves nothing
#
# A **filter** is the part of a convolution's weight that makes one output channel. PyTorch can set whole filters to zero with `ln_structured`. *Look at:* parameters, MACs and bytes before and after.

# %%
splits = data.load("glyphs")
network = checkpoints.load("resnet")
image = torch.zeros(1, 1, 32, 32)


def cost(model):
    """Parameters, MACs and bytes of the file."""
    parameters = sum(value.numel() for value in model.parameters())
    return [parameters, p.count_macs(model, image), measure.measure_size(model).size_bytes]


def percent(model, split=splits.val):
    return 100 * measure.accuracy(measure.predict(model, split.batches())).value


# %%
zeroed = copy.deepcopy(network)
for module in zeroed.modules():
    if isinstance(module, nn.Conv2d):
        torch_prune.ln_structured(module, "weight", amount=0.5, n=2, dim=0)
        torch_prune.remove(module, "weight")
for name, model in (("before", network), ("half of all filters zero", zeroed)):
    print(f"{name:<26} {'{:,} parameters, {:,} MACs, {:,} bytes'.format(*cost(model))}")
assert cost(network) == cost(zeroed)

# %% [markdown]
# Nothing. The filters are still there, multiplied like all others.
#
# ## 2. A channel is more than a filter
#
# To take channel 1 of a convolution out, its filter has to go. And its bias, if there is one. And its four numbers in the batch norm behind (weight, bias, mean and variance). And, in the *next* convolution, the slice of every filter that reads it. By hand, on two small layers, from 4 channels to 3:

# %%
generator = torch.Generator().manual_seed(0)
small = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
for value in (*small.parameters(), small[1].running_mean):
    value.data = torch.randn(value.shape, generator=generator)
keep = torch.tensor([0, 2, 3])
smaller = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 3)).eval()
rows = {name: value[keep] for name, value in small.state_dict().items() if name[0] in "01" and value.dim()}
rows |= {"3.weight": small[3].weight[:, keep], "3.bias": small[3].bias}
smaller.load_state_dict(rows, strict=False)
print({name: tuple(value.shape) for name, value in rows.items() if "num" not in name})

# %% [markdown]
# Is it right? Not because it runs. It is right if it computes what the *large* network computes when channel 1 does nothing: all its slices set to zero.

# %%
masked = copy.deepcopy(small)
with torch.no_grad():
    for value in (masked[0].weight, masked[0].bias, masked[1].weight, masked[1].bias):
        value[1] = 0
    x = torch.randn(2, 1, 12, 12, generator=generator)
    gap = (smaller(x) - masked(x)).abs().max().item()
    moved = (masked(x) - small(x)).abs().max().item()
print(f"smaller and masked differ by at most ≈ {gap:.0e}; channel 1 itself matters by ≈ {moved:.1f}")
assert gap < 1e-5 < moved

# %% [markdown]
# ## 3. Who depends on whom?
#
# In a real network channels meet: an addition needs the same channels on both sides, a concatenation shifts their numbers, flattening turns one channel into many columns. Tools keep long lists of rules for layer types, and fail where a model does something else. There is a simpler way. **Give each channel a number, and let the numbers go through the network too.** Operations that only move things are run on the numbers themselves:

# %%
numbers = torch.arange(1, 5).view(1, 4, 1, 1)  # four channels
print("flattened from 2 x 2 pixels:", numbers.expand(1, 4, 2, 2).flatten(1)[0].tolist())
print("channels shuffled in pairs: ", numbers.view(1, 2, 2).transpose(1, 2).flatten().tolist())
other = torch.arange(5, 9).view(1, 4, 1, 1)
print("concatenated:               ", torch.cat([other, numbers], 1).flatten().tolist())
print("added, who meets whom:      ", list(zip(numbers.flatten().tolist(), other.flatten().tolist(), strict=True)))

# %% [markdown]
# Where two numbers meet, they are one channel from now on and go together (*union-find*). A convolution reads numbers and gives out new ones; a layer norm needs all of them, so they stay; and what is not understood keeps everything that it touches, and says so. After that the package tries it out: it removes something, runs the smaller model with the numbers that are left, and looks whether they still meet as before.
#
# We try it on a small block. *Look at:* what one *unit* (one channel, with all that goes with it) takes along: after each tensor and axis stands the number of slices. Units of one layer form a *group*.


# %%
class Block(nn.Module):
    """A shortcut, a concatenation and a linear layer behind flattened pixels."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.side, self.head = nn.Conv2d(4, 2, 1), nn.Linear(6 * 16, 3)

    def forward(self, x):
        x = self.first(x)
        x = x + self.second(x).relu()
        return self.head(torch.cat([self.side(x), x], 1).flatten(1))


# %%
found = p.find_dependencies(Block(), torch.zeros(1, 1, 4, 4))
for name, group in found.groups.items():
    slices = {
        f"{tensor}, axis {axis}": len(index) // group.units for (tensor, axis), (_, index) in group.members.items()
    }
    print(f"{group.units} units of {name}: {slices}")
print("stays:", found.unprunable)
assert set(found.groups) == {"first.weight", "side.weight"}

# %% [markdown]
# Each unit of `first` takes one row of `first` and of `second` with it (they meet in the addition), a column of `second` and of `side`, and 16 columns of the head, one for each pixel. The outputs of the head stay: they are the answer. Nobody told it what a residual connection is.
#
# ### Trap: one side of an addition
#
# The shortcut is the place where hand-made pruning goes wrong. Here someone prunes both convolutions of a shortcut to half, each by its *own* smallest filters. All shapes fit, the network runs. What is added to what?

# %% tags=["trap"]
torch.manual_seed(0)
block, x = Block().eval(), torch.randn(8, 1, 4, 4, generator=generator)
sides = {name: block.get_submodule(name).weight.detach().flatten(1).norm(dim=1) for name in ("first", "second")}
kept = {name: norms.argsort()[2:].sort().values.tolist() for name, norms in sides.items()}
print(kept, "- channels that never met before would be added")
found = p.find_dependencies(block, x)
right = p.remove_units(block, found, {"first.weight": torch.tensor([0, 1])}, x)
print(f"by groups, error ≈ {p.assert_same_function(block, right, x).error:.0e}")

# %%
wrong = copy.deepcopy(right)
wrong.model.second.weight.data = wrong.model.second.weight.data.flip(0)  # the same sizes, other channels
print("it runs:", tuple(wrong.model(x).shape))
try:
    p.assert_same_function(block, wrong, x)
except p.FunctionChanged as error:
    print("but", str(error)[:75], "...")
assert kept["first"] != kept["second"]

# %% [markdown]
# `assert_same_function` is the test that matters: pruned and masked must agree to rounding. It turned the wrong one down. A test that only runs the model would have passed it.
#
# ## 4. Half of all channels
#
# Now the whole ResNet: half of each of its groups. *Look at:* how much is left.

# %%
pruned = p.prune_channels(network, image, ratio=0.5)
same = p.assert_same_function(network, pruned, torch.randn(2, 1, 32, 32, generator=generator))
print(f"the same function as the masked network: error ≈ {same.error:.0e}, moved ≈ {same.moved:.2f}")
print({name.removesuffix(".weight"): count for name, count in pruned.removed.items()}, "stay:", pruned.unprunable)
before, after = cost(network), cost(pruned.model)
left = [100 * b / a for a, b in zip(before, after, strict=True)]
print(f"left: {left[0]:.0f} % of the parameters, {left[1]:.0f} % of the MACs, ≈ {left[2]:.0f} % of the bytes")
reveal(guess_parameters, left[0], what="parameters left with half of the channels", unit="%")
assert 20 < left[0] < 30 and 20 < left[1] < 30
assert same.error < 1e-12 < same.moved

# %% [markdown]
# Half of the channels is a quarter of the parameters: a weight goes when its input *or* its output goes, so $(1 - 0.5)^2$ is left. Whoever wants half of the work removes 30 % of the channels, since $0.7^2 \approx 0.5$.
#
# And the time? Parameters, MACs and time at three ratios, all in percent of the whole network:

# %%
ratios = (0.0, 0.3, 0.5, 0.75)
versions = {ratio: p.prune_channels(network, image, ratio=ratio).model if ratio else network for ratio in ratios}
share = pd.DataFrame({r: cost(model) for r, model in versions.items()}, index=["parameters", "MACs", "bytes"]).T
share = 100 * share / share.loc[0.0]
print(share.round(0).astype(int)[["parameters", "MACs"]].to_string())

# %% tags=["nbval-ignore-output"]
for threads in (1, 2):
    for count in (1, 32):
        calls = {f"{ratio:.0%}": model for ratio, model in versions.items()}
        x = torch.zeros(count, 1, 32, 32)
        timed = measure.compare_latency(calls, (x,), reference="0%", rounds=15, min_time_s=0.1, threads=threads)
        share[f"{threads} thread{'s'[: threads - 1]}, batch {count}"] = [
            100 / timed.speedup[n].value if n != "0%" else 100 for n in calls
        ]
print(share.drop(columns="bytes").round(0).astype(int).to_string())
reveal(guess_speed, 100 / share.loc[0.5, "1 thread, batch 1"], what="speed with half of the channels, one image")

# %% tags=["slide"]
fig, ax = plt.subplots(figsize=(7, 3.4))
for name, style in zip(share.drop(columns="bytes"), ("o-", "s-", "^--", "v--", "X:", "*:"), strict=True):
    ax.plot(100 * share.index.to_numpy(), share[name], style, label=name)
ax.set(xlabel="channels removed, %", ylabel="left, % of the whole", title="Work falls with the square, time does not")
ax.legend(fontsize=8)
show(fig, alt="Parameters and MACs fall together as a square; latency at batch 1 hardly, at batch 32 in between")
assert share.loc[0.5, "1 thread, batch 1"] > share.loc[0.5, "MACs"]

# %% [markdown]
# With half of the channels three quarters of the MACs are gone, and a single image is far from four times as fast. A call of a layer has a price of its own, and small products keep a processor less busy than large ones. With 32 images, and much removed, the time comes nearer to the MACs, but never near. So ask which time you want to save, and measure that one.
#
# `prune_to` meets a target for MACs or parameters; `round_to=8` rounds the numbers of channels that stay up to multiples of 8, which many kernels like:

# %%
for measure_by in ("macs", "parameters"):
    half = p.prune_to(network, image, target=0.5, measure=measure_by)
    now = cost(half.model)
    print(
        f"half of the {measure_by:<10}: {now[0] / before[0]:.3f} of the parameters, {now[1] / before[1]:.3f} of the MACs"
    )
    assert abs(now[measure_by == "macs"] / before[measure_by == "macs"] - 0.5) < 0.01
eights = p.prune_channels(network, image, ratio=0.3, round_to=8).model
print("channels with round_to=8:", sorted({m.out_channels for m in eights.modules() if isinstance(m, nn.Conv2d)}))

# %% [markdown]
# ## 5. Which channels, and what then?
#
# We remove half of the MACs in four ways. *L2, by group* takes the same share of each group, the channels of the smallest weights; *L2, over all* takes the lowest of the whole network. *Taylor* and *Fisher*, scores from gradients on 384 labelled images, are explained in lesson 07. And there are four ways to go on:
#
# - *as it is*: do nothing;
# - *counted again*: renew the mean and variance of each batch norm, on 512 images;
# - **reconstructed**: fit the weights of each layer by least squares to what the original network gave (512 images, no labels, no gradients; He and others, 2017);
# - *trained*: one pass over 1,500 labelled images, three seeds.
#
# Which one repairs most?

# %%
images = list(splits.train.take(384).batches(128))
unlabeled = list(splits.train.take(512).batches(64))
few = splits.train.take(1500)
settings = {"epochs": 1, "batch_size": 64, "weight_decay": 0.0, "augment": jitter}
scores = {
    "L2, by group": None,
    "Taylor": imp.taylor_channel_scores(network, images, F.cross_entropy),
    "Fisher": imp.fisher_channel_scores(network, images, F.cross_entropy),
}
options = {name: {"scores": score} for name, score in scores.items()} | {"L2, over all": {"scope": "global"}}
halves = {name: p.prune_to(network, image, target=0.5, **how) for name, how in options.items()}

# %%
rows, repaired = {}, {}
for name, found in halves.items():
    counted = percent(p.reestimate_batchnorm(found.model, unlabeled))
    repaired[name] = p.reconstruct(network, found, unlabeled).model
    trained = [percent(fit(found.model, few, lr=4e-3, seed=seed, **settings).model) for seed in range(3)]
    rows[name] = [percent(found.model), counted, percent(repaired[name]), sum(trained) / 3]
    words = ", ".join(f"≈ {value:4.1f}" for value in rows[name][:3])
    print(f"{name:<13} as it is, counted again, reconstructed: {words} %; trained", [f"≈ {v:.1f}" for v in trained])

# %%
table = pd.DataFrame(rows, index=["as it is", "counted", "reconstructed", "trained"]).T
reveal(guess_repair, table["reconstructed"].max(), what="accuracy at half of the MACs, reconstructed", unit="%")
assert table["as it is"].max() < 20
assert (table["counted"] > table["as it is"] + 15).all()
assert table["reconstructed"].min() > 75
assert (table["reconstructed"] > table["trained"]).all()

# %% [markdown]
# All sixteen numbers in one picture (*trained* is the mean of its seeds). *Look at:* what differs more, the rows or the markers.

# %% tags=["slide"]
fig, ax = plt.subplots(figsize=(7.5, 2.6))
for name, marker in zip(table, ("x", "s", "o", "^"), strict=True):
    ax.plot(table[name], table.index, marker, label=name)
ax.axvline(percent(network), color="black", lw=0.8, label="dense")
ax.set(xlabel="accuracy on validation images, %", ylabel="score", xlim=(0, 100), title="Half of the MACs, and then?")
ax.invert_yaxis()
ax.margins(y=0.2)
ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
show(fig, alt="One row for each score: as it is near 4 percent, counted again 30 to 50, trained 75, reconstructed 82")
by_score, by_repair = table.max() - table.min(), table.max(axis=1) - table.min(axis=1)
assert by_repair.min() > 2 * by_score.max()

# %% [markdown]
# The markers: how a network is repaired matters far more here than which score chose its channels. Right after pruning the network is useless, whatever the score. Most of that is not lost knowledge: the sums that reach each layer have changed, and batch norm still holds the old mean and variance. Counting again brings back a third to a half of the accuracy, least squares all but six or seven points, in a few seconds and without one label. A pass of training over three times as many images does less. (A tutorial that shows accuracy right after pruning, or only after long training, has skipped the cheapest step.)
#
# ### Is training useless, then?
#
# We go on from the reconstructed network, with the same learning rate and with a much smaller one:

# %%
repair = repaired["L2, over all"]
tuned = {}
for lr in (4e-3, 3e-4):
    runs = [fit(repair, few, lr=lr, seed=seed, **settings).model for seed in range(3)]
    tuned[lr] = [percent(model) for model in runs]
    print(f"reconstructed ≈ {percent(repair):.1f} %, then trained at {lr}:", [f"≈ {value:.1f}" for value in tuned[lr]])
final_model = runs[0]
assert min(tuned[3e-4]) > max(tuned[4e-3])

# %% [markdown]
# A small rate does no harm, and perhaps adds a little. A high one tears down what least squares had built.
#
# ### In one step or in several?
#
# Remove a little, repair, remove more: is that better than all at once? First with least squares as the repair, in three rounds:

# %%
rounds = p.prune_in_rounds(network, unlabeled, target=0.5, rounds=3)
print(f"three rounds of pruning and fitting, no labels: ≈ {percent(rounds.model):.1f} %")
assert abs(percent(rounds.model) - percent(repair)) < 3

# %% [markdown]
# No difference here. (On the public ResNet-20 of `benchmarks/results.md` rounds gain three points where channels are ranked over all layers, and lose one where each group gives the same share. Try it, it costs seconds.)
#
# Then with training as the repair, 1,500 images in all: down to half of the MACs at once, or in two steps of 71 % each ($0.71^2 \approx 0.5$), with half of the images after each.


# %%
def in_two_steps(seed):
    first = p.prune_to(network, image, target=0.71)
    between = fit(first.model, splits.train.take(750), lr=2e-3, seed=seed, **settings).model
    second = p.prune_to(between, image, target=0.5 / 0.71)
    return fit(second.model, splits.train.take(750), lr=2e-3, seed=seed, **settings).model


steps = [percent(in_two_steps(seed)) for seed in range(3)]
at_once = [percent(fit(halves["L2, by group"].model, few, lr=2e-3, seed=seed, **settings).model) for seed in range(3)]
print("two steps:", [f"≈ {value:.1f}" for value in steps], "at once:", [f"≈ {value:.1f}" for value in at_once])
assert max(steps) < min(at_once)

# %% [markdown]
# Two steps are *worse* than one here: each has only half of the images to recover with. (The budget decides, as in lesson 05.)
#
# ## 6. The same share for every layer?
#
# Some layers can spare more. *Sensitivity*: prune half of one group only, count batch norm again, measure how many points are lost. Which group minds most?

# %%
groups = list(pruned.removed)
drops = {}
for name in groups:
    one = p.prune_channels(network, image, ratio={name: 0.5})
    drops[name] = percent(network) - percent(p.reestimate_batchnorm(one.model, unlabeled[:4]))
order = sorted(groups, key=drops.get)
for name in order:
    print(f"{name:<22} ≈ {drops[name]:4.1f} points")
assert drops[order[-1]] > drops[order[0]] + 3
assert set(order[-3:]) == {"conv1.weight", "layer2.0.conv2.weight", "layer3.0.conv2.weight"}


# %% [markdown]
# The three groups that run through shortcuts (the last three lines) mind most: several layers write and read each of them. Now the most robust group gives three times the share of the most sensitive one, the others in between. The scale is searched by halving, so that half of the MACs are left, as above:


# %%
def by_sensitivity(scale):
    """Robust groups give more, sensitive ones less."""
    ratios = {name: min(0.9, scale * (1.5 - place / (len(order) - 1))) for place, name in enumerate(order)}
    return p.prune_channels(network, image, ratio=ratios)


# %%
low, high = 0.05, 0.9
for _ in range(10):  # as many MACs as above
    middle = (low + high) / 2
    low, high = (middle, high) if cost(by_sensitivity(middle).model)[1] > before[1] / 2 else (low, middle)
sensitive = by_sensitivity(high)
print(f"MACs {cost(sensitive.model)[1] / before[1]:.3f}, parameters {cost(sensitive.model)[0] / before[0]:.3f}")
by_scan, same_share = percent(p.reconstruct(network, sensitive, unlabeled).model), table["reconstructed"]
print(f"reconstructed: ≈ {by_scan:.1f} %; the same share for all ≈ {same_share['L2, by group']:.1f} %")
assert by_scan > same_share["L2, by group"] and abs(by_scan - same_share["L2, over all"]) < 2

# %% [markdown]
# Better than the same share for all, and about what *L2, over all* reached above without a scan.
#
# ### Traps: the norm left behind, and the classes
#
# Two errors that cannot happen silently here. A batch norm that keeps its old size fails at once, as it should. Pruning the classifier's *outputs* would run: it removes classes. Some tutorials do that; here it is refused.

# %% tags=["trap"]
broken = copy.deepcopy(small)
broken[0] = nn.Conv2d(1, 3, 3)
try:
    broken(torch.zeros(1, 1, 12, 12))
except RuntimeError as error:
    print("batch norm left behind:", str(error)[:60])
try:
    p.prune_channels(network, image, ratio={"linear": 0.5})
except ValueError as error:
    print("classes:", str(error)[:110])

# %% [markdown]
# ## 7. Heads, neurons, blocks
#
# A transformer has other units. In each of its blocks several attention *heads* look back at earlier tokens, side by side; then a feed-forward part works on each token alone. A head is some rows of the query, key and value weights, and columns of the output weight. A *neuron* of the feed-forward part is a row of its first weight and a column of its second. We take one head at a time out of the small GPT (4 blocks of 4 heads; perplexity, lesson 04, should be low). Which heads matter?

# %%
text = data.load("python-docs")
gpt = checkpoints.load("gpt")
held_out, reading = list(text.val.batches(32)), list(text.train.batches(32))[:2]
tokens = reading[0][0][:2]


def perplexity(model):
    return measure.perplexity(measure.predict_batches(model, held_out), resamples=20).value


# %%
whole, heads = perplexity(gpt), p.attention_heads(gpt, tokens)
grid = pd.DataFrame(index=list(heads), columns=range(4), dtype=float)
for layer in heads:
    for head in range(heads[layer]):
        found = p.prune_heads(gpt, tokens, {layer: [head]})
        grid.loc[layer, head] = perplexity(found.model) - whole
print(f"perplexity ≈ {whole:.3f}; without one head it rises by")
print("\n".join(f"{layer}: " + ", ".join(f"≈ {value:.2f}" for value in row) for layer, row in grid.iterrows()))
same = p.assert_same_function(gpt, found, tokens)
assert same.error < 1e-12 and grid.iloc[0].min() > grid.iloc[1:].to_numpy().sum()

# %% [markdown]
# The sixteen heads as a map, on a logarithmic scale. *Look at:* the first row against the last.

# %% tags=["slide"]
fig, ax = plt.subplots(figsize=(5.5, 2.8))
picture = ax.imshow(grid.to_numpy(), cmap="Blues", norm="log", aspect="auto")
for (block, head), value in np.ndenumerate(grid.to_numpy()):
    ax.text(head, block, f"{value:.2f}", ha="center", va="center", color="white" if value > 1 else "black")
ax.set(xlabel="head", ylabel="block", xticks=range(4), yticks=range(4), title="Taken out alone")
fig.colorbar(picture, label="rise of the perplexity")
show(fig, alt="Heat map of four blocks and four heads: the first block's heads cost 5 to 26, all others less than 0.2")

# %% [markdown]
# Each head of the first block is worth more than all heads of the other blocks together; any head of the last one can go for almost nothing. A whole *block* can go too, since it only adds to what passes by. Its *influence* is how far it turns the vectors that pass, 0 for not at all (Men and others, 2024). *Look at:* whether it predicts the damage. Below: a share of all neurons and heads, in every block.

# %%
influence = p.block_influences(gpt, reading, "blocks")
shorter = {block: perplexity(p.remove_blocks(gpt, "blocks", [block])) for block in range(4)}
for block, ppl in shorter.items():
    print(f"block {block}: turns what passes by ≈ {influence[block]:.2f}; perplexity without it ≈ {ppl:.1f}")
for ratio in (0.1, 0.25):
    fewer = p.prune_channels(gpt, tokens, ratio=ratio)
    print(f"{ratio:.0%} of the neurons and heads by L2: perplexity ≈ {perplexity(fewer.model):.2f}")
assert max(shorter, key=shorter.get) == int(influence.argmax())

# %% [markdown]
# The influence finds the block that must not go; on four blocks it says little about the others. Large models have dozens, and some of them hardly do anything. And the last two lines: 10 % of four heads is none, rounded down, so only neurons went. 25 % is one head of each block, and the first block cannot spare one. The same share for all is a bad rule here too.
#
# ## 8. Any model
#
# No list of layer types, so no list of models. We remove half of the units of very different networks, with random weights, and each line proves the result as above. *Look at:* the parameters. Which networks keep far more than a quarter?

# %%
zoo = ("resnet18", "mobilenet_v2", "densenet121", "shufflenet_v2_x0_5", "convnext_tiny", "swin_t")


def shake(model):
    """Norms that are not all one and zero: or there would be little to prove."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return model.eval()


# %%
def prove(name, model, inputs):
    """Prune half, prove it, print a line."""
    found = p.prune_channels(model, inputs)
    sizes = [sum(value.numel() for value in one.parameters()) for one in (model, found.model)]
    same = p.assert_same_function(model, found, inputs).error < 1e-10
    print(f"{name:<19} {sizes[0]:>10,} -> {sizes[1]:>10,} parameters, {len(found.removed):>3} groups, same: {same}")
    return found


# %%
for name in zoo:
    torch.manual_seed(0)
    prove(name, shake(torchvision().models.get_model(name, weights=None)), torch.randn(1, 3, 64, 64))

# %%
for name in ("bert", "gpt2", "llama"):
    found = prove(name, random_transformer(name), {"input_ids": torch.arange(12)[None] % 60})
    print("    stays:", next(iter(found.unprunable.items())))

# %% [markdown]
# Transformers, ConvNeXt and Swin keep the width of their residual stream here (the sum that runs through all blocks): a layer norm takes mean and variance over all of it, so with fewer channels it is another function. (`through_norms=True` cuts it nevertheless, for whoever trains afterwards.)
#
# ## 9. Save it, export it
#
# The result is an ordinary model of the same class. Its file holds the weights and the indices that were kept, and the original's code rebuilds it. Nothing is pickled. And it goes to ONNX Runtime like any other model.

# %%
folder = Path(tempfile.mkdtemp())
p.save_pruned(halves["Fisher"], folder / "half.safetensors")
again = p.load_pruned(folder / "half.safetensors", checkpoints.load("resnet"))
x = next(iter(splits.val.batches(8)))[0]
with torch.no_grad():
    print("loaded, the same outputs:", torch.equal(again.model(x), halves["Fisher"].model(x)))
torch.onnx.export(final_model, (x,), folder / "half.onnx", dynamo=True, verbose=False)
session = ort.InferenceSession(folder / "half.onnx", providers=["CPUExecutionProvider"])
answer = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
gap = np.abs(answer - final_model(x).detach().numpy()).max()
print(f"ONNX Runtime differs by at most ≈ {gap:.0e}")
assert gap < 1e-3

# %% [markdown]
# ## 10. Production: Torch-Pruning
#
# The best known tool for this is Torch-Pruning (Fang and others, 2023): rules for layer types on the graph of autograd, many scores, training by sparsity. On ordinary CNNs it does the same work as ours: in our benchmark (`benchmarks/results.md`) both leave equally many parameters, and which one is faster depends on the model. But on a vision transformer it cuts what layer norms take their statistics over, so that another function is left, and nothing in it checks. Ours tries out what it found. (After an epoch of training, a public ResNet-20 at half its MACs is as good with the same scores, and more than a point better with rounds, repair and the teacher of lesson 08: `structured_finetuned` in the same file.)
#
# ## 11. The whole lesson in one table
#
# The test split, once. *Half* and *a quarter* are the MACs that are left; *half, and trained* is the reconstructed network after the small learning rate.

# %%
quarter = p.prune_to(network, image, target=0.25, scope="global")
finals = {
    "dense": network,
    "half, as it is": halves["L2, over all"].model,
    "half, reconstructed": repair,
    "half, and trained": final_model,
    "in three rounds": rounds.model,
    "a quarter, reconstructed": p.reconstruct(network, quarter, unlabeled).model,
}

# %%
answers = {name: measure.predict(model, splits.test.batches()) for name, model in finals.items()}


def line(name, answer):
    right, (macs, size) = measure.accuracy(answer), cost(finals[name])[1:]
    print(f"{name:<25} ≈ {size:,} bytes, {macs:,} MACs   ≈ {100 * right.value:.1f} %")
    return [size, right.value, right.low, right.high]


# %%
rows = [line(name, answer) for name, answer in answers.items()]
summary = pd.DataFrame(rows, index=list(answers), columns=["size_bytes", "accuracy", "accuracy_low", "accuracy_high"])

# %% tags=["slide"]
ax = measure.plot_comparison(summary, "accuracy")
ax.set(title="Smaller, and repaired")
show(
    ax,
    alt="Accuracy over file size: half the MACs as it is lies near zero, reconstructed and trained some points below the dense one",
)

# %% tags=["headline", "slide"]
print(
    f"half of the MACs, {100 * summary.loc['half, and trained', 'size_bytes'] / summary.loc['dense', 'size_bytes']:.0f} % of the bytes: as it is "
    f"≈ {100 * summary.loc['half, as it is', 'accuracy']:.1f} %, reconstructed ≈ {100 * summary.loc['half, reconstructed', 'accuracy']:.1f} %, "
    f"and trained ≈ {100 * summary.loc['half, and trained', 'accuracy']:.1f} % (dense ≈ {100 * summary.loc['dense', 'accuracy']:.1f} %)"
)
assert summary.loc["half, reconstructed", "accuracy"] > 0.78 > 0.2 > summary.loc["half, as it is", "accuracy"]

# %% [markdown]
# Half of the work costs about seven points, repaired in seconds. A quarter costs far too much. And for bytes alone lesson 05 did better: its zeros saved more of the file and kept more accuracy. What is saved here is work, in every kernel.
#
# ## Exercises
#
# ### 06.1 What is left?
# *10 minutes, difficulty 1 of 3.* Write `weights_left(widths, ratio)`: a chain of Linear layers without biases, `widths = [inputs, hidden, ..., outputs]`, from which the share `ratio` of the neurons of each hidden layer is removed (always a whole number of them). How many weights are left?
#
# <details><summary>Hint</summary>The inputs and the outputs stay. A matrix between two hidden layers loses rows and columns.</details>


# %% tags=["exercise"]
def weights_left(widths, ratio):
    return None  # replace this line


check("06.1", weights_left)


# %% jupyter={"source_hidden": true} tags=["solution"]
def weights_left_solution(widths, ratio):
    left = [widths[0], *(round(width * (1 - ratio)) for width in widths[1:-1]), widths[-1]]
    return sum(a * b for a, b in itertools.pairwise(left))


check("06.1", weights_left_solution, record=False)

# %% [markdown]
# ### 06.2 Take neurons out
# *15 minutes, difficulty 2 of 3.* Write `drop_neurons(first, second, keep)` for two `nn.Linear` with a ReLU between: two new, smaller layers that keep the neurons with the indices `keep`. The old ones stay as they are.
#
# <details><summary>Hint</summary>A neuron is a row of the first weight, an entry of the first bias, and a column of the second weight. Does it have a part in the second bias?</details>


# %% tags=["exercise"]
def drop_neurons(first, second, keep):
    return None  # replace this line


check("06.2", drop_neurons)


# %% jupyter={"source_hidden": true} tags=["solution"]
def drop_neurons_solution(first, second, keep):
    one, two = nn.Linear(first.in_features, len(keep)), nn.Linear(len(keep), second.out_features)
    with torch.no_grad():
        one.weight.copy_(first.weight[keep]), one.bias.copy_(first.bias[keep])
        two.weight.copy_(second.weight[:, keep]), two.bias.copy_(second.bias)
    return one, two


check("06.2", drop_neurons_solution, record=False)

# %% [markdown]
# ### 06.3 Who goes together
# *15 minutes, difficulty 2 of 3.* Write `classes(count, meetings)`: channels 0 to count - 1, and a list of pairs that meet. Return for each channel the smallest number of its class.
#
# <details><summary>Hint</summary>Start with a list in which each channel is its own class. For each pair, the larger class becomes the smaller one, everywhere.</details>


# %% tags=["exercise"]
def classes(count, meetings):
    return None  # replace this line


check("06.3", classes)


# %% jupyter={"source_hidden": true} tags=["solution"]
def classes_solution(count, meetings):
    found = list(range(count))
    for a, b in meetings:
        low, high = sorted((found[a], found[b]))
        found = [low if value == high else value for value in found]
    return found


check("06.3", classes_solution, record=False)

# %% [markdown]
# ### 06.4 The rows of a head
# *10 minutes, difficulty 2 of 3.* A fused matrix holds queries, keys and values below each other: its weight has 3 x width rows, each part divided among the heads in order. Write `head_rows(head, heads, width)`: the list of rows that belong to a head (counted from 0), ascending.
#
# <details><summary>Hint</summary>With width 4 and 2 heads, rows 0 to 3 are the queries, 4 to 7 the keys, 8 to 11 the values. Which two of each four belong to head 1?</details>


# %% tags=["exercise"]
def head_rows(head, heads, width):
    return None  # replace this line


check("06.4", head_rows)


# %% jupyter={"source_hidden": true} tags=["solution"]
def head_rows_solution(head, heads, width):
    size = width // heads
    return [part * width + head * size + i for part in range(3) for i in range(size)]


check("06.4", head_rows_solution, record=False)

# %% [markdown]
# ### 06.5 Repair by least squares
# *20 minutes, difficulty 3 of 3.* A layer without bias gave `outputs` (n, O). Now it gets only some of its inputs, `inputs` (n, I). Write `refit(inputs, outputs)`: the weight (O, I) for which the sum of squared differences to `outputs` is least.
#
# <details><summary>Hint 1</summary>Set the derivative to zero: W (X^T X) = Y^T X.</details>
# <details><summary>Hint 2</summary><code>torch.linalg.lstsq</code> or <code>torch.linalg.solve</code>; mind the transposes.</details>


# %% tags=["exercise"]
def refit(inputs, outputs):
    return None  # replace this line


check("06.5", refit)


# %% jupyter={"source_hidden": true} tags=["solution"]
def refit_solution(inputs, outputs):
    return torch.linalg.solve(inputs.T @ inputs, inputs.T @ outputs).T


check("06.5", refit_solution, record=False)

# %% [markdown]
# ## Quiz

# %% tags=["quiz"]
quiz("06")

# %% [markdown]
# ## Summary
#
# - A channel is a slice of many tensors. Numbers that go through the network with the data find them all.
# - It is right when pruned and masked compute the same, not when it runs.
# - With half of the channels a quarter of the weights is left, and more than a quarter of the time. Measure the time that you want to save.
# - Right after pruning a network is useless. Count batch norm again, or better, fit by least squares; then, perhaps, train with a small rate.
# - Heads, neurons and blocks go in the same way. The same share for all is rarely the best.
#
# ## Sources
#
# - Li and others, *Pruning filters for efficient ConvNets*, 2016, arXiv:1608.08710
# - He, Zhang and Sun, *Channel pruning for accelerating very deep neural networks*, 2017, arXiv:1707.06168 (least squares)
# - Fang and others, *DepGraph: towards any structural pruning*, 2023, arXiv:2301.12900 (Torch-Pruning)
# - Michel, Levy and Neubig, *Are sixteen heads really better than one?*, 2019, arXiv:1905.10650
# - Men and others, *ShortGPT*, 2024, arXiv:2403.03853; Gromov and others, *The unreasonable ineffectiveness of the deeper layers*, 2024, arXiv:2403.17887
#
# ## Next
#
# Lesson 07 asks which scores deserve trust.

# %%
lesson_done = True
