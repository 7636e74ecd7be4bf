"""Every form of image set, written here and read back; and what is wrong with damaged ones."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from csr_deploy.data import Preprocessing, fit_image, natural_preprocessing, open_dataset, sample
from csr_deploy.data.cifar import CIFAR10_CLASSES
from csr_deploy.data.idx import FASHION_MNIST_CLASSES
from csr_deploy.errors import CheckpointError, DataError, MissingPartError, OptionError

RGB32 = Preprocessing(32, 32, (0.0,) * 3, (1.0,) * 3)
RGB8 = Preprocessing(8, 8, (0.0,) * 3, (1.0,) * 3)


def pictures(count: int, height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3)).astype(np.uint8)


def as_png(pixels: np.ndarray, form: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form)
    return out.getvalue()


# CIFAR-10 batches


def python_batch(images: np.ndarray, labels: list[int]) -> bytes:
    data = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return pickle.dumps({b"data": data, b"labels": labels, b"batch_label": b"a batch"}, protocol=2)


def python2_batch(images: np.ndarray, labels: list[int]) -> bytes:
    """As Python 2 with an old NumPy wrote the distributed files: keys and pixels are byte strings."""

    def body(value: object) -> bytes:
        return pickle.dumps(value, protocol=2)[2:-1]

    def key(name: str) -> bytes:
        return b"U" + bytes([len(name)]) + name.encode()

    data = np.ascontiguousarray(images.transpose(0, 3, 1, 2).reshape(len(images), -1))
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
    kind = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    raw = data.tobytes()
    state = b"(K\x01" + body(data.shape) + kind + b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    return b"\x80\x02}(" + key("data") + array + state + key("labels") + body(labels) + b"u."


def binary_batch(images: np.ndarray, labels: list[int]) -> bytes:
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return b"".join(bytes([label]) + plane.tobytes() for label, plane in zip(labels, planes, strict=True))


def write_cifar(
    folder: Path, batch: Callable[[np.ndarray, list[int]], bytes], suffix: str = ""
) -> tuple[np.ndarray, list[int]]:
    """Five training batches of two images and a test batch of three; gives the training part."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = pictures(10), [int(v) for v in np.arange(10)]
    for index in range(5):
        part = slice(2 * index, 2 * index + 2)
        (folder / f"data_batch_{index + 1}{suffix}").write_bytes(batch(images[part], labels[part]))
    (folder / f"test_batch{suffix}").write_bytes(batch(pictures(3, seed=1), [9, 9, 0]))
    return images, labels


CIFAR_FORMS = {"python": (python_batch, ""), "python2": (python2_batch, ""), "binary": (binary_batch, ".bin")}


@pytest.mark.parametrize("form", CIFAR_FORMS)
@pytest.mark.parametrize("zipped", [False, True])
def test_cifar10_batches(tmp_path: Path, form: str, zipped: bool) -> None:
    images, labels = write_cifar(tmp_path / "cifar", *CIFAR_FORMS[form])
    path = tmp_path / "cifar"
    if zipped:
        path = tmp_path / "cifar.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted((tmp_path / "cifar").iterdir()):
                archive.write(file, f"some/where/{file.name}")
    train, test = open_dataset(path, "train"), open_dataset(path, "test")
    assert train.classes == test.classes == CIFAR10_CLASSES
    loaded, loaded_labels = train.load(RGB32)
    np.testing.assert_array_equal(loaded, images)
    np.testing.assert_array_equal(loaded_labels, labels)
    np.testing.assert_array_equal(test.load(RGB32)[0], pictures(3, seed=1))
    assert test.labels.tolist() == [9, 9, 0]


class Payload:
    """Unpickled, it would make a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (os.mkdir, (str(self.marker),))


def test_code_in_a_python_batch_is_refused_and_not_run(tmp_path: Path) -> None:
    write_cifar(tmp_path, python_batch)
    marker = tmp_path / "ran"
    bad = {b"data": np.zeros((1, 3072), np.uint8), b"labels": [0], b"more": Payload(marker)}
    (tmp_path / "data_batch_3").write_bytes(pickle.dumps(bad))
    with pytest.raises(DataError, match=r"data_batch_3: contains pickled code \(posix.mkdir\)"):
        open_dataset(tmp_path, "train")
    assert not marker.exists()


def python_batches_that_are_none() -> Iterator[tuple[str, bytes]]:
    good = python_batch(pictures(2), [1, 2])
    yield "truncated", good[: len(good) // 2]
    yield "empty", b""
    yield "text", b"hello"
    yield "no dictionary", pickle.dumps([1, 2])
    yield "no labels", pickle.dumps({b"data": np.zeros((1, 3072), np.uint8)})
    yield "no array", pickle.dumps({b"data": [1, 2], b"labels": [1]})
    yield "another type", pickle.dumps({b"data": np.zeros((1, 3072), np.int32), b"labels": [1]})
    yield "another size", pickle.dumps({b"data": np.zeros((1, 3000), np.uint8), b"labels": [1]})
    yield "too few labels", python_batch(pictures(2), [1])
    yield "an unknown label", python_batch(pictures(2), [1, 10])
    yield "a huge array", b"\x80\x02cnumpy\nndarray\n\x8a\x08" + b"\x7f" * 8 + b"\x85\x81."


@pytest.mark.parametrize(("name", "content"), list(python_batches_that_are_none()))
def test_files_that_are_no_python_batch(tmp_path: Path, name: str, content: bytes) -> None:
    write_cifar(tmp_path, python_batch)
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path, "test")
    assert caught.value.where == f"{tmp_path}/test_batch"


def test_cifar10_with_missing_or_cut_files(tmp_path: Path) -> None:
    write_cifar(tmp_path, binary_batch, ".bin")
    (tmp_path / "data_batch_2.bin").unlink()
    with pytest.raises(DataError, match=r"batch files are missing: data_batch_2.bin"):
        open_dataset(tmp_path, "train")
    (tmp_path / "test_batch.bin").write_bytes(bytes(3073 + 5))
    with pytest.raises(DataError, match="3078 bytes are no whole number"):
        open_dataset(tmp_path, "test")


def test_two_sets_of_batches_are_not_mixed(tmp_path: Path) -> None:
    write_cifar(tmp_path / "one", python_batch)
    write_cifar(tmp_path / "two", python_batch)
    with pytest.raises(DataError, match="more than one set of CIFAR-10 batches: one, two"):
        open_dataset(tmp_path, "train")


# IDX


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def write_idx(folder: Path, *, packed: bool = True, name: str = "{}-{}-idx{}-ubyte") -> np.ndarray:
    """Six training images of classes 0–5 and two test images of class 0; gives the training images."""
    folder.mkdir(parents=True, exist_ok=True)
    images = pictures(6, 28, 28)[:, :, :, 0]
    sets = {
        "train": (images, np.arange(6, dtype=np.uint8)),
        "t10k": (pictures(2, 28, 28, 1)[:, :, :, 0], np.zeros(2, np.uint8)),
    }
    for prefix, (pixels, labels) in sets.items():
        for kind, rank, values in (("images", 3, pixels), ("labels", 1, labels)):
            content = idx(np.ascontiguousarray(values))
            base = name.format(prefix, kind, rank)
            (folder / (base + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)
    return images


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["{}-{}-idx{}-ubyte", "{}-{}.idx{}-ubyte"])
def test_idx_files(tmp_path: Path, packed: bool, name: str) -> None:
    images = write_idx(tmp_path / "digits", packed=packed, name=name)
    train, test = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "test")
    # The test part has class 0 only, and yet the same classes.
    assert train.classes == test.classes == tuple("012345")
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 2, 3, 4, 5], [0, 0])
    np.testing.assert_array_equal(train.load(natural_preprocessing(train))[0][..., 0], images)


def test_idx_files_of_one_part_only(tmp_path: Path) -> None:
    write_idx(tmp_path)
    for file in tmp_path.glob("train-*"):
        file.unlink()
    assert len(open_dataset(tmp_path, "test")) == 2
    with pytest.raises(DataError, match="has no 'train' part"):
        open_dataset(tmp_path, "train")


def test_idx_files_that_do_not_belong_together(tmp_path: Path) -> None:
    write_idx(tmp_path / "one")
    (tmp_path / "one" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="its 'test' part has no file of labels"):
        open_dataset(tmp_path, "test")
    write_idx(tmp_path / "two")
    with pytest.raises(DataError, match="more than one IDX set: one, two"):
        open_dataset(tmp_path, "train")
    (tmp_path / "two" / "train-labels-idx1-ubyte.gz").write_bytes(idx(np.zeros(5, np.uint8)))
    with pytest.raises(DataError, match=r"images \(6, 28, 28\) and labels \(5,\) do not fit"):
        open_dataset(tmp_path / "two", "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x01" + bytes(4), "not an IDX file of unsigned bytes"),
        (b"\x00\x00\x08\x03\x00\x00", "truncated IDX header"),
        (idx(np.zeros((6, 2, 2), np.uint8))[:-3], "truncated IDX file: 21 bytes of data instead of 24"),
        (idx(np.zeros((6, 2, 2), np.uint8)) + b"x", "overlong IDX file"),
        (gzip.compress(idx(np.zeros((6, 2, 2), np.uint8)))[:-9], "damaged gzip"),
        (gzip.compress(b"x" * 1000)[:12] + b"\xff" * 30, "damaged gzip"),
        (struct.pack(">BBBB4I", 0, 0, 8, 4, *[1 << 31] * 4), "truncated IDX file: 0 bytes"),
        (idx(np.zeros((0, 2, 2), np.uint8)), "do not fit"),
    ],
)
def test_damaged_idx_files(tmp_path: Path, content: bytes, message: str) -> None:
    write_idx(tmp_path, packed=False)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(tmp_path, "train")
    assert caught.value.where == f"{tmp_path}/train-images-idx3-ubyte"


def test_fashion_mnist_is_known_by_its_labels(fashion_mnist_path: Path, tmp_path: Path) -> None:
    for file in fashion_mnist_path.glob("t10k-*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    test = open_dataset(tmp_path, "test")
    assert len(test) == 10_000
    assert test.classes == FASHION_MNIST_CLASSES
    assert test.classes[int(test.labels[0])] == "Ankle boot"


# Class folders


def write_folders(root: Path, names: list[str], form: str = "PNG") -> None:
    for index, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(as_png(pictures(1, 8, 8, seed=index)[0], form))


def test_folders_with_parts(tmp_path: Path) -> None:
    names = ["Train/cat/1.png", "Train/dog/1.jpg", "Train/dog/sub/2.jpg", "val/cat/3.png", "val/dog/4.png"]
    write_folders(tmp_path, [*names, "train/.hidden/5.png", "notes/readme.png"])
    (tmp_path / "Train" / "cat" / "labels.txt").write_text("no image")
    train, test = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "test")
    assert train.classes == test.classes == ("cat", "dog")
    assert train.labels.tolist() == [0, 1, 1]
    np.testing.assert_array_equal(train.load(RGB8, [0])[0][0], pictures(1, 8, 8, seed=0)[0])
    assert len(test) == 2


def test_a_test_part_is_preferred_to_a_validation_part(tmp_path: Path) -> None:
    write_folders(tmp_path, [f"{part}/{c}/1.png" for part in ("train", "val", "test") for c in "ab"])
    assert {open_dataset(tmp_path, "test").files[0]} == {"test/a/1.png"}  # type: ignore[attr-defined]


def test_folders_without_parts_are_divided_by_name(tmp_path: Path) -> None:
    names = [f"{c}/{i:02}.png" for c in ("cat", "dog") for i in range(40)]
    write_folders(tmp_path / "a", names)
    write_folders(tmp_path / "b" / "wrapped", [*names, "dog/new.png"])
    parts = {}
    for root in ("a", "b"):
        train, test = (open_dataset(tmp_path / root, s) for s in ("train", "test"))
        assert train.classes == test.classes == ("cat", "dog")
        parts[root] = [{f.removeprefix("wrapped/") for f in s.files} for s in (train, test)]  # type: ignore[attr-defined]
    train_files, test_files = parts["a"]
    assert not train_files & test_files
    assert train_files | test_files == set(names)
    assert 0.1 < len(test_files) / len(names) < 0.35
    # One more picture, or a folder around them, moves none of the others.
    assert [part - {"dog/new.png"} for part in parts["b"]] == parts["a"]


@pytest.mark.parametrize("prefix", ["", "export/"])
def test_flat_folders_have_no_labels(tmp_path: Path, prefix: str) -> None:
    write_folders(tmp_path, [f"{prefix}{i}.png" for i in range(30)])
    train = open_dataset(tmp_path, "train")
    assert train.classes == ()
    assert set(train.labels.tolist()) == {-1}
    assert 0 < len(open_dataset(tmp_path, "test")) == 30 - len(train)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_is_read_like_a_folder(tmp_path: Path, image_folder: Path, method: int) -> None:
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(image_folder.rglob("*.png")):
            archive.write(file, Path("wrapped") / file.relative_to(image_folder))
        archive.writestr("__MACOSX/wrapped/train/blue/._00.png", b"junk")
    size = natural_preprocessing(open_dataset(path, "train"))
    assert (size.height, size.width, size.channels) == (16, 16, 3)
    for split in ("train", "test"):
        zipped, plain = open_dataset(path, split), open_dataset(image_folder, split)  # type: ignore[arg-type]
        assert zipped.classes == plain.classes == ("blue", "green", "red")
        for a, b in zip(zipped.load(size), plain.load(size), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("names", "split", "message"),
    [
        (
            ["train/a/1.png", "train/b/1.png", "test/a/1.png"],
            "train",
            "different classes; only in one of them: b",
        ),
        (
            ["train/a/1.png", "test/a/1.png", "test/c/1.png"],
            "test",
            "different classes; only in one of them: c",
        ),
        (["train/a/1.png", "train/b/1.png"], "test", "has no 'test' part .it has train"),
        (
            ["a/1.png", "b/1.png", "b/2.png", "preview.png"],
            "train",
            "has 1 images beside the class folders: preview",
        ),
        (["a/1.png", "b/1.png"], "test", "its 'test' part is empty"),
        ([], "train", "holds no image files"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path: Path, names: list[str], split: str, message: str) -> None:
    write_folders(tmp_path, names)
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(tmp_path, split)  # type: ignore[arg-type]
    assert caught.value.fix


# Damage


def test_a_part_that_is_not_there_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    cifar, idx, folders = tmp_path / "cifar", tmp_path / "idx", tmp_path / "folders"
    cifar.mkdir()
    idx.mkdir()
    write_cifar(cifar, binary_batch, ".bin")
    write_idx(idx)
    write_folders(folders, ["train/a/1.png", "train/b/1.png"])
    (cifar / "test_batch.bin").write_bytes(b"cut")
    (idx / "t10k-labels-idx1-ubyte.gz").unlink()
    for damaged in (cifar, idx):
        with pytest.raises(DataError) as caught:
            open_dataset(damaged, "test")
        assert not isinstance(caught.value, MissingPartError)
    (cifar / "test_batch.bin").unlink()
    for file in idx.glob("t10k-*"):
        file.unlink()
    for partial in (cifar, idx, folders):
        with pytest.raises(MissingPartError):
            open_dataset(partial, "test")


def test_damaged_pictures_are_named_counted_and_left_out(tmp_path: Path) -> None:
    write_folders(tmp_path / "train", [f"{c}/{i:03}.jpg" for c in "ab" for i in range(100)], "JPEG")
    cut = tmp_path / "train" / "a" / "007.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])
    (tmp_path / "train" / "b" / "042.jpg").write_bytes(b"no picture")
    train = open_dataset(tmp_path, "train")
    images, labels = train.load(RGB8)
    assert len(images) == len(labels) == 198
    assert (labels == 0).sum() == 99
    assert len(train.damaged) == 2
    assert str(cut) in train.damaged[0]
    assert "damaged" in train.damaged[0]
    assert "042.jpg: not an image" in train.damaged[1]
    np.testing.assert_array_equal(images[7], train.load(RGB8, [8])[0][0])

    (tmp_path / "train" / "b" / "043.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"3 of 200 images cannot be decoded(.|\n)*007.jpg(.|\n)*up to 1%"):
        train.load(RGB8)
    assert len(train.load(RGB8, max_damaged=0.5)[0]) == 197
    with pytest.raises(DataError, match="1 of 1 images"):
        train.load(RGB8, [7], max_damaged=0.5)
    with pytest.raises(DataError, match="no images"):
        train.load(RGB8, [])


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM"])
def test_overwritten_pictures_never_end_in_another_error(tmp_path: Path, form: str) -> None:
    random = np.random.default_rng(0)
    whole = as_png(pictures(1, 16, 16)[0], form)
    write_folders(tmp_path, ["train/a/1.png", "train/b/2.png"])
    train = open_dataset(tmp_path, "train")
    for _ in range(60):
        broken = bytearray(whole)
        for place in random.integers(0, len(whole), 3):
            broken[place] = random.integers(256)
        (tmp_path / "train/a/1.png").write_bytes(broken[: random.integers(1, len(whole) + 1)])
        try:
            assert train.image(0).dtype == np.uint8
        except DataError as error:
            assert error.where == f"{tmp_path}/train/a/1.png"


def test_a_damaged_zip_member_is_named(tmp_path: Path) -> None:
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("train/a/1.png", "train/b/2.png", "train/b/3.png"):
            archive.writestr(name, as_png(np.zeros((8, 8, 3), np.uint8)))
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        first, last = archive.getinfo("train/a/1.png"), archive.getinfo("train/b/3.png")
    start = first.header_offset + 30 + len(first.filename)
    content[start : start + 8] = b"\xff" * 8
    content[last.header_offset] ^= 0xFF
    path.write_bytes(content)
    train = open_dataset(path, "train")
    for index, name in ((0, "train/a/1.png"), (2, "train/b/3.png")):
        with pytest.raises(DataError, match="cannot be read from the zip") as caught:
            train.image(index)
        assert caught.value.where == f"{path}!{name}"
    assert train.image(1).shape == (8, 8, 3)
    path.write_bytes(content[:-40])
    with pytest.raises(DataError, match="truncated or damaged zip"):
        open_dataset(path, "train")


def test_paths_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_dataset(tmp_path / "none", "train")
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(DataError, match="neither a folder nor a zip(.|\n)*Unpack it"):
        open_dataset(tmp_path / "cifar-10-python.tar.gz", "train")


def test_sets_larger_than_memory_are_refused(image_folder: Path) -> None:
    with pytest.raises(DataError, match=r"72 images of 1000000×1000000 need .* GiB"):
        open_dataset(image_folder, "train").load(Preprocessing(10**6, 10**6, (0.0,) * 3, (1.0,) * 3))


# Pictures of other kinds


def test_gray_and_deep_pictures(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    gray = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(gray).save(tmp_path / "a" / "gray.png")
    Image.fromarray(gray.astype(np.uint16) * 256 + 255).save(tmp_path / "a" / "deep.png")
    Image.fromarray(np.dstack([gray] * 3)).convert("RGBA").save(tmp_path / "b" / "alpha.png")
    Image.fromarray(gray.astype(np.float32)).save(tmp_path / "b" / "float.tiff")
    from csr_deploy.data.folder import decode_image

    for name in ("a/gray.png", "a/deep.png"):
        np.testing.assert_array_equal(decode_image((tmp_path / name).read_bytes(), name)[..., 0], gray)
    assert decode_image((tmp_path / "b/alpha.png").read_bytes(), "alpha").shape == (8, 8, 3)
    with pytest.raises(DataError, match="floating-point"):
        decode_image((tmp_path / "b/float.tiff").read_bytes(), "float")


def test_pictures_are_turned_as_their_note_says() -> None:
    from csr_deploy.data.folder import decode_image

    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:, :3] = 255
    note = Image.Exif()
    note[0x0112] = 6  # to be turned by 90 degrees
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", exif=note)
    turned = decode_image(file.getvalue(), "turned")
    np.testing.assert_array_equal(turned, np.rot90(pixels, -1))

    damaged = io.BytesIO()
    Image.fromarray(pixels).save(damaged, "PNG", exif=b"Exif\0\0no note at all")
    np.testing.assert_array_equal(decode_image(damaged.getvalue(), "damaged"), pixels)


def test_size_and_channels_are_found_out(tmp_path: Path) -> None:
    for index in range(5):
        for name in ("a", "b"):
            (tmp_path / "train" / name).mkdir(parents=True, exist_ok=True)
            Image.new("L", (12, 10 + index)).save(tmp_path / "train" / name / f"{index}.png")
    train = open_dataset(tmp_path, "train")
    with pytest.raises(OptionError, match="different sizes, from 10×12 to 14×12(.|\n)*--image-size"):
        natural_preprocessing(train)
    assert natural_preprocessing(train, (9, 8)) == Preprocessing(9, 8, (0.0,), (1.0,))
    (tmp_path / "train" / "a" / "0.png").write_bytes(b"damaged")
    Image.new("RGB", (12, 10)).save(tmp_path / "train" / "b" / "4.png")
    assert natural_preprocessing(train, (9, 8)).channels == 3
    for file in tmp_path.rglob("*.png"):
        file.write_bytes(b"damaged")
    with pytest.raises(DataError, match="none of its images can be decoded"):
        natural_preprocessing(train)


def test_fit_image_scales_the_shorter_side_and_cuts_the_centre() -> None:
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, 10:30] = 200
    fitted = fit_image(image, RGB8)
    assert fitted.shape == (8, 8, 3)
    assert fitted.min() >= 150
    assert fit_image(image, Preprocessing(8, 8, (0.0,), (1.0,))).shape == (8, 8, 1)
    assert fit_image(image[:, :, 0], RGB8).shape == (8, 8, 3)
    same = np.zeros((8, 8, 3), np.uint8)
    assert fit_image(same, RGB8) is same


def test_measured_preprocessing_normalizes(image_folder: Path) -> None:
    train = open_dataset(image_folder, "train")
    images, _ = train.load(natural_preprocessing(train))
    measured = Preprocessing.from_images(images)
    x = measured.normalize(images)
    assert x.shape == (72, 3, 16, 16)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x.mean(axis=(0, 2, 3)), 0, atol=2e-3)
    np.testing.assert_allclose(x.std(axis=(0, 2, 3)), 1, atol=2e-3)
    assert Preprocessing.from_json(measured.to_json()) == measured
    assert Preprocessing.from_images(np.zeros((2, 4, 4, 1), np.uint8)).std[0] > 0
    with pytest.raises(CheckpointError):
        Preprocessing.from_json({**measured.to_json(), "std": [0.0, 1.0, 1.0]})


# Calibration


def test_draws_are_seeded_and_disjoint(image_folder: Path) -> None:
    train = open_dataset(image_folder, "train")
    size = natural_preprocessing(train)
    first, again = (sample(train, size, 20, seed=3) for _ in range(2))
    assert first.sha256 == again.sha256
    assert len(first) == 20
    other = sample(train, size, 20, seed=4)
    assert other.sha256 != first.sha256
    rest = sample(train, size, 100, seed=3, disjoint_from=20)
    assert len(rest) == 52
    drawn = {image.tobytes() for image in first.images}
    assert len(drawn) == 20
    assert not drawn & {image.tobytes() for image in rest.images}
    np.testing.assert_array_equal(np.bincount(np.concatenate([first.labels, rest.labels])), [24, 24, 24])
    with pytest.raises(DataError, match="too few to draw 5 beyond 72"):
        sample(train, size, 5, seed=3, disjoint_from=72)


# What a device needs


def test_batches_and_idx_need_neither_torch_nor_pillow(tmp_path: Path) -> None:
    write_cifar(tmp_path / "cifar", python_batch)
    write_idx(tmp_path / "idx")
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['PIL'] = None\n"
        "from csr_deploy.data import natural_preprocessing, open_dataset, sample\n"
        "from csr_deploy.errors import MissingDependencyError\n"
        "for name in ('cifar', 'idx'):\n"
        "    train = open_dataset(name, 'train')\n"
        "    print(len(sample(train, natural_preprocessing(train), 4, 0)))\n"
        "try: sample(train, natural_preprocessing(train, (9, 9)), 4, 0)\n"
        "except MissingDependencyError as error: print(error)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split("\n")[:2] == ["4", "4"]
    assert "pip install 'csr-deploy[" in done.stdout


def test_cifar10_of_the_development_machine(cifar10_path: Path) -> None:
    train, test = open_dataset(cifar10_path, "train"), open_dataset(cifar10_path, "test")
    assert (len(train), len(test)) == (50_000, 10_000)
    assert train.classes == test.classes == CIFAR10_CLASSES
    images, labels = test.load(RGB32, range(0, 10_000, 1000))
    assert labels.tolist() == list(range(10))
    assert images.std() > 30
