from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from llava_reward_guide import RewardConfig, random_reward
from llava_reward_guide.cost import crops_agreement, flops_per_image, measure, weight_bytes
from llava_reward_guide.untrained import random_backbone


@pytest.mark.parametrize("model_type", ["phi3_v", "qwen2_5_vl", "llava_next"])
@pytest.mark.parametrize("size", [(256, 256), (300, 120), (200, 300)])
@pytest.mark.parametrize("pooling", [False, True])
def test_flops(model_type, size, pooling):
    """The formula is what torch counts; a batch costs as many times one image."""
    config = RewardConfig(add_cross_attention=model_type != "llava_next", mean_pooling=pooling)
    reward = random_reward(model_type, "tiny", config, attn_implementation="eager", num_crops=2)
    image = Image.new("RGB", size)
    for batch in (1, 2):
        inputs = reward.backbone.prepare([image] * batch, ["a red cube"] * batch)
        text_tokens = int((~inputs.image_mask[0]).sum())
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            reward(inputs)
        found = flops_per_image(reward.backbone, config, *size, text_tokens=text_tokens)
        assert counter.get_total_flops() == batch * found


def test_full_size():
    """What docs/llava-reward.md states."""
    backbone = random_backbone("phi3_v", "full", "meta", torch.bfloat16)
    tflops = [flops_per_image(backbone, RewardConfig(), num_crops=crops) / 1e12 for crops in (16, 9, 4, 1)]
    assert tflops == pytest.approx([27.4, 15.7, 7.9, 3.0], abs=0.05)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == pytest.approx(4.036e9, rel=1e-3)


def test_measure_and_agreement():
    reward = random_reward("phi3_v", "tiny")
    rows = measure(reward, (4, 1), (1, 2), 64, 64)
    assert [(row.num_crops, row.batch_size) for row in rows] == [(4, 1), (4, 2), (1, 1), (1, 2)]
    assert all(row.images_per_second > 0 for row in rows)
    assert rows[0].tflop_per_image == rows[1].tflop_per_image > rows[2].tflop_per_image
    assert weight_bytes(reward) == 4 * sum(parameter.numel() for parameter in reward.parameters())

    images = [Image.effect_noise((64, 64), 20 * k).convert("RGB") for k in range(1, 5)]
    rows = crops_agreement(reward, images, ["x"] * 4, (1, 4))
    assert [row.num_crops for row in rows] == [4, 1]
    assert (rows[0].kendall_tau, rows[0].same_best) == (1.0, True)
    assert -1 <= rows[1].kendall_tau <= 1
    with pytest.raises(ValueError, match="at least 2 images"):
        crops_agreement(reward, images[:1], ["x"])
    with pytest.raises(ValueError, match="cuts images into crops, but got Qwen25VL"):
        crops_agreement(random_reward("qwen2_5_vl", "tiny"), images, ["x"] * 4)


@pytest.mark.gpu
@pytest.mark.parametrize("attn_implementation", ["sdpa", "flash_attention_2"])
def test_full_size_on_a_gpu(attn_implementation):
    """Runs in the memory that docs/llava-reward.md states, and a batch gives what single images give."""
    if attn_implementation == "flash_attention_2":
        pytest.importorskip("flash_attn")
    torch.cuda.reset_peak_memory_stats()
    reward = random_reward(
        "phi3_v", "full", device="cuda", dtype=torch.bfloat16, attn_implementation=attn_implementation
    )
    rows = measure(reward, (16, 4, 1), (1, 4))
    for row in rows:
        print(row)
    peak = torch.cuda.max_memory_allocated() / 2**30
    print(f"weights {weight_bytes(reward) / 2**30:.2f} GiB, peak {peak:.2f} GiB")
    assert peak < 14
    images = [Image.effect_noise((512, 512), 30 * k).convert("RGB") for k in range(1, 4)]
    alone = torch.cat([reward.score([image], ["x"]) for image in images])
    torch.testing.assert_close(reward.score(images, ["x"] * 3), alone, atol=0.02, rtol=0.05)
