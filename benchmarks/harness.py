"""The same work by this package and by a peer, or against a limit, in one run, as ratios with their spread.

A benchmark is a function that yields rows; ``@benchmark`` lists it. ``python -m benchmarks`` runs all of them (or those
named) and rewrites their rows in results.md. A ratio above 1 means that ours is better; a row whose target is missed
says so and makes the run fail, so a slow-down cannot land unseen when the table is renewed.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from compresslab.measure import Estimate
from compresslab.workbench.files import atomic_write

FOLDER = Path(__file__).parent
TABLE, ROWS = FOLDER / "results.md", FOLDER / "results.json"


@dataclass(frozen=True)
class Row:
    """One comparison."""

    work: str
    ours: str  # with its unit
    against: str  # the peer or the limit, with its unit
    ratio: float  # above 1: ours is better
    low: float
    high: float
    target: float  # the ratio that must be reached

    @property
    def met(self) -> bool:
        return self.ratio >= self.target


Benchmark = Callable[[], Iterator[Row]]
benchmarks: dict[str, Benchmark] = {}


def benchmark(function: Benchmark) -> Benchmark:
    """List a function that yields rows under its own name."""
    benchmarks[function.__name__] = function
    return function


def against_limit(work: str, values: Sequence[float], limit: float, *, unit: str, less_is_better: bool = True) -> Row:
    """The row of several measurements of one quantity against a limit that must not be passed.

    Args:
        work: what was done.
        values: the repeated measurements.
        limit: the largest value allowed (or the smallest, with ``less_is_better=False``).
        unit: of the values and the limit.
        less_is_better: times and bytes; not rates.
    """
    ratios = sorted(limit / value if less_is_better else value / limit for value in values)
    middle = sorted(values)[len(values) // 2]
    word = "at most" if less_is_better else "at least"
    spread = f"{middle:.3g} {unit} [{min(values):.3g}, {max(values):.3g}]"
    return Row(work, spread, f"{word} {limit:g} {unit}", ratios[len(ratios) // 2], ratios[0], ratios[-1], 1.0)


def against_peer(work: str, ours: str, peer: str, speedup: Estimate, *, target: float) -> Row:
    """The row of an interleaved comparison (``measure.compare_latency``): times as text, peer time / our time."""
    return Row(work, ours, peer, speedup.value, speedup.low, speedup.high, target)


def run(names: Sequence[str] = ()) -> int:
    """Run benchmarks, renew their rows in the table; returns how many of their targets were missed.

    Raises:
        ValueError: a name is not listed.
    """
    unknown = set(names) - set(benchmarks)
    if unknown:
        raise ValueError(f"{sorted(unknown)} are not benchmarks; choose from {', '.join(benchmarks)}")
    missed = 0
    for name in names or list(benchmarks):
        print(f"{name} ...", flush=True)
        rows = []
        for row in benchmarks[name]():
            rows.append(row)
            verdict = "met" if row.met else "MISSED"
            print(f"  {row.work}: {row.ours} against {row.against}: {row.ratio:.2f}x, {verdict}", flush=True)
        _write(name, rows)
        missed += sum(not row.met for row in rows)
    return missed


def _write(name: str, rows: list[Row]) -> None:
    """Put the rows of one benchmark into the table as it is now: other runs may have written theirs meanwhile."""
    with FileLock(FOLDER / "results.lock"):
        kept = json.loads(ROWS.read_text(encoding="utf-8")) if ROWS.is_file() else {}
        kept = {key: old for key, old in kept.items() if key in benchmarks}
        kept[name] = [asdict(row) for row in rows]
        with atomic_write(ROWS) as temporary:
            temporary.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        with atomic_write(TABLE) as temporary:
            temporary.write_text(as_table(kept), encoding="utf-8")


def as_table(kept: dict[str, list[dict]]) -> str:
    """results.md, from the rows."""
    lines = [
        "# Benchmarks",
        "",
        "Made by `make bench`: ours and the other in one run, on one core unless the row says otherwise. A ratio above 1",
        f"means ours is better; in brackets its spread. Last run on {platform.system()}, {platform.machine()},",
        f"Python {platform.python_version()}.",
        "",
        "| benchmark | work | ours | against | ratio | target | met |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, rows in kept.items():
        for row in (Row(**row) for row in rows):
            ratio = f"{row.ratio:.2f} [{row.low:.2f}, {row.high:.2f}]"
            met = "yes" if row.met else "**no**"
            lines.append(f"| {name} | {row.work} | {row.ours} | {row.against} | {ratio} | {row.target:g} | {met} |")
    return "\n".join(lines) + "\n"
