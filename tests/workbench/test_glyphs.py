"""Rendered glyphs: what is drawn, that it repeats, and that arguments are checked."""

from __future__ import annotations

import string

import pytest
import torch
from fontTools.ttLib import TTFont

from compresslab.workbench import glyphs


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_fonts_are_21_and_draw_all_62_characters():
    assert len(glyphs.fonts()) == len(set(glyphs.fonts())) == 21
    assert sorted(string.ascii_letters + string.digits) == sorted(glyphs.CHARACTERS)
    families = {
        family: [name for name in glyphs.fonts() if name.startswith(family)] for family in ("DejaVu", "STIX", "cm")
    }
    assert [len(found) for found in families.values()] == [12, 4, 5]
    assert "cmmi10" not in families["cm"], "its digits are old-style"
    assert not [name for name in glyphs.fonts() if "Display" in name or "Siz" in name or "NonUni" in name]
    for name in glyphs.fonts():
        drawn = TTFont(glyphs.font_path(name)).getBestCmap()
        assert set(map(ord, glyphs.CHARACTERS)) <= set(drawn), name


def test_drawings_are_inked_distinct_and_centered():
    drawings = glyphs._draw(glyphs.CHARACTERS, glyphs.fonts(), 64)
    assert drawings.shape == (21 * 62, 64, 64)
    assert (drawings.amax((1, 2)) > 200).all()
    assert len({drawing.numpy().tobytes() for drawing in drawings}) > 1290  # of 1302: a few pairs are the same
    for axis in (1, 2):
        inked = drawings.amax(3 - axis) > 0  # (N, 64)
        first, last = inked.int().argmax(1), 63 - inked.flip(1).int().argmax(1)
        # In height the ink is centered; in width the room that the font gives the character, slanted ones lean out.
        assert ((first + last - 63).abs() <= (1 if axis == 1 else 12)).all()
        assert first.min() > 0, "cut off"


def test_a_label_is_a_character_and_a_group_a_font():
    # Without noise and warp a rendered glyph is its drawing: here the order of drawings is checked instead.
    one = glyphs._draw("AB", ("cmr10",), 64)
    two = glyphs._draw("AB", ("DejaVuSans", "cmr10"), 64)
    assert torch.equal(two[2:], one)
    made = glyphs.render(8, characters="AB", fonts=["DejaVuSans", "cmr10"], generator=seeded())
    assert sorted((made.labels + 2 * made.groups).tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("count", [1, 61, 62, 63, 1302, 1303])
def test_every_character_in_every_font_equally_often(count):
    made = glyphs.render(count, generator=seeded())
    pairs = torch.bincount(made.groups * 62 + made.labels, minlength=21 * 62)
    assert pairs.sum() == count == len(made.images)
    assert pairs.max() - pairs.min() <= 1


def test_images_are_light_on_dark_and_differ():
    made = glyphs.render(1000, size=24, generator=seeded())
    assert made.images.shape == (1000, 1, 24, 24)
    assert made.images.dtype is torch.uint8
    pixels = made.images.flatten(1).float()
    middle, border = made.images[:, :, 8:16, 8:16].float().mean(), made.images[:, :, 0].float().mean()
    assert middle > border + 20
    assert len(pixels.unique(dim=0)) == 1000
    assert 30 < pixels.mean() < 80


def test_the_same_seed_gives_the_same_images_and_another_seed_others():
    first, again, other = (glyphs.render(300, generator=seeded(seed)) for seed in (3, 3, 4))
    for field in ("images", "labels", "groups"):
        assert torch.equal(getattr(first, field), getattr(again, field))
    assert not torch.equal(first.labels, other.labels)
    assert not torch.equal(first.images, other.images)


def test_no_generator_is_seed_0_and_the_global_state_is_left_alone():
    before = torch.get_rng_state()
    assert torch.equal(glyphs.render(50).images, glyphs.render(50, generator=seeded(0)).images)
    assert torch.equal(torch.get_rng_state(), before)


def test_one_two_and_three_threads_give_the_same_images():
    before, made = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            made.append(glyphs.render(2600, generator=seeded(1)).images)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


def test_versions_name_what_decides_the_images():
    versions = glyphs.versions()
    assert set(versions) == {"renderer", "matplotlib", "freetype"}
    assert versions["freetype"][0].isdigit()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count=0 must be at least 1"),
        ({"size": 7}, "size=7 must be at least 8 pixels"),
        ({"fonts": ()}, r"fonts=\(\) must name at least one font"),
        ({"fonts": ["cmr10", "cmr10"]}, r"fonts=\('cmr10', 'cmr10'\) must be distinct"),
        ({"fonts": ["cmr11"]}, "font 'cmr11' must be one of .*did you mean 'cmr10'"),
        ({"fonts": ["cmsy10"]}, "font 'cmsy10' must be one of"),
        ({"characters": "A"}, "characters='A' must be two or more distinct"),
        ({"characters": "AA"}, "characters='AA' must be two or more distinct"),
        ({"characters": "Aé"}, "characters='Aé' must be two or more distinct"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        glyphs.render(options.pop("count", 10), **options)


def test_a_matplotlib_without_the_fonts_is_named(monkeypatch, tmp_path):
    import matplotlib

    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"comes without .*cmr10\.ttf; install matplotlib again"):
        glyphs.font_path("cmr10")
