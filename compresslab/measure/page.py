"""A report as one page that can be mailed: headings, paragraphs, tables and figures, all of it in one file.

The page holds its figures and style itself: no scripts and nothing fetched, so it reads the same in ten years and behind
any firewall. Every text in it is escaped, since names of models come from anywhere.
"""

from __future__ import annotations

import base64
import contextlib
import io
import os
import platform
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["software", "write_page"]


def write_page(
    path: str | Path, *, title: str, parts: Sequence[str | pd.DataFrame | Mapping[str, str] | tuple[Figure, str]]
) -> Path:
    """Write the page to ``path``, all or nothing, and return the path.

    Args:
        path: of the page; its folder is made.
        title: heading of the page.
        parts: from top to bottom: a text (a heading where it begins with "# "), a table, a mapping (a list of terms), or
            a figure with the text for those who do not see it.

    Raises:
        TypeError: a part is none of these.

    Example:
        >>> import tempfile
        >>> path = write_page(Path(tempfile.mkdtemp()) / "a.html", title="a < b", parts=["# why", "x < y"])
        >>> text = path.read_text(encoding="utf-8")
        >>> "<h1>a &lt; b</h1>" in text, "<h2>why</h2>" in text, "<p>x &lt; y</p>" in text
        (True, True, True)
    """
    page = _PAGE.format(title=escape(title), body="\n".join(_html(part) for part in parts))
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


def software() -> dict[str, str]:
    """What a result depends on beside its data: versions and the processor."""
    return {
        "Software": f"torch {torch.__version__}, Python {platform.python_version()}",
        "Processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores",
    }


def _html(part: str | pd.DataFrame | Mapping[str, str] | tuple[Figure, str]) -> str:
    if isinstance(part, str):
        return f"<h2>{escape(part[2:])}</h2>" if part.startswith("# ") else f"<p>{escape(part)}</p>"
    if hasattr(part, "itertuples"):
        return _table(part)
    if isinstance(part, Mapping):
        lines = (f"<dt>{escape(str(key))}</dt><dd>{escape(str(value))}</dd>" for key, value in part.items())
        return "\n".join(("<dl>", *lines, "</dl>"))
    if isinstance(part, tuple) and len(part) == 2 and hasattr(part[0], "savefig"):
        figure, alt = part
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
        return f'<img src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}" alt="{escape(alt)}">'
    raise TypeError(f"a part must be a text, a table, a mapping or (figure, text), got {type(part).__name__}")


def _table(table: pd.DataFrame) -> str:
    heads = "".join(
        f'<th scope="col">{escape(str(head))}</th>' for head in [table.index.name or "name", *table.columns]
    )
    rows = (
        f'<tr><th scope="row">{escape(str(name))}</th>'
        + "".join(f"<td>{escape(str(cell))}</td>" for cell in row)
        + "</tr>"
        for name, row in zip(table.index, table.itertuples(index=False), strict=True)
    )
    return "\n".join(
        (
            '<div class="wide" tabindex="0" role="region" aria-label="Table"><table>',
            f"<thead><tr>{heads}</tr></thead>", "<tbody>", *rows, "</tbody></table></div>",
        )
    )  # fmt: skip


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
th, td {{ border-bottom: 1px solid #bbb; padding: 0.35rem 0.7rem; text-align: right; white-space: nowrap; }}
th:first-child {{ text-align: left; }}
img {{ max-width: 100%; height: auto; }}
dt {{ font-weight: 600; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""
