"""A comparison as one page that can be mailed: the figure, the table in words, and how it was measured.

The page holds its figure and style itself: no scripts and nothing fetched, so it reads the same in ten years and
behind any firewall. Every text in it is escaped, since names of models come from anywhere.
"""

from __future__ import annotations

import base64
import contextlib
import io
import os
import platform
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from compresslab.measure.plots import plot_comparison
from compresslab.measure.tables import readable

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["write_html"]


def write_html(path: str | Path, table: pd.DataFrame, metric: str, *, title: str, setting: Mapping[str, str]) -> Path:
    """Write the page to ``path``, all or nothing, and return the path.

    Args:
        path: of the page; its folder is made.
        table: of a comparison.
        metric: the column of the quality, "accuracy" or "perplexity".
        title: heading of the page.
        setting: how it was measured; torch, Python and the processor are added.

    Example:
        >>> import tempfile
        >>> from compresslab.measure import compare
        >>> comparison = compare({"a<b": torch.nn.Linear(2, 2)}, [(torch.eye(2), torch.tensor([0, 1]))])
        >>> page = comparison.to_html(Path(tempfile.mkdtemp()) / "report.html").read_text(encoding="utf-8")
        >>> "a&lt;b" in page, "<script" in page
        (True, False)
    """
    words = readable(table, metric)
    alt = f"{metric} against the size of the saved file. " + " ".join(
        f"{name}: {row[metric]} at {row['size']}, {row['latency, median']}." for name, row in words.iterrows()
    )
    setting = {**setting, "Software": f"torch {torch.__version__}, Python {platform.python_version()}"}
    setting["Processor"] = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"
    heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in ["name", *words.columns])
    rows = "\n".join(
        f'<tr><th scope="row">{escape(str(name))}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for name, row in zip(words.index, words.itertuples(index=False), strict=True)
    )
    lines = "\n".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in setting.items())
    page = _PAGE.format(
        title=escape(title), alt=escape(alt), image=_png(table, metric), heads=heads, rows=rows, setting=lines
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    return path


def _png(table: pd.DataFrame, metric: str) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")  # not pyplot's: nobody else sees it
    plot_comparison(table, metric, ax=figure.subplots())
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return base64.b64encode(buffer.getvalue()).decode()


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.9rem; }}
caption {{ text-align: left; padding: 0.4rem 0; }}
th, td {{ border-bottom: 1px solid #bbb; padding: 0.35rem 0.7rem; text-align: right; white-space: nowrap; }}
th:first-child {{ text-align: left; }}
img {{ max-width: 100%; height: auto; }}
dt {{ font-weight: 600; }}
</style>
</head>
<body>
<h1>{title}</h1>
<img src="data:image/png;base64,{image}" alt="{alt}">
<div class="wide" tabindex="0" role="region" aria-label="Table of results">
<table>
<caption>Square brackets hold 95 % intervals. Differences and agreement are against the reference.</caption>
<thead><tr>{heads}</tr></thead>
<tbody>
{rows}
</tbody>
</table>
</div>
<h2>How it was measured</h2>
<dl>
{setting}
</dl>
</body>
</html>
"""
