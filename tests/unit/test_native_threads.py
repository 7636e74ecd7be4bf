"""Several threads in one inference of the native target: what comes out, when they start and end."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flatbuffers", reason="needs flatbuffers")

from csr_deploy.artifact import Artifact
from csr_deploy.errors import CsrError, OptionError, RuntimeUnavailableError
from csr_deploy.exporters.native import team
from csr_deploy.runtimes import RuntimeOptions, open_runtime
from csr_deploy.runtimes.golden import verify_golden
from csr_deploy.runtimes.native.library import MOST_THREADS, NativeInstance, NativeLibrary
from csr_deploy.runtimes.native.platforms import this_platform
from csr_deploy.runtimes.native.runtime import carried_library
from tests.native import demand_compiler, make_native

HERE = this_platform()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Artifact]:
    demand_compiler(HERE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(team, "_LEAST", 0)
        yield make_native(tmp_path_factory.mktemp("threads"))


@pytest.fixture
def opened(artifact: Artifact) -> Iterator[NativeLibrary]:
    made = NativeLibrary(_file(artifact))
    yield made
    made.close()


def _file(artifact: Artifact) -> Path:
    file = carried_library(artifact, HERE.key)
    assert file is not None
    return file


def _threads() -> int:
    """Of this process."""
    return len(os.listdir("/proc/self/task"))


def _is_right(network: NativeInstance, artifact: Artifact) -> bool:
    golden = artifact.golden()
    right = True
    for one, expected in zip(artifact.encode(golden.images), golden.outputs, strict=True):
        network.input[...] = one
        network.run()
        right &= np.array_equal(network.output.reshape(-1), expected)
    return right


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 7])
def test_the_same_bytes(artifact: Artifact, threads: int) -> None:
    before = _threads()
    with open_runtime(None, artifact, RuntimeOptions(threads=threads)) as runtime:
        assert _threads() == before + threads - 1
        assert verify_golden(runtime).exact
    assert _threads() == before


def test_one_thread_starts_none_and_takes_no_more_memory(opened: NativeLibrary, artifact: Artifact) -> None:
    before = _threads()
    network = opened.instance()
    assert _is_right(network, artifact)
    assert _threads() == before
    assert opened.arena_bytes == artifact.model["arena_bytes"]


def test_threads_end_with_their_instance(opened: NativeLibrary, artifact: Artifact) -> None:
    before = _threads()
    first, second = opened.instance(3), opened.instance(2)
    assert _threads() == before + 3
    del first
    gc.collect()
    assert _threads() == before + 1
    assert _is_right(second, artifact)
    second.close()
    second.close()
    assert _threads() == before
    with pytest.raises(RuntimeUnavailableError, match="the instance is closed"):
        second.run()


def test_closing_the_library_ends_all_threads(opened: NativeLibrary) -> None:
    before = _threads()
    networks = [opened.instance(2) for _ in range(2)]
    opened.close()
    assert _threads() == before
    for network in networks:
        with pytest.raises(RuntimeUnavailableError, match="the library is closed"):
            network.run()


def test_the_number_can_change(opened: NativeLibrary, artifact: Artifact) -> None:
    before = _threads()
    network = opened.instance()
    change = opened.function("set_threads")
    for threads in (2, 4, 4, 1, 3):
        assert change(network._handle, threads) == 0
        assert _threads() == before + threads - 1
        assert _is_right(network, artifact)
    for wrong in (0, -1, MOST_THREADS + 1):
        assert change(network._handle, wrong) == 4
    assert change(None, 2) == 1
    # Whatever went wrong, there are as many as before.
    assert _threads() == before + 2
    assert _is_right(network, artifact)


@pytest.mark.parametrize("threads", [0, -3, MOST_THREADS + 1])
def test_numbers_that_cannot_be(opened: NativeLibrary, artifact: Artifact, threads: int) -> None:
    with pytest.raises(OptionError, match=f"threads is {threads}[\\s\\S]*Give 1 to {MOST_THREADS}"):
        opened.instance(threads)
    with pytest.raises(CsrError, match=f"threads is {threads}"):
        open_runtime(None, artifact, RuntimeOptions(threads=threads))


def test_instances_with_threads_run_at_the_same_time(opened: NativeLibrary, artifact: Artifact) -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        network = opened.instance(1 + number)
        if not all(_is_right(network, artifact) for _ in range(5)):
            wrong.append(number)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_a_child_computes_alone(opened: NativeLibrary, artifact: Artifact) -> None:
    network = opened.instance(3)
    assert _is_right(network, artifact)
    child = os.fork()
    if not child:
        # Nothing of pytest may run on here.
        alone = _threads() == 1 and _is_right(network, artifact) and _threads() == 1
        network.close()
        again = opened.instance(2)
        os._exit(0 if alone and _threads() == 2 and _is_right(again, artifact) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert _is_right(network, artifact)


_LIMITED = """
import resource, sys
from pathlib import Path
from csr_deploy.runtimes.native.library import NativeLibrary
library = NativeLibrary(Path(sys.argv[1]))
alone = library.instance(2)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 26),) * 2)
try:
    library.instance(64)
except Exception as error:
    print(type(error).__name__, error)
alone.run()
print(len(list(Path("/proc/self/task").iterdir())))
# The interpreter ends while instances have threads.
"""


def test_threads_that_cannot_be_started(artifact: Artifact) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(_file(artifact))], capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said, threads = done.stdout.strip().rsplit("\n", 1)
    assert said.startswith("RuntimeUnavailableError")
    assert "set_threads gave the error 5 (a thread or its memory is not to be had)" in said
    assert threads == "2"
