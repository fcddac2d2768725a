"""Pictures and the values they become: orientation, transparency, modes, shapes."""

import math
import re

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, PngImagePlugin

from core.data.pixels import Look
from core.errors import UserError
from tests.helpers.pictures import only, read, save

RAMP = np.linspace(0, 1, 64).reshape(8, 8)


# What a viewer shows -> what the file holds, from the EXIF standard's table of row 0 and column 0
STORED = {
    1: lambda shown: shown,
    2: lambda shown: shown[:, ::-1],
    3: lambda shown: shown[::-1, ::-1],
    4: lambda shown: shown[::-1],
    5: lambda shown: shown.T,
    6: lambda shown: shown.T[::-1],
    7: lambda shown: shown.T[::-1, ::-1],
    8: lambda shown: shown.T[:, ::-1],
}


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", STORED)
def test_a_picture_is_turned_as_its_exif_data_say(tmp_path, orientation, suffix):
    shown = np.kron([[0, 60], [120, 240]], np.ones((8, 8))).astype(np.uint8)
    exif = Image.Exif()
    exif[274] = orientation
    options = {"jpg": {"quality": 100}, "webp": {"lossless": True}}.get(suffix, {})
    stored = np.ascontiguousarray(STORED[orientation](shown))
    save(tmp_path / f"a.{suffix}", stored, exif=exif, **options)
    found = only(tmp_path, side=16)[0].numpy()
    np.testing.assert_allclose(found.astype(int), shown, atol=1 if suffix == "jpg" else 0)


def test_deep_pictures_are_turned_too(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    shown = (65535 * RAMP).astype(np.uint16)
    save(tmp_path / "a.png", np.ascontiguousarray(STORED[6](shown)), exif=exif)
    np.testing.assert_array_equal(only(tmp_path)[0].numpy(), np.rint(shown / 257))


def test_exif_data_that_cannot_be_read(tmp_path, capsys):
    save(tmp_path / "a.png", 70, exif=b"garbage")
    assert (only(tmp_path) == 70).all()
    assert "1 with EXIF data that cannot be read, taken as they lie in the file (a.png)" in (
        capsys.readouterr().err
    )


def _half_clear(kind: str, path) -> None:
    """8 x 8: the left half (40, 40, 40) and seen, the right half (200, 200, 200) and not."""
    grey = np.full((8, 8), 40, np.uint8)
    grey[:, 4:] = 200
    seen = np.where(grey == 40, 255, 0).astype(np.uint8)
    rgb = np.repeat(grey[..., None], 3, 2)
    if kind in ("RGBA", "webp"):
        save(
            path.with_suffix(".webp" if kind == "webp" else ".png"),
            np.dstack([rgb, seen]),
            **({"lossless": True, "exact": True} if kind == "webp" else {}),
        )
    elif kind == "LA":
        Image.fromarray(grey).save(path)
        image = Image.open(path).convert("L")
        image.putalpha(Image.fromarray(seen))
        image.save(path)
    elif kind in ("P", "P bytes", "gif"):
        image = Image.fromarray((grey == 200).astype(np.uint8), "P")
        image.putpalette([40] * 3 + [200] * 3)
        clear = b"\xff\x00" if kind == "P bytes" else 1
        image.save(path.with_suffix(".gif" if kind == "gif" else ".png"), transparency=clear)
    elif kind == "RGB":
        save(path, rgb, transparency=(200, 200, 200))
    elif kind == "L":
        save(path, grey, transparency=200)
    elif kind == "I;16":
        save(path, grey.astype(np.uint16) * 257, transparency=200 * 257)


KINDS = ["RGBA", "LA", "P", "P bytes", "RGB", "L", "I;16", "gif", "webp"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_transparent_has_the_background_s_colour(tmp_path, kind):
    _half_clear(kind, tmp_path / "a.png")
    white, blue = only(tmp_path), only(tmp_path, background="#2040ff")
    assert len(white) == (1 if kind in ("LA", "L", "I;16") else 3)
    assert (white[..., :4] == 40).all() and (white[..., 4:] == 255).all()
    assert (blue[..., :4] == 40).all() and blue[:, 0, 4].tolist() == [0x20, 0x40, 0xFF]


@pytest.mark.parametrize("kind", KINDS)
def test_transparency_as_a_fourth_channel(tmp_path, kind):
    """What hides under it is gone."""
    _half_clear(kind, tmp_path / "a.png")
    image = only(tmp_path, alpha="keep", background="black")
    assert image[:, 3, 0].tolist() == [40, 40, 40, 255]
    assert image[:, 3, 7].tolist() == [0, 0, 0, 0]


def test_cut_outs_on_noise(tmp_path):
    """A white disc on noise that nobody sees is white on white, also after resizing; kept, no noise
    leaks over its border."""
    y, x = np.mgrid[:64, :64]
    disc = (x - 32) ** 2 + (y - 32) ** 2 < 20**2
    rgb = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    rgb[disc] = 255
    save(tmp_path / "a.png", np.dstack([rgb, np.where(disc, 255, 0).astype(np.uint8)]))
    assert (only(tmp_path, side=16) == 255).all()
    kept = only(tmp_path, side=16, alpha="keep", background="black")
    assert (kept[:3][:, kept[3] > 0] >= 254).all() and (kept[:3][:, kept[3] == 0] == 0).all()
    assert kept[3, 8, 8] == 255 and kept[3, 0, 0] == 0 and 0 < kept[3].float().mean() < 255


def test_half_transparency_and_pictures_without_any(tmp_path):
    save(tmp_path / "a.png", (200, 100, 0, 128))
    save(tmp_path / "b.png", (10, 20, 30))
    assert read(tmp_path).images[:, :, 0, 0].tolist() == [[227, 177, 127], [10, 20, 30]]
    kept = read(tmp_path, alpha="keep").images[:, :, 0, 0].tolist()
    assert kept == [[200, 100, 0, 128], [10, 20, 30, 255]]


def test_shapes_that_are_not_square(tmp_path):
    """Red on the left, then green, green, blue; each half a side wide."""
    wide = np.zeros((16, 32, 3), np.uint8)
    wide[:, :8, 0] = wide[:, 8:24, 1] = wide[:, 24:, 2] = 255
    save(tmp_path / "a.png", wide)
    crop, stretch = only(tmp_path, side=16), only(tmp_path, side=16, fit="stretch")
    pad = only(tmp_path, side=16, fit="pad", background="#0a0b0c")
    assert (crop[1] == 255).all() and (crop[[0, 2]] == 0).all()
    for image, row in ((stretch, 0), (stretch, 15), (pad, 4), (pad, 11)):
        colours = image[:, row, [1, 6, 9, 14]].T.tolist()
        red, green, _, blue = ([round(c / 255) for c in colour] for colour in colours)
        assert (red, green, blue) == ([1, 0, 0], [0, 1, 0], [0, 0, 1])
    for rows in (pad[:, :4], pad[:, 12:]):
        assert (rows == torch.tensor([10, 11, 12]).view(3, 1, 1)).all()
    clear = only(tmp_path, side=16, fit="pad", background="#0a0b0c", alpha="keep")
    assert clear[:, 0, 0].tolist() == [10, 11, 12, 0] and (clear[3, 4:12] == 255).all()


def test_grey_pictures_stay_grey_on_a_grey_background_only(tmp_path):
    save(tmp_path / "a.png", np.full((8, 4), 9, np.uint8))
    grey, red = only(tmp_path, fit="pad"), only(tmp_path, fit="pad", background="red")
    assert grey[0, 0].tolist() == [255, 255, 9, 9, 9, 9, 255, 255]
    assert red[:, 0, 0].tolist() == [255, 0, 0] and red[:, 0, 2].tolist() == [9, 9, 9]


# CIE LAB of sRGB (120, 60, 30) under D50 by the CIE's formula, as TIFF stores it: L * 2.55, a, b
LAB = Image.frombytes("LAB", (8, 8), bytes([84, 25, 30] * 64))
MODES = {
    "1": (Image.new("1", (8, 8), 1), "png", [255]),
    "L": (Image.new("L", (8, 8), 77), "png", [77]),
    "LA": (Image.new("LA", (8, 8), (77, 255)), "png", [77]),
    "P": (Image.new("RGB", (8, 8), (1, 2, 3)).quantize(2), "png", [1, 2, 3]),
    "RGB": (Image.new("RGB", (8, 8), (1, 2, 3)), "png", [1, 2, 3]),
    "RGBA": (Image.new("RGBA", (8, 8), (1, 2, 3, 255)), "png", [1, 2, 3]),
    "CMYK": (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "tif", [255, 0, 0]),
    "LAB": (LAB, "tif", [120, 60, 30]),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_has_its_rule(tmp_path, mode):
    image, suffix, expected = MODES[mode]
    image.save(tmp_path / f"a.{suffix}")
    with Image.open(tmp_path / f"a.{suffix}") as again:
        assert again.mode == mode
    found = only(tmp_path)[:, 3, 3].tolist()
    assert len(found) == len(expected)
    assert all(
        abs(a - b) <= (2 if mode == "LAB" else 0) for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize(
    "mode, colour, expected",
    [
        ("YCbCr", (76, 85, 255), [254, 0, 0]),
        ("HSV", (0, 255, 255), [255, 0, 0]),
        ("RGBX", (1, 2, 3, 0), [1, 2, 3]),
        ("PA", (0, 255), [0, 0, 0]),
    ],
)
def test_modes_that_few_files_have(mode, colour, expected):
    pixels, grey = Look(8, "crop", (255, 255, 255), False).of(Image.new(mode, (8, 8), colour), None)
    assert pixels.shape == (8, 8, 3) and not grey
    assert np.abs(pixels.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    "suffix, values, said",
    [
        ("tif", (65535 * RAMP).astype(np.uint16), None),
        ("png", (65535 * RAMP).astype(np.uint16), None),
        ("pgm", (65535 * RAMP).astype(np.uint16), None),
        ("tif", (65535 * RAMP).astype(">u2"), None),
        ("tif", RAMP.astype(np.float32), None),
        ("tif", (4095 * RAMP).astype(np.uint16), "16-bit integers .* 0 to 4095"),
        ("png", (4095 * RAMP).astype(np.uint16), "16-bit integers .* 0 to 4095"),
        ("tif", (255 * RAMP).astype(np.int32), "32-bit integers .* 0 to 255"),
        ("tif", (65535 * RAMP).astype(np.int32), "32-bit integers .* 0 to 65535"),
        ("tif", (2000 * RAMP - 1000).astype(np.int32), "32-bit integers .* -1000 to 1000"),
        ("tif", (2 * RAMP - 1).astype(np.float32), "floats .* -1 to 1"),
        ("tif", (300 * RAMP + 50).astype(np.float32), "floats .* 50 to 350"),
    ],
)
def test_the_same_ramp_in_every_depth(tmp_path, capsys, suffix, values, said):
    """Black to white within one level, whatever the format; what is scaled by the data set's own
    range is said in one line."""
    save(tmp_path / f"a.{suffix}", values)
    image = only(tmp_path)
    assert image.shape == (1, 8, 8) and image.min() == 0 and image.max() == 255
    np.testing.assert_allclose(image[0].numpy(), 255 * RAMP, atol=1.001)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (1 if said else 0)
    if said:
        assert re.search(said, lines[0]) and str(tmp_path) in lines[0]


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_the_range_is_that_of_all_files_and_both_splits(tmp_path, kind):
    """The brightest and the darkest picture are in the test split and the training split."""
    for i in range(10):
        save(tmp_path / f"{i}.tif", np.full((8, 8), 100 + 200 * i).astype(kind))  # 100 .. 1900
    train, test = read(tmp_path), read(tmp_path, "test")
    expected = [round(255 * i / 9) for i in range(10)]
    assert train.images[:, 0, 0, 0].tolist() == expected[:9]
    assert test.images[:, 0, 0, 0].tolist() == expected[9:]


def test_one_picture_of_16_bits_makes_all_of_them_16_bits(tmp_path):
    for i, value in enumerate((257, 4095, 257 * 200)):
        save(tmp_path / f"{i}.png", np.full((8, 8), value, np.uint16))
    assert read(tmp_path).images[:, 0, 0, 0].tolist() == [1, 16, 200]


def test_one_value_only_is_black(tmp_path):
    for name, kind in (("a.tif", np.uint16), ("b.tif", np.int32), ("c.tif", np.float32)):
        save(tmp_path / name, np.full((8, 8), 7).astype(kind))
    assert (read(tmp_path).images == 0).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite(tmp_path, value):
    save(tmp_path / "good.tif", RAMP.astype(np.float32))
    bad = RAMP.astype(np.float32)
    bad[2, 2] = value
    save(tmp_path / "bad.tif", bad)
    with pytest.raises(UserError, match=r"bad\.tif holds NaN or infinite values"):
        read(tmp_path)
    np.testing.assert_allclose(
        only(tmp_path, skip_unreadable=True)[0].numpy(), 255 * RAMP, atol=0.51
    )


def _broken(kind: str, path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    if kind == "huge":  # 196 million pixels
        Image.new("1", (14000, 14000)).save(path)
    elif kind == "text":
        about = PngImagePlugin.PngInfo()
        about.add_text("comment", "x" * 1_200_000, zip=True)
        save(path, 99, pnginfo=about)
    elif kind == "cut":
        whole = save(path, noise).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "cut jpeg":
        whole = save(path, noise, format="JPEG").read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "header":
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0\0\0\x0dIHDR\0")
    elif kind == "zeros":
        path.write_bytes(bytes(100))
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "link":
        path.symlink_to(path.parent / "nowhere.png")


BROKEN = {
    "huge": "14000 x 14000 pixels.*178,956,970.*smaller",
    "text": "MAX_TEXT_CHUNK",
    "cut": "OSError",
    "cut jpeg": "OSError",
    "header": "remove or replace",
    "zeros": "remove or replace",
    "empty": "remove or replace",
    "link": "FileNotFoundError",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_cannot_be_read_is_named(tmp_path, capsys, kind):
    """In one line; or it is counted and left out, on request."""
    for i in range(3):
        save(tmp_path / f"{i}.png", i)
    _broken(kind, tmp_path / "broken.png")
    with pytest.raises(UserError, match=rf"^{tmp_path}/broken\.png .*{BROKEN[kind]}") as error:
        read(tmp_path)
    assert "\n" not in str(error.value) and "skip_unreadable" in str(error.value)
    assert read(tmp_path, skip_unreadable=True).images[:, 0, 0, 0].tolist() == [0, 1, 2]
    err = capsys.readouterr().err
    assert err == f"data.root={tmp_path}: 1 left out because they cannot be read (broken.png)\n"


@pytest.mark.parametrize("error", [SyntaxError, MemoryError, ValueError, IndexError, EOFError])
def test_whatever_pillow_raises_names_the_file(tmp_path, monkeypatch, error):
    save(tmp_path / "a.png", 1)

    def load(self):
        raise error("two\nlines")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(UserError, match=rf"a\.png .*{error.__name__}: two lines"):
        read(tmp_path)


def test_a_skipped_file_does_not_count_for_the_split(tmp_path):
    """Every tenth readable image is the test split."""
    for i in range(11):
        save(tmp_path / f"{i:02}.png", i)
    _broken("cut", tmp_path / "04.png")
    assert read(tmp_path, "test", skip_unreadable=True).images[:, 0, 0, 0].tolist() == [10]
