"""Measures the camera demo: overhead, latency to a browser, memory, time to the first result.

    python tools/bench_demo.py

The synthetic source gives 640×480 pictures at 30 a second to the packaged CSR network, alone and against its
backbone, while one client looks over the WebSocket as a browser does. Clocks of both are one, as the client
runs on this machine, in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from csr_deploy.artifact import Artifact
from csr_deploy.demo.capture import CaptureOptions
from csr_deploy.demo.catalogue import open_model
from csr_deploy.demo.classifier import Classifier
from csr_deploy.demo.hub import Hub
from csr_deploy.demo.pipeline import Pipeline, PipelineOptions, Result
from csr_deploy.demo.server import WebServer
from csr_deploy.demo.sources import SourceOptions, choose_source
from csr_deploy.demo.sources.opencv import VideoSource, import_opencv
from csr_deploy.demo.system import SystemMonitor

FPS = 30.0
MIB = 2**20


def watch(address: str, frames: int, queue: Any) -> None:
    """A browser: asks for frames and gives back how old each was when it had arrived, in ns."""
    from websockets.sync.client import connect

    ages = []
    with connect(address.replace("http://", "ws://") + "live") as connection:
        while len(ages) < frames:
            connection.send("next")
            values = json.loads(connection.recv())
            if values["picture"]:
                connection.recv()
                ages.append(time.monotonic_ns() - values["captured_ns"])
    queue.put(ages)


def live(artifacts: Sequence[Artifact], frames: int) -> None:
    """Overhead and latency."""
    results: list[Result] = []
    process = psutil.Process()
    source = choose_source("synthetic", artifacts[0], SourceOptions(fps=FPS))
    queue: Any = multiprocessing.get_context("spawn").Queue()
    with contextlib.ExitStack() as stack:
        classifiers = [stack.enter_context(Classifier(a)) for a in artifacts]
        hub = stack.enter_context(Hub(stack.enter_context(SystemMonitor())))
        pipeline = Pipeline(source, classifiers, sinks=[hub, results.append])
        hub.pipeline = pipeline
        server = stack.enter_context(WebServer(hub, "127.0.0.1", 0, None))
        stack.enter_context(pipeline)
        client = multiprocessing.get_context("spawn").Process(
            target=watch, args=(server.addresses()[0], frames, queue)
        )
        client.start()
        time.sleep(3)
        results.clear()
        before, start = process.cpu_times(), time.monotonic()
        ages = np.asarray(queue.get(timeout=frames / FPS * 10 + 60)) / 1e6
        after, seconds = process.cpu_times(), time.monotonic() - start
        seen = list(results)
        client.join()
        snapshot = pipeline.statistics.snapshot()
    with source() as made:
        # Without its pauses; a camera's frames cost nothing here.
        begin = time.thread_time()
        for _ in range(len(seen)):
            made.read()
        drawing = (time.thread_time() - begin) / len(seen) * 1e3
    inference = np.asarray([sum(a.inference_ns for a in r.answers) for r in seen]) / 1e6
    path = np.asarray([r.shown_ns - r.frame.captured_ns for r in seen]) / 1e6 - inference
    capture = np.asarray([r.frame.capture_ns for r in seen]) / 1e6
    cpu = after.user + after.system - before.user - before.system
    frame_ms = 1000 / FPS
    print(f"\n{' against '.join(c.artifact.name for c in classifiers)}, {len(seen)} frames, one browser")
    print(f"  frames a second             {(len(seen) - 1) / seconds:8.2f}")
    print(f"  capture, with its pause     {np.median(capture):8.2f} ms (median)")
    print(f"  inference                   {np.median(inference):8.2f} ms")
    overhead = np.median(path) + snapshot.stages_ms["output"]
    print(
        f"  everything else, per frame  {overhead:8.2f} ms = {overhead / frame_ms:.1%} of {frame_ms:.1f} ms"
    )
    print(f"  processor time of all       {cpu / len(seen) * 1e3:8.2f} ms a frame, with encoding and sending")
    rest = cpu / len(seen) * 1e3 - drawing - np.median(inference)
    print(f"    without capture, inference{rest:8.2f} ms = {rest / frame_ms:.1%} of {frame_ms:.1f} ms")
    late = np.percentile(ages, 95)
    bound = 2 * frame_ms + np.median(inference)
    print(
        f"  captured to browser         {np.median(ages):8.2f} ms (median), {late:.2f} ms (p95); "
        f"the bound is {bound:.1f} ms"
    )


def memory(frames: int) -> None:
    """Resident memory over a long run on a video file."""
    cv2 = import_opencv("Making a video")
    process = psutil.Process()
    with tempfile.TemporaryDirectory() as folder, Classifier(open_model("resnet56-csr2")) as classifier:
        path = Path(folder) / "v.avi"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 30, (320, 240))
        random = np.random.default_rng(0)
        for _ in range(60):
            writer.write(random.integers(0, 256, (240, 320, 3)).astype(np.uint8))
        writer.release()
        samples: list[int] = []

        def look(result: Result) -> None:
            if result.frame.number % max(frames // 20, 1) == 0:
                samples.append(process.memory_info().rss)

        options = PipelineOptions(frames=frames, capture=CaptureOptions(every_frame=True))
        source = SourceOptions(realtime=False, loop=True)
        start = time.monotonic()
        with Pipeline(lambda: VideoSource(path, source), [classifier], options, [look]) as pipeline:
            pipeline.wait()
        seconds = time.monotonic() - start
    settled = samples[1:]
    print(f"\n{frames:,} frames of a video in {seconds:.1f} s ({frames / seconds:.0f} a second)")
    print(
        f"  resident memory             {settled[0] / MIB:8.2f} MiB after a twentieth, "
        f"{settled[-1] / MIB:.2f} MiB at the end; "
        f"lowest {min(settled) / MIB:.2f}, highest {max(settled) / MIB:.2f}"
    )


def start_up(times: int) -> None:
    """From starting the program to the first line."""
    passed = []
    for _ in range(times):
        command = [sys.executable, "-m", "csr_deploy.cli.demo", "--headless", "--source", "synthetic"]
        start = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            process.stdout.readline()
            passed.append(time.monotonic() - start)
            process.terminate()
    print(f"\nstart to first result, two networks: {np.median(passed):.2f} s (median of {times})")


def main() -> None:
    """Measures everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=600, help="of the live measurements")
    parser.add_argument("--soak", type=int, default=10_000, help="frames of the long run")
    arguments = parser.parse_args()
    print(f"load average {psutil.getloadavg()[0]:.2f}, {psutil.cpu_count()} CPUs")
    start_up(5)
    csr, backbone = open_model("resnet56-csr2"), open_model("resnet56")
    live([csr], arguments.frames)
    live([csr, backbone], arguments.frames)
    memory(arguments.soak)


if __name__ == "__main__":
    main()
