from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fk_steer.rewards.images import (
    CLIP_MEAN,
    CLIP_STD,
    center_crop,
    clip_pixels,
    resize,
    resize_shortest_side,
    to_uint8,
)


FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def picture(height: int, width: int, seed: int = 0, smooth: bool = False) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    if not smooth:
        return noise
    return np.asarray(Image.fromarray(noise[:8, :8]).resize((width, height), Image.Resampling.BICUBIC))


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy()).permute(2, 0, 1)


@pytest.mark.parametrize("smooth", [False, True], ids=["noise", "smooth"])
@pytest.mark.parametrize("resample", FILTERS)
@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((512, 512), (224, 224)),
        ((64, 64), (224, 224)),
        ((300, 400), (224, 298)),
        ((400, 300), (298, 224)),
        ((97, 61), (140, 224)),
        ((1000, 30), (100, 400)),
        ((30, 1000), (400, 100)),
        ((1, 1), (7, 9)),
        ((5, 7), (5, 3)),
        ((1500, 10), (40, 30)),
        ((1500, 10), (1600, 30)),
        ((640, 480), (640, 480)),
    ],
)
def test_resize_equals_pillow(size, wanted, resample, smooth):
    array = picture(*size, smooth=smooth)
    expected = np.asarray(Image.fromarray(array).resize(wanted[::-1], FILTERS[resample]))
    assert np.array_equal(resize(tensor(array), wanted, resample).permute(1, 2, 0).numpy(), expected)


def test_resize_equals_pillow_at_random_sizes():
    random = np.random.default_rng(1)
    for _ in range(200):
        rows, columns, height, width = (int(value) for value in random.integers(1, 90, 4))
        array = picture(rows, columns, seed=rows)
        expected = np.asarray(Image.fromarray(array).resize((width, height), Image.Resampling.BICUBIC))
        assert np.array_equal(resize(tensor(array), (height, width)).permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("smooth", [False, True], ids=["noise", "smooth"])
@pytest.mark.parametrize("resample", FILTERS)
@pytest.mark.parametrize(("size", "wanted"), [((300, 400), (224, 298)), ((64, 64), (224, 224)), ((97, 61), (140, 40))])
def test_float_images_are_resized_alike_but_not_rounded(size, wanted, resample, smooth):
    """Pillow rounds after each of its two passes, by half a level, and the second adds up the first's roundings with
    weights whose absolute values sum to less than 1.6. In the middle of the range, where nothing is clipped.
    """
    array = 96 + picture(*size, smooth=smooth) // 4
    floats = resize(tensor(array)[None] / 255, wanted, resample)
    eight_bits = resize(tensor(array)[None], wanted, resample)
    assert (floats * 255 - eight_bits).abs().max() < 0.5 * 1.6 + 0.5
    assert (floats * 255 - eight_bits).abs().mean() < 0.5


def test_float_images_stay_in_range():
    """Bicubic resizing overshoots at edges; Pillow clips."""
    edge = torch.zeros(1, 3, 8, 8)
    edge[..., 4:] = 1.0
    resized = resize(edge, (24, 24))
    assert resized.min() == 0.0
    assert resized.max() == 1.0


def test_batches():
    arrays = [picture(40, 50, seed) for seed in range(3)]
    batch = resize(torch.stack([tensor(array) for array in arrays]), (20, 30))
    assert all(torch.equal(image, resize(tensor(array), (20, 30))) for image, array in zip(batch, arrays))


@pytest.mark.parametrize(
    ("size", "expected"), [((300, 400), (224, 298)), ((400, 301), (297, 224)), ((64, 64), (224, 224))]
)
def test_shortest_side(size, expected):
    assert resize_shortest_side(torch.zeros(3, *size, dtype=torch.uint8), 224).shape[-2:] == expected


def test_center_crop_rounds_half_to_even():
    image = torch.arange(7)[None, :].expand(6, 7)
    assert center_crop(image, 4).tolist() == [[2, 3, 4, 5]] * 4
    assert center_crop(torch.arange(9)[None, :].expand(6, 9), 4)[0].tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("size", [(64, 64), (512, 512), (300, 400), (333, 200), (1, 1), (225, 227)])
def test_tensor_path_equals_pil_path(size):
    array = picture(*size)
    by_tensor = clip_pixels(tensor(array)[None] / 255, 224, "cpu", torch.float32)
    by_pil = clip_pixels([Image.fromarray(array)], 224, "cpu", torch.float32)
    assert torch.equal(by_tensor, by_pil)
    image = Image.fromarray(array)
    short = 224 / min(size)
    scaled = image.resize(
        [224 if side == min(size) else int(side * short) for side in image.size], Image.Resampling.BICUBIC
    )
    left, top = (round((side - 224) / 2) for side in scaled.size)
    pixels = np.asarray(scaled.crop((left, top, left + 224, top + 224))) / 255
    expected = (pixels - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    np.testing.assert_allclose(by_pil[0].permute(1, 2, 0).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "LA", "PA", "1", "CMYK", "YCbCr", "HSV", "LAB"])
def test_other_modes_become_rgb(mode):
    image = Image.fromarray(picture(20, 30)).convert(mode)
    (pixels,) = to_uint8([image], "cpu")
    assert torch.equal(pixels, tensor(np.asarray(image.convert("RGB"))))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "to be float in .* but got torch.uint8"),
        (torch.full((1, 3, 4, 4), torch.nan), "without NaN"),
    ],
)
def test_what_is_no_image(images, message):
    with pytest.raises(ValueError, match=message):
        to_uint8(images, "cpu")


def test_pipelines_images_are_rounded_as_when_saved():
    images = torch.rand(2, 3, 8, 8)
    from diffusers.image_processor import VaeImageProcessor

    saved = VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(images))
    assert all(torch.equal(mine, tensor(np.asarray(image))) for mine, image in zip(to_uint8(images, "cpu"), saved))
