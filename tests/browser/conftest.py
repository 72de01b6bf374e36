"""A headless Chromium, and a JupyterLab of its own for the tests that need a kernel; skipped where there is no browser."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
TOKEN = "compresslab"
SETTINGS = {  # every cell is in the page, and nobody asks about news
    "@jupyterlab/notebook-extension/tracker.jupyterlab-settings": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension/notification.jupyterlab-settings": {"fetchNews": "false", "checkForUpdates": False},
}


def chromium() -> str | None:
    """Where a browser is: Debian's, or the one that COMPRESSLAB_CHROMIUM names."""
    named = os.environ.get("COMPRESSLAB_CHROMIUM")
    return named or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def browser():
    """A browser; tests are skipped with the reason where none can be had."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    path = chromium()
    if path is None:
        pytest.skip("needs Chromium: apt install chromium, or name one in COMPRESSLAB_CHROMIUM")
    with sync_api.sync_playwright() as running:
        started = running.chromium.launch(executable_path=path, args=list(FLAGS))
        yield started
        started.close()


class Watched:
    """A page, with what went wrong in it and what it asked of other machines."""

    def __init__(self, browser, allowed: str) -> None:
        self.page = browser.new_page(viewport={"width": 1300, "height": 1000})
        self.page.set_default_timeout(60_000)
        self.errors: list[str] = []
        self.foreign: list[str] = []
        self.missing: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._said)
        self.page.on("response", self._answered)
        self.page.on("request", lambda request: self._asked(request.url, allowed))

    def _said(self, message) -> None:
        if message.type == "error" and not message.text.startswith("Failed to load resource"):  # those are in missing
            self.errors.append(message.text)

    def _answered(self, response) -> None:
        if response.status >= 400 and not response.url.endswith("/favicon.ico"):
            self.missing.append(response.url)

    def _asked(self, url: str, allowed: str) -> None:
        if not url.startswith((allowed, "data:", "blob:")):
            self.foreign.append(url)


@pytest.fixture(scope="session")
def watched_class():
    """The class, for fixtures that live longer than a test."""
    return Watched


@pytest.fixture
def watch(browser):
    """Open a page that may talk to one address only."""
    opened = []

    def start(allowed: str) -> Watched:
        opened.append(Watched(browser, allowed))
        return opened[-1]

    yield start
    for each in opened:
        each.page.close()


@pytest.fixture(scope="session")
def lab(browser, tmp_path_factory):
    """Address and folder of a JupyterLab with settings, kernels and a port of its own."""
    root = tmp_path_factory.mktemp("lab")
    for name, settings in SETTINGS.items():
        path = root / "settings" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings), encoding="utf-8")
    (root / "work").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {name: str(root / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    own |= {"JUPYTERLAB_SETTINGS_DIR": str(root / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(root / "workspaces")}
    own |= {"COMPRESSLAB_PROGRESS": "off", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1",
        "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={root / 'work'}",
    ]  # fmt: skip
    with (root / "log.txt").open("wb") as log:
        server = subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait(f"{address}/api/status?token={TOKEN}", server, root / "log.txt")
            yield address, root / "work"
        finally:
            server.terminate()
            server.wait(30)


def _wait(url: str, server: subprocess.Popen, log: Path, seconds: float = 90.0) -> None:
    """Until the server answers."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"JupyterLab did not start within {seconds:g} s:\n{log.read_text(errors='replace')[-2000:]}")
