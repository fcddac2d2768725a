"""Folders as people have them: which files are images, which subfolders classes, and the split."""

import os
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from core.config import config_sha256, parse
from core.data import DataConfig
from core.data.folder import natural
from core.errors import UserError
from tests.helpers.pictures import read, save


def _classes(root, **counts: int) -> None:
    """Class k of grey value 100 k + i in picture i."""
    for k, (name, count) in enumerate(counts.items()):
        for i in range(count):
            save(root / name / f"{i}.png", 100 * k + i)


def _values(data) -> list[int]:
    return data.images[:, 0, 0, 0].tolist()


def _bits(root, seed: int, names: tuple[str, ...]) -> None:
    rng = np.random.default_rng(seed)
    shapes = [(16, 12, 3), (8, 8, 3), (9, 20, 3), (12, 8), (8, 8, 4)]
    for name in names:
        for i in range(11):
            pixels = rng.integers(0, 256, shapes[i % 5], dtype=np.uint8)
            if pixels.shape[-1] == 4:
                pixels[..., 3] = 255
            save(root / name / f"{i}.png", pixels)
    deep = rng.integers(0, 65536, (10, 8), dtype=np.uint16)
    save(root / "a" / "deeper" / "x.tif", deep)


def test_plain_folders_keep_their_bits(tmp_path):
    """The hashes that the first version of `folder` gave, so that published rows stay right."""
    _bits(tmp_path / "plain", 0, ("a", "b", "c"))
    grey = np.random.default_rng(1)
    for i in range(23):
        pixels = grey.integers(0, 256, (7 + i % 3, 9), dtype=np.uint8)
        save(tmp_path / "grey" / f"{i}.png", pixels)
    for name, split, size, sha256 in (
        ("plain", "train", 31, "e7f1756c722099ce6d5d180149d59914236efdcb52f7ddcafa308828e5f23901"),
        ("plain", "test", 3, "9d53830d4554bef0e3164b133eb4ed908cdcc19133ab3e90dbb8322a360243b8"),
        ("grey", "train", 21, "32e25fe8ae06ac3af6554f5b4783e58841a0fb05f74e1748af41746e6b5ae85b"),
        ("grey", "test", 2, "68dfdd04cb0d8e9249a8aa6bd183fa5a5df8af089efefd6956b860422382695a"),
    ):
        data = read(tmp_path / name, split)
        assert (len(data), data.sha256) == (size, sha256) and data.name == name


APPLE_DOUBLE = b"\0\5\26\7\0\2\0\0Mac OS X" + bytes(100)


def test_hidden_folders_and_files_are_neither_classes_nor_images(tmp_path, capsys):
    _classes(tmp_path, cats=5, dogs=5)
    save(tmp_path / ".ipynb_checkpoints" / "0-checkpoint.png", 250)
    save(tmp_path / "cats" / ".ipynb_checkpoints" / "0-checkpoint.png", 250)
    save(tmp_path / ".thumbnails" / "0.png", 250)
    save(tmp_path / "__MACOSX" / "cats" / "0.png", 250)
    (tmp_path / "dogs" / "._0.png").write_bytes(APPLE_DOUBLE)
    for name in (".DS_Store", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"not an image")
    train, test = read(tmp_path), read(tmp_path, "test")
    assert train.class_names == ("cats", "dogs") and train.num_classes == 2
    assert _values(train) + _values(test) == [0, 1, 2, 3, 4, 100, 101, 102, 103, 104]
    assert capsys.readouterr().err == (  # once, although both splits were read
        f"data.root={tmp_path}: passed over 7 that are hidden "
        "(.DS_Store, .ipynb_checkpoints, .thumbnails, ...)\n"
    )


def test_a_data_set_may_itself_lie_in_a_hidden_folder(tmp_path):
    _classes(tmp_path / ".cache" / "images", a=2)
    assert _values(read(tmp_path / ".cache" / "images")) == [0, 1]


def test_linked_folders_and_files_are_read(tmp_path):
    _classes(tmp_path / "disk", dogs=2, birds=3)
    _classes(tmp_path / "root", cats=2)
    for name in ("dogs", "birds"):
        (tmp_path / "root" / name).symlink_to(tmp_path / "disk" / name)
    save(tmp_path / "elsewhere.png", 77)
    (tmp_path / "root" / "cats" / "x.png").symlink_to(tmp_path / "elsewhere.png")
    data = read(tmp_path / "root")
    assert data.class_names == ("birds", "cats", "dogs")
    assert _values(data) == [100, 101, 102, 0, 1, 77, 0, 1]
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]


def test_links_in_a_circle_end(tmp_path, capsys):
    _classes(tmp_path, a=2, b=1)
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "b" / "self").symlink_to(tmp_path / "b")
    assert _values(read(tmp_path)) == [0, 1, 100]
    assert "passed over 2 that link to a folder above (a/up, b/self)" in capsys.readouterr().err


@pytest.mark.parametrize("seed", range(8))
def test_random_trees_hold_what_find_finds(tmp_path, seed):
    """Against `find -L`, which follows links and guards against circles in its own way."""
    rng = np.random.default_rng(seed)
    outside, root = tmp_path / "outside", tmp_path / "root"
    folders = [root, outside]
    for i in range(12):
        name = rng.choice(["x", ".x", "__MACOSX", "x.png", "Ä y"]) + str(i)
        if name.startswith("__"):
            name = "__MACOSX"
        folders.append(folders[rng.integers(len(folders))] / name)
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    value = 0
    for i in range(40):
        folder = folders[rng.integers(len(folders))]
        name = rng.choice(["a.png", "b.PNG", "c", ".d.png", "._e.png", "f.unknown", "7.tif"])
        if not (folder / f"{name}").exists():
            save(folder / name, value, format="TIFF" if name.endswith("tif") else "PNG")
            value += 1
    for i in range(4):
        link = folders[rng.integers(len(folders))] / f"link{i}"
        link.symlink_to(folders[rng.integers(1, len(folders))])
    save(root / "sub" / "always.png", 200)
    for path in root.iterdir():  # images beside subfolders are refused
        if path.is_file():
            path.unlink()
    hidden = ["-not", "-path", f"{root}/*/.*", "-not", "-path", f"{root}/.*"]
    hidden += ["-not", "-path", "*/__MACOSX/*"]
    command = ["find", "-L", str(root), "-type", "f", *hidden]
    found = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    expected = sorted(int(np.asarray(Image.open(f))[0, 0]) for f in found)
    assert sorted(_values(read(root)) + _values(read(root, "test"))) == expected
    assert expected[-1] == 200


FORMATS = {
    "png": "PNG",
    "JPEG": "JPEG",
    "jfif": "JPEG",
    "jpe": "JPEG",
    "gif": "GIF",
    "ppm": "PPM",
    "pgm": "PPM",
    "jp2": "JPEG2000",
    "tga": "TGA",
    "ico": "ICO",
    "webp": "WEBP",
    "bmp": "BMP",
    "TIF": "TIFF",
    "PcX": "PCX",
    "xyz": "PNG",  # no image's name
    "": "JPEG",
}


def test_every_format_is_read_whatever_its_name(tmp_path, capsys):
    suffixes = sorted(FORMATS)
    for i, suffix in enumerate(suffixes):
        name = f"{i:02}.{suffix}" if suffix else f"{i:02}"
        save(tmp_path / name, 10 * (i + 1), format=FORMATS[suffix])
    both = {*_values(read(tmp_path)), *_values(read(tmp_path, "test"))}
    assert both == {10 * (i + 1) for i in range(len(suffixes))}
    assert capsys.readouterr().err == ""


def test_avif_files(tmp_path):
    from PIL import features

    if not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    save(tmp_path / "a.avif", 90, quality=100)
    assert abs(_values(read(tmp_path))[0] - 90) <= 1


def test_what_is_no_image_is_passed_over_and_counted(tmp_path, capsys):
    _classes(tmp_path, a=2)
    for name in ("a/0.txt", "a/1.txt", "labels.csv", "README", "data.npy"):
        (tmp_path / name).write_bytes(b"0 0.5 0.5 some words, no picture")
    (tmp_path / "data.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    (tmp_path / "clip.mpg").write_bytes(b"\0\0\1\xb3\x16\0\xf0\x15" + bytes(100))
    os.mkfifo(tmp_path / "pipe.png")
    assert _values(read(tmp_path)) == [0, 1]
    assert capsys.readouterr().err == (
        f"data.root={tmp_path}: passed over 8 that are no images (README, a/0.txt, a/1.txt, ...)\n"
    )


@pytest.mark.parametrize("name", ["a.JPG", "b.Tiff", "c.jfif"])
def test_a_file_named_as_an_image_is_not_passed_over(tmp_path, name):
    _classes(tmp_path, a=2)
    (tmp_path / "a" / name).write_bytes(b"no picture")
    with pytest.raises(UserError, match=f"{name} is not a readable image: remove"):
        read(tmp_path)


def test_of_several_frames_the_first_is_taken(tmp_path, capsys):
    frames = [Image.new("L", (8, 8), v) for v in (10, 60, 110)]
    for suffix in ("gif", "tif", "png", "webp"):
        options = {"lossless": True} if suffix == "webp" else {}
        frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    save(tmp_path / "b.gif", 5)
    assert _values(read(tmp_path)) == [10, 10, 10, 10, 5]
    assert capsys.readouterr().err == (
        f"data.root={tmp_path}: 4 with several frames, of which the first is taken "
        "(a.gif, a.png, a.tif, ...)\n"
    )


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    """A class does not go missing silently."""
    _classes(tmp_path, a=1, b=1)
    closed = str(tmp_path / "b")

    def refusing(listing):
        def listed(path="."):
            if str(path) == closed:
                raise PermissionError(13, "Permission denied", closed)
            return listing(path)

        return listed

    for name in ("scandir", "listdir"):  # pathlib takes one or the other
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    with pytest.raises(UserError, match=f"{closed} cannot be read: Permission denied"):
        read(tmp_path)


def test_a_link_to_nowhere_is_an_error(tmp_path):
    _classes(tmp_path, a=2)
    (tmp_path / "b").symlink_to(tmp_path / "unplugged")
    with pytest.raises(UserError, match=f"{tmp_path}/b is not a readable image.*FileNotFound"):
        read(tmp_path)


def test_classes_are_in_natural_order(tmp_path):
    for i, name in enumerate(("class1", "class2", "class10")):
        save(tmp_path / name / "a.png", i)
    data = read(tmp_path)
    assert data.class_names == ("class1", "class2", "class10") and data.num_classes == 3
    assert {v: k for v, k in zip(_values(data), data.labels.tolist(), strict=True)} == {
        0: 0,
        1: 1,
        2: 2,
    }
    assert data.seen_by(0).class_names == ()


def test_natural_order():
    names = ["", "1", "02", "2", "10", "B", "a", "a1b2", "a1b10", "a2", "a10", "a10b", "b", "²"]
    for seed in range(20):
        shuffled = np.random.default_rng(seed).permutation(names).tolist()
        assert sorted(shuffled, key=natural) == names
        # where no name holds a digit, it is the alphabetical order
        letters = [n for n in shuffled if not any(c.isdigit() for c in n)]
        assert sorted(letters, key=natural) == sorted(letters)


def _split(root, name: str, classes: tuple[str, ...], count: int, first: int) -> None:
    for k, c in enumerate(classes or ("",)):
        for i in range(count):
            save(root / name / c / f"{i}.png", first + 10 * k + i)


@pytest.mark.parametrize("classes", [("cats", "dogs"), ()])
@pytest.mark.parametrize(
    "train, test, unused",
    [
        ("train", "test", None),
        ("train", "val", None),
        ("Train", "Validation", None),
        ("train", "valid", None),
        ("train", "test", "val"),
    ],
)
def test_a_folder_with_its_own_split(tmp_path, capsys, train, test, unused, classes):
    _split(tmp_path, train, classes, 12, 100)
    _split(tmp_path, test, classes, 3, 0)
    if unused:
        _split(tmp_path, unused, classes, 3, 200)
    found = {s: read(tmp_path, s) for s in ("train", "test")}
    for split, count, first in (("train", 12, 100), ("test", 3, 0)):
        data = found[split]
        pairs = sorted(zip(_values(data), data.labels.tolist(), strict=True))
        assert pairs == sorted(
            (first + 10 * k + i, k) for k in range(max(1, len(classes))) for i in range(count)
        )
        assert data.class_names == classes and data.num_classes == len(classes)
    end = f"; {unused} is not used" if unused else ""
    assert capsys.readouterr().err == (
        f"data.root={tmp_path}: train from {train}, test from {test}{end}\n"
    )


def test_a_split_without_a_test_part(tmp_path, capsys):
    """Every tenth image, as in a plain folder."""
    _split(tmp_path, "train", ("cats", "dogs"), 10, 0)
    train, test = read(tmp_path), read(tmp_path, "test")
    assert (len(train), len(test)) == (18, 2) and test.labels.tolist() == [0, 1]
    assert test.class_names == ("cats", "dogs")
    assert "train from train, test is every tenth image of it" in capsys.readouterr().err


def test_a_class_that_the_test_split_lacks(tmp_path):
    _split(tmp_path, "train", ("a", "b", "c"), 1, 0)
    _split(tmp_path, "test", ("a", "c"), 1, 0)
    assert read(tmp_path, "test").labels.tolist() == [0, 2]
    assert read(tmp_path, "test").num_classes == 3


@pytest.mark.parametrize(
    "files, message",
    [
        ("train/a/0 test/a/0 birds/0 cats/0", r"mixes splits \(test, train\).*\(birds, cats\)"),
        ("train/a/0 birds/0", r"mixes splits \(train\) with other folders \(birds\)"),
        ("train/a/0 0", "images both beside and inside subfolders"),
        ("train/a/0 train/0 test/a/0", "/train has images both beside and inside"),
        ("train/0 val/0 valid/0", r"one split twice \(train, val, valid\)"),
        ("test/a/0", r"has test and no train"),
        ("test/a/0 val/a/0", r"has test, val and no train"),
        ("train/a/0 train/b/0 test/a/0 test/z/0", r"/test has classes that train has not \(z\)"),
        ("train/a/0 train/b/0 test/0", r"/train has classes \(a, b\) and test has none"),
        ("train/0 test/b/0", r"/test has classes that train has not \(b\)"),
        ("a/0 0", "images both beside and inside subfolders"),
    ],
)
def test_folders_that_are_neither_classes_nor_a_split(tmp_path, files, message):
    for name in files.split():
        save(tmp_path / f"{name}.png", 0)
    with pytest.raises(UserError, match=f"data.root={tmp_path}.*{message}"):
        read(tmp_path)


def test_folders_without_images_are_no_classes(tmp_path):
    _split(tmp_path, "train", ("a",), 2, 0)
    _split(tmp_path, "test", ("a",), 2, 0)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "0.json").write_text("{}")
    assert len(read(tmp_path)) == 2


def test_few_images(tmp_path):
    """Below ten images the test split is empty."""
    for i in range(9):
        save(tmp_path / f"{i}.png", i)
    train, test = read(tmp_path), read(tmp_path, "test")
    assert (len(train), test.images.shape, test.labels.shape) == (9, (0, 1, 8, 8), (0,))
    assert test.images.dtype == torch.uint8


def test_no_images(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(UserError, match=f"data.root={tmp_path} holds no images"):
        read(tmp_path)
    assert "passed over 1 that are no images (notes.txt)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "values, message",
    [
        ({"side": 1}, "side: .*greater than or equal to 2"),
        ({"side": 5000}, "side: .*less than or equal to 4096"),
        ({"fit": "squash"}, "fit: .*'crop', 'pad' or 'stretch'"),
        ({"alpha": "drop"}, "alpha: .*'composite' or 'keep'"),
        ({"background": "whiet"}, "background: a colour is a name such as white, or '#rrggbb'"),
        ({"background": "#fff"}, "background: .*'#rrggbb'"),
        ({"background": None}, "background: .*in quotes"),
        ({"background": 0}, "background: .*in quotes"),
        ({"skip_unreadable": "yes"}, "skip_unreadable: .*boolean"),
        ({"name": "digits", "fit": "pad"}, "fit is a key for the data set folder, not digits"),
    ],
)
def test_wrong_values_of_keys(values, message):
    with pytest.raises(UserError, match=message):
        parse(DataConfig, {"name": "folder", "root": "x", "side": 8, **values}, "test")


def test_keys_at_their_defaults_leave_a_config_s_hash_as_it_was():
    """The hash that a config had before these keys were there."""
    old = DataConfig(name="folder", root="x", side=8)
    spelt = DataConfig(name="folder", root="x", side=8, fit="crop", background="white")
    assert old.model_dump() == {"name": "folder", "root": "x", "side": 8}
    assert config_sha256(old) == config_sha256(spelt)
    for change in ({"fit": "pad"}, {"alpha": "keep"}, {"background": "red"}):
        changed = DataConfig(name="folder", root="x", side=8, **change)
        assert config_sha256(changed) != config_sha256(old)
        assert DataConfig(**changed.model_dump()) == changed
