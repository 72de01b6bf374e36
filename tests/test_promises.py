"""Promises that belong to no single module: the same bits in a fresh process, and no network, no home, no trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TRAIN = """
import hashlib, json, sys, torch
torch.set_num_threads(int(sys.argv[1]))
from compresslab.workbench import data, models
from compresslab.workbench.train import fit
splits = data.load("digits")
model = fit(models.build("vgg", classes=10, width=4), [
    (torch.nn.functional.interpolate(x, size=32), y) for x, y in splits.train.take(256).batches(64)
], epochs=2).model
x = torch.nn.functional.interpolate(splits.test.take(64).inputs(), size=32)
logits = model(x)
digest = hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in model.state_dict().values())).hexdigest()
print(json.dumps({"digest": digest, "logits": logits.tolist()}))
"""


def train(threads: int) -> dict:
    command = [sys.executable, "-c", TRAIN, str(threads)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout)


def test_the_same_seed_gives_the_same_bits_in_a_fresh_process_and_nearly_the_same_on_more_threads():
    first, again, two = train(1), train(1), train(2)
    assert first["digest"] == again["digest"]
    one, other = torch.tensor(first["logits"]), torch.tensor(two["logits"])
    assert (one - other).abs().max() < 1e-3
    assert (one.argmax(1) == other.argmax(1)).float().mean() > 0.95


# Audit events see every file that is opened for writing and every connection, whoever asks for it.
WATCH = """
import json, os, sys
written, connected = [], []
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        mode, flags = arguments[1] or "", arguments[2] or 0
        if set("wax+") & set(str(mode)) or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            written.append(arguments[0])
    if event in ("socket.connect", "socket.getaddrinfo", "urllib.Request"):
        connected.append(str(arguments))
sys.addaudithook(watch)
import torch
from compresslab import measure
from compresslab.workbench import checkpoints, data
splits = data.load("glyphs", train=256, val=128, test=128)
measure.compare({"resnet": checkpoints.load("resnet")}, splits.test)
print(json.dumps({"written": written, "connected": connected}))
"""


@pytest.mark.skipif(os.name != "posix", reason="HOME is where it is on POSIX")
@pytest.mark.parametrize("home", ["none", "below a file"])
def test_writes_only_to_its_cache_and_connects_to_nothing(tmp_path, home):
    (tmp_path / "file").write_text("")
    cache = tmp_path / "a cäche folder"
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("XDG", "COMPRESSLAB", "HOME"))},
        "COMPRESSLAB_CACHE": str(cache),
        "MPLCONFIGDIR": str(tmp_path / "mpl"),
        "HOME": "/nonexistent" if home == "none" else str(tmp_path / "file" / "home"),
    }
    (tmp_path / "work").mkdir()
    command = [sys.executable, "-c", WATCH]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path / "work")
    assert run.returncode == 0, run.stderr[-2000:]
    seen = json.loads(run.stdout.splitlines()[-1])
    assert seen["connected"] == []
    temporary = Path(os.environ.get("TMPDIR", "/tmp")).resolve()
    allowed = (str(cache), str(tmp_path / "mpl"), str(temporary), "/dev/null")
    assert [path for path in seen["written"] if not os.path.abspath(path).startswith(allowed)] == []
    assert list((tmp_path / "work").iterdir()) == []
    assert any(cache.rglob("*.safetensors"))
