"""Data sets from small files of the real formats, and the order in which training draws from
them."""

import gzip
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from core.codec import Pixels
from core.data import ImageData, ImageSource, load_data
from core.errors import UserError
from tests.helpers.archives import write_cifar

CPU = torch.device("cpu")


def test_rounding_survives_the_way_in_and_out():
    pixels = torch.arange(256, dtype=torch.uint8)
    codec = Pixels()
    inside = codec.encode(pixels)
    assert inside[0] == -1 and inside[255] == 1 and torch.equal(codec.decode(inside), pixels)
    assert torch.equal(codec.decode(inside + 0.49 / 127.5), pixels)  # rounds, does not cut
    assert codec.decode(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]


def test_digits():
    sklearn = pytest.importorskip("sklearn.datasets").load_digits()
    train, test = load_data("digits"), load_data("digits", "test")
    assert (len(train), len(test)) == (1348, 449)
    assert (
        train.images.shape == (1348, 1, 8, 8)
        and train.images.dtype == torch.uint8
        and train.num_classes == 10
    )
    # together they are scikit-learn's, each image once, scaled from 0..16 to 0..255
    both = sorted(
        [
            bytes(i.numpy().tobytes()) + bytes([int(k)])
            for d in (train, test)
            for i, k in zip(d.images, d.labels)
        ]
    )
    expected = np.rint(sklearn.images / 16 * 255).astype(np.uint8)
    assert both == sorted(i.tobytes() + bytes([int(k)]) for i, k in zip(expected, sklearn.target))
    assert train.sha256 != test.sha256 == load_data("digits", "test").sha256


def _idx(array: np.ndarray) -> bytes:
    """As yann.lecun.com/exdb/mnist describes it."""
    return gzip.compress(
        struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
    )


@pytest.fixture
def mnist(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for prefix, count in (("train", 7), ("t10k", 3)):
        images, labels = (
            rng.integers(0, 256, (count, 28, 28), np.uint8),
            rng.integers(0, 10, count, np.uint8),
        )
        (tmp_path / f"{prefix}-images-idx3-ubyte.gz").write_bytes(_idx(images))
        (tmp_path / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(_idx(labels))
        arrays[prefix] = images, labels
    return tmp_path, arrays


def test_idx_files(mnist):
    root, arrays = mnist
    for split, prefix in (("train", "train"), ("test", "t10k")):
        data, (images, labels) = load_data("fashion_mnist", split, str(root)), arrays[prefix]
        np.testing.assert_array_equal(data.images.numpy()[:, 0], images)
        assert data.labels.tolist() == labels.tolist() and data.labels.dtype == torch.int64
        assert (data.channels, data.side, data.num_classes, data.split) == (1, 28, 10, split)


@pytest.mark.parametrize("keep", [0, 3, 40, -20])
def test_truncated_idx_file(mnist, keep):
    root, _ = mnist
    file = root / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match="train-images-idx3-ubyte.gz"):
        load_data("fashion_mnist", "train", str(root))


@pytest.mark.parametrize(
    "content",
    [b"not gzip at all", gzip.compress(b"short"), _idx(np.zeros((9, 28, 28), np.uint8))[:-3000]],
    ids=["no gzip", "no idx", "cut"],
)
def test_broken_idx_file(mnist, content):
    root, _ = mnist
    (root / "t10k-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(UserError, match="t10k-images-idx3-ubyte.gz"):
        load_data("fashion_mnist", "test", str(root))


def test_idx_file_shorter_than_it_says(mnist):
    root, _ = mnist
    whole = gzip.decompress((root / "train-images-idx3-ubyte.gz").read_bytes())
    (root / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(whole[:-1]))
    with pytest.raises(UserError, match="complete"):
        load_data("fashion_mnist", "train", str(root))


def test_images_and_labels_that_do_not_belong_together(mnist):
    root, _ = mnist
    (root / "train-labels-idx1-ubyte.gz").write_bytes(_idx(np.zeros(6, np.uint8)))
    with pytest.raises(UserError, match="7.*6"):
        load_data("fashion_mnist", "train", str(root))


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="train-images-idx3-ubyte.gz"):
        load_data("fashion_mnist", root=str(tmp_path))
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=f"{root}.*no images"):
            load_data("folder", root=str(root), side=8)
    with pytest.raises(UserError, match="data.side"):
        load_data("folder", root=str(tmp_path))


def test_unknown_names(tmp_path):
    with pytest.raises(UserError, match="did you mean 'fashion_mnist'"):
        load_data("fashion-mnist")
    with pytest.raises(UserError, match="split 'valid'"):
        load_data("digits", "valid")


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    pytest.importorskip("torchvision")
    return tmp_path, write_cifar(tmp_path, monkeypatch)


def test_cifar10(cifar):
    root, files = cifar
    train, test = load_data("cifar10", root=str(root)), load_data("cifar10", "test", str(root))
    assert train.images.shape == (10, 3, 32, 32) and test.images.shape == (2, 3, 32, 32)
    for i in range(10):
        entry = files[f"data_batch_{i // 2 + 1}"]
        assert train.images[i].flatten().tolist() == entry["data"][i % 2].tolist()
        assert train.labels[i] == entry["labels"][i % 2]
    assert (
        test.labels.tolist() == files["test_batch"]["labels"]
        and train.num_classes == 10
        and train.flip
    )


def test_cifar10_that_is_not_there(tmp_path, monkeypatch):
    torchvision = pytest.importorskip("torchvision")

    def offline(self):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", offline)
    with pytest.raises(UserError, match=f"{tmp_path}/cifar-10-batches-py.*OSError"):
        load_data("cifar10", root=str(tmp_path))


def _save(path, array: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(array).save(path)


def test_folder_of_grey_classes(tmp_path):
    for i in range(10):
        _save(tmp_path / "cats" / f"{i:02}.png", np.full((8, 8), 10 + i, np.uint8))
        _save(tmp_path / "dogs" / f"{i:02}.png", np.full((8, 8), 110 + i, np.uint8))
    train, test = (load_data("folder", split, str(tmp_path), 8) for split in ("train", "test"))
    assert (len(train), len(test)) == (18, 2) and train.channels == 1 and train.num_classes == 2
    assert train.labels.tolist() == [0] * 9 + [1] * 9 and test.labels.tolist() == [0, 1]
    assert train.images[:, 0, 0, 0].tolist() == [*range(10, 19), *range(110, 119)]
    assert test.images[:, 0, 3, 3].tolist() == [19, 119]


def test_folder_is_resized_and_cropped_to_the_centre(tmp_path):
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, :16, 0], wide[:, 16:32, 1], wide[:, 32:, 2] = 255, 200, 255  # red, green, blue
    _save(tmp_path / "a.png", wide)
    _save(tmp_path / "b.png", wide.transpose(1, 0, 2))
    _save(tmp_path / "c.png", np.full((4, 4), 77, np.uint8))  # grey and too small, beside colour
    data = load_data("folder", root=str(tmp_path), side=8)
    assert (
        data.images.shape == (3, 3, 8, 8)
        and data.num_classes == 0
        and data.labels.tolist() == [0, 0, 0]
    )
    for image in data.images[:2]:
        inner = image[:, 2:-2, 2:-2].float()
        assert inner[1].mean() > 190 and inner[0].max() < 20 and inner[2].max() < 20
    assert (data.images[2] == 77).all()


@pytest.mark.parametrize("top", [65535, 30000])
def test_folder_of_16_bit_images(tmp_path, top):
    """Scaled to 8 bits, not clipped."""
    values = np.linspace(0, top, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    data = load_data("folder", root=str(tmp_path), side=8)
    assert data.channels == 1
    np.testing.assert_allclose(data.images[0, 0].numpy(), values / 65535 * 255, atol=0.51)


def test_folder_mistakes(tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="a.png is not a readable image"):
        load_data("folder", root=str(tmp_path), side=8)
    _save(tmp_path / "a.png", np.zeros((8, 8), np.uint8))
    _save(tmp_path / "sub" / "b.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(UserError, match="beside and inside"):
        load_data("folder", root=str(tmp_path), side=8)


def _numbered(size: int, flip: bool = False) -> ImageData:
    """Image i holds i on its left half and 100 + i on its right; its label is i mod 5."""
    left = torch.arange(size, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 2)
    return ImageData(
        "numbered", "train", torch.cat([left, left + 100], dim=-1), torch.arange(size) % 5, 5, flip
    )


def _drawn(
    data: ImageData, positions: torch.Tensor, seed: int = 3
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which images, and whether mirrored."""
    batch = ImageSource(data, seed).draw(positions, CPU)
    left = Pixels().decode(batch.x0)[:, 0, 0, 0].long()
    mirrored = left >= 100
    index = torch.where(mirrored, left - 100, left)
    assert torch.equal(batch.condition.label, index % 5) and torch.equal(
        batch.rng.indices, positions
    )
    return index, mirrored


def test_every_epoch_visits_every_image_once():
    epochs = _drawn(_numbered(50), torch.arange(200))[0].view(4, 50)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(50))
    orders = {tuple(epoch.tolist()) for epoch in epochs} | {tuple(range(50))}
    orders.add(tuple(_drawn(_numbered(50), torch.arange(50), seed=4)[0].tolist()))
    assert len(orders) == 6


@pytest.mark.parametrize("size", [1, 7, 64])
def test_batches_do_not_matter(size):
    """Any split of the stream, resumed by a fresh order at any point, gives the same images, flips
    and noise."""
    data, positions = _numbered(50, flip=True), torch.arange(20, 190)
    index, mirrored = _drawn(data, positions)
    parts = [_drawn(data, part) for part in positions.split(size)]
    assert torch.equal(index, torch.cat([i for i, _ in parts]))
    assert torch.equal(mirrored, torch.cat([m for _, m in parts]))
    assert 0.3 < float(mirrored.float().mean()) < 0.7

    noise = ImageSource(data, 3).draw(positions, CPU).rng.normal((2,), "x")
    again = ImageSource(data, 3).draw(positions[-7:], CPU).rng.normal((2,), "x")
    assert torch.equal(noise[-7:], again)


def test_processes_share_an_epoch():
    """Two processes that take every other position see each image once between them."""
    data = _numbered(50)
    a, b = (_drawn(data, torch.arange(start, 100, 2))[0] for start in (0, 1))
    whole = _drawn(data, torch.arange(100))[0]
    assert torch.equal(torch.stack([a, b], dim=1).flatten(), whole)


def test_no_classes_no_labels():
    data = ImageData(
        "plain",
        "train",
        torch.zeros(3, 1, 2, 2, dtype=torch.uint8),
        torch.zeros(3, dtype=torch.long),
        0,
    )
    assert ImageSource(data, 0).draw(torch.arange(3), CPU).condition.label is None
