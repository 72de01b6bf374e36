# %% [markdown]
# # 10 Mixture of experts: when only some weights work at a time, which can go?
#
# **Time:** 75 minutes with the exercises, 45 without. **Runs in:** about half a minute, without a network or a GPU.
#
# **Before you start** you should have done lessons 05 to 07: what pruning removes, and how a score is judged. Perplexity is lesson 04's.
#
# **Afterwards you can**
# - read what a router does: load, balance, entropy, contribution of each expert;
# - remove experts so that nothing points at them any more, and prove it;
# - merge experts, thin them out, or skip them at run time, and say what each of these saves;
# - tell a usage count from an importance, and one domain from all.
#
# In a dense model every weight works for every token. A **mixture of experts** has many small MLPs in each block and a **router** that sends each token through a few of them. Large language models are built like this to know much and compute little: the memory holds all experts, the work is that of a few. So the file is large beside the work, and the first idea is plain: throw out the experts that nobody uses.

# %% tags=["setup"]
import argparse
import copy
import difflib
import inspect
import tarfile

import matplotlib.pyplot as plt
import pandas as pd
import torch

from compresslab import measure
from compresslab.course import check, quiz, reveal, show, start
from compresslab.importance import spearman
from compresslab.pruning.expert_layers import find_moe_layers
from compresslab.pruning.expert_merging import merge_experts
from compresslab.pruning.expert_neurons import kept_neurons, prune_expert_neurons
from compresslab.pruning.expert_skipping import skip_experts
from compresslab.pruning.experts import drop_experts, expert_oracle, lowest_experts
from compresslab.pruning.routing import load_balance, router_entropy, routing_statistics
from compresslab.workbench import checkpoints, data, models
from compresslab.workbench.text import TextSplit
from compresslab.workbench.train import fit

_ = start(threads=1)

# %% [markdown]
# ## Three guesses, before anything is measured

# %%
guess_usage = None  # perplexity is about 3.3; what is it without the quarter of the experts that is used least?
guess_rank = None  # rank correlation of an expert's usage with what its removal really costs, -1 to 1?
guess_skip = None  # each token takes 2 experts: by how many percent does perplexity rise without half of the second?

# %% [markdown]
# ## 1. A router, by hand
#
# Two tokens, four experts. The router gives each token four logits; softmax makes probabilities $p$; the two largest are **chosen** ($k = 2$). Each chosen expert's output is multiplied by its **gate** $g$, here $p$ divided by the sum of the two. The layer puts out $y = \sum_e g_e \, \mathrm{expert}_e(x)$, summed over the chosen.
#
# Each pair of a token and one of its experts is an *assignment*. An expert's share of all assignments is its **usage**.

# %%
probs = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.5, 0.1, 0.3, 0.1]])
top, chosen = probs.topk(2)
gates = top / top.sum(1, keepdim=True)
for token in range(2):
    print(f"token {token}: experts {chosen[token].tolist()}, gates {[round(g, 3) for g in gates[token].tolist()]}")
counts = torch.bincount(chosen.flatten(), minlength=4)
usage = counts / counts.sum()
print("share of the four assignments:", usage.tolist(), " even would be", 1 / 4)

# %% [markdown]
# Left alone, a router settles on a few experts: those it chooses learn, and are chosen more. So training adds a small multiple of a **load-balance loss** (Switch Transformer, equations 4 to 6): $E \sum_e f_e P_e$, with $E$ the number of experts, $f_e$ the usage and $P_e$ the mean probability of expert $e$. It is 1 if all is even, and $E$ if one expert gets everything. The **entropy** of $p$ says how undecided the router is about one token: 0 is certain, $\log E$ is a mere guess.

# %%
mean_probs = probs.mean(0)
by_hand = 4 * (usage * mean_probs).sum()
print("f:", usage.tolist(), " P:", [round(p, 3) for p in mean_probs.tolist()])
print(f"4 (0.5 * 0.45 + 0.25 * 0.2 + 0.25 * 0.25 + 0 * 0.1) = {by_hand:.4f}")
print("the package says the same:", torch.isclose(load_balance(probs, chosen), by_hand).item())
print("entropy of each token's choice, in nats:", [round(h, 3) for h in router_entropy(probs).tolist()])

# %% [markdown]
# ### A threshold that means nothing
#
# A rule that is passed around says: an expert used by less than 0.1 loses 60 % of its neurons, by less than 0.3 loses 40 %, others 20 %. Let us apply it to models whose load is *perfectly even*.

# %% tags=["trap"]
rule = {}
for experts in (2, 4, 8, 16, 64):
    share = 1 / experts
    rule[experts] = 0.6 if share < 0.1 else 0.4 if share < 0.3 else 0.2
    print(
        f"{experts:>2} experts, each used by {share:.3f}: all lose {rule[experts]:.0%}; relative usage {share * experts:.0f}"
    )
assert rule[64] == rule[16] == 0.6
assert rule[8] == 0.4

# %% [markdown]
# The rule measures the number of experts. **Relative usage**, the share times $E$, is 1 for an average expert in any model. We print nothing else from here on.
#
# ## 2. Where our model sends its tokens
#
# Our model has three blocks with eight experts each, two at work for a token, trained on Python's manual with the balance loss. `find_moe_layers` finds them by structure, not by name: a list of alike modules (or one 3-D parameter, as in today's *transformers*), a router with as many outputs, and $k$. What it does not recognize is refused with a reason.

# %%
splits = data.load("python-docs")
network = checkpoints.load("moe_gpt")
layers = find_moe_layers(network).layers
for layer in layers.values():
    print(f"{layer.name}: {layer.count} experts, {layer.top_k} at work; router {layer.router}")
held_out = list(splits.val.batches(8))[:14]


def perplexity(model, batches=held_out):
    return measure.perplexity(measure.predict_batches(model, batches), resamples=20).value


# %%
def cost(model):
    """Parameters in all, and at work for one token."""
    total, idle = sum(p.numel() for p in model.parameters()), 0.0
    for name, layer in find_moe_layers(model).layers.items():
        bank = model.get_submodule(layer.experts)
        idle += sum(p.numel() for p in bank.parameters()) * (1 - layer.top_k / layer.count)
    return total, round(total - idle)


total, active = cost(network)
whole = perplexity(network)
print(f"{total:,} parameters in the file, {active:,} of them at work for a token")
print(f"perplexity ≈ {whole:.2f}")
assert total > 2 * active and 2.7 < whole < 3.9

# %% [markdown]
# Now the statistics, in one pass with hooks that are removed afterwards, on three kinds of text: the manual, the source code of Python's own library, and a list of numbers. What do you expect of the numbers? *Look at:* the first block.

# %%
source = "".join(inspect.getsource(module) for module in (argparse, tarfile, difflib))
texts = {
    "manual": splits.train,
    "code": TextSplit(splits.encode(source)),
    "numbers": TextSplit(splits.encode(", ".join(map(str, range(20000))))),
}


def draw(text, seed, batches=20):
    return list(text.batches(8, shuffle=True, generator=torch.Generator().manual_seed(seed)))[:batches]


seen = {name: routing_statistics(network, draw(text, 0)) for name, text in texts.items()}

# %% tags=["slide"]
first = next(iter(layers))
fig, ax = plt.subplots(figsize=(7, 3))
for place, (name, hatch) in enumerate(zip(texts, ("", "//", ".."), strict=True)):
    at = torch.arange(8) + 0.27 * (place - 1)
    ax.bar(at, seen[name][first].relative_usage, width=0.25, hatch=hatch, edgecolor="black", label=name)
ax.axhline(1, color="black", lw=0.8, ls="--")
ax.set(xlabel="expert of the first block", ylabel="usage, 1 is even", title="Usage belongs to the text")
ax.legend()
show(fig, alt="Bars of relative usage: even for the manual, less even for code, two experts alone for numbers")

# %%
print("first block     load balance   entropy   least and most used")
for name in texts:
    found = seen[name][first]
    low, high = found.relative_usage.min(), found.relative_usage.max()
    print(f"{name:<15} ≈ {found.load_balance:>5.2f}        ≈ {found.entropy:.2f}    ≈ {low:.2f} and ≈ {high:.2f}")
assert seen["manual"][first].load_balance < 1.3 < 2 < seen["numbers"][first].load_balance

# %% [markdown]
# On its own text the load is fairly even, as it was trained to be: each expert gets between about a half and one and a half of the average. On numbers two experts do almost everything in this block, and the other six see next to nothing. Keep that picture for the traps.
#
# ## 3. Which expert matters? Ask the oracle first
#
# As in lesson 07 there is a truth: take an expert out, measure the loss. With 24 experts we can afford it. Three cheap scores, from one pass over the manual, are to guess it: **usage**, the **mean gate** over an expert's tokens, and the **contribution**, the mean norm of gate times output over its tokens (the score of REAP, Lasby and others, 2025). A fourth is contribution times usage: what an expert adds over all tokens. The rank correlation (lesson 07) is taken over the eight experts of a block; what is printed is the mean of three blocks.

# %%
few = held_out[:6]


def loss_of(model):
    return torch.tensor(perplexity(model, few)).log().item()


oracle = expert_oracle(network, loss_of)
scores = {
    "usage": lambda s: s.usage,
    "mean gate": lambda s: s.mean_gate,
    "contribution": lambda s: s.contribution,
    "usage x contribution": lambda s: s.usage * s.contribution,
}

# %%
ranks = {}
for name, score in scores.items():
    within = [spearman(score(seen["manual"][layer]), oracle[layer]) for layer in layers]
    ranks[name] = sum(within) / len(within)
    print(f"{name:<21} rank correlation with the oracle, within layers ≈ {ranks[name]:+.2f}")
reveal(guess_rank, ranks["usage"], what="rank correlation of usage with the oracle")
assert ranks["usage"] < 0.4 < 0.6 < ranks["contribution"]

# %% [markdown]
# Usage is a poor guess. It had no chance to be a good one: the balance loss pushes it towards *equal*, whatever an expert is worth, so the differences that are left say little. An expert with an even share of the tokens can put out next to nothing. Gate and contribution say what it adds.
#
# So a quarter of the experts goes: two of eight in each block, those with the lowest scores. The scores come from three different draws of the training text.

# %%
manual = [routing_statistics(network, draw(texts["manual"], seed)) for seed in (0, 1, 2)]


def dropped(score, statistics, ratio=0.25):
    return drop_experts(network, lowest_experts({n: score(s) for n, s in statistics.items()}, ratio=ratio))


rows = {name: [perplexity(dropped(score, s).model) for s in manual] for name, score in scores.items()}
rows["oracle, one at a time"] = [perplexity(drop_experts(network, lowest_experts(oracle, ratio=0.25)).model)]

# %%
for name, found in rows.items():
    print(f"{name:<22} perplexity ≈ {min(found):.2f} to ≈ {max(found):.2f}")
rows_usage, rows_best = rows["usage"][0], rows["contribution"][0]
reveal(guess_usage, rows_usage, what="perplexity without the quarter that is used least")
assert min(rows["usage"]) > 1.3 * max(rows["contribution"])
assert max(rows["contribution"]) < 1.5 * whole

# %% [markdown]
# The draw does not matter; the score matters much. On this model, "remove what is used least" is the worst of the four. Mean gate and contribution do as well as the oracle. Contribution times usage does not, though it ranked all eight better than contribution did: here it counts only who comes last.
#
# ## 4. What it means that an expert is gone
#
# `drop_experts` removes its weights and its row of the router, and corrects the number of experts in the configuration. Softmax over the experts that are left is softmax over all with the others' logits at minus infinity. So there is an exact test, in float64:

# %%
gone = {first: [3, 5]}
smaller = drop_experts(copy.deepcopy(network).double(), gone)
masked = copy.deepcopy(network).double()


def silence(router, args, logits):
    return logits.index_fill(-1, torch.tensor(gone[first]), -torch.inf)


x = held_out[0][0]
with masked.get_submodule(layers[first].router).register_forward_hook(silence), torch.no_grad():
    gap = (masked(x) - smaller.model(x)).abs().max().item()
print(f"largest difference of the logits ≈ {gap:.0e}")
assert gap < 1e-10

# %%
best = dropped(scores["contribution"], manual[0])
for name, model in (("whole", network), ("three quarters", best.model)):
    names = [key for key in model.state_dict() if key.startswith(f"{first}.experts")]
    print(
        f"{name:<15} {measure.measure_size(model).size_bytes:>9,} bytes, {len(names)} tensors of experts in the first block"
    )
fresh = models.build(**best.model.config)
fresh.load_state_dict(best.model.state_dict())
same = torch.equal(fresh.eval()(x), best.model.eval()(x))
print(f"config says {best.model.config['experts']} experts; a fresh model of it, loaded, is the same: {same}")

# %% [markdown]
# All layers kept equally many, so the configuration says it. If they differ (`scope="global"` compares the experts of all layers), no configuration can, and the note says how to load: `drop_experts(original, result.removed)`, then the weights. Where fewer than $k$ experts are left, $k$ goes down too, with a note.
#
# ## 5. Three more ways to have less
#
# Dropping is one way to lose a quarter of the experts' weights. Here it stands beside three others, with four small experts of 8 neurons each. *Look at:* what is left in the file. (Hatched: the mean of experts 2 and 3. White: in the file, but not at work for this token; dashed is its second expert, skipped.)

# %%
toy = torch.tensor([0.4, 0.3, 0.2, 0.1])  # how much each expert adds
left = {"dropped": [8, 8, 8, 0], "merged": [8, 8, 8, 0], "thinner": kept_neurons(toy, 8, ratio=0.25).tolist()}
left["skipping"] = [8, 8, 8, 8]
for name, sizes in left.items():
    print(f"{name:<9} neurons {sizes}, {sum(sizes)} of 32 in the file")

# %% tags=["slide"]
fig, axes = plt.subplots(1, 4, figsize=(8, 2.4), sharey=True)
for ax, (name, sizes) in zip(axes, left.items(), strict=True):
    ax.bar(range(4), sizes, edgecolor="black")
    ax.set(title=name, xlabel="expert", xticks=range(4), ylim=(0, 8.5))
axes[0].set(ylabel="neurons")
axes[1].patches[2].set_hatch("//")
plt.setp(axes[3].patches[1:], facecolor="white")
axes[3].patches[2].set_linestyle("--")
show(
    fig,
    alt="Four experts as bars: one bar gone, one gone and one hatched, all shrunk by unequal parts, all there but white",
)

# %% [markdown]
# ### Merging: two become one
#
# Instead of throwing an expert away, average it into the one that the router treats most like it (MC-SMoE, Li and others, 2024). The order of neurons inside an expert is arbitrary, so they are matched first; without that it is a mean of unrelated things.

# %%
both_sums = scores["usage x contribution"]


def merge(statistics, align=True):
    sums = {n: both_sums(s) for n, s in statistics.items()}
    return merge_experts(network, sums, {n: s.similarity for n, s in statistics.items()}, ratio=0.25, align=align)


pairs = [group for group in merge(manual[0]).groups[first] if len(group) > 1]
print(f"first block: ≈ {len(pairs)} groups of more than one expert")

# %%
ways = {
    "dropped": lambda statistics: dropped(both_sums, statistics),
    "merged": merge,
    "merged, not matched": lambda statistics: merge(statistics, align=False),
}
three = {name: [perplexity(way(s).model) for s in manual] for name, way in ways.items()}
for name, found in three.items():
    print(f"{name:<20} perplexity ≈ {min(found):.2f} to ≈ {max(found):.2f}")
for one, two, other in zip(*three.values(), strict=True):
    assert one < two < other

# %% [markdown]
# All three rows choose by contribution times usage. Matching helps, but merging does not beat dropping here: the mean of two experts is neither of them, and the router can no longer choose between the two. REAP reports the same for large models.
#
# ### Thinner experts: all stay, some with fewer neurons
#
# Inside each expert the neurons go whose weights, in and out, have the smallest norms; more of them where an expert does little. `kept_neurons` says how many stay. It hands out places one by one, like the seats of a parliament, so the total is exact. First on numbers to check by hand, then on the model.

# %%
print("4 experts, 8 neurons each, half goes; shares .4 .3 .2 .1:", end=" ")
print(kept_neurons(torch.tensor([0.4, 0.3, 0.2, 0.1]), 8, ratio=0.5).tolist())


def thinner(score, power=1.0, statistics=manual[0]):
    kept = {n: kept_neurons(score(s), 64, ratio=0.25, power=power) for n, s in statistics.items()}
    return prune_expert_neurons(network, kept).model


# %%
neurons = {"a quarter of each": [perplexity(thinner(scores["usage"], power=0))]}
for name in ("usage", "usage x contribution"):
    neurons[f"by {name}"] = [perplexity(thinner(scores[name], statistics=s)) for s in manual]
for name, found in neurons.items():
    print(f"{name:<24} perplexity ≈ {min(found):.2f} to ≈ {max(found):.2f}")
assert max(neurons["by usage x contribution"]) < min(*neurons["by usage"], *neurons["a quarter of each"])

# %% [markdown]
# "More where little used" does harm if used means usage, and is worth it if used means what an expert adds.
#
# ### Skipping: the second expert only where it counts
#
# Nothing leaves the file. But a token whose second gate is far below its first can go through the first alone (Lu and others, 2024). The threshold is relative to the token's own largest gate, and comes from a quantile of the statistics. *Look at:* how far we can go. (The dashed line is the whole model; mind that the axis does not start at zero.)

# %%
curve = []
for share in (0.0, 0.25, 0.5, 0.75, 0.9, 1.0):
    threshold = {n: s.skip_threshold(share) if share else 0.0 for n, s in manual[0].items()}
    skipping = skip_experts(network, threshold).model
    at_work = [s.experts_per_token for s in routing_statistics(skipping, few).values()]
    curve.append((sum(at_work) / len(at_work), perplexity(skipping)))
    print(f"{share:.0%} of the second experts skipped: ≈ {curve[-1][0]:.2f} at work, perplexity ≈ {curve[-1][1]:.3f}")
rise = 100 * (curve[2][1] / whole - 1)
reveal(guess_skip, rise, what="percent of perplexity for half of the second experts")
assert rise < 1 and curve[-1][1] < 1.15 * whole

# %% tags=["slide"]
fig, ax = plt.subplots(figsize=(7, 3))
ax.plot(*zip(*curve, strict=True), "o-")
ax.axhline(whole, color="black", lw=0.8, ls="--")
ax.set(xlabel="experts at work for a token", ylabel="perplexity", title="Many second experts are not missed")
ax.invert_xaxis()
show(fig, alt="Perplexity stays flat from two experts a token to one and a half, then rises slowly to one expert")

# %% [markdown]
# Half of the second experts can be skipped for a fraction of a percent. That is the cheapest saving of this lesson, in *work*. Whether it is a saving in *time* depends on the program:

# %% tags=["nbval-ignore-output"]
tokens = held_out[0][0]
half = skip_experts(network, {n: s.skip_threshold(0.5) for n, s in manual[0].items()}).model
for name, model in (("whole", network), ("half of the second experts skipped", half), ("six experts", best.model)):
    found = measure.measure_latency(model, tokens, repeats=5, warmup=1)
    print(f"{name:<36} {1000 * found.median_s:.1f} ms for {tokens.numel()} tokens")

# %% [markdown]
# At this size the bookkeeping (which token goes where) costs more than the small matrices. Fewer experts in the file does not make a token faster either: two work for it as before. Dropping saves memory; skipping saves work; neither saves time by itself. On large models, where a step waits for weights to arrive from memory, fewer experts to fetch is what counts.
#
# ## 6. After a short training
#
# All that were cut to about the same size get the same 25 steps on the same batches, and so does the original. We compare on the test split, which nothing was chosen on. (It is another part of the manual, and a harder one: the whole model's perplexity is higher there.)

# %%
finals = {
    "whole": network,
    "dropped, usage": dropped(scores["usage"], manual[0]).model,
    "dropped, contribution": best.model,
    "merged": merge(manual[0]).model,
    "thinner experts": thinner(scores["usage x contribution"]),
}
steps = draw(texts["manual"], 7, batches=25)
healed = {name: fit(model, steps, epochs=1, lr=1e-3, seed=0).model for name, model in finals.items()}
test = list(splits.test.batches(8))[:14]

# %%
rows = []
for name, model in healed.items():
    found = measure.perplexity(measure.predict_batches(model, test), resamples=200)
    size, at_work = measure.measure_size(model).size_bytes, cost(model)[1]
    rows.append([cost(model)[0], at_work, size, perplexity(finals[name], test), found.value, found.low, found.high])
columns = ["parameters", "active", "size_bytes", "before", "perplexity", "perplexity_low", "perplexity_high"]
summary = pd.DataFrame(rows, index=list(healed), columns=columns)
print("                       parameters    active      bytes   before   after 25 steps")
for name, row in summary.iterrows():
    print(f"{name:<22} {row.parameters:>10,.0f} {row.active:>9,.0f} {row.size_bytes:>10,.0f}", end="   ")
    print(f"≈ {row.before:.2f}   ≈ {row.perplexity:.2f}")

# %% tags=["slide"]
ax = measure.plot_comparison(summary, "perplexity")
ax.set(title="A quarter of the experts' weights gone, after 25 steps")
show(ax, alt="Perplexity over file size: the whole model lowest, thinner experts and contribution near, usage highest")
assert summary.perplexity.idxmax() == "dropped, usage"
assert summary.perplexity["thinner experts"] < summary.perplexity["merged"]

# %% [markdown]
# Training mends much of what a bad choice broke, and the worst choice stays the worst. The original itself gets a little worse: 25 steps at a fresh learning rate disturb what was at rest. So compare the others with its value after the steps. The intervals overlap: fourteen batches are few, and only the ends of the order are sure. Note the column of active parameters: dropping experts leaves it as it was, except for the router's rows; thinner experts lower it.
#
# ## 7. In production
#
# *transformers* 5 keeps all experts of a layer in one 3-D parameter; `drop_experts` cuts it along the first axis and sets the configuration, so a pruned Mixtral, Qwen2-MoE or gpt-oss is an ordinary model of its class (our tests do this on small random ones, against logits at minus infinity). Thinner experts do not fit into such a parameter, as all must be equally large: `prune_expert_neurons` says so. *llm-compressor* and *ModelOpt* prune experts of large models, on GPUs; the authors of REAP publish code and pruned checkpoints. *vLLM* serves such a checkpoint like any other, if every layer keeps as many experts: that is why papers remove the same number everywhere. We have run none of these servers here, so we give no numbers for them.
#
# ## 8. Traps
#
# ### A count taken on one domain
#
# A team has an application that writes numbers. It takes the statistics on numbers and removes a quarter of the experts. Three draws of each text; what is printed is the mean.

# %% tags=["trap"]
digits = TextSplit(texts["numbers"].tokens[-60000:])
tests = {"numbers": list(digits.batches(8))[:8], "manual": held_out[:8], "code": draw(texts["code"], 5, 8)}
table = {"nothing removed": [perplexity(network, batches) for batches in tests.values()]}
sums = {"numbers": [], "manual": []}
for seed in (0, 1, 2):
    found = routing_statistics(network, draw(texts["numbers"], seed))
    sums["numbers"].append({n: both_sums(s) / both_sums(s).mean() for n, s in found.items()})
    sums["manual"].append({n: both_sums(s) / both_sums(s).mean() for n, s in manual[seed].items()})
pairs = zip(*sums.values(), strict=True)
sums["larger of both"] = [{n: torch.maximum(one[n], two[n]) for n in one} for one, two in pairs]

# %%
for name, draws in sums.items():
    cut = [drop_experts(network, lowest_experts(values, ratio=0.25)).model for values in draws]
    table[name] = [sum(perplexity(model, batches) for model in cut) / 3 for batches in tests.values()]
print("statistics from     ", *[f"{name:>10}" for name in tests])
for name, values in table.items():
    print(f"{name:<20}", *[f"≈ {value:>8.1f}" for value in values])
numbers, everything = table["numbers"], table["larger of both"]
assert numbers[0] < 1.1 * table["nothing removed"][0]
assert numbers[1] > 1.5 * everything[1]

# %% [markdown]
# Tested on its own numbers the pruned model is as good as before: the experts that went did nothing there. On the manual it is wrecked, and on code, which nobody counted. **Mended:** statistics from every domain that the model is to serve, each score divided by its mean in the layer, and an expert keeps the *larger* of them: it stays if any domain needs it. And a test on each domain, above all on those that were not counted: code suffers in every pruned row.
#
# ### A router that still points at what is gone
#
# Somebody deletes an expert from the list and leaves the router alone. Find the bug.

# %% tags=["trap"]
broken = copy.deepcopy(network)
del broken.get_submodule(layers[first].experts)[3]
mended = drop_experts(network, {first: [3]}).model
print(f"whole ≈ {whole:.2f}, list shortened ≈ {perplexity(broken):.2f}, router cut as well ≈ {perplexity(mended):.2f}")
assert perplexity(broken) > 1.5 * perplexity(mended)

# %% [markdown]
# No error. Experts 4 to 7 moved up by one, so the router sends the tokens of expert 3 to what was 4, and so on, and those of number 7 to nobody: their share of the output is silently missing. Programs that index a tensor of experts at least fail, if a token happens to choose the last one:

# %% tags=["trap"]
stacked = torch.randn(7, 4, 4, generator=torch.Generator().manual_seed(0))  # seven experts, the router knows eight
for choice in (6, 7):
    try:
        print(f"expert {choice}: a matrix of {tuple(stacked[choice].shape)}")
    except IndexError as error:
        print(f"expert {choice}: {error}")

# %% [markdown]
# **Mended:** `drop_experts`, and the test of section 4. A test that only looks whether the model runs would have passed.

# %% tags=["headline", "slide"]
files = [measure.measure_size(model).size_bytes / 1e6 for model in (network, best.model)]
print(
    f"a quarter of the experts gone: perplexity ≈ {rows_usage:.2f} by usage, ≈ {rows_best:.2f} by contribution "
    f"(whole ≈ {whole:.2f}), file {files[0]:.2f} to {files[1]:.2f} MB; half of the second skipped ≈ {curve[2][1]:.2f}"
)
assert rows_usage > 1.3 * rows_best

# %% [markdown]
# ## Exercises
#
# ### 10.1 Relative usage
# *10 minutes, difficulty 1 of 3.* Write `relative(chosen, experts)`: `chosen` (T, k) holds the numbers of each token's experts. Return a tensor (E,): how often each expert is chosen, divided by an even load.
#
# <details><summary>Hint</summary>How many assignments are there, and how many would each of E experts get? <code>torch.bincount</code> has a <code>minlength</code>.</details>


# %% tags=["exercise"]
def relative(chosen, experts):
    return None  # replace this line


check("10.1", relative)


# %% jupyter={"source_hidden": true} tags=["solution"]
def relative_solution(chosen, experts):
    return torch.bincount(chosen.flatten(), minlength=experts) * experts / chosen.numel()


check("10.1", relative_solution, record=False)

# %% [markdown]
# ### 10.2 The load-balance loss
# *10 minutes, difficulty 1 of 3.* Write `balance(probs, chosen)`, the loss of section 1, for probs (T, E) and chosen (T, k), so that a gradient reaches `probs`.
#
# <details><summary>Hint</summary>f is a count and has no gradient; P is a mean and has one.</details>


# %% tags=["exercise"]
def balance(probs, chosen):
    return None  # replace this line


check("10.2", balance)


# %% jupyter={"source_hidden": true} tags=["solution"]
def balance_solution(probs, chosen):
    experts = probs.shape[1]
    share = torch.bincount(chosen.flatten(), minlength=experts) / chosen.numel()
    return experts * (share * probs.mean(0)).sum()


check("10.2", balance_solution, record=False)

# %% [markdown]
# ### 10.3 Contribution
# *15 minutes, difficulty 2 of 3.* Write `contribution(chosen, gates, outputs, experts)` for chosen and gates (T, k) and outputs (T, k, D): for each expert the mean, over the tokens that chose it, of gate times the norm of its output; 0 where nobody did.
#
# <details><summary>Hint</summary><code>outputs.norm(dim=-1)</code> has the shape of the gates, and <code>chosen == expert</code> says which places belong to an expert.</details>


# %% tags=["exercise"]
def contribution(chosen, gates, outputs, experts):
    return None  # replace this line


check("10.3", contribution)


# %% jupyter={"source_hidden": true} tags=["solution"]
def contribution_solution(chosen, gates, outputs, experts):
    found = torch.zeros(experts)
    for expert in range(experts):
        here = chosen == expert
        if here.any():
            found[expert] = (gates * outputs.norm(dim=-1))[here].mean()
    return found


check("10.3", contribution_solution, record=False)

# %% [markdown]
# ### 10.4 Out, with its row
# *10 minutes, difficulty 2 of 3.* Write `take_out(router, experts, gone)` for a router's weight (E, D), a list of experts and a set of numbers: the new weight and the new list. What was given stays as it was.
#
# <details><summary>Hint</summary>Do not delete; write down the numbers that stay, once, and pick both by them.</details>


# %% tags=["exercise"]
def take_out(router, experts, gone):
    return None  # replace this line


check("10.4", take_out)


# %% jupyter={"source_hidden": true} tags=["solution"]
def take_out_solution(router, experts, gone):
    keep = [number for number in range(len(experts)) if number not in gone]
    return router[keep], [experts[number] for number in keep]


check("10.4", take_out_solution, record=False)

# %% [markdown]
# ### 10.5 Skip the weak
# *15 minutes, difficulty 2 of 3.* Write `skip(gates, threshold)` for gates (T, k), in any order: gates below threshold times the token's largest become 0, and the others sum to 1 again.
#
# <details><summary>Hint</summary><code>gates.amax(1, keepdim=True)</code>; and <code>torch.where</code> makes a new tensor.</details>


# %% tags=["exercise"]
def skip(gates, threshold):
    return None  # replace this line


check("10.5", skip)


# %% jupyter={"source_hidden": true} tags=["solution"]
def skip_solution(gates, threshold):
    kept = torch.where(gates < threshold * gates.amax(1, keepdim=True), 0.0, gates)
    return kept / kept.sum(1, keepdim=True)


check("10.5", skip_solution, record=False)

# %% [markdown]
# ## Quiz

# %% tags=["quiz"]
quiz("10")

# %% [markdown]
# ## Summary
#
# - Usage is to be read relative to $1 / E$, and only for the text it was counted on.
# - The balance loss evens usage out, so it says little about importance. Gate times output says much more, for the same pass.
# - An expert is gone when its weights, its row and its number are gone; logits at minus infinity are the exact test.
# - Merging needs matched neurons, and did not beat dropping here. Thinner experts were about as good as the best choice of whole ones, and lower the work as well.
# - Many second experts can be skipped. Memory, work and time are three different savings.
#
# ## Sources
#
# - Shazeer and others, *Outrageously large neural networks*, 2017, arXiv:1701.06538
# - Fedus, Zoph and Shazeer, *Switch Transformers*, 2021, arXiv:2101.03961 (equations 4 to 6)
# - Lu and others, *Not all experts are equal*, 2024, arXiv:2402.14800 (dropping and skipping)
# - Li and others, *Merge, then compress* (MC-SMoE), 2024, arXiv:2310.01334
# - Lasby and others, *REAP the experts*, 2025, arXiv:2510.13999
#
# ## Next
#
# Lesson 11 takes the models out of PyTorch.

# %%
lesson_done = True
