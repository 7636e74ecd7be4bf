"""The camera demo in a real browser: a video of known pictures stands for the camera.

`CSR_DEMO_IMAGES=docs/images` with `-m full` keeps the screenshots and the GIF of the documentation, with
`CSR_DEMO_PHOTO=FILE` in front of the camera: chelsea.png of scikit-image, a cat, CC0 by Stefan van der Walt.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from csr_deploy.artifact import Artifact
from csr_deploy.demo.catalogue import open_model
from csr_deploy.demo.classifier import Classifier
from csr_deploy.demo.sources import SourceOptions
from csr_deploy.demo.sources.opencv import VideoSource
from tests.demo import ScriptedSource, noise, web_view, write_video

SIDE = 480
WIDE = 640
FPS = 15
IMAGES = os.environ.get("CSR_DEMO_IMAGES")
PHOTO = os.environ.get("CSR_DEMO_PHOTO")
_WORDS = "() => document.body.innerText"


@pytest.fixture(scope="module")
def networks() -> tuple[Artifact, Artifact]:
    return open_model("resnet56-csr2"), open_model("resnet56")


def scene(image: np.ndarray) -> np.ndarray:
    """A small picture as a camera would see a print of it: in the middle, on a wall."""
    pillow = pytest.importorskip("PIL.Image", reason="needs pillow")
    large = pillow.fromarray(image).resize((SIDE, SIDE), pillow.Resampling.LANCZOS)
    made = np.full((SIDE, WIDE, 3), 52, np.uint8)
    made[:, (WIDE - SIDE) // 2 : (WIDE + SIDE) // 2] = np.asarray(large)
    return made


@pytest.fixture(scope="module")
def known(networks: tuple[Artifact, Artifact]) -> list[tuple[str, np.ndarray]]:
    """(class, scene) of golden pictures of which both networks are sure, one a class."""
    golden = networks[0].golden()
    chosen: dict[str, np.ndarray] = {}
    with Classifier(networks[0]) as one, Classifier(networks[1]) as other:
        for image in golden.images:
            answers = [c(scene(image)) for c in (one, other)]
            label, also = (int(a.logits.argmax()) for a in answers)
            if label == also and all(a.probabilities.max() > 0.6 for a in answers):
                chosen.setdefault(networks[0].labels[label], scene(image))
    assert len(chosen) >= 2
    assert "cat" in chosen
    return list(chosen.items())


def make_camera(path: Path, known: list[tuple[str, np.ndarray]], seconds: int) -> None:
    """A video of the pictures, each for some seconds, slightly moving."""
    frames = []
    for _, picture in known:
        for step in range(seconds * FPS):
            frames.append(np.roll(picture, round(6 * np.sin(step / FPS * 2 * np.pi)), axis=1))
    write_video(path, frames, fps=FPS)


@pytest.fixture(scope="module")
def camera(known: list[tuple[str, np.ndarray]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("camera") / "camera.avi"
    make_camera(path, known, 1)
    return path


@pytest.fixture(scope="module")
def view(networks: tuple[Artifact, Artifact], camera: Path) -> Iterator[Any]:
    options = SourceOptions(loop=True)
    with web_view(lambda: VideoSource(camera, options), networks) as server:
        yield server


def pixels(page: Any) -> np.ndarray:
    """What the canvas shows, at an eighth of its size."""
    values = page.evaluate(
        "() => { const s = document.getElementById('picture'), c = document.createElement('canvas');"
        " c.width = 80; c.height = 60; const p = c.getContext('2d'); p.drawImage(s, 0, 0, 80, 60);"
        " return [...p.getImageData(0, 0, 80, 60).data]; }"
    )
    return np.asarray(values, np.uint8).reshape(60, 80, 4)


def wait_for_frames(page: Any, count: int = 3) -> None:
    first = page.wait_for_function("() => document.documentElement.dataset.frame").json_value()
    page.wait_for_function(f"() => Number(document.documentElement.dataset.frame) >= {int(first) + count}")


def test_the_page_shows_the_camera_and_what_it_sees(
    view: Any, visit: Callable[..., Any], known: list[tuple[str, np.ndarray]]
) -> None:
    seen = visit(view.addresses()[0])
    page = seen.page
    wait_for_frames(page)
    assert page.locator("#state").inner_text() == "live"
    names = [name for name, _ in known]
    shown = set()
    for name in names:
        page.wait_for_function(f"() => document.getElementById('best').innerText.startsWith('{name} ')")
        shown.add(pixels(page).tobytes())
    # The picture changes with the label.
    assert len(shown) == len(names)
    assert page.locator(".model").count() == 2
    assert page.locator(".model").first.locator(".bar").count() == 5
    widths = page.eval_on_selector_all(".model:first-child .bar rect", "r => r.map(e => e.getBBox().width)")
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > widths[4]
    text = page.evaluate(_WORDS)
    for word in (
        "Frames a second",
        "Latency",
        "Capture",
        "Preprocess",
        "Inference",
        "CPU",
        "Memory",
        "Temperature",
    ):
        assert word in text
    assert seen.errors == []
    # Nothing comes from elsewhere.
    assert all(address.startswith(view.addresses()[0]) for address in seen.requests)


def test_the_comparison_fills(
    view: Any, visit: Callable[..., Any], networks: tuple[Artifact, Artifact]
) -> None:
    seen = visit(view.addresses()[0])
    page = seen.page
    wait_for_frames(page, 10)
    rows = page.eval_on_selector_all("#rows tr", "r => r.map(e => [...e.children].map(c => c.innerText))")
    assert [row[0].split()[0] for row in rows] == [a.name for a in networks]
    for row in rows:
        assert row[1].endswith(" ms")
        assert float(row[1].split()[0]) > 0
        assert row[2].endswith(" KiB")
        assert row[3].endswith(" MiB")
    assert rows[0][4] == "–"
    assert rows[1][4].endswith(" %")
    # Nobody told the classes of this video.
    assert not page.locator("#rows .known").first.is_visible()
    assert seen.errors == []


def test_freeze_and_snapshot(view: Any, visit: Callable[..., Any], tmp_path: Path) -> None:
    seen = visit(view.addresses()[0])
    page = seen.page
    wait_for_frames(page)
    page.click("#freeze")
    assert page.locator("#freeze").get_attribute("aria-pressed") == "true"
    page.wait_for_timeout(300)
    before, frame = pixels(page), page.evaluate("() => document.documentElement.dataset.frame")
    text = page.locator("#answers").inner_text()
    page.wait_for_timeout(1500)
    assert np.array_equal(pixels(page), before)
    assert page.locator("#answers").inner_text() == text
    with page.expect_download() as download:
        page.click("#snapshot")
    assert download.value.suggested_filename == f"csr-demo-{frame}.png"
    path = tmp_path / "snapshot.png"
    download.value.save_as(path)
    pillow = pytest.importorskip("PIL.Image", reason="needs pillow")
    with pillow.open(path) as image:
        saved = np.asarray(
            image.convert("RGB").crop((0, 0, WIDE, SIDE)).resize((80, 60), pillow.Resampling.BOX)
        )
    assert np.abs(saved.astype(int) - before[:, :, :3]).mean() < 6
    page.click("#freeze")
    wait_for_frames(page)
    assert not np.array_equal(pixels(page), before)
    assert seen.errors == []


def test_it_fits_on_a_phone(view: Any, visit: Callable[..., Any]) -> None:
    seen = visit(view.addresses()[0], width=390, height=844, is_mobile=True, has_touch=True)
    page = seen.page
    wait_for_frames(page)
    assert page.evaluate("() => document.documentElement.scrollWidth") == 390
    picture, answers = (page.locator(s).bounding_box() for s in (".frame", "#answers"))
    assert picture["width"] > 350
    assert answers["y"] > picture["y"] + picture["height"]
    for button in ("#freeze", "#snapshot"):
        assert page.locator(button).bounding_box()["height"] >= 44
    assert seen.errors == []


def test_a_lost_camera_is_told(networks: tuple[Artifact, Artifact], visit: Callable[..., Any]) -> None:
    from csr_deploy.demo.errors import SourceError

    gone = SourceError("the camera gives no more pictures", where="/dev/video0")
    back: list[bool] = []

    def make_source() -> ScriptedSource:
        if not made:
            made.append(1)
            return ScriptedSource([noise(48, 64, seed=n) for n in range(20)] + [gone], pause_s=0.05)
        if not back:
            return ScriptedSource(["refuse", SourceError("there is no such camera", where="/dev/video0")])
        return ScriptedSource([noise(48, 64, seed=n) for n in range(10_000)], pause_s=0.05)

    made: list[int] = []
    with web_view(make_source, networks[:1]) as server:
        seen = visit(server.addresses()[0])
        page = seen.page
        page.wait_for_function("() => document.getElementById('state').innerText.includes('lost')")
        page.wait_for_function("() => document.getElementById('notice').innerText.includes('/dev/video0')")
        assert page.locator("#notice").is_visible()
        back.append(True)
        page.wait_for_function("() => document.getElementById('state').innerText === 'live'")
        assert not page.locator("#notice").is_visible()
        assert not page.locator("#compare").is_visible()
    page.wait_for_function("() => document.getElementById('state').innerText === 'not connected'")


def test_the_token_opens_the_page(networks: tuple[Artifact, Artifact], visit: Callable[..., Any]) -> None:
    source = [noise(48, 64, seed=n) for n in range(10_000)]
    with web_view(
        lambda: ScriptedSource(source, pause_s=0.05), networks[:1], host="0.0.0.0", token="t" * 22
    ) as server:
        seen = visit(f"http://127.0.0.1:{server.port}/?token={'t' * 22}")
        wait_for_frames(seen.page)
        # It is gone from the address bar, and so from the history.
        assert seen.page.url == f"http://127.0.0.1:{server.port}/"
        assert seen.errors == []
        other = visit(f"http://127.0.0.1:{server.port}/")
        assert "with its token" in other.page.evaluate(_WORDS)


@pytest.mark.full
def test_pictures_of_the_documentation(
    networks: tuple[Artifact, Artifact],
    visit: Callable[..., Any],
    known: list[tuple[str, np.ndarray]],
    tmp_path: Path,
) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="needs pillow")
    folder = Path(IMAGES) if IMAGES else tmp_path
    camera = tmp_path / "camera.avi"
    pictures = [dict(known)["cat"]]
    if PHOTO:
        with pillow.open(PHOTO) as photo:
            whole = photo.convert("RGB")
        # The camera moves over the photo, 4:3 as it is itself.
        height = whole.height
        width = height * WIDE // SIDE
        cuts = [(whole.width - width) * step // 3 for step in range(4)]
        pictures = [np.asarray(whole.crop((x, 0, x + width, height)).resize((WIDE, SIDE))) for x in cuts]
    make_camera(camera, [("cat", picture) for picture in pictures], 8 // len(pictures))
    label = "cat"
    with web_view(lambda: VideoSource(camera, SourceOptions(loop=True)), networks) as server:
        address = server.addresses()[0]
        for name, options in (
            ("demo.png", {"width": 1240, "height": 900}),
            ("demo-phone.png", {"width": 390, "height": 844, "is_mobile": True, "device_scale_factor": 2}),
        ):
            page = visit(address, **options).page
            wait_for_frames(page, 3 * FPS)
            page.wait_for_function(f"() => document.getElementById('best').innerText.startsWith('{label} ')")
            page.wait_for_timeout(1000)
            page.screenshot(path=str(folder / name), full_page=name == "demo.png")
            page.close()
        page = visit(address, width=1000, height=640).page
        wait_for_frames(page)
        shots = []
        for _ in range(26):
            shots.append(pillow.open(io.BytesIO(page.screenshot())).convert("RGB").resize((520, 333)))
            page.wait_for_timeout(250)
    some = shots[::5]
    sheet = pillow.new("RGB", (520, 333 * len(some)))
    for index, shot in enumerate(some):
        sheet.paste(shot, (0, 333 * index))
    palette = sheet.quantize(128)
    small = [s.quantize(palette=palette, dither=pillow.Dither.NONE) for s in shots]
    path = folder / "demo.gif"
    small[0].save(path, save_all=True, append_images=small[1:], duration=350, loop=0, optimize=True)
    assert path.stat().st_size < 1_500_000
    # The first and the last shot show different pictures.
    assert np.abs(np.asarray(shots[0]).astype(int) - np.asarray(shots[-1])).max() > 50
