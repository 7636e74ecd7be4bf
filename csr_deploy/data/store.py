"""A folder or a zip file, read the same way."""

from __future__ import annotations

import abc
import zipfile
import zlib
from functools import cached_property
from pathlib import Path

from csr_deploy.errors import DataError

# What zipfile raises for a damaged, encrypted or unknown member.
_UNREADABLE = (
    EOFError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


class Store(abc.ABC):
    """Files by relative POSIX path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        """All files, sorted."""
        return self._names

    @cached_property
    def _names(self) -> list[str]:
        return sorted(set(self._list()))

    @abc.abstractmethod
    def _list(self) -> list[str]:
        """All files."""

    @abc.abstractmethod
    def read(self, name: str) -> bytes:
        """One file's content.

        Raises:
            DataError: If it cannot be read.
        """

    def where(self, name: str) -> str:
        """How to name a file in a message."""
        return f"{self.path}/{name}"


class FolderStore(Store):
    """A directory tree."""

    def _list(self) -> list[str]:
        return [p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if p.is_file()]

    def read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", where=self.where(name)) from error


class ZipStore(Store):
    """A zip file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f"not a readable zip file: {error}", where=str(path)) from error

    def _list(self) -> list[str]:
        return [i.filename for i in self._zip.infolist() if not i.is_dir()]

    def read(self, name: str) -> bytes:
        try:
            return self._zip.read(name)
        except (*_UNREADABLE, OSError) as error:
            raise DataError(f"cannot be read from the zip: {error}", where=self.where(name)) from error

    def where(self, name: str) -> str:
        return f"{self.path}!{name}"


def open_store(path: Path) -> Store:
    """Opens a folder or a zip file.

    Raises:
        DataError: If the path is neither.
    """
    if path.is_dir():
        return FolderStore(path)
    if zipfile.is_zipfile(path):
        return ZipStore(path)
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    if head == b"PK\x03\x04":
        raise DataError("is a truncated or damaged zip file", where=str(path), fix="Copy it again.")
    packed = path.name.lower().endswith((".tar", ".tar.gz", ".tgz", ".gz"))
    raise DataError(
        "is neither a folder nor a zip file",
        where=str(path),
        fix="Unpack it and name the folder." if packed else "Name the folder that holds the files.",
    )
