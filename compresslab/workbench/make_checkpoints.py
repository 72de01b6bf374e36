"""Train the checkpoints of the course: ``python -m compresslab.workbench.make_checkpoints [names...] [--list]``.

Every model is built, trained and saved by the functions that the lessons use. One thread, so that the same machine
gives the same weights to the bit; two names in two terminals use two cores.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from compresslab.workbench import checkpoints, data, models
from compresslab.workbench.text import TextSplit
from compresslab.workbench.train import evaluate, fit, jitter

__all__ = ["RECIPES", "Recipe", "fingerprint", "main", "make"]

SEED = 0


@dataclass(frozen=True)
class Recipe:
    """How one checkpoint is made: what to build, the data set, and the options of ``fit``."""

    architecture: str
    model: dict = field(default_factory=dict)
    data: str = "glyphs"
    fit: dict = field(default_factory=dict)

    def named(self) -> dict:
        """The options of ``fit`` with functions by their names, as JSON can hold them."""
        return {option: getattr(value, "__name__", value) for option, value in self.fit.items()}


RECIPES = {
    "mlp": Recipe("mlp", {"width": 64}, fit={"epochs": 80, "augment": jitter}),
    "vgg": Recipe("vgg", fit={"epochs": 12, "lr": 4e-3, "augment": jitter}),
    "resnet": Recipe("resnet", {"depth": 2, "stride": 2}, fit={"epochs": 20, "lr": 4e-3, "augment": jitter}),
    "separable": Recipe("separable", {"depth": 3}, fit={"epochs": 20, "lr": 4e-3, "augment": jitter}),
    "vit": Recipe("vit", {"patch": 8}, fit={"epochs": 40, "batch_size": 64, "augment": jitter}),
    "gpt": Recipe("gpt", data="python-docs", fit={"epochs": 12, "batch_size": 8, "lr": 4e-3}),
    "moe_gpt": Recipe("moe_gpt", {"depth": 3}, data="python-docs", fit={"epochs": 12, "batch_size": 8, "lr": 4e-3}),
    "lstm": Recipe("lstm", data="python-docs", fit={"epochs": 25, "batch_size": 16, "lr": 5e-3}),
}


def make(name: str) -> dict:
    """Train one checkpoint, save it, and return its entry in the manifest.

    Args:
        name: one of ``RECIPES``.

    Returns:
        What ``checkpoints.manifest`` says from now on.
    """
    recipe = RECIPES[name]
    splits = data.load(recipe.data)
    model = models.build(recipe.architecture, generator=torch.Generator().manual_seed(SEED), **recipe.model)
    fitted = fit(model, splits.train, val=splits.val, progress=True, seed=SEED, **recipe.fit)
    measured = evaluate(fitted.model, splits.val)
    checkpoints.save(
        name,
        fitted.model,
        data={"name": recipe.data, "val_sha256": fingerprint(splits.val)},
        metrics={**measured.as_row(), "val_n": measured.n},
        command=f"python -m compresslab.workbench.make_checkpoints {name}",
        seed=SEED,
        fit=recipe.named(),
        torch=torch.__version__,
    )
    entry = checkpoints.manifest(name)
    print(f"{name}: {_summary(entry)}, trained in {fitted.seconds:.0f} s")
    return entry


def fingerprint(split: data.Split | TextSplit) -> str:
    """The sha256 of a split's images or tokens: glyphs differ with the fonts, python-docs with Python.

    Args:
        split: of images or text.

    Returns:
        64 hexadecimal digits.
    """
    content = split.images if hasattr(split, "images") else split.tokens
    return hashlib.sha256(content.contiguous().numpy()).hexdigest()


def _words(recipe: Recipe) -> str:
    return f"{recipe.architecture} {recipe.model} on {recipe.data}, fit {recipe.named()}"


def _summary(entry: dict) -> str:
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in entry["metrics"].items())
    return f"{entry['parameters']:,} parameters, {entry['bytes']:,} bytes, {metrics}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the checkpoints that the command line names, or list them.

    Args:
        arguments: words of the command line; those of the process without it.
    """
    parser = argparse.ArgumentParser(prog="python -m compresslab.workbench.make_checkpoints", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which to make: {', '.join(RECIPES)} (all of them without a name)")
    parser.add_argument("--list", action="store_true", help="show the recipes and what there is; train nothing")
    chosen = parser.parse_args(arguments)
    for name in chosen.names:
        if name not in RECIPES:
            parser.error(f"{name!r} is not a checkpoint; the names are {', '.join(RECIPES)}")
    if chosen.list:
        _list()
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in chosen.names or RECIPES:
            print(f"{name}: {_words(RECIPES[name])}")
            make(name)
    finally:
        torch.set_num_threads(threads)


def _list() -> None:
    for name, recipe in RECIPES.items():
        print(f"{name}: {_words(recipe)}")
        try:
            entry = checkpoints.manifest(name)
        except (OSError, ValueError):
            print("    not made yet")
        else:
            print(f"    {_summary(entry)}")


if __name__ == "__main__":
    main()
