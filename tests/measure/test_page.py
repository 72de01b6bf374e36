"""A page holds its parts in order, escapes every text, and is written whole or not at all."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from matplotlib.figure import Figure

from compresslab.measure import write_page

HOSTILE = "<script>alert(1)</script>"


def test_parts_in_order_and_escaped(tmp_path):
    table = pd.DataFrame({HOSTILE: [HOSTILE]}, index=[HOSTILE])
    parts = [f"# {HOSTILE}", HOSTILE, table, {HOSTILE: HOSTILE}, (Figure(figsize=(1, 1)), f'"{HOSTILE}')]
    text = write_page(tmp_path / "deep" / "a.html", title=HOSTILE, parts=parts).read_text(encoding="utf-8")
    body = text.split("<body>")[1]
    assert re.findall(r"<(h1|h2|p|table|dl|img)\b", body) == ["h1", "h2", "p", "table", "dl", "img"]
    assert "<script" not in text and text.count("&lt;script&gt;") == 10
    assert 'alt="&quot;&lt;script' in text and 'src="data:image/png;base64,' in text
    assert not re.search(r"(src|href)=\"(?!data:)", text)


def test_what_is_no_part_leaves_nothing(tmp_path):
    with pytest.raises(TypeError, match=r"a part must be a text, a table, a mapping or \(figure, text\), got int"):
        write_page(tmp_path / "a.html", title="t", parts=["fine", 3])
    assert list(tmp_path.iterdir()) == []
