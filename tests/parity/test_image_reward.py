"""ImageReward against outputs of THUDM/ImageReward c1392c6, to the tolerances of the fixtures' README.txt."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import golden_folders
from PIL import Image

from fk_steer import load_reward
from fk_steer.rewards.images import CLIP_MEAN, CLIP_STD, to_uint8


@pytest.fixture(scope="module", params=golden_folders("image_reward"), ids=str)
def golden(request):
    return request.param


@pytest.fixture(scope="module")
def reward(golden):
    return load_reward("image-reward", path=str(golden), device="cpu")


@pytest.fixture(scope="module")
def expected(golden):
    return json.loads((golden / "expected.json").read_text()), np.load(golden / "expected.npz")


@pytest.fixture(scope="module")
def pairs(golden, expected):
    """Those whose image is there: the copies beside the tests are not complete."""
    pairs = [pair for pair in expected[0]["pairs"] if (golden / pair["image"]).exists()]
    assert len(pairs) >= 8
    return pairs


def test_tokens(reward, pairs):
    for pair in pairs:
        ids, mask = reward.prompts([pair["prompt"]])[0]
        assert ids.tolist() == pair["input_ids"]
        assert mask.tolist() == pair["attention_mask"]


def test_preprocessing_equals_pillow_bit_for_bit(golden, reward):
    files = sorted((golden / "preprocessed").glob("*.png"))
    assert {file.stem for file in files} >= {"land", "rgba", "gray", "palette"}
    for file in files:
        pixels = reward.preprocess([Image.open(golden / "images" / file.name)])[0]
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (CLIP_MEAN, CLIP_STD))
        assert torch.equal((255 * (pixels * std + mean)).round().byte(), to_uint8([Image.open(file)], "cpu")[0])


def test_normalised_pixels(golden, reward):
    values = np.load(golden / "preprocess_expected.npz")
    files = sorted((golden / "images").glob("*.png"))
    assert len(files) >= 7
    for file in files:
        pixels = reward.preprocess([Image.open(file)])[0].numpy()
        np.testing.assert_allclose(pixels[:, ::7, ::7], values[f"{file.stem}/stride7"], atol=1e-6)
        np.testing.assert_allclose(pixels[:, 100], values[f"{file.stem}/row100"], atol=1e-6)


def test_hidden_states(golden, reward, expected, pairs):
    for pair in pairs:
        values = {name: expected[1][f"{pair['key']}/{name}"] for name in ("image_embeds_tok0_5_last", "cls_feature")}
        pixels = reward.preprocess([Image.open(golden / pair["image"])])
        ids, mask = reward.prompts([pair["prompt"]])[0][:, None]
        with torch.no_grad():
            image = reward.model.vision(pixel_values=pixels).last_hidden_state
            hidden = reward.model.text(ids, attention_mask=mask, encoder_hidden_states=image).last_hidden_state
        tokens = image[0, [0, 1, 2, 3, 4, 5, -1]]
        np.testing.assert_allclose(tokens.numpy(), values["image_embeds_tok0_5_last"], atol=1e-4)
        np.testing.assert_allclose(hidden[0, 0].numpy(), values["cls_feature"], atol=1e-4)


def test_scores_from_files(golden, reward, pairs):
    images = [Image.open(golden / pair["image"]) for pair in pairs]
    scores = reward(images, [pair["prompt"] for pair in pairs])
    np.testing.assert_allclose(scores.numpy(), [pair["reward"] for pair in pairs], atol=2e-5)


def test_gradients(golden, reward, expected, pairs):
    """With respect to the normalised pixels, as `score_gard` of the original gives them."""
    found = [pair for pair in pairs if "grad_l2_norm" in pair]
    assert found
    for pair in found:
        pixels = reward.preprocess([Image.open(golden / pair["image"])]).requires_grad_()
        (gradient,) = torch.autograd.grad(reward.rate(pixels, [pair["prompt"]]).sum(), pixels)
        assert gradient.norm().item() == pytest.approx(pair["grad_l2_norm"], rel=1e-4)
        values = expected[1][f"{pair['key']}/grad_reward_wrt_image_stride7"]
        np.testing.assert_allclose(gradient[0, :, ::7, ::7].numpy(), values, atol=1e-5 * abs(values).max() + 1e-7)


def test_ranking(golden, reward, expected):
    found = [rank for rank in expected[0]["rank"] if all((golden / image).exists() for image in rank["images"])]
    assert found
    for rank in found:
        images = [Image.open(golden / image) for image in rank["images"]]
        scores = reward(images, [rank["prompt"]] * len(images))
        np.testing.assert_allclose(scores.numpy(), rank["rewards"], atol=2e-5)
        assert (scores.argsort(descending=True).argsort() + 1).tolist() == rank["ranking"]
