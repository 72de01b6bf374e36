# %% [markdown]
# # 12 Capstone: how far can one model go with everything at once?
#
# **Time:** 90 minutes with the exercises, 50 without. **Runs in:** one to two minutes, without a network or a GPU.
#
# **Before you start** you should have done lessons 02, 03, 06, 08 and 11: grids, training with rounding, channels, teachers, integer graphs. The files are those of lesson 09.
#
# **Afterwards you can**
# - turn a customer's sentence into a budget, and a budget into a plan, before anything runs;
# - run a pipeline that measures after every step, stores, resumes, and undoes what costs too much;
# - say which step gave what, whether the order matters, and which of forty candidates are worth a discussion;
# - hand over a report, and know where to look when it goes wrong.
#
# Eleven lessons made networks smaller in one way each. Here all of them work on the same one, for somebody who only sees the sum.

# %% tags=["setup"]
import contextlib
import copy
import dataclasses
import itertools
import lzma
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import nn
from torch.nn.utils import parametrize

from compresslab import distillation as d
from compresslab import export as e
from compresslab import factorization as f
from compresslab import measure
from compresslab import pruning as p
from compresslab import quantization as q
from compresslab.course import check, quiz, reveal, show, start
from compresslab.course.advisor import advise, advisor
from compresslab.course.calculator import calculate, calculator
from compresslab.measure.page import software
from compresslab.workbench import checkpoints, data, glyphs, models
from compresslab.workbench.files import load_tensors, save_tensors
from compresslab.workbench.pipeline import Step, run_steps
from compresslab.workbench.sweeps import sweep
from compresslab.workbench.train import fit, jitter

_ = start(threads=1)

# %% [markdown]
# ## Three guesses, before anything is measured

# %%
guess_smaller = None  # how many times smaller is the file in the end, with at most 1 point lost on validation?
guess_order = None  # points: the best of the six orders of pruning, distilling and rounding, less the worst?
guess_front = None  # of 40 candidates, how many does no other one beat in both bytes and accuracy?

# %% [markdown]
# ## 1. The order
#
# *"It reads letters from a camera, on one core. Today's file is too large for our update channel: 20 times smaller, please. It should answer 32 pictures in a fifth of the time. And nobody may notice: one point of accuracy at most."*
#
# Three numbers: bytes, milliseconds, points. Each needs a rule for how it is measured, written down **now**: bytes of the file that is sent; the time for 32 images in ONNX Runtime on one thread, in turns with the original (the 10th percentile: on a computer that does other things as well, the median measures those, too); points on test images, which stay closed until the end. All choices are made on validation.

# %%
DATA = "glyphs"  # or "cifar10": nothing else has to be changed
BUDGET = {"smaller": 20, "faster": 5, "points": 1.0}
splits = data.load(DATA)
if DATA == "glyphs":
    network = checkpoints.load("resnet")
else:  # no trained one in the course: make it
    fresh = models.build("resnet", in_channels=splits.input_shape[0], classes=splits.num_classes, stride=2)
    network = fit(fresh, splits.train, epochs=20, augment=jitter).model
images, pair = splits.val.inputs(), splits.val.take(2).inputs()
holds = lambda claim: claim or DATA != "glyphs"  # noqa: E731 (what we claim, we measured on glyphs)

# %% [markdown]
# What does the course advise? Each line has the measured evidence of a lesson, and what the technique will not do. Change the menus.

# %%
advisor(**{name: BUDGET[name] for name in ("smaller", "faster")}, data="all", time="hours", architecture="cnn")

# %%
found = advise(smaller=BUDGET["smaller"], faster=BUDGET["faster"], data="all", time="hours", architecture="cnn")
print("by itself within the budget:", [each.technique for each in found if each.reaches] or "nothing")
assert not any(each.reaches for each in found)

# %% [markdown]
# No single one: what makes the file small enough makes nothing faster. So: combine, structure first, then training, then bits. (The advisor leaves out distillation as a method of its own, which takes days. As the training after a cut it takes minutes, and we use it.) How much of each? That is arithmetic. 20 times smaller than 32 bits is $32/20 = 1.6$ bits for each weight that there is *now*. If a share $k$ of the weights stays, each may have $1.6/k$ bits:

# %%
for kept in (1.0, 0.5, 0.4, 0.25):
    print(f"{kept:.0%} of the weights stay: {32 / BUDGET['smaller'] / kept:.1f} bits for each")
layer = {"out_features": 64, "in_features": 576, "batch": 512}  # the last convolution: 512 = 32 images of 4 x 4
for bits, integers in ((32, False), (4, False), (8, True)):
    cost = calculate(**layer, bits=bits, integer_compute=integers)
    print(f"{bits:>2} bits: {cost.weight_bytes:,} bytes, at best {1e6 * cost.bound_s:.0f} µs, limited by {cost.limit}")

# %% [markdown]
# So 4 bits will do once 60 % of the weights are gone. The calculator adds a warning. At 32 images the layer is limited by arithmetic, not by memory: 4-bit weights alone make it no faster, 8-bit *arithmetic* at most 2 times on that device. The rest of the 5 must come from doing less. (The device is one from a data sheet; the widget has others.)

# %%
calculator(**layer, bits=8, integer_compute=True)

# %% [markdown]
# ## 2. Where do the bytes and the milliseconds lie?
#
# Before cutting anything: who has what? *Look at:* the two columns. Do they tell the same story?

# %%
folder = Path(tempfile.mkdtemp())
fp32 = e.OnnxModule(e.export_onnx(network, pair, folder / "FP32.onnx"))
blocks = {name: getattr(network, name) for name in ("conv1", "layer1", "layer2", "layer3", "linear")}
counted = measure.count_macs(network, pair[:1]).by_module
weights, macs = sum(x.numel() for x in network.parameters()), measure.count_macs(network, pair[:1]).total
for name, part in blocks.items():
    share = counted[name] / macs
    print(
        f"{name:<7} {sum(x.numel() for x in part.parameters()) / weights:4.0%} of the weights, {share:4.0%} of the MACs"
    )

# %% [markdown]
# The last stage has the weights. The work is spread evenly, since the picture shrinks as the channels grow. So bytes are won at the end, and milliseconds everywhere.
#
# ### Trap: every layer in 8 bits
#
# The network in integers, as in lesson 11; once more with its very first layer left in floats; and once without stage 1, whose two blocks keep shape and size of what they get, so that the network runs without them (and is useless). *Look at:* which is faster.


# %% tags=["trap"]
def integers(model, name, **options):
    """As a static 8-bit network, and as a session."""
    made = q.quantize_static(model, splits.train.take(256).batches(64), **options)
    return made, e.OnnxModule(e.export_onnx(made, pair, folder / f"{name}.onnx"))


_, every = integers(network, "every")
_, stem_in_floats = integers(network, "stem", skip=["conv1"])
shorter = copy.deepcopy(network)
shorter.layer1 = nn.Identity()
_, no_first_stage = integers(shorter, "shorter", skip=["conv1"])

# %% tags=["nbval-ignore-output"]
runs = {"FP32": fp32, "all layers INT8": every, "first layer FP32": stem_in_floats, "no stage 1": no_first_stage}
timed = measure.compare_latency(runs, (images[:32],), reference="FP32", rounds=20, min_time_s=0.05)
for name, one in timed.latency.items():
    print(f"{name:<16} {1e3 * one.p10_s:.2f} ms, {timed.latency['FP32'].p10_s / one.p10_s:.1f} times as fast")

# %% [markdown]
# The first layer has one input channel. An integer kernel that wants to multiply rows of bytes finds rows of length nine; the float kernel has a special case for it. So all 8 bits were slower than all but one. Remember lesson 11: count the operators, then *time* them.
#
# And stage 1, with 5 % of the weights and 36 % of the MACs, takes nearly half of the integer time: it has 16 channels, and the kernels are made for more. Narrower layers do not help there, since they compute 16 at a time anyway. Fewer *layers* do.
#
# ## 3. The pipeline
#
# A step is a plain function: a model in, a new model out. `run_steps` measures after each, stores what it can, and undoes a step after which a figure lies below its floor. What shall be measured? The three numbers of the budget, the same way for every model:

# %%
percent = lambda model, split=splits.val: 100 * measure.accuracy(measure.predict(model, split.batches())).value  # noqa: E731
seen = {}  # latency depends on shapes, not on values: measured once for each kind of network


def figures(model):
    """Bytes of the coded file, milliseconds for 32 images, accuracy in percent."""
    if str(model) not in seen:
        run = e.OnnxModule(e.export_onnx(model, pair, folder / f"{len(seen)}.onnx"))
        timed = measure.compare_latency({"FP32": fp32, "it": run}, (images[:32],), rounds=15, min_time_s=0.05)
        seen[str(model)] = 1e3 * timed.latency["it"].p10_s
    coded = f.save_compressed(model.state_dict(), folder / "model.clhuf")
    return {"bytes": coded.nbytes, "ms": seen[str(model)], "accuracy": percent(model)}


# %% [markdown]
# **Cut.** All of stage 1 goes, the second block of stage 3, and half of the inner channels of the first (a multiple of 16). What stage 1 did, the stages behind it have to learn.


# %%
def cut(model):
    shorter = p.remove_blocks(model, "layer3", range(1, len(model.layer3)))
    shorter.layer1 = nn.Identity()
    return p.prune_channels(shorter, pair, ratio={"layer3.0.conv1": 0.5}, round_to=16).model.eval()


# %% [markdown]
# **Distil.** The original teaches (lesson 08), in ONNX Runtime, where it is several times faster than in PyTorch, and a teacher needs no gradient: lesson 11 pays for itself. It also needs no labels: a camera delivers pictures for nothing, and only labels cost money. Ours are drawn while they are needed. (Other data sets have what they have, and go through it again and again.)


# %%
@dataclasses.dataclass
class Drawn:
    """Batches of new glyphs, of which no label is used."""

    count: int
    seed: int

    def __len__(self):
        return self.count // 64

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed)
        for new in (glyphs.render(6400, generator=generator) for _ in range(self.count // 6400)):
            some = dataclasses.replace(splits.train, images=new.images, labels=new.labels, groups=new.groups)
            yield from some.batches(64)


# %%
def distil(model, images, epochs=1, lr=1e-2, seed=0, **teaching):
    options = {"epochs": epochs, "batch_size": 64, "lr": lr, "weight_decay": 0.0, "augment": jitter, "seed": seed}
    return fit(model, images, loss_fn=d.Distillation(fp32, **teaching), **options).model


def without_labels(model, count, seed, lr=2e-2):
    glyphs_or_again = Drawn(count, seed) if DATA == "glyphs" else splits.train
    epochs = 1 if DATA == "glyphs" else -(-count // len(splits.train))
    return distil(model, glyphs_or_again, epochs, lr, soft_weight=1.0, temperature=2.0)


# %% [markdown]
# **4 bits.** Rounding with training (lesson 03), one scale for each output channel. Grids that end at each channel's largest weight and plain straight-through rounding, because the next step will lay the same grids. The first and the last layer get 4 bits as well; the accuracy will say whether they bear it. The result is an ordinary network whose weights lie on grids of 15 levels.
#
# **Integers.** The static network of section 2. It finds the same grids again, so it stores the same 4-bit levels. Activations get 8 bits.


# %%
def with_rounding(model, bits):
    return q.prepare_qat(
        model, weight_bits=bits, activation_bits=None, method="ste", first_last_bits=None, fold=False
    ).model


# %%
def rounded(model):
    """The rounded weights in place of those beneath: an ordinary network again."""
    for part in model.modules():
        if parametrize.is_parametrized(part):
            parametrize.remove_parametrizations(part, "weight", leave_parametrized=True)
    return model


# %%
def four_bits(model):
    return rounded(without_labels(with_rounding(model, 4), 32_000, seed=2, lr=3e-3))


def three_bits(model):
    """The tempting one: another bit less, and no training."""
    return rounded(with_rounding(model, 3))


def to_integers(model):
    batches = splits.train.take(256).batches(64)
    return q.quantize_static(model, batches, weight_bits=4, refine=False, skip=["conv1"])


# %% [markdown]
# The floor is one point below the original. `cut` alone is far below it, and that is planned: it is judged together with the training that follows (`judged=False`). A first try, with seconds of training:

# %%
floor = {"accuracy": percent(network) - BUDGET["points"]}
first_try = {"cut": Step(cut, judged=False), "distil": lambda model: without_labels(model, 32_000, seed=1)}
tried = run_steps(network, first_try, figures, floor=floor)


# %%
def tell(records):
    for record in records:
        got = record.figures
        line = f"{record.step:<8} ≈ {got['bytes']:>7,} bytes   ≈ {got['ms']:.2f} ms   ≈ {got['accuracy']:.1f} %"
        print(line + ("" if record.kept else "   undone"))


tell(tried.records)
assert holds(not any(record.kept for record in tried.records[1:]))

# %% [markdown]
# Below the floor, so both steps were undone. Was the cut too bold? Or are 32,000 pictures too few to learn two missing blocks from? "A good teacher is patient" (Beyer and others, 2022; lesson 08). So: the same cell, the same options, 16 times as many pictures. That takes about three minutes on one core, and so the course has the result in a file, which this cell wrote. Say `AGAIN = True`, and it does so again.

# %%
AGAIN = False
student_file = checkpoints.folder() / "lesson12" / "student.safetensors"


def patiently(model):
    if DATA == "glyphs" and not AGAIN:
        student = copy.deepcopy(model)
        student.load_state_dict(load_tensors(student_file)[0])
        return student
    student = without_labels(model, 512_000, seed=1)
    if DATA == "glyphs":
        with contextlib.suppress(OSError):  # a copy that a class shares may not be written
            save_tensors(student_file, student.state_dict(), {"made by": "lesson 12, AGAIN = True"})
    return student


# %%
steps = {"cut": Step(cut, judged=False), "distil": patiently, "3 bits": three_bits}
steps |= {"4 bits": four_bits, "integers": to_integers}
run = run_steps(network, steps, figures, floor=floor, folder=folder / "steps")

# %% tags=["slide"]
tell(run.records)
first, last = run.records[0].figures, run.records[-1].figures
reveal(guess_smaller, first["bytes"] / last["bytes"], what="times smaller, with at most a point lost on validation")
assert holds([record.step for record in run.records if not record.kept] == ["3 bits"])
assert holds(first["bytes"] / last["bytes"] > BUDGET["smaller"])
cut_bytes = run.records[1].figures["bytes"]
assert holds(2 * first["bytes"] / cut_bytes < cut_bytes / last["bytes"])
assert holds(run.records[2].figures["accuracy"] > tried.records[2].figures["accuracy"] + 1)

# %% [markdown]
# Same cut, more pictures, and the floor holds: it was not the cut. The tempting step (3 bits, no training) broke the floor, was undone, and the next one went on from the last good model. Does the pipeline resume? The same call again. *Look at:* what was read from the folder.

# %%
again = run_steps(network, steps, figures, floor=floor, folder=folder / "steps")
for before, after in zip(run.records, again.records, strict=True):
    print(f"{after.step:<8} {'read from the folder' if after.stored else 'run again' if after.seconds else 'given'}")
same = [one.figures["accuracy"] == two.figures["accuracy"] for one, two in zip(run.records, again.records, strict=True)]
print("the same accuracies:", all(same))
assert all(same) and {one.step for one in again.records if one.stored} == {"distil", "3 bits", "4 bits"}

# %% tags=["nbval-ignore-output"]
spent = [sum(one.seconds for one in found.records if not one.stored) for found in (run, again)]
print(f"seconds in steps: {spent[0]:.0f}, and when resumed {spent[1]:.0f}")

# %% [markdown]
# What was trained is read. What makes another network (cutting, converting) takes moments and is done again. Other weights before a step give another key, so nothing stale is used.
#
# ## 4. What ships, and does it meet the order?
#
# The file that is sent holds every tensor of the integer network, coded with Huffman's words (lesson 09). On the device the levels are read back and the ONNX file is made from them; the *program* must be there already. Who wants a file that needs nothing of ours sends the ONNX file, packed with a standard tool (LZMA). All are measured.

# %%
coded = f.save_compressed(run.model.state_dict(), folder / "shipped.clhuf")
back = f.load_compressed(coded.path)
exact = all(torch.equal(back[name], tensor) for name, tensor in run.model.state_dict().items())
onnx_file = e.export_onnx(run.model, pair, folder / "shipped.onnx")
packed = len(lzma.compress(onnx_file.read_bytes()))
original = first["bytes"]
print(f"read back to the same integers: {exact}; original ≈ {original:,} bytes")
for name, size in (("coded", coded.nbytes), ("ONNX", onnx_file.stat().st_size), ("ONNX, packed", packed)):
    print(f"{name:<13} ≈ {size:>7,} bytes, ≈ {original / size:.1f} times smaller")
assert exact and holds(original / coded.nbytes > 20 and original / packed > 18)

# %% [markdown]
# The ONNX file stores a 4-bit level in a byte, since the integer kernels for convolutions want bytes. So in *memory* it is less of a saving than on the wire. Now the test, with the runtime's own answers.
#
# On which images? A confession: this lesson has had an earlier version, and while it was written the test split of the course was looked at three times; after the second time the network was changed. Such a split is a second validation split. So the judges are 10,000 new glyphs, of a seed that nothing else uses, drawn when everything above was fixed. (Other new glyphs had helped to choose the cut and the rate: validation, only more of it.)

# %%
shipped = e.OnnxModule(onnx_file)
judges = data.load("glyphs", train=62, val=62, test=10_000, seed=2027).test if DATA == "glyphs" else splits.test
answers = {name: measure.predict(one, judges.batches()) for name, one in (("FP32", fp32), ("shipped", shipped))}
change = measure.paired_bootstrap(answers["FP32"].correct.double(), answers["shipped"].correct.double()).difference
low, points, high = (100 * value for value in (change.low, change.value, change.high))
share = {name: 100 * measure.accuracy(found).value for name, found in answers.items()}
print(f"test: FP32 ≈ {share['FP32']:.2f} %, shipped ≈ {share['shipped']:.2f} %: ≈ {points:+.2f} points")
print(f"95 % interval: ≈ {low:+.2f} to ≈ {high:+.2f}; on validation ≈ {last['accuracy'] - first['accuracy']:+.2f}")
assert holds(-BUDGET["points"] < points < 0)

# %% tags=["nbval-ignore-output"]
timed = measure.compare_latency({"FP32": fp32, "shipped": shipped}, (images[:32],), rounds=40, min_time_s=0.05)
best = {name: one.p10_s for name, one in timed.latency.items()}
faster = best["FP32"] / best["shipped"]
print(
    f"32 images: FP32 {1e3 * best['FP32']:.2f} ms, shipped {1e3 * best['shipped']:.2f} ms: {faster:.1f} times as fast"
)

# %% [markdown]
# All three are met: bytes, milliseconds, points. The interval says how sure that is: 10,000 images cannot quite exclude that the loss is a little more than the point that was asked. (One seed: this is a delivery, not a comparison. And the time is this computer's; another has other kernels.)
#
# The earlier version had the same tools and missed two of three. It kept stage 1, because cutting it cost too much; it trained for a minute, and took what cost little after a minute. What changed was the order of the questions. First: which *structure* is fast enough in the runtime? That can be timed before anything is trained, since time does not depend on the values. Then: how much teaching does it need? Pictures without labels were there all the time.
#
# Is that fair to the original? It learned from 16,000 labelled images; taught as patiently, it might become better itself. The customer asked for the same answers in a smaller file, and has them.
#
# ## 5. What each step gave, and what it cost

# %% tags=["slide"]
undone = [record.step for record in run.records if not record.kept]
fig_steps, axes = plt.subplots(3, 1, figsize=(8, 7.5), layout="constrained")
labels = {"bytes": "kB", "ms": "ms for 32 images", "accuracy": "accuracy, %"}
for ax, (key, label) in zip(axes, labels.items(), strict=True):
    values = {one.step: one.figures[key] / (1000 if key == "bytes" else 1) for one in run.records}
    measure.plot_waterfall(values, label=label, undone=undone, ax=ax)
show(
    fig_steps,
    alt="Cutting takes most of the time and bytes, integers the rest; accuracy falls with the cut and is won back",
)

# %% [markdown]
# (Blue is less than before, orange more, hatched was undone; the number is what is left after the step.) Read it column by column. *Cut* gives the larger part of the bytes and of the time, and costs all of the accuracy. *Distil* gives neither a byte nor a millisecond, and everything else would be worthless without it. *4 bits* saves bytes, because the coder finds few different values in each channel, and no time: they are still floats. *Integers* halves the time that is left and takes the rest of the bytes, at no cost that validation can see. A step must not be judged by its own bar. That is what the floor after a *group* of steps is for.
#
# And mind what bars hide: they add, but factors multiply. In bytes the first bar is the tallest by far, and yet the factor of the cut is less than half of that of the two steps with bits, which start from what it left.
#
# ## 6. Does the order matter?
#
# Six orders of **P**runing, **D**istilling and **Q**uantizing. The cost is equal: 2,000 images once, in one D; P leaves half of the MACs; Q puts weights on 3 bits, few enough to hurt. After a Q every training keeps the grid: it rounds in each step, and moves the floats *beneath* (lesson 03). A cut takes the weights as they are: where rounding came before it, the floats beneath are gone. What are they worth? One weight, on a grid with steps of 0.25, which the training wants to move up:

# %%
for what, beneath in (("kept", 0.37), ("gone", 0.25)):
    steps_taken = 0
    while round(beneath / 0.25) * 0.25 == 0.25:
        beneath, steps_taken = beneath + 0.01, steps_taken + 1
    print(f"what lay beneath is {what}: steps of 0.01 until 0.25 becomes 0.5: {steps_taken}")

# %% [markdown]
# Now the six orders, three seeds each. In the figure, squares are those that cut before they train.


# %%
def one_order(job):  # accuracy on validation after the three steps in the order of the letters
    (order, seed), model, grid = job, network, False
    for letter in order:
        if letter == "P":
            model = p.prune_to(rounded(model), pair, target=0.5, scope="global").model
        elif letter == "D":
            held = any(map(parametrize.is_parametrized, model.modules()))
            model = with_rounding(model, 3) if grid and not held else model
            model = distil(model, splits.train.take(2000), seed=seed)
        else:
            model, grid = with_rounding(model, 3), True
    return percent(rounded(model).eval())


# %%
orders = ["".join(letters) for letters in itertools.permutations("PDQ")]
jobs = list(itertools.product(orders, range(3)))
by_order = {order: [] for order in orders}
for (order, _), value in zip(jobs, sweep(one_order, jobs), strict=True):
    by_order[order].append(value)
ranked = sorted(orders, key=lambda order: sum(by_order[order]))
for order in reversed(ranked):
    print(f"{order}: " + ", ".join(f"≈ {value:.1f} %" for value in by_order[order]))

# %% tags=["slide"]
fig, ax = plt.subplots(figsize=(6.5, 2.8))
for place, order in enumerate(ranked):
    marker = "os"[order.index("P") < order.index("D")]
    ax.plot(by_order[order], [place] * 3, marker, mfc="none", ms=8)
ax.plot([], [], "ks", mfc="none", label="the cut before the training")
ax.plot([], [], "ko", mfc="none", label="the cut after it")
ax.set(yticks=range(6), yticklabels=ranked, xlabel="accuracy on validation, %", ylabel="order", title="Six orders")
ax.legend(fontsize=8)
show(fig, alt="The three orders that cut before they train, squares, lie far to the right; the others near zero")

# %%
means = {order: sum(values) / len(values) for order, values in by_order.items()}
reveal(guess_order, max(means.values()) - min(means.values()), what="best order less the worst", unit="points")
after = [value for order in orders if order.index("P") < order.index("D") for value in by_order[order]]
before = [value for order in orders if order.index("P") > order.index("D") for value in by_order[order]]
assert holds(min(after) > max(before) + 20)
assert holds(min(by_order["PQD"]) > max(by_order["PDQ"]) > min(by_order["PDQ"]) > max(by_order["QPD"]))

# %% [markdown]
# Two things decide. First, whether the training comes *after the cut*: what no training follows is not repaired, and a cut that is not repaired leaves nothing. Second, whether it comes after the *rounding* as well: PQD trains the network that will run, PDQ one that is rounded plainly afterwards. (With four times the images the distance is a little smaller: `orders_with_more_images` in `benchmarks/results.md`.)
#
# And QPD, which trains last too? There the rounding came first and the cut took its result: what lies beneath is not the trained weight any more but the rounded one, and what was thrown away does not come back. (Our own first version of this cell lost the floats in PQD as well, and PDQ seemed to win. It contradicted lesson 03, so we looked for the bug.) Structure, then bits with the training in them: the pipeline takes a long D for the cut, then a short one with the rounding in it.
#
# ## 7. Forty candidates
#
# One pipeline is one point. How many channels, how many bits, with or without a repair? A job gets one answer to the first and the last question, and rounds to four widths. `sweep` hands jobs to joblib: on this machine, on all cores by `n_jobs=-1`, or on a cluster by one more line, `with joblib.parallel_config(backend="dask"):` around it. Each is judged on the first 1,000 images of validation. Which of them are worth a discussion? Those that no other one beats, being no larger and no less accurate, and better in one of the two. They are the **Pareto front**.

# %%
judged = splits.val.take(1000)


def candidates(job):
    """Four rows: one network, with its weights rounded to four widths."""
    target, count = job
    small = network if target == 1 else p.prune_to(network, pair, target=target, scope="global").model
    small = distil(small, splits.train.take(count)) if count else small
    rows = []
    for bits in (8, 5, 4, 3):
        made = q.quantize_weights(small, bits=bits, method="mse")
        correct = measure.predict(made.model, judged.batches()).correct
        rows.append({"MACs left": target, "repair": count, "bits": bits, "bytes": made.nbytes, "correct": correct})
    return rows


# %%
tasks = list(itertools.product((1, 0.8, 0.65, 0.5, 0.35), (0, 1500)))
table = pd.DataFrame([row for rows in sweep(candidates, tasks) for row in rows])
table["accuracy"] = [100 * row.float().mean().item() for row in table.correct]
table["kind"] = ["repaired" if count else "as cut" for count in table.repair]
front = measure.pareto_front(table, lower=["bytes"], higher=["accuracy"])
print(len(table), "candidates, on the front ≈", front.sum())
reveal(guess_front, int(front.sum()), what="candidates on the front")
assert len(table) == 40 and holds(5 <= front.sum() <= 25)

# %% tags=["slide"]
ax = measure.plot_pareto(table, "bytes", "accuracy", kind="kind")
ax.plot([last["bytes"]], [last["accuracy"]], "k*", ms=13, label="our pipeline")
ax.set(title="Forty candidates, and our pipeline", ylabel="accuracy, %")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
ax.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:.0f}")
ax.set_xlabel("kB")
show(ax, alt="The front rises from the left to 80 kB and flattens; the star of the pipeline lies far up and left of it")

# %%
for _, row in table[front].sort_values("bytes").iterrows():
    words = f"{row['MACs left']:.0%} of the MACs, {row.bits} bits, {row.repair} images"
    print(f"≈ {row.bytes:>7,} bytes   ≈ {row.accuracy:.1f} %   ({words})")
assert holds((table[front].repair > 0).mean() > 0.5)
assert holds(last["bytes"] < table[table.accuracy > last["accuracy"] - 3].bytes.min() / 2)

# %% [markdown]
# The rest need not be discussed. Which of the front, only the budget can say. (A front on 1,000 images is itself uncertain: half a point up or down is chance.)
#
# Read the front from the right: first bits go, down to 3, which cost nothing at first and then some points, and need no training; then channels, which need it. And look at the star. Our pipeline is far above a front of forty, because it trained many times longer. (And its bytes are those of the coded file; the forty are packed, not coded.) A sweep of cheap candidates compares recipes at *that* cost; which recipe wins at another one, it does not say.
#
# ### Trap: the best of forty, on the images it was chosen by
#
# Somebody has only 100 labelled images, takes the best of the forty on them, and reports *that* accuracy. We do it with each of ten hundreds, and look at the other 900.

# %% tags=["trap"]
correct = torch.stack(list(table.correct)).float()  # (40, 1000)
reported, true = [], []
for hundred in torch.arange(1000).split(100):
    rest = torch.ones(1000, dtype=torch.bool).index_fill(0, hundred, False)
    best_one = correct[:, hundred].mean(1).argmax()
    reported.append(100 * correct[best_one, hundred].mean().item())
    true.append(100 * correct[best_one][rest].mean().item())
print(f"chosen and reported on the same 100: ≈ {sum(reported) / 10:.1f} %; on the other 900: ≈ {sum(true) / 10:.1f} %")
assert sum(reported) > sum(true)

# %% [markdown]
# The best of many is partly the luckiest. Choosing is fine; what was chosen has to be measured on images that had no vote. That is why section 4 opens the test split at the end, for one file.
#
# ## 8. A report for a colleague
#
# Who was not here needs one page: the order, what was delivered, each step, the figure, how it was measured, what was missed. `write_page` puts all of it into one HTML file. *Look at:* what it does not contain.

# %%
verdict = {
    "File": f"{original / coded.nbytes:.1f} times smaller (asked: {BUDGET['smaller']})",
    "Latency, 32 images": f"{faster:.1f} times lower (asked: {BUDGET['faster']})",
    "Accuracy on test": f"{points:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f} (asked: -{BUDGET['points']:.0f})",
}
history = pd.DataFrame([{**one.figures, "kept": one.kept} for one in run.records], index=[r.step for r in run.records])
rules = "Bytes of the coded file; 32 images in ONNX Runtime, one thread, in turns; choices on validation, test once."
parts = ["# The order and the answer", verdict, "# The steps", history.round(2), (fig_steps, "Three waterfalls")]
parts += ["# Conditions", rules, software()]
page = measure.write_page(folder / "report.html", title=f"Compression of a network for {DATA}", parts=parts)

# %%
text = page.read_text(encoding="utf-8")
print(f"one file, ≈ {len(text) / 1000:.0f} kB; scripts: {text.count('<script')}, links: {text.count('://')}")
print("figures inside:", text.count("data:image/png;base64"), "- headings:", text.count("<h2>"))
assert "<script" not in text and "://" not in text and "data:image/png" in text

# %% [markdown]
# The same notebook for CIFAR-10: set `DATA = "cifar10"` in section 1 and run all. Nothing else changes: no path, shape or class count stands anywhere else. (The baseline is then trained first, so all takes half an hour or more, and our claims, checked by `holds` for glyphs, are not claimed for it. When we ran it on a copy of CIFAR-10, bytes and time were met, and points missed by a little: there are no new pictures there, and the teacher shows the old ones again and again.)
#
# ## 9. What others reached
#
# Four famous ones, with the figures of their papers.

# %%
columns = ["against", "times smaller", "times faster", "quality", "by"]
famous = pd.DataFrame(
    [
        ["BERT base", "4.3", "5.5", "GLUE 77.7 of 78.3", "a teacher, narrow blocks"],
        ["BERT base", "1.7", "1.6", "GLUE 77.0 of 79.5", "a teacher, half of the layers"],
        ["GPipe (B7)", "8.4", "6.1", "ImageNet top-1 as good", "search and scaling, no pruning"],
        ["FP16", "3.5", "about 3", "perplexity 5.60 of 5.47", "4-bit weights in groups of 128 (AWQ)"],
    ],
    index=["MobileBERT", "DistilBERT", "EfficientNet", "Llama-2-7B, 4 bits"], columns=columns,
)  # fmt: skip
print(famous.to_string())

# %% [markdown]
# Do our formulas agree with the last line? Llama-2-7B has 32 layers, each with four matrices of 4,096 x 4,096 and three of 4,096 x 11,008; embedding and head, 32,000 x 4,096 each, stay in 16 bits.

# %%
shapes = [(4096, 4096)] * 4 + [(11008, 4096)] * 3
coded_bytes = 32 * sum(calculate(*shape, bits=4, group_size=128).weight_bytes for shape in shapes)
zero_points = 32 * sum(rows * columns_ for rows, columns_ in shapes) // 128 // 2  # 4 bits for each group
kept_bytes = 2 * 2 * 32_000 * 4096
half = 2 * 32 * sum(rows * columns_ for rows, columns_ in shapes) + kept_bytes
total = coded_bytes + zero_points + kept_bytes
print(f"16 bits {half / 1e9:.2f} GB, 4 bits {total / 1e9:.2f} GB: {half / total:.2f} times smaller")
assert round(total / 1e9, 2) == 3.89 and round(half / 1e9, 2) == 13.48

# %% [markdown]
# 3.47 times, where a slide says 8 (against FP32, which nobody deploys, and without scales, embedding and head). And no line has everything. The first two changed the structure and had a teacher, the third changed the structure alone, the last only the bits. These factors come from different places, so they multiply, as ours did.
#
# ## 10. When it goes wrong
#
# Every line ends with the lesson that has more on it. Ask from the top; the first yes is where to look.

# %%
advice = {}
advice["accuracy fell"] = [
    ("already in the simulation, by rounding?", "scan the layers, keep the worst in more bits", "02"),
    ("by clipping: one outlier sets the range?", "another range, equalize, or smooth", "02, 04"),
    ("after cutting?", "repair, then train with the teacher, last", "06, 08, 12"),
    ("only in the file that ships?", "parity first, then the pre-processing", "11"),
    ("only for some classes or fonts?", "agreement by group; the mean hides it", "11"),
]

# %%
advice["not faster"] = [
    ("does the simulation run, not the file?", "export; time the runtime", "11"),
    ("zeros in a dense kernel?", "cut channels, or use fewer bytes only", "05, 06"),
    ("operators still in floats, or dynamic?", "count them; U8S8, static", "11"),
    ("the first layer, or channels no multiple of 16?", "leave it in floats; round_to=16", "12"),
    ("limited by the other roof?", "fewer bytes for memory, fewer MACs for compute", "00, 12"),
]

# %%
advice["will not deploy"] = [
    ("an operator the runtime lacks?", "replace it before training", "11"),
    ("a batch frozen at 1, or train mode?", "free axes, eval, check at several sizes", "11"),
    ("too large for the memory, not for the disk?", "4-bit weights that stay packed", "04"),
    ("nobody dares to switch?", "a shadow, a margin, a way back", "11"),
]

# %%
for symptom, rows in advice.items():
    print(symptom)
    for question, action, lesson in rows:
        print(f"   {question:<50} {action} ({lesson})")

# %% tags=["headline", "slide"]
print(
    f"asked:     {BUDGET['smaller']} times smaller, {BUDGET['faster']} times faster, at most {BUDGET['points']} point"
)
print(
    f"delivered: ≈ {original / coded.nbytes:.0f} times smaller, ≈ {faster:.1f} times faster, "
    f"≈ {points:+.1f} points on test"
)

# %% [markdown]
# ## Exercises
#
# ### 12.1 Bits that are left
# *10 minutes, difficulty 1 of 3.* Write `bits_left(times, kept)`: how many bits each remaining weight may have if the file shall be `times` smaller than 32-bit floats and a share `kept` of the weights stays. (Scales and headers may be forgotten.)
#
# <details><summary>Hint</summary>How many bits may each weight have that there is now? Then let fewer share them.</details>


# %% tags=["exercise"]
def bits_left(times, kept):
    return None  # replace this line


check("12.1", bits_left)


# %% jupyter={"source_hidden": true} tags=["solution"]
def bits_left_solution(times, kept):
    return 32 / times / kept


check("12.1", bits_left_solution, record=False)

# %% [markdown]
# ### 12.2 How much faster in the end?
# *10 minutes, difficulty 2 of 3.* Write `times_faster(shares, factors)`. `shares` are parts of today's time (they sum to 1), `factors` say how many times as fast each part becomes. Return how many times as fast the whole is.
#
# <details><summary>Hint</summary>Not the mean of the factors. What is the new time, if the old one is 1?</details>


# %% tags=["exercise"]
def times_faster(shares, factors):
    return None  # replace this line


check("12.2", times_faster)


# %% jupyter={"source_hidden": true} tags=["solution"]
def times_faster_solution(shares, factors):
    return sum(shares) / sum(share / factor for share, factor in zip(shares, factors, strict=True))


check("12.2", times_faster_solution, record=False)

# %% [markdown]
# ### 12.3 The front
# *15 minutes, difficulty 2 of 3.* Write `on_front(points)` for a list of (bytes, accuracy): a list of bools, True where no other point is at most as large **and** at least as accurate, and better in one of the two. Equal points stay both.
#
# <details><summary>Hint</summary>For each point ask <code>any(...)</code> over all points; a point does not beat itself, because it is better in nothing.</details>


# %% tags=["exercise"]
def on_front(points):
    return None  # replace this line


check("12.3", on_front)


# %% jupyter={"source_hidden": true} tags=["solution"]
def on_front_solution(points):
    def beats(a, b):
        return a[0] <= b[0] and a[1] >= b[1] and a != b

    return [not any(beats(other, point) for other in points) for point in points]


check("12.3", on_front_solution, record=False)

# %% [markdown]
# ### 12.4 The floor
# *20 minutes, difficulty 3 of 3.* Write `kept_steps(steps, floor)`. `steps` is a list of (name, accuracy after it, judged). A step that is not judged waits for the next judged one. A judged step below `floor` is undone, together with those that wait for it. Return the names of the steps that stay, in order.
#
# <details><summary>Hint</summary>Two lists: names that stay, and names that wait. A judged step empties the second one, either way.</details>


# %% tags=["exercise"]
def kept_steps(steps, floor):
    return None  # replace this line


check("12.4", kept_steps)


# %% jupyter={"source_hidden": true} tags=["solution"]
def kept_steps_solution(steps, floor):
    kept, waiting = [], []
    for name, accuracy, judged in steps:
        waiting.append(name)
        if judged:
            kept += waiting if accuracy >= floor else []
            waiting = []
    return kept


check("12.4", kept_steps_solution, record=False)

# %% [markdown]
# ### 12.5 A language model in a file
# *15 minutes, difficulty 2 of 3.* Write `model_bytes(weights, others, bits, group_size)`: bytes of a file in which `weights` have `bits` each and one 16-bit scale for each `group_size` of them, while `others` (embedding, head) stay in 16 bits.
#
# <details><summary>Hint</summary>How many bits does a weight take with its part of the scale? A byte has eight.</details>


# %% tags=["exercise"]
def model_bytes(weights, others, bits, group_size):
    return None  # replace this line


check("12.5", model_bytes)


# %% jupyter={"source_hidden": true} tags=["solution"]
def model_bytes_solution(weights, others, bits, group_size):
    return weights * (bits + 16 / group_size) / 8 + 2 * others


check("12.5", model_bytes_solution, record=False)

# %% [markdown]
# ## Quiz

# %% tags=["quiz"]
quiz("12")

# %% [markdown]
# ## Summary
#
# - Write the rules of measurement down before the first step. Bytes of what is sent, time in the runtime, points on a test split that is opened once.
# - Bytes and milliseconds lie in different layers. Look before you cut, and cut in multiples that the kernels like.
# - Steps that do harm are judged together with their repair; what still breaks the floor is undone. Then ask whether the cut was too bold or the repair too short.
# - In which order? Structure first, then training with the bits in it: whatever cuts or rounds must have training after it.
# - Structure and bits multiply, and a teacher with enough pictures makes both bearable. Time the structure before you train it; then be patient.
#
# ## Sources
#
# - Han, Mao and Dally, *Deep compression*, 2016, arXiv:1510.00149
# - Polino and others, *Model compression via distillation and quantization*, 2018, arXiv:1802.05668
# - Kim and others, *PQK: model compression via pruning, quantization, and knowledge distillation*, 2021, arXiv:2106.14681
# - Beyer and others, *Knowledge distillation: a good teacher is patient and consistent*, 2022, arXiv:2106.05237
# - Sun and others, *MobileBERT*, 2020, arXiv:2004.02984; Sanh and others, *DistilBERT*, 2019, arXiv:1910.01108
# - Tan and Le, *EfficientNet*, 2019, arXiv:1905.11946; Lin and others, *AWQ*, 2024, arXiv:2306.00978; Frantar and others, *GPTQ*, 2023, arXiv:2210.17323
#
# ## Next
#
# Your own network. Take the files that you need (`compresslab copy NAME`), your data, your rules, and start with section 1.

# %%
lesson_done = True
