import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional as reference

from dsn_ray.config import AugmentConfig
from dsn_ray.data import decoding, views
from dsn_ray.data.batch import Draws
from dsn_ray.data.decoding import UndecodablePicture
from dsn_ray.data.device_views import views_on_device
from dsn_ray.data.views import decode, draw_views, random_views


def replace(config: AugmentConfig, **changes) -> AugmentConfig:
    return AugmentConfig(**{**config.model_dump(), **changes})


REAL = Path(__file__).parents[2].parent / "shared" / "data" / "Sketchy" / "256x256"
STILL = AugmentConfig(shared=0, view_flip=0, jitter=0, grey=0)
TURNED = replace(STILL, shared=1, flip=0, scale=1, scale_range=(0.7, 0.75), rotate=1, shift=0)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8)


def image_of(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def with_dot(px: int, radius: int) -> np.ndarray:
    picture = np.full((3, px, px), 255, np.uint8)
    inner = slice(px // 2 - radius, px - px // 2 + radius)
    picture[:, inner, inner] = 0
    return picture


# Decoding


def test_a_lossless_picture_of_the_right_size_comes_back_unchanged():
    picture = noise(32, 32)
    result = decode(encoded(image_of(picture), "PNG"), 32)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, picture)


def test_resizing_is_the_antialiased_one_of_torchvision():
    picture = noise(90, 61)
    expected = reference.resize(torch.from_numpy(picture), [24, 24], antialias=True).numpy()
    result = decode(encoded(image_of(picture), "PNG"), 24).astype(int)
    assert np.abs(result - expected).max() <= 1


@pytest.mark.parametrize(
    ("image", "kind", "level"),
    [
        (Image.new("L", (20, 20), 100), "PNG", [100, 100, 100]),
        (Image.new("1", (20, 20), 1), "PNG", [255, 255, 255]),
        (Image.new("LA", (20, 20), (0, 0)), "PNG", [255, 255, 255]),
        (Image.new("RGBA", (20, 20), (255, 0, 0, 0)), "PNG", [255, 255, 255]),
        (Image.new("RGBA", (20, 20), (255, 0, 0, 255)), "PNG", [255, 0, 0]),
        (Image.new("RGBA", (20, 20), (0, 0, 0, 128)), "PNG", [127, 127, 127]),
        (Image.new("CMYK", (20, 20), (0, 255, 255, 0)), "JPEG", [255, 0, 0]),
        (Image.new("I;16", (20, 20), 100 * 257), "PNG", [100, 100, 100]),
        (Image.new("I;16", (20, 20), 200 * 257), "TIFF", [200, 200, 200]),
        (Image.new("RGB", (20, 20), (9, 80, 200)), "BMP", [9, 80, 200]),
        (Image.new("RGB", (20, 20), (9, 80, 200)), "GIF", [9, 80, 200]),
    ],
)
def test_every_mode_becomes_rgb_on_white(image, kind, level):
    result = decode(encoded(image, kind), 8).astype(int)
    assert result.shape == (3, 8, 8)
    assert np.abs(result - np.array(level)[:, None, None]).max() <= 2


def test_a_transparent_palette_colour_becomes_white():
    image = Image.new("P", (20, 20), 1)
    image.putpalette([0, 0, 0, 200, 0, 0])
    assert (decode(encoded(image, "PNG", transparency=1), 8) == 255).all()
    assert (decode(encoded(image, "PNG"), 8)[0] == 200).all()


def test_only_the_first_frame_of_an_animation_counts():
    red, blue = (Image.new("RGB", (20, 20), colour) for colour in ("red", "blue"))
    result = decode(encoded(red, "GIF", save_all=True, append_images=[blue]), 8)
    assert (result[0] == 255).all()
    assert (result[2] == 0).all()


def test_a_camera_orientation_is_obeyed():
    image = Image.new("RGB", (32, 32), "white")
    image.paste("black", (0, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    result = decode(encoded(image, "JPEG", exif=exif), 32)
    assert result[:, :12].min() > 200
    assert result[:, 20:].max() < 50


def bomb() -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
    )


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"no picture\n" * 50,
        encoded(image_of(noise(64, 64)), "JPEG")[:1500],
        encoded(image_of(noise(64, 64)), "PNG")[:1500],
        bomb(),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    ],
    ids=["empty", "text", "truncated JPEG", "truncated PNG", "bomb", "PostScript"],
)
def test_what_is_no_picture_is_refused_with_a_reason(broken):
    with pytest.raises(UndecodablePicture, match=r".{10,}"):
        decode(broken, 16)


def test_pixels_without_a_known_range_are_refused():
    for mode, value in (("F", 0.5), ("I", 70_000), ("I", -1)):
        with pytest.raises(UndecodablePicture, match="no whole numbers from 0 to 65535"):
            decode(encoded(Image.new(mode, (8, 8), value), "TIFF"), 8)
    assert decode(encoded(Image.new("I", (8, 8), 65_535), "TIFF"), 8).min() == 255


def test_too_little_memory_is_not_the_pictures_fault(monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(decoding, "_on_white", fail)
    with pytest.raises(MemoryError):
        decode(encoded(image_of(noise(8, 8)), "PNG"), 8)


def test_the_pixel_limit_is_checked_before_any_pixel_is_decoded(monkeypatch):
    truncated = encoded(image_of(noise(64, 64)), "PNG")[:100]
    monkeypatch.setattr(decoding, "PIXEL_LIMIT", 64 * 64 - 1)
    with pytest.raises(UndecodablePicture, match="64 x 64 pixels are too many"):
        decode(truncated, 16)


# The three views


@pytest.mark.parametrize("is_sketch", [True, False])
def test_equal_generators_give_equal_views_and_others_differ(is_sketch):
    picture = noise(40, 40)
    first, again, other = (
        random_views(picture, is_sketch, rng(seed), AugmentConfig()) for seed in (5, 5, 6)
    )
    assert first.shape == (3, 3, 40, 40)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first[1] != first[2]).any()


def test_without_any_chance_all_views_are_the_picture():
    picture = noise(31, 31)
    result = random_views(picture, True, rng(), STILL)
    np.testing.assert_array_equal(result, np.stack([picture] * 3))


def test_flips_are_exact_mirrors():
    picture = noise(30, 30)
    mirror = picture[:, :, ::-1]
    shared = replace(STILL, shared=1, flip=1, scale=0, rotate=0, shift=0)
    for result in random_views(picture, False, rng(), shared):
        np.testing.assert_array_equal(result, mirror)
    own = random_views(picture, False, rng(), replace(STILL, view_flip=1))
    np.testing.assert_array_equal(own, np.stack([picture, mirror, mirror]))


@pytest.mark.parametrize("seed", range(5))
def test_the_centre_stays_unless_the_corner_is_fixed(seed):
    picture = with_dot(65, 3)
    assert (random_views(picture, True, rng(seed), TURNED)[:, :, 32, 32] == 0).all()
    cornered = random_views(picture, True, rng(seed), replace(TURNED, centre="corner", degrees=5))
    assert (cornered[:, :, 32, 32] == 255).all()


@pytest.mark.parametrize("centre", ["picture", "corner"])
def test_the_move_is_that_of_torchvision(centre):
    config = replace(
        TURNED, centre=centre, fill="black", scale_range=(0.8, 0.8), degrees=20, shift=1
    )
    draws = rng(4)
    draws.random(5)
    draws.uniform(size=2)
    angle = draws.uniform(-20, 20)
    across, down = draws.uniform(-10, 10, size=2)
    picture = np.asarray(image_of(noise(7, 7)).resize((224, 224))).transpose(2, 0, 1)
    expected = reference.affine(
        torch.from_numpy(picture.astype(np.float32)),
        angle=angle,
        translate=[across, down],
        scale=0.8,
        shear=[0.0, 0.0],
        interpolation=reference.InterpolationMode.BILINEAR,
        center=[0.0, 0.0] if centre == "corner" else None,
    ).numpy()
    result = random_views(picture, False, rng(4), config)[0]
    inside = (expected > 0).all(axis=0) & (result > 0).all(axis=0)
    assert inside.mean() > 0.4
    assert np.abs(result - expected)[:, inside].max() <= 2


def test_the_shift_grows_with_the_picture():
    config = replace(STILL, shared=1, flip=0, scale=0, rotate=0, shift=1)
    moved = []
    for px in (112, 224):
        view = random_views(with_dot(px, px // 8), True, rng(2), config)[0, 0]
        rows, columns = np.nonzero(view < 128)
        moved.append(np.array([rows.mean(), columns.mean()]) + 0.5 - px / 2)
    assert 0 < np.abs(moved[1]).max() <= 10
    np.testing.assert_allclose(moved[1], 2 * moved[0], atol=1)


CORNERS = (slice(None), [0, 0, -1, -1], [0, -1, 0, -1])


@pytest.mark.parametrize("seed", range(5))
def test_beyond_the_picture_is_paper_for_sketches_and_the_edge_for_photos(seed):
    black = np.zeros((3, 48, 48), np.uint8)
    assert (random_views(black, True, rng(seed), TURNED)[0][CORNERS] == 255).all()
    photo = np.clip(noise(48, 48), 60, 200)
    photo[:, [0, -1]] = photo[:, :, [0, -1]] = np.array([90, 120, 150], np.uint8).reshape(3, 1, 1)
    view = random_views(photo, False, rng(seed), TURNED)[0]
    assert view.min() >= 60
    assert view.max() <= 200
    assert (view[CORNERS] == np.array([[90], [120], [150]])).all()


@pytest.mark.parametrize("is_sketch", [True, False])
def test_the_black_fill_is_black_for_both(is_sketch):
    white = np.full((3, 48, 48), 255, np.uint8)
    view = random_views(white, is_sketch, rng(), replace(TURNED, fill="black"))[0]
    assert (view[CORNERS] == 0).all()


def test_paper_stays_white_under_every_move():
    white = np.full((3, 33, 33), 255, np.uint8)
    for seed in range(10):
        assert (random_views(white, True, rng(seed), AugmentConfig())[0] == 255).all()


@pytest.mark.parametrize("amount", [-0.4, -0.1, 0.07, 0.4])
@pytest.mark.parametrize(
    ("step", "adjust"),
    [
        (0, reference.adjust_brightness),
        (1, reference.adjust_contrast),
        (2, reference.adjust_saturation),
        (3, reference.adjust_hue),
    ],
)
def test_each_change_of_colours_is_that_of_torchvision(step, adjust, amount):
    picture = noise(40, 40)
    picture[:, :10] = 77  # grey, where the hue is undefined
    factor = amount if adjust is reference.adjust_hue else 1 + amount
    expected = adjust(torch.from_numpy(picture), factor).numpy().astype(int)
    colours = views.JITTERS[step](picture.reshape(3, -1).astype(np.float32), amount)
    assert np.abs(colours.reshape(picture.shape) - expected).max() <= 2


def test_grey_is_the_luma_of_torchvision():
    picture = noise(40, 40)
    expected = reference.rgb_to_grayscale(torch.from_numpy(picture), 3).numpy().astype(int)
    result = random_views(picture, False, rng(), replace(STILL, grey=1))
    np.testing.assert_array_equal(result[0], picture)
    assert np.abs(result[1:] - expected).max() <= 1


def test_a_grey_picture_stays_grey_under_jitter():
    grey = np.repeat(noise(20, 20)[:1], 3, axis=0)
    result = random_views(grey, False, rng(), replace(STILL, jitter=1)).astype(int)
    assert (result[1] != grey).any()
    assert np.ptp(result, axis=1).max() <= 1


@settings(max_examples=40, deadline=None)
@given(
    px=st.integers(8, 64),
    height=st.integers(1, 80),
    width=st.integers(1, 80),
    kind=st.sampled_from(["PNG", "JPEG"]),
    is_sketch=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_any_picture_of_any_size_has_its_views(px, height, width, kind, is_sketch, seed):
    data = encoded(image_of(noise(height, width)), kind)
    result = random_views(decode(data, px), is_sketch, rng(seed), AugmentConfig())
    assert result.shape == (3, 3, px, px)


@pytest.mark.skipif(not REAL.is_dir(), reason="the Sketchy pictures are not beside the repository")
@pytest.mark.parametrize("px", [64, 112, 224])
def test_real_pictures_decode_at_every_size(px):
    sketches = sorted(REAL.glob("sketch/*/*/*.png"))[::300]
    photos = sorted(REAL.glob("photo/*/*/*.jpg"))[::300]
    assert sketches
    assert photos
    for path in sketches:
        picture = decode(path.read_bytes(), px)
        assert picture.shape == (3, px, px)
        assert picture.mean() > 200  # mostly paper
    for path in photos:
        with Image.open(path) as image:
            full = np.array(image.convert("RGB")).transpose(2, 0, 1).copy()
        expected = reference.resize(torch.from_numpy(full), [px, px], antialias=True).numpy()
        reduced = decode(path.read_bytes(), px).astype(int)
        assert np.abs(reduced - expected).mean() < 6


@pytest.mark.parametrize("is_sketch", [True, False])
@pytest.mark.parametrize("changes", [{}, {"centre": "corner", "fill": "black"}, {"grey": 1}])
def test_a_batch_on_the_device_gets_the_same_views_but_for_rounding(is_sketch, changes):
    config = replace(AugmentConfig(), **changes)
    grain = np.random.default_rng(0).normal(0, 1.5, (40, 3, 48, 48))
    pictures = np.clip(np.cumsum(np.cumsum(grain, -1), -2) + 128, 0, 255).astype(np.uint8)
    expected = np.stack(
        [random_views(one, is_sketch, rng(seed), config) for seed, one in enumerate(pictures)]
    )
    draws = [draw_views(rng(seed), config) for seed in range(len(pictures))]
    together = Draws(*(torch.from_numpy(np.stack(one)) for one in zip(*draws, strict=True)))
    found = views_on_device(torch.from_numpy(pictures), is_sketch, together, config).numpy()
    apart = np.abs(found.astype(int) - expected)
    assert apart.max() <= 1
    assert (apart > 0).mean() < 1e-3
    for view in (1, 2):
        assert (found[:, view] != found[:, 0]).any(axis=(1, 2, 3)).mean() > 0.5
