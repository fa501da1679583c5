"""Pictures from encoded bytes, whatever their format, mode and orientation."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

PIXEL_LIMIT = 64_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


class UndecodablePicture(ValueError):  # noqa: N818 - it names the picture, not the error
    """The bytes are no picture that can be decoded; the message says why."""


@contextmanager
def opened(encoded: bytes) -> Iterator[Image.Image]:
    """Opens a picture; what goes wrong with it while it is open is said of it.

    Args:
        encoded: a file in one of `FORMATS`.

    Raises:
        UndecodablePicture: the bytes are empty, truncated, of another format or of more than
            `PIXEL_LIMIT` pixels.
        MemoryError: there is too little memory at present.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            if image.width * image.height > PIXEL_LIMIT:
                raise UndecodablePicture(f"{image.width} x {image.height} pixels are too many")
            yield image
    except (UndecodablePicture, MemoryError):
        raise
    except UnidentifiedImageError:
        raise UndecodablePicture(f"it is none of {', '.join(FORMATS)}") from None
    except Exception as error:  # the decoders let nearly any exception escape on broken bytes
        raise UndecodablePicture(f"{type(error).__name__}: {error}") from error


def open_rgb(encoded: bytes, least_px: int | None = None) -> Image.Image:
    """Decodes the first frame of a picture, upright and on white.

    Args:
        encoded: a file in one of `FORMATS`.
        least_px: a JPEG may be decoded at a reduced size that is at least this on both sides.

    Raises:
        UndecodablePicture: as `opened`.
    """
    with opened(encoded) as image:
        return upright_rgb(image, least_px)


def upright_rgb(image: Image.Image, least_px: int | None = None) -> Image.Image:
    """Decodes an opened picture as `open_rgb` does."""
    if least_px is not None:
        image.draft("RGB", (least_px, least_px))
    return _on_white(image)


def decode_all(image: Image.Image) -> None:
    """Finds out whether `upright_rgb` can decode an opened picture, in less time.

    Every byte is read. Only the pixels of a JPEG are not all worked out, and only one pixel is
    turned upright and into RGB, which fails by what a picture says of itself or not at all.
    """
    if image.format == "JPEG":
        image.draft("RGB", (1, 1))
    if image.format in ("JPEG", "PNG"):
        image = image.crop((0, 0, 1, 1))
    _on_white(image)


def _on_white(image: Image.Image) -> Image.Image:
    """Turns a picture of any mode upright and into RGB, transparent parts white."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F" or (image.mode == "I" and not _has_16_bits(image)):
        raise UndecodablePicture("its pixels are no whole numbers from 0 to 65535")
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda level: level / 257).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _has_16_bits(image: Image.Image) -> bool:
    levels = np.asarray(image)
    return bool(levels.min() >= 0 and levels.max() <= 65_535)
