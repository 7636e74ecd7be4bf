"""From a picture to the network's input, the same way in training, export, evaluation and demo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csr_deploy.errors import CheckpointError, MissingDependencyError


@dataclass(frozen=True)
class Preprocessing:
    """What happens to a picture before the network sees it.

    A picture of another size is resized (bilinear, antialiased) so that its shorter side fits and then
    cut at the centre; a picture with other channels is converted. Then (pixel / 255 − mean) / std.

    Attributes:
        height: Rows.
        width: Columns.
        mean: Per channel, in units of 0..1; its length is the number of channels, 1 or 3 (RGB).
        std: Per channel, in units of 0..1.
    """

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        """1 (gray) or 3 (RGB)."""
        return len(self.mean)

    def normalize(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[N, H, W, C] uint8 → [N, C, H, W] float32."""
        gain = np.asarray([1 / (255 * s) for s in self.std], np.float32)
        offset = np.asarray([m / s for m, s in zip(self.mean, self.std, strict=True)], np.float32)
        out = images.astype(np.float32) * gain - offset
        return np.ascontiguousarray(out.transpose(0, 3, 1, 2))

    def to_json(self) -> dict[str, Any]:
        """Plain values for checkpoints and manifests."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Inverse of `to_json`.

        Raises:
            CheckpointError: If a value is missing or makes no sense.
        """
        try:
            made = cls(
                int(values["height"]),
                int(values["width"]),
                tuple(float(v) for v in values["mean"]),
                tuple(float(v) for v in values["std"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the preprocessing record is damaged: {error!r}") from error
        if (
            made.height < 1
            or made.width < 1
            or made.channels not in (1, 3)
            or len(made.std) != made.channels
            or not np.isfinite([*made.mean, *made.std]).all()
            or min(made.std) <= 0
        ):
            raise CheckpointError(f"the preprocessing record makes no sense: {made}")
        return made

    @classmethod
    def from_images(cls, images: NDArray[np.uint8]) -> Preprocessing:
        """Size, mean and standard deviation of a training set [N, H, W, C], rounded to four digits."""
        count, height, width, channels = images.shape
        pixels = images.reshape(-1, channels)
        total = pixels.sum(axis=0, dtype=np.float64)
        squares = np.zeros(channels)
        for start in range(0, len(pixels), 1 << 22):
            part = pixels[start : start + (1 << 22)].astype(np.float64)
            squares += (part**2).sum(axis=0)
        mean = total / len(pixels)
        std = np.sqrt(np.maximum(squares / len(pixels) - mean**2, 1.0))
        return cls(height, width, _rounded(mean / 255), _rounded(std / 255))


def _rounded(values: Sequence[float] | NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(round(float(v), 4) for v in values)


def fit_image(image: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Brings one picture [H, W, C] or [H, W] to the network's size and channels, uint8."""
    if image.ndim == 2:
        image = image[:, :, None]
    height, width, channels = image.shape
    if channels == 4:
        image = image[:, :, :3]
    if (height, width) == (preprocessing.height, preprocessing.width) and (
        image.shape[2] == preprocessing.channels
    ):
        return image
    try:
        from PIL import Image as PillowImage
    except ImportError as error:
        raise MissingDependencyError("pillow", "pi", "Resizing a picture", cause=error) from error
    picture = PillowImage.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    mode = "L" if preprocessing.channels == 1 else "RGB"
    if picture.mode != mode:
        # Pillow would copy a picture that is in this mode already, which takes longer than resizing it.
        picture = picture.convert(mode)
    if (height, width) != (preprocessing.height, preprocessing.width):
        scale = max(preprocessing.height / height, preprocessing.width / width)
        size = (
            max(preprocessing.width, round(width * scale)),
            max(preprocessing.height, round(height * scale)),
        )
        picture = picture.resize(size, PillowImage.Resampling.BILINEAR)
        left = (size[0] - preprocessing.width) // 2
        top = (size[1] - preprocessing.height) // 2
        picture = picture.crop((left, top, left + preprocessing.width, top + preprocessing.height))
    fitted = np.asarray(picture, dtype=np.uint8)
    return fitted[:, :, None] if fitted.ndim == 2 else fitted
