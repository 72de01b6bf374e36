"""Texts as bytes: windows, splits that share nothing, and where they come from."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslab.workbench import text
from compresslab.workbench.data import load
from compresslab.workbench.files import DataUnavailable
from compresslab.workbench.text import TextSplit, TextSplits, text_file

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COMPRESSLAB_OFFLINE", "1")
    monkeypatch.delenv("COMPRESSLAB_DATA", raising=False)


def split_of(count: int) -> TextSplit:
    return TextSplit((torch.arange(count) % 256).to(torch.uint8))


# Windows


def test_windows_by_hand():
    # 0 1 2 | 3 4 5 | 6 7 8 are the inputs of context 3; 9 is the last target, 10 is left over.
    batches = list(split_of(11).batches(2, context=3))
    assert [inputs.tolist() for inputs, _ in batches] == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8]]]
    assert [targets.tolist() for _, targets in batches] == [[[1, 2, 3], [4, 5, 6]], [[7, 8, 9]]]
    assert all(part.dtype is torch.int64 for batch in batches for part in batch)


@given(count=st.integers(3, 250), context=st.integers(1, 20), batch_size=st.integers(1, 9), shuffle=st.booleans())
@settings(derandomize=True, deadline=None, max_examples=60)
def test_each_token_is_a_target_once(count, context, batch_size, shuffle):
    if context >= count:
        return
    batches = split_of(count).batches(batch_size, context=context, shuffle=shuffle)
    pairs = [pair for inputs, targets in batches for pair in zip(inputs, targets, strict=True)]
    assert len(batches) == math.ceil(((count - 1) // context) / batch_size)
    assert all(torch.equal(inputs + 1, targets) for inputs, targets in pairs)
    seen = sorted(token for _, targets in pairs for token in targets.tolist())
    assert seen == list(range(1, 1 + (count - 1) // context * context))


def test_shuffled_windows_come_in_a_new_order_each_time():
    batches = split_of(200).batches(4, context=5, shuffle=True, generator=torch.Generator().manual_seed(1))
    first, second = ([inputs[:, 0].tolist() for inputs, _ in batches] for _ in range(2))
    assert first != second
    again = split_of(200).batches(4, context=5, shuffle=True, generator=torch.Generator().manual_seed(1))
    assert first == [inputs[:, 0].tolist() for inputs, _ in again]


def test_drop_last_leaves_out_the_smaller_batch():
    batches = split_of(11).batches(2, context=3, drop_last=True)
    assert [len(inputs) for inputs, _ in batches] == [2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 0}, r"context=0 must be a whole number in 1\.\.10"),
        ({"context": 11}, r"context=11 must be a whole number in 1\.\.10, the text's length less one"),
        ({"context": 2.0}, r"context=2\.0 must be"),
        ({"batch_size": 0, "context": 3}, "batch_size=0 must be a whole number of at least 1; try 64"),
        (
            {"context": 3, "batch_size": 4, "drop_last": True},
            "batch_size=4 with drop_last leaves no batch of 3 samples",
        ),
    ],
)
def test_windows_check_their_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        split_of(11).batches(**options)


def test_a_split_checks_its_tokens():
    with pytest.raises(TypeError, match=r"tokens must be uint8, the bytes of UTF-8, got torch.int64; use TextSplits"):
        TextSplit(torch.arange(5))
    for wrong in (torch.zeros(1, dtype=torch.uint8), torch.zeros(4, 4, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"tokens \(.*\) must be \(N,\) with N of at least 2"):
            TextSplit(wrong)


@given(st.text())
@settings(derandomize=True, deadline=None, max_examples=100)
def test_encode_and_decode_are_inverse(written):
    splits = TextSplits("x", *[split_of(2)] * 3)
    assert splits.vocab_size == 256
    assert splits.decode(splits.encode(written)) == written


def test_bytes_that_are_no_text_are_marked():
    splits = TextSplits("x", *[split_of(2)] * 3)
    assert splits.encode("é").tolist() == [0xC3, 0xA9]
    assert splits.decode(torch.tensor([65, 0xC3, 66])) == "A\ufffdB"


# The language reference


def paragraphs(split: TextSplit) -> set[str]:
    return {" ".join(part.split()) for part in bytes(split.tokens.tolist()).decode().split("\n\n")}


def test_python_docs_share_no_paragraph_between_splits():
    splits = load("python-docs")
    train, val, test = (paragraphs(part) for part in (splits.train, splits.val, splits.test))
    assert not train & val
    assert not train & test
    assert not val & test
    assert len(splits.train) > 300_000
    assert min(len(splits.val), len(splits.test)) > 10_000
    assert "yield" in splits.decode(splits.train.tokens)


def test_a_repeated_paragraph_stays_where_it_is_held_out():
    names = {
        part: next(name for name in map(str, range(1000)) if text._split_of(name) == part)
        for part in ("train", "val", "test")
    }
    topics = {
        names["train"]: "only train\n\nof  test and\ntrain\n\nof val and train",
        names["val"]: "of val and train\n\nof val and test",
        names["test"]: "of test and train\n\nof val and test\n\n   \n\nonly test",
    }
    splits = text._by_topic("x", topics)
    assert splits.decode(splits.train.tokens) == "only train"
    assert splits.decode(splits.val.tokens) == "of val and train"
    assert splits.decode(splits.test.tokens) == "of test and train\n\nof val and test\n\nonly test"


def test_a_topic_stays_in_its_split():
    """A change of the rule would put what old checkpoints were trained on into val and test.

    By hand, with sha256sum: the digest of "34assert" begins with 0x24 = 36, which ends in 6: train. "34naming": 0xbc =
    188, 8: val. "34import": 0x13 = 19, 9: test.
    """
    assert [text._split_of(topic) for topic in ("assert", "naming", "import")] == ["train", "val", "test"]


# Files


def test_a_file_is_cut_at_ends_of_lines(tmp_path):
    # 40 lines of 10 bytes. 90 % is byte 360, the start of line 36, whose end is at 370. 95 % is 380: its line ends at 390.
    path = tmp_path / "Ein Text ü.txt"
    path.write_bytes(b"".join(b"line %04d\n" % i for i in range(40)))
    splits = load(path)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [370, 20, 10]
    assert splits.decode(splits.val.tokens) == "line 0037\nline 0038\n"
    assert splits.name == str(path)


def test_the_mark_of_utf8_is_left_out(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbf" + b"ab\n" * 40)
    assert bytes(text_file(tmp_path / "a").train.tokens[:3].tolist()) == b"ab\n"


@pytest.mark.parametrize("content", [b"", b"one line" * 100, b"ab\n" * 5, b"x" * 1000 + b"\n"])
def test_too_few_lines(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=f"a must have lines enough to be cut .*got {len(content)} bytes"):
        load(tmp_path / "a")


def test_a_file_that_is_not_utf8(tmp_path):
    (tmp_path / "a").write_bytes("Grüße\n".encode("latin-1") * 50)
    with pytest.raises(ValueError, match="a must be UTF-8, got byte 0xfc at 2; convert it"):
        load(tmp_path / "a")


def test_options_of_other_data_are_refused(tmp_path):
    with pytest.raises(TypeError, match="python-docs has no option 'size'; its options: none"):
        load("python-docs", size=3)


# Downloads


def test_tiny_shakespeare_is_found_by_its_checksum(tmp_path, monkeypatch):
    content = b"".join(b"line %d\n" % i for i in range(200))
    (tmp_path / "tiny-shakespeare").mkdir()
    (tmp_path / "tiny-shakespeare" / "input.txt").write_bytes(content)
    monkeypatch.setattr(text, "_SHAKESPEARE_SHA256", hashlib.sha256(content).hexdigest())
    splits = load("tiny-shakespeare", root=tmp_path)
    assert splits.name == "tiny-shakespeare"
    assert sum(len(part) for part in (splits.train, splits.val, splits.test)) == len(content)


def test_wikitext_2_has_its_own_splits(tmp_path, monkeypatch):
    (tmp_path / "data" / "wikitext-2").mkdir(parents=True)
    contents = {split: f" = {split} <unk> = \n".encode() * 3 for split in ("train", "valid", "test")}
    for split, content in contents.items():
        (tmp_path / "data" / "wikitext-2" / f"{split}.txt").write_bytes(content)
    digests = {split: hashlib.sha256(content).hexdigest() for split, content in contents.items()}
    monkeypatch.setattr(text, "_WIKITEXT_SHA256", digests)
    monkeypatch.setenv("COMPRESSLAB_DATA", str(tmp_path))
    splits = load("wikitext-2")
    for part, split in ((splits.train, "train"), (splits.val, "valid"), (splits.test, "test")):
        assert bytes(part.tokens.tolist()) == contents[split]


@pytest.mark.parametrize(
    ("name", "file"), [("tiny-shakespeare", "tiny-shakespeare/input.txt"), ("wikitext-2", "wikitext-2/train.txt")]
)
def test_without_a_network_the_file_is_named(tmp_path, name, file):
    with pytest.raises(DataUnavailable, match=f"{file} is not on this machine") as caught:
        load(name, root=tmp_path)
    assert str(tmp_path / file) in str(caught.value)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("tinyshakespeare.txt", text._SHAKESPEARE_SHA256),
        ("wikitext2-valid.txt", text._WIKITEXT_SHA256["valid"]),
        ("wikitext2-test.txt", text._WIKITEXT_SHA256["test"]),
    ],
)
def test_the_checksums_are_those_of_the_real_files(file, expected):
    if not (SHARED / file).is_file():
        pytest.skip(f"needs {file} in the folder shared/data beside the checkout")
    assert hashlib.sha256((SHARED / file).read_bytes()).hexdigest() == expected
