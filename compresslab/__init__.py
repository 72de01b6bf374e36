"""compresslab: neural-network compression, learned by measuring.

The package is the map of the lessons; importing it loads nothing heavy (no torch).

    formats         lesson 01       quantization    lessons 02 to 04
    pruning         lessons 05, 06, 10              importance      lesson 07
    distillation    lesson 08       factorization   lesson 09
    export          lesson 11       measure         lesson 00 (and the last table of every lesson)

    workbench       data, small models, the training loop, checkpoints: what every lesson uses and none teaches
    testing         hostile models and the checks that every method passes
    course          exercises, quizzes, progress: what makes notebooks a course
"""

__version__ = "0.1.0"
__all__ = ["__version__"]
