"""For the whole test run: the learner's own progress is left alone, nothing may be downloaded, and one thread is enough.

The tests' tensors are tiny. With two threads each operation waits for the slower one, which on a machine that has other
things to do makes some tests forty times slower. (Notebooks choose for themselves.)
"""

import os
import sys

import pytest

os.environ["COMPRESSLAB_PROGRESS"] = "off"
os.environ["COMPRESSLAB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _the_same_weights_in_any_order():
    """Layers that a test makes start from the same random numbers, whichever tests ran before it in this process."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
