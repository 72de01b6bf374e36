# %% [markdown]
# # 07 Importance: which weights matter, and how would you know that you were right?
#
# **Time:** 90 minutes with the exercises, 50 without. **Runs in:** one to two minutes, without a network or a GPU.
#
# **Before you start** you should have done lesson 05: masks, and global pruning by magnitude.
#
# **Afterwards you can**
# - measure how good a score is, against the truth;
# - compute Taylor, Fisher, Hessian, SNIP, SynFlow, activation scores as their papers mean them, and recognize what only bears the name;
# - say what a score costs, and whether it would come out the same on other data;
# - combine scores without one outlier taking over.
#
# Lesson 05 removed the smallest weights. But is a small weight unimportant? A weight of 0.01 that meets an input of 100 is not. Dozens of scores have been proposed, and most articles on them end with an opinion. There is a truth, only an expensive one: take it out and look.

# %% tags=["setup"]
import contextlib
import functools

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from compresslab import importance as imp
from compresslab import measure
from compresslab import pruning as p
from compresslab.course import check, quiz, reveal, show, start
from compresslab.workbench import checkpoints, data, models
from compresslab.workbench.sweeps import sweep
from compresslab.workbench.train import fit, jitter

_ = start(threads=1)

# %% [markdown]
# ## Three guesses, before anything is measured

# %%
guess_magnitude = None  # rank correlation of a channel's L1 norm with the truth, from -1 to 1?
guess_best = None  # percent: 20 % of the channels go at once, chosen by the best score; which accuracy is left?
guess_batch = None  # "Fisher" from squared gradients of batches of 64: rank correlation with the real one?

# %% [markdown]
# ## 1. The truth: take it out, measure the loss
#
# We multiply one channel of our ResNet by zero, behind its batch norm and activation, and measure the loss on 384 images. Then the next. That is the **oracle**. It costs one pass over the data for each channel, so we draw 120 of them. (`sweep` only runs these jobs, one after the other or, with `n_jobs=-1`, on all cores.) How many channels, do you think, matter at all?

# %%
splits = data.load("glyphs")
network = checkpoints.load("resnet")
images = list(splits.train.take(384).batches(128))  # to score with
loss = F.cross_entropy


def percent(model, split=splits.val):
    return 100 * measure.accuracy(measure.predict(model, split.batches())).value


percent_dense = percent(network)
oracle = imp.channel_oracle(network, images, loss, samples=120, sweep=functools.partial(sweep, n_jobs=1))

# %%
order = oracle.increase.argsort(descending=True)
print(f"loss of the whole network ≈ {oracle.loss:.3f}; {len(oracle.places)} channels taken out, one at a time")
for place in order[:3].tolist() + order[-3:].tolist():
    name, channel = oracle.places[place]
    print(f"  {name:<28} channel {channel:>2}: the loss changes by ≈ {oracle.increase[place]:+.4f}")
print(f"channels without which the loss is lower: ≈ {int((oracle.increase < 0).sum())}")
assert oracle.increase.max() > 20 * oracle.increase.median()

# %% tags=["slide"]
fig, ax = plt.subplots(figsize=(7, 3))
ax.plot(oracle.increase[order], ".-")
ax.axhline(0, color="black", lw=0.8)
ax.set(xlabel="channels, from the most important on", ylabel="increase of the loss", ylim=(-1e-2, 1))
ax.set_yscale("symlog", linthresh=1e-3)
ax.set_title("Few channels matter a lot, most hardly at all")
show(fig, alt="A curve that falls steeply within the first ten channels, then slowly, and ends a little below zero")

# %% [markdown]
# (The scale is logarithmic, near zero linear.) Few channels matter a lot; many do not, and without some the loss is even lower. A score is good if it puts them in the same order, at a small part of the cost. The measure is **Spearman's rank correlation**: 1 is the same order, 0 is chance, -1 the opposite order. We look at it over all layers together, and *within layers*: in each layer by itself, then the mean.
#
# ## 2. Size
#
# The oldest score asks the weights alone. L1 is the sum of a channel's magnitudes, L2 the root of its squares. (For *single* weights both give the same order, whatever you may read: a square grows with the magnitude. They differ only where many are summed.)

# %%
weights = imp.magnitude_scores(network)
squares = imp.magnitude_scores(network, power=2)
flat = {name: torch.cat([t.flatten() for t in scores.values()]) for name, scores in (("1", weights), ("2", squares))}
print("single weights, L1 and L2 rank the same:", imp.spearman(flat["1"], flat["2"]) > 0.999999)
found = {"L1": imp.per_channel(weights), "L2": imp.per_channel(squares)}
for name, scores in found.items():
    print(f"{name}: rank correlation with the oracle ≈ {oracle.spearman(scores):.2f}", end="; ")
    print(f"within layers ≈ {oracle.spearman_within(scores):.2f}")
reveal(guess_magnitude, oracle.spearman(found["L1"]), what="rank correlation of L1 with the oracle")

# %% [markdown]
# Compared over all layers it is even negative: wide layers have larger sums, and their channels matter less. Within one layer the size of a channel says something.
#
# ## 3. Slope
#
# What does the loss do when a weight $w$ goes to zero? The first guess is its slope: the change is about $-g \cdot w$, with the gradient $g$ of the loss by this weight. Not the gradient alone: a steep slope on a weight that is nearly zero already changes nothing. For a function of two weights, by hand:

# %%
w = torch.tensor([2.0, 0.1], requires_grad=True)
value = (w[0] - 1.5) ** 2 + 5 * w[1]  # the second has a steep slope, but is nearly gone
(g,) = torch.autograd.grad(value, w)
for i in range(2):
    without = w.detach().clone()
    without[i] = 0
    change = (without[0] - 1.5) ** 2 + 5 * without[1] - value
    print(f"weight {i}: gradient {g[i]:.1f}, -g w = {-g[i] * w[i]:.2f}, really {change:.2f}")

# %% [markdown]
# The first guess for weight 0 is wrong even in its sign: the slope does not see that the parabola rises again. And yet it is often a good guess. **Taylor** scores (Molchanov and others, 2017 and 2019) are this guess for a whole channel. All its weights go together, so all $g \cdot w$ are summed *first*, with their signs, and then squared. The sum is the derivative of the loss by a *gate*, a factor of 1 on the channel, so one backward pass is enough for all. *Look at:* what the rank correlation loses without the sum, or without the weight.

# %%
taylor = imp.taylor_channel_scores(network, images, loss)
gradients = imp.gradient_scores(network, images, loss)
wrong = {name: (gradients[name] * weights[name]).flatten(1).sum(1) for name in weights}  # |g w|, then the sum
for name, scores in {
    "Taylor, sum first": taylor,
    "sum of |g w|": wrong,
    "gradient": imp.per_channel(gradients),
}.items():
    print(f"{name:<18} ≈ {oracle.spearman(scores):.2f}")
assert oracle.spearman(taylor) > oracle.spearman(found["L1"]) + 0.2

# %% [markdown]
# Each step away from the idea costs something. For size alone it was negative.
#
# ## 4. Curvature, and two famous mistakes
#
# At the end of training the slopes are small, and the curvature decides: removing $w$ changes the loss by $\Delta L \approx \frac{1}{2} h\, w^2$, with $h$ the second derivative by this weight (LeCun, Denker and Solla, 1990). Two weights at the bottom of their valleys; *look at* the height of each curve at zero:

# %% tags=["slide"]
fig, ax = plt.subplots(figsize=(6, 2.6))
line = torch.linspace(-0.1, 2.5, 100)
for w, h, style in ((2.0, 0.1, "-"), (0.5, 4.0, "--")):
    ax.plot(line, h * (line - w) ** 2 / 2, style, label=f"w = {w}, h = {h}")
    ax.plot([w, 0], [0, h * w**2 / 2], "ok" if style == "-" else "sk")
    print(f"w = {w}, h = {h}: without it the loss rises by ½ h w² = {h * w**2 / 2:.1f}")
ax.axvline(0, color="black", lw=0.8)
ax.set(xlabel="value of the weight", ylabel="rise of the loss", ylim=(-0.05, 0.8), title="Which one can go?")
ax.legend()
show(fig, alt="A wide valley with its bottom at 2 is 0.2 high at zero; a narrow one with its bottom at 0.5 is 0.5 high")

# %% [markdown]
# The larger weight can go. But how does one get $h$ for all weights? There are two ways, each with its famous mistake.
#
# ### Fisher: square each sample's gradient
#
# The **Fisher** diagonal is the mean of each *sample's* squared gradient, which comes near $h$ where a network fits its data. Many programs square the gradient of a whole *batch* instead, and that is the mean over its samples. Say one weight has the gradients 3 and -1 in two samples:

# %%
g = torch.tensor([3.0, -1.0])
print(f"mean of the squares: (9 + 1) / 2 = {g.square().mean():.0f};  square of the mean: 1² = {g.mean().square():.0f}")

# %% [markdown]
# The signs cancel before they are squared. The package squares first, and needs no loop over the samples for it; with a loop it is the same:

# %%
sample = [(x[i : i + 1], y[i : i + 1]) for x, y in images[:1] for i in range(128)]
real = imp.fisher_diagonal(network, images[:1], loss)
names = list(real)
loop = {name: torch.zeros_like(real[name]) for name in names}
for one in sample[:16]:
    for name, gradient in imp.gradient_scores(network, [one], loss).items():
        loop[name] += gradient.square() / 16
first = imp.fisher_diagonal(network, [(images[0][0][:16], images[0][1][:16])], loss)
gap = max((loop[n] - first[n]).abs().max() / first[n].abs().max() for n in names)
print(f"a loop over 16 samples and the package differ by at most ≈ {gap:.0e} of the largest value")
assert gap < 1e-3


# %% [markdown]
# How much does the mistake matter? *Look at:* rank correlation and scale, as the batches grow, for our network and for an untrained one.


# %%
def everything(scores):
    return torch.cat([scores[name].flatten() for name in names])


untrained = models.build("resnet", **{k: v for k, v in network.config.items() if k != "architecture"})
inputs, targets = (torch.cat(side) for side in zip(*images, strict=True))

# %%
rows = {}
for label, model in (("trained", network), ("untrained", untrained)):
    whole = everything(imp.fisher_diagonal(model, images, loss))
    for size in (8, 64, 384):
        parts = list(zip(inputs.split(size), targets.split(size), strict=True))
        squared = sum(everything(imp.gradient_scores(model, [part], loss)).square() for part in parts) / len(parts)
        rows[label, size] = (imp.spearman(squared, whole), (squared.sum() / whole.sum()).item())

# %%
for (label, size), (rank, scale) in rows.items():
    print(f"{label:<10} batches of {size:>3}: rank correlation ≈ {rank:.2f}, scale ≈ {scale:.4f} of the real one")
reveal(guess_batch, rows["trained", 64][0], what="rank correlation of the squared batch gradient, batches of 64")
for label in ("trained", "untrained"):
    assert rows[label, 8][0] > rows[label, 64][0] > rows[label, 384][0]
    assert rows[label, 64][1] < 1 / 30

# %% [markdown]
# The larger the batch, the further from the Fisher information. The order suffers at first a little, then more; the scale is about one over the batch size. Whoever only ranks weights of one network may get away with it; whoever adds it to a loss, or to another score, does not.
#
# ### Hessian: multiply by random signs, twice
#
# The **Hessian** $H$ is the matrix of all second derivatives, and the $h$ are its diagonal. It is far too large to write down, but $H v$, its product with one vector, costs only a second backward pass: the gradient of $g \cdot v$. How does that give a diagonal? Take a loss of two weights whose $H$ has the rows (2, 1) and (1, 3), and two vectors of signs. By hand, $H$ times (1, 1) is (2 + 1, 1 + 3), and times (1, -1) it is (2 - 1, 1 - 3). Each entry is multiplied by its sign once more:

# %%
w, products = torch.tensor([0.5, -0.2], requires_grad=True), []
value = w[0] ** 2 + w[0] * w[1] + 1.5 * w[1] ** 2
(g,) = torch.autograd.grad(value, w, create_graph=True)
for signs in ([1.0, 1.0], [1.0, -1.0]):
    v = torch.tensor(signs)
    (hv,) = torch.autograd.grad(g @ v, w, retain_graph=True)
    products.append(v * hv)
    print(f"v = {v.tolist()}: H v = {hv.tolist()}, times v again: {products[-1].tolist()}")
mean = sum(products) / 2
print("the mean of the two:", mean.tolist())
assert mean.tolist() == [2, 3]

# %% [markdown]
# That is the diagonal: the 1 beside it was added once and subtracted once. **Hutchinson's estimate** is this mean, $h \approx \text{mean of } v \odot (H v)$ ($\odot$: element by element), over some vectors $v$ of random signs. The more there are, the better the rest cancels.
#
# And the mistake? A widespread program takes the gradient of the *sum* of the gradient. That is $H v$ for our first $v$ alone, 3 and 4: the sums of the rows, not the diagonal. Now a network so small that its whole Hessian can be computed, 276 weights:

# %%
torch_generator = torch.Generator().manual_seed(0)
tiny = models.build("mlp", width=4, depth=1, size=8, classes=5, generator=torch_generator).double()
x, y = torch.randn(64, 1, 8, 8, generator=torch_generator).double(), torch.arange(64) % 5
parameters = dict(tiny.named_parameters())


def by_vector(flat):
    parts = flat.split([value.numel() for value in parameters.values()])
    values = {n: part.view_as(value) for (n, value), part in zip(parameters.items(), parts, strict=True)}
    return loss(torch.func.functional_call(tiny, values, (x,)), y)


# %%
point = torch.cat([value.detach().flatten() for value in parameters.values()])
hessian = torch.autograd.functional.hessian(by_vector, point)
places = torch.cat(
    [torch.full((value.numel(),), name in imp.scored_weights(tiny)) for name, value in parameters.items()]
)
exact = hessian.diagonal()[places]
row_sums = hessian[places][:, places].sum(1)

# %%
print(f"{len(exact)} weights; rank correlation of the row sums with the diagonal ≈ {imp.spearman(row_sums, exact):.2f}")
errors = {}
for probes in (2, 10, 100, 1000):
    estimate = imp.hessian_diagonal(tiny, [(x, y)], loss, probes=probes, generator=torch.Generator().manual_seed(1))
    values = torch.cat([value.flatten() for value in estimate.values.values()])
    errors[probes] = ((values - exact).norm() / exact.norm()).item()
    print(f"Hutchinson, {probes:>4} probes: rank ≈ {imp.spearman(values, exact):.2f}, error ≈ {errors[probes]:.2f}")
assert errors[1000] < errors[10] / 5

# %% [markdown]
# The error falls with the root of the number of probes, and the package reports it for every entry (`standard_error`). The row sums have little to do with the diagonal. For the last layer by itself, under cross-entropy, they are even exactly zero.
#
# ## 5. What the next layer sees
#
# *Activation* scores ask the data: how loud is a channel, and how often is it zero (APoZ, average percentage of zeros)? Surely what counts is what the *next* layer gets, behind batch norm and ReLU, and not what the convolution itself puts out?

# %%
activity = {
    "mean |a|, what comes next sees": imp.activation_scores(network, images),
    "mean |a|, straight from the convolution": imp.activation_scores(network, images, after_activation=False),
    "how often not zero (APoZ)": imp.activation_scores(network, images, statistic="apoz"),
}
for name, scores in activity.items():
    print(f"{name:<42} ≈ {oracle.spearman(scores):.2f}, within layers ≈ {oracle.spearman_within(scores):.2f}")

# %% [markdown]
# None of the three says much about this network, wherever one looks. (The size of batch norm's own factor $\gamma$ is a cheaper score of this kind; it is in the table below.)
#
# ### Trap: keep every activation, then take the mean
#
# A mean needs two numbers for each channel. Many programs keep every activation first. *Look at:* the most memory that is taken at one moment.


# %% tags=["trap"]
def keep_everything():
    kept = []
    with contextlib.ExitStack() as hooks, torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                hooks.enter_context(module.register_forward_hook(lambda m, args, output: kept.append(output)))
        [network(inputs) for inputs, _ in images]
    return kept


stored = measure.peak_bytes(keep_everything)
streamed = measure.peak_bytes(lambda: imp.activation_scores(network, images))
print(f"kept ≈ {stored / 1e6:.0f} MB for 384 small images, running sums ≈ {streamed / 1e6:.0f} MB")
assert stored > 3 * streamed

# %% [markdown]
# The sums do not grow with the number of images.
#
# ## 6. All of them, in one table
#
# For each score: its rank correlation with the oracle; how *stable* it is (the rank correlation of its scores from two halves of 128 images); and the samples that go forward and backward through the network. (512 are the 384 images, and 128 to see which norm follows which layer.)
#
# New in the list: *Taylor 2019* is the score of section 3; *Taylor 2017* takes absolute values for each sample and brings each layer to the same length. *SNIP* is $|g \cdot w|$, summed over the channel (section 9). *Hessian* is $\frac{1}{2} h w^2$ with eight probes, *Wanda* the score of lesson 05, and *L1, mean* the mean magnitude in place of the sum. Which one would you bet on?

# %%
luck = torch.Generator().manual_seed(3)
chance = {name: torch.rand(len(weight), generator=luck) for name, weight in weights.items()}
methods = {
    "random": lambda b: {name: chance[name] for name in weights},
    "L1": lambda b: imp.per_channel(imp.magnitude_scores(network)),
    "L1, mean": lambda b: imp.per_channel(imp.magnitude_scores(network), reduce="mean"),
    "gradient": lambda b: imp.per_channel(imp.gradient_scores(network, b, loss)),
    "Taylor 2017": lambda b: imp.taylor_map_scores(network, b, loss),
    "Taylor 2019": lambda b: imp.taylor_channel_scores(network, b, loss),
    "Fisher": lambda b: imp.fisher_channel_scores(network, b, loss),
}

# %%
methods |= {
    "SNIP": lambda b: imp.per_channel(imp.snip_scores(network, b, loss)),
    "Hessian": lambda b: imp.per_channel(imp.hessian_scores(network, b, loss, probes=8)),
    "Wanda": lambda b: imp.per_channel(imp.wanda_scores(network, b)),
    "batch norm": lambda b: imp.batchnorm_scale_scores(network, b),
    "activation": lambda b: imp.activation_scores(network, b),
}

# %%
rows, scored = [], {}
for name, method in methods.items():
    with imp.count_passes(network) as passes:
        scored[name] = method(images)
    rank, within = oracle.spearman(scored[name]), oracle.spearman_within(scored[name])
    smaller = [tuple(part[:64] for part in batch) for batch in images[:2]]
    stable = imp.split_half(method, smaller)
    rows.append([rank, within, passes.forward, passes.backward, stable])
table = pd.DataFrame(rows, index=list(methods), columns=["rank", "within", "forward", "backward", "stable"])
for name, row in table.sort_values("rank", ascending=False).iterrows():
    words = f"≈ {row['rank']:5.2f}, within layers ≈ {row.within:5.2f}, stable ≈ {row.stable:.2f}"
    print(f"≈ {name:<12} {words}, forward {row.forward:,.0f}, backward {row.backward:,.0f}")

# %%
batch = images[:1]
peaks = {name: measure.peak_bytes(lambda method=methods[name]: method(batch)) for name in methods if name != "random"}
print("peak memory, MB:", ", ".join(f"{name} ≈ {peak / 1e6:.0f}" for name, peak in peaks.items()))
assert peaks["L1"] < peaks["Taylor 2019"]

# %%
oracle_cost = (len(oracle.places) + 1) * 384
print(f"the oracle itself: forward {oracle_cost:,}, backward 0")
assert (
    table.loc[["Taylor 2019", "Taylor 2017", "Fisher"], "rank"].min()
    > table.loc[["L1", "activation", "random"], "rank"].max()
)

# %% [markdown]
# Three of these scores against the oracle, one point for each channel. (Those at the bottom edge hardly raise the loss, or lower it.) *Look at:* the clouds of L1, one for each width of the network, further right but no higher.

# %% tags=["slide"]
fig, axes = plt.subplots(1, 3, figsize=(10, 3.2), sharey=True)
for ax, name in zip(axes, ("L1", "Taylor 2019", "Fisher"), strict=True):
    ax.scatter(oracle.pick(scored[name]), oracle.increase.clamp(min=1e-5), s=12)
    ax.set(xscale="log", yscale="log", xlabel=f"score: {name}", title=f"rank correlation {table.loc[name, 'rank']:.2f}")
    ax.minorticks_off()
axes[0].set(ylabel="increase of the loss")
show(
    fig,
    alt="Three scatter plots against the oracle: for L1 clouds apart from each other, further right but no higher; for Taylor and Fisher clouds that rise",
)

# %% [markdown]
# What does the table say?
#
# - Scores that look at the **loss** (Taylor, Fisher, SNIP) are far ahead of those that look at weights or activations alone. They cost one forward and one backward pass, a few percent of the oracle, and the memory of a training step.
# - **L1 and L2 of whole channels are worse than chance** when layers are compared, because wide layers have large sums. The mean instead of the sum repairs most of it.
# - **SNIP** was made for untrained networks, so it lets batch norm use each batch's own statistics; apart from that it is the *sum of |g w|* of section 3.
# - The **Hessian** diagonal takes nine times as many backward passes and is behind: it is noisy at eight probes, and it leaves out how the weights of a channel act together.
# - What has no data in it is perfectly **stable**, and what is stable may be perfectly wrong. Taylor 2019 is right but unstable when images are few.
#
# ## 7. The proof: remove channels
#
# Now 10, 20 and 30 % of all channels at once, those with the lowest scores, without training. (They are multiplied by zero here; lesson 06 really takes them out.) Will the best rank correlation keep the most accuracy?

# %%
places = imp.find_channels(network, images[0][0])


def without_channels(scores, ratio):
    masks = p.global_masks({name: scores[name].float() for name in places if name in scores}, ratio)
    with imp.gated(network, places, {name: mask.float() for name, mask in masks.items()}):
        return percent(network)


ratios = (0.1, 0.2, 0.3)
removed = {name: [without_channels(scores, ratio) for ratio in ratios] for name, scores in scored.items()}

# %%
removed = pd.DataFrame(removed, index=[f"{ratio:.0%}" for ratio in ratios]).T
for name, row in removed.sort_values("20%", ascending=False).iterrows():
    print(f"≈ {name:<12}", ", ".join(f"{ratio}: ≈ {value:4.1f} %" for ratio, value in row.items()))
reveal(guess_best, removed["20%"].max(), what="accuracy of the best score, 20 % of the channels gone", unit="%")
assert removed.loc[["Fisher", "SNIP"], "20%"].min() > removed.loc["L1", "20%"] + 40
assert removed.loc["L1, mean", "20%"] > removed.loc["L1", "20%"] + 40

# %% tags=["slide"]
fig, ax = plt.subplots(figsize=(7, 3.6))
shown = ("Fisher", "SNIP", "L1, mean", "Taylor 2019", "Taylor 2017", "activation", "L1")
for name, style in zip(shown, ("o-", "s--", "^-", "v--", "D-", "X:", "*:"), strict=True):
    ax.plot(100 * torch.tensor([0, *ratios]), [percent_dense, *removed.loc[name]], style, label=name)
ax.set(xlabel="channels removed, %", ylabel="accuracy, %", title="At once, without training")
ax.legend(fontsize=8)
show(fig, alt="Seven curves from 0 to 30 percent of the channels: Fisher and SNIP fall slowest, L1 at once")

# %% [markdown]
# The order is roughly that of the rank correlations: Fisher and SNIP keep most, L1 ruins the network with the first tenth. But the mean of L1 does better than its rank promised, and Taylor worse. And Wanda, as good as any at 10 %, has nothing left at 20 %: it takes *all* channels of the first layer, and nothing passes any more. What is right for one channel at a time is not all there is.
#
# ## 8. One at a time is not all together
#
# For *single weights* that difference becomes a trap. Scores for each weight, of which 30, 50 and 70 % are removed at once. *Look at:* the accuracy, and the share of weights that the emptiest layer keeps.

# %%
single = {
    "magnitude": imp.magnitude_scores(network),
    "Taylor": imp.taylor_scores(network, images, loss),
    "Fisher alone": imp.fisher_diagonal(network, images, loss),
    "Fisher, ½ F w²": imp.fisher_scores(network, images, loss),
    "Hessian, ½ |h| w²": {k: v.abs() for k, v in imp.hessian_scores(network, images, loss, probes=8).items()},
}

# %%
amounts, curves = (0.3, 0.5, 0.7), {}
for name, scores in single.items():
    masks = [p.global_masks(scores, amount) for amount in amounts]
    least = min((mask.float().mean().item(), layer) for layer, mask in masks[-1].items())
    curves[name] = [percent(p.apply_masks(network, mask)) for mask in masks]
    values = ", ".join(f"{a:.0%}: ≈ {value:4.1f} %" for a, value in zip(amounts, curves[name], strict=True))
    print(f"{name:<18} {values}; at 70 % the emptiest layer keeps ≈ {least[0]:.1%}")

# %%
assert curves["Fisher, ½ F w²"][0] > curves["magnitude"][0] - 1
assert curves["magnitude"][1] > curves["Fisher, ½ F w²"][1] + 5
assert curves["Fisher alone"][0] < 50

# %% [markdown]
# At 30 % they are level. (Except F without $w^2$: a curvature alone is not what removing a weight costs.) At 50 % Taylor and Fisher fall *behind* plain magnitude (the Hessian does not). The last number says why: they empty one layer. In a wide layer each weight alone is dispensable, since others do the same; so its scores are all low; so nearly all of them go, and then nobody is left to do it. A score knows what one removal does, not what a hundred thousand do.
#
# The remedy is to ask again. In rounds: remove a little, compute the scores of what is left, remove more. No training in between.


# %%
def in_rounds(score, sparsity, rounds):
    model, masks = network, None
    for number in range(1, rounds + 1):
        amount = 1 - (1 - sparsity) ** (number / rounds)
        masks = p.global_masks(score(model), amount, within=masks)
        model = p.apply_masks(network, masks)
    return model, masks


# %%
fisher = lambda model: imp.fisher_scores(model, images, loss)  # noqa: E731
asked = {rounds: in_rounds(fisher, 0.7, rounds) for rounds in (1, 5, 10)}
for rounds, (model, masks) in asked.items():
    least = min(mask.float().mean().item() for mask in masks.values())
    print(f"Fisher, 70 %, rounds: {rounds:>2}: ≈ {percent(model):.1f} %; the emptiest layer keeps ≈ {least:.1%}")
print(f"magnitude, 70 %: ≈ {curves['magnitude'][2]:.1f} % (rounds change nothing: its scores stay the same)")
assert percent(asked[10][0]) > max(curves["magnitude"][2], percent(asked[1][0])) + 15

# %% [markdown]
# The same score, asked ten times, is now far ahead of magnitude.
#
# ### Trap: one outlier rules the mix
#
# Many programs scale each score to 0..1 by minimum and maximum and add them. One enormous value presses all others of that score to zero. Ranks do not care. They must be taken over the *whole* network: a rank within each layer forgets which layers matter.
#
# We mix a good score, the magnitude, with pure noise, and remove 30 % of the weights. Then one magnitude is made 1,000 times larger.


# %% tags=["trap"]
def min_max(parts):
    mixed = dict.fromkeys(parts[0], 0)
    for scores in parts:
        low, high = min(v.min() for v in scores.values()), max(v.max() for v in scores.values())
        mixed = {name: mixed[name] + (value - low) / (high - low) for name, value in scores.items()}
    return mixed


# %%
good = {name: value.clone() for name, value in single["magnitude"].items()}
luck = torch.Generator().manual_seed(0)
noise = {name: 0.2 * torch.rand(value.shape, generator=luck) for name, value in good.items()}
mixed = {}
for label, spike in (("as it is", 1.0), ("one value 1,000 times larger", 1e3)):
    good["linear.weight"][0, 0] = single["magnitude"]["linear.weight"].max() * spike
    mixes = {"min-max": min_max([good, noise]), "ranks": imp.combine_scores({"good": good, "noise": noise})}
    values = {n: percent(p.apply_masks(network, p.global_masks(mix, 0.3))) for n, mix in mixes.items()}
    print(f"{label:<30}", ", ".join(f"{name} ≈ {value:.1f} %" for name, value in values.items()))
    mixed[label] = values

# %%
as_is, spiked = mixed.values()
assert as_is["ranks"] > as_is["min-max"] + 20 and spiked["min-max"] < 20
assert abs(spiked["ranks"] - as_is["ranks"]) < 1

# %% [markdown]
# Even without the spike the noise spoils the min-max mix: most magnitudes lie far below the largest, close to 0 on its scale. With it, nothing but noise is left. Ranks lose a few points to the noise and none to the spike.
#
# ## 9. Before training: SNIP, GraSP, SynFlow
#
# Can one prune a network that has not been trained? **SNIP** keeps what the loss is sensitive to at the start, **GraSP** what keeps gradients flowing, **SynFlow** needs no data at all: it sends ones through the magnitudes of all weights and keeps the strongest paths. Its scores are *conserved*: without biases they add up to the same in every layer, so no layer looks superfluous as a whole.

# %%
initial = models.build("mlp", width=64)
torch.nn.utils.vector_to_parameters(
    torch.cat([v.detach().flatten() * ("bias" not in n) for n, v in initial.named_parameters()]), initial.parameters()
)
some = list(splits.train.take(640).batches(640))
flow = imp.synflow_scores(initial, some)
print("synaptic flow through each layer:", [f"{value.sum().item():.6g}" for value in flow.values()])
sums = torch.stack([value.sum() for value in flow.values()])
assert (sums / sums[0] - 1).abs().max() < 1e-6


# %% [markdown]
# Now each method keeps 5 % of the weights of an untrained network, which is then trained for a short time (three seeds, as in lesson 05's lottery). *Random* keeps the same share of each layer; SynFlow prunes in many small rounds, the others at once. *Look at:* the last column too.


# %%
def at_start(method, model, seed):
    """Masks that keep 5 % of an untrained network."""
    if method == "SynFlow":
        return imp.synflow_masks(model, some, sparsity=0.95).masks
    if method == "random":
        even = p.prune_magnitude(model, 0.95, scope="layer").masks
        return p.random_masks(even, generator=torch.Generator().manual_seed(seed))
    score = {"SNIP": imp.snip_scores, "GraSP": imp.grasp_scores}.get(method)
    return p.global_masks(score(model, some, loss) if score else imp.magnitude_scores(model), 0.95)


# %%
learn, early = splits.train.take(6000), {}
fast = {"epochs": 6, "batch_size": 64, "lr": 4e-3, "weight_decay": 0.0}


def learned(method, seed):
    fresh = models.build("mlp", width=64, generator=torch.Generator().manual_seed(seed))
    masks = at_start(method, fresh, seed)
    trained = fit(p.apply_masks(fresh, masks), learn, after_step=p.enforce(masks), seed=seed, **fast).model
    return percent(trained), min(int(mask.sum()) for mask in masks.values())


# %%
for method in ("random", "magnitude", "GraSP", "SynFlow", "SNIP"):
    runs = [learned(method, seed) for seed in range(3)]
    early[method] = [value for value, _ in runs]
    values = ", ".join(f"≈ {value:4.1f} %" for value in early[method])
    print(f"{method:<10} {values}   in the emptiest layer: ≈ {runs[0][1]} weights")

# %%
assert min(early["SNIP"]) > max(early["random"])
assert min(early["SynFlow"]) > max(early["random"])

# %% [markdown]
# With one weight of twenty, chosen before any training, SNIP and SynFlow learn clearly more than the same number at random places. The magnitudes of an untrained network say nothing but which layer was initialized with small numbers: the layer with the most inputs is emptied, and the network cannot learn at all. That is **layer collapse** (Wanda's first layer in section 7 was another), and the last column is where to look for it.
#
# ## 10. A language model
#
# The same on the small GPT of lesson 04: the oracle for 40 of its channels; then half of the weights of its blocks removed at once, measured in perplexity (less is better). Global here, where lesson 05 took half of each layer, so the numbers differ a little.

# %%
text = data.load("python-docs")
gpt = checkpoints.load("gpt")
held_out = list(text.val.batches(32))
reading = list(text.train.batches(32))[:2]
blocks = [name for name in imp.scored_weights(gpt) if "head" not in name]


def next_token(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def perplexity(model):
    return measure.perplexity(measure.predict_batches(model, held_out), resamples=20).value


# %%
truth = imp.channel_oracle(gpt, reading[:1], next_token, names=blocks, samples=40)
channels = {
    "L1": imp.per_channel(imp.magnitude_scores(gpt, names=blocks)),
    "Taylor": imp.taylor_channel_scores(gpt, reading, next_token, names=blocks),
    "Fisher": imp.fisher_channel_scores(gpt, reading, next_token, names=blocks),
}
print(
    "rank correlation with the oracle:", {name: f"≈ {truth.spearman(scores):.2f}" for name, scores in channels.items()}
)

# %%
options = {"names": blocks}
language = {
    "magnitude": imp.magnitude_scores(gpt, **options),
    "Wanda": imp.wanda_scores(gpt, reading, **options),
    "Taylor": imp.taylor_scores(gpt, reading, next_token, **options),
    "Fisher, ½ F w²": imp.fisher_scores(gpt, reading, next_token, **options),
}
ppl = {name: perplexity(p.apply_masks(gpt, p.global_masks(scores, 0.5))) for name, scores in language.items()}
print(f"dense ≈ {perplexity(gpt):.2f};", ", ".join(f"{name} ≈ {value:.2f}" for name, value in ppl.items()))
assert ppl["Fisher, ½ F w²"] < ppl["magnitude"]

# %% [markdown]
# Here Fisher wins clearly, also where it lost to magnitude on the ResNet: half of the weights at once. (Taylor squares the slope of a *batch*, and there were only two batches; it wants many small ones.) Why the two networks differ, this experiment does not say. The conclusion of a table belongs to its model.
#
# ## 11. Does it still matter after training?
#
# Lesson 05 trained on 1,500 images after pruning. The same here, with 80 % of the weights gone, three seeds each:

# %%
settings = {"epochs": 1, "batch_size": 64, "lr": 4e-3, "weight_decay": 0.0, "augment": jitter}
chosen = {
    "magnitude": p.global_masks(single["magnitude"], 0.8),
    "Fisher at once": p.global_masks(single["Fisher, ½ F w²"], 0.8),
    "Fisher, 10 rounds": in_rounds(fisher, 0.8, 10)[1],
}
after, models_of, few = {}, {"dense": network}, splits.train.take(1500)
for name, masks in chosen.items():
    begin = p.apply_masks(network, masks)
    runs = [fit(begin, few, seed=s, after_step=p.enforce(masks), **settings).model for s in range(3)]
    after[name], models_of[name] = [percent(model) for model in runs], runs[0]
    print(f"{name:<18} before ≈ {percent(begin):4.1f} %, after", ", ".join(f"≈ {value:.1f} %" for value in after[name]))

# %%
assert min(after["magnitude"]) > max(after["Fisher at once"]) + 10
assert min(after["Fisher, 10 rounds"]) > max(after["Fisher at once"]) + 10

# %% [markdown]
# Training levels most of what scores differ in, but it cannot refill an emptied layer. What the rounds won without training has almost gone again: magnitude, the score that costs nothing, is level with it. So, here: scores from the loss, in rounds, when you cannot train; magnitude when you can.
#
# The test split, once, for the first seed of each, with the smallest file that lesson 05's formats give, without gzip:

# %%
rows = []
answers = {name: measure.predict(model, splits.test.batches()) for name, model in models_of.items()}
for name, answer in answers.items():
    share = measure.accuracy(answer)
    sizes = {kind: size for kind, size in p.sizes(models_of[name].state_dict()).items() if kind != "gzip"}
    rows.append([min(sizes.values()), share.value, share.low, share.high])
    print(f"{name:<22} ≈ {rows[-1][0]:,} bytes   ≈ {100 * share.value:.1f} %")
summary = pd.DataFrame(rows, index=list(answers), columns=["size_bytes", "accuracy", "accuracy_low", "accuracy_high"])

# %% tags=["slide"]
ax = measure.plot_comparison(summary, "accuracy")
ax.set(title="The same bytes, chosen differently")
show(
    ax,
    alt="Three networks of the same file size and different accuracy, the one of Fisher at once lowest; dense far right",
)

# %% tags=["headline", "slide"]
print(
    f"rank correlation with the oracle: L1 ≈ {table.loc['L1', 'rank']:.2f}, Taylor ≈ {table.loc['Taylor 2019', 'rank']:.2f}, "
    f"Fisher ≈ {table.loc['Fisher', 'rank']:.2f}; 20 % of the channels gone, without training: L1 ≈ {removed.loc['L1', '20%']:.1f} %, "
    f"Fisher ≈ {removed.loc['Fisher', '20%']:.1f} %"
)

# %% [markdown]
# ## Exercises
#
# ### 07.1 Taylor for a channel
# *10 minutes, difficulty 1 of 3.* Write `taylor_of(gradients, weights)` for tensors (O, ...) of any number of axes: one score for each output channel, the sum of gradient times weight first, then squared.
#
# <details><summary>Hint</summary><code>flatten(1)</code> leaves the first axis and makes one of all others.</details>


# %% tags=["exercise"]
def taylor_of(gradients, weights):
    return None  # replace this line


check("07.1", taylor_of)


# %% jupyter={"source_hidden": true} tags=["solution"]
def taylor_of_solution(gradients, weights):
    return (gradients * weights).flatten(1).sum(1).square()


check("07.1", taylor_of_solution, record=False)

# %% [markdown]
# ### 07.2 Fisher of a linear layer, without a loop
# *15 minutes, difficulty 2 of 3.* For a linear layer the gradient of one sample is $\delta_i a_i^T$: what comes back, times what went in. Write `fisher_of(deltas, inputs)` for deltas (B, O) and inputs (B, I): the mean over the samples of the squared gradients, (O, I), without a loop.
#
# <details><summary>Hint</summary>The square of a product is the product of the squares.</details>


# %% tags=["exercise"]
def fisher_of(deltas, inputs):
    return None  # replace this line


check("07.2", fisher_of)


# %% jupyter={"source_hidden": true} tags=["solution"]
def fisher_of_solution(deltas, inputs):
    return deltas.square().T @ inputs.square() / len(inputs)


check("07.2", fisher_of_solution, record=False)

# %% [markdown]
# ### 07.3 Hutchinson
# *20 minutes, difficulty 3 of 3.* Write `diagonal(product, size, probes, generator)`: an estimate of the diagonal of a matrix that you can only multiply with: `product(v)` is $Hv$. Use random signs.
#
# <details><summary>Hint 1</summary>Signs: <code>torch.randint(0, 2, (size,), generator=generator) * 2.0 - 1</code>.</details>
# <details><summary>Hint 2</summary>v * (H v) is the diagonal, plus cross terms whose mean is zero.</details>


# %% tags=["exercise"]
def diagonal(product, size, probes, generator):
    return None  # replace this line


check("07.3", diagonal)


# %% jupyter={"source_hidden": true} tags=["solution"]
def diagonal_solution(product, size, probes, generator):
    total = torch.zeros(size)
    for _ in range(probes):
        v = torch.randint(0, 2, (size,), generator=generator) * 2.0 - 1
        total += v * product(v)
    return total / probes


check("07.3", diagonal_solution, record=False)

# %% [markdown]
# ### 07.4 A mix that no outlier rules
# *15 minutes, difficulty 2 of 3.* Write `mix(first, second)` for two dicts of scores with the same names and shapes: the mean of their ranks over all tensors together (the lowest score has rank 1), divided by the number of scores, as a dict. There are no ties.
#
# <details><summary>Hint</summary><code>flat.argsort().argsort()</code> is the place of each value, from 0.</details>


# %% tags=["exercise"]
def mix(first, second):
    return None  # replace this line


check("07.4", mix)


# %% jupyter={"source_hidden": true} tags=["solution"]
def mix_solution(first, second):
    names, total = list(first), 0
    for scores in (first, second):
        flat = torch.cat([scores[name].flatten() for name in names])
        total = total + (flat.argsort().argsort() + 1) / len(flat) / 2
    parts = total.split([first[name].numel() for name in names])
    return {name: part.view_as(first[name]) for name, part in zip(names, parts, strict=True)}


check("07.4", mix_solution, record=False)

# %% [markdown]
# ### 07.5 The oracle
# *15 minutes, difficulty 2 of 3.* Write `take_out(model, weight_name, loss)`: for each output channel of that weight, the increase of `loss(model)` when the channel's weights are zero, all together as a tensor. The model is to be the same afterwards.
#
# <details><summary>Hint</summary><code>model.get_parameter(weight_name)</code>; its first axis is the output channels. Work under <code>torch.no_grad()</code>, and keep a <em>copy</em> of what you set to zero.</details>


# %% tags=["exercise"]
def take_out(model, weight_name, loss):
    return None  # replace this line


check("07.5", take_out)


# %% jupyter={"source_hidden": true} tags=["solution"]
@torch.no_grad()
def take_out_solution(model, weight_name, loss):
    weight, whole, changes = model.get_parameter(weight_name), float(loss(model)), []
    for channel in range(len(weight)):
        kept = weight[channel].clone()
        weight[channel] = 0
        changes.append(float(loss(model)) - whole)
        weight[channel] = kept
    return torch.tensor(changes)


check("07.5", take_out_solution, record=False)

# %% [markdown]
# ## Quiz

# %% tags=["quiz"]
quiz("07")

# %% [markdown]
# ## Summary
#
# - There is a truth: take it out, measure the loss. Every score can be judged by it.
# - For channels, scores from the loss (Taylor, Fisher) beat the size of weights and activations by far, for one backward pass.
# - Sum first, then square. Square per sample, then average. Diagonal, not row sums.
# - Combine ranks of the whole network, if you combine at all.
# - A score knows what one removal does, not what many do together. Remove in rounds, and ask again; training levels much of the rest, but refills no emptied layer.
#
# ## Sources
#
# - LeCun, Denker and Solla, *Optimal brain damage*, 1990
# - Molchanov and others, 2017, arXiv:1611.06440, and *Importance estimation for neural network pruning*, 2019, arXiv:1906.10771 (Taylor)
# - Theis and others, *Faster gaze prediction with dense networks and Fisher pruning*, 2018, arXiv:1801.05787
# - Lee, Ajanthan and Torr, *SNIP*, 2019, arXiv:1810.02340; Wang, Zhang and Grosse, *GraSP*, 2020, arXiv:2002.07376; Tanaka and others, *SynFlow*, 2020, arXiv:2006.05467
# - Hu and others, *Network trimming* (APoZ), 2016, arXiv:1607.03250; Liu and others, *Network slimming*, 2017, arXiv:1708.06519
# - Hutchinson, *A stochastic estimator of the trace*, 1989; Bekas, Kokiopoulou and Saad, 2007 (the diagonal)
#
# ## Next
#
# Lesson 08 has a large network teach a small one.

# %%
lesson_done = True
