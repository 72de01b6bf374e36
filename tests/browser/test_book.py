"""The book: built from the committed notebooks, every link leads somewhere, nothing is fetched, formulas are drawn."""

from __future__ import annotations

import re
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

from compresslab.course import book
from compresslab.course.book import api_page, build_book, glossary_page, references_page, with_doi
from compresslab.course.runner import notebook_paths

pytest.importorskip("myst_nb", reason='needs the extra: pip install -e ".[book]"')


class Page(HTMLParser):
    """The links of a page, the places one can link to, and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.loads: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list) -> None:
        named = dict(attrs)
        if "id" in named:
            self.places.add(named["id"])
        if tag == "a" and named.get("href"):
            self.links.append(named["href"])
        if tag in ("script", "img", "iframe") and named.get("src"):
            self.loads.append(named["src"])
        if (
            tag == "link"
            and named.get("href")
            and named.get("rel") not in ("index", "search", "next", "prev", "author")
        ):
            self.loads.append(named["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    return build_book(tmp_path_factory.mktemp("site") / "html").parent


@pytest.fixture(scope="module")
def pages(site) -> dict[str, Page]:
    return {path.name: Page(path) for path in site.glob("*.html")}


def test_every_lesson_and_every_kind_of_page_is_there(pages):
    wanted = {f"{path.stem}.html" for path in notebook_paths()} | {
        f"guide_{path.stem}.html" for path in notebook_paths()
    }
    wanted |= {
        "index.html",
        "glossary.html",
        "references.html",
        "search.html",
        "api_pruning.html",
        "api_workbench.html",
    }
    assert wanted <= set(pages)


def test_every_internal_link_leads_somewhere(site, pages):
    count = 0
    for name, page in pages.items():
        for link in page.links:
            target, place = urldefrag(link)
            if re.match(r"[a-z]+:", target):
                continue
            other = unquote(target) or name
            assert (site / other).is_file(), f"{name}: {link}"
            if place and other in pages:
                assert unquote(place) in pages[other].places, f"{name}: {link}"
            count += 1
    assert count > 500


def test_nothing_is_loaded_from_elsewhere(site, pages):
    for name, page in pages.items():
        for source in page.loads:
            assert not re.match(r"(https?:)?//", source), f"{name}: {source}"
            if not source.startswith("data:"):
                assert (site / unquote(source.split("?")[0])).is_file(), f"{name}: {source}"


def test_formulas_are_drawn_without_a_script(site):
    text = (site / "03_quantization_aware_training.html").read_text(encoding="utf-8")
    assert "<math" in text and "\\frac" not in re.sub(r"<code.*?</code>|<pre.*?</pre>", "", text, flags=re.DOTALL)
    assert not re.search(r"<script[^>]*mathjax", text, re.IGNORECASE)


def test_solutions_are_folded_and_quizzes_answered(site):
    text = (site / "05_pruning.html").read_text(encoding="utf-8")
    assert text.count("tag_hide-input") == 5
    assert "Answer to 1</summary>" in text


def test_figures_keep_their_texts(site):
    text = (site / "05_pruning.html").read_text(encoding="utf-8")
    assert 'alt="Left: both curves fall, per layer earlier.' in text


def test_pages_made_from_the_project():
    glossary = glossary_page()
    assert "sparsity\n" in glossary and "quant_min\nquant_max\n" in glossary
    api = api_page("pruning")
    assert "### global_masks" in api and "global_masks(scores:" in api and "## masks" in api
    references = references_page()
    assert all(f"## Lesson {path.stem[:2]}" in references for path in notebook_paths())
    assert references.count("https://doi.org/") > 40
    assert (
        with_doi("doi:10.1145/1498765.1498785")
        == "[doi:10.1145/1498765.1498785](https://doi.org/10.1145/1498765.1498785)"
    )


def test_a_fault_stops_the_book_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(book, "glossary_page", lambda: "# Glossary\n\n[lost](nowhere.md)\n")
    monkeypatch.setattr(book, "notebook_paths", lambda: notebook_paths()[1:2])
    with pytest.raises(RuntimeError, match=r"the book has faults:\n.*nowhere\.md"):
        build_book(tmp_path / "html")
    assert not (tmp_path / "html").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(ValueError, match="must be a new or an empty folder, so that nothing is overwritten"):
        build_book(tmp_path / "full")


@pytest.fixture
def served(site):
    """The address of the site, as a web server gives it (search reads other pages, which files may not)."""
    handler = partial(QuietHandler, directory=site)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_in_a_browser(served, watch):
    watched = watch(served)
    page = watched.page
    page.goto(f"{served}/index.html")
    page.get_by_role("link", name=re.compile("^05 Pruning")).first.click()
    page.get_by_role("heading", name=re.compile("^05 Pruning")).wait_for()
    hint = page.get_by_text("Hint", exact=True).first
    hint.click()
    assert page.locator("details[open]").count() >= 1
    page.goto(f"{served}/03_quantization_aware_training.html")
    box = page.locator("math[display=block]").first.bounding_box()
    assert box["width"] > 50 and box["height"] > 20
    page.goto(f"{served}/search.html?q=lottery")
    page.get_by_role("link", name=re.compile("^05 Pruning")).last.wait_for()
    assert watched.foreign == watched.missing == []
    assert [error for error in watched.errors if "theme mode" not in error] == []
