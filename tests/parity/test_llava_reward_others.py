"""The Qwen2.5-VL and LLaVA-v1.6 variants against the released code."""

from __future__ import annotations

import pytest
import torch
from llava_fixtures import HIDDEN_TOLERANCE, REWARD_TOLERANCE, folders, golden, loaded
from PIL import Image
from pillow_order import OLDER, resize_as_pillow_13

from llava_reward_guide import CheckpointError, LlavaReward
from llava_reward_guide.backbones import BackboneInputs, Row
from llava_reward_guide.backbones.qwen2_5_vl import patchify, resize_twice
from llava_reward_guide.preference import preference_probability


PIXELS = (4 * 28 * 28, 24 * 28 * 28)
"""Of the fixture's image processor."""


def qwen_inputs(fixture, case) -> BackboneInputs:
    key = case["name"]
    ids = fixture.tensor(f"{key}/input_ids")
    return BackboneInputs(
        input_ids=ids,
        attention_mask=fixture.tensor(f"{key}/attention_mask"),
        image_mask=ids == 151655,
        pixels=[patchify(resize_twice(fixture.image(name), PIXELS)) for name, _ in case["items"]],
        image_sizes=[(rows, columns) for _, rows, columns in fixture.tensor(f"{key}/image_grid_thw").tolist()],
    )


@pytest.mark.parametrize("place", folders("qwen"))
def test_qwen_as_coded(place):
    """SkipCA attends to padding: to nothing if there is none."""
    fixture, reward = loaded(place)
    assert reward.config.as_coded
    rewards = {}
    for case in fixture.expected["cases"]:
        key, inputs = case["name"], qwen_inputs(fixture, case)
        if f"{key}/pixel_values" in fixture.arrays:
            expected = fixture.tensor(f"{key}/pixel_values")
            torch.testing.assert_close(torch.cat(inputs.pixels), expected, atol=1e-6, rtol=0)
        with torch.no_grad():
            output = reward.backbone(inputs, as_coded=True)
            visual = reward.backbone.embed_images(inputs)
            found = rewards[key] = reward(inputs)
        before = output.hidden_states[:, -1]
        after = reward.head.skip_connection(before[:, None], output.visual_tokens, output.visual_mask)[:, 0]
        for name, value in (
            ("visual_out", visual),
            ("hidden_eos_before_skipca", before),
            ("hidden_eos_after_skipca", after),
        ):
            torch.testing.assert_close(value, fixture.tensor(f"{key}/{name}"), atol=HIDDEN_TOLERANCE, rtol=0)
        torch.testing.assert_close(found, torch.tensor(case["reward"]), atol=REWARD_TOLERANCE, rtol=0)
    for pair in fixture.expected["preference"]:
        found = preference_probability(rewards[pair["chosen"]], rewards[pair["reject"]], reward.config.tau)
        torch.testing.assert_close(found, torch.tensor(pair["prob"]), atol=REWARD_TOLERANCE / 0.1 / 2, rtol=0)


@pytest.mark.parametrize("place", folders("qwen"))
def test_qwen_fixed(place):
    """With the visual tokens as keys, padding and company change nothing."""
    fixture, reward = loaded(place, as_coded=False)
    assert not reward.config.as_coded
    cases = {case["name"]: case for case in fixture.expected["cases"]}
    with torch.no_grad():
        found = {name: reward(qwen_inputs(fixture, case)) for name, case in cases.items()}
    alone = found["single_sq_c0_nopad"]
    torch.testing.assert_close(found["single_sq_c0_leftpad5"], alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(found["batch_three_leftpad"][:1], alone, atol=1e-5, rtol=0)
    assert (alone - torch.tensor(cases["single_sq_c0_nopad"]["reward"])).abs() > 0.01


@pytest.fixture
def order_of_pillow_13(monkeypatch):
    """The golden pixels were made with it."""
    if OLDER:
        monkeypatch.setattr(Image.Image, "resize", resize_as_pillow_13)


@pytest.mark.parametrize("place", folders("llava"))
@pytest.mark.usefixtures("order_of_pillow_13")
def test_llava(place):
    fixture, reward = loaded(place)
    rewards = {}
    for case in fixture.expected["cases"]:
        key = case["name"]
        rows = [reward.backbone.prepare_row(fixture.image(name), caption) for name, caption in case["items"]]
        inputs = reward.backbone.collate(rows)
        assert torch.equal(inputs.input_ids, fixture.tensor(f"{key}/input_ids"))
        assert inputs.image_mask.sum(1).tolist() == case["n_image_tokens"]
        if f"{key}/pixel_values" in fixture.arrays:
            for pixels, expected in zip(inputs.pixels, fixture.tensor(f"{key}/pixel_values")):
                torch.testing.assert_close(pixels, expected[: len(pixels)], atol=1e-6, rtol=0)
        with torch.no_grad():
            hidden, found = reward.backbone(inputs).hidden_states[:, -1], reward(inputs)
        torch.testing.assert_close(hidden, fixture.tensor(f"{key}/hidden_eos"), atol=HIDDEN_TOLERANCE, rtol=0)
        torch.testing.assert_close(found, torch.tensor(case["reward"]), atol=REWARD_TOLERANCE, rtol=0)
        rewards[key] = found
    for pair in fixture.expected["preference"]:
        found = preference_probability(rewards[pair["chosen"]], rewards[pair["reject"]], reward.config.tau)
        torch.testing.assert_close(found, torch.tensor(pair["prob"]), atol=REWARD_TOLERANCE / 0.1 / 2, rtol=0)


@pytest.mark.parametrize("place", folders("llava"))
def test_llava_has_no_skip_ca(place, tmp_path):
    fixture = golden(place)
    (tmp_path / "lora").symlink_to((fixture.folder / "adapter" / "lora").resolve())
    (tmp_path / "pytorch_model.bin").symlink_to((fixture.folder / "adapter" / "pytorch_model.bin").resolve())
    yaml = (fixture.folder / "adapter" / "reward_config.yaml").read_text()
    (tmp_path / "reward_config.yaml").write_text(yaml.replace("cross_attention: false", "cross_attention: true"))
    with pytest.raises(CheckpointError, match="SkipCA .* does not have on LlavaNext"):
        LlavaReward.from_pretrained(tmp_path, backbone=fixture.folder / "llava_base")


@pytest.mark.parametrize("place", folders("qwen"))
def test_as_coded_scores_one_by_one(place):
    """What an image gets does not depend on what else is scored, even where the released code's padding would show."""
    _, reward = loaded(place)
    assert reward.config.as_coded
    assert reward.config.add_cross_attention
    rows = []
    for size in (26, 30):
        ids = torch.full((size,), 7)
        ids[5:21] = 151655
        rows.append((ids, ids == 151655))
    pixels = torch.randn(64, 1176, generator=torch.Generator().manual_seed(0))
    prepared = [Row(ids, mask, pixels, (8, 8)) for ids, mask in rows]
    together = reward._embed_rows(prepared, [reward.active], 2)[reward.active]
    alone = torch.cat([reward._embed_rows([row], [reward.active], 1)[reward.active] for row in prepared])
    assert torch.equal(together, alone)
