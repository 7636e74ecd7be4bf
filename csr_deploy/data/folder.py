"""Image folders: one folder a class, with or without train and test parts."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from contextlib import suppress

import numpy as np

from csr_deploy.data.dataset import Image, ImageDataset, Split
from csr_deploy.data.store import Store
from csr_deploy.errors import DataError, MissingDependencyError, MissingPartError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
_SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "test": ("test", "val", "valid", "validation"),
}
_TEST_SHARE = 5
# Hidden files and folders, and what macOS adds to a zip.
_HIDDEN = (".", "__MACOSX")


# What Pillow's decoders raise on bytes that are no whole image.
_DAMAGED = (
    ArithmeticError,
    EOFError,
    LookupError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


class FolderDataset(ImageDataset):
    """Image files, decoded when asked for."""

    def __init__(self, store: Store, classes: list[str], files: list[str], labels: list[int]) -> None:
        super().__init__(str(store.path), classes, np.asarray(labels, np.int64))
        self._store = store
        self.files = files

    def image(self, index: int) -> Image:
        name = self.files[index]
        return decode_image(self._store.read(name), self._store.where(name))


def decode_image(content: bytes, where: str) -> Image:
    """Decodes an image file to [H, W, 1] or [H, W, 3] uint8.

    Raises:
        DataError: If the file is damaged or not an image.
    """
    try:
        from PIL import Image as PillowImage
        from PIL import ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise MissingDependencyError("pillow", "pi", "Reading image files", cause=error) from error
    try:
        with PillowImage.open(io.BytesIO(content)) as picture:
            # A camera that is turned writes turned pixels and a note, which may be damaged on its own.
            with suppress(*_DAMAGED):
                ImageOps.exif_transpose(picture, in_place=True)
            if picture.mode == "F":
                raise DataError("has floating-point pixels, whose range is not known", where=where)
            if picture.mode.startswith("I"):
                # 16 bits a pixel: Pillow's own conversion would clip at 255 instead of scaling.
                deep = np.asarray(picture)
                pixels: Image = np.clip(deep // 256, 0, 255).astype(np.uint8)
            else:
                gray = picture.mode in ("1", "L", "LA")
                pixels = np.asarray(picture.convert("L" if gray else "RGB"), dtype=np.uint8)
    except UnidentifiedImageError as error:
        raise DataError("not an image", where=where) from error
    except PillowImage.DecompressionBombError as error:
        raise DataError("too large to be decoded safely", where=where) from error
    except _DAMAGED as error:
        raise DataError(f"damaged ({error})", where=where) from error
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _in_test_part(name: str) -> bool:
    # A hash of the name, not a running index: adding a picture never moves another between the parts.
    return hashlib.sha256(name.encode()).digest()[0] % _TEST_SHARE == 0


def open_folder(store: Store, split: Split) -> FolderDataset:
    """Opens class folders.

    Layouts: `train/<class>/…` with `test/<class>/…` (or val, valid, validation); `<class>/…`, from which a
    fixed fifth, chosen by a hash of the file name, is the test part; images without class folders, which
    have no labels and serve for calibration only. One folder around everything is looked through.

    Raises:
        MissingPartError: If the part asked for is not there.
        DataError: If there is no image, or the parts have different classes.
    """
    files = _unwrapped(_image_files(store))
    tops = {p[0].lower() for p in files.values()}
    folders = {s: f for s, names in _SPLIT_FOLDERS.items() for f in reversed(names) if f in tops}
    if not folders:
        parts = {n: p for n, p in files.items() if _in_test_part("/".join(p)) == (split == "test")}
        return _dataset(store, split, parts, files)
    if split not in folders:
        raise MissingPartError(
            f"has no '{split}' part (it has {', '.join(sorted(tops))})",
            where=str(store.path),
            fix=f"Put those images into a folder '{split}', each class in a folder of its own.",
        )
    by_split = {
        s: {n: p[1:] for n, p in files.items() if p[0].lower() == f and len(p) > 1}
        for s, f in folders.items()
    }
    classes = [{p[0] for p in parts.values() if len(p) > 1} for parts in by_split.values()]
    if len(classes) == 2 and all(classes) and classes[0] != classes[1]:
        raise DataError(
            "its train and test parts have different classes; only in one of them: "
            + ", ".join(sorted(classes[0] ^ classes[1])),
            where=str(store.path),
            fix="Give both parts the same class folders.",
        )
    return _dataset(store, split, by_split[split], by_split[split])


_Parts = dict[str, tuple[str, ...]]


def _image_files(store: Store) -> _Parts:
    """File name → its folders and base name, of all images that are not hidden."""
    files = {
        n: tuple(n.split("/"))
        for n in store.names()
        if n[n.rfind(".") :].lower() in SUFFIXES and not n.startswith(_HIDDEN) and not _inside_hidden(n)
    }
    if not files:
        known = ", ".join(sorted(SUFFIXES))
        raise DataError("holds no image files", where=str(store.path), fix=f"Known: {known}.")
    return files


def _inside_hidden(name: str) -> bool:
    return any(f"/{mark}" in name for mark in _HIDDEN)


def _unwrapped(files: _Parts) -> _Parts:
    """Without the folders that hold everything, as a zip often has."""
    known = {f for names in _SPLIT_FOLDERS.values() for f in names}
    while True:
        tops = {p[0] for p in files.values()}
        inside = all(len(p) > 1 for p in files.values())
        if len(tops) != 1 or not inside or {t.lower() for t in tops} & known:
            return files
        files = {n: p[1:] for n, p in files.items()}


def _dataset(store: Store, split: Split, parts: _Parts, all_parts: _Parts) -> FolderDataset:
    if not parts:
        raise MissingPartError(
            f"its '{split}' part is empty",
            where=str(store.path),
            fix="A fifth of the images, by a hash of their names, is the test part. Give more images, or put "
            "them into folders 'train' and 'test'.",
        )
    loose = sorted(n for n, p in all_parts.items() if len(p) == 1)
    if len(loose) == len(all_parts):
        return FolderDataset(store, [], list(parts), [-1] * len(parts))
    if loose:
        named = ", ".join(loose[:3]) + (", …" if len(loose) > 3 else "")
        raise DataError(
            f"has {len(loose)} images beside the class folders: {named}",
            where=str(store.path),
            fix="Move them into the folder of their class, or away.",
        )
    classes = sorted({p[0] for p in all_parts.values()})
    index = {c: i for i, c in enumerate(classes)}
    return FolderDataset(store, classes, list(parts), [index[p[0]] for p in parts.values()])
