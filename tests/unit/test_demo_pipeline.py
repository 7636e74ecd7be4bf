"""The camera demo's pipeline: what it computes, and what it does when the source misbehaves."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from csr_deploy.artifact import Artifact
from csr_deploy.data import fit_image
from csr_deploy.demo.capture import CaptureOptions, SourceState
from csr_deploy.demo.catalogue import open_model
from csr_deploy.demo.classifier import Classifier
from csr_deploy.demo.errors import DamagedFrameError, SourceError
from csr_deploy.demo.pipeline import Pipeline, PipelineOptions
from csr_deploy.demo.sources import Source, SourceOptions, choose_source
from csr_deploy.demo.sources.opencv import VideoSource
from csr_deploy.errors import OptionError
from csr_deploy.runtimes import open_runtime
from tests.demo import Collector, ScriptedSource, enlarged, noise, run_to_end, write_video
from tests.onnx_artifact import make_artifact, rewrite

EVERY = PipelineOptions(capture=CaptureOptions(every_frame=True))
QUICK = CaptureOptions(stall_s=0.3, open_s=5, retry_s=0.02)


@pytest.fixture(scope="module")
def shipped() -> Artifact:
    return open_model("resnet56-csr2")


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    return make_artifact(tmp_path_factory.mktemp("artifact") / "colours")


@pytest.fixture(scope="module")
def classifier(shipped: Artifact) -> Iterator[Classifier]:
    with Classifier(shipped) as opened:
        yield opened


class Sources:
    """Makes the given sources, one after the other; the last one again and again."""

    def __init__(self, *makers: Callable[[], Source]) -> None:
        self._makers = list(makers)
        self.made = 0

    def __call__(self) -> Source:
        maker = self._makers[min(self.made, len(self._makers) - 1)]
        self.made += 1
        return maker()


ODD = [
    noise(32, 32),
    noise(480, 640),
    noise(33, 31),
    noise(1, 1),
    noise(2, 999),
    noise(500, 3),
    noise(64, 64, 1),
    noise(32, 32, 1),
    noise(1081, 1921),
]


@pytest.mark.parametrize("kind", ["tflite-int8", "onnx", "onnx of batch 3"])
def test_the_same_picture_gives_the_same_logits_as_the_evaluation(
    kind: str, shipped: Artifact, colours: Artifact, tmp_path: Path
) -> None:
    artifact = {"tflite-int8": shipped, "onnx": colours}.get(kind)
    if artifact is None:
        artifact = make_artifact(tmp_path / "batch", batch=3)
    # csr-bench's way to an accuracy: the dataset's `fit_image`, then the runtime's `logits`.
    with open_runtime(None, artifact) as runtime:
        fitted = np.stack([fit_image(p, artifact.preprocessing) for p in ODD])
        expected = artifact.output.decode(runtime.logits(fitted))
    collector = Collector()
    with Classifier(artifact) as opened:
        pipeline = Pipeline(
            lambda: ScriptedSource([p.copy() for p in ODD], live=False), [opened], EVERY, [collector]
        )
        run_to_end(pipeline)
    seen = np.stack([r.answers[0].logits for r in collector.results])
    assert seen.dtype == expected.dtype
    assert seen.tobytes() == expected.tobytes()


def test_files_are_decoded_as_the_evaluation_does(classifier: Classifier, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs pillow")
    from csr_deploy.data import open_dataset

    for index, picture in enumerate(ODD[:8]):
        mode = picture[:, :, 0] if picture.shape[2] == 1 else picture
        image.fromarray(mode).save(tmp_path / f"test_{index}.{'jpg' if index % 2 else 'png'}")
    image.fromarray(noise(50, 60, 4)).save(tmp_path / "test_8.png")
    image.fromarray(noise(50, 60)).convert("P").save(tmp_path / "test_9.png")
    whole = {n: d.image(i) for d in map(_split(tmp_path), ("train", "test")) for i, n in enumerate(d.files)}
    assert len(whole) == 10
    with open_runtime(None, classifier.artifact) as runtime:
        preprocessing = classifier.artifact.preprocessing
        expected = {n: runtime.logits(fit_image(p, preprocessing)[None])[0] for n, p in whole.items()}
    collector = Collector()
    source = choose_source(str(tmp_path), classifier.artifact, SourceOptions(realtime=False))
    run_to_end(Pipeline(source, [classifier], EVERY, [collector]))
    decode = classifier.artifact.output.decode
    assert {r.frame.shot.name for r in collector.results} == set(expected)
    for result in collector.results:
        assert result.answers[0].logits.tobytes() == decode(expected[str(result.frame.shot.name)]).tobytes()
    assert open_dataset(tmp_path, "test").classes == ()


def _split(folder: Path) -> Callable[[str], Any]:
    from csr_deploy.data import open_dataset

    return lambda split: open_dataset(folder, split)  # type: ignore[arg-type]


def test_a_slow_consumer_gets_the_newest_frame(classifier: Classifier) -> None:
    pictures = [np.full((32, 32, 3), n, np.uint8) for n in range(60)]
    seen: list[int] = []

    def slow(result: Any) -> None:
        seen.append(result.frame.number)
        time.sleep(0.1)

    source = ScriptedSource(pictures, pause_s=0.01)
    pipeline = Pipeline(lambda: source, [classifier], sinks=[slow])
    run_to_end(pipeline)
    counts = pipeline.capture.counts
    assert counts.captured == 60
    assert counts.dropped == 60 - len(seen) > 0
    # Whatever was passed over, the order stayed, and what is seen last is what was captured last.
    assert seen == sorted(set(seen))
    assert seen[-1] == 59


def test_every_frame_of_a_file_is_worked_on(classifier: Classifier) -> None:
    collector = Collector()
    source = ScriptedSource([noise(32, 32, seed=n) for n in range(30)], live=False)
    pipeline = Pipeline(lambda: source, [classifier], EVERY, [collector])
    run_to_end(pipeline)
    assert [r.frame.number for r in collector.results] == list(range(30))
    assert pipeline.capture.counts.dropped == 0
    assert pipeline.state.state == "ended"
    assert source.closed.is_set()


def test_a_camera_that_is_unplugged_resumes_when_it_returns(classifier: Classifier) -> None:
    gone = SourceError("the camera gives no more pictures", where="cam")
    absent = SourceError("there is no such camera", where="cam")
    states: list[SourceState] = []
    collector = Collector()
    sources = Sources(
        lambda: ScriptedSource([noise(32, 32), noise(32, 32), gone]),
        lambda: ScriptedSource(["refuse", absent]),
        lambda: ScriptedSource(["refuse", absent]),
        lambda: ScriptedSource([noise(32, 32)] * 3),
    )
    options = PipelineOptions(capture=CaptureOptions(every_frame=True, retry_s=0.01))
    pipeline = Pipeline(sources, [classifier], options, [collector], states.append)
    run_to_end(pipeline)
    assert [(s.state, s.text) for s in states] == [
        ("running", "scripted"),
        ("lost", "cam: the camera gives no more pictures"),
        ("lost", "cam: there is no such camera"),
        ("running", "scripted"),
        ("ended", "scripted has ended"),
    ]
    assert len(collector.results) == 5
    assert pipeline.capture.counts.reopened == 1


def test_a_camera_that_is_not_there_at_the_start_is_an_error(classifier: Classifier) -> None:
    pipeline = Pipeline(lambda: ScriptedSource(["refuse", SourceError("busy")]), [classifier])
    with pytest.raises(SourceError, match="busy"), pipeline:
        pipeline.wait(20)
    assert pipeline.statistics.frames == 0


def test_the_watchdog_gives_up_a_source_that_hangs(classifier: Classifier) -> None:
    release = threading.Event()
    hanging = ScriptedSource([noise(32, 32), lambda: release.wait(30) and noise(32, 32)])
    states: list[SourceState] = []
    collector = Collector()
    sources = Sources(lambda: hanging, lambda: ScriptedSource([noise(32, 32)] * 4, pause_s=0.02))
    options = PipelineOptions(capture=CaptureOptions(every_frame=True, stall_s=0.3, retry_s=0.01))
    run_to_end(Pipeline(sources, [classifier], options, [collector], states.append))
    assert [s.state for s in states] == ["running", "stalled", "running", "ended"]
    assert len(collector.results) == 5
    # When the driver answers after all, the forgotten source is closed and its picture is not used.
    assert not hanging.closed.is_set()
    release.set()
    assert hanging.closed.wait(10)
    assert len(collector.results) == 5


def test_a_source_that_hangs_from_the_start_is_an_error(classifier: Classifier) -> None:
    release = threading.Event()
    pipeline = Pipeline(
        lambda: ScriptedSource([lambda: release.wait(30) and None]),
        [classifier],
        PipelineOptions(capture=QUICK),
    )
    with pytest.raises(SourceError, match="does not answer"), pipeline:
        pipeline.wait(20)
    release.set()


def test_damaged_frames_are_counted_and_left_out(classifier: Classifier) -> None:
    damaged = DamagedFrameError("cannot be decoded")
    told: list[DamagedFrameError] = []
    source = ScriptedSource([noise(32, 32), damaged, damaged, noise(32, 32)], live=False)
    pipeline = Pipeline(lambda: source, [classifier], EVERY, on_damaged=told.append)
    run_to_end(pipeline)
    assert pipeline.statistics.frames == 2
    assert pipeline.capture.counts.damaged == 2
    assert told == [damaged, damaged]


def test_a_camera_whose_frames_are_all_damaged_is_opened_again(classifier: Classifier) -> None:
    damaged = DamagedFrameError("cannot be decoded")
    sources = Sources(
        lambda: ScriptedSource([noise(32, 32), *[damaged] * 100]), lambda: ScriptedSource([noise(32, 32)])
    )
    pipeline = Pipeline(sources, [classifier], PipelineOptions(capture=QUICK))
    run_to_end(pipeline)
    assert sources.made == 2
    assert pipeline.capture.counts.reopened == 1


def test_a_defect_in_a_thread_reaches_the_main_thread(classifier: Classifier) -> None:
    def broken(result: Any) -> None:
        raise ZeroDivisionError("a sink's defect")

    pipeline = Pipeline(lambda: ScriptedSource([noise(32, 32)]), [classifier], sinks=[broken])
    with pytest.raises(ZeroDivisionError), pipeline:
        pipeline.wait(20)
    pipeline = Pipeline(lambda: ScriptedSource([ZeroDivisionError("a source's defect")]), [classifier])
    with pytest.raises(RuntimeError, match="capture thread has failed") as caught, pipeline:
        pipeline.wait(20)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_it_ends_after_a_number_of_frames(classifier: Classifier) -> None:
    source = ScriptedSource([noise(32, 32)] * 1000, pause_s=0.001)
    pipeline = Pipeline(lambda: source, [classifier], PipelineOptions(frames=5))
    run_to_end(pipeline)
    assert pipeline.statistics.frames == 5
    assert source.closed.wait(10)


def test_two_networks_see_the_same_frames(shipped: Artifact) -> None:
    golden = shipped.golden()
    images = [enlarged(i, 7) for i in golden.images]
    backbone = open_model("resnet56")
    collector = Collector()
    with Classifier(shipped) as one, Classifier(backbone) as other:
        pipeline = Pipeline(lambda: ScriptedSource(images, live=False), [one, other], EVERY, [collector])
        run_to_end(pipeline)
        expected = [[int(c(i).logits.argmax()) for i in images] for c in (one, other)]
    rows = pipeline.statistics.snapshot().compared
    same = np.mean(np.equal(*expected))
    assert [row.agreement for row in rows] == [1.0, pytest.approx(same)]
    assert [row.bytes for row in rows] == [shipped.files[0].size, backbone.files[0].size]
    assert all(row.private_bytes and row.private_bytes > row.bytes for row in rows)
    assert all(row.inference_ms > 0 for row in rows)
    assert [row.top1 for row in rows] == [None, None]


def test_pictures_with_names_are_not_smoothed(classifier: Classifier, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs pillow")
    golden = classifier.artifact.golden()
    for index in range(8):
        label = classifier.artifact.labels[golden.labels[index]]
        (tmp_path / label).mkdir(exist_ok=True)
        image.fromarray(golden.images[index]).save(tmp_path / label / f"{index}.png")
    collector = Collector()
    source = choose_source(str(tmp_path), classifier.artifact, SourceOptions(realtime=False))
    pipeline = Pipeline(source, [classifier], EVERY, [collector])
    run_to_end(pipeline)
    for result in collector.results:
        best = int(result.answers[0].probabilities.argmax())
        assert result.ranked[0].labels[0] == classifier.artifact.labels[best]
    snapshot = pipeline.statistics.snapshot()
    assert snapshot.known == 8
    outputs = golden.outputs[:8].argmax(axis=1)
    assert snapshot.compared[0].top1 == pytest.approx(float((outputs == golden.labels[:8]).mean()))


def test_an_artifact_for_a_microcontroller_is_refused(colours: Artifact) -> None:
    from dataclasses import replace

    with pytest.raises(OptionError, match="is for the target 'mcu', which the demo cannot run"):
        Classifier(replace(colours, target="mcu"))


def test_an_artifact_whose_file_is_for_another_runtime(tmp_path: Path) -> None:
    artifact = rewrite(make_artifact(tmp_path / "colours"), target="tflite-fp32")
    with pytest.raises(OptionError, match=r"runs \.tflite files, this is model\.onnx"):
        Classifier(artifact)


def soak(classifier: Classifier, folder: Path, frames: int) -> tuple[int, int]:
    """Resident memory after a warm-up and at the end, in bytes, of a video that begins again and again."""
    path = folder / "v.avi"
    write_video(path, [noise(96, 128, seed=n) for n in range(50)])
    options = SourceOptions(realtime=False, loop=True)
    process = psutil.Process()
    memory = []

    def watch(result: Any) -> None:
        if result.frame.number in (frames // 10, frames - 1):
            memory.append(process.memory_info().rss)

    pipeline = Pipeline(
        lambda: VideoSource(path, options),
        [classifier],
        PipelineOptions(frames=frames, capture=CaptureOptions(every_frame=True)),
        [watch],
    )
    run_to_end(pipeline, 600)
    assert pipeline.statistics.frames == frames
    assert pipeline.capture.counts.damaged == 0
    return memory[0], memory[1]


def test_memory_stays_flat(classifier: Classifier, tmp_path: Path) -> None:
    first, last = soak(classifier, tmp_path, 800)
    assert abs(last - first) < 5 * 2**20


@pytest.mark.full
def test_memory_stays_flat_over_ten_thousand_frames(classifier: Classifier, tmp_path: Path) -> None:
    first, last = soak(classifier, tmp_path, 10_000)
    assert abs(last - first) < 5 * 2**20


def test_lines_are_json_with_all_that_is_known(classifier: Classifier, tmp_path: Path) -> None:
    import io

    from csr_deploy.demo.lines import LinePrinter

    stream = io.StringIO()
    source = ScriptedSource([noise(20, 30)] * 2, live=False)
    run_to_end(Pipeline(lambda: source, [classifier], EVERY, [LinePrinter([classifier], stream)]))
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["frame"] for line in lines] == [0, 1]
    assert lines[0]["size"] == [30, 20]
    (model,) = lines[0]["models"]
    assert len(model["top"]) == 5
    assert model["top"][0]["share"] >= model["top"][1]["share"]


def test_recordings_play_as_fast_as_they_were_taken(classifier: Classifier, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="needs opencv-python-headless")
    from csr_deploy.demo.record import Recorder

    pictures = [noise(97, 131, seed=n) for n in range(20)] + [noise(300, 60, 1)] * 2
    lengths = {}
    for realtime in (False, True):
        path = tmp_path / f"{realtime}.mp4"
        with Recorder(path, ["net"], 50, lambda: 12.0, realtime=realtime) as recorder:
            source = ScriptedSource(pictures, live=False, pause_s=0.05)
            run_to_end(Pipeline(lambda s=source: s, [classifier], EVERY, [recorder]))  # type: ignore[misc]
            assert not path.exists()
        video = cv2.VideoCapture(str(path))
        lengths[realtime] = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        good, frame = video.read()
        assert good
        # Three times as large, and of even size.
        assert frame.shape == (290, 392, 3)
    assert lengths[False] == 22
    # 21 pauses of at least 50 ms are 52 frames at 50 a second.
    assert lengths[True] >= 52
    assert {p.name for p in tmp_path.iterdir()} == {"False.mp4", "True.mp4"}


def test_recordings_that_cannot_be_written(tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="needs opencv-python-headless")
    from csr_deploy.demo.record import Recorder

    with pytest.raises(OptionError, match="no kind of video"):
        Recorder(tmp_path / "x.gif", ["net"], 30, lambda: 0.0, realtime=True)
    with pytest.raises(OptionError, match="no such folder"):
        Recorder(tmp_path / "nowhere" / "x.mp4", ["net"], 30, lambda: 0.0, realtime=True)


def test_statistics_show_no_rate_when_nothing_comes(classifier: Classifier) -> None:
    pipeline = Pipeline(lambda: ScriptedSource([]), [classifier])
    assert pipeline.statistics.snapshot().fps == 0
    assert pipeline.statistics.snapshot().stages_ms["latency"] == 0
