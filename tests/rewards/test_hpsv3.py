"""HPSv3 and HPSv3++ beyond the contract; their scores are compared with the originals' in tests/parity."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from fk_steer import load_reward
from fk_steer.rewards import RewardLoadError
from fk_steer.testing.rewards import save_hpsv3, save_hpsv3_plus


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hpsv3")
    save_hpsv3(folder)
    return folder


@pytest.fixture(scope="module")
def reward(folder):
    return load_reward("hpsv3", path=str(folder), template="ours", device="cpu")


def test_special_tokens_in_a_prompt_are_plain_text(reward):
    """The original would read the reward at the prompt's token, and look for a second image."""
    _, after = reward.prompts(["a <|image_pad|> of <|Reward|>"])[0]
    token = reward.tokenizer.convert_tokens_to_ids("<|Reward|>")
    assert (after == token).nonzero().flatten().tolist() == [len(after) - 1]
    assert not (after == reward.model.qwen.config.image_token_id).any()
    assert "a <|image_pad|> of <|Reward|>" in reward.tokenizer.decode(after)


@pytest.mark.parametrize(
    ("width", "height", "columns", "rows"),
    [(512, 512, 448, 448), (1024, 768, 504, 364), (64, 64, 448, 448), (1920, 1080, 588, 336)],
)
def test_images_have_about_as_many_pixels(reward, width, height, columns, rows):
    """In multiples of 28 pixels, of 14 each way in a patch; small ones are rounded up."""
    _, grids = reward.preprocess([Image.new("RGB", (width, height))])
    assert grids.tolist() == [[1, rows // 14, columns // 14]]


def test_the_second_resizing_of_the_successor(tmp_path):
    """504 x 364 in squares of 28 becomes 512 x 352 in squares of 32."""
    reward = load_reward("hpsv3-plus", **save_hpsv3_plus(tmp_path), device="cpu")
    _, grids = reward.preprocess([Image.new("RGB", (1024, 768)), Image.new("RGB", (512, 512))])
    assert grids.tolist() == [[1, 352 // 16, 512 // 16], [1, 28, 28]]


def test_the_head_is_never_rounded(folder):
    half = load_reward("hpsv3", path=str(folder), template="ours", device="cpu", dtype="bfloat16")
    assert {parameter.dtype for parameter in half.model.qwen.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in half.model.rm_head.parameters()} == {torch.float32}


def test_a_tokenizer_of_another_model(folder, tmp_path):
    words = AutoTokenizer.from_pretrained(folder)
    words.add_tokens(["another"])
    words.save_pretrained(tmp_path)
    with pytest.raises(
        RewardLoadError, match=r"to have \d+ tokens with <\|Reward\|>, as many as its model, but that in"
    ):
        load_reward("hpsv3", path=str(folder), template="ours", tokenizer=str(tmp_path), device="cpu")
