# %% [markdown]
# # 00 Measure first: what is there to win, and how will we know that we won it?
#
# **Time:** 90 minutes with the exercises, 45 without. **Runs in:** less than a minute, without a network or a GPU.
#
# **Before you start** you should have trained a small network in PyTorch once, and know what a convolution does. Nothing about compression is assumed.
#
# **Afterwards you can**
# - say what a model costs in bytes, multiply-accumulates and milliseconds, and prove each number;
# - see which layers hold the bytes and which take the time, and why these are different layers;
# - tell whether memory or arithmetic is the limit of a layer;
# - decide whether one model is really better than another, or whether it was luck.
#
# Compression is the art of making a network smaller or faster without making it worse. All three words hide a measurement, and most disappointments are measurements that went wrong: a "four times smaller" model whose second file was not counted, a "twice as fast" one that was timed warm against cold, a "better" one that got three more images right. So the first lesson compresses nothing. It builds the scales.

# %% tags=["setup", "nbval-ignore-output"]
import copy
import io
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.metrics import f1_score
from torch import nn
from torch.nn.utils import prune
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from compresslab import measure
from compresslab.course import check, quiz, reveal, show, show_source, start, table
from compresslab.course.doctor import examine, report
from compresslab.workbench import checkpoints, data

_ = start()

# %% [markdown]
# ## Three guesses, before anything is measured
#
# They are about a small network of three stages of convolutions: each next stage has twice the channels, and images half as wide and high. Write your guesses down now: a wrong guess teaches more than a number that is only read. (From 84 % to 85 % is one *point*.)

# %%
guess_time_share = None  # percent: the last of the three stages holds most of the bytes; what is its share of the time?
guess_speedup = None  # how many times faster is the network when every number takes half the bytes (bfloat16)?
guess_half_width = None  # points: we test on 300 images; true accuracy = measured accuracy plus or minus how much?

# %% [markdown]
# ## The patient: a small network that reads letters
#
# All lessons share one default data set, **glyphs**: letters and digits drawn from fonts, then rotated, scaled, sheared and covered with noise. Your machine makes it in a few seconds; nothing is downloaded. The network is residual (convolutions with shortcuts around them) and was trained beforehand by our own script.
#
# *Look at:* how many images each split holds. We choose things on the validation split; the test split is for final tables.

# %%
splits = data.load("glyphs")
baseline = checkpoints.load("resnet")
for name in ("train", "val", "test"):
    print(f"{name:<5} {len(getattr(splits, name)):>6,} images of shape {splits.input_shape}")
print(f"{splits.num_classes} classes: {''.join(splits.class_names)}")

# %% [markdown]
# *Look at:* pairs that nobody could tell apart, such as O and 0. No model can reach 100 % here, which is good: where everything is perfect, no damage can be seen.

# %% tags=["slide"]
fig, axes = plt.subplots(4, 12, figsize=(8, 2.9))
for ax, image, label in zip(axes.flat, splits.test.images, splits.test.labels, strict=False):
    ax.imshow(image[0], cmap="gray")
    ax.set_title(splits.class_names[label], fontsize=8, pad=2)
    ax.axis("off")
show(fig, alt="48 small grey pictures of single letters and digits, rotated and noisy, each under its label")

# %% [markdown]
# ## 1. A size is the number of bytes of a file
#
# A linear layer from 3 inputs to 2 outputs has a weight of 2 x 3 numbers and a bias of 2.

# %%
tiny = nn.Linear(3, 2)
numbers = sum(p.numel() for p in tiny.parameters())
print("numbers:", numbers)
print("bytes, at 4 for each float32:", numbers * 4)

# %% [markdown]
# That is an estimate. The truth is a file. *Look at:* the difference between the two.

# %%
folder = Path(tempfile.mkdtemp())
path = folder / "tiny.safetensors"
save_file(tiny.state_dict(), path)
header = path.stat().st_size - numbers * 4
print("bytes of the file:", path.stat().st_size)
print("of them header (names, types, shapes):", header)

# %% [markdown]
# For a real model the header vanishes. The package does the same: save, reload, compare every tensor, count the bytes. It counts a *tied* weight (one tensor under two names) once, and a *view* (a tensor that shows a part of another one's memory) as the elements it shows. Its source follows; you need not read it line by line.

# %%
size = measure.measure_size(tiny)
assert size.size_bytes == path.stat().st_size
print(size)

# %%
show_source(measure.measure_size)

# %% [markdown]
# Now our network.

# %%
size = measure.measure_size(baseline)
print(f"parameters: {size.parameters:,}")
print(f"file: {size.size_bytes:,} bytes, {size.bits_per_parameter:.2f} bits for each parameter")

# %% [markdown]
# A little more than 32 bits: batch norm also saves running means and variances, and there is the header. "Bits per weight" means this division everywhere in the course.

# %% [markdown]
# ### Trap: a slice that drags the whole tensor along
#
# Pruned models are full of views. `torch.save` writes the whole block of memory behind a view. *Look at:* ten numbers, saved in two ways.


# %% tags=["trap"]
def torch_save_bytes(tensor):
    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    return len(buffer.getvalue())


slice_of_ten = torch.zeros(100_000)[:10]
as_view, as_clone = torch_save_bytes(slice_of_ten), torch_save_bytes(slice_of_ten.clone())
print(f"ten numbers as a view take more than 400,000 bytes: {as_view > 400_000}")
print(f"ten numbers as a clone take less than 2,000 bytes: {as_clone < 2_000}")
assert as_view > 400_000 > 2_000 > as_clone

# %% [markdown]
# ### Trap: zeros weigh as much as other numbers
#
# The most used pruning tool sets 90 % of a layer to zero. Watch the file.

# %% tags=["trap"]
layer = nn.Linear(256, 256)
before = measure.measure_size(layer.state_dict()).size_bytes
prune.l1_unstructured(layer, "weight", amount=0.9)
masked = measure.measure_size(layer.state_dict()).size_bytes
prune.remove(layer, "weight")
after = measure.measure_size(layer.state_dict()).size_bytes
print(f"dense {before:,}   masked {masked:,}   zeros made permanent {after:,} bytes")
print(f"zeros in the weight: {(layer.weight == 0).float().mean():.0%}")
assert masked > 1.9 * before
assert after == before

# %% [markdown]
# The tool keeps the old weight and, beside it, a **mask**: ones and zeros that say what stays. With the mask the file is twice as large, and afterwards just as large as before: nothing was asked to store zeros differently. Lesson 05 does.

# %% [markdown]
# ## 2. Work is counted in multiply-accumulates
#
# A convolution slides a small window over the image, multiplies and adds. Let us count: 2 input channels, 3 output channels, a 3 x 3 window, a 5 x 5 image with padding.

# %%
count = 0
for output_channel in range(3):
    for row in range(5):
        for column in range(5):
            for input_channel in range(2):
                count += 3 * 3  # one multiply-accumulate (MAC) for each weight of the window
print("MACs, counted:", count)
print("MACs, as a product:", (3 * 5 * 5) * (2 * 3 * 3))

# %% [markdown]
# Outputs times the weights that each output uses. One MAC is two floating point operations (FLOPs): one multiplication, one addition. Who mixes the two up has a model "twice as efficient" overnight. We say MACs. The package counts with torch's own `FlopCounterMode` and fills its gaps.

# %%
conv = nn.Conv2d(2, 3, 3, padding=1)
macs = measure.count_macs(conv, torch.zeros(1, 2, 5, 5))
print(macs.total, "MACs,", macs.flops, "FLOPs")
assert macs.total == count

# %% [markdown]
# ### Trap: work that the counter does not see
#
# In `nn.MultiheadAttention`, of which language models are made, each *token* (a piece of text, here a vector of 64 numbers) looks at every other. In evaluation mode it takes a fast path, which the counter does not know. *Look at:* torch's number, and the one by hand: each of 10 tokens is multiplied by four matrices of 64 x 64, and every token meets every other in two products of 64 MACs.

# %% tags=["trap"]
attention, x = nn.MultiheadAttention(64, 4, batch_first=True).eval(), torch.zeros(1, 10, 64)
with FlopCounterMode(display=False) as counter, torch.no_grad():
    attention(x, x, x, need_weights=False)
by_hand = 4 * 10 * 64 * 64 + 2 * 10 * 10 * 64
ours = measure.count_macs(attention, (x, x, x)).total
print(f"torch's counter: {counter.get_total_flops() // 2:,}   ours: {ours:,}   by hand: {by_hand:,}")
assert ours == by_hand

# %% [markdown]
# A count of zero looks like a free lunch in a table. When a number is too good, count one layer by hand.

# %%
image = splits.test.inputs(slice(0, 1))
print(f"our network, one image: {measure.count_macs(baseline, image).total:,} MACs")

# %% [markdown]
# ## 3. Time is measured, never computed
#
# MACs say how much there is to do, not how long it takes. So we look at the clock. *Look at:* the first call against the second.

# %% tags=["trap", "nbval-ignore-output"]
batch = splits.test.inputs(slice(0, 37))  # a batch size that has not been used yet
for call in range(5):
    with measure.use_threads(1), torch.inference_mode():
        begin = time.perf_counter()
        baseline(batch)
    print(f"call {call + 1}: {1000 * (time.perf_counter() - begin):.1f} ms")

# %% [markdown]
# The first call with a new shape is usually the slowest: memory is asked for, kernels are chosen. (If a later one is slow too, something else ran just then.) Whoever times model A cold and model B warm finds that B is faster, whatever B is. So: some calls to warm up, then many, then the **median** (one slow call must not rule) and the **90th percentile** (what an unlucky user gets), with the batch size and the number of threads. The package prints the median and, in brackets, the 10th and the 90th percentile.

# %% tags=["nbval-ignore-output"]
latency = measure.measure_latency(baseline, image, threads=1)
print(latency)
print(f"the cold call took {latency.cold_s / latency.median_s:.1f} times the median")

# %%
assert 0 < latency.p10_s <= latency.median_s <= latency.p90_s
show_source(measure.measure_latency)

# %% [markdown]
# Latency is what one user waits; **throughput** is what a server gets done. *Look at:* where the right-hand curve stops climbing. From there on a larger batch makes everybody wait longer and gains nothing.

# %% tags=["nbval-ignore-output"]
batch_sizes = [1, 2, 4, 8, 16, 32, 64]
runs = [measure.measure_latency(baseline, splits.test.inputs(slice(0, n)), repeats=10, threads=1) for n in batch_sizes]
for n, run in zip(batch_sizes, runs, strict=True):
    print(f"batch {n:>2}: {1000 * run.median_s:7.2f} ms, {run.throughput:7.0f} images/s")

# %% tags=["slide"]
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2))
left.plot(batch_sizes, [1000 * run.median_s for run in runs], "o-")
left.set(xlabel="batch size", ylabel="latency, ms", title="What one call takes")
right.plot(batch_sizes, [run.throughput for run in runs], "s-", color="C1")
right.set(xlabel="batch size", ylabel="images per second", title="What gets done", ylim=0)
for ax in (left, right):
    ax.set_xscale("log", base=2)
    ax.set_xticks(batch_sizes, batch_sizes)
show(fig, alt="Two curves over batch size: latency rises all the way, throughput rises at first and then flattens")
assert max(run.throughput for run in runs) > runs[0].throughput

# %% [markdown]
# ### Trap: the number of threads
#
# Many blogs compare a model on all cores with another on one. The package sets the number of threads for the time of a measurement and puts it back. *Look at:* whether two threads halve the time. For a network this small they rarely do, and where another program wants the second processor they can even be slower (wide brackets are the sign).

# %% tags=["trap", "nbval-ignore-output"]
threads_before = torch.get_num_threads()
batch = splits.test.inputs(slice(0, 32))
for threads in (1, 2):
    print(measure.measure_latency(baseline, batch, repeats=10, threads=threads))

# %%
assert torch.get_num_threads() == threads_before

# %% [markdown]
# ## 4. Where the bytes are is not where the time is
#
# A profile asks every layer the same questions. Here are the six layers with the most bytes; shares are fractions of the whole network. *Look at:* the columns `size_share` and `latency_share`. They tell two different stories.

# %% tags=["nbval-ignore-output"]
profile = measure.profile_layers(baseline, image)
top = profile.sort_values("size_share", ascending=False).head(6)
table(top[["layer", "parameters", "size_share", "mac_share", "latency_share"]], digits=2, index=False)

# %% tags=["slide"]
stage = profile["layer"].str.split(".").str[0]
stages = profile.assign(stage=stage).groupby("stage")[["size_share", "mac_share", "latency_share"]].sum()
stages = stages.loc[["conv1", "layer1", "layer2", "layer3", "linear"]]
ax = (100 * stages).plot.bar(rot=0, color=["C0", "C1", "C2"], edgecolor="black", figsize=(7, 3.4))
for bars, hatch in zip(ax.containers, ("", "//", ".."), strict=True):
    [bar.set_hatch(hatch) for bar in bars]
ax.set(xlabel="part of the network", ylabel="share, %", title="Three profiles of one network")
ax.legend(["bytes", "MACs", "time"])
show(ax, alt="Bars for each stage: most bytes are in layer3, while MACs and time are spread over all stages")

# %% tags=["nbval-ignore-output"]
reveal(guess_time_share, 100 * stages.latency_share["layer3"], what="time taken by the last stage", unit="%")

# %%
last = stages.loc["layer3"]
print(f"the last stage holds {last.size_share:.0%} of the bytes and {last.mac_share:.0%} of the MACs")
assert last.size_share > 0.6
assert last.latency_share < last.size_share - 0.2

# %% [markdown]
# (What the time bars lack to 100 % passes between the layers: additions of the shortcuts, the final average, Python itself.)
#
# Deep layers have many weights, each used at few places of a small image. Early layers have few, each used everywhere. So whoever must save **bytes** starts at the end, and whoever must save **time** where the profile says. "Compress the largest layer first" is advice for only one of the two.

# %% [markdown]
# ## 5. Under the roof: arithmetic or memory?
#
# A machine has two limits: how many operations it can do in a second (its *peak*), and how many bytes it can fetch in a second (its *bandwidth*).
#
# ### One multiplication, by hand
#
# Two float32 numbers come in, one goes out, 4 bytes each. That is 1 FLOP for 12 bytes; FLOPs for each byte are called **arithmetic intensity**. *Look at:* what a made-up machine of 100 GFLOP/s and 24 GB/s makes of it, and of numbers that are used 100 times once they are there.

# %%
peak, bandwidth = 100e9, 24e9  # operations and bytes in a second
for flops in (1, 100):
    intensity = flops / (2 * 4 + 4)  # two numbers in, one out
    speed = min(peak, intensity * bandwidth)
    print(f"{flops:>3} FLOP for 12 bytes: intensity {intensity:.2f}, at most {speed / 1e9:.0f} GFLOP/s")
print(f"both limits are felt at {peak / bandwidth:.1f} FLOP for each byte")

# %% [markdown]
# The single multiplication waits for memory, the processor is nearly idle. The hundred wait for arithmetic.
#
# ### The roofline
#
# With the intensity $I$:
#
# $$I = \frac{\text{FLOPs}}{\text{bytes moved}} \qquad \text{attainable speed} = \min(\text{peak},\; I \cdot \text{bandwidth})$$
#
# Drawn over $I$, these are two straight lines: the *roofline* (Williams and others, 2009). They meet at the *ridge*: left of it a layer waits for memory, right of it for arithmetic. Now this machine, measured with a large matrix product and a large copy:

# %% tags=["nbval-ignore-output"]
machine = measure.measure_machine(threads=1)
print(f"peak {machine.flops_per_s / 1e9:.0f} GFLOP/s, bandwidth {machine.bytes_per_s / 1e9:.0f} GB/s")
print(f"ridge at {machine.ridge:.1f} FLOP for each byte")

# %% [markdown]
# Now one linear layer of 1024 x 1024, for one input and for 64 at once; its weight is fetched once in both cases.

# %%
linear = nn.Linear(1024, 1024)
points = {}
for batch in (1, 64):
    layers = measure.profile_layers(linear, torch.randn(batch, 1024))
    points[f"linear, batch {batch}"] = measure.works(layers)["(whole model)"]
    print(f"batch {batch:>2}: {points[f'linear, batch {batch}'].intensity:.1f} FLOP for each byte")

# %% [markdown]
# At batch 1 every weight of 4 bytes is fetched for one multiplication and one addition: half an operation for each byte. Language models write this way, one token at a time; that is why 4-bit weights make them faster (lesson 04), although they save not a single MAC. *Look at:* who lies under the slope.

# %% tags=["slide"]
for batch in (1, 32):
    layers = measure.profile_layers(baseline, splits.test.inputs(slice(0, batch)))
    points[f"our network, batch {batch}"] = measure.works(layers)["(whole model)"]
ax = measure.plot_roofline(machine, points)
show(
    ax, alt="Roofline: the linear layer at batch 1 lies far left under the sloping roof, the others under the flat one"
)
assert points["linear, batch 1"].intensity < 1 < points["linear, batch 64"].intensity

# %% [markdown]
# Under the slope fewer bytes help; under the flat roof, fewer operations. Far below both, time is lost in overhead: a small network called with one image spends much of it between its layers.

# %% tags=["nbval-ignore-output"]
for name, work in points.items():
    used, reached = machine.bandwidth_utilization(work), work.flops_per_s / machine.attainable(work.intensity)
    print(f"{name:<24} {used:5.0%} of the bandwidth, {reached:5.0%} of the roof above it")

# %% [markdown]
# More than 100 % is no mistake: the layer's 4 MB fit into the processor's cache, which is faster than the memory behind the slope, and the flat roof is only the best of a few runs. Read the picture for what is far from what, not for percents.
#
# So: does half the bytes mean half the time? bfloat16 takes 2 bytes for each number.

# %% tags=["nbval-ignore-output"]
half = copy.deepcopy(baseline).bfloat16()
batch = splits.test.inputs(slice(0, 32))
both = {"float32": lambda: baseline(batch), "bfloat16": lambda: half(batch.bfloat16())}
speedup = measure.compare_latency(both, rounds=10).speedup["bfloat16"]
print("bfloat16 against float32, times faster:", speedup)
reveal(guess_speedup, speedup.value, what="speed-up of half the bytes", unit="x")

# %%
ratio = size.size_bytes / measure.measure_size(half).size_bytes
print(f"the file is {ratio:.2f} times smaller")
assert 1.7 < ratio < 2

# %% [markdown]
# The file is nearly half as large everywhere. The time depends on the processor's instructions, the shapes, the library (lesson 01). Bytes promise nothing about time.

# %% [markdown]
# ## 6. An accuracy is an estimate, and has an interval
#
# We let the network read the whole test split.

# %%
predictions = measure.predict(baseline, splits.test.batches())
for name, estimate in (
    ("accuracy", measure.accuracy(predictions)),
    ("top-5", measure.top_k(predictions, 5)),
    ("macro F1", measure.macro_f1(predictions)),
):
    print(f"{name:<8} ≈ {100 * estimate.value:.1f}, from ≈ {100 * estimate.low:.1f} to ≈ {100 * estimate.high:.1f} %")
accuracy = measure.accuracy(predictions)
assert 0.75 < accuracy.value < 0.95 < measure.top_k(predictions, 5).value

# %% [markdown]
# Accuracy: is the first answer right? Top-5: is the right one among five? Macro F1: how good is the average *class*, rare or common? (F1 is high only if most images of a class are found *and* most of what gets its name is right.)
#
# Why an interval? Other images of the same kind would have given another accuracy. A *95 % interval* is made so that, in 95 of 100 such samples, it holds the true one. *Look at:* the luck of 40 small test sets of 300 images, cut out of our test split.

# %% tags=["slide"]
generator = torch.Generator().manual_seed(0)
correct = predictions.correct
draws = [correct[torch.randperm(len(correct), generator=generator)[:300]].float().mean().item() for _ in range(40)]
fig, ax = plt.subplots(figsize=(7, 3))
ax.axhspan(100 * accuracy.low, 100 * accuracy.high, alpha=0.3, label="95 % interval of the whole test split")
ax.plot([100 * value for value in draws], "o", color="C1", label="300 images")
ax.set(xlabel="small test set", ylabel="accuracy, %", title="The same network, 40 times")
ax.legend(loc="lower right", fontsize=8)
show(fig, alt="40 dots scatter widely around a narrow band, though all belong to the same network")

# %%
spread = 100 * (max(draws) - min(draws))
print(f"between the best and the worst draw: ≈ {spread:.1f} points")
assert spread > 4

# %% [markdown]
# The same network is "better" or "worse" by several points, depending on which 300 images somebody picked. Whoever compares by tenths of a point there compares luck.
#
# Must we draw 40 sets to know the luck? No: the textbook interval for $k$ hits among $n$ images, $\hat p = k / n$, is $\hat p \pm 1.96 \sqrt{\hat p (1 - \hat p) / n}$. (The root is the usual size of the luck, the standard error; 95 % of a bell curve lie within 1.96 of it.) The package uses Wilson's, which also holds near 0 and 100 %.

# %%
few = measure.accuracy(measure.Predictions(predictions.logits[:300], predictions.labels[:300]))
half_width = 1.96 * np.sqrt(few.value * (1 - few.value) / 300)
print(f"300 images: plus or minus ≈ {100 * half_width:.1f} points (textbook)")
print(f"Wilson: from ≈ {100 * few.low:.1f} to ≈ {100 * few.high:.1f} %")
assert abs((few.high - few.low) / 2 - half_width) < 0.003
reveal(guess_half_width, 100 * half_width, what="half the width at 300 images", unit="points")

# %% [markdown]
# ## 7. Two models, the same images
#
# Here is a second network, plain convolutions without shortcuts. Which one is better?

# %%
rival = checkpoints.load("vgg")
theirs = measure.predict(rival, splits.test.batches())
for name, answers in (("resnet", predictions), ("vgg", theirs)):
    estimate = measure.accuracy(answers)
    print(f"{name:<7} ≈ {100 * estimate.value:.1f}, from ≈ {100 * estimate.low:.1f} to ≈ {100 * estimate.high:.1f} %")

# %% [markdown]
# Both models saw the same images, and that is worth much: only those on which they *disagree* say something about the difference. If the models were equally good, each disagreement would be the toss of a coin. By hand: they disagree nine times, and one of them wins eight. How often do nine coins fall 8 to 1, or even 9 to 0, to either side?

# %%
ways = 2 * (9 + 1)  # nine ways to 8 to 1, one way to 9 to 0, for either side
print(f"{ways} of {2**9} ways: {ways / 2**9:.3f}")

# %% [markdown]
# That is McNemar's test, and the share is its *p-value*. Below 0.05 one usually says that the difference is no accident. Now our two networks.

# %%
ours, their = predictions.correct, theirs.correct
counts = [
    [int((ours & their).sum()), int((ours & ~their).sum())],
    [int((~ours & their).sum()), int((~ours & ~their).sum())],
]
disagree = counts[0][1] + counts[1][0]
print(f"only resnet right: ≈ {counts[0][1]}, only vgg right: ≈ {counts[1][0]}")
paired = measure.mcnemar(ours, their)
print(f"vgg minus resnet ≈ {100 * paired.difference.value:.1f} points, p ≈ {paired.p_value:.2g}")
assert abs(paired.difference.value - (counts[1][0] - counts[0][1]) / len(ours)) < 1e-9
assert disagree < 0.3 * len(ours)

# %% [markdown]
# ### Trap: a test set that cannot see the difference
#
# The same question with only 300 images, 200 times over, then with 1,000 and 3,000. How often is p below 0.05, as it is with all 4,000?


# %% tags=["trap"]
def noticed(count, repeats=200):
    generator = torch.Generator().manual_seed(1)
    hits = 0
    for _ in range(repeats):
        chosen = torch.randperm(len(ours), generator=generator)[:count]
        hits += measure.mcnemar(ours[chosen], their[chosen]).p_value < 0.05
    return hits / repeats


power = {count: noticed(count) for count in (300, 1000, 3000)}
for count, share in power.items():
    print(f"{count:>5} images: the difference is seen in ≈ {100 * share:.0f} % of the tries")
assert power[300] < power[3000]

# %% [markdown]
# This share is called *power*. A test without power says "no significant difference" about almost everything. That sentence is often sold as "no loss".

# %% [markdown]
# ## 8. One table, one figure
#
# Every lesson ends like this: one call that measures everything on the same images, the models timed in turns (A, B, A, B, so that a busy moment hits both). `separable` splits each convolution into two cheap ones, `mlp` has none at all. *Agreement*: on how many images does a model answer as the first one does? *Look at:* `separable` does about a third of the work of `resnet`. Is it three times as fast? (In the figure the best place is top left, with a small marker.)

# %%
names = ["resnet", "vgg", "separable", "mlp"]
candidates = {name: checkpoints.load(name) for name in names}
comparison = measure.compare(candidates, splits.test)
comparison

# %% tags=["nbval-ignore-output"]
shown = comparison.table.assign(
    latency_ms=1000 * comparison.table.latency_s, p90_ms=1000 * comparison.table.latency_p90_s
)
table(shown[["size_bytes", "macs", "latency_ms", "p90_ms", "speedup", "accuracy"]], digits=3)
less_work = comparison.table.macs["resnet"] / comparison.table.macs["separable"]
print(
    f"separable against resnet: {less_work:.1f} times fewer MACs, {comparison.table.speedup['separable']:.2f} times as fast"
)

# %% tags=["slide"]
ax = comparison.plot()
show(ax, alt="Four networks by size and accuracy, each with an error bar; the area of a marker is its latency")
rows = comparison.table
assert rows.accuracy["mlp"] < rows.accuracy["resnet"] - 0.1
assert rows.macs["resnet"] > 2.5 * rows.macs["separable"]
assert rows.size_bytes["separable"] < rows.size_bytes["mlp"] * 1.01

# %% tags=["headline", "slide"]
print(
    f"baseline: {rows.size_bytes['resnet']:,} bytes, {rows.macs['resnet'] / 1e6:.1f} million MACs, "
    f"accuracy ≈ {100 * rows.accuracy['resnet']:.1f} %"
)

# %% [markdown]
# It is not, and often it is even slower: its layers do little for every byte they fetch, and at batch 1 the fixed cost of calling a layer weighs more (lesson 09). And `mlp` has about as many bytes as `separable` and a small fraction of its MACs, but reads far worse: the cheapest number is never the whole answer. `comparison.to_html` writes all this as one page for a colleague.

# %% [markdown]
# ## 9. The same with the tools that others use
#
# None of these numbers needs our package: `torch.utils.benchmark` has the time, `FlopCounterMode` the work (of this network it misses nothing), scikit-learn F1.

# %% tags=["nbval-ignore-output"]
timer = Timer("baseline(image)", globals={"baseline": baseline, "image": image}, num_threads=1)
with torch.inference_mode():
    theirs_ms = 1000 * timer.blocked_autorange(min_run_time=0.5).median
print(f"torch.utils.benchmark: {theirs_ms:.2f} ms, ours: {1000 * latency.median_s:.2f} ms")

# %%
with FlopCounterMode(display=False) as counter, torch.no_grad():
    baseline(image)
assert counter.get_total_flops() == measure.count_macs(baseline, image).flops
oracle = f1_score(predictions.labels, predictions.predicted, average="macro")
assert abs(oracle - measure.macro_f1(predictions).value) < 1e-6
print("the same MACs as torch counts, the same F1 as scikit-learn")

# %% [markdown]
# ## 10. What can this machine do?
#
# Some savings exist only where the processor has the instructions. `compresslab doctor`, or this line, says what yours has.

# %% tags=["nbval-ignore-output"]
print(report(examine()))

# %% [markdown]
# ## The map of techniques
#
# ![Six boxes: quantize, prune, distil, factorize, share weights, design; below them a bar that says measure](figures/techniques.svg)
#
# Two tables that circulate widely, with the lessons that *measure* their claims. The ranges are what people say, not what we found.
#
# <details><summary>By constraint: what is short?</summary>
#
# | what is short | technique | the usual claim | effort | measured in |
# |---|---|---|---|---|
# | memory | 8-bit post-training quantization | 2-4 times smaller, 0.1-1 % worse | low | [lesson 02](02_post_training_quantization.ipynb) |
# | memory, very | 4-bit weights (GPTQ, AWQ) | 4-8 times smaller, 1-5 % worse | medium | [lesson 04](04_language_models.ipynb) |
# | latency | structured pruning | 1.5-3 times faster, 1-5 % worse | medium | [lesson 06](06_structured_pruning.ipynb) |
# | latency and memory | distillation | 2-10 times smaller, 1-10 % worse | high | [lesson 08](08_distillation.ipynb) |
# | latency on given hardware | quantization-aware training, the target's runtime | 2-4 times, 0.5-2 % worse | high | [lessons 03](03_quantization_aware_training.ipynb) and [11](11_export.ipynb) |
# | everything | prune, distil, quantize | 10-50 times smaller, 3-15 % worse | very high | [lesson 12](12_capstone.ipynb) |
#
# </details>
#
# <details><summary>By pruning: what do you want?</summary>
#
# | you want | remove | faster without special kernels? | measured in |
# |---|---|---|---|
# | a smaller file | single weights | no | [lesson 05](05_pruning.ipynb) |
# | real speed | channels, heads, layers | yes | [lesson 06](06_structured_pruning.ipynb) |
# | thinner attention | heads | yes | [lesson 06](06_structured_pruning.ipynb) |
# | thinner convolutions | filters | yes | [lesson 06](06_structured_pruning.ipynb) |
# | speed on GPUs with 2:4 kernels | two of every four weights | no | [lesson 05](05_pruning.ipynb) |
# | fewer experts | whole experts | yes | [lesson 10](10_mixture_of_experts.ipynb) |
#
# </details>
#
# Low rank and shared weights ([lesson 09](09_low_rank.ipynb)) fit where a layer is a large matrix; *which* weights may go ([lesson 07](07_importance.ipynb)) and what a number costs ([lesson 01](01_precision_formats.ipynb)) are questions of their own.

# %% [markdown]
# ## Exercises
#
# Fill in a stub, run its cell, read what `check` prints: *not attempted*, *not yet* with the first reason, or *passed*. Hints and solutions (below each exercise) are folded.
#
# ### 00.1 Bytes of a model
# *10 minutes, difficulty 1 of 3.* Write `bytes_of(model)`: the bytes of all parameters **and buffers** of a module, each tensor once, in whatever dtype it is.
#
# <details><summary>Hint 1</summary>A tensor knows how many elements it has (<code>numel()</code>) and how many bytes each takes (<code>element_size()</code>).</details>
# <details><summary>Hint 2</summary>Two names can stand for one tensor. <code>model.parameters()</code> gives a shared one only once; <code>model.state_dict()</code> gives it under both names.</details>


# %% tags=["exercise"]
def bytes_of(model):
    return None  # replace this line


check("00.1", bytes_of)


# %% jupyter={"source_hidden": true} tags=["solution"]
def bytes_of_solution(model):
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


check("00.1", bytes_of_solution, record=False)

# %% [markdown]
# ### 00.2 MACs of a convolution
# *10 minutes, difficulty 1 of 3.* Write `conv_macs(in_channels, out_channels, kernel, height, width, groups)` for one image. `height` and `width` are those of the *output*; the window is `kernel` x `kernel`; with `groups`, each output channel sees only `in_channels / groups` inputs. Biases do not count.
#
# <details><summary>Hint</summary>How many outputs are there, and how many weights does each of them use?</details>


# %% tags=["exercise"]
def conv_macs(in_channels, out_channels, kernel, height, width, groups):
    return None  # replace this line


check("00.2", conv_macs)


# %% jupyter={"source_hidden": true} tags=["solution"]
def conv_macs_solution(in_channels, out_channels, kernel, height, width, groups):
    outputs = out_channels * height * width
    return outputs * (in_channels // groups) * kernel * kernel


check("00.2", conv_macs_solution, record=False)

# %% [markdown]
# ### 00.3 How many test images?
# *10 minutes, difficulty 2 of 3.* Write `images_needed(accuracy, half_width)`: how many images give a 95 % interval of `accuracy` plus or minus `half_width` (both as fractions), by the textbook formula of section 6.
#
# <details><summary>Hint</summary>Solve <code>half_width = 1.96 * sqrt(p * (1 - p) / n)</code> for n.</details>


# %% tags=["exercise"]
def images_needed(accuracy, half_width):
    return None  # replace this line


check("00.3", images_needed)


# %% jupyter={"source_hidden": true} tags=["solution"]
def images_needed_solution(accuracy, half_width):
    return int(np.ceil(accuracy * (1 - accuracy) * (1.96 / half_width) ** 2))


check("00.3", images_needed_solution, record=False)

# %% [markdown]
# ### 00.4 Under the roof
# *10 minutes, difficulty 2 of 3.* Write `attainable(intensity, peak, bandwidth)`: the best speed in FLOP/s of work with this intensity (FLOP for each byte).
#
# <details><summary>Hint</summary>Two limits hold at once. Which one is felt?</details>


# %% tags=["exercise"]
def attainable(intensity, peak, bandwidth):
    return None  # replace this line


check("00.4", attainable)


# %% jupyter={"source_hidden": true} tags=["solution"]
def attainable_solution(intensity, peak, bandwidth):
    return min(peak, intensity * bandwidth)


check("00.4", attainable_solution, record=False)

# %% [markdown]
# ### 00.5 Find the bug: a timer
# *15 minutes, difficulty 3 of 3.* This timer stands in many repositories. It has three faults; name them, then write `median_latency(run, clock, warmup, repeats)` without them. `run()` does the work, `clock()` tells the time in seconds.
#
# ```python
# start = time.time()
# for _ in range(repeats):
#     model(x)
# print("latency:", (time.time() - start) / repeats)
# ```
#
# <details><summary>Hint 1</summary>Which call is the slowest, and is it counted? What does one hiccup do to the result?</details>
# <details><summary>Hint 2</summary>Time each call on its own, drop the first <code>warmup</code>, take <code>numpy.median</code>.</details>
# <details><summary>The three faults</summary>The cold calls are counted; the mean lets one slow call rule; <code>time.time()</code> may jump when the clock is set (use <code>time.perf_counter()</code>). On a GPU there is a fourth: the call returns before the work is done.</details>


# %% tags=["exercise"]
def median_latency(run, clock, warmup, repeats):
    return None  # replace this line


check("00.5", median_latency)


# %% jupyter={"source_hidden": true} tags=["solution"]
def median_latency_solution(run, clock, warmup, repeats):
    seconds = []
    for _ in range(warmup + repeats):
        begin = clock()
        run()
        seconds.append(clock() - begin)
    return float(np.median(seconds[warmup:]))


check("00.5", median_latency_solution, record=False)

# %% [markdown]
# ## Quiz
#
# Tab and the space bar are enough. Without a kernel you see the questions as text.

# %% tags=["quiz"]
quiz("00")

# %% [markdown]
# ## Summary
#
# - A **size** is the length of a file that was really written. Views, masks and second files surprise.
# - **MACs** count work; a counter that shows zero has not seen the layer.
# - **Latency** is a median with a 90th percentile, after a warm-up, at a stated batch size and thread count, timed in turns with what it is compared with.
# - The layers that hold the bytes and those that take the time are different ones; the **roofline** says whether bytes or operations are worth saving.
# - An **accuracy** has an interval, and two models are compared on the images where they disagree.
#
# ## Sources
#
# - Williams, Waterman, Patterson, *Roofline: an insightful visual performance model for multicore architectures*, Communications of the ACM 52 (4), 2009, doi:10.1145/1498765.1498785
# - McNemar, *Note on the sampling error of the difference between correlated proportions or percentages*, Psychometrika 12, 1947, doi:10.1007/BF02295996
# - Wilson, *Probable inference, the law of succession, and statistical inference*, Journal of the American Statistical Association 22, 1927, doi:10.1080/01621459.1927.10502953
# - Dietterich, *Approximate statistical tests for comparing supervised classification learning algorithms*, Neural Computation 10 (7), 1998, doi:10.1162/089976698300017197
# - He, Zhang, Ren, Sun, *Deep residual learning for image recognition*, 2015, arXiv:1512.03385
#
# ## Next
#
# Lesson 01 asks what a single number costs, and what it loses when it gets fewer bits.

# %%
lesson_done = True
