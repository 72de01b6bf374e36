"""``python -m benchmarks [name ...]``: run the benchmarks and renew results.md."""

import importlib
import sys
from pathlib import Path

from benchmarks.harness import run

for path in sorted(Path(__file__).parent.glob("bench_*.py")):
    importlib.import_module(f"benchmarks.{path.stem}")
sys.exit(run(sys.argv[1:]) > 0)
