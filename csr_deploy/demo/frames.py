"""What goes through the pipeline: pictures and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy.demo.errors import DamagedFrameError

Picture = NDArray[np.uint8]
"""[H, W, 1] gray or [H, W, 3] RGB."""


@dataclass(frozen=True)
class Shot:
    """What a source gives.

    Attributes:
        picture: The picture.
        name: Of its file, where each picture has its own; None for cameras and videos.
        truth: Name of its class, where that is known.
    """

    picture: Picture
    name: str | None = None
    truth: str | None = None


@dataclass(frozen=True)
class Frame:
    """A shot on its way.

    Attributes:
        shot: The shot.
        number: From 0, in the order of capture; those that were passed over count.
        captured_ns: When the source handed it over, by the monotonic clock.
        capture_ns: How long that took, decoding included.
    """

    shot: Shot
    number: int
    captured_ns: int
    capture_ns: int


def to_picture(values: NDArray[Any], *, blue_first: bool = False) -> Picture:
    """Brings whatever a decoder gives to gray or RGB.

    Args:
        values: [H, W] or [H, W, 1] gray, [H, W, 3] colour, or [H, W, 4] colour with alpha, which is dropped;
            uint8, or uint16 of full range.
        blue_first: Whether the channels are in OpenCV's order, BGR.

    Raises:
        DamagedFrameError: If it is none of these, or empty.
    """
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3 or not values.size or values.shape[2] not in (1, 3, 4):
        raise DamagedFrameError(f"a frame of shape {list(values.shape)} is no picture")
    if values.dtype == np.uint16:
        values = (values >> 8).astype(np.uint8)
    if values.dtype != np.uint8:
        raise DamagedFrameError(f"a frame of {values.dtype} is no picture")
    if values.shape[2] > 1:
        values = values[:, :, 2::-1] if blue_first else values[:, :, :3]
    return np.ascontiguousarray(values)
