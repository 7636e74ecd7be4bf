"""Artifacts: reading, writing and refusing what was changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from csr_deploy.artifact import (
    GOLDEN,
    MANIFEST,
    Artifact,
    Golden,
    check_place,
    read_artifact,
    record_file,
    write_golden,
    write_manifest,
)
from csr_deploy.data import Preprocessing
from csr_deploy.errors import ArtifactError, CsrError, ExportError
from csr_deploy.types import Quantization, TensorSpec


def golden() -> Golden:
    random = np.random.default_rng(0)
    return Golden(
        random.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8),
        np.array([1, -1]),
        random.standard_normal((2, 3)).astype(np.float32),
        random.integers(-128, 128, (2, 3)).astype(np.int8),
    )


def make(path: Path) -> Artifact:
    path.mkdir()
    (path / "model.tflite").write_bytes(bytes(range(256)))
    write_golden(path / GOLDEN, golden())
    artifact = Artifact(
        path,
        "net",
        "tflite-int8",
        (record_file(path / "model.tflite"), record_file(path / GOLDEN)),
        TensorSpec("in", (1, 4, 4, 3), "int8", "NHWC", Quantization(0.5, -3)),
        TensorSpec("out", (1, 3), "int8", "NC", Quantization(0.25, 4)),
        Preprocessing(4, 4, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)),
        ("a", "b", "ü"),
        {"threshold": 0.95},
        {"parameters": 12},
        {"sha256": "00"},
        {"onnx": "1.0"},
        {"stored_bytes": 12},
        {"passed": True},
    )
    write_manifest(artifact)
    return artifact


def test_what_was_written_is_read(tmp_path: Path) -> None:
    artifact = make(tmp_path / "net")
    read = read_artifact(tmp_path / "net")
    assert read == artifact
    assert read.model_file.read_bytes() == bytes(range(256))
    assert read.sha256 == artifact.files[0].sha256
    for stored, written in zip(vars(read.golden()).values(), vars(golden()).values(), strict=True):
        assert stored.dtype == written.dtype
        np.testing.assert_array_equal(stored, written)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make(tmp_path / name)
    for file in (MANIFEST, GOLDEN):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_no_path_stands_in_the_manifest(tmp_path: Path) -> None:
    make(tmp_path / "net")
    assert str(tmp_path) not in (tmp_path / "net" / MANIFEST).read_text()


def test_encoding_is_that_of_the_input(tmp_path: Path) -> None:
    artifact = make(tmp_path / "net")
    images = golden().images
    real = (images / 255 - np.array([0.5, 0.4, 0.3])) / 0.2
    encoded = artifact.encode(images)
    assert encoded.dtype == np.int8 and encoded.shape == (2, 4, 4, 3)
    assert np.abs(encoded - np.clip(real / 0.5 - 3, -128, 127)).max() <= 0.501


@pytest.mark.parametrize("file", ["model.tflite", GOLDEN])
def test_a_changed_file_is_refused(tmp_path: Path, file: str) -> None:
    make(tmp_path / "net")
    path = tmp_path / "net" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="was changed") as caught:
        read_artifact(tmp_path / "net")
    assert file in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    make(tmp_path / "net")
    (tmp_path / "net" / "model.tflite").unlink()
    with pytest.raises(ArtifactError, match=r"model\.tflite: is missing"):
        read_artifact(tmp_path / "net")


def test_a_directory_without_manifest_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not an artifact"):
        read_artifact(tmp_path)
    with pytest.raises(ArtifactError, match="not an artifact"):
        read_artifact(tmp_path / "nowhere")


def test_only_artifacts_are_replaced(tmp_path: Path) -> None:
    free, file, foreign, made = (tmp_path / n for n in ("free", "file", "foreign", "made"))
    empty = tmp_path / "empty"
    for folder in (foreign, made, empty):
        folder.mkdir()
    file.write_text("mine")
    (foreign / "thesis.txt").write_text("mine")
    (made / "manifest.json").write_text("{}")
    for force in (False, True):
        check_place(free, replace=force)
    check_place(made, replace=True)
    check_place(empty, replace=True)
    for path in (file, foreign, made, empty):
        with pytest.raises(ExportError, match="already exists"):
            check_place(path, replace=False)
    for path in (file, foreign):
        with pytest.raises(ExportError, match="only an artifact is replaced"):
            check_place(path, replace=True)


def edit(path: Path, **changes: Any) -> None:
    values = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**values, **changes}))


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_another_version_is_refused(tmp_path: Path, version: object) -> None:
    make(tmp_path / "net")
    edit(tmp_path / "net", schema_version=version)
    with pytest.raises(ArtifactError, match="reads version 1"):
        read_artifact(tmp_path / "net")


def test_a_file_may_lie_in_a_folder(tmp_path: Path) -> None:
    artifact = make(tmp_path / "net")
    path = artifact.path / "src" / "kernels" / "conv.c"
    path.parent.mkdir(parents=True)
    path.write_text("int conv;\n")
    record = record_file(path, artifact.path)
    assert record.name == "src/kernels/conv.c"
    write_manifest(replace(artifact, files=(record, *artifact.files)))
    read = read_artifact(artifact.path)
    assert read.files == (record, *artifact.files)
    assert read.model_file == path
    path.write_text("int c0nv;\n")
    with pytest.raises(ArtifactError, match=r"src/kernels/conv\.c: was changed"):
        read_artifact(artifact.path)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"src/kernels/conv\.c: is missing"):
        read_artifact(artifact.path)


def test_a_file_of_another_folder_cannot_be_recorded(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    with pytest.raises(ValueError, match="secret"):
        record_file(tmp_path / "secret", tmp_path / "net")


OUTSIDE = ["../secret", "/etc/passwd", "..", ".", "", "src/../../secret", "src/..", "/", "//secret"]
AMBIGUOUS = ["./model.tflite", "src/./model.c", "src//model.c", "src/", "src\\model.c", "a\0b"]


@pytest.mark.parametrize("name", [*OUTSIDE, *AMBIGUOUS, MANIFEST])
def test_files_outside_the_directory_are_refused(tmp_path: Path, name: str) -> None:
    make(tmp_path / "net")
    (tmp_path / "secret").write_bytes(b"secret")
    record = record_file(tmp_path / "secret")
    edit(tmp_path / "net", files=[{"name": name, "size": record.size, "sha256": record.sha256}])
    with pytest.raises(ArtifactError, match="outside the artifact"):
        read_artifact(tmp_path / "net")


@pytest.mark.parametrize(
    "changes",
    [
        {"files": []},
        {"files": [{"name": "model.tflite"}]},
        {"files": None},
        {"input": {}},
        {"input": None},
        {"output": {"name": "o", "shape": [1, 3], "dtype": "int8", "layout": "NC", "quantization": None}},
        {"output": {"name": "o", "shape": [1, 3], "dtype": "int4", "layout": "NC", "quantization": None}},
        {"preprocessing": {"height": 4}},
        {"preprocessing": None},
        {"labels": None},
        {"model": 3},
    ],
    ids=str,
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    make(tmp_path / "net")
    edit(tmp_path / "net", **changes)
    with pytest.raises(ArtifactError):
        read_artifact(tmp_path / "net")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"schema_version": 1}', "\x00", "[" * 5])
def test_a_manifest_that_is_no_record_is_refused(tmp_path: Path, text: str) -> None:
    make(tmp_path / "net")
    (tmp_path / "net" / MANIFEST).write_text(text)
    with pytest.raises(ArtifactError):
        read_artifact(tmp_path / "net")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no zip file at all"])
def test_damaged_golden_vectors_are_an_error(tmp_path: Path, content: bytes) -> None:
    artifact = make(tmp_path / "net")
    (tmp_path / "net" / GOLDEN).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"golden\.npz"):
        artifact.golden()


def test_a_damaged_golden_stream_is_an_error(tmp_path: Path) -> None:
    artifact = make(tmp_path / "net")
    content = bytearray((tmp_path / "net" / GOLDEN).read_bytes())
    start = content.index(b"images.npy") + len("images.npy")
    content[start : start + 20] = b"\xff" * 20
    (tmp_path / "net" / GOLDEN).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"golden\.npz"):
        artifact.golden()


def test_golden_vectors_are_never_unpickled(tmp_path: Path) -> None:
    artifact = make(tmp_path / "net")
    np.savez(tmp_path / "net" / GOLDEN, images=np.array([print], dtype=object))
    with pytest.raises(CsrError, match=r"golden\.npz"):
        artifact.golden()


def test_not_a_number_never_reaches_a_manifest(tmp_path: Path) -> None:
    artifact = make(tmp_path / "net")
    before = (tmp_path / "net" / MANIFEST).read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_manifest(replace(artifact, parity={"relative_error": float("nan")}))
    assert (tmp_path / "net" / MANIFEST).read_bytes() == before
