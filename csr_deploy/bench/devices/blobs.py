"""Files on the device by their hash: only what is missing is sent, and what arrives is checked.

The source of this file is also sent to a device that has nothing of csr-deploy yet; so it imports only
Python's own modules. Requests come one a line as JSON, `{"do": "need" | "put" | "tree", …}`, the bytes of a
file right behind its line; each is answered with one line, `{"value": …}` or `{"error": …}`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

HELLO = "csr-agent "
_BLOCK = 1 << 20
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class BlobError(Exception):
    """Something that the other end should know.

    Attributes:
        kind: "full" (no space left), "changed" (a hash differs) or "unwritable".
        what: One sentence.
    """

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(what)
        self.kind = kind
        self.what = what


def free_bytes(folder: Path) -> int:
    """Free bytes for this user on the file system of a folder."""
    state = os.statvfs(folder)
    return state.f_bavail * state.f_frsize


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def unwritable(error: OSError) -> BlobError:
    """What a failed write means."""
    if error.errno in FULL:
        return BlobError("full", f"the device's disk is full ({error.strerror})")
    return BlobError("unwritable", f"cannot be written on the device: {error.strerror or error}")


class BlobStore:
    """Files in `blobs/`, named by their SHA-256, and folders made of them.

    Args:
        folder: Where everything of csr-deploy is on the device.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._blobs = folder / "blobs"

    def path(self, sha256: str) -> Path:
        """Where a file of that hash is or will be."""
        return self._blobs / sha256

    def need(self, files: Mapping[str, int]) -> dict[str, Any]:
        """Which of these hashes are missing, and how much space there is.

        Args:
            files: SHA-256 → size in bytes.
        """
        try:
            self._blobs.mkdir(parents=True, exist_ok=True)
            missing = [sha for sha, size in files.items() if not self._has(sha, size)]
            return {"missing": missing, "free_bytes": free_bytes(self._blobs)}
        except OSError as error:
            raise unwritable(error) from error

    def _has(self, sha256: str, size: int) -> bool:
        try:
            return self.path(sha256).stat().st_size == size
        except FileNotFoundError:
            return False

    def put(self, stream: IO[bytes], sha256: str, size: int) -> None:
        """Takes a file from a stream. All its bytes are read, whatever happens to them.

        Raises:
            BlobError: If there is no space, or the bytes are not those that were promised.
        """
        left, digest = size, hashlib.sha256()
        temporary = None
        try:
            handle, name = tempfile.mkstemp(prefix=".incoming-", dir=self._blobs)
            temporary = Path(name)
            with os.fdopen(handle, "wb") as file:
                while left:
                    block = stream.read(min(left, _BLOCK))
                    if not block:
                        raise EOFError("the connection ended in the middle of a file")
                    left -= len(block)
                    digest.update(block)
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            if digest.hexdigest() != sha256:
                raise BlobError("changed", "a file arrived with other bytes than were sent")
            temporary.replace(self.path(sha256))
            temporary = None
        except OSError as error:
            raise unwritable(error) from error
        finally:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    temporary.unlink()
            while left:
                block = stream.read(min(left, _BLOCK))
                if not block:
                    break
                left -= len(block)

    def tree(self, name: str, files: Mapping[str, str]) -> str:
        """Makes a folder of files that are here; gives its path. An existing one stays.

        Args:
            name: Of the folder, relative.
            files: Name in it → SHA-256.

        Raises:
            BlobError: If it cannot be written.
        """
        target = self._folder / name
        if target.is_dir():
            return str(target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            making = Path(tempfile.mkdtemp(prefix=".making-", dir=target.parent))
            try:
                for file, sha256 in files.items():
                    place = making / file
                    place.parent.mkdir(parents=True, exist_ok=True)
                    os.link(self.path(sha256), place)
                making.replace(target)
            finally:
                shutil.rmtree(making, ignore_errors=True)
        except OSError as error:
            raise unwritable(error) from error
        return str(target)

    def drop(self, sha256s: Sequence[str], trees: Sequence[str] = ()) -> None:
        """Removes files whose bytes are wrong, and folders made of them."""
        for sha256 in sha256s:
            with contextlib.suppress(OSError):
                self.path(sha256).unlink()
        for name in trees:
            shutil.rmtree(self._folder / name, ignore_errors=True)


def serve(
    requests: IO[bytes], replies: IO[bytes], answer: Callable[[Mapping[str, Any], IO[bytes]], Any]
) -> None:
    """Answers requests until they end.

    Args:
        requests: One JSON object a line; the bytes of a `put` follow its line.
        replies: Where answers go.
        answer: Called with each request and the stream; gives plain values or raises `BlobError`.
    """
    while line := requests.readline():
        if not line.endswith(b"\n"):
            return
        reply: dict[str, Any]
        try:
            reply = {"value": answer(json.loads(line), requests)}
        except BlobError as error:
            reply = {"error": {"kind": error.kind, "what": error.what}}
        except EOFError:
            return
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()


def answer_files(store: BlobStore, request: Mapping[str, Any], stream: IO[bytes]) -> Any:
    """Answers what concerns files only.

    Raises:
        BlobError: If it cannot be done.
        KeyError: If the request is another one.
    """
    do = request["do"]
    if do == "need":
        return store.need(request["files"])
    if do == "put":
        return store.put(stream, request["sha256"], request["size"])
    if do == "tree":
        return store.tree(request["name"], request["files"])
    if do == "drop":
        return store.drop(request["sha256s"])
    raise KeyError(do)


def main() -> None:
    """Serves files only, on a device that has no csr-deploy yet."""
    store = BlobStore(Path(sys.argv[-1]).expanduser())
    replies = sys.stdout.buffer
    replies.write((HELLO + "{}\n").encode())
    replies.flush()
    serve(sys.stdin.buffer, replies, lambda request, stream: answer_files(store, request, stream))


if __name__ == "__main__":
    main()
