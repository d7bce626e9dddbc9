"""The Phi-3.5-vision variant against the released code."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from llava_fixtures import HIDDEN_TOLERANCE, REWARD_TOLERANCE, folders, golden, loaded

from llava_reward_guide.hd import hd_crops, hd_layout, hd_transform
from llava_reward_guide.head import last_position
from llava_reward_guide.preference import preference_probability


FOLDERS = folders("phi3v")


def rewards_of(cases):
    return torch.tensor([case["reward"][0] for case in cases])


@pytest.mark.parametrize("place", FOLDERS)
@pytest.mark.parametrize("own", [True, False], ids=["own crops", "16 crops"])
def test_hd_transform(place, own):
    """With as many crops as the fixture's rewards have, and the default."""
    fixture = golden(place)
    num_crops = fixture.expected["num_crops"] if own else 16
    if not (fixture.folder / "hd_expected.npz").exists():
        pytest.skip("this fixture has no HD transforms")
    arrays = np.load(fixture.folder / "hd_expected.npz")
    facts = json.loads((fixture.folder / "hd_expected.json").read_text())
    facts = facts["images"] if own else facts["default_16"]
    for name, fact in facts.items():
        image = fixture.image(name)
        views = hd_crops(hd_transform(image, num_crops))
        layout = hd_layout(*image.size, num_crops)
        assert [tuple(size) for size in fact["image_sizes_hw"]] == [tuple(336 * side for side in layout.grid)]
        assert fact["num_img_tokens"] == [layout.num_tokens]
        # The rest of the slots are zero in the original, and discarded there.
        total = views.double().sum((1, 2, 3))
        np.testing.assert_allclose(total, fact["crop_sums_f64"][: len(views)], atol=0.05)
        key, stride = (f"{name}/pixel_values_stride8", 8) if own else (f"{name}/pixel_values16_stride24", 24)
        if key in arrays:
            expected = torch.from_numpy(arrays[key])[: len(views)]
            torch.testing.assert_close(views[:, :, ::stride, ::stride], expected, atol=1e-6, rtol=0)
        if own and f"{name}/global_full" in arrays:
            torch.testing.assert_close(views[0], torch.from_numpy(arrays[f"{name}/global_full"]), atol=1e-6, rtol=0)
        if own and (fixture.folder / "hd" / f"{name}_hd{num_crops}.png").exists():
            expected = np.asarray(fixture.image(f"hd/{name}_hd{num_crops}.png"))
            assert (hd_transform(image, num_crops).permute(1, 2, 0).numpy() == expected).all()


@pytest.mark.parametrize("place", FOLDERS)
def test_tokens_and_hidden_states(place):
    fixture, reward = loaded(place)
    for case in fixture.expected["single"]:
        key = case["key"]
        inputs = reward.backbone.prepare([fixture.image(case["image"])], [case["caption"]])
        expected = fixture.tensor(f"{key}/input_ids")
        assert torch.equal(inputs.input_ids, expected)
        assert torch.equal(inputs.image_mask, expected < 0)
        with torch.no_grad():
            output = reward.backbone(inputs)
            before = output.hidden_states[:, -1]
            after = reward.head.skip_connection(before[:, None], output.visual_tokens, output.visual_mask)[:, 0]
            projected = reward.backbone.embed_images(inputs)
        for name, value in (
            ("img_projection_out", projected),
            ("hidden_eos_before_skipca", before),
            ("hidden_eos_after_skipca", after),
        ):
            if f"{key}/{name}" in fixture.arrays:
                torch.testing.assert_close(value, fixture.tensor(f"{key}/{name}"), atol=HIDDEN_TOLERANCE, rtol=0)


@pytest.mark.parametrize("place", FOLDERS)
@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_rewards(place, merge, batch_size):
    """Masked, batches of unequal images give what the released code gives one by one."""
    fixture, reward = loaded(place, merge=merge)
    cases = fixture.expected["single"]
    images = [fixture.image(case["image"]) for case in cases]
    found = reward.embed(images, [case["caption"] for case in cases], batch_size=batch_size)
    torch.testing.assert_close(found, rewards_of(cases), atol=REWARD_TOLERANCE, rtol=0)


@pytest.mark.parametrize("place", FOLDERS)
def test_batches_as_coded(place):
    """Padding in the softmax, and rotary factors by the padded length, as released."""
    fixture, reward = loaded(place)
    perspective = reward.perspectives[reward.active]
    config = perspective.config
    perspective.config = replace(config, as_coded=True)
    try:
        for case in fixture.expected["batch"]:
            rows = [
                reward.backbone.prepare_row(fixture.image(item["image"]), item["caption"]) for item in case["items"]
            ]
            inputs = reward.backbone.collate(rows, case["padding"])
            assert last_position(inputs.attention_mask).tolist() == case["eos_index"]
            with torch.no_grad():
                found = reward(inputs)
            torch.testing.assert_close(found, torch.tensor(case["reward"]), atol=REWARD_TOLERANCE, rtol=0)
    finally:
        perspective.config = config


@pytest.mark.parametrize("place", FOLDERS)
def test_preferences(place):
    fixture, reward = loaded(place)
    cases = {case["key"]: case for case in fixture.expected["single"]}
    for pair in fixture.expected["preference"]:
        chosen, rejected = (
            reward.embed([fixture.image(cases[pair[side]]["image"])], [cases[pair[side]]["caption"]])
            for side in ("chosen", "reject")
        )
        found = preference_probability(chosen, rejected, reward.config.tau)
        # A reward's tolerance over the temperature, at the steepest slope of the sigmoid.
        torch.testing.assert_close(found, torch.tensor(pair["prob"]), atol=REWARD_TOLERANCE / 0.1 / 2, rtol=0)


@pytest.mark.parametrize("place", FOLDERS)
def test_it_would_notice(place):
    """Without the adapter or the trained projector the first reward moves by more than the tolerance."""
    fixture, reward = loaded(place, merge=False)
    case = fixture.expected["single"][0]
    expected, image = torch.tensor(case["reward"]), fixture.image(case["image"])
    perspective = reward.perspectives[reward.active]
    perspective.has_adapter = False
    reward.set_perspective(reward.active)
    without_adapter = reward.embed([image], [case["caption"]])
    perspective.has_adapter, trained = True, perspective.projector
    perspective.projector = reward._base_projector
    reward.set_perspective(reward.active)
    without_projector = reward.embed([image], [case["caption"]])
    perspective.projector = trained
    reward.set_perspective(reward.active)
    assert (without_adapter - expected).abs().max() > 10 * REWARD_TOLERANCE
    assert (without_projector - expected).abs().max() > 10 * REWARD_TOLERANCE
