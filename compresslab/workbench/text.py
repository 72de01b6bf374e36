"""Text in three splits, as bytes: small language models here read the 256 bytes of UTF-8 and need no tokenizer.

``python-docs`` is the language reference inside every Python (``pydoc_data.topics``), so it needs no download; its words
differ a little between Python versions. ``tiny-shakespeare`` and ``wikitext-2`` are fetched once. WikiText-2 comes as
its authors tokenized it: words apart from punctuation, rare words replaced by ``<unk>``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from compresslab.workbench.data import Batches
from compresslab.workbench.download import fetch

__all__ = ["TextSplit", "TextSplits", "python_docs", "text_file", "tiny_shakespeare", "wikitext_2"]

_SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
_WIKITEXT = (
    "https://raw.githubusercontent.com/pytorch/examples/77f55b912142e11fcfdf5b530231fb9c52f181e8"
    "/word_language_model/data/wikitext-2"
)
_WIKITEXT_SHA256 = {
    "train": "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
    "valid": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
    "test": "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
}


@dataclass(frozen=True, eq=False)
class TextSplit:
    """A text as ``tokens`` (N,) uint8, the bytes of its UTF-8.

    Raises:
        TypeError: tokens are not uint8.
        ValueError: tokens are not one row, or fewer than two.
    """

    tokens: Tensor

    def __post_init__(self) -> None:
        if self.tokens.dtype is not torch.uint8:
            raise TypeError(f"tokens must be uint8, the bytes of UTF-8, got {self.tokens.dtype}; use TextSplits.encode")
        if self.tokens.dim() != 1 or len(self.tokens) < 2:
            raise ValueError(f"tokens {tuple(self.tokens.shape)} must be (N,) with N of at least 2; use a longer text")

    def __len__(self) -> int:
        return len(self.tokens)

    def batches(
        self,
        batch_size: int = 32,
        *,
        context: int = 128,
        shuffle: bool = False,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
    ) -> Batches:
        """Batches of (inputs, targets), both (B, context) int64; a target is the token that follows its input.

        The text is cut into windows one after another, so each token is a target once, but for the first and for what
        is left after the last whole window.

        Raises:
            ValueError: a batch size or context out of range.

        Example:
            >>> split = TextSplit(torch.tensor([7, 8, 9, 10, 11, 12], dtype=torch.uint8))
            >>> [(inputs.tolist(), targets.tolist()) for inputs, targets in split.batches(2, context=2)]
            [([[7, 8], [9, 10]], [[8, 9], [10, 11]])]
        """
        if not isinstance(context, int) or not 1 <= context < len(self):
            raise ValueError(
                f"context={context!r} must be a whole number in 1..{len(self) - 1}, the text's length less one"
            )
        span = torch.arange(context + 1)

        def take(index: Tensor) -> tuple[Tensor, Tensor]:
            windows = self.tokens[index.unsqueeze(1) * context + span].long()  # (B, context + 1)
            return windows[:, :-1], windows[:, 1:]

        return Batches(
            take,
            (len(self) - 1) // context,
            batch_size=batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            generator=generator,
        )


@dataclass(frozen=True, eq=False)
class TextSplits:
    """A text data set: choose on ``val``, report on ``test``."""

    name: str
    train: TextSplit
    val: TextSplit
    test: TextSplit

    @property
    def vocab_size(self) -> int:
        """How many tokens there are: 256, one for each byte."""
        return 256

    def encode(self, text: str) -> Tensor:
        """Tokens (N,) uint8 of a text."""
        return _tokens(text.encode())

    def decode(self, tokens: Tensor) -> str:
        """The text of tokens (N,); bytes that are no UTF-8, as a model may write them, become the sign �.

        Example:
            >>> splits = python_docs()
            >>> splits.decode(splits.encode("naïve"))
            'naïve'
        """
        return bytes(tokens.tolist()).decode(errors="replace")


def python_docs() -> TextSplits:
    """The language reference of this Python, split by topic: a topic lies in the same split in every version.

    Some topics repeat parts of others: a paragraph of val or test is taken out of train, and one of test out of val.
    """
    from pydoc_data.topics import topics

    return _by_topic("python-docs", topics)


def _by_topic(name: str, topics: Mapping[str, str]) -> TextSplits:
    parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for topic in sorted(topics):
        parts[_split_of(topic)].append(topics[topic])
    held_out: set[str] = set()
    splits = {}
    for split in ("test", "val", "train"):
        paragraphs = [text for topic in parts[split] for text in _paragraphs(topic) if _plain(text) not in held_out]
        held_out |= {_plain(text) for text in paragraphs}
        splits[split] = TextSplit(_tokens("\n\n".join(paragraphs).encode()))
    return TextSplits(name, **splits)


def _split_of(topic: str) -> str:
    """A tenth of the topics is val, a tenth test. The prefix was chosen so that neither is one long topic."""
    return {8: "val", 9: "test"}.get(hashlib.sha256(f"34{topic}".encode()).digest()[0] % 10, "train")


def _paragraphs(text: str) -> list[str]:
    return [paragraph for paragraph in text.split("\n\n") if paragraph.strip()]


def _plain(paragraph: str) -> str:
    return " ".join(paragraph.split())


def tiny_shakespeare(*, root: str | os.PathLike | None = None, progress: bool = False) -> TextSplits:
    """Forty thousand lines of Shakespeare (1.1 MB), split 90 : 5 : 5 in their order.

    Raises:
        DataUnavailable: the file is not on this machine and cannot be downloaded.
    """
    path = fetch(
        "tiny-shakespeare/input.txt", _SHAKESPEARE, f"sha256:{_SHAKESPEARE_SHA256}", root=root, progress=progress
    )
    return _contiguous("tiny-shakespeare", path)


def wikitext_2(*, root: str | os.PathLike | None = None, progress: bool = False) -> TextSplits:
    """WikiText-2 (13 MB) in its own splits, tokenized, with ``<unk>`` for rare words.

    Raises:
        DataUnavailable: a file is not on this machine and cannot be downloaded.
    """
    splits = {}
    for split, digest in _WIKITEXT_SHA256.items():
        file = f"wikitext-2/{split}.txt"
        path = fetch(file, f"{_WIKITEXT}/{split}.txt", f"sha256:{digest}", root=root, progress=progress)
        splits[split] = TextSplit(_tokens(path.read_bytes()))
    return TextSplits("wikitext-2", train=splits["train"], val=splits["valid"], test=splits["test"])


def text_file(path: str | os.PathLike) -> TextSplits:
    """Any UTF-8 text, split 90 : 5 : 5 in its order, at ends of lines.

    Raises:
        ValueError: the file is not UTF-8, or has too few lines to be cut in three.
    """
    return _contiguous(str(path), Path(path))


def _contiguous(name: str, path: Path) -> TextSplits:
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")  # some editors put this mark first
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} must be UTF-8, got byte {content[error.start]:#04x} at {error.start}; convert it"
        ) from error
    first = content.find(b"\n", len(content) * 90 // 100) + 1
    second = content.find(b"\n", max(first, len(content) * 95 // 100)) + 1
    pieces = content[:first], content[first:second], content[second:]
    if not first or not second or min(map(len, pieces)) < 2:
        raise ValueError(
            f"{path} must have lines enough to be cut at 90 % and 95 %, got {len(content)} bytes; use more text"
        )
    return TextSplits(name, *(TextSplit(_tokens(piece)) for piece in pieces))


def _tokens(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
