from __future__ import annotations

import base64
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

from compresslab.measure import compare
from compresslab.measure import page as page_module

HOSTILE = '<script>alert("x")</script>&{title}'
BATCHES = [(torch.eye(4), torch.tensor([0, 1, 2, 0]))]


class Page(HTMLParser):
    """Tags with their attributes, and the texts between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def comparison():
    return compare({"float": nn.Identity(), HOSTILE: nn.Linear(4, 4)}, BATCHES)


@pytest.fixture
def page(comparison, tmp_path):
    path = comparison.to_html(tmp_path / "deep" / "report.html", title=f"Ours {HOSTILE}")
    assert path == tmp_path / "deep" / "report.html"
    return path.read_text(encoding="utf-8")


def test_nothing_is_run_and_nothing_is_fetched(page):
    tags = Page(page).tags
    assert not {"script", "link", "iframe", "object", "form", "base"} & {tag for tag, _ in tags}
    for _, attributes in tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:")
    policy = next(a["content"] for tag, a in tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_names_and_titles_are_escaped_everywhere(page):
    parsed = Page(page)
    assert "<script" not in page
    assert parsed.texts.count(f"Ours {HOSTILE}") == 2  # title and heading
    assert HOSTILE in parsed.texts  # the row
    alt = next(attributes["alt"] for tag, attributes in parsed.tags if tag == "img")
    assert HOSTILE in alt
    assert "float: 75.0 % [30.1, 95.4] at" in alt
    assert parsed.open == []


def test_the_figure_is_a_picture_inside_the_page(page):
    source = next(attributes["src"] for tag, attributes in Page(page).tags if tag == "img")
    kind, data = source.split(",", 1)
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data).startswith(b"\x89PNG")


def test_the_page_says_how_it_was_measured(page):
    texts = Page(page).texts
    for term, meaning in (
        ("Reference", "float"),
        ("Quality", "accuracy on 4 samples, intervals of 95 %"),
        ("Latency", "median of interleaved calls at batch size 1, threads: 1"),
    ):
        assert texts[texts.index(term) + 1] == meaning
    assert texts[texts.index("Software") + 1].startswith(f"torch {torch.__version__}, Python 3")
    assert "cores" in texts[texts.index("Processor") + 1]


def test_every_row_has_a_cell_for_every_column(page):
    tags = [tag for tag, _ in Page(page).tags]
    assert tags.count("tr") == 3
    assert tags.count("td") == 2 * 12
    assert tags.count("th") == 13 + 2


def test_a_page_is_whole_or_absent(comparison, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    comparison.to_html(path)
    before = path.read_text(encoding="utf-8")

    def broken(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(page_module.os, "replace", broken)
    with pytest.raises(KeyboardInterrupt):
        comparison.to_html(path, title="another")
    assert path.read_text(encoding="utf-8") == before
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_no_figure_is_left_open(comparison, tmp_path):
    import matplotlib.pyplot as plt

    comparison.to_html(tmp_path / "report.html")
    assert plt.get_fignums() == []
