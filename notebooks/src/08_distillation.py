# %% [markdown]
# # 08 Distillation: what does the teacher know that the labels do not say?
#
# **Time:** 90 minutes with the exercises, 50 without. **Runs in:** two to three minutes, without a network or a GPU.
#
# **Before you start** you should have done lesson 00. Section 9 needs the small GPT of lesson 04, section 10 lessons 03 and 05.
#
# **Afterwards you can**
# - write the loss of soft targets without the faults that most copies of it have;
# - choose temperature and weight by measuring, over several seeds;
# - match layers inside the networks, with a projection that is trained and then thrown away;
# - say when a teacher helps much, little or not at all.
#
# Quantization and pruning change the weights of a network. Distillation leaves them alone: a new, smaller network learns, and the old one is its teacher. It compresses because the small one has a smaller *structure*; the teacher is there so that less is lost.

# %% tags=["setup"]
import tempfile
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from compresslab import distillation as d
from compresslab import measure
from compresslab import pruning as p
from compresslab import quantization as q
from compresslab.course import check, quiz, reveal, show, start
from compresslab.course.sliders import temperature_slider
from compresslab.workbench import checkpoints, data, models
from compresslab.workbench.train import evaluate, fit, jitter

_ = start(threads=1)

# %% [markdown]
# ## Three guesses, before anything is measured

# %%
guess_gain = None  # points of accuracy that a teacher adds to a small network, at equal steps?
guess_unseen = None  # percent of an unseen class that the student gets right, if only the teacher has seen it?
guess_mean = None  # 62 classes, reduction="mean" in torch's kl_div: how many times too weak is the loss?

# %% [markdown]
# ## 1. What the teacher says beside the answer
#
# Our ResNet has learned 62 characters. For an image it gives 62 logits $z_i$, and the probabilities $p_i = e^{z_i} / \sum_j e^{z_j}$ (softmax). *Look at:* which classes it finds likely beside the right one. (The bars show softened probabilities; $T = 2$ comes next. Below the last picture the first bar is a small l, the second a capital I.)

# %%
splits = data.load("glyphs")
teacher = checkpoints.load("resnet")
names = splits.class_names
pictures, truth = next(iter(splits.val.batches(400)))
with torch.no_grad():
    logits = teacher(pictures)


def top(row, temperature=1.0, count=4):
    values, found = (row / temperature).softmax(-1).topk(count)
    return ", ".join(f"{names[i]} {v:.2f}" for v, i in zip(values.tolist(), found.tolist(), strict=True))


chosen = [next(i for i in range(400) if names[truth[i]] == name) for name in "O0lI"]
for i in chosen:
    print(f"a picture of {names[truth[i]]}: ≈ {top(logits[i])}")

# %% tags=["slide"]
fig, axes = plt.subplots(2, 4, figsize=(9, 3.8), height_ratios=(1, 1.1))
for column, i in enumerate(chosen):
    axes[0, column].imshow(pictures[i, 0], cmap="gray")
    axes[0, column].set(title=f"label {names[truth[i]]}", xticks=[], yticks=[])
    values, found = (logits[i] / 2).softmax(-1).topk(5)
    axes[1, column].bar([names[j] for j in found.tolist()], values)
    axes[1, column].set(ylim=(0, 1))
    axes[1, column].tick_params(axis="x", labelfontfamily="monospace")  # l and I differ
axes[1, 0].set(ylabel="probability, T = 2")
show(fig, alt="Pictures of O, 0, l and I, and the teacher's probabilities below: look-alikes share them")

# %% [markdown]
# The label of the first picture says *O*. The teacher says: a zero, or perhaps an O, and certainly no *k*. (It is even wrong, and still worth listening to.) What it says of the wrong classes tells which characters look alike. A label, one of 62, is six bits; this is much more.
#
# Sure of itself, the teacher puts nearly everything on one class, and the rest is too small to be learned from. So we divide all logits by a **temperature** $T$ first: $p(T) = \mathrm{softmax}(z / T)$. Move the slider; the figure below shows the same for the first picture. The *entropy* $-\sum_i p_i \log p_i$ says how undecided an answer is: 0 with one class left, $\log 62$ with 62 equal ones.

# %% tags=["nbval-ignore-output"]
temperature_slider(logits[chosen[0]], names, 4.0)

# %% tags=["slide"]
temperatures, row = (0.5, 1, 2, 4, 8, 20), logits[chosen[0]]
order = row.argsort(descending=True)[:8]
fig, axes = plt.subplots(1, 6, figsize=(10, 2.2), sharey=True)
for ax, temperature in zip(axes, temperatures, strict=True):
    ax.bar([names[i] for i in order.tolist()], (row / temperature).softmax(-1)[order])
    ax.set(title=f"T = {temperature}")
axes[0].set(ylabel="probability")
show(fig, alt="The eight likeliest classes at six temperatures: one bar at 0.5, nearly equal bars at 20")

# %%
entropy = [torch.distributions.Categorical(logits=row / t).entropy().item() for t in temperatures]
print("entropy in nats:", ", ".join(f"T={t}: ≈ {e:.2f}" for t, e in zip(temperatures, entropy, strict=True)))
assert entropy == sorted(entropy)

# %% [markdown]
# At 0.5 two answers are left, at 20 everything is nearly equal: log 62 = 4.13 would be no information at all.
#
# ## 2. The loss, by hand
#
# The student, with probabilities $p_s$, is to say what the teacher says, $p_t$. The distance is the Kullback-Leibler divergence, $\mathrm{KL}(p_t \| p_s) = \sum_i p_{ti} \log (p_{ti} / p_{si})$: summed over the *classes* $i$, averaged over the *samples*. Two classes, one sample: the teacher says 3/4 and 1/4, the student one half each.

# %%
theirs, ours = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)
p_t, p_s = theirs.softmax(-1), ours.softmax(-1)
kl = (p_t * (p_t / p_s).log()).sum(-1).mean()
print(f"3/4 log(3/4 : 1/2) + 1/4 log(1/4 : 1/2) = {kl:.4f}")
print(f"the package, T = 1:                       {d.soft_target_loss(ours, theirs, temperature=1.0):.4f}")
assert torch.isclose(kl, d.soft_target_loss(ours, theirs, temperature=1.0))

# %% [markdown]
# At a temperature $T$ the loss is $T^2 \, \mathrm{KL}$. Why $T^2$? The gradient of the divergence by a logit is $(p_{s} - p_{t}) / T$, and both probabilities get closer to each other as $T$ grows, by another factor of $T$. *Look at:* the norm of the gradient, without and with $T^2$. (The last column is the cosine between this gradient and that of the squared distance of the logits.)

# %%
student_logits = torch.randn(400, 62, generator=torch.Generator().manual_seed(0)).requires_grad_()
limit = (student_logits - student_logits.mean(-1, keepdim=True)) - (logits - logits.mean(-1, keepdim=True))
norms = {}
for temperature in (1.0, 4.0, 16.0, 100.0):
    loss = d.soft_target_loss(student_logits, logits, temperature=temperature)
    (gradient,) = torch.autograd.grad(loss, student_logits)
    norms[temperature] = gradient.norm().item()
    cosine = F.cosine_similarity(gradient.flatten(), limit.flatten(), dim=0)
    plain = norms[temperature] / temperature**2
    print(f"T={temperature:<5g} without ≈ {plain:.6f}, with T² ≈ {norms[temperature]:.4f}, direction ≈ {cosine:.3f}")
assert max(norms.values()) / min(norms.values()) < 20
assert cosine > 0.99

# %% [markdown]
# Without it the loss fades away as the temperature rises, with it the gradient stays of one order, and the weight beside the labels keeps its meaning. And at high temperature distillation has the same direction as the squared distance of the logits.
#
# torch has the pieces: with `reduction="batchmean"` three lines are the same loss. (This is the production library of this lesson: distillation is a loss, and every framework has one.)

# %%
T = 4.0
log_s, soft = F.log_softmax(student_logits / T, -1), F.softmax(logits / T, -1)
torch_loss = T**2 * F.kl_div(log_s, soft, reduction="batchmean")
package_loss = d.soft_target_loss(student_logits, logits, temperature=T)
print("torch and the package agree:", torch.isclose(torch_loss, package_loss, rtol=1e-5).item())
assert torch.isclose(torch_loss, package_loss, rtol=1e-5)

# %% [markdown]
# ## 3. A student
#
# The student is an MLP: no convolution, one fortieth of the MACs (the file is hardly smaller). It has 4,000 images to learn from, and only ten passes over them, so accuracies stay low in this lesson. What counts is the difference a teacher makes. The teacher is always asked the same questions, so we ask once and keep its logits in a file: `cached_logits` knows by a hash of which teacher and which images they are, and never uses a file of others. `WithLogits` hands them out with each batch.


# %%
def percent(model, split=splits.val):
    return 100 * measure.accuracy(measure.predict(model, split.batches())).value


def mlp(seed, width=128):
    return models.build("mlp", width=width, generator=torch.Generator().manual_seed(seed))


image = splits.train.inputs(slice(1))
for name, model in (("teacher", teacher), ("student", mlp(0))):
    print(f"{name}: {measure.count_macs(model, image).total:,} MACs, ≈ {percent(model):.1f} %")

# %%
folder = tempfile.TemporaryDirectory()
file = Path(folder.name) / "logits.safetensors"
answers = d.cached_logits(teacher, splits.train.batches(), file)  # of all 16,000
few, taught = splits.train.take(4000), d.WithLogits(splits.train.take(4000), answers[:4000])
print("a batch:", [tuple(part.shape) for part in next(iter(taught.batches(8)))], f"file: {file.stat().st_size:,} bytes")


def distilled(loss, on=taught, make=mlp, epochs=10, seeds=3):
    """Students of several seeds; `loss` is handed to the training loop of all lessons."""
    loop = partial(fit, train=on, epochs=epochs, batch_size=64, lr=2e-3)
    return [d.distil(make(seed), loss, partial(loop, seed=seed)).model for seed in range(seeds)]


# %% [markdown]
# `Distillation` is the whole loss: `soft_weight` (0.9 if nothing is said) times the teacher's part, and what is left of 1 times the cross-entropy with the labels. With `soft_weight=0` it is plain training. All runs take the same number of steps. *Look at:* three seeds each, so that you see what is chance.

# %%
settings = {"labels only": {"soft_weight": 0.0}}
settings |= {f"T = {t}": {"temperature": t} for t in (1.0, 4.0, 20.0)}
settings["T = 4.0, weight 0.5"] = {"soft_weight": 0.5}
students, results = {}, {}
for name, options in settings.items():
    students[name] = distilled(d.Distillation(None, **options))
    results[name] = [percent(model) for model in students[name]]
    print(f"{name:<19}", ", ".join(f"≈ {value:.1f} %" for value in results[name]))

# %%
average = {name: sum(values) / 3 for name, values in results.items()}
gain = average["T = 4.0"] - average["labels only"]
print(f"T = 4 against labels only: ≈ {gain:+.1f} points")
reveal(guess_gain, gain, what="points from the teacher")
assert gain > 0.5

# %% tags=["slide"]
fig, ax = plt.subplots(figsize=(7, 2.6))
for row, (name, values) in enumerate(results.items()):
    ax.plot(values, [row] * 3, "s" if row == 0 else "o", label=name)
ax.set(yticks=range(len(results)), yticklabels=list(results), xlabel="accuracy on validation images, %")
ax.invert_yaxis()
show(fig, alt="Dot plot, three seeds for each setting: soft targets lie to the right of labels only")

# %% [markdown]
# What do the dots say?
#
# - T = 4 is better than the labels by more than the seeds differ. It is a gain of points, not a miracle.
# - At T = 1 the look-alikes are hardly visible, at T = 20 everything looks alike; both give less than T = 4. The weight, 0.9 or 0.5, hardly matters.
# - A single seed could have told another story: the best of T = 1 is as good as the worst of T = 4.
#
# All this is with 4,000 images, seen ten times each. What if there are 13,440? Three passes over these are as many steps as ten over the few. Does the teacher still help?

# %%
everything = d.WithLogits(splits.train.take(13_440), answers[:13_440])
steps = [10 * len(list(taught.batches(64))), 3 * len(list(everything.batches(64)))]
print(f"steps: {steps[0]} and {steps[1]}")
full = {}
for name, weight in (("labels only", 0.0), ("T = 4", 0.9)):
    full[name] = [percent(m) for m in distilled(d.Distillation(None, soft_weight=weight), on=everything, epochs=3)]
    print(f"13,440 images, {name:<12}", ", ".join(f"≈ {value:.1f} %" for value in full[name]))
assert min(full["labels only"]) > max(results["T = 4.0"]) and steps[0] == steps[1]

# %% [markdown]
# With more images the labels alone are far better than a teacher on less than a third of them, and the teacher adds nothing any more: it may even cost a little. Soft targets say more about *each image*. That is worth something where images are few and come again and again; where there is always a new one, its label does as well, for a training as short as ours. So ask of every table of gains: on how much data, and how long?
#
# ## 4. Few labels
#
# The teacher needs no labels to speak. Suppose only 10 %, or 1 %, of the 4,000 images have been labelled. Shall we train on these alone, or with a teacher on all of them? (A target of -100 means "no label"; the steps are equal again.)


# %%
class Hidden:
    """A split whose labels are -100, but for some."""

    def __init__(self, split, labels):
        self.split, self.labels = split, labels

    def __len__(self):
        return len(self.split)

    def take(self, index):
        return Hidden(self.split.take(index), self.labels[index])

    def batches(self, size):
        return [(x, y) for (x, _), y in zip(self.split.batches(size), self.labels.split(size), strict=True)]


# %%
scarce = {}
for count in (400, 40):
    hidden, passes = few.labels.clone(), 630 // -(-count // 64)
    hidden[count:] = -100
    alone = distilled(d.Distillation(None, soft_weight=0.0), on=few.take(count), epochs=passes)
    helped = distilled(d.Distillation(None), on=d.WithLogits(Hidden(few, hidden), answers[:4000]))
    scarce[count] = [[percent(model) for model in group] for group in (alone, helped)]
    for name, values in zip(("labels only", "with teacher"), scarce[count], strict=True):
        print(f"{count:>3} labels, {name:<12}", ", ".join(f"≈ {value:.1f} %" for value in values))
    assert min(scarce[count][1]) > 2 * max(scarce[count][0])

# %% [markdown]
# This is where a teacher is worth most: with one label in a hundred the student is about as good as with all of them. What it lacked was not labels but somebody to ask.
#
# ## 5. A class that the student never saw
#
# We take every picture of the letter O away from the student, and all labels as well (`soft_weight=1`). The teacher has seen that letter; of a *0* it says "this could be an O". Can the student recognize an O after that?

# %%
unseen = names.index("O")
kept = (few.labels != unseen).nonzero().flatten()
here = splits.val.take((splits.val.labels == unseen).nonzero().flatten())
groups = {
    "labels only, never saw it": distilled(d.Distillation(None, soft_weight=0.0), on=few.take(kept), seeds=1),
    "teacher, never saw it": distilled(
        d.Distillation(None, soft_weight=1.0), on=d.WithLogits(few.take(kept), answers[kept])
    ),
    "teacher, saw it": students["T = 4.0"],
}

# %%
rates = {}
for name, group in groups.items():
    found = [measure.predict(model, here.batches()) for model in group]
    rates[name] = [[100 * measure.top_k(each, k).value for each in found] for k in (1, 3)]
    words = [", ".join(f"≈ {value:.0f} %" for value in values) for values in rates[name]]
    print(f"{name:<26} right: {words[0]}   among the first three: {words[1]}")

# %%
reveal(guess_unseen, sum(rates["teacher, never saw it"][0]) / 3, what="right on the class it never saw", unit="%")
assert max(rates["labels only, never saw it"][0]) == 0
assert min(rates["teacher, never saw it"][1]) > max(rates["labels only, never saw it"][1])

# %% [markdown]
# The student without a teacher never even considers an O. The one with a teacher has never seen an O either, and yet in every third case it is among its first three guesses. That knowledge came through pictures of other characters; it is called **dark knowledge**. It is hardly ever the first guess: few pictures, if any, asked for an O before all else. (Hinton and others, with ten digits, made it the first guess by raising the bias of that one class afterwards.)
#
# ## 6. Other ways to compare two distributions
#
# **Decoupled distillation** (DKD; Zhao and others, 2022). Let $b = (p_y, 1 - p_y)$: the right class $y$ against all others together. Let $q$ be the other classes alone, scaled to add up to 1. Then the divergence falls into two parts:
#
# $$\mathrm{KL}(p_t \| p_s) = \mathrm{KL}(b_t \| b_s) + (1 - p_{ty}) \, \mathrm{KL}(q_t \| q_s)$$
#
# Where the teacher is sure, $1 - p_{ty}$ is small and the second part fades, though that is the part with the look-alikes. DKD gives it a weight of its own.

# %%
ours, theirs = students["labels only"][0](few.inputs(slice(256))), answers[:256]
parts = d.decoupled_parts(ours, theirs, few.labels[:256], temperature=4.0)
whole = 16 * (parts.target + parts.unsure * parts.others).mean()
print("the parts add up:", torch.isclose(whole, d.soft_target_loss(ours, theirs), rtol=1e-4).item())
print(f"the factor 1 - p is ≈ {parts.unsure.mean():.2f} on average at T = 4")
assert torch.isclose(whole, d.soft_target_loss(ours, theirs), rtol=1e-4)

# %%
half = {"soft_weight": 0.5}
group = distilled(d.Distillation(None, **half, soft_loss=partial(d.decoupled_loss, others_weight=1.0)))
results["DKD, weight 0.5"] = [percent(model) for model in group]
for name in ("T = 4.0, weight 0.5", "DKD, weight 0.5"):
    print(f"{name:<19}", ", ".join(f"≈ {value:.1f} %" for value in results[name]))

# %% [markdown]
# In accuracy DKD is close to plain soft targets at the same weight. It has two weights to tune (the paper's 8 for the other classes wants a warm-up).
#
# ## 7. Layers in the middle
#
# The teacher can also show *how* it got there. **Hints** let a layer of the student predict a layer of the teacher. The widths differ, so a linear projection stands between. **Attention transfer** compares only *where* in the image the activations are large. **Relational** distillation (in the package, without a number here) compares how the samples of a batch lie to one another.
#
# The projection must be trained with the student, and it must not be in the result. So `distil` hands the training loop one module that holds both, and takes the student out of it at the end. The student is now a small ResNet with half of the teacher's channels and one block in each of its three stages, trained for four passes over 3,000 images (at a rate of 2e-2: there are few steps, and batch norm keeps large ones in bounds). All four kinds take the same steps.


# %%
def resnet(seed):
    generator = torch.Generator().manual_seed(seed)
    return models.build("resnet", width=8, depth=1, stride=2, generator=generator)


# %%
stages = ("layer1", "layer2", "layer3")
pairs = {
    "labels only": [],
    "soft targets": [],
    "and a hint": [d.Pair("layer3", "layer3", d.hint_loss, project=True)],
    "and attention": [d.Pair(stage, stage, d.attention_loss, weight=100.0) for stage in stages],
}
both = d.add_projections(resnet(0), teacher, pairs["and a hint"], image)
print(f"student {sum(x.numel() for x in resnet(0).parameters()):,} parameters,", end=" ")
print(f"projection {sum(x.numel() for x in both.projections.parameters()):,}, trained with it and thrown away")

# %%
for name, matched in pairs.items():
    loss, group = d.Distillation(teacher, pairs=matched, soft_weight=0.0 if name == "labels only" else 0.9), []
    for seed in range(3):
        loop = partial(fit, train=few.take(3000), epochs=4, batch_size=32, lr=2e-2, seed=seed)
        group.append(d.distil(resnet(seed), loss, loop, example_inputs=image).model)
    students[f"ResNet, {name}"] = group
    results[f"ResNet, {name}"] = [percent(model) for model in group]
    print(f"{name:<14}", ", ".join(f"≈ {value:.1f} %" for value in results[f"ResNet, {name}"]))
totals = {name: sum(results[f"ResNet, {name}"]) for name in pairs}
assert min(totals["and a hint"], totals["and attention"]) > totals["soft targets"] > totals["labels only"]

# %% [markdown]
# What does attention transfer compare? *Look at:* four images, and below them where two stages of the teacher are active (bright): along the strokes at first, then in a few places.

# %% tags=["slide"]
with torch.no_grad(), d.tapped(teacher, ["layer1", "layer3"]) as seen:
    teacher(few.inputs(slice(4)))
fig, axes = plt.subplots(3, 4, figsize=(6, 4.4))
rows = [few.inputs(slice(4))[:, 0]] + [d.attention_map(seen[n]).unflatten(1, seen[n].shape[2:]) for n in seen]
for line, maps in zip(axes, rows, strict=True):
    for ax, picture in zip(line, maps, strict=True):
        ax.imshow(picture, cmap="gray")
        ax.set(xticks=[], yticks=[])
for ax, name in zip(axes[:, 0], ("image", "stage 1", "stage 3"), strict=True):
    ax.set(ylabel=name)
show(fig, alt="Four characters and where the teacher's first and last stage are active: strokes, then a few places")

# %% [markdown]
# Soft targets help here too, and each look into the middle helps more. A label reaches the first layers only through all the others. A hint speaks to a stage directly, and in a training as short as this one that is worth more than anything else here. Attention transfer costs no parameters and asks for less: where, not what. Its weight matters: maps of length 1 give a tiny loss, so the authors' code multiplies by 1000; we took 100.
#
# ## 8. Too small for its teacher?
#
# One reads that a student far smaller than its teacher learns less from it than from the labels. Mirzadeh and others (2020) put an **assistant** of middle size between. We make a student of 16 neurons in each layer; the assistants are our students of 128. And **self-distillation**: the teacher is a student of the same size, trained on labels.


# %%
def teach(seed, student, from_whom):
    loop = partial(fit, train=few, epochs=10, batch_size=64, lr=2e-3, seed=seed)
    return d.distil(student, d.Distillation(from_whom), loop).model


tiny = partial(mlp, width=16)
rungs = {"16 neurons, labels only": distilled(d.Distillation(None, soft_weight=0.0), make=tiny)}
rungs["16, from the ResNet"] = distilled(d.Distillation(None), make=tiny)
assistants, same = students["T = 4.0"], students["labels only"]
rungs["16, from an assistant"] = [d.progressive(m, [tiny(s)], partial(teach, s))[-1] for s, m in enumerate(assistants)]
rungs["128, from its like"] = [d.progressive(m, [mlp(s + 10)], partial(teach, s))[-1] for s, m in enumerate(same)]

# %%
for name, group in rungs.items():
    results[name] = [percent(model) for model in group]
    print(f"{name:<24}", ", ".join(f"≈ {value:.1f} %" for value in results[name]))
assert sum(results["16, from an assistant"]) > sum(results["16, from the ResNet"]) + 3  # three seeds

# %% [markdown]
# Learning from the ResNet did the tiny student no harm, so the warning is not confirmed. But the advice is: at the same number of steps it learned more from an assistant than from the ResNet itself. One that is small and unsure of itself has answers that a student of 16 neurons can come near. (The assistant had to be trained as well. In a larger project that is a cost to be counted.) And where a tenth of the parameters must do, there is a better start than random numbers: a student that is *cut out of its teacher* (lesson 06, with Taylor scores) and then taught goes more than half of the way from training alone to the teacher, at equal steps, and most of that without being taught; a random one that is taught goes next to nowhere (`distillation_tenth` in `benchmarks/results.md`, three seeds).
#
# Self-distillation gave nothing here. In the paper it gains a little, with large networks and long training.
#
# ## 9. A language model: every other block
#
# DistilBERT has half of BERT's blocks and starts as *every other block of its teacher*. Then it is trained with three losses: soft targets at $T = 2$ (weight 5), the text itself (2), and the cosine between the last hidden states (1). The same with our small GPT, four blocks to two, and 20 batches of text. (Perplexity on a part of the held-out text, so it is not the number of lesson 04.) Which counts more, the start or the losses?

# %%
text = data.load("python-docs")
gpt = checkpoints.load("gpt")
pages, held_out = list(text.train.batches(8)), list(text.val.batches(32))[:3]
half = d.every_other_block(gpt, "blocks")
config = {name: value for name, value in half.config.items() if name != "architecture"}


def fresh(seed):
    """The student's config is all that it takes to make one without its teacher's weights."""
    return models.build("gpt", **config, generator=torch.Generator().manual_seed(seed))


print(f"whole: ≈ {evaluate(gpt, held_out).perplexity:.2f}, cut: ≈ {evaluate(half, held_out).perplexity:.2f}")
print("blocks that teach blocks:", d.match_blocks(2, 4), "not", list(range(2)))

# %%
soft = {"soft_weight": 5 / 7, "temperature": 2.0}
cosine = [d.Pair("norm", "norm", d.cosine_loss, weight=1 / 7)]
variants = {
    "fresh, text and soft": (fresh, d.Distillation(gpt, **soft)),
    "every other, text only": (lambda seed: half, d.Distillation(gpt, soft_weight=0.0)),
    "every other, all three": (lambda seed: half, d.Distillation(gpt, **soft, pairs=cosine)),
}

# %%
ppl = {}
for name, (make, loss) in variants.items():
    loops = [partial(fit, train=pages[20 * s : 20 * s + 20], epochs=1, lr=2e-3, seed=s) for s in range(3)]
    ppl[name] = [evaluate(d.distil(make(s), loss, loops[s]).model, held_out).perplexity for s in range(3)]
    print(f"{name:<27}", ", ".join(f"≈ {value:.2f}" for value in ppl[name]))
assert max(ppl["every other, text only"]) < min(ppl["fresh, text and soft"]) / 2

# %% [markdown]
# Where the student *starts* decides: from half of the teacher it is, after 20 batches, where the fresh one will not be for a long time. The kind of loss matters little so early. And mind the pairs: `zip` over the blocks would have the student's blocks learn from the teacher's *first* ones, and the top would teach nobody. `match_blocks` pairs the last with the last.
#
# ## 10. The repair step after pruning, and in QAT
#
# Lessons 03 and 05 trained what they had damaged, on labels. The undamaged network is still there, and it can teach. The whole ResNet, 90 % of its weights gone, one pass over 1,500 images; and 3 bits for weights and activations, one pass over 1,000:

# %%
repairs, lessons = {}, {"labels": d.Distillation(teacher, soft_weight=0.0), "teacher": d.Distillation(teacher)}
images = splits.train.take(1000)
loop = {"epochs": 1, "batch_size": 64, "weight_decay": 0.0, "augment": jitter}
more, pruned = splits.train.take(1500), p.prune_magnitude(teacher, 0.9)
prepared = q.prepare_qat(teacher, list(images.batches(64))[:4], weight_bits=3, activation_bits=3).model
for name, loss in lessons.items():
    keep = {"loss_fn": loss, "lr": 4e-3, "after_step": p.enforce(pruned.masks)}
    runs = [fit(pruned.model, more, seed=s, **keep, **loop).model for s in range(3)]
    repairs["pruned 90 %", name] = [percent(model, splits.val) for model in runs]
    runs = [fit(prepared, images, seed=s, loss_fn=loss, lr=5e-4, **loop).model for s in range(3)]
    repairs["3 bits", name] = [percent(model, splits.val) for model in runs]

# %%
for (what, name), values in sorted(repairs.items()):
    print(f"{what:<12} {name:<8}", ", ".join(f"≈ {value:.1f} %" for value in values))
for what in ("pruned 90 %", "3 bits"):
    assert sum(repairs[what, "teacher"]) > sum(repairs[what, "labels"])

# %% [markdown]
# Both are repaired better with the teacher, at the same steps and on the same images. It costs one forward pass of the undamaged network for each batch. Here images are shifted at random, so the logits must not come from a file: the teacher has to look at the same shifted image as the student.
#
# ## 11. One table
#
# On the test images, which nothing was chosen on:

# %%
shown = {
    "teacher": teacher,
    "MLP, labels": students["labels only"][0],
    "MLP, soft targets": students["T = 4.0"][0],
    "ResNet, labels": students["ResNet, labels only"][0],
    "ResNet, soft targets": students["ResNet, soft targets"][0],
    "ResNet, hint": students["ResNet, and a hint"][0],
}

# %%
rows = []
for name, model in shown.items():
    share, size = (
        measure.accuracy(measure.predict(model, splits.test.batches())),
        measure.measure_size(model).size_bytes,
    )
    macs = measure.count_macs(model, image).total
    rows.append([size, macs, share.value, share.low, share.high])
    interval = f"{100 * share.low:.1f} to {100 * share.high:.1f}"
    print(f"{name:<21} {macs:>9,} MACs   ≈ {size:,} bytes   ≈ {100 * share.value:.1f} % ({interval})")

# %%
table = pd.DataFrame(
    rows, index=list(shown), columns=["size_bytes", "macs", "accuracy", "accuracy_low", "accuracy_high"]
)

# %% tags=["slide"]
ax = measure.plot_comparison(table, "accuracy")
ax.set(title="The same bytes, taught differently")
show(
    ax,
    alt="Accuracy against file size: the teacher far above, below it the students, those taught more above their likes",
)

# %% tags=["nbval-ignore-output"]
calls = {name: partial(model, few.inputs(slice(64))) for name, model in shown.items()}
with torch.inference_mode():
    timed = measure.compare_latency(calls, reference="teacher", rounds=5, min_time_s=0.02)
for name, speedup in timed.speedup.items():
    print(f"{name:<21} {speedup.value:.1f} times as fast as the teacher, 64 images")

# %% [markdown]
# The bytes and the speed come from the student's structure alone. (Where two students of one structure are not equally fast, you see the noise of the clock.) The teacher changes what it knows, and by a few points. That is the honest frame for sentences such as "ten times smaller at 97 %": the size was chosen, and the percentage depends on data, length of training and task. DistilBERT has 66 million parameters against BERT's 109: 1.65 times fewer.
#
# ## 12. Traps
#
# ### 'mean' for 'batchmean'
# torch's default takes the mean over samples *and classes*, and for 10 classes that is exactly a tenth. There is no error and the loss falls as it should; only the teacher is hardly heard.

# %% tags=["trap"]
for classes in (10, 62, 1000):
    a, b = torch.randn(2, 32, classes, generator=torch.Generator().manual_seed(0)).unbind()
    a, b = a.log_softmax(-1), b.softmax(-1)
    ratio = F.kl_div(a, b, reduction="batchmean") / (F.kl_div(a, b, reduction="sum") / a.numel())
    print(f"{classes} classes: {ratio:.0f} times too weak")
    if classes == 62:
        reveal(guess_mean, ratio.item(), what="times too weak")

# %% [markdown]
# ### No T², reversed weight, ReLU on the logits, a teacher that trains
# Without $T^2$ the teacher's part is 16 times too weak at $T = 4$, the same fault in another dress. Papers call both the teacher's weight and its opposite *alpha*, so the same 0.9 is another loss in the next. A student that ends in a ReLU cannot say "certainly not". And what happens to a teacher that is left in train mode? *Look at:* how much of the teacher is heard, and what is left of its gain.

# %% tags=["trap"]
batch = next(iter(taught.batches(256)))
for alpha, meaning in ((0.9, "the teacher's weight"), (0.1, "the labels' weight, 0.9")):
    _, parts = d.Distillation(None, soft_weight=alpha)(students["labels only"][0], batch)
    share = alpha * parts["soft"] / (alpha * parts["soft"] + (1 - alpha) * parts["hard"])
    print(f"alpha as {meaning:<24} the teacher has ≈ {100 * share:.0f} % of the loss")

# %% tags=["trap"]
faults = {
    "mean": {"soft_weight": 0.5, "soft_loss": lambda s, t, y: d.soft_target_loss(s, t) / 62},
    "ReLU": {"soft_loss": lambda s, t, y: d.soft_target_loss(s.relu(), t)},
}
for name in ("labels only", "T = 4.0, weight 0.5", "T = 4.0"):
    print(f"right: {name:<19}", ", ".join(f"≈ {value:.1f} %" for value in results[name]))
for name, options in faults.items():
    results[name] = [percent(model) for model in distilled(d.Distillation(None, **options))]
    print(f"fault: {name:<19}", ", ".join(f"≈ {value:.1f} %" for value in results[name]))
assert sum(results["mean"]) < sum(results["T = 4.0, weight 0.5"])

# %% [markdown]
# None of them stops with an error, and no loss curve looks broken. The mean takes away most of what the teacher had given, the ReLU a part. Now the teacher in train mode:

# %% tags=["trap"]
careless = checkpoints.load("resnet").train()
before = percent(careless, splits.val)
with torch.no_grad():  # no gradients, and yet it changes: batch norm keeps its statistics
    for inputs, _ in splits.train.take(2000).batches(16):
        careless(0.5 * inputs)  # say, with another contrast
print(f"teacher: ≈ {before:.1f} % before, ≈ {percent(careless, splits.val):.1f} % after teaching in train mode")
careful = checkpoints.load("resnet").train()
d.Distillation(careful)(models.build("mlp"), (0.5 * few.inputs(slice(64)), few.labels[:64]))
print(f"asked by Distillation: ≈ {percent(careful, splits.val):.1f} %, train mode as before: {careful.training}")
assert before == percent(careful, splits.val) > percent(careless, splits.val) + 1

# %% [markdown]
# ### A new projection at each step
# A linear student of 8 numbers learns to predict a teacher of 12, through a projection that is trained, frozen, or made anew in each call of the loss.

# %%
generator = torch.Generator().manual_seed(0)
x, goal = torch.randn(256, 8, generator=generator), torch.randn(12, 8, generator=generator) / 8**0.5
wanted = x @ goal.T


# %% tags=["trap"]
def unexplained(kind):
    student, projection = nn.Linear(8, 8), d.Projection(8, 12)
    learning = [*student.parameters(), *(projection.parameters() if kind == "trained" else [])]
    optimizer = torch.optim.Adam(learning, lr=0.02)
    for _ in range(300):
        projection = d.Projection(8, 12, generator=generator) if kind == "new each step" else projection
        optimizer.zero_grad()
        loss = d.hint_loss(projection(student(x)), wanted)
        loss.backward()
        optimizer.step()
    return loss.item() / wanted.var().item(), student(x).norm(dim=1).mean().item()


# %% tags=["trap"]
left = {kind: unexplained(kind) for kind in ("trained", "frozen", "new each step")}
for kind, (share, length) in left.items():
    print(f"{kind:<14} unexplained ≈ {share:.2f}, length of the features ≈ {length:.2f}")
assert left["trained"][0] < 0.05 < left["frozen"][0] < left["new each step"][0]

# %% [markdown]
# With a new one each time the only answer that is never very wrong is zero, and to zero the features shrink.
#
# ### On several processes
# `fit` shares each batch among the processes that `torchrun --nproc-per-node=4 train.py` starts, and nothing in this lesson has to change for it: each process has the teacher and asks it about its own part, and the projections lie in the module whose gradients are averaged. A test runs the same distillation on one process and on two and compares the weights.

# %% tags=["headline", "slide"]
print(
    f"MLP student, three seeds: labels ≈ {average['labels only']:.1f} %, soft targets "
    f"≈ {average['T = 4.0']:.1f} %; with 40 labels ≈ {sum(scarce[40][0]) / 3:.1f} % and ≈ {sum(scarce[40][1]) / 3:.1f} %"
)

# %% [markdown]
# ## Exercises
#
# ### 08.1 Soft targets
# *10 minutes, difficulty 1 of 3.* Write `soft_targets(student_logits, teacher_logits, temperature)` for logits (B, C): $T^2 \, \mathrm{KL}(p_t \| p_s)$ at temperature $T$, on average over the samples.
#
# <details><summary>Hint</summary>Divide both logits by T, take <code>log_softmax(-1)</code> of both. Sum over which axis, mean over which?</details>


# %% tags=["exercise"]
def soft_targets(student_logits, teacher_logits, temperature):
    return None  # replace this line


check("08.1", soft_targets)


# %% jupyter={"source_hidden": true} tags=["solution"]
def soft_targets_solution(student_logits, teacher_logits, temperature):
    log_s = (student_logits / temperature).log_softmax(-1)
    log_t = (teacher_logits / temperature).log_softmax(-1)
    return temperature**2 * (log_t.exp() * (log_t - log_s)).sum(-1).mean()


check("08.1", soft_targets_solution, record=False)

# %% [markdown]
# ### 08.2 Tokens and padding
# *15 minutes, difficulty 2 of 3.* Write `tokens(student_logits, teacher_logits, mask)` for logits (B, L, V) and a mask (B, L): the divergence at $T = 1$, on average over the tokens where the mask is True.
#
# <details><summary>Hint</summary>A mask of bool can be an index: <code>values[mask]</code>.</details>


# %% tags=["exercise"]
def tokens(student_logits, teacher_logits, mask):
    return None  # replace this line


check("08.2", tokens)


# %% jupyter={"source_hidden": true} tags=["solution"]
def tokens_solution(student_logits, teacher_logits, mask):
    log_s, log_t = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    return (log_t.exp() * (log_t - log_s)).sum(-1)[mask].mean()


check("08.2", tokens_solution, record=False)

# %% [markdown]
# ### 08.3 What the teacher thinks of the others
# *15 minutes, difficulty 2 of 3.* Write `others_of(student_logits, teacher_logits, targets)`: for each sample the second divergence of section 6, $\mathrm{KL}(q_t \| q_s)$ at $T = 1$, where $q$ are the probabilities of all classes but the right one, scaled to add up to 1.
#
# <details><summary>Hint 1</summary>Take the logits of the other classes; their softmax is q.</details>
# <details><summary>Hint 2</summary><code>keep = torch.ones_like(logits, dtype=torch.bool).scatter(1, targets[:, None], False)</code></details>


# %% tags=["exercise"]
def others_of(student_logits, teacher_logits, targets):
    return None  # replace this line


check("08.3", others_of)


# %% jupyter={"source_hidden": true} tags=["solution"]
def others_of_solution(student_logits, teacher_logits, targets):
    keep = torch.ones_like(teacher_logits, dtype=torch.bool).scatter(1, targets[:, None], False)
    log_s, log_t = (z[keep].view(len(z), -1).log_softmax(-1) for z in (student_logits, teacher_logits))
    return (log_t.exp() * (log_t - log_s)).sum(-1)


check("08.3", others_of_solution, record=False)

# %% [markdown]
# ### 08.4 Where the teacher looks
# *10 minutes, difficulty 1 of 3.* Write `where(features)` for features (B, C, H, W): the mean of the squares over the channels, flattened to (B, H · W), each row of length 1.


# %% tags=["exercise"]
def where(features):
    return None  # replace this line


check("08.4", where)


# %% jupyter={"source_hidden": true} tags=["solution"]
def where_solution(features):
    return F.normalize(features.square().mean(1).flatten(1), dim=1)


check("08.4", where_solution, record=False)

# %% [markdown]
# ### 08.5 Which block learns from which
# *10 minutes, difficulty 2 of 3.* Write `match(student_blocks, teacher_blocks)`: a list with the number of the teacher's block for each block of the student, evenly spread, counted from 0, the last with the last. For 3 and 12 it is `[3, 7, 11]`.
#
# <details><summary>Hint</summary>Count from 1 first: of 12 blocks the 4th, 8th and 12th.</details>


# %% tags=["exercise"]
def match(student_blocks, teacher_blocks):
    return None  # replace this line


check("08.5", match)


# %% jupyter={"source_hidden": true} tags=["solution"]
def match_solution(student_blocks, teacher_blocks):
    return [(number + 1) * teacher_blocks // student_blocks - 1 for number in range(student_blocks)]


check("08.5", match_solution, record=False)

# %% [markdown]
# ## Quiz

# %% tags=["quiz"]
quiz("08")

# %% [markdown]
# ## Summary
#
# - Soft targets say which classes look alike. The temperature makes that visible, and T² keeps the gradient's size.
# - Sum over classes, mean over samples or tokens. Detach the teacher, in eval mode.
# - Few labels: a teacher is worth a great deal. Much data, short training: perhaps nothing. Measure, with seeds.
# - Layers in the middle of a network can teach too, through a projection that is trained with the student and then thrown away.
# - Start a student from blocks of its teacher where you can. A very small one may do better with an assistant.
# - After pruning and in QAT the undamaged network is a free teacher.
#
# ## Sources
#
# - Hinton, Vinyals and Dean, *Distilling the knowledge in a neural network*, 2015, arXiv:1503.02531
# - Romero and others, *FitNets*, 2015, arXiv:1412.6550; Zagoruyko and Komodakis, *Paying more attention to attention*, 2017, arXiv:1612.03928; Park and others, *Relational knowledge distillation*, 2019, arXiv:1904.05068
# - Zhao and others, *Decoupled knowledge distillation*, 2022, arXiv:2203.08679
# - Mirzadeh and others, *Improved knowledge distillation via teacher assistant*, 2020, arXiv:1902.03393; Furlanello and others, *Born-again neural networks*, 2018, arXiv:1805.04770
# - Sanh and others, *DistilBERT*, 2019, arXiv:1910.01108
# - Beyer and others, *A good teacher is patient and consistent*, 2022, arXiv:2106.05237 (why not to cache under augmentation)
#
# ## Next
#
# Lesson 09 asks whether a matrix needs all its numbers.

# %%
lesson_done = True
