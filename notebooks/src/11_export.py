# %% [markdown]
# # 11 Export and deployment: does the saving survive outside PyTorch?
#
# **Time:** two hours with the exercises, one without: plan two sittings. First sections 1 to 5 (export, parity, integers) with exercises 11.1 and 11.2, then the rest. Section 6, and section 8 from the damaged pictures on, can wait even longer. **Runs in:** one to two minutes, without a network or a GPU.
#
# **Before you start** you should have done lessons 00 and 02: paired tests, grids, scales and zero points. What travels here was made by lessons 04 (packed 4-bit layers), 06 and 08.
#
# **Afterwards you can**
# - turn a model into a file that runs without your code, and prove that it is the same model;
# - read from a runtime's graph whether it really computes with integers, and say why 8 bits may be slower than 32;
# - compare one model in several runtimes, honestly;
# - test before you ship what an accuracy does not show, and watch a new model beside the old one with a rule for the way back.
#
# So far most savings were numbers on paper. This lesson collects them.

# %% tags=["setup"]
import copy
import functools
import itertools
import string
import tempfile
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import onnx
import pandas as pd
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn
from torch.nn import functional as F

from compresslab import distillation as d
from compresslab import export as e
from compresslab import measure
from compresslab import pruning as p
from compresslab import quantization as q
from compresslab.course import check, quiz, reveal, show, start
from compresslab.course.copying import copy_algorithm
from compresslab.workbench import checkpoints, data, glyphs
from compresslab.workbench.train import fit, jitter

_ = start(threads=1)

# %% [markdown]
# ## Three guesses, before anything is measured

# %%
guess_runtime = None  # the same FP32 network, one image at a time: how many times as fast as PyTorch is ONNX Runtime?
guess_dynamic = None  # dynamic INT8 of a CNN in that runtime, 32 images: how many times as fast as FP32 there?
guess_changed = None  # 4-bit weights that lose no accuracy: of 1,000 images, how many get another answer than before?

# %% [markdown]
# ## 1. Eight bits, and slower
#
# `quantize_static` of lesson 02 gave us a network with 8-bit weights and 8-bit activations. *Look at:* how fast it is.

# %%
splits = data.load("glyphs")
network = checkpoints.load("resnet")
calibration = splits.train.take(256)
int8 = q.quantize_static(network, calibration.batches(64))
images, pair = splits.val.inputs(), splits.train.take(2).inputs()
print(sum(isinstance(module, q.static.QuantizedLayer) for module in int8.modules()), "layers with 8-bit weights")

# %% tags=["nbval-ignore-output"]
timed = measure.compare_latency({"FP32": network, "INT8": int8}, (images[:1],), rounds=15, min_time_s=0.1)
for name, latency in timed.latency.items():
    print(f"{name}: {1e3 * latency.median_s:.2f} ms for one image, {timed.speedup[name].value:.2f} times as fast")

# %% [markdown]
# It is *slower*: a simulation. Each operation still runs on floats, and the rounding comes on top. It tells us what integers would answer, not how fast. For that the program has to go where there are integer kernels.
#
# ## 2. A program that needs no Python
#
# `torch.export` runs the model once on inputs that have a shape but no values, and writes down what happens. Out comes a list of operations with weights. (Its predecessor, TorchScript, `torch.jit`, is from 2018 and deprecated since PyTorch 2.9.)

# %%
program = e.export_program(network, pair)
operations = [node.target.__name__ for node in program.graph.nodes if node.op == "call_function"]
print("≈", len(operations), "operations; the first:", ", ".join(operations[:4]))
with torch.no_grad():
    gap = (program.module()(images[:5]) - network(images[:5])).abs().max().item()
print(f"it was written down with 2 images and runs with 5; largest difference ≈ {gap:.0e}")
assert gap < 1e-4

# %% [markdown]
# What was a decision of Python is now fixed: loops are unrolled, each `if` has gone one way. Two such decisions catch everybody once.
#
# ### Trap: exported in train mode
#
# `training` is an `if` as well. PyTorch exports what it is given, dropout included:

# %% tags=["trap"]
torch.manual_seed(0)
careless = nn.Sequential(nn.Flatten(), nn.Linear(1024, 62), nn.Dropout(0.5)).train()
with e.quiet():
    frozen = torch.export.export(careless, (pair,)).module()
print("the same image twice, the same answer:", torch.equal(frozen(pair), frozen(pair)))
try:
    e.export_program(careless, pair)
except ValueError as error:
    print("ours:", error)

# %% [markdown]
# No `.eval()` helps afterwards: the file does not know that it ever had another mode. With batch norm it is worse, because nothing looks random: the answer to an image then depends on its neighbours in the batch. So our function refuses.
#
# ### Trap: a batch of one, for ever
#
# Sizes are decisions too. Now the second format, **ONNX**: a file of standard operations that dozens of runtimes read. Without a word about the batch, the size of the example is written into the file:

# %% tags=["trap"]
folder = Path(tempfile.mkdtemp())
linear = careless[:2].eval()
e.export_onnx(linear, pair[:1], folder / "one.onnx", dynamic_batch=False)
e.export_onnx(linear, pair, folder / "any.onnx")
try:
    e.OnnxModule(folder / "one.onnx")(images[:5])
except ValueError as error:
    print(str(error).partition("]:")[0], "...")
print("free batch:", tuple(e.OnnxModule(folder / "any.onnx")(images[:5]).shape))

# %% [markdown]
# ## 3. The same model? Parity with a tolerance
#
# "It runs" proves nothing. Two programs that add in another order differ in the last bits, so we name a tolerance and measure at several batch sizes, since a frozen size shows at another one. Our export also runs ONNX's checker, infers all shapes, and writes one file, whole or not at all.

# %%
e.export_onnx(network, pair, folder / "FP32.onnx")
session = e.OnnxModule(folder / "FP32.onnx")
parity = e.check_parity(network, session, images[:8], batch_sizes=(1, 2, 5, 32))
print("largest difference by batch size:", {size: f"≈ {value:.0e}" for size, value in parity.differences.items()})
print("within 1e-4 of the largest logit:", parity.holds, "- the same answers:", parity.agreement)
assert parity.holds and parity.agreement == 1.0

# %% tags=["nbval-ignore-output"]
timed = measure.compare_latency({"PyTorch": network, "ONNX Runtime": session}, (images[:1],), rounds=20, min_time_s=0.1)
for name, latency in timed.latency.items():
    print(f"{name}: {1e3 * latency.median_s:.2f} ms for one image")
reveal(guess_runtime, timed.speedup["ONNX Runtime"].value, what="speed of ONNX Runtime, PyTorch = 1")

# %% [markdown]
# Several times faster, and nothing was compressed yet. PyTorch decides anew in each call what to run; ONNX Runtime has decided once. The exporter folds batch norms; the runtime fuses ReLU and addition into the convolution before them, and lays weights out for the processor. (So never compare INT8 in a runtime with FP32 in PyTorch.) How much of it is the rewriting? The runtime can be told how far to go: *none*; *basic*, which drops what is superfluous; *all*, which also fuses and lays out anew.

# %%
for level in ("none", "all"):
    found = e.count_operators(folder / "FP32.onnx", optimization=level)
    kinds = {kind: sum(count for name, count in found.items() if kind in name) for kind in ("Conv", "Relu", "Add")}
    print(f"optimization={level!r}: {kinds}, operators in all ≈ {sum(found.values())}")
    assert (kinds["Relu"] == 0) == (level == "all") and kinds["Conv"] == 15

# %% tags=["nbval-ignore-output"]
levels = {level: e.OnnxModule(folder / "FP32.onnx", optimization=level) for level in ("none", "basic", "all")}
for size in (1, 32):
    timed = measure.compare_latency(levels, (images[:size],), reference="all", rounds=15, min_time_s=0.05)
    print(f"batch {size:>2}:", ", ".join(f"{name} {1e3 * one.median_s:.2f} ms" for name, one in timed.latency.items()))
opening = measure.measure_latency(lambda: e.OnnxModule(folder / "FP32.onnx"), repeats=5, min_time_s=0.0)
print(f"opening the session: {1e3 * opening.median_s:.1f} ms")

# %% [markdown]
# A session has more to set. *Threads*: all cores unless told otherwise; `OnnxModule` takes one. *I/O binding*: inputs and outputs stay where they are, nothing is copied (`OnnxModule` binds torch's memory). And open it once: reading and rewriting takes as long as many runs.
#
# ## 4. Integers in a graph: Q and DQ
#
# ONNX writes quantization as two operations. `QuantizeLinear` goes to integers, `DequantizeLinear` comes back. By hand:

# %%
x, scale, zero_point = torch.tensor([0.13, 0.52, 3.0]), 0.01, 10
levels = ((x / scale).round() + zero_point).clamp(0, 255)
print("Q: ", levels.int().tolist(), " DQ:", [round(value, 2) for value in ((levels - zero_point) * scale).tolist()])
assert levels.tolist() == [23, 62, 255]

# %% [markdown]
# A graph with such pairs around every layer computes what our simulation computes. A runtime that sees *DQ, convolution, Q* may replace all three by one integer kernel, `QLinearConv`. May: there are conditions, and nobody tells you when they fail. One is easy to miss. A ReLU between the convolution and the Q breaks the pattern, unless Q does its work anyway. Q clips at its lowest level, so that level must stand for 0:

# %%
grids = {"uint8, zero point 0": (0, 0), "uint8, 128": (0, 128), "int8, -128": (-128, -128), "int8, 0": (-128, 0)}
for name, (lowest, zero_point) in grids.items():
    value = (lowest - zero_point) * 0.01
    print(
        f"{name:<20} lowest value {value:+.2f}: ReLU is {'redundant, one kernel' if value == 0 else 'needed, floats'}"
    )

# %% [markdown]
# Our quantizer puts the zero point of a ReLU's output at the lowest level, for this reason. Now the graph of `int8`. *Look at:* what the runtime made of it.

# %%
e.export_onnx(int8, pair, folder / "INT8.onnx")
integers = e.OnnxModule(folder / "INT8.onnx")
made = e.count_operators(folder / "INT8.onnx")
written = e.count_operators(folder / "INT8.onnx", optimization="none")
print("in the file:  ", ", ".join(f"{name} ≈ {count}" for name, count in written.items() if count > 5))
print("what will run:", {name: made.get(name, 0) for name in ("QLinearConv", "QLinearAdd", "QGemm", "Conv", "Gemm")})
assert made["QLinearConv"] == 15 and "Conv" not in made

# %% [markdown]
# All 15 convolutions are integer. Does the file answer what the simulation answered? Not to the last bit: a sum half way between two levels may go up or down.

# %%
simulated, real = (measure.predict(model, splits.val.batches()) for model in (int8, integers))
same = measure.agreement(simulated.predicted, real.predicted).value
error = ((simulated.logits - real.logits).abs().max() / simulated.logits.abs().max()).item()
bytes_of = {name: (folder / f"{name}.onnx").stat().st_size for name in ("FP32", "INT8")}
print(f"same answers ≈ {100 * same:.2f} %, largest logit error ≈ {100 * error:.1f} % of the largest logit")
print(
    f"≈ {bytes_of['FP32']:,} and ≈ {bytes_of['INT8']:,} bytes: ≈ {bytes_of['FP32'] / bytes_of['INT8']:.1f} times smaller"
)
assert same > 0.995 and error < 0.05 and bytes_of["FP32"] > 3 * bytes_of["INT8"]

# %% [markdown]
# The simulation was right. What lesson 02 measured on it at 8 bits, the integers do.
#
# ## 5. Int8 that is slower than float
#
# Now the runtime's own tool, three ways: activations unsigned (**U8S8**: they are uint8, weights int8), activations signed (**S8S8**, its default!), and *dynamic*, which needs no calibration.

# %%
for kind in ("uint8", "int8"):
    e.quantize_onnx_static(folder / "FP32.onnx", folder / f"{kind}.onnx", calibration.batches(64), activations=kind)
e.quantize_onnx_dynamic(folder / "FP32.onnx", folder / "dynamic.onnx")
files = {"ours": "INT8", "U8S8": "uint8", "S8S8": "int8", "dynamic": "dynamic"}
counts = {name: e.count_operators(folder / f"{file}.onnx") for name, file in files.items()}
for name, found in counts.items():
    kinds = ("QLinearConv", "ConvInteger", "Conv", "DequantizeLinear")
    print(f"{name:<8}", ", ".join(f"{kind} ≈ {found.get(kind, 0)}" for kind in kinds))
assert counts["ours"]["QLinearConv"] == counts["U8S8"]["QLinearConv"] == 15 >= counts["S8S8"].get("QLinearConv", 0)

# %% tags=["nbval-ignore-output"]
runs = {"FP32": session} | {name: e.OnnxModule(folder / f"{file}.onnx") for name, file in files.items()}
speed = {}
for size in (1, 32):
    timed = measure.compare_latency(runs, (images[:size],), reference="FP32", rounds=20, min_time_s=0.1)
    speed[size] = {name: ratio.value for name, ratio in timed.speedup.items()}
    print(f"batch {size:>2}: " + ", ".join(f"{name} {value:.2f}x" for name, value in speed[size].items()))
reveal(guess_dynamic, speed[32]["dynamic"], what="speed of dynamic INT8 at batch 32, FP32 = 1")
slow = e.profile_operators(folder / "dynamic.onnx", images[:32])[0]
print(f"of the dynamic one, {slow.operator} takes {100 * slow.share:.0f} % of the time")
assert speed[32]["dynamic"] < speed[32]["ours"]

# %% [markdown]
# - **S8S8**: the byte instruction of x86 (VNNI) multiplies *unsigned* bytes by signed ones. What the runtime cannot move to uint8 it leaves as `Conv` in floats, between a dequantize and a quantize: more work than without integers. Other processors multiply signed by signed. Symmetric or not, per tensor or per channel: that is a question to the hardware.
# - **Dynamic** measures each activation's range in every call, and `ConvInteger` has no fast kernel. It is made for matrix products. On large language models it is fine.
# - File sizes show none of it. Count the operators, then take a clock.
#
# ## 6. Four bits: a file that holds them, a kernel that reads them
#
# Since opset 21 (its list of operations has version numbers) ONNX has 4-bit integers, and `DequantizeLinear` with a scale for each block of 32. ONNX Runtime fuses that with the product that follows. Our packed layers of lesson 04 are exported so. Two layers of a size at which reading weights is what takes the time:

# %%
torch.manual_seed(0)
wide = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1024)).eval()
found = q.quantize_weights(wide, bits=4, group_size=32)
packed = q.pack_linears(found.model, found.weights).model
vectors = torch.randn(32, 1024)
for name, model in (("wide", wide), ("wide4", packed)):
    e.export_onnx(model, vectors[:2], folder / f"{name}.onnx")
sizes = [(folder / f"{name}.onnx").stat().st_size for name in ("wide", "wide4")]
print(f"≈ {sizes[0]:,} and ≈ {sizes[1]:,} bytes, ≈ {sizes[0] / sizes[1]:.1f} times")
assert sizes[0] > 6 * sizes[1]

# %%
both = {name: e.OnnxModule(folder / f"{name}.onnx") for name in ("wide", "wide4")}
fused = e.count_operators(folder / "wide4.onnx")["MatMulNBits"]
parity = e.check_parity(packed, both["wide4"], vectors[:5], tolerance=0.03)
print(f"{fused} products in 4 bits; from our packed layers ≈ {100 * parity.largest:.1f} % of the largest output")
assert fused == 2 and parity.holds

# %% tags=["nbval-ignore-output"]
for size in (1, 32):
    timed = measure.compare_latency(both, (vectors[:size],), rounds=20, min_time_s=0.1)
    print(f"batch {size:>2}: 4 bits are {timed.speedup['wide4'].value:.1f} times as fast as FP32")

# %% [markdown]
# One vector at a time, a good part of the file's factor comes back as time: memory was the bottleneck (lesson 04). With 32 it is the computing that takes time, and less is gained. (The outputs differ by more than a rounding: this kernel takes its inputs in 8 bits, unless told otherwise.) Convolutions have no such kernel here. Below, `INT4` is the ResNet with 4-bit weights and 8-bit activations, and each 4-bit weight lies in an 8-bit container.
#
# ## 7. One network, eight versions, four runtimes
#
# Everything so far, side by side. From lesson 06: half of the operations removed, repaired by least squares. From lesson 08: that network taught by the original, on 2,000 images without labels. Each also in 8 bits.


# %%
class Cast(nn.Module):
    """A network in 16 bits, with 32-bit inputs and outputs."""

    def __init__(self, model, dtype):
        super().__init__()
        self.model = copy.deepcopy(model).to(dtype)

    def forward(self, x):
        return self.model(x.to(next(self.parameters()).dtype)).float()


# %%
unlabeled = list(splits.train.take(512).batches(64))
half = p.prune_to(network, pair, target=0.5, scope="global", round_to=8)  # kernels like multiples of 8
repaired = p.reconstruct(network, half, unlabeled).model
teaching = d.Distillation(network, soft_weight=1.0, temperature=4.0)
options = {"epochs": 1, "batch_size": 64, "lr": 2e-3, "weight_decay": 0.0, "augment": jitter}
pupils = [fit(repaired, splits.train.take(2000), loss_fn=teaching, seed=s, **options).model for s in range(3)]
taught = pupils[0]
percent = [100 * measure.accuracy(measure.predict(m, splits.val.batches())).value for m in (repaired, *pupils)]
print(
    f"validation: repaired ≈ {percent[0]:.1f} %, taught, three seeds:", ", ".join(f"≈ {v:.1f} %" for v in percent[1:])
)
assert sum(percent[1:]) / 3 > percent[0]

# %%
in_8_bits = functools.partial(q.quantize_static, batches=calibration.batches(64))
versions = {
    "FP32": network,
    "FP16": Cast(network, torch.float16).eval(),
    "BF16": Cast(network, torch.bfloat16).eval(),
    "INT8": int8,
    "INT4": in_8_bits(network, weight_bits=4),
    "half": repaired,
    "half INT8": in_8_bits(repaired),
    "taught INT8": in_8_bits(taught),
}

# %% [markdown]
# `export(model, example, target=..., path=...)` writes the file for one runtime and opens it. What each of them wants:
#
# | runtime | file | at home on | wants |
# |---|---|---|---|
# | torch.export | .pt2 | PyTorch | nothing more |
# | ONNX Runtime | .onnx | servers, desktops, browsers | Q and DQ around every operation; U8S8 on x86 |
# | OpenVINO | .xml, .bin | Intel and ARM processors | the same graph; to be told the precision |
# | ExecuTorch | .pte | phones | a backend (here XNNPACK), fixed or bounded sizes |
# | LiteRT | .tflite | phones, small devices | int8 activations with a zero point, weights without |
# | TensorRT | .engine | NVIDIA GPUs | zero points of 0 everywhere; built on the GPU that runs it |
#
# And what can run here?

# %% tags=["nbval-ignore-output"]
for target, state in e.available().items():
    print(f"{target:<12}", "yes" if state.can_run else f"no, {state.reason}: {state.command}")

# %% [markdown]
# OpenVINO reads ONNX files as they are, so it gets the same ones. We tell it to compute in FP32: on some processors it takes BF16 by itself, which is faster and another model.
#
# Then the clock: one image and 32, on one thread and on two. *Look at:* the columns first (what does the runtime do?), then the rows (what does the compression do?).


# %%
paths, programs = {name: folder / f"{name}.onnx" for name in ("FP32", "INT8")}, {}
for name in (name for name in versions if name not in paths):
    made = e.export(versions[name], pair, target="onnxruntime", path=folder / f"{name}.onnx")
    paths[name] = made.path
for name in ("FP32", "BF16", "INT8", "half"):
    programs[name] = e.export(versions[name], pair, target="torch.export", path=folder / f"{name}.pt2")
print("ONNX files:", len(paths), "programs:", len(programs))


# %%
def runs_on(threads):
    """Every version in every runtime that takes it; what PyTorch only simulates, on one thread alone."""
    own = versions if threads == 1 else ("FP32", "half")
    found = {(name, "PyTorch"): versions[name] for name in own}
    found |= {(name, "torch.export"): programs[name].run for name in programs if name in own}
    found |= {(name, "ONNX Runtime"): e.OnnxModule(path, threads=threads) for name, path in paths.items()}
    if e.available()["openvino"].can_run:
        found |= {(name, "OpenVINO"): e.open_openvino(path, threads) for name, path in paths.items()}
    return found


def again(run, calls):
    """A function that runs ``calls`` times: whoever takes turns with 25 others starts each turn in a cold cache."""
    return lambda x: [run(x) for _ in range(calls)][-1]


# %% tags=["nbval-ignore-output"]
times, places = {}, {1: runs_on(1), 2: runs_on(2)}
for threads, size in itertools.product((1, 2), (1, 32)):
    how = {"rounds": 5, "warmup": 1, "min_time_s": 0.0, "threads": threads}
    calls = {1: 5, 32: 1}[size]
    turns = {place: again(run, calls) for place, run in places[threads].items()}
    timed = measure.compare_latency(turns, (images[:size],), **how).latency
    times[f"threads {threads}, batch {size}"] = {place: 1e3 * one.median_s / calls for place, one in timed.items()}
latency = pd.DataFrame(times).round(2).unstack()
for setting in times:
    print(f"milliseconds, {setting}\n{latency[setting].reindex(versions).to_string(na_rep='-')}\n")

# %% [markdown]
# The *runtime* matters as much as the compression. A program of `torch.export` runs PyTorch's own kernels, so it takes PyTorch's time. Floats of 16 bits are a smaller file and, without kernels for them, no faster, or many times slower. (ONNX Runtime cannot compute in BF16 on a processor: our export stores BF16 and casts.)
#
# Integers pay in the two runtimes that have integer kernels, clearly so with 32 images; in the other two they are a simulation. Half of the network in 8 bits is hardly faster than 8 bits alone: what is left is so small that starting each layer takes the time. And a second thread helps at best the 32 images; on a busy machine it costs more than it gives.
#
# Now what they answer: the bytes of the file, accuracy on the test split, agreement with the original, and how far each runtime is from PyTorch on the same version.

# %%
answers, ends = {}, {}
some = splits.val.take(500)
for name in versions:
    answers[name] = measure.predict(places[1][name, "ONNX Runtime"], splits.test.batches())
    wanted = measure.predict(versions[name], some.batches()).predicted
    others = [run for (version, place), run in places[1].items() if version == name and place != "PyTorch"]
    ends[name] = min((measure.predict(run, some.batches()).predicted == wanted).float().mean().item() for run in others)

# %%
rows = {}
for name, found in answers.items():
    size = measure.size_of(paths[name])
    right = measure.accuracy(found)
    same = measure.agreement(answers["FP32"].predicted, found.predicted).value
    rows[name] = [size, right.value, right.low, right.high, same]
    print(
        f"{name:<12} ≈ {size:>7,} bytes   ≈ {100 * right.value:.1f} %   agrees with FP32 ≈ {100 * same:.1f} %   "
        f"runtimes with PyTorch ≈ {100 * ends[name]:.1f} %"
    )
columns = ["size_bytes", "accuracy", "accuracy_low", "accuracy_high", "agreement"]
summary = pd.DataFrame.from_dict(rows, orient="index", columns=columns)

# %%
assert min(ends.values()) > 0.97
assert (summary.loc[["FP16", "BF16", "INT8", "INT4"], "accuracy"] - summary.loc["FP32", "accuracy"]).abs().max() < 0.01
assert summary.loc["INT8", "agreement"] > summary.loc["INT4", "agreement"] > 0.96
assert summary.loc["taught INT8", "accuracy"] > summary.loc["half INT8", "accuracy"] > 0.78
reveal(guess_changed, 1000 * (1 - summary.loc["INT4", "agreement"]), what="answers changed of 1,000 at 4 bits")

# %% tags=["slide"]
ax = measure.plot_comparison(summary, "accuracy")
ax.set(title="The files that travel")
show(ax, alt="Accuracy over bytes: FP16 halves the file, INT8 takes a third, half INT8 a sixth with some points less")

# %% tags=["headline", "slide"]
print(
    f"FP32 ≈ {summary.loc['FP32', 'size_bytes']:,} bytes ≈ {100 * summary.loc['FP32', 'accuracy']:.1f} %; "
    f"INT8, every convolution integer, ≈ {summary.loc['INT8', 'size_bytes']:,} bytes ≈ "
    f"{100 * summary.loc['INT8', 'accuracy']:.1f} %; half the operations, taught, INT8 "
    f"≈ {summary.loc['taught INT8', 'size_bytes']:,} bytes ≈ {100 * summary.loc['taught INT8', 'accuracy']:.1f} %"
)

# %% [markdown]
# INT4 has the accuracy of FP32, and yet it changed its mind on more than twenty of a thousand images: some became right, as many wrong. Equal accuracy is not "the same model": section 8 looks for what it hides. First, something that goes wrong before the model sees anything.
#
# ### Trap: pre-processing that differs by a rounding
#
# What makes the tensor from a picture is not in the file, and somebody writes it again in another language. A camera gives 64 × 64 pixels. The pipeline that the model was tested with averages them to 32 × 32, rounds, divides by 255 and normalizes. Here it is written again, five times. Guess which does most harm, and which do more than 8 bits do:

# %% tags=["trap"]
camera = glyphs.render(1302, size=64, generator=torch.Generator().manual_seed(5))
mean, std, pixels = splits.test.mean[0], splits.test.std[0], camera.images.float()
area, nearest = (F.interpolate(pixels, 32, mode=mode).round() for mode in ("area", "nearest"))
smooth = F.interpolate(pixels, 32, mode="bilinear", antialias=True).round()
ways = {
    "as tested": (area / 255 - mean) / std,
    "divided by 256": (area / 256 - mean) / std,
    "cut, not rounded": (F.interpolate(pixels, 32, mode="area").floor() / 255 - mean) / std,
    "smoother resize": (smooth / 255 - mean) / std,
    "nearest pixel": (nearest / 255 - mean) / std,
    "another mean, std": (area / 255 - 0.5) / 0.5,
}

# %%
moved = {}
wanted = measure.predict(session, [(ways["as tested"], camera.labels)])
print(f"FP32, as tested: accuracy ≈ {100 * measure.accuracy(wanted).value:.1f} %")
candidates = {f"FP32, {name}": (session, x) for name, x in list(ways.items())[1:]}
candidates["INT8, as tested"] = (integers, ways["as tested"])
for name, (model, x) in candidates.items():
    found = measure.predict(model, [(x, camera.labels)])
    moved[name] = measure.sqnr_db(wanted.logits, found.logits)
    print(f"{name:<24} logits at ≈ {moved[name]:4.1f} dB, accuracy ≈ {100 * measure.accuracy(found).value:.1f} %")
assert moved["FP32, smoother resize"] < moved["INT8, as tested"] < moved["FP32, cut, not rounded"]

# %% [markdown]
# A rounding does less than 8 bits do. *Another resize does more*, and forgotten constants ruin the network, with no error anywhere. So parity is tested from the file of the picture on, in the language that ships.
#
# ## 8. Before it ships: what did compression break that accuracy hides?
#
# Four candidates, as files in ONNX Runtime. First by class and by font, on the same test images. Of 62 classes some fall by chance alone, so the p-values are raised, the smallest by the number of groups (Holm's rule).

# %%
shipped = {name: places[1][name, "ONNX Runtime"] for name in ("FP32", "INT8", "INT4", "taught INT8")}
groups = {"class": (splits.test.labels, splits.class_names), "font": (splits.test.groups, splits.group_names)}
worst = {}
for name, (kind, (numbers, names)) in itertools.product(list(shipped)[1:], groups.items()):
    changes = measure.compare_groups(answers["FP32"], answers[name], numbers, names=names)
    points = [100 * one.change.difference.value for one in changes.values()]
    sure = sum(one.change.p_value < 0.05 for one in changes.values())
    worst[name, kind] = min(points), sure
    print(f"{name:<12} worst {kind:<5} ≈ {min(points):+5.1f} points; more than chance: ≈ {sure} of {len(points)}")
assert worst["INT8", "class"][1] == worst["INT4", "class"][1] == 0 < worst["taught INT8", "font"][1]
assert worst["INT4", "class"][0] < -5 and worst["taught INT8", "font"][0] < worst["INT4", "font"][0] - 3

# %% [markdown]
# INT8 is spared. INT4 has a class that lost ten points, which looks alarming; among 62 classes with few images each, chance can give that. Of the half network we can be sure for several fonts, and one of them lost more than ten points. By class we can be sure of nothing: too few images. (Not proven worse is not proven equal.) Who ships collects more images of the groups that matter.
#
# ### Damaged pictures
#
# Nine **corruptions** at five strengths, after Hendrycks and Dietterich (2019), on 300 images. The table has the mean over the strengths; *look at* the last column, then at the same in three curves.

# %%
tried = splits.test.take(300)
damage = measure.scan_corruptions(
    shipped, tried.images, tried.labels, normalize=lambda pixels: (pixels.float() / 255 - mean) / std
)
by_kind = 100 * damage[damage.index.get_level_values("strength") > 0].groupby("corruption", sort=False).mean()
print(f"{'':<12}" + "".join(f"{name:>14}" for name in by_kind))
for kind, row in by_kind.iterrows():
    print(f"{kind:<12}" + "".join(f"      ≈ {value:4.1f} %" for value in row))

# %% tags=["slide"]
fig, axes = plt.subplots(1, 3, figsize=(9, 3), sharey=True)
for ax, kind in zip(axes, ("blur", "noise", "contrast"), strict=True):
    for name, style in zip(shipped, ("ko-", "s--", "^:", "D-."), strict=True):
        ax.plot(range(6), [100 * damage.loc[("none", 0), name], *(100 * damage.loc[kind, name])], style, label=name)
    ax.set(title=kind, xlabel="strength")
axes[0].set(ylabel="accuracy, %")
axes[0].legend(fontsize=8)
show(
    fig,
    alt="Accuracy falls with the strength of blur, noise and lost contrast; three versions fall together, one below",
)

# %%
below = by_kind.mean() - by_kind["FP32"].mean()
print("mean of all corruptions, against FP32:", ", ".join(f"{name} ≈ {value:+.1f}" for name, value in below.items()))
assert abs(below["INT8"]) < 1 and abs(below["INT4"]) < 2 and below["taught INT8"] < -2

# %% [markdown]
# The 8- and 4-bit files fall as the original falls. The half network lies below from the start, and where pictures are damaged it is not much further below.
#
# ### Trap: a quantized model that cannot be attacked
#
# An **attack** changes each pixel by at most epsilon, so that the loss rises: in one step along the sign of the gradient (FGSM), or in many small ones (PGD). In a quantized model the gradient goes through rounding, whose derivative is 0.

# %% tags=["trap"]
x, y = splits.test.take(150).inputs(), splits.test.take(150).labels
inside = {"low": (0 - mean) / std, "high": (1 - mean) / std}  # of black and white, normalized
asked = x.clone().requires_grad_()
(gradient,) = torch.autograd.grad(F.cross_entropy(int8(asked), y), asked)
print("entries of the gradient that are not 0:", int(gradient.count_nonzero()))
try:
    measure.fgsm(int8, x, y, epsilon=4 / 255 / std, **inside)
except ValueError as error:
    print(str(error)[:89], "...")

# %% [markdown]
# A naive test would report a model that no attack can touch: an illusion (Athalye and others, 2018). `straight_through` takes the outputs of the deployed file and the gradient of the float model it was made from. *Look at:* accuracy without an attack, with FGSM of 2 and of 4 grey levels, with PGD of 4.

# %%
parents = {"FP32": network, "INT8": network, "INT4": network, "taught INT8": taught}
targets = {name: measure.straight_through(run, parents[name]) for name, run in shipped.items()}
attacked = {name: [100 * (shipped[name](x).argmax(-1) == y).double().mean().item()] for name in shipped}
for name, target in targets.items():
    for attack, grey_levels in ((measure.fgsm, 2), (measure.fgsm, 4), (measure.pgd, 4)):
        changed = attack(target, x, y, epsilon=grey_levels / 255 / std, **inside)
        attacked[name].append(100 * (shipped[name](changed).argmax(-1) == y).double().mean().item())
    print(f"{name:<12}", ", ".join(f"≈ {percent:.0f} %" for percent in attacked[name]))
assert all(values[0] > values[1] > values[2] >= values[3] for values in attacked.values())
assert abs(attacked["INT8"][3] - attacked["FP32"][3]) < 8
assert attacked["taught INT8"][3] < attacked["FP32"][3] - 5

# %% [markdown]
# Four grey levels of 255, hardly visible, take more than a third of the accuracy. Quantization is no protection, and no harm. The half network falls further than the others.
#
# ### Strangers: does it know what it does not know?
#
# A classifier names a class for anything. We show ours four kinds of strangers: letters of a font that it never saw (mathematical italic), of a script font, signs that are no letters at all, and noise. Two scores of how familiar an input is come with the logits $z$: the largest softmax probability, and the *energy* score, $\log \sum_j e^{z_j}$, which also sees how large the logits are. Strangers should score low.


# %%
def drawn(font, characters):
    """Characters of another of matplotlib's fonts, drawn as those of the course are."""
    path, pictures = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf", []
    letters = ImageFont.truetype(str(path), 48, layout_engine=ImageFont.Layout.BASIC)
    for character in characters:
        left, top, right, bottom = letters.getbbox(character)
        picture = Image.new("L", (64, 64))
        ImageDraw.Draw(picture).text(((64 - left - right) // 2, (64 - top - bottom) // 2), character, 255, letters)
        pictures.append(torch.from_numpy(np.array(picture)))
    return torch.stack(pictures)


# %%
letters, generator = string.ascii_uppercase + string.ascii_lowercase, torch.Generator().manual_seed(0)
kinds = {"held-out font": ("cmmi10", letters), "script": ("cmsy10", letters[:26]), "no letters": ("cmex10", letters)}
strange = {}
for kind, (font, characters) in kinds.items():
    labels = torch.arange(520) % len(characters)
    turned = glyphs.warp(drawn(font, characters)[labels], 32, generator)  # turned and stained as the others are
    strange[kind] = (turned.float() / 255 - mean) / std, labels
noise = torch.randint(256, (520, 1, 32, 32), generator=generator)
strange["noise"] = (noise / 255 - mean) / std, torch.zeros(520, dtype=torch.long)
in_font = measure.accuracy(measure.predict(session, [strange["held-out font"]])).value
in_script = measure.accuracy(measure.predict(session, [strange["script"]])).value
print(f"FP32 reads the held-out font ≈ {100 * in_font:.0f} %, the script ≈ {100 * in_script:.0f} %")

# %% [markdown]
# **AUROC** sums up a score: the share of all pairs of a test image and a stranger in which the test image scores higher. 0.5 is a guess, 1 never errs. By hand: two test images score 3 and 2, two strangers 1 and 2.5. Three of the four pairs are in order.

# %%
print("by hand 3 / 4, the package", measure.auroc(torch.tensor([3.0, 2.0]), torch.tensor([1.0, 2.5])))


def told_apart(name, score):
    """AUROC of the test images against each kind of stranger."""
    seen = {kind: measure.predict(shipped[name], [batch]).logits for kind, batch in strange.items()}
    return {kind: measure.auroc(score(answers[name].logits), score(logits)) for kind, logits in seen.items()}


# %% [markdown]
# *Look at:* first the two columns of FP32, one for each score; then along the last row.

# %%
detected = {("softmax", "FP32"): told_apart("FP32", measure.softmax_score)}
detected |= {("energy", name): told_apart(name, measure.energy_score) for name in shipped}
detected = pd.DataFrame(detected)
print(detected.map("≈ {:.2f}".format).to_string())
on_noise = measure.predict(session, [strange["noise"]])
passed = measure.detect(*(measure.energy_score(found.logits) for found in (answers["FP32"], on_noise)))
print(f"FP32: at a threshold that 95 % of the test images pass, ≈ {100 * passed.fpr:.0f} % of the noise passes too")

# %%
energy = detected["energy"]
assert (energy["FP32"] > detected["softmax", "FP32"]).all()
assert energy["FP32"].is_monotonic_increasing  # the stranger, the better noticed
assert abs(energy.loc["noise", "INT8"] - energy.loc["noise", "FP32"]) < 0.05
assert energy.loc["noise", "taught INT8"] < energy.loc["noise", "FP32"] - 0.03
assert passed.fpr > 0.2

# %% [markdown]
# Down a column: the nearer the strangers are, the less is noticed. Energy is the better score. Along a row: INT8 and INT4 notice what FP32 notices; the half network lost a good part of its sense for noise, and no accuracy shows that. And a high AUROC is not yet a guard: much of the noise passes.
#
# ### 90 % sure: right nine times of ten?
#
# **Calibration**, of confidence this time, not of ranges. By hand: of two images the model is 60 % sure, and right on one. Of three it is 90 % sure, and right on two. Both times it claims too much, by 0.10 and by 0.23. The mean of these gaps over the five images is the *expected calibration error* (ECE).

# %%
sure, right = torch.tensor([0.6, 0.6, 0.9, 0.9, 0.9]), torch.tensor([1, 0, 1, 1, 0])
gaps = abs(0.6 - 1 / 2), abs(0.9 - 2 / 3)
print(f"gaps {gaps[0]:.2f} and {gaps[1]:.2f}, by hand {(2 * gaps[0] + 3 * gaps[1]) / 5:.2f}", end=", ")
five = measure.Predictions(torch.stack([sure, 1 - sure], 1).log(), 1 - right)
print(f"the package {measure.calibration_error(five).ece:.2f}")

# %% [markdown]
# Now the test images, sorted by how sure the model is, in ten bins of 400. (In bins of equal *width*, the usual ones, most images would sit in the last.) *Look at:* who lies below the diagonal, and so claims more than it keeps.

# %% tags=["slide"]
bins = {name: measure.calibration_error(answers[name], bins=10, equal_mass=True) for name in shipped}
fig, ax = plt.subplots(figsize=(4.6, 4))
ax.plot([40, 100], [40, 100], color="black", lw=0.8, label="as sure as right")
for name, style in {"FP32": "o-", "INT8": "s--", "taught INT8": "^:"}.items():
    ax.plot(100 * bins[name].confidence, 100 * bins[name].accuracy, style, label=name)
ax.set(xlabel="how sure, %", ylabel="how often right, %", title="Ten bins of 400 images")
ax.legend(fontsize=8)
show(fig, alt="FP32 and INT8 lie together just below the diagonal; the taught half network lies clearly below it")

# %% [markdown]
# One number mends a part of it: a temperature (lesson 08), fitted on validation data, by which all logits are divided. No answer changes.

# %%
table = {}
for name, run in shipped.items():
    temperature = measure.fit_temperature(measure.predict(run, splits.val.batches()))
    cooled = measure.Predictions(answers[name].logits / temperature, answers[name].labels)
    after = measure.calibration_error(cooled, bins=10, equal_mass=True)
    table[name] = [100 * bins[name].ece, temperature, 100 * after.ece]
table = pd.DataFrame.from_dict(table, orient="index", columns=["ECE in %", "temperature", "ECE then"])
print(table.map("≈ {:.2f}".format).to_string())
assert abs(table.loc["INT8", "ECE in %"] - table.loc["FP32", "ECE in %"]) < 1
assert table.loc["taught INT8", "ECE in %"] > 1.5 * table.loc["FP32", "ECE in %"]
assert table.loc["taught INT8", "ECE then"] < 0.5 * table.loc["taught INT8", "ECE in %"]

# %% [markdown]
# INT8 is as honest as FP32. The half network claims too much wherever it is not quite sure; its temperature takes most of that away.
#
# ## 9. In the shadow, and the way back
#
# The last test runs on real requests. The old model answers; the new one answers too, in the shadow, unseen. A request says something only where just one of the two is right. When may we stop?
#
# ### Trap: looking until it is significant
#
# McNemar's test (lesson 00) is right for *one* look at a number of samples fixed before. Here are two models that are equally good, 100 times, looked at every 20 requests:


# %% tags=["trap"]
def requests(count, won, lost, seed):
    """Whether the old and the new model are right; one alone with these chances."""
    u = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    return (u >= won) & (u < 0.9), (u < won) | ((u >= won + lost) & (u < 0.9))


alarms = {"at the end": 0, "every 20 requests": 0, "bets": 0}
for seed in range(100):
    old, new = requests(1000, 0.05, 0.05, seed)
    seen = [measure.mcnemar(old[:n], new[:n]).p_value < 0.05 for n in range(20, 1001, 20)]
    found = seen[-1], any(seen), bool(measure.always_valid_p(old, new)[-1] < 0.05)
    alarms = {way: count + one for (way, count), one in zip(alarms.items(), found, strict=True)}
print({way: f"{count} of 100" for way, count in alarms.items()})
assert alarms["bets"] <= 5 < 12 < alarms["every 20 requests"] and alarms["at the end"] <= 10

# %% [markdown]
# Looking often multiplies the false alarms. The third way is a **bet**: start with a capital of 1 and bet a share $\lambda$ of it, in every request, that the new model is worse. With $d = +1$ where the new one alone is right, $-1$ where the old one alone is, and a tolerated loss $m$:
#
# $$K_t = \prod_{i \le t} \big(1 + \lambda (-d_i - m)\big)$$
#
# If the new model is not worse than tolerated, no strategy can expect to gain, and the chance to *ever* reach 20 is at most 1 in 20 (Ville, 1939). So we may look after every request, and stop when we like. By hand, with $\lambda = 0.5$ and $m = 0$:

# %%
outcomes = [0, -1, 0, -1, -1, 1, -1, -1, -1, -1, -1, -1, -1]
capital = list(itertools.accumulate(outcomes, lambda k, d_i: k * (1 - 0.5 * d_i), initial=1.0))
print("capital:", [round(k, 2) for k in capital])
print("above 20 after request", next(i for i, k in enumerate(capital) if k >= 20))

# %% [markdown]
# `judge_shadow` bets both ways at once, with many values of $\lambda$. It says "roll back" as soon as it is clear that more than the margin is lost, "promote" as soon as it is clear that less is, else "go on". We send the test images as requests, in three different orders, with a margin of two points.

# %%
verdicts = {}
for name in ("INT8", "INT4", "taught INT8"):
    for seed in range(3):
        order = torch.randperm(len(splits.test), generator=torch.Generator().manual_seed(seed))
        old, new = (answers[which].correct[order] for which in ("FP32", name))
        verdicts[name, seed] = measure.judge_shadow(old, new, margin=0.02)
    said = [verdicts[name, seed] for seed in range(3)]
    print(f"{name:<12}", ", ".join(f"{one.decision} after ≈ {one.samples}" for one in said))
assert {verdicts[name, 0].decision for name in ("INT8", "INT4")} == {"promote"}
assert {verdicts["taught INT8", seed].decision for seed in range(3)} == {"roll back"}

# %% tags=["slide"]
after = measure.paired_bootstrap(answers["FP32"].correct.double(), answers["taught INT8"].correct.double())
print(f"all 4,000 at once, bootstrap: taught INT8 ≈ {100 * after.difference.value:+.1f} points")
old, new = answers["FP32"].correct, answers["taught INT8"].correct
counted = range(100, 4001, 100)
bands = [measure.confidence_sequence(old[:n], new[:n]) for n in counted]
fig, ax = plt.subplots(figsize=(7, 3))
ax.fill_between(counted, [100 * one.low for one in bands], [100 * one.high for one in bands], alpha=0.3, hatch="//")
ax.plot(counted, [100 * one.value for one in bands], "k-", label="taught INT8 less FP32")
ax.axhline(-2, color="C1", ls="--", label="the margin")
ax.set(xlabel="requests", ylabel="accuracy, points", title="An interval that may be watched")
ax.legend()
show(fig, alt="A band around the difference narrows with the requests and falls below the margin of two points early")

# %% [markdown]
# In the figure the decision can be watched: once the whole band lies below the margin, more than two points are lost.
#
# And the way back? A rule written down before (margin, alpha, who decides), the old file still deployed, and a switch that somebody has tried. Without labels the same test runs on *agreement*: all True for the old model, whether both agree for the new.
#
# ## 10. A file from somebody else, a file for somebody else
#
# An ONNX file may name *other files* for its weights. One that names your password file would have the runtime read it. `open_session` and `OnnxModule` look first:

# %%
model = onnx.load(folder / "any.onnx")
weights = model.graph.initializer[0]
weights.ClearField("raw_data")
weights.data_location = onnx.TensorProto.EXTERNAL
weights.external_data.add(key="location", value="../secret.bin")
(folder / "hostile.onnx").write_bytes(model.SerializeToString())
try:
    e.OnnxModule(folder / "hostile.onnx")
except ValueError as error:
    print(error)

# %% [markdown]
# And what you learned here should travel as well. `compresslab copy shadow` writes an algorithm of this course, as of every lesson, as files of its own, with licence and citation; they need torch, and no compresslab.

# %%
copied = copy_algorithm("shadow", folder)
print("files:", sorted(path.name for path in copied.iterdir()))
print("\n".join((copied / "shadow.py").read_text(encoding="utf-8").splitlines()[:2]))

# %% [markdown]
# ## Exercises
#
# ### 11.1 Parity
# *10 minutes, difficulty 1 of 3.* Write `parity_of(reference, other)` for two tensors of logits: the largest absolute difference, divided by the largest absolute value of the reference. A float.
#
# <details><summary>Hint</summary>Not the largest <em>ratio</em>: logits near 0 would decide.</details>


# %% tags=["exercise"]
def parity_of(reference, other):
    return None  # replace this line


check("11.1", parity_of)


# %% jupyter={"source_hidden": true} tags=["solution"]
def parity_solution(reference, other):
    return ((reference - other).abs().max() / reference.abs().max()).item()


check("11.1", parity_solution, record=False)

# %% [markdown]
# ### 11.2 Is the ReLU redundant?
# *10 minutes, difficulty 2 of 3.* Write `relu_is_redundant(lowest, zero_point)`: whether a quantizer whose lowest level is `lowest` (0 for uint8, -128 for int8) clips everything below 0 to 0 by itself, so that a runtime may drop the ReLU before it.
#
# <details><summary>Hint</summary>Which value does the lowest level stand for?</details>


# %% tags=["exercise"]
def relu_is_redundant(lowest, zero_point):
    return None  # replace this line


check("11.2", relu_is_redundant)


# %% jupyter={"source_hidden": true} tags=["solution"]
def relu_is_redundant_solution(lowest, zero_point):
    return zero_point == lowest


check("11.2", relu_is_redundant_solution, record=False)

# %% [markdown]
# ### 11.3 One step of an attack
# *15 minutes, difficulty 2 of 3.* Write `attack_step(x, gradient, epsilon, low, high)`: the fast gradient sign method, from the inputs and the gradient of the loss. The result stays within `low` and `high`.
#
# <details><summary>Hint</summary>The attacker wants the loss to rise.</details>


# %% tags=["exercise"]
def attack_step(x, gradient, epsilon, low, high):
    return None  # replace this line


check("11.3", attack_step)


# %% jupyter={"source_hidden": true} tags=["solution"]
def attack_step_solution(x, gradient, epsilon, low, high):
    return (x + epsilon * gradient.sign()).clamp(low, high)


check("11.3", attack_step_solution, record=False)

# %% [markdown]
# ### 11.4 AUROC
# *15 minutes, difficulty 2 of 3.* Write `auroc_of(known, other)` for two tensors of scores: the share of all pairs in which the known input scores above the other one. Ties count half.
#
# <details><summary>Hint</summary>Compare a column with a row: <code>known[:, None] &gt; other</code>.</details>


# %% tags=["exercise"]
def auroc_of(known, other):
    return None  # replace this line


check("11.4", auroc_of)


# %% jupyter={"source_hidden": true} tags=["solution"]
def auroc_solution(known, other):
    above = (known[:, None] > other).double() + 0.5 * (known[:, None] == other).double()
    return above.mean().item()


check("11.4", auroc_solution, record=False)

# %% [markdown]
# ### 11.5 The alarm
# *20 minutes, difficulty 3 of 3.* Write `first_alarm(outcomes, share, alpha)`. `outcomes` is a list of 1 (the new model alone is right), -1 (the old one alone) and 0. Bet `share` of the capital in each request that the new model is worse. Return after how many requests the capital reaches 1 / alpha for the first time, and 0 if it never does.
#
# <details><summary>Hint</summary>The capital starts at 1 and is multiplied. Once it was there, it does not matter what comes afterwards.</details>


# %% tags=["exercise"]
def first_alarm(outcomes, share, alpha):
    return None  # replace this line


check("11.5", first_alarm)


# %% jupyter={"source_hidden": true} tags=["solution"]
def first_alarm_solution(outcomes, share, alpha):
    capital = 1.0
    for request, outcome in enumerate(outcomes, 1):
        capital *= 1 - share * outcome
        if capital >= 1 / alpha:
            return request
    return 0


check("11.5", first_alarm_solution, record=False)

# %% [markdown]
# ## Quiz

# %% tags=["quiz"]
quiz("11")

# %% [markdown]
# ## Summary
#
# - Export fixes decisions: the mode, the batch, the pre-processing. Check each, from the file of the picture to the logits.
# - A runtime alone gives more than many a compression. Compare within one.
# - Integers are fast where every operator is an integer one: count them. U8S8 on x86, a zero point at the lowest level after ReLU, no dynamic ranges for convolutions.
# - INT8 changed nothing that we could find. Pruning cost more than its accuracy says: some fonts, attacks, the sense for what is noise.
# - A quantized model looks safe from attacks because rounding has no gradient. It is not.
# - Watch a new model with a test that may be watched, and write down the way back first.
#
# ## Sources
#
# - Jacob and others, *Quantization and training of neural networks for efficient integer-arithmetic-only inference*, 2017, arXiv:1712.05877
# - ONNX, *QuantizeLinear and DequantizeLinear*, https://onnx.ai/onnx/operators; ONNX Runtime, *Quantize ONNX models*, https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
# - Hooker and others, *What do compressed deep neural networks forget?*, 2019, arXiv:1911.05248
# - Hendrycks and Dietterich, *Benchmarking neural network robustness to common corruptions and perturbations*, 2019, arXiv:1903.12261
# - Goodfellow and others, 2014, arXiv:1412.6572 (FGSM); Madry and others, 2017, arXiv:1706.06083 (PGD); Athalye and others, 2018, arXiv:1802.00420
# - Liu and others, *Energy-based out-of-distribution detection*, 2020, arXiv:2010.03759; Guo and others, *On calibration of modern neural networks*, 2017, arXiv:1706.04599
# - Waudby-Smith and Ramdas, *Estimating means of bounded random variables by betting*, 2020, arXiv:2010.09686
#
# ## Next
#
# Lesson 12 puts everything together: one network, one budget, and the order in which to do it.

# %%
lesson_done = True
