"""The native target and its runtime: what is built, when, and every way in which it can go wrong."""

from __future__ import annotations

import multiprocessing
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert")

from csr_deploy.artifact import Artifact, read_artifact
from csr_deploy.bench.worker import Session
from csr_deploy.cli import export as cli_export
from csr_deploy.demo.classifier import Classifier
from csr_deploy.errors import ArtifactError, CsrError, OptionError, RuntimeUnavailableError
from csr_deploy.exporters.native import exporter as native_exporter
from csr_deploy.runtimes import open_runtime
from csr_deploy.runtimes.golden import verify_golden
from csr_deploy.runtimes.native import cache, library, platforms, runtime
from csr_deploy.runtimes.native.build import build_library, find_compiler
from csr_deploy.runtimes.native.library import NativeLibrary
from csr_deploy.runtimes.native.platforms import AARCH64, PLATFORMS, this_platform
from csr_deploy.runtimes.native.runtime import carried_library
from csr_deploy.runtimes.native.sources import find_sources
from tests.native import demand_compiler, make_native, runnable, small_tflite, with_file, without_libraries

HERE = this_platform()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    demand_compiler(HERE)
    return make_native(tmp_path_factory.mktemp("native"))


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv(cache.VARIABLE, str(folder))
    return folder


@pytest.fixture
def bare(artifact: Artifact, tmp_path: Path) -> Artifact:
    """Without a library: the machine that runs it compiles."""
    return without_libraries(artifact, tmp_path / "bare-native")


@pytest.fixture
def opened(artifact: Artifact) -> Iterator[NativeLibrary]:
    file = carried_library(artifact, HERE.key)
    assert file is not None
    made = NativeLibrary(file)
    yield made
    made.close()


# What is in an artifact


def test_an_artifact_runs_as_it_was_verified(artifact: Artifact) -> None:
    again = read_artifact(artifact.path)
    with open_runtime(None, again) as opened_runtime:
        assert opened_runtime.name == "native"
        assert verify_golden(opened_runtime).exact
        assert opened_runtime.arena == artifact.model["arena_bytes"]
        settings = opened_runtime.settings
        assert settings["library"] == f"lib/{HERE.key}/libmodel.so"
        assert settings["architecture"] in [v.architecture for v in HERE.variants]
        assert opened_runtime.stored_file.stat().st_size == artifact.model["libraries"][HERE.key]["bytes"]


def test_the_same_input_gives_the_same_bytes(artifact: Artifact, tmp_path: Path) -> None:
    again = make_native(tmp_path / "somewhere" / "else")
    assert again.files == artifact.files
    assert again.manifest() == artifact.manifest()


@pytest.mark.parametrize("platform", PLATFORMS, ids=[p.key for p in PLATFORMS])
def test_a_library_shows_its_functions_only_and_needs_an_old_libc(
    artifact: Artifact, platform: platforms.Platform
) -> None:
    file = carried_library(artifact, platform.key)
    if file is None or shutil.which("readelf") is None:
        pytest.skip(f"needs a compiler for {platform.key} and readelf")
    text = subprocess.run(
        ["readelf", "-W", "--dyn-syms", "-d", "-l", str(file)], capture_output=True, text=True, check=True
    ).stdout
    shown = re.findall(r"GLOBAL DEFAULT +\d+ (\w+)$", text, re.MULTILINE)
    functions = ("describe", "handle_bytes", "init", "input", "kernels", "output", "run", "set_threads")
    assert sorted(shown) == sorted([*(f"model_{f}" for f in functions), "model_labels"])
    assert re.findall(r"\(NEEDED\).*\[(.*)\]", text) == ["libc.so.6"]
    versions = {tuple(map(int, v.split("."))) for v in re.findall(r"@GLIBC_([\d.]+)", text)}
    assert max(versions) <= (2, 17)
    if platform == AARCH64:
        # A Raspberry Pi 5 has pages of 16 kB.
        alignments = re.findall(r"^ +LOAD .* (0x[0-9a-f]+)$", text, re.MULTILINE)
        assert [int(a, 16) for a in alignments] == [1 << 16] * len(alignments) != []


@pytest.mark.parametrize("variant", runnable(HERE), ids=lambda v: v.name)
def test_all_variants_give_the_same_integers(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: platforms.Variant
) -> None:
    golden = artifact.golden()
    file = carried_library(artifact, HERE.key)
    assert file is not None
    monkeypatch.setenv(library.KERNELS_VARIABLE, variant.name)
    # Kernels are chosen when a file is loaded for the first time.
    own = tmp_path / file.name
    shutil.copy(file, own)
    try:
        made = NativeLibrary(own)
    except RuntimeUnavailableError as error:
        assert "has no kernels named" in str(error) and variant != HERE.variants[0]
        pytest.skip(f"needs a compiler that knows {' '.join(variant.flags)}")
    assert made.kernels == variant.architecture
    network = made.instance()
    for one, expected in zip(artifact.encode(golden.images), golden.outputs, strict=True):
        network.input[...] = one
        network.run()
        assert np.array_equal(network.output.reshape(-1), expected)
    made.close()


def test_kernels_that_there_are_not(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = carried_library(artifact, HERE.key)
    assert file is not None
    own = tmp_path / file.name
    shutil.copy(file, own)
    monkeypatch.setenv(library.KERNELS_VARIABLE, "mmx")
    with pytest.raises(RuntimeUnavailableError, match=r"no kernels named 'mmx'[\s\S]*give it one of: base"):
        NativeLibrary(own)


@pytest.mark.parametrize("tool", ["csr-deploy", "make", "cmake"])
def test_a_compiler_that_does_not_know_a_variant_leaves_it_out(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str
) -> None:
    probed = [v for v in HERE.variants if v.probe]
    if not probed or shutil.which("gcc") is None or (tool != "csr-deploy" and shutil.which(tool) is None):
        pytest.skip(f"needs x86-64, gcc and {tool}")
    old = tmp_path / "bin" / "gcc"
    old.parent.mkdir()
    old.write_text(
        "#!/bin/sh\n"
        'for option in "$@"; do case "$option" in\n'
        '-mavxvnni|-mavx512vnni) echo "error: $option" >&2; exit 1;;\n'
        f'esac; done\nexec {shutil.which("gcc")} "$@"\n'
    )
    old.chmod(0o755)
    shutil.copy(old, old.with_name("cc"))
    monkeypatch.setenv("PATH", str(old.parent), prepend=":")
    folder = tmp_path / "project"
    shutil.copytree(artifact.path, folder)
    if tool == "csr-deploy":
        compiler = find_compiler(HERE)
        assert compiler is not None
        assert compiler.platform.variants == tuple(v for v in HERE.variants if not v.probe)
        made = build_library(find_sources(artifact), compiler, tmp_path)
    elif tool == "make":
        subprocess.run(["make", "-C", str(folder), "build/libmodel.so"], check=True, capture_output=True)
        made = folder / "build" / "libmodel.so"
    else:
        build = ["-B", str(folder / "build"), "-DBUILD_SHARED_LIBS=ON", f"-DCMAKE_C_COMPILER={old}"]
        for command in (["cmake", "-S", str(folder), *build], ["cmake", "--build", str(folder / "build")]):
            subprocess.run(command, check=True, capture_output=True)
        (made,) = (folder / "build").glob("lib*.so")
    content = made.read_bytes()
    assert all(v.architecture.encode() not in content for v in probed)
    opened_library = NativeLibrary(made, "model")
    assert opened_library.kernels in [v.architecture for v in HERE.variants if not v.probe]
    opened_library.close()


def test_a_prefix(tmp_path: Path) -> None:
    made = make_native(tmp_path, prefix="door")
    assert {p.name for p in made.path.rglob("*.so")} == {"libdoor.so"}
    with open_runtime(None, read_artifact(made.path)) as opened_runtime:
        assert verify_golden(opened_runtime).exact


@pytest.mark.parametrize("tool", ["make", "cmake"])
def test_it_builds_on_the_board_and_the_example_classifies(
    artifact: Artifact, tmp_path: Path, tool: str
) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"needs {tool}")
    folder = tmp_path / "project"
    shutil.copytree(artifact.path, folder)
    flags = "-O2 -Wall -Wextra -Wconversion -Werror -fPIC -fvisibility=hidden -std=c99"
    if tool == "make":
        commands = [["make", "-C", str(folder), f"CFLAGS={flags}"]]
        example = folder / "build" / "example"
    else:
        build = ["-B", str(folder / "build"), f"-DCMAKE_C_FLAGS={flags}"]
        commands = [["cmake", "-S", str(folder), *build], ["cmake", "--build", str(folder / "build")]]
        example = folder / "build" / "small_example"
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    golden = artifact.golden()
    content = artifact.encode(golden.images).tobytes()
    said = subprocess.run([str(example)], input=content, capture_output=True, check=True).stdout.decode()
    assert said.split() == [artifact.labels[i] for i in golden.outputs.argmax(1)]
    if tool == "make":
        made = NativeLibrary(folder / "build" / "libmodel.so")
        assert made.identity == find_sources(artifact).identity
        made.close()


_PROGRAM = """
#include "model.h"
#include "native.h"
#include <stdio.h>

static unsigned char arena[MODEL_ARENA_BYTES] __attribute__((aligned(MODEL_ARENA_ALIGNMENT)));

int main(void)
{
    model_t model;
    if (model_init(&model, arena, sizeof arena) != MODEL_OK || sizeof model != model_handle_bytes()) {
        return 1;
    }
    while (fread(model_input(&model), 1, MODEL_INPUT_BYTES, stdin) == MODEL_INPUT_BYTES) {
        if (model_run(&model) != MODEL_OK) {
            return 2;
        }
        fwrite(model_output(&model), 1, MODEL_OUTPUT_BYTES, stdout);
    }
    return 0;
}
"""


@pytest.mark.parametrize(("compiler", "suffix"), [("gcc", "c"), ("g++", "cpp")])
def test_a_program_links_to_the_library(
    artifact: Artifact, tmp_path: Path, compiler: str, suffix: str
) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")
    shutil.copytree(artifact.path, tmp_path / "net")
    source, program = tmp_path / f"app.{suffix}", tmp_path / "net" / "app"
    source.write_text(_PROGRAM)
    place = f"lib/{HERE.key}"
    command = [compiler, str(source), "-Isrc", f"{place}/libmodel.so", f"-Wl,-rpath,$ORIGIN/{place}"]
    subprocess.run([*command, "-o", str(program)], cwd=tmp_path / "net", check=True)
    golden = artifact.golden()
    content = artifact.encode(golden.images).tobytes()
    said = subprocess.run([str(program)], input=content, capture_output=True, check=True).stdout
    assert said == golden.outputs.tobytes()


def test_without_a_cross_compiler_the_artifact_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    demand_compiler(HERE)
    if HERE == AARCH64:
        pytest.skip("needs a machine that is no AArch64 itself")

    def find(platform: platforms.Platform) -> object:
        return find_compiler(platform) if platform == HERE else None

    monkeypatch.setattr(native_exporter, "find_compiler", find)
    made = make_native(tmp_path)
    assert list(made.model["libraries"]) == [HERE.key]
    assert made.model["not_built"] == ["aarch64"]
    assert carried_library(made, "aarch64") is None
    cli_export._warn_of_missing_libraries([made])
    said = " ".join(capsys.readouterr().err.split())
    assert "small-native has no library for aarch64" in said
    assert f"apt-get install {AARCH64.packages}" in said


# Instances


def test_instances_share_nothing_but_the_code(opened: NativeLibrary, artifact: Artifact) -> None:
    golden = artifact.golden()
    inputs = artifact.encode(golden.images)
    first, second = opened.instance(), opened.instance()
    first.input[...], second.input[...] = inputs[0], inputs[1]
    first.run()
    second.run()
    assert np.array_equal(first.output.reshape(-1), golden.outputs[0])
    assert np.array_equal(second.output.reshape(-1), golden.outputs[1])
    assert not np.shares_memory(first.input, second.input)


def test_nothing_is_copied(opened: NativeLibrary) -> None:
    network = opened.instance()
    arena = network.input.base
    assert arena is not None
    assert np.shares_memory(network.input, arena) and np.shares_memory(network.output, arena)
    with pytest.raises(ValueError, match="read-only"):
        network.output[...] = 0


def test_instances_run_at_the_same_time(opened: NativeLibrary, artifact: Artifact) -> None:
    golden = artifact.golden()
    inputs = artifact.encode(golden.images)
    wrong: list[int] = []

    def work(number: int) -> None:
        network = opened.instance()
        for _ in range(50):
            network.input[...] = inputs[number]
            network.run()
            if not np.array_equal(network.output.reshape(-1), golden.outputs[number]):
                wrong.append(number)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_a_closed_library_does_not_run(opened: NativeLibrary) -> None:
    network = opened.instance()
    opened.close()
    opened.close()
    with pytest.raises(RuntimeUnavailableError, match="the library is closed"):
        network.run()
    with pytest.raises(RuntimeUnavailableError, match="the library is closed"):
        opened.instance()


def test_two_runtimes_in_one_process(artifact: Artifact, tmp_path: Path) -> None:
    other = make_native(tmp_path, "other", seed=1)
    with (
        open_runtime(None, artifact) as one,
        open_runtime(None, other) as two,
        open_runtime(None, artifact) as three,
    ):
        assert all(verify_golden(r).exact for r in (one, two, three))
    with open_runtime(None, artifact) as again:
        assert verify_golden(again).exact


def test_it_runs_native_artifacts_only(artifact: Artifact) -> None:
    with pytest.raises(OptionError, match="runs artifacts of the target native"):
        open_runtime("native", replace(artifact, target="mcu"))


# Compiling at the first load


def test_it_is_compiled_once_and_kept(
    bare: Artifact, empty_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_runtime(None, bare) as first:
        assert verify_golden(first).exact
        assert first.settings["library"] == "compiled here"
    assert f"compiling small for {HERE.key}" in capsys.readouterr().err
    (kept,) = empty_cache.rglob("*.so")
    assert [p.name for p in empty_cache.iterdir()] == [kept.parent.name]
    monkeypatch.setattr(cache, "build_library", lambda *_: pytest.fail("compiled again"))
    with open_runtime(None, bare) as second:
        assert verify_golden(second).exact
    assert "compiling" not in capsys.readouterr().err


def test_what_is_kept_equals_what_an_artifact_carries(
    bare: Artifact, artifact: Artifact, empty_cache: Path
) -> None:
    with open_runtime(None, bare) as compiled:
        kept = compiled.stored_file.read_bytes()
    carried = carried_library(artifact, HERE.key)
    assert carried is not None and carried.read_bytes() == kept


def test_another_compiler_compiles_again(bare: Artifact, empty_cache: Path) -> None:
    sources, compiler = find_sources(bare), find_compiler(HERE)
    assert compiler is not None
    first = cache.compiled_library(sources, compiler)
    assert cache.compiled_library(sources, compiler) == first
    assert cache.compiled_library(sources, replace(compiler, version="another")) != first
    fewer = replace(compiler, platform=replace(HERE, variants=HERE.variants[:1]))
    assert len({first, cache.compiled_library(sources, fewer)}) == 1 + (len(HERE.variants) > 1)


def _load(path: Path, log: Path) -> None:
    real = cache.build_library

    def build(*arguments: object) -> Path:
        with log.open("a") as file:
            file.write("built\n")
        return real(*arguments)  # type: ignore[arg-type]

    cache.build_library = build  # type: ignore[assignment]
    with open_runtime(None, read_artifact(path)) as opened_runtime:
        verify_golden(opened_runtime)


def test_processes_compile_it_once_together(bare: Artifact, empty_cache: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    log = tmp_path / "log"
    workers = [context.Process(target=_load, args=(bare.path, log)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert log.read_text() == "built\n"
    assert len(list(empty_cache.rglob("*.so"))) == 1


def test_a_compiler_that_fails_leaves_nothing(bare: Artifact, empty_cache: Path) -> None:
    broken = with_file(bare, "src/native.c", b"#error this is no compiler's day\n")
    with pytest.raises(RuntimeUnavailableError, match="could not compile native.c") as caught:
        open_runtime(None, broken).build()
    assert "no compiler's day" in str(caught.value)
    assert not list(empty_cache.rglob("*"))


def test_without_a_compiler_it_says_what_to_do(
    bare: Artifact, empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with pytest.raises(
        RuntimeUnavailableError, match=f"no library for {HERE.key}, and there is no C compiler"
    ) as e:
        open_runtime(None, bare).build()
    assert "sudo apt-get install gcc libc6-dev" in str(e.value)
    assert not empty_cache.exists()


def test_a_cache_that_cannot_be_written(
    bare: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "file" / "cache"))
    with pytest.raises(RuntimeUnavailableError, match=rf"cannot be written[\s\S]*\${cache.VARIABLE}"):
        open_runtime(None, bare).build()


def test_where_it_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(cache.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "csr-deploy" / "native"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder() == Path.home() / ".cache" / "csr-deploy" / "native"


# Libraries that are not the right ones


def test_a_library_for_another_processor(artifact: Artifact) -> None:
    for key in artifact.model["libraries"]:
        if key != HERE.key:
            file = carried_library(artifact, key)
            assert file is not None
            with pytest.raises(RuntimeUnavailableError, match=f"is for {key}, this process is {HERE.key}"):
                NativeLibrary(file)
            return
    pytest.skip("needs a compiler for another processor")


def test_a_truncated_library_is_refused_before_it_is_loaded(artifact: Artifact, tmp_path: Path) -> None:
    whole = carried_library(artifact, HERE.key)
    assert whole is not None
    content = whole.read_bytes()
    for size in (4, 19, 40, 64, 200, 4096, len(content) // 2, len(content) - 1):
        short = tmp_path / "libmodel.so"
        short.write_bytes(content[:size])
        with pytest.raises(ArtifactError, match=f"is truncated: it has {size:,} bytes"):
            NativeLibrary(short)


def test_what_is_no_library(tmp_path: Path) -> None:
    other = tmp_path / "libmodel.so"
    with pytest.raises(ArtifactError, match="cannot be read: No such file"):
        NativeLibrary(other)
    other.write_bytes(b"#!/bin/sh\n")
    with pytest.raises(ArtifactError, match="is no shared library"):
        NativeLibrary(other)
    demand_compiler(HERE)
    subprocess.run(["cc", "-shared", "-x", "c", "-o", str(other), "/dev/null"], check=True)
    with pytest.raises(ArtifactError, match=r"is no library of the native target[\s\S]*model_describe"):
        NativeLibrary(other)


def test_a_library_of_another_build(artifact: Artifact, tmp_path: Path) -> None:
    other = make_native(tmp_path, "other", seed=1)
    name = f"lib/{HERE.key}/libmodel.so"
    mixed = with_file(other, name, (artifact.path / name).read_bytes())
    with pytest.raises(ArtifactError, match="was built from other sources"), open_runtime(None, mixed):
        pytest.fail("it was loaded")
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        (other.path / name).write_bytes(b"nothing")
        read_artifact(other.path)


def test_a_library_of_another_version(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "INTERFACE", 3)
    with (
        pytest.raises(ArtifactError, match="has interface 2; this csr-deploy knows 3"),
        open_runtime(None, artifact),
    ):
        pytest.fail("it was loaded")


def test_a_model_that_does_not_start(opened: NativeLibrary) -> None:
    opened.description = {**opened.description, "arena_bytes": 16}
    with pytest.raises(RuntimeUnavailableError, match=r"init gave the error 3 \(the arena is too small\)"):
        opened.instance()


def test_an_artifact_without_sources(artifact: Artifact) -> None:
    files = tuple(r for r in artifact.files if r.name != "src/native.c")
    with pytest.raises(ArtifactError, match="has no sources of a native library"):
        find_sources(replace(artifact, files=files))


# Machines


@pytest.mark.parametrize(
    ("machine", "pointer", "key"),
    [
        ("aarch64", 8, "aarch64"),
        ("arm64", 8, "aarch64"),
        ("AMD64", 8, "x86_64"),
        ("riscv64", 8, "riscv64"),
        ("armv7l", 4, "armv7l-32bit"),
        # Raspberry Pi OS of 32 bits on a kernel of 64.
        ("aarch64", 4, "aarch64-32bit"),
    ],
)
def test_platforms(monkeypatch: pytest.MonkeyPatch, machine: str, pointer: int, key: str) -> None:
    monkeypatch.setattr(platforms.platform, "machine", lambda: machine)
    monkeypatch.setattr(platforms.struct, "calcsize", lambda _: pointer)
    assert this_platform().key == key
    assert this_platform().variants[0].name == "base"


def test_other_systems_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platforms.sys, "platform", "darwin")
    with pytest.raises(RuntimeUnavailableError, match="native libraries are for Linux"):
        this_platform()


def test_a_board_without_a_known_name_compiles_one_variant(
    bare: Artifact, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = replace(HERE, key="other", macro="", elf_machine=None, variants=HERE.variants[:1], compilers=())
    for module in (runtime, library, platforms):
        monkeypatch.setattr(module, "this_platform", lambda: unknown)
    monkeypatch.setattr("csr_deploy.runtimes.native.build.this_platform", lambda: unknown)
    with open_runtime(None, bare) as opened_runtime:
        assert verify_golden(opened_runtime).exact
        assert opened_runtime.settings["architecture"] == HERE.variants[0].architecture


# What uses it


def test_csr_bench_counts_the_library(artifact: Artifact) -> None:
    session = Session(lambda done, total: None)
    started = session.start(str(artifact.path), "artifact", None, 1, None, 1)
    assert (started["runtime"], started["file"]) == ("native", "model.c")
    checked = session.check()
    assert checked["golden"]["exact"]
    sizes = checked["sizes"]
    assert sizes["file_bytes"] == artifact.model["libraries"][HERE.key]["bytes"]
    assert 0 < sizes["compressed_bytes"] < sizes["file_bytes"]
    assert sizes["constant_bytes"] is None
    assert sizes["arena_bytes"] == artifact.model["arena_bytes"]
    session.close()


def test_the_demo_takes_it(artifact: Artifact) -> None:
    golden = artifact.golden()
    with Classifier(artifact) as classify:
        answer = classify(golden.images[0])
        assert classify.name == "small (native)"
    assert np.array_equal(answer.logits, artifact.output.decode(golden.outputs[:1])[0])


def test_csr_export_compiles_a_file_for_both(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    demand_compiler(HERE)
    file = small_tflite(tmp_path / "net.tflite")
    runner = CliRunner()
    targets = ["-t", "mcu", "-t", "native"]
    done = runner.invoke(cli_export.app, [str(file), *targets, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert "bytes of constants in flash" in text
    assert "net-native: bytes of the libraries: " in text and f"{HERE.key} " in text
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"net-mcu", "net-native"}
    again = runner.invoke(cli_export.app, [str(file), "-t", "native", "--out", str(tmp_path / "out")])
    assert isinstance(again.exception, CsrError) and "already exists" in str(again.exception)
    wrong = runner.invoke(cli_export.app, [str(file), "-t", "onnx", "--out", str(tmp_path / "out")])
    assert wrong.exit_code == 2 and "mcu or native" in " ".join(wrong.output.split())
