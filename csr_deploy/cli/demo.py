"""`csr-demo`: a camera, a network, and what it sees."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csr_deploy.cli.common import VersionOption, new_app, print_warning, run, stderr

if TYPE_CHECKING:
    from csr_deploy.artifact import Artifact
    from csr_deploy.demo.capture import SourceState
    from csr_deploy.demo.display import Window
    from csr_deploy.demo.errors import DamagedFrameError
    from csr_deploy.demo.pipeline import Pipeline

app = new_app()

_ARTIFACT = typer.Argument(
    help="An artifact's folder, as csr-export made it.",
    show_default="the packaged resnet56-csr2 against resnet56",
)
_MODEL = typer.Option(
    metavar="NAME",
    help="A network by name instead: resnet56-csr2, resnet56 (10 classes of CIFAR-10) or efficientnet-lite0 "
    "(1,000 classes of ImageNet; exported on first use).",
    show_default=False,
)
_AGAINST = typer.Option(
    metavar="ARTIFACT|NAME", help="A second network on the same frames, side by side.", show_default=False
)
_SOURCE = typer.Option(
    "--source",
    "-s",
    help="0 or /dev/video0, picamera, csi, gst:PIPELINE, rtsp://… or http://…, a video file, an image file "
    "or folder, an image set, synthetic; auto is the first camera found, else synthetic.",
)
_SHOW = "Where it is shown"
_SERVE = typer.Option("--serve", help="As a page in the browser; the usual one.", rich_help_panel=_SHOW)
_DISPLAY = typer.Option("--display", help="In a window on this machine's screen.", rich_help_panel=_SHOW)
_HEADLESS = typer.Option(
    "--headless", help="As one JSON line a frame on standard output.", rich_help_panel=_SHOW
)
_RECORD = typer.Option(
    metavar="FILE",
    help="In an annotated video: .mp4, .avi or .mkv.",
    show_default=False,
    rich_help_panel=_SHOW,
)
_PAGE = "Page"
_HOST = typer.Option(
    help="Address to listen at. Others can reach 0.0.0.0; they then need the token that is printed at the "
    "start, or that $CSR_DEMO_TOKEN holds.",
    rich_help_panel=_PAGE,
)
_PORT = typer.Option(min=0, max=65535, help="0 for any free one.", rich_help_panel=_PAGE)
_PICTURES = "Pictures"
_SIZE = typer.Option(metavar="WxH", help="Asked of a camera.", rich_help_panel=_PICTURES)
_FPS = typer.Option(help="Pictures a second asked of a camera.", rich_help_panel=_PICTURES)
_SECONDS = typer.Option(
    help="How long each picture of a folder stands on a page or in a window.", rich_help_panel=_PICTURES
)
_LOOP = typer.Option(
    "--loop/--no-loop",
    help="Begin a file or folder again at its end.",
    show_default="on for pages and windows",
    rich_help_panel=_PICTURES,
)
_FRAMES = typer.Option(
    min=1, help="End after so many results.", show_default=False, rich_help_panel=_PICTURES
)


@app.command()
def demo(
    artifact: Annotated[str | None, _ARTIFACT] = None,
    model: Annotated[str | None, _MODEL] = None,
    against: Annotated[str | None, _AGAINST] = None,
    source: Annotated[str, _SOURCE] = "auto",
    serve: Annotated[bool, _SERVE] = False,
    display: Annotated[bool, _DISPLAY] = False,
    headless: Annotated[bool, _HEADLESS] = False,
    record: Annotated[Path | None, _RECORD] = None,
    host: Annotated[str, _HOST] = "127.0.0.1",
    port: Annotated[int, _PORT] = 8000,
    size: Annotated[str, _SIZE] = "640x480",
    fps: Annotated[float, _FPS] = 30.0,
    seconds: Annotated[float, _SECONDS] = 1.0,
    loop: Annotated[bool | None, _LOOP] = None,
    frames: Annotated[int | None, _FRAMES] = None,
    top: Annotated[int, typer.Option(min=1, help="Classes shown.")] = 5,
    smooth: Annotated[
        float, typer.Option(min=0, help="Averages answers over about so many seconds; 0 for none.")
    ] = 0.3,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime.")] = 1,
    stall: Annotated[
        float, typer.Option(min=0.1, help="Seconds without a picture until the source is opened again.")
    ] = 5.0,
    version: VersionOption = False,
) -> None:
    """Classifies what a camera sees, live, and compares a CSR network with its backbone."""
    if artifact is not None and model is not None:
        raise typer.BadParameter("give an artifact or --model, not both")
    serve = serve or not (display or headless or record)
    live = serve or display
    width, height = _size(size)
    from csr_deploy.demo.capture import CaptureOptions
    from csr_deploy.demo.catalogue import DEFAULT, DEFAULT_AGAINST
    from csr_deploy.demo.pipeline import PipelineOptions
    from csr_deploy.demo.sources import SourceOptions

    if artifact is None and model is None:
        model = DEFAULT
        against = against or DEFAULT_AGAINST
    wanted = [artifact or model or DEFAULT, *([against] if against else [])]
    source_options = SourceOptions(
        width, height, fps, seconds, loop=live if loop is None else loop, realtime=live
    )
    options = PipelineOptions(top, smooth, frames, CaptureOptions(every_frame=not live, stall_s=stall))
    with _terminates():
        _run(
            wanted, source, source_options, options, threads, serve=serve, display=display,
            headless=headless, record=record, host=host, port=port,
        )  # fmt: skip


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise typer.BadParameter(f"'{text}' is no size: give 640x480, for example.")
    return int(width), int(height)


def _run(
    wanted: list[str], source: str, source_options: Any, options: Any, threads: int, *,
    serve: bool, display: bool, headless: bool, record: Path | None, host: str, port: int,
) -> None:  # fmt: skip
    from dataclasses import replace

    from csr_deploy.demo.catalogue import open_model
    from csr_deploy.demo.classifier import Classifier
    from csr_deploy.demo.errors import SourceError
    from csr_deploy.demo.pipeline import Pipeline
    from csr_deploy.demo.sources import choose_source
    from csr_deploy.errors import DataError

    artifacts = [_open(open_model, name) for name in wanted]
    make_source = choose_source(source, artifacts[0], source_options)
    probe = make_source()
    if source == "auto" and probe.name == "synthetic":
        stderr.print("No camera was found: showing pictures that the network knows. See --source.")
    # A live source that nobody watches keeps its speed; a file is then read as fast as it is worked on.
    if probe.live:
        options = replace(options, capture=replace(options.capture, every_frame=False))
        make_source = choose_source(source, artifacts[0], replace(source_options, realtime=True))
    reporter = _Reporter(on_page=serve)
    pipeline: Pipeline | None = None
    with contextlib.ExitStack() as stack:
        classifiers = [stack.enter_context(Classifier(a, threads)) for a in artifacts]
        names = [c.artifact.name for c in classifiers]
        _check_labels(artifacts)

        def rate() -> float:
            return pipeline.statistics.snapshot().fps if pipeline else 0.0

        sinks: list[Any] = []
        if headless:
            from csr_deploy.demo.lines import LinePrinter

            sinks.append(LinePrinter(classifiers, sys.stdout))
        if record:
            from csr_deploy.demo.record import Recorder

            recorder = Recorder(
                record,
                names,
                _video_rate(probe, source_options),
                rate,
                realtime=probe.live or source_options.realtime,
            )
            sinks.append(stack.enter_context(recorder))
        window: Window | None = None
        if display:
            from csr_deploy.demo.display import Window

            window = Window(names, rate)
            sinks.append(window)
        hub = None
        if serve:
            from csr_deploy.demo.hub import Hub
            from csr_deploy.demo.system import SystemMonitor

            hub = stack.enter_context(Hub(stack.enter_context(SystemMonitor())))
            sinks.append(hub)
        pipeline = Pipeline(make_source, classifiers, options, sinks, reporter.state, reporter.damaged)
        if hub is not None:
            hub.pipeline = pipeline
            _serve(stack, hub, host, port)
        try:
            with pipeline:
                _wait(pipeline, window, stays=serve and options.frames is None)
        except KeyboardInterrupt:
            stderr.print()
        except BrokenPipeError:
            # Whoever read the lines has seen enough, and Python would complain once more at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except SourceError:
            if pipeline.statistics.frames:
                _summarise(pipeline)
            raise
    counts = pipeline.capture.counts
    if counts.damaged and not pipeline.statistics.frames:
        raise DataError(
            f"not one of {counts.damaged:,} pictures can be decoded",
            where=source,
            fix="See the warnings above.",
        )
    _summarise(pipeline)


def _open(open_model: Callable[..., Artifact], name: str) -> Artifact:
    with stderr.status(f"Opening {name} …") as status:
        return open_model(name, lambda stage: status.update(f"{name} is exported once: {stage} …"))


def _check_labels(artifacts: list[Artifact]) -> None:
    first = artifacts[0]
    for other in artifacts[1:]:
        if set(other.labels) != set(first.labels):
            print_warning(
                f"{other.name} and {first.name} know different classes, so that their answers seldom agree."
            )


def _video_rate(source: Any, options: Any) -> float:
    """Frames a second of a recording."""
    if source.live:
        return float(options.fps)
    from csr_deploy.demo.sources.opencv import VideoSource

    if isinstance(source, VideoSource):
        # Its rate is known once it is open.
        with source:
            return source.fps
    return 1.0 / float(options.seconds)


def _serve(stack: contextlib.ExitStack, hub: Any, host: str, port: int) -> None:
    from csr_deploy.demo.access import TOKEN_VARIABLE, is_local, make_token
    from csr_deploy.demo.server import WebServer

    token = None if is_local(host) else make_token(os.environ.get(TOKEN_VARIABLE) or None)
    server = stack.enter_context(WebServer(hub, host, port, token))
    for address in server.addresses():
        stderr.print(f"Open {address}", soft_wrap=True, markup=False)
    if token:
        stderr.print("Who has this address can see the camera. It is not encrypted on its way.")
    stderr.print("Ctrl-C ends.")


def _wait(pipeline: Pipeline, window: Window | None, *, stays: bool) -> None:
    """Until the end of the source, of the window, or Ctrl-C."""
    if window is not None:
        window.run(pipeline.done.is_set)
        if not pipeline.done.is_set():
            return
    # In pieces: a wait without an end keeps Ctrl-C from Python on some systems.
    while not pipeline.wait(0.5):
        pass
    while stays and window is None:
        # The page stays, with the last picture and the figures.
        signal.pause()


@contextlib.contextmanager
def _terminates() -> Any:
    """Ends at SIGTERM, which systemd sends, as at Ctrl-C."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Reporter:
    """Says on stderr what happens to the source."""

    def __init__(self, *, on_page: bool) -> None:
        self._on_page = on_page
        self._last = ""
        self._damaged = 0

    def state(self, state: SourceState) -> None:
        """A state of the source."""
        if state.state == "running" and self._last in ("lost", "stalled"):
            stderr.print(f"{state.text} is back.", soft_wrap=True, markup=False)
        elif state.state in ("lost", "stalled") and state.state != self._last:
            print_warning(f"{state.text}\nTrying again until it returns.")
        elif state.state == "ended" and self._on_page:
            stderr.print(f"{state.text}. Ctrl-C ends.", soft_wrap=True, markup=False)
        self._last = state.state

    def damaged(self, error: DamagedFrameError) -> None:
        """A frame that was left out."""
        self._damaged += 1
        if self._damaged <= 3:
            more = " Further ones are only counted." if self._damaged == 3 else ""
            print_warning(f"left out: {error}{more}")


def _summarise(pipeline: Pipeline) -> None:
    from rich.table import Table

    snapshot, counts = pipeline.statistics.snapshot(), pipeline.capture.counts
    rate = (snapshot.frames - 1) / snapshot.seconds if snapshot.seconds else 0.0
    table = Table(
        title=f"{snapshot.frames:,} frames in {snapshot.seconds:.1f} s ({rate:.1f} a second)",
        title_justify="left",
    )
    table.add_column("Network", overflow="fold")
    known = snapshot.known > 0
    for column in ("Inference", "Size", "Memory", "Same answer", *(["Right"] if known else [])):
        table.add_column(column, justify="right", no_wrap=True)
    for index, row in enumerate(snapshot.compared):
        table.add_row(
            f"{row.name} ({row.target})",
            f"{row.inference_ms:.2f} ms",
            f"{row.bytes / 2**20:.2f} MiB",
            "–" if row.private_bytes is None else f"{row.private_bytes / 2**20:.1f} MiB",
            f"{row.agreement:.1%}" if index else "–",
            *([f"{row.top1:.1%}" if row.top1 is not None else "–"] if known else []),
        )
    stderr.print(table)
    stages = snapshot.stages_ms
    shown = ("capture", "preprocess", "inference", "post", "output", "latency")
    stderr.print(
        "Medians in ms: " + ", ".join(f"{name} {stages[name]:.2f}" for name in shown), soft_wrap=True
    )
    stderr.print(
        f"Frames passed over {counts.dropped:,}, damaged {counts.damaged:,}; "
        f"source opened again {counts.reopened:,} times"
    )


def main() -> None:
    """Entry point of `csr-demo`."""
    run(app)


if __name__ == "__main__":
    main()
