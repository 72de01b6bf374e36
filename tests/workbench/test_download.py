"""Downloads from a server on this machine that misbehaves, and the cache that processes share."""

from __future__ import annotations

import hashlib
import http.server
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pooch
import pytest
import torch

from compresslab.workbench import download
from compresslab.workbench.download import cached, fetch, shared_folder
from compresslab.workbench.files import DataUnavailable, cache_dir, load_tensors, save_tensors

GOOD = b"To be, or not to be" * 1000
SHA256 = "sha256:" + hashlib.sha256(GOOD).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers each request as the next of ``server.script`` says; the last one stays."""

    def do_GET(self):
        script = self.server.script
        self.server.hits.append(self.path)
        mode = script.pop(0) if len(script) > 1 else script[0]
        body = b"<html>Log in</html>" if mode == "page" else GOOD
        self.send_response(503 if mode == "503" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if mode == "slow":
            time.sleep(0.5)
        self.wfile.write(body[:100] if mode == "cut" else body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "*")
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.script, found.hits = ["good"], []
    found.url = f"http://127.0.0.1:{found.server_port}/file.txt"
    thread = threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSLAB_CACHE", str(tmp_path / "cache"))
    for name in ("COMPRESSLAB_DATA", "COMPRESSLAB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pooch.core.time, "sleep", lambda seconds: None)  # between two tries


# Downloads


def test_a_file_is_fetched_once(server, tmp_path, capfd):
    for _ in range(2):
        path = fetch("data set/file.txt", server.url, SHA256, root=tmp_path / "Daten für alle")
        assert path == tmp_path / "Daten für alle" / "data set" / "file.txt"
        assert path.read_bytes() == GOOD
    assert len(server.hits) == 1
    assert capfd.readouterr() == ("", "")


def test_the_default_root_is_in_the_cache(server):
    assert fetch("a/b.txt", server.url, SHA256) == cache_dir() / "data" / "a" / "b.txt"


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_others_may_read_what_one_fetched(server, tmp_path):
    before = os.umask(0o022)
    try:
        assert fetch("a", server.url, SHA256, root=tmp_path).stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)


@pytest.mark.parametrize("trouble", ["503", "cut", "page"])
def test_passing_trouble_is_tried_again(server, tmp_path, trouble):
    server.script = [trouble, trouble, "good"]
    assert fetch("a", server.url, SHA256, root=tmp_path).read_bytes() == GOOD
    assert len(server.hits) == 3


@pytest.mark.parametrize(
    ("trouble", "reason"), [("503", "HTTPError: 503"), ("cut", "Error"), ("page", "ValueError: .* hash of")]
)
def test_lasting_trouble_says_which_file_to_put_where(server, tmp_path, trouble, reason):
    server.script = [trouble]
    with pytest.raises(DataUnavailable, match=reason) as caught:
        fetch("set/file.txt", server.url, SHA256, root=tmp_path)
    message = str(caught.value)
    for part in (
        "set/file.txt is not on this machine",
        server.url,
        SHA256.replace(":", " "),
        "login page",
        "HTTPS_PROXY",
    ):
        assert part in message
    assert str(tmp_path / "set" / "file.txt") in message
    assert len(server.hits) == 1 + download.RETRIES
    assert [path.name for path in (tmp_path / "set").iterdir() if not path.name.endswith(".lock")] == []


def test_nobody_listening(tmp_path, server):
    server.shutdown()
    server.server_close()
    with pytest.raises(DataUnavailable, match="ConnectionError"):
        fetch("a", server.url, SHA256, root=tmp_path)


def test_offline_fails_at_once(server, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSLAB_OFFLINE", "1")
    with pytest.raises(DataUnavailable, match=r"cannot be downloaded from .* \(COMPRESSLAB_OFFLINE is set\)"):
        fetch("a", server.url, SHA256, root=tmp_path)
    assert server.hits == []
    assert list(tmp_path.iterdir()) == []


def test_offline_uses_what_is_there(server, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSLAB_OFFLINE", "1")
    (tmp_path / "a").write_bytes(GOOD)
    assert fetch("a", server.url, SHA256, root=tmp_path) == tmp_path / "a"


def test_a_damaged_file_is_fetched_again_with_a_warning(server, tmp_path):
    (tmp_path / "a").write_bytes(GOOD[:-1])
    with pytest.warns(UserWarning, match="a does not have sha256 .* damaged or another version, and not used"):
        assert fetch("a", server.url, SHA256, root=tmp_path).read_bytes() == GOOD


def test_md5_is_checked_too(server, tmp_path):
    md5 = hashlib.md5(GOOD, usedforsecurity=False).hexdigest()
    assert fetch("a", server.url, f"md5:{md5}", root=tmp_path).read_bytes() == GOOD
    with pytest.raises(DataUnavailable, match="md5 00000"):
        fetch("b", server.url, f"md5:{'0' * 32}", root=tmp_path)


def test_a_root_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataUnavailable, match=r"(NotADirectory|FileExists)Error.*\n.*Put the file"):
        fetch("a", server.url, SHA256, root=tmp_path / "file" / "root")


def test_the_logger_of_pooch_is_quiet_and_left_as_it_was(server, tmp_path, monkeypatch):
    logger, records = pooch.get_logger(), []
    handler = logging.Handler()
    handler.emit = records.append
    monkeypatch.setattr(logger, "handlers", [handler])
    logger.info("before")
    fetch("a", server.url, SHA256, root=tmp_path)
    logger.info("after")
    assert [record.getMessage() for record in records] == ["before", "after"]


def run_at_once(count: int, script: str, *arguments: str) -> None:
    """Run ``script`` in processes that all wait for the last of them before they go on behind ``GO``."""
    go = "print(flush=True); sys.stdin.readline()"
    command = [sys.executable, "-c", "import sys, time\n" + script.replace("GO", go), *arguments]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    running = [subprocess.Popen(command, text=True, **pipes) for _ in range(count)]
    for process in running:
        process.stdout.readline()
    for process in running:
        process.stdin.write("\n")
        process.stdin.flush()
    errors = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0] * count, errors


def test_four_processes_fetch_once(server, tmp_path):
    server.script = ["slow"]
    script = """
import pooch, requests
from compresslab.workbench.download import fetch
GO
fetch("a", *sys.argv[1:3], root=sys.argv[3])
"""
    run_at_once(4, script, server.url, SHA256, str(tmp_path))
    assert len(server.hits) == 1


# The folder that many share


def test_shared_data_come_first(server, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSLAB_DATA", str(tmp_path / "shared"))
    (tmp_path / "shared" / "data" / "set").mkdir(parents=True)
    (tmp_path / "shared" / "data" / "set" / "a").write_bytes(GOOD)
    assert fetch("set/a", server.url, SHA256) == tmp_path / "shared" / "data" / "set" / "a"
    assert server.hits == []
    assert not (tmp_path / "cache").exists()


def test_damaged_shared_data_are_not_used(server, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSLAB_DATA", str(tmp_path / "shared"))
    (tmp_path / "shared" / "data").mkdir(parents=True)
    (tmp_path / "shared" / "data" / "a").write_bytes(b"other")
    with pytest.warns(UserWarning, match="not used"):
        assert fetch("a", server.url, SHA256).is_relative_to(tmp_path / "cache")


def test_a_shared_folder_that_is_not_there_is_a_warning(tmp_path, monkeypatch):
    assert shared_folder() is None
    monkeypatch.setenv("COMPRESSLAB_DATA", str(tmp_path / "mistyped"))
    with pytest.warns(UserWarning, match=r"COMPRESSLAB_DATA='.*mistyped' is not a folder; going on without it"):
        assert shared_folder() is None


def test_a_cache_serves_as_the_shared_folder(tmp_path, monkeypatch):
    cached("sub/a", lambda: ({"x": torch.ones(2)}, {}))
    monkeypatch.setenv("COMPRESSLAB_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("COMPRESSLAB_CACHE", str(tmp_path / "mine"))
    tensors, _ = cached("sub/a", lambda: pytest.fail("made again"))
    assert tensors["x"].tolist() == [1, 1]
    assert not (tmp_path / "mine").exists()


# The cache


class Maker:
    calls = 0

    def __call__(self):
        self.calls += 1
        return {"x": torch.full((3,), self.calls)}, {"note": "é"}


def test_what_is_made_is_kept():
    make = Maker()
    for _ in range(2):
        tensors, metadata = cached("sub/a", make)
        assert (tensors["x"].tolist(), metadata) == ([1, 1, 1], {"note": "é"})
    assert make.calls == 1


def test_a_broken_file_is_made_again_with_a_warning():
    make = Maker()
    cached("a", make)
    path = cache_dir() / "a"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"a is not a whole safetensors file .*\(made again now\)"):
        assert cached("a", make)[0]["x"].tolist() == [2, 2, 2]
    assert load_tensors(path)[0]["x"].tolist() == [2, 2, 2]


def test_a_broken_shared_file_is_left_and_replaced_by_ones_own(tmp_path, monkeypatch):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "a").write_bytes(b"broken")
    monkeypatch.setenv("COMPRESSLAB_DATA", str(tmp_path / "shared"))
    with pytest.warns(UserWarning, match="made again now"):
        assert cached("a", Maker())[0]["x"].tolist() == [1, 1, 1]
    assert (tmp_path / "shared" / "a").read_bytes() == b"broken"
    assert (tmp_path / "cache" / "a").is_file()


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COMPRESSLAB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match=r"sub/a is made again each time, as it cannot be kept: COMPRESSLAB_CACHE="):
        assert cached("sub/a", Maker())[0]["x"].tolist() == [1, 1, 1]


def test_a_full_disk_is_no_error(monkeypatch):
    def full(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(download, "save_tensors", full)
    with pytest.warns(UserWarning, match="cannot be kept: No space left on device"):
        assert cached("a", Maker())[0]["x"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("error", [DataUnavailable, ValueError, KeyboardInterrupt])
def test_an_error_while_making_is_passed_on_and_leaves_no_lock(error):
    def fail():
        raise error("why")

    with pytest.raises(error, match="why"):
        cached("a", fail)
    assert cached("a", Maker())[0]["x"].tolist() == [1, 1, 1]


def test_who_waited_takes_what_the_first_one_made(monkeypatch):
    """The file appears between the first look and the lock."""
    path = cache_dir() / "a"

    class Lock:
        def __init__(self, name):
            assert name == f"{path}.lock"

        def acquire(self):
            save_tensors(path, {"x": torch.zeros(1)})
            return open(os.devnull)

    monkeypatch.setattr(download, "FileLock", Lock)
    assert cached("a", lambda: pytest.fail("made twice"))[0]["x"].tolist() == [0]


def test_processes_that_start_at_once_make_it_once(tmp_path):
    script = """
import torch, safetensors.torch
from compresslab.workbench.download import cached
def make():
    with open(sys.argv[1], "a") as file: file.write("made\\n")
    time.sleep(0.5)
    return {"x": torch.ones(1000)}, {}
GO
assert cached("a", make)[0]["x"].sum() == 1000
"""
    run_at_once(3, script, str(tmp_path / "log"))
    assert (tmp_path / "log").read_text() == "made\n"


def test_importing_touches_neither_network_nor_torch(tmp_path):
    script = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise RuntimeError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse\n"
        "import compresslab.workbench.download\n"
        "assert 'torch' not in sys.modules\n"
        "import compresslab.workbench.data, compresslab.workbench.text, compresslab.workbench.vision\n"
        "assert 'torchvision' not in sys.modules\n"
    )
    environment = {**os.environ, "COMPRESSLAB_CACHE": str(tmp_path / "never made")}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    assert not Path(environment["COMPRESSLAB_CACHE"]).exists()
