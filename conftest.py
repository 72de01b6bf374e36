"""For the whole test run: the learner's own progress is left alone, and nothing may be downloaded."""

import os

os.environ["COMPRESSLAB_PROGRESS"] = "off"
os.environ["COMPRESSLAB_OFFLINE"] = "1"
