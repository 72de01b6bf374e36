"""Real data for benchmarks: CIFAR-10 (re-encoded as JPEG) and the public ResNet-20, fine-tuned on it once and kept.

Both lie in ``shared/data`` beside the checkout, or in the folder that ``COMPRESSLAB_DATA`` names. The public weights
were trained on the original images and reach 81 % on these; two epochs of fine-tuning bring them to 87.9 %, which a
compressed model is compared with. They saw the images of ``val`` as well: only ``test`` tells how good a model is.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from compresslab.workbench import data, models, train
from compresslab.workbench.download import cached, shared_folder
from compresslab.workbench.files import DataUnavailable, load_tensors, sha256_of

__all__ = ["cifar10_jpeg", "resnet20"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what the public weights expect
OPTIONS = {"epochs": 2, "batch_size": 128, "lr": 1e-3, "weight_decay": 0.01}
IMAGES, WEIGHTS = "cifar10-jpeg.zip", "resnet20-cifar10.safetensors"


def cifar10_jpeg() -> data.Splits:
    """45,000 training, 5,000 validation and 10,000 test images (3, 32, 32), normalized as the public weights expect.

    Raises:
        DataUnavailable: the archive is not there; the message says where it is looked for.
    """
    splits = data.load(_find(IMAGES))
    parts = {name: getattr(splits, name) for name in ("train", "val", "test")}
    return replace(splits, **{k: replace(part, mean=IMAGENET_MEAN, std=IMAGENET_STD) for k, part in parts.items()})


def resnet20() -> tuple[nn.Module, data.Splits]:
    """The fine-tuned ResNet-20 in eval mode and its data; the first call trains for some minutes, later ones load.

    Raises:
        DataUnavailable: the weights or the images are not there; the message says where they are looked for.
    """
    weights, splits = _find(WEIGHTS), cifar10_jpeg()
    model = models.build("resnet", in_channels=3, classes=10, shortcut="pad")

    def make() -> tuple[dict[str, Tensor], dict[str, str]]:
        public = {**model.state_dict(), **load_tensors(weights)[0]}  # which do not count their batches
        model.load_state_dict(public)
        return train.fit(model, splits.train, **OPTIONS, progress=True).model.state_dict(), {}

    key = data._key(sha256_of(weights), sha256_of(_find(IMAGES)), OPTIONS)
    model.load_state_dict(cached(f"benchmarks/resnet20-{key}.safetensors", make)[0])
    return model.eval(), splits


def _find(name: str) -> Path:
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folders = [folder for folder in (shared_folder(), beside) if folder is not None]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    places = " or ".join(map(str, folders))
    raise DataUnavailable(f"{name} is not in {places}; put it there, or set COMPRESSLAB_DATA to the folder that has it")
