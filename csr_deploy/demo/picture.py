"""Pictures for people: frames with the answers drawn into them, and JPEG files of frames."""

from __future__ import annotations

import functools
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from csr_deploy.demo.frames import Picture
from csr_deploy.errors import MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from csr_deploy.demo.pipeline import Result

_COLOURS = ((64, 169, 255), (255, 169, 64))
"""Of the first network's bars and of the second one's; the web page has the same."""
_SHOWN = 3
_LEAST_HEIGHT = 240


def _pillow() -> Any:
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise MissingDependencyError("pillow", "demo", "Showing pictures") from error
    return Image, ImageDraw, ImageFont


def to_rgb(picture: Picture) -> Picture:
    """Gray or RGB, to RGB."""
    return np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture


def encode_jpeg(picture: Picture, quality: int = 80, largest: int = 1280) -> bytes:
    """A picture as a JPEG file.

    Args:
        picture: Gray or RGB.
        quality: 1 to 95.
        largest: Longest side in pixels; larger pictures are made smaller.
    """
    image_module, _, _ = _pillow()
    image = image_module.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)
    if max(image.size) > largest:
        image.thumbnail((largest, largest), image_module.Resampling.BILINEAR, reducing_gap=1.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@functools.lru_cache(maxsize=8)
def _font(size: int) -> Any:
    # Pillow's own; no font of the machine is needed.
    _, _, fonts = _pillow()
    return fonts.load_default(size)


def annotate(result: Result, names: Sequence[str], fps: float) -> Picture:
    """Draws the most likely classes into the lower part of a frame.

    Args:
        result: The frame and its answers.
        names: Of the networks.
        fps: To be shown.

    Returns:
        RGB; at least 240 rows, small frames are enlarged by a whole number.
    """
    image_module, draw_module, _ = _pillow()
    picture = to_rgb(result.frame.shot.picture)
    enlarge = -(-_LEAST_HEIGHT // picture.shape[0]) if picture.shape[0] < _LEAST_HEIGHT else 1
    if enlarge > 1:
        picture = np.repeat(np.repeat(picture, enlarge, axis=0), enlarge, axis=1)
    picture = picture.copy()
    height, width = picture.shape[:2]
    size = max(height // 28, 10)
    row, pad = int(size * 1.45), size // 2
    panels = len(result.ranked)
    panel_height = min(row * (_SHOWN + 1) + 2 * pad, height)
    picture[height - panel_height :] //= 3
    image = image_module.fromarray(picture)
    draw = draw_module.Draw(image)
    font = _font(size)
    panel = width // panels
    for index, (ranked, name) in enumerate(zip(result.ranked, names, strict=True)):
        left, top = index * panel + pad, height - panel_height + pad
        inner = panel - 2 * pad
        milliseconds = result.answers[index].inference_ns / 1e6
        title = f"{name}  {milliseconds:.1f} ms" + (f"  {fps:.0f} FPS" if index == 0 else "")
        draw.text((left, top), title, font=font, fill=_COLOURS[index % 2])
        for place, (label, share) in enumerate(zip(ranked.labels, ranked.shares, strict=True)):
            if place == _SHOWN:
                break
            y = top + row * (place + 1)
            draw.rectangle((left, y + size + 1, left + inner * share, y + size + 3), fill=_COLOURS[index % 2])
            draw.text((left, y), label, font=font, fill=(255, 255, 255))
            number = f"{share:.0%}"
            draw.text(
                (left + inner - draw.textlength(number, font=font), y),
                number,
                font=font,
                fill=(255, 255, 255),
            )
    return np.asarray(image)
