# %% [markdown]
# # 05 Pruning: how many weights does a network need, and who pays less when they are gone?
#
# **Time:** 90 minutes with the exercises, 50 without. **Runs in:** two to three minutes, without a network or a GPU.
#
# **Before you start** you should have done lesson 00 (size, latency, intervals). Section 8 needs lesson 04.
#
# **Afterwards you can**
# - take exactly the share of weights that you ask for, per layer or over the whole network, and keep them gone while training;
# - say what fine-tuning wins back, and for how many images;
# - choose between pruning at once, in rounds and while training, by measuring it;
# - say what zeros save in a file, and when they make anything faster.
#
# A trained network has hundreds of thousands of weights. Some are large, most are small, and many are so small that they might as well be zero. Are they? We set them to zero and look.

# %% tags=["setup"]
import copy
import functools
import math
import warnings

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from compresslab import measure
from compresslab import pruning as p
from compresslab import quantization as q
from compresslab.course import check, quiz, reveal, show, start
from compresslab.course.sliders import threshold_slider
from compresslab.workbench import checkpoints, data, models
from compresslab.workbench.train import fit, jitter

_ = start(threads=1)
warnings.filterwarnings("ignore", message="Sparse CSR")

# %% [markdown]
# ## Three guesses, before anything is measured

# %%
guess_free = None  # percent: how many weights can go at once, for at most 2 points of accuracy, without training?
guess_recovered = None  # percent: accuracy with 90 % of the weights gone, after training on 1,500 images once?
guess_fast = None  # with 90 % zeros, how many times as fast is a dense matrix product?

# %% [markdown]
# ## 1. A mask says what stays
#
# Two layers of six weights. Half of the weights shall go, the smallest. *Global* means the smallest of all twelve, *per layer* the smallest three of each.

# %%
first = torch.tensor([[0.9, -0.1, 0.8], [0.2, -0.7, 0.6]])
second = torch.tensor([[0.3, 0.05, -0.04], [0.01, -0.4, 0.02]])
scores = {"first": first.abs(), "second": second.abs()}
together = p.global_masks(scores, 0.5)
each = p.layer_masks(scores, 0.5)
for name in scores:
    print(f"{name:<7} global {together[name].int().tolist()}   per layer {each[name].int().tolist()}")

# %% [markdown]
# Globally the second layer, whose weights are small, loses four of six, and the first only two. Per layer both lose three. The **mask** is a tensor of yes (stays) and no. It is made from a **score** for each weight, here the magnitude: the lowest scores go. The share that is gone is the **sparsity**. This lesson asks: how many can go, when, and what is saved? (Lesson 07 looks for better scores.)
#
# In a few lines, for tensors of any shape:


# %%
def global_masks(scores, sparsity):
    """Masks that remove round(sparsity * N) of the lowest scores, exactly."""
    every = torch.cat([score.flatten() for score in scores.values()])
    kept = torch.ones(len(every), dtype=torch.bool)
    kept[every.argsort(stable=True)[: round(sparsity * len(every))]] = False
    parts = kept.split([score.numel() for score in scores.values()])
    return {name: part.view_as(scores[name]) for name, part in zip(scores, parts, strict=True)}


ours = global_masks(scores, 0.5)
print("equal to the package:", all(torch.equal(ours[name], together[name]) for name in scores))

# %% [markdown]
# The package does not sort. It counts how many scores fall into which bin, twice, chunk by chunk, so a hundred million weights fit into memory, with the same result.
#
# ### Trap: a threshold takes all or nothing
#
# Most tutorials write `weight.abs() > torch.quantile(weight.abs(), sparsity)`. Where many weights are equal (quantized ones, say) they fall on the same side of the threshold, all together. We ask for 20, 50 and 70 % of weights on a grid of 4 bits:

# %% tags=["trap"]
generator = torch.Generator().manual_seed(0)
grid = q.quantize(torch.randn(200, 200, generator=generator), bits=4).dequantize().abs()
for sparsity in (0.2, 0.5, 0.7):
    by_threshold = (grid <= torch.quantile(grid, sparsity)).float().mean().item()
    by_count = 1 - p.global_masks({"w": grid}, sparsity)["w"].float().mean().item()
    print(f"asked {sparsity:.0%}: a threshold takes {by_threshold:.1%}, counting {by_count:.1%}")
    assert abs(by_count - sparsity) < 1e-4

# %% [markdown]
# ## 2. How many can go at once?
#
# We prune the linear layer and all convolutions of our ResNet. Norms and biases stay: they are few, and each carries a whole channel. *Look at:* how far the accuracy holds and where it falls off.

# %%
splits = data.load("glyphs")
network = checkpoints.load("resnet")


def percent(model, split=splits.val):
    return 100 * measure.accuracy(measure.predict(model, split.batches())).value


dense = percent(network)
amounts = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
at_once = {
    scope: [percent(p.prune_magnitude(network, s, scope=scope).model) for s in amounts] for scope in ("global", "layer")
}

# %%
print(f"dense: ≈ {dense:.1f} %")
for i, sparsity in enumerate(amounts):
    print(f"{sparsity:.0%}: global ≈ {at_once['global'][i]:.1f} %, per layer ≈ {at_once['layer'][i]:.1f} %")
free = max([100 * s for s, value in zip(amounts, at_once["global"], strict=True) if value > dense - 2], default=0)
reveal(guess_free, free, what="weights that can go for 2 points, in steps of 10", unit="%")
assert all(a > b for a, b in zip(at_once["global"][1:5], at_once["layer"][1:5], strict=True))
assert free >= 30
assert at_once["global"][5] < 20

# %% [markdown]
# Which weights are these, and whose? Move the slider, or type a share.

# %%
threshold_slider({name: weight for name, weight in network.named_parameters() if weight.dim() > 1}, 0.5)

# %%
half = p.prune_magnitude(network, 0.5)
removed = {name: 1 - mask.float().mean().item() for name, mask in half.masks.items()}
print(f"global 50 % takes ≈ {100 * min(removed.values()):.0f} % to ≈ {100 * max(removed.values()):.0f} % of a layer")
assert removed["conv1.weight"] < 0.3 < 0.5 < removed["layer3.1.conv2.weight"]

# %% tags=["slide"]
fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.2))
left.plot(100 * torch.tensor(amounts), at_once["global"], "o-", label="global")
left.plot(100 * torch.tensor(amounts), at_once["layer"], "s--", label="per layer")
left.axhline(dense, color="black", lw=0.8, label="dense")
left.set(xlabel="weights removed, %", ylabel="accuracy, %", title="At once, without training")
left.legend()
right.barh([name.removesuffix(".weight") for name in removed], [100 * share for share in removed.values()])
right.axvline(50, color="black", lw=0.8)
right.set(xlabel="weights removed, %", title="Global, 50 %: who gives what")
right.invert_yaxis()
show(fig, alt="Left: both curves fall, per layer earlier. Right: late wide layers give most, the first layer least")

# %% [markdown]
# Some 40 % of the weights go for less than two points, and after that it falls quickly. Global pruning is far better, for the reason on the right: the wide late convolutions can spare most, while the first layer, the shortcuts and the last layer keep most of theirs. (It is no law: a layer whose weights are small for another reason would be emptied.)
#
# ## 3. What is left can learn
#
# The network was trained to live with all of its weights. So what is left gets a chance to adapt: **fine-tuning**, some more training on a few images. But first a trap that many fall into.
#
# ### Trap: the optimizer brings them back
#
# We set 90 % to zero once and train five steps, with momentum and weight decay as usual. *Look at:* how many zeros are left.


# %% tags=["trap"]
def five_steps(model, after=lambda model: None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    for inputs, targets in list(splits.train.take(320).batches(64)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        after(model)
    return p.sparsity_of(model).overall


ninety = p.prune_magnitude(network, 0.9)
print(f"before: {ninety.sparsity:.1%} zeros")
print(f"after five steps: ≈ {five_steps(copy.deepcopy(ninety.model)):.1%}")
print(f"with the masks put back after each: {five_steps(copy.deepcopy(ninety.model), p.enforce(ninety.masks)):.1%}")

# %% [markdown]
# A gradient does not know that a weight was removed. `enforce(masks)` sets it to zero again after each step; our training loop takes it as `after_step`. (Zeroing the *gradient* instead is not enough: momentum and weight decay move weights without one.)
#
# Now the accuracies again, after one pass over the same 1,500 images, three seeds each. As a control, the dense network is trained in the same way.

# %%
options = {"epochs": 1, "batch_size": 64, "lr": 4e-3, "weight_decay": 0.0, "augment": jitter}


def tune(model, after, count=1500, seed=0):
    return fit(model, splits.train.take(count), after_step=after, seed=seed, **options).model


tuned = {}
for sparsity in (0.5, 0.7, 0.8, 0.9, 0.95, 0.98):
    found = p.prune_magnitude(network, sparsity)
    tuned[sparsity] = [percent(tune(found.model, p.enforce(found.masks), seed=seed)) for seed in range(3)]

# %%
for sparsity, values in tuned.items():
    before = at_once["global"][amounts.index(sparsity)]
    print(f"{sparsity:.0%}: before ≈ {before:.1f} %, after", ", ".join(f"≈ {value:.1f} %" for value in values))
control = [percent(tune(network, None, seed=seed)) for seed in range(3)]
print("the dense network, trained on the same images:", ", ".join(f"≈ {value:.1f} %" for value in control))
reveal(guess_recovered, sum(tuned[0.9]) / 3, what="accuracy at 90 % after fine-tuning", unit="%")
assert min(tuned[0.8]) > at_once["global"][5] + 40
assert min(tuned[0.5]) > max(control) and sum(tuned[0.7]) > sum(control) - 3

# %% tags=["slide"]
fig, ax = plt.subplots(figsize=(6.5, 3.2))
ax.plot(100 * torch.tensor(amounts), at_once["global"], "o--", label="at once")
middle = [sum(values) / 3 for values in tuned.values()]
bars = [[m - min(v) for m, v in zip(middle, tuned.values(), strict=True)]]
bars += [[max(v) - m for m, v in zip(middle, tuned.values(), strict=True)]]
ax.errorbar([100 * s for s in tuned], middle, yerr=bars, fmt="^-", capsize=3, label="after 1,500 images")
ax.axhline(dense, color="black", lw=0.8, label="dense")
ax.set(xlabel="weights removed, %", ylabel="accuracy, %", title="What a short training wins back")
ax.legend()
show(
    fig, alt="Without training the curve falls at 60 percent; with 1,500 images it stays high until 80 and falls at 90"
)

# %% [markdown]
# Seconds of training move the cliff from 60 % to beyond 80 %. The learning rate is high, for there is much to repair. Where there is not, it does harm: the dense network *lost* several points, and with 50 or 70 % gone the network is no worse than this control.
#
# ## 4. How much training?
#
# "Fine-tune for 20 to 30 % of the original training", one reads. Ours was trained on 320,000 images (20 passes over 16,000), so that would be 64,000 or more. We try far less, with 90 % of the weights gone:

# %%
ninety, budget = p.prune_magnitude(network, 0.9), {}
for count, seeds in ((500, 3), (1500, 3), (4500, 3), (13500, 1)):
    budget[count] = [tune(ninety.model, p.enforce(ninety.masks), count, seed) for seed in range(seeds)]
reached = {count: [percent(model) for model in made] for count, made in budget.items()}
for count, found in reached.items():
    values = ", ".join(f"≈ {value:.1f}" for value in found)
    print(f"{count:>6,} images, {count / 320_000:5.1%} of the training: {values} %")
means = [sum(found) / len(found) for found in reached.values()]
assert means == sorted(means)
assert means[-1] > dense - 16

# %% [markdown]
# Each step to the right is three times the images. *Look at:* where the curve begins to bend, and whether it has arrived.

# %% tags=["slide"]
fig, ax = plt.subplots(figsize=(6, 2.8))
ax.plot(list(reached), means, "-", label="90 % gone, mean")
for count, found in reached.items():
    ax.plot([count] * len(found), found, "o", color="black", label="one seed" if count == 500 else None)
ax.axhline(dense, color="black", lw=0.8, ls="--", label="dense")
ax.set(
    xscale="log", xlabel="images of fine-tuning", ylabel="accuracy, %", title="What training wins back", ylim=(0, 100)
)
ax.set_xticks(list(reached), [f"{count:,}" for count in reached])
ax.minorticks_off()
ax.legend(fontsize=8, loc="lower right")
show(fig, alt="Near zero with 500 images, 38 percent with 1,500, 71 with 4,500, 80 with 13,500; dense lies at 89")

# %% [markdown]
# Too few images win nothing at all. The next two triplings help greatly, the last one much less, and even it still helps. No percentage is right for all: measure this for your network, at your sparsity.
#
# ## 5. At once, in rounds, or all the time?
#
# With a fixed budget of images, when should the weights go? *At once* leaves all training for the repair. *In rounds* prunes a little, trains a little, and again. *Gradually* changes the masks in every step, on the cubic schedule of Zhu and Gupta (2017): fast while there is much to spare, slow at the end,
#
# $$s_t = s_f \left(1 - (1 - t/T)^3\right),$$
#
# where $s_t$ is the sparsity at step $t$, $s_f$ the final one, and $T$ the number of steps on the way. (Exercise 05.2 has the paper's full formula.) A widespread copy has the cube elsewhere, $s_f (t/T)^3$: slow first, and most of it late, when little time is left to recover. *Look at:* how much is gone half-way. Printed below the figure: the sparsity after a quarter, a half and three quarters, right and misplaced.

# %% tags=["slide"]
ways = [step / 100 for step in range(101)]
right = [p.cubic_sparsity(step, end=100, final=0.9) for step in range(101)]
fig, ax = plt.subplots(figsize=(5.5, 2.8))
ax.plot(ways, right, label="Zhu and Gupta")
ax.plot(ways, [0.9 * t**3 for t in ways], "--", label="the cube misplaced")
ax.set(xlabel="part of the way", ylabel="sparsity", title="How fast to 90 %")
ax.legend()
show(fig, alt="The right curve rises steeply and flattens; the misplaced one stays near zero and shoots up at the end")
print({f"{t:.0%}": (round(right[int(100 * t)], 3), round(0.9 * t**3, 3)) for t in (0.25, 0.5, 0.75)})


# %% [markdown]
# All recipes get the same number of images. Which will win when 90 % have to go, with 2,500 images? And 95 %, with 6,000?


# %%
def once(sparsity, count, seed):
    found = p.prune_magnitude(network, sparsity)
    return tune(found.model, p.enforce(found.masks), count, seed)


def in_rounds(sparsity, count, seed):
    repair = lambda model, masks: tune(model, p.enforce(masks), count // 4, seed)  # noqa: E731
    return p.prune_iteratively(network, repair, sparsity=sparsity, rounds=4).model


def gradually(sparsity, count, seed, shape=lambda t: 1 - (1 - t) ** 3):
    steps = 0.7 * (count // 64)  # then 30 % for repair
    return tune(network, p.GradualPruner(lambda step: sparsity * shape(min(step / steps, 1))), count, seed)


# %%
recipes = {"at once": once, "four rounds": in_rounds, "cubic": gradually}
recipes["misplaced"] = lambda *args: gradually(*args, shape=lambda t: t**3)
plan = [(name, 0.9, 2500) for name in recipes] + [(name, 0.95, 6000) for name in ("at once", "cubic")]
compared = {}
for name, sparsity, count in plan:
    made = [recipes[name](sparsity, count, seed) for seed in range(3)]
    assert all(abs(p.sparsity_of(model).overall - sparsity) < 1e-3 for model in made)
    compared[name, sparsity] = [percent(model) for model in made]
    values = ", ".join(f"≈ {value:4.1f}" for value in compared[name, sparsity])
    print(f"{sparsity:.0%}, {count:,} images, {name:<12} {values} %")

# %%
assert min(compared["at once", 0.9]) > max(compared["cubic", 0.9])
assert min(compared["cubic", 0.9]) > max(compared["four rounds", 0.9])
assert min(compared["four rounds", 0.9]) > max(compared["misplaced", 0.9])
assert min(compared["cubic", 0.95]) > max(compared["at once", 0.95])

# %% [markdown]
# At 90 % and with a short budget, pruning at once is best: all images are left for the repair. Each of the four rounds has only a quarter of them, and its learning rate warms up and decays anew. The misplaced cube is last, as the picture promised. At 95 %, with more than twice the images, the order turns, and the cubic schedule beats pruning at once. So "gradual is better" says nothing without a budget, a sparsity and a network. (On a public network, `python -m benchmarks pruning_resnet20`, pruning at once was ahead even at 95 %.)
#
# ### Trap: pruning what is pruned
#
# Six times 30 %, with PyTorch's own function and with ours. How much is gone in the end?

# %% tags=["trap"]
layer = nn.Linear(100, 100)
for _ in range(6):
    torch_prune.l1_unstructured(layer, "weight", amount=0.3)
compounded = (layer.weight == 0).float().mean().item()
ours = nn.Sequential(nn.Linear(100, 100))
for _ in range(6):
    ours = p.prune_magnitude(ours, 0.3).model
print(f"PyTorch: {compounded:.1%} = 1 - 0.7^6 = {1 - 0.7**6:.1%}; ours: {p.sparsity_of(ours).overall:.1%}")
print(f"10, 20, ..., 90 % in turn: {1 - math.prod(1 - tenth / 10 for tenth in range(1, 10)):.2%} are gone")

# %% [markdown]
# `amount` is a share of what is *left*, which is nothing wrong, only rarely what one means. A loop that asks for 10, 20, ..., 90 % ends far beyond 90 %.
#
# ## 6. Lottery tickets
#
# If most weights are not needed, why train them at all? Frankle and Carbin (2019) train, prune, put what is left back to its *initial* values, and train again. If that learns as well as the whole network did, it is a **winning ticket**. Two controls show what makes it special: as many weights at *random places*, and the same places with *other initial values* (shuffled). We take a small network and little training, because there are eighteen trainings; it reads badly, and only the comparison counts.

# %%
images, lottery = splits.train.take(6000), []
fast = {"epochs": 6, "batch_size": 64, "lr": 4e-3, "weight_decay": 0.0}


def train(model, masks, seed=0):
    return fit(model, images, after_step=p.enforce(masks), seed=seed, **fast).model


# %%
for seed in range(3):
    generator = torch.Generator().manual_seed(seed)
    initial = models.build("mlp", width=64, generator=generator)
    ticket = p.find_ticket(initial, functools.partial(train, seed=seed), sparsity=0.9, rounds=3)
    elsewhere = p.random_masks(ticket.masks, generator=generator)
    starts = {"the ticket": (ticket.model, ticket.masks)}
    starts["random places"] = (p.apply_masks(initial, elsewhere), elsewhere)
    starts["other values"] = (p.shuffle_weights(initial, ticket.masks, generator=generator), ticket.masks)
    lottery.append(
        {"dense": percent(ticket.dense)} | {name: percent(train(*start, seed)) for name, start in starts.items()}
    )

# %%
lottery = pd.DataFrame(lottery)
for name, column in lottery.items():
    print(f"{name:<14}", ", ".join(f"≈ {value:.1f} %" for value in column))
assert lottery["the ticket"].min() > lottery["other values"].max() > lottery["random places"].min()
assert lottery["dense"].min() > lottery["the ticket"].max() - 2

# %% [markdown]
# All four saw the same images for as long. A tenth of the weights, chosen in hindsight, learns about as well as the whole network; a random tenth does not; and with other initial values the same places are worth much less. It is no way to save training: three trainings went into finding the ticket. The authors take it as a hint why large networks are easier to train: they hold more tickets. (Larger networks have to be put back to an early training step instead: *rewinding*.)
#
# ## 7. Zeros in a pattern: N:M
#
# The program that multiplies matrices on a processor is also called a *kernel*; one that must search for its values is slow. The pattern **2:4** keeps two of every four neighbouring inputs, so the hardware knows where to look (NVIDIA's sparse tensor cores do; a CPU does not). It costs accuracy, for it takes half of *each* four. *Look at:* the weight 0.7, which has bad neighbours, and what another order of the columns does for it.

# %%
weight = torch.tensor([[0.9, 0.1, 0.8, 0.7, 0.2, 0.0, 0.1, 0.3]])
print("all:           ", [round(w, 1) for w in weight[0].tolist()])
print("kept, 2:4:     ", p.n_m_mask(weight)[0].int().tolist())
print("kept, any half:", p.layer_masks({"w": weight}, 0.5)["w"][0].int().tolist())
order = p.permute_columns(weight)
kept = [(weight[:, o] * p.n_m_mask(weight[:, o])).sum().item() for o in (torch.arange(8), order)]
print(f"order {order.tolist()}: keeps {kept[1]:.1f} of {weight.sum():.1f}, before {kept[0]:.1f}")

# %% [markdown]
# On the real network: the same half of the weights in four patterns, from the strictest to the loosest; then without a pattern. Will a better order of the columns help here too?

# %%
patterns = {f"{n}:{m}": p.prune_n_m(network, n=n, m=m) for n, m in ((1, 2), (2, 4), (4, 8), (8, 16))}
patterns["2:4, better order"] = p.prune_n_m(network, permute=True)
patterns["any half of a layer"] = p.prune_magnitude(network, 0.5, scope="layer")
for name, found in patterns.items():
    print(f"{name:<20} ≈ {percent(found.model):.1f} %")
trained = [percent(tune(patterns["2:4"].model, p.enforce(patterns["2:4"].masks), seed=seed)) for seed in range(3)]
print("2:4 and 1,500 images:", ", ".join(f"≈ {value:.1f} %" for value in trained))
assert percent(patterns["1:2"].model) < percent(patterns["2:4"].model) < percent(patterns["8:16"].model)
assert min(trained) > 80

# %% [markdown]
# The finer the pattern, the more it costs, and a little training repairs it. A better order of the inputs keeps more magnitude in each layer, but no more accuracy: the sum of magnitudes is only a stand-in for what matters.
#
# ## 8. A language model: look at the inputs
#
# A large model cannot be trained again here, so what is removed must be chosen better. A small weight on a loud input may matter more than a large one on a quiet input. **Wanda** (Sun and others, 2024) scores $|W_{ij}| \cdot \lVert X_j \rVert_2$: the magnitude of the weight from input $j$ to output $i$, times the norm of that input over some text. **SparseGPT** (Frantar and Alistarh, 2023) also lets the weights that stay make up for those that go, by the same algebra as GPTQ in lesson 04. On one row of two weights, with inputs that rise and fall together:

# %%
generator = torch.Generator().manual_seed(0)
x = torch.randn(1000, 1, generator=generator) + 0.3 * torch.randn(1000, 2, generator=generator)
gram, w = x.T @ x / 1000, torch.tensor([0.4, 0.5])
repaired = w[1] + w[0] * gram[0, 1] / gram[1, 1]  # the best second weight when the first is 0
for name, row in (
    ("set to zero", torch.stack([torch.tensor(0.0), w[1]])),
    ("repaired", torch.stack([w[0] * 0, repaired])),
):
    print(f"{name:<12} {[round(v, 2) for v in row.tolist()]}, squared error {((x @ (w - row)) ** 2).mean():.3f}")

# %% [markdown]
# The second weight grows and does the work of both. Now half of all weights in the blocks of lesson 04's small GPT, without any training; the measure is perplexity, where less is better. Magnitude is compared within a layer, Wanda within each *row* of a weight, as in its paper.

# %%
text = data.load("python-docs")
gpt = checkpoints.load("gpt")
held_out, calibration = list(text.val.batches(32)), list(text.train.batches(32))[:2]
names = [name for name in p.prunable(gpt) if "head" not in name]


def perplexity(model):
    return measure.perplexity(measure.predict_batches(model, held_out), resamples=20).value


# %%
programs = {
    "magnitude": lambda model, sparsity: p.prune_magnitude(model, sparsity, scope="layer", names=names).model,
    "Wanda": lambda model, **amount: p.wanda_model(model, calibration, names=names, **amount).model,
    "SparseGPT": lambda model, **amount: p.sparsegpt_model(model, calibration, names=names, **amount).model,
}
ours = {name: perplexity(program(gpt, sparsity=0.5)) for name, program in programs.items()}
whole = perplexity(gpt)
print(f"dense ≈ {whole:.2f};", ", ".join(f"{name} ≈ {value:.2f}" for name, value in ours.items()))
assert ours["SparseGPT"] < ours["Wanda"] < ours["magnitude"]

# %% [markdown]
# The order of the papers holds. But Wanda wins little over magnitude. Is it the score, or the rule that each row gives the same share? The same scores, compared within the whole layer:


# %%
def wanda_by_layer(model, sparsity):
    seen = p.input_statistics(model, calibration, [name.removesuffix(".weight") for name in names], gram=False)
    squares = {name: seen[name.removesuffix(".weight")].squares for name in names}
    scores = {name: p.wanda_scores(model.get_parameter(name), squares[name]) for name in names}
    return p.apply_masks(model, p.layer_masks(scores, sparsity))


programs["Wanda, by layer"] = wanda_by_layer
ours["Wanda, by layer"] = perplexity(wanda_by_layer(gpt, 0.5))
print(f"Wanda ≈ {ours['Wanda']:.2f}, by layer ≈ {ours['Wanda, by layer']:.2f}")
assert ours["SparseGPT"] < ours["Wanda, by layer"]
assert ours["Wanda"] - ours["Wanda, by layer"] > ours["magnitude"] - ours["Wanda"]

# %% [markdown]
# The score is good; its rule takes away more than it leaves. On large models the paper found the opposite. Those also have loud channels, and ours has none. So we plant some, as in lesson 04: in a copy three channels behind each norm are 60 times louder, and the function stays the same. Whom does that hurt?

# %%
loud = copy.deepcopy(gpt)
for joint in q.find_joints(gpt, calibration[0][0]).found:
    if "norm" in joint.source:
        q.move_scales(loud, joint, torch.ones(96).index_fill(0, torch.tensor([7, 40, 71]), 1 / 60))
theirs = {name: perplexity(program(loud, sparsity=0.5)) for name, program in programs.items()}
same = perplexity(loud)
print(f"dense ≈ {same:.2f};", ", ".join(f"{name} ≈ {value:.2f}" for name, value in theirs.items()))
assert abs(same - whole) < 0.01
assert theirs["magnitude"] > ours["magnitude"] + 0.5 and abs(theirs["Wanda"] - ours["Wanda"]) < 0.01

# %% [markdown]
# All eight numbers in a picture. *Look at:* which pair of bars differs most.

# %% tags=["slide"]
fig, ax = plt.subplots(figsize=(7, 2.8))
order = ("magnitude", "Wanda", "Wanda, by layer", "SparseGPT")
for shift, label, values, hatch in ((-0.2, "our model", ours, ""), (0.2, "with loud channels", theirs, "//")):
    bars = ax.bar([i + shift for i in range(4)], [values[name] for name in order], 0.38, label=label, hatch=hatch)
    ax.bar_label(bars, fmt="%.2f", fontsize=8)
ax.axhline(whole, color="black", lw=0.8, ls="--", label="dense")
ax.set(xticks=range(4), xticklabels=order, ylabel="perplexity", ylim=(0, 7.5), title="Half of the weights, no training")
ax.legend(fontsize=8, ncols=3)
show(
    fig,
    alt="Bars of perplexity: magnitude 4.6, with loud channels 5.4; Wanda 4.5 and 4.4 by layer, the same in both; SparseGPT 3.9",
)

# %% [markdown]
# Only magnitude gets clearly worse: the weights behind a loud channel are small and important. Wanda does not notice the difference, for its score has the norm of the input in it.
#
# 2:4 is harder still:

# %%
two_four = {name: perplexity(programs[name](gpt, n=2, m=4)) for name in ("Wanda", "SparseGPT")}
two_four["magnitude"] = perplexity(p.prune_n_m(gpt, names=names).model)
print(", ".join(f"{name} ≈ {value:.2f}" for name, value in two_four.items()))
assert two_four["SparseGPT"] < min(two_four["magnitude"], two_four["Wanda"])

# %% [markdown]
# The pattern hurts more than half of the weights anywhere does. Wanda is now even behind magnitude; SparseGPT, which repairs, stays ahead.
#
# ## 9. What do zeros save?
#
# In a dense file: nothing. A zero in FP32 takes four bytes. To save, a format has to say *where* the values are, and that costs too:
#
# - *bitmask*: the values, and one bit for each place;
# - *CSR* (compressed sparse rows): the values, the column of each, and where each row begins;
# - *COO* (coordinates): the values, the row and the column of each;
# - *run length*: the values, and how many zeros come before each;
# - *2:4*: two values of every four, and which two they are. Layers without the pattern stay dense in that file; `<NA>` means that no layer has it.
#
# The files, in bytes:

# %%
rows = {}
for sparsity in (0.0, 0.5, 0.9, 0.95):
    state = p.prune_magnitude(network, sparsity).model.state_dict()
    rows[f"{sparsity:.0%}"] = p.sizes(state)
rows["2:4"] = p.sizes(patterns["2:4"].model.state_dict())
table = pd.DataFrame(rows).T.astype("Int64")
print(table.drop(columns="gzip").to_string())  # gzip's size depends on its version
gzipped = table["gzip"]
print("gzip:", ", ".join(f"{name} ≈ {size:,}" for name, size in gzipped.items()))
assert table.loc["50%", "dense"] == table.loc["0%", "dense"]
assert table.loc["50%", "bitmask"] < 0.6 * table.loc["50%", "dense"] < table.loc["50%", "coo"]

# %% [markdown]
# Half of the weights gone is not half of the file: with a bitmask it comes close, with COO it saves nothing at all. The bitmask is best at 50 %, runs of zeros are best from 90 % on. And gzip, which knows nothing of networks, does as well as the best of them: it is the reference that a cleverer format has to beat. (Lesson 09 goes on from here, to Huffman codes.)
#
# And speed? A matrix of 1024 x 1024 times 1 and times 64 vectors: *full*, with *zeros* in an ordinary dense tensor, and the same in *CSR*. *Look at:* the sparsity from which CSR is faster than the full matrix (more than 1.00x).

# %%
guess = torch.Generator().manual_seed(0)
matrix = torch.randn(1024, 1024, generator=guess)
chance = torch.rand(1024, 1024, generator=guess)
speed = {}

# %% tags=["nbval-ignore-output"]
for vectors in (1, 64):
    x = torch.randn(1024, vectors, generator=guess)
    for sparsity in (0.5, 0.8, 0.9, 0.95, 0.99):
        zeros = matrix * (chance > sparsity)
        sparse = zeros.to_sparse_csr()
        calls = {"full": lambda: matrix @ x, "zeros": lambda: zeros @ x, "CSR": lambda: sparse @ x}  # noqa: B023
        timed = measure.compare_latency(calls, reference="full", rounds=7, min_time_s=0.03)
        speed[vectors, sparsity] = {name: timed.speedup[name].value for name in ("zeros", "CSR")}
        words = ", ".join(f"{name} {value:.2f}x" for name, value in speed[vectors, sparsity].items())
        print(f"batch {vectors:>2}, {sparsity:.0%} zeros, as fast as a full matrix: {words}")

# %% tags=["nbval-ignore-output"]
reveal(guess_fast, speed[64, 0.9]["zeros"], what="speed of a dense product with 90 % zeros, full = 1")

# %%
assert sorted(each["zeros"] for each in speed.values())[len(speed) // 2] < 1.5  # no faster, in the median
assert speed[64, 0.5]["CSR"] < speed[64, 0.99]["CSR"]
try:
    torch.sparse.to_sparse_semi_structured(matrix)
except (RuntimeError, NotImplementedError):
    print("2:4: PyTorch's kernel wants an NVIDIA GPU")

# %% [markdown]
# A dense kernel multiplies zeros as diligently as anything else. (Where a single time is far off, something else ran on the machine.) A sparse kernel skips them, but pays for finding the rest. It loses at 50 %, and starts to win somewhere between there and 95 %, depending on the machine and on how many vectors there are. Our network was still good up to about 80 %, where there is little or nothing to win yet. So unstructured pruning saves *bytes*; who wants *time* removes whole channels (lesson 06).
#
# ## 10. Production: torch.nn.utils.prune
#
# PyTorch's own module gives the same masks. It keeps them as a second tensor beside each weight until `remove` is called, so a file saved in between is about twice as large (as in lesson 00).

# %%
theirs = copy.deepcopy(network)
weights = [(module, "weight") for module in theirs.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
torch_prune.global_unstructured(weights, pruning_method=torch_prune.L1Unstructured, amount=0.5)
with_masks = measure.measure_size(theirs).size_bytes
for module, name in weights:
    torch_prune.remove(module, name)
same = all(torch.equal(theirs.state_dict()[name] != 0, mask) for name, mask in half.masks.items())
print(
    f"the same masks: {same}; file with masks {with_masks:,} bytes, removed {measure.measure_size(theirs).size_bytes:,}"
)
assert same

# %% [markdown]
# ## 11. The whole lesson in one table
#
# Three networks trained on the same 4,500 images after pruning, and two that were left as they were: the dense one and half at once. The test split, once, with the p-value of a paired test against the dense network. Files in the smallest of the formats above, without gzip.


# %%
def smallest(model):
    found = p.sizes(model.state_dict())
    return min(size for name, size in found.items() if name != "gzip")


finals = {"dense": network, "50 %, at once": half.model, "80 %, trained": once(0.8, 4500, 0)}
finals["90 %, trained"] = budget[4500][0]
finals["2:4, trained"] = tune(patterns["2:4"].model, p.enforce(patterns["2:4"].masks), 4500)
answers = {name: measure.predict(model, splits.test.batches()) for name, model in finals.items()}

# %%
rows = []
for name, found in answers.items():
    share, chance_p = measure.accuracy(found), measure.mcnemar(answers["dense"].correct, found.correct).p_value
    rows.append([smallest(finals[name]), share.value, share.low, share.high])
    print(f"{name:<14} {rows[-1][0]:>7,} bytes   ≈ {100 * share.value:.1f} %   p ≈ {chance_p:.2g}")
columns = ["size_bytes", "accuracy", "accuracy_low", "accuracy_high"]
summary = pd.DataFrame(rows, index=list(answers), columns=columns)

# %% tags=["slide"]
ax = measure.plot_comparison(summary, "accuracy")
ax.set(title="What zeros cost and save")
show(
    ax,
    alt="Accuracy over file size: 80 percent gone costs some points at a quarter of the bytes, 90 percent nearly twenty",
)

# %% tags=["headline", "slide"]
print(
    f"at once, 50 % of the weights: ≈ {100 * summary.loc['50 %, at once', 'accuracy']:.1f} % "
    f"(dense ≈ {100 * summary.loc['dense', 'accuracy']:.1f} %); 90 % and 4,500 images: "
    f"≈ {100 * summary.loc['90 %, trained', 'accuracy']:.1f} %, {summary.loc['90 %, trained', 'size_bytes']:,} bytes"
)
assert summary.loc["80 %, trained", "accuracy"] > summary.loc["90 %, trained", "accuracy"] > 0.6
assert summary.loc["90 %, trained", "size_bytes"] < summary.loc["dense", "size_bytes"] / 4

# %% [markdown]
# All of them are clearly worse than the dense network: these budgets are small. With 80 % gone and a short training the network is about as good as with 50 % gone and none, in less than half of the bytes. And 90 % is too much for 4,500 images.
#
# ## Exercises
#
# ### 05.1 Exactly that many
# *10 minutes, difficulty 1 of 3.* Write `keep(scores, sparsity)` for one tensor: a mask of the same shape that removes exactly `round(sparsity * N)` of the lowest scores, also when scores are equal.
#
# <details><summary>Hint</summary>Sort the positions, not the values: <code>scores.flatten().argsort()</code>.</details>


# %% tags=["exercise"]
def keep(scores, sparsity):
    return None  # replace this line


check("05.1", keep)


# %% jupyter={"source_hidden": true} tags=["solution"]
def keep_solution(scores, sparsity):
    mask = torch.ones(scores.numel(), dtype=torch.bool)
    mask[scores.flatten().argsort(stable=True)[: round(sparsity * scores.numel())]] = False
    return mask.view_as(scores)


check("05.1", keep_solution, record=False)

# %% [markdown]
# ### 05.2 Zhu and Gupta's schedule
# *10 minutes, difficulty 1 of 3.* Write `schedule(step, start, end, initial, final)`: 0 before `start`, `initial` at `start`, then cubic to `final` at `end` and constant after.
#
# <details><summary>Hint</summary>Which part of the way is <em>left</em>? It is 1 at <code>start</code> and 0 at <code>end</code>. Its cube is the part of the distance from <code>final</code> back to <code>initial</code> that is still to go.</details>


# %% tags=["exercise"]
def schedule(step, start, end, initial, final):
    return None  # replace this line


check("05.2", schedule)


# %% jupyter={"source_hidden": true} tags=["solution"]
def schedule_solution(step, start, end, initial, final):
    if step < start:
        return 0.0
    left = 1 - min((step - start) / (end - start), 1)
    return final + (initial - final) * left**3


check("05.2", schedule_solution, record=False)

# %% [markdown]
# ### 05.3 A training step that keeps zeros zero
# *15 minutes, difficulty 2 of 3.* Write `train_step(model, optimizer, loss, masks)`: one whole step of the optimizer (with momentum and weight decay), after which every removed weight is still zero; return the loss as a number. `masks` is a dict by parameter name.
#
# <details><summary>Hint</summary>Clear the gradients, backward, step, and only then the masks; under <code>torch.no_grad()</code>.</details>


# %% tags=["exercise"]
def train_step(model, optimizer, loss, masks):
    return None  # replace this line


check("05.3", train_step)


# %% jupyter={"source_hidden": true} tags=["solution"]
def train_step_solution(model, optimizer, loss, masks):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    return loss.item()


check("05.3", train_step_solution, record=False)

# %% [markdown]
# ### 05.4 Two of four
# *15 minutes, difficulty 2 of 3.* Write `two_of_four(weight)` for a matrix whose columns 4 divides: the mask that keeps the two largest magnitudes of every four consecutive columns of each row.
#
# <details><summary>Hint</summary>Look at it as (rows, columns / 4, 4), take <code>topk(2)</code> of the last axis, and scatter.</details>


# %% tags=["exercise"]
def two_of_four(weight):
    return None  # replace this line


check("05.4", two_of_four)


# %% jupyter={"source_hidden": true} tags=["solution"]
def two_of_four_solution(weight):
    groups = weight.abs().unflatten(1, (-1, 4))
    mask = torch.zeros_like(groups, dtype=torch.bool)
    return mask.scatter(-1, groups.topk(2).indices, True).flatten(1)


check("05.4", two_of_four_solution, record=False)

# %% [markdown]
# ### 05.5 When does a format pay?
# *10 minutes, difficulty 2 of 3.* Write `break_even(value_bytes, index_bytes)`: the sparsity, 0..1, from which a format that stores `index_bytes` beside each value is smaller than the dense tensor. (Forget headers, and where rows begin.)
#
# <details><summary>Hint</summary>Dense: N values. Sparse: (1 - s) N times value and index. Where are they equal?</details>


# %% tags=["exercise"]
def break_even(value_bytes, index_bytes):
    return None  # replace this line


check("05.5", break_even)


# %% jupyter={"source_hidden": true} tags=["solution"]
def break_even_solution(value_bytes, index_bytes):
    return index_bytes / (value_bytes + index_bytes)


check("05.5", break_even_solution, record=False)

# %% [markdown]
# ## Quiz

# %% tags=["quiz"]
quiz("05")

# %% [markdown]
# ## Summary
#
# - Some 40 % of the weights can go at once for less than two points. A little training moves the cliff from 60 to beyond 80 %, if the masks are put back after every step.
# - Global pruning beats the same share of each layer, here by far.
# - At once, in rounds or gradually: it depends on the budget and on how much is removed. Measure it.
# - Language models are pruned by looking at the inputs (Wanda) and by letting the rest make up for what goes (SparseGPT).
# - Zeros save bytes only in a format that knows about them, and time only in a kernel that does.
#
# ## Sources
#
# - Han and others, *Learning both weights and connections for efficient neural networks*, 2015, arXiv:1506.02626
# - Zhu and Gupta, *To prune, or not to prune*, 2017, arXiv:1710.01878 (the schedule)
# - Frankle and Carbin, *The lottery ticket hypothesis*, 2019, arXiv:1803.03635
# - Mishra and others, *Accelerating sparse deep neural networks*, 2021, arXiv:2104.08378 (2:4); Pool and Yu, *Channel permutations for N:M sparsity*, 2021
# - Sun and others, *A simple and effective pruning approach for large language models*, 2024, arXiv:2306.11695 (Wanda)
# - Frantar and Alistarh, *SparseGPT*, 2023, arXiv:2301.00774
#
# ## Next
#
# Lesson 06 removes whole channels, heads and layers, so that the network is really smaller, in every kernel.

# %%
lesson_done = True
