from __future__ import annotations

import pytest
import torch
from PIL import Image

from fk_steer import load_reward
from fk_steer.rewards import RewardLoadError
from fk_steer.testing.rewards import save_quality, save_qwen3


IMAGE = Image.linear_gradient("L").resize((96, 64)).convert("RGB")


def test_the_mean_of_levels(tmp_path):
    """Of the words that may end the reply, by the model's own generation."""
    save_quality(tmp_path)
    reward = load_reward("quality", path=str(tmp_path))
    patches, grids = reward.preprocess([IMAGE])
    question = (
        "<|im_start|>user\n<|vision_start|>"
        + "<|image_pad|>" * (int(grids.prod()) // 4)
        + "<|vision_end|>How would you rate the quality of this image?<|im_end|>\n<|im_start|>assistant\n"
        "The quality of the image is"
    )
    ids = reward.tokenizer(question, return_tensors="pt").input_ids
    image = (ids == reward.model.config.image_token_id).int()
    logits = reward.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=image, pixel_values=patches,
        image_grid_thw=grids, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True,
    ).logits[0][0]  # fmt: skip
    levels = {" excellent": 5, " good": 4, " fair": 3, " poor": 2, " bad": 1}
    weights = {level: logits[reward.tokenizer(level).input_ids[0]].exp().item() for level in levels}
    expected = sum(score * weights[level] for level, score in levels.items()) / sum(weights.values())
    assert reward([IMAGE], [""]).item() == pytest.approx(expected, rel=1e-5)
    assert 1.0 < expected < 5.0


def test_levels_need_tokens(tmp_path):
    """The mean would be of letters."""
    save_qwen3(tmp_path)
    with pytest.raises(RewardLoadError, match="the tokenizer of 'quality' to have one token for ' excellent'"):
        load_reward("quality", path=str(tmp_path))
